package gateway

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

const oid = "0123456789abcdef0123456789abcdef01234567"

func seeds() []string {
	cmd := zeroOID + " " + oid + " refs/heads/gt/nux/b-1"
	return []string{
		"", "0000", "0001", "0003", "0004", "ffff", "000g", "00000000", "0005a", "-001", "+001", "0x10",
		pkt(cmd) + flushPkt + "PACK",
		pkt(cmd+"\x00 report-status side-band-64k agent=git/2.39") + pkt(cmd+"x\n") + flushPkt,
		pkt("shallow "+oid+"\n") + pkt(cmd) + flushPkt,
		pkt("push-cert\x00x") + flushPkt,
		pkt(cmd+"\x00push-options") + flushPkt + pkt("opt") + flushPkt,
		pkt(cmd+"\x00\x00") + flushPkt,
		pkt(zeroOID+" "+oid+" --upload-pack=x") + flushPkt,
	}
}

func TestACommandListSurvivesItsEncoding(t *testing.T) {
	t.Parallel()
	in := pkt("shallow "+oid+"\n") +
		pkt(zeroOID+" "+oid+" refs/heads/a\x00 report-status side-band-64k push-cert-not agent=x\n") +
		pkt(oid+" "+zeroOID+" refs/heads/b\n") + flushPkt + "rest"
	r := strings.NewReader(in)
	list, err := readCommands(r, commandLimits{Commands: 2, Shallow: 1})
	if err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "rest" {
		t.Errorf("the reader read on: %q is left", rest)
	}
	want := pkt("shallow "+oid) + pkt(zeroOID+" "+oid+" refs/heads/a\x00 atomic object-format=sha1 report-status side-band-64k") +
		pkt(oid+" "+zeroOID+" refs/heads/b") + flushPkt
	if got := string(list.encode()); got != want {
		t.Errorf("encoded\n%q, want\n%q", got, want)
	}
	if list.Commands[0].deletes() || !list.Commands[1].deletes() {
		t.Error("deletions are not told apart")
	}
}

func TestARefusalCannotBeBrokenByItsReason(t *testing.T) {
	t.Parallel()
	list := commandList{Commands: []command{{zeroOID, oid, "refs/heads/a"}, {zeroOID, oid, "refs/heads/b"}},
		Caps: map[string]bool{"report-status": true}}
	got := string(list.refusal(map[string]string{"refs/heads/a": "no\nok refs/heads/a\x00" + strings.Repeat("é", 400)}, "m"))
	if strings.Contains(got, "\nok ") || strings.Count(got, "ng ") != 2 || strings.Contains(got[20:], "\x00") {
		t.Errorf("%q", got)
	}
	list.Caps["side-band-64k"] = true
	long := strings.Repeat("x", 200000)
	out := list.refusal(nil, long)
	r := bytes.NewReader(out)
	var message strings.Builder
	for {
		line, flush, err := readPkt(r)
		if err != nil {
			t.Fatal(err)
		}
		if flush {
			break
		}
		if line[0] == 2 {
			message.Write(line[1:])
		}
	}
	if message.String() != long+"\n" || r.Len() != 0 {
		t.Error("a long message does not come through the sideband")
	}
	if got := (&commandList{Caps: map[string]bool{}}).refusal(nil, "m"); len(got) != 0 {
		t.Errorf("a client that reads no report gets %q", got)
	}
}

func TestRulesMatchWholeNamesOrBelowASlash(t *testing.T) {
	t.Parallel()
	g := GitGrant{Push: []PushRule{{Ref: "refs/heads/a"}, {Ref: "refs/wip/b/"}}}
	for ref, want := range map[string]bool{"refs/heads/a": true, "refs/heads/ab": false, "refs/heads/a/b": false,
		"refs/wip/b/1": true, "refs/wip/b/1/2": true, "refs/wip/b": false, "refs/wip/bb": false} {
		if _, ok := g.rule(ref); ok != want {
			t.Errorf("%s: %v", ref, ok)
		}
	}
}

func FuzzReadPkt(f *testing.F) {
	for _, s := range seeds() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		payload, flush, err := readPkt(r)
		if err != nil {
			return
		}
		if flush {
			if len(payload) != 0 || !bytes.HasPrefix(b, []byte(flushPkt)) {
				t.Fatalf("%q is a flush", b)
			}
			return
		}
		if again := pkt(string(payload)); !strings.EqualFold(again[:4], string(b[:4])) || again[4:] != string(b[4:len(again)]) {
			t.Fatalf("%q came back as %q", b, again)
		}
	})
}

func FuzzReadCommands(f *testing.F) {
	for _, s := range seeds() {
		f.Add([]byte(s))
	}
	lim := commandLimits{Commands: 10, Shallow: 3}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		list, err := readCommands(r, lim)
		if err != nil || len(list.Commands) == 0 {
			return
		}
		if len(list.Commands) > lim.Commands || len(list.Shallow) > lim.Shallow {
			t.Fatal("limits don't hold")
		}
		for _, c := range list.Commands {
			if !strings.HasPrefix(c.Ref, "refs/") || strings.ContainsAny(c.Ref, " \n\x00:") || len(c.New) != 40 {
				t.Fatalf("accepted %+v", c)
			}
		}
		again, err := readCommands(bytes.NewReader(list.encode()), lim)
		if err != nil || len(again.Commands) != len(list.Commands) || !again.Caps["atomic"] {
			t.Fatalf("%q encodes to %q: %v", b, list.encode(), err)
		}
		for i := range again.Commands {
			if again.Commands[i] != list.Commands[i] {
				t.Fatalf("%+v became %+v", list.Commands[i], again.Commands[i])
			}
		}
		refusal := bytes.NewReader(list.refusal(nil, "m"))
		for refusal.Len() > 0 {
			if _, _, err := readPkt(refusal); err != nil {
				t.Fatal(err)
			}
		}
	})
}
