package gateway

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// blank is an endless source.
type blank struct{}

func (blank) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// object appends one object of a pack: its type and size, then its content deflated.
func object(t *testing.T, pack *bytes.Buffer, kind byte, size int64, content io.Reader) {
	t.Helper()
	b := kind<<4 | byte(size&15)
	for rest := size >> 4; ; rest >>= 7 {
		if rest == 0 {
			pack.WriteByte(b)
			break
		}
		pack.WriteByte(b | 0x80)
		b = byte(rest & 0x7f)
	}
	z := zlib.NewWriter(pack)
	if _, err := io.CopyN(z, content, size); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

// rawPack closes a pack of n objects.
func rawPack(n uint32, objects []byte) []byte {
	head := append([]byte("PACK\x00\x00\x00\x02"), binary.BigEndian.AppendUint32(nil, n)...)
	body := append(head, objects...)
	sum := sha1.Sum(body)
	return append(body, sum[:]...)
}

// TestARawClientMayPushNothingButItsOwn says with packets of its own what the git
// program would not: nothing that it checks before it sends may be what holds.
func TestARawClientMayPushNothingButItsOwn(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	const other = "refs/heads/gt/toast/b-2"
	h.must(h.dir, "update-ref", other, h.tip)
	h.must(h.dir, "update-ref", own, h.tip)
	before := fmt.Sprint(h.refs())
	try := func(name, want string, lines ...string) {
		t.Helper()
		list := ""
		for i, l := range lines {
			if i == 0 {
				l += "\x00report-status side-band-64k"
			}
			list += pkt(l)
		}
		status, body := h.raw([]byte(list+flushPkt+emptyPack), "")
		if status != 200 && status != 422 || strings.Contains(body, "ok refs/") || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", name, status, body)
		}
		if after := fmt.Sprint(h.refs()); after != before {
			t.Fatalf("%s changed references:\n%s\n%s", name, before, after)
		}
	}
	create, remove := zeroOID+" "+h.tip+" ", h.tip+" "+zeroOID+" "
	try("the target", "not yours to push", create+"refs/heads/main")
	try("the target with what it has", "not yours to push", h.tip+" "+h.tip+" refs/heads/main")
	try("a tag", "not yours to push", create+"refs/tags/v1")
	try("another bead's branch", "not yours to push", h.tip+" "+h.tip+" "+other)
	try("another bead's branch, new", "not yours to push", create+"refs/heads/gt/nux/b-2")
	try("another bead's checkpoint", "not yours to push", create+"refs/gastown/wip/b-2/1")
	try("a candidate", "not yours to push", create+"refs/gastown/merge/b-1/1")
	try("what upstream holds", "not yours to push", h.tip+" "+h.tip+" refs/upstream/heads/main")
	try("a branch that begins like its own", "not yours to push", create+own+"x")
	try("deleting its own", "deleting references is not allowed", remove+own)
	try("deleting the target", "not yours to push", remove+"refs/heads/main")
	try("its own beside the target", "not yours to push", h.tip+" "+h.tip+" "+own, create+"refs/heads/main")
	try("a reference named like an option", "begins with '-'", create+"--receive-pack=touch")
	try("an option below its own", "", create+"refs/gastown/wip/b-1/--exec=x\x7f")
	h.policy.set(PushRule{Ref: own, Frozen: "b-1 is in review"})
	try("its frozen branch", "b-1 is in review", h.tip+" "+h.tip+" "+own)
	try("deleting its frozen branch", "b-1 is in review", remove+own)
}

// TestAPackBombTakesNeitherReferencesNorMemory sends a pack of some hundred
// kilobytes that inflates to 300 megabytes.
func TestAPackBombTakesNeitherReferencesNorMemory(t *testing.T) {
	h := newHouse(t, GitLimits{PackBytes: 1 << 20}, nil)
	before := fmt.Sprint(h.refs())
	var objects bytes.Buffer
	object(t, &objects, 3, 300<<20, blank{}) // a blob
	bomb := rawPack(1, objects.Bytes())
	if len(bomb) > 1<<20 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	list := pkt(zeroOID+" "+strings.Repeat("1", 40)+" "+own+"\x00report-status") + flushPkt
	status, body := h.raw(append([]byte(list), bomb...), "")
	if strings.Contains(body, "ok refs/") || fmt.Sprint(h.refs()) != before {
		t.Errorf("%d %q", status, body)
	}
	// It lies about its size, too.
	lie := bytes.Buffer{}
	object(t, &lie, 3, 1<<10, blank{})
	lie.Bytes()[1] = 0x7f
	status, body = h.raw(append([]byte(list), rawPack(1, lie.Bytes())...), "")
	if strings.Contains(body, "ok refs/") || fmt.Sprint(h.refs()) != before {
		t.Errorf("a false size: %d %q", status, body)
	}
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &used); err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS == "linux" && used.Maxrss > 160<<10 { // in KB
		t.Errorf("a git took %d MB of memory", used.Maxrss>>10)
	}
}
