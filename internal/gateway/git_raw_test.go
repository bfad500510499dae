package gateway

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// raw posts a body to receive-pack as a hostile client would.
func (h *house) raw(body []byte, encoding string) (int, string) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), "POST", h.url+"/"+receivePack, bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer sandbox")
	req.Header.Set("Content-Type", "application/x-git-receive-pack-request")
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

func TestHostileCommandListsAreRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	before := fmt.Sprint(h.refs())
	create := zeroOID + " " + h.tip + " "
	var many strings.Builder
	for i := range 10000 {
		many.WriteString(pkt(fmt.Sprintf("%srefs/gastown/wip/b-1/%d", create, i)))
	}
	for _, c := range []struct{ name, body, want string }{
		{"nothing", "", "in the middle"},
		{"a length that is not hex", "zzzz", "hexadecimal"},
		{"a special packet", "0001", "impossible length"},
		{"a length of three", "0003", "impossible length"},
		{"a line that is too long", "ffff" + strings.Repeat("x", 70000), "impossible length"},
		{"a line that ends early", "0100abc", "in the middle"},
		{"no flush", pkt(create + own), "in the middle"},
		{"not a command", pkt("hello") + flushPkt, "old new ref"},
		{"short ids", pkt("00 11 "+own) + flushPkt, "old new ref"},
		{"an option as a reference", pkt(create+"--upload-pack=x") + flushPkt, "begins with '-'"},
		{"HEAD", pkt(create+"HEAD") + flushPkt, "reference name"},
		{"a way out", pkt(create+"refs/heads/../../x") + flushPkt, ".."},
		{"the same reference twice", pkt(create+own) + pkt(create+own) + flushPkt, "twice"},
		{"late capabilities", pkt(create+own) + pkt(create+own+"x\x00atomic") + flushPkt, "capabilities"},
		{"push options", pkt(create+own+"\x00push-options") + flushPkt, "push options"},
		{"a signed push", pkt("push-cert\x00atomic") + flushPkt, "signed"},
		{"another hash", pkt(create+own+"\x00object-format=sha256") + flushPkt, "SHA-1"},
		{"10,000 references", many.String() + flushPkt, "more than 100"},
		{"too many shallow lines", strings.Repeat(pkt("shallow "+h.tip), 1001) + flushPkt, "shallow"},
	} {
		status, body := h.raw([]byte(c.body), "")
		if status != 422 || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %q", c.name, status, body)
		}
	}
	if status, body := h.raw([]byte("not gzip"), "gzip"); status != 422 || !strings.Contains(body, "gzip") {
		t.Errorf("false gzip: %d %q", status, body)
	}
	if status, _ := h.raw(nil, "br"); status != 422 {
		t.Errorf("another encoding: %d", status)
	}
	if status, body := h.raw([]byte(flushPkt), ""); status != 200 || body != "" {
		t.Errorf("the probe: %d %q", status, body)
	}
	if after := fmt.Sprint(h.refs()); after != before {
		t.Errorf("references changed:\n%s\n%s", before, after)
	}
}

// emptyPack is a pack without objects: a push of what the hub holds already.
const emptyPack = "PACK\x00\x00\x00\x02\x00\x00\x00\x00\x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e"

func TestACompressedPushIsTakenAndABombIsNot(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{PackBytes: 1 << 20}, nil)
	list := pkt(zeroOID+" "+h.tip+" "+own+"\x00report-status") + flushPkt
	status, body := h.raw(zip(t, []byte(list+emptyPack)), "gzip")
	if status != 200 || !strings.Contains(body, "ok "+own) || h.refs()[own] != h.tip {
		t.Errorf("compressed: %d %q", status, body)
	}
	bomb := zip(t, append([]byte(list), make([]byte, 64<<20)...))
	before := fmt.Sprint(h.refs())
	if status, body = h.raw(bomb, "gzip"); strings.Contains(body, "ok refs/") {
		t.Errorf("the bomb: %d %q", status, body)
	}
	if after := fmt.Sprint(h.refs()); after != before {
		t.Error("the bomb changed references")
	}
}

func TestAPushOfACommitThatNobodySentIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	list := pkt(zeroOID+" "+strings.Repeat("1", 40)+" "+own+"\x00report-status") + flushPkt
	status, body := h.raw([]byte(list+emptyPack), "")
	if strings.Contains(body, "ok refs/") || h.refs()[own] != "" {
		t.Errorf("%d %q", status, body)
	}
}
