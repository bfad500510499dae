package gateway

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/binary"
	"os/exec"
	"strings"
	"testing"
)

// packed is one object of a pack: its kind, the size that it says, what follows
// that, and its content before compression.
type packed struct {
	kind    byte
	size    int
	follows []byte
	content []byte
}

func packOf(t testing.TB, objects ...packed) []byte {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("PACK")
	b.Write(binary.BigEndian.AppendUint32(nil, 2))
	b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(objects))))
	for _, o := range objects {
		c, n := o.kind<<4|byte(o.size&15), o.size>>4
		for ; n > 0; n >>= 7 {
			b.WriteByte(c | 0x80)
			c = byte(n & 0x7f)
		}
		b.WriteByte(c)
		b.Write(o.follows)
		z := zlib.NewWriter(&b)
		if _, err := z.Write(o.content); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha1.Sum(b.Bytes())
	return append(b.Bytes(), sum[:]...)
}

// bomb is a pack of a few hundred bytes with an object of times * 64 KiB.
func bomb(t testing.TB, times int) []byte {
	t.Helper()
	base := make([]byte, 1<<16)
	for i := range base {
		base[i] = byte(i * i >> 7)
	}
	id := sha1.Sum(append([]byte("blob 65536\x00"), base...))
	delta := binary.AppendUvarint(nil, uint64(len(base)))
	delta = binary.AppendUvarint(delta, uint64(times)<<16)
	delta = append(delta, bytes.Repeat([]byte{0x80}, times)...) // copy 64 KiB from the begin
	return packOf(t, packed{kind: 3, size: len(base), content: base}, packed{kind: 7, size: len(delta), follows: id[:], content: delta})
}

func TestASmallPackOfLargeObjectsIsNotUnpacked(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	pack := bomb(t, 2000) // 125 MiB
	status, body := h.raw(append([]byte(pkt(zeroOID+" "+h.tip+" "+own+"\x00report-status")+flushPkt), pack...), "")
	if status != 200 || !strings.Contains(body, "ok "+own) {
		t.Fatalf("status %d: %q", status, body)
	}
	dir, err := h.hub.Path(rig)
	if err != nil {
		t.Fatal(err)
	}
	loose, err := exec.CommandContext(t.Context(), "git", "--git-dir", dir, "count-objects", "-v").Output()
	if err != nil || !strings.Contains(string(loose), "packs: 1\n") {
		t.Errorf("%v: it is stored as\n%s", err, loose)
	}
}

func TestAnObjectThatFillsTheMemoryIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	status, body := h.raw(append([]byte(pkt(zeroOID+" "+h.tip+" "+own+"\x00report-status")+flushPkt), bomb(t, 1<<15)...), "") // 2 GiB
	if status != 200 || !strings.Contains(body, "ng "+own) || h.refs()[own] != "" {
		t.Errorf("status %d: %q", status, body)
	}
}

func TestWhatIsLargerThanItsPackIsSeen(t *testing.T) {
	t.Parallel()
	blob := func(n int) packed { return packed{kind: 3, size: n, content: make([]byte, n)} }
	lies := blob(5000)
	lies.size = 10
	for _, tt := range []struct {
		name string
		pack []byte
		want bool
	}{
		{"small objects", packOf(t, blob(10), blob(1000), packed{kind: 6, size: 3, follows: []byte{0x81, 0x02}, content: []byte{10, 90, 0x80}}), true},
		{"none", packOf(t), true},
		{"a large one", packOf(t, blob(10), blob(5001)), false},
		{"many that are large together", packOf(t, blob(2000), blob(2000), blob(2000)), false},
		{"one that lies", packOf(t, lies, blob(1000)), false},
		{"a difference", bomb(t, 1), false},
		{"a difference at an offset", packOf(t, packed{kind: 6, size: 4, follows: []byte{1}, content: []byte{10, 0xff, 0xff, 0x7f}}), false},
		{"cut off", packOf(t, blob(10))[:15], false},
		{"no pack", []byte("hello, this is no pack"), false},
		{"nothing", nil, false},
	} {
		if got := spreads(tt.pack, 5000); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzPack(f *testing.F) {
	f.Add(bomb(f, 3))
	f.Add(packOf(f, packed{kind: 3, size: 3, content: []byte("abc")}))
	f.Add([]byte("PACK\x00\x00\x00\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(_ *testing.T, pack []byte) {
		spreads(pack, 1<<16) // it ends, and does not panic
	})
}
