package gateway

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"gastown/internal/git"
)

// FuzzPushPolicy sends command lists of strangers to the policy of a run: what
// passes names only the run's own references, and receive-pack is told exactly that.
func FuzzPushPolicy(f *testing.F) {
	const own, wip = "refs/heads/gt/amber/web-aaaaa", "refs/gastown/wip/web-aaaaa/1"
	for _, ref := range []string{own, wip, own + "/x", own + "x", wip + "/", "refs/heads/main", "refs/gastown/wip/web-aaaaa/2", "refs/gastown/merge/web-aaaaa/1",
		"HEAD", "refs/heads/../heads/main", own + "\x00", own + ".lock", "refs/heads/gt/amber/web-aaaaa\nrefs/heads/main", strings.ToUpper(own), "refs/gastown/wip/web-aaaaa/1/../../x"} {
		f.Add(ref, wip, false, []byte(flushPkt))
		f.Add(own, ref, true, []byte{})
	}
	for _, s := range seeds() {
		f.Add(own, wip, false, []byte(s))
	}
	f.Fuzz(func(t *testing.T, one, two string, del bool, tail []byte) {
		id := oid
		if del {
			id = zeroOID
		}
		var in bytes.Buffer
		for i, ref := range []string{one, two} {
			line := zeroOID + " " + id + " " + ref
			if len(line) > 60000 {
				return
			}
			if i == 0 {
				line += "\x00report-status side-band-64k"
			}
			in.WriteString(pkt(line))
		}
		in.Write(tail)
		in.WriteString(flushPkt)
		for _, raw := range [][]byte{in.Bytes(), tail} {
			for _, frozen := range []string{"", "it said done"} {
				judged(t, raw, GitGrant{Push: []PushRule{{Ref: own, Force: true, Frozen: frozen}, {Ref: wip, Force: true}}, Refusal: "no"})
			}
		}
	})
}

func judged(t *testing.T, raw []byte, grant GitGrant) {
	r := bytes.NewReader(raw)
	list, err := readCommands(r, commandLimits{Commands: 8, Shallow: 3})
	if err != nil {
		return
	}
	reasons, force := grant.judge(list.Commands)
	for ref := range reasons {
		if !slices.ContainsFunc(list.Commands, func(c command) bool { return c.Ref == ref }) {
			t.Fatalf("%q is refused and was not asked for", ref)
		}
	}
	answer := bytes.NewReader(list.refusal(reasons, grant.explain(reasons)))
	for answer.Len() > 0 {
		if _, _, err := readPkt(answer); err != nil {
			t.Fatalf("the refusal of %q can't be read: %v", raw, err)
		}
	}
	if len(reasons) > 0 || len(list.Commands) == 0 {
		return
	}
	if !force {
		t.Fatal("all rules allow force and it is not allowed")
	}
	told, err := readCommands(bytes.NewReader(list.encode()), commandLimits{Commands: 8, Shallow: 3})
	if err != nil || !slices.Equal(told.Commands, list.Commands) {
		t.Fatalf("receive-pack is told %+v, %v instead of %+v", told.Commands, err, list.Commands)
	}
	for _, c := range told.Commands {
		own := slices.ContainsFunc(grant.Push, func(p PushRule) bool { return p.Frozen == "" && p.Ref == c.Ref })
		if !own || c.New == zeroOID || git.ValidRef(c.Ref) != nil {
			t.Fatalf("%+v was let through", c)
		}
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.HasSuffix(raw, rest) {
		t.Fatalf("the pack begins with %q, %v", rest, err)
	}
}
