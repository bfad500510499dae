package hub

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func TestVerifyLooksAtTheBranchItself(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	ctx := t.Context()
	changed := w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n", "new/c.txt", "x\n")
	same := w.agent(t, tip, "gt/nux/b-2")
	aside := w.person(t, tip, "z", "z")
	for _, c := range []struct {
		name, branch, base string
		want               Evidence
	}{
		{"a change", "gt/nux/b-1", tip, Evidence{Commit: changed, Exists: true, DescendsFromBase: true, Changed: true, Files: 2}},
		{"an empty commit", "gt/nux/b-2", tip, Evidence{Commit: same, Exists: true, DescendsFromBase: true}},
		{"no such branch", "gt/nux/b-3", tip, Evidence{}},
		{"another base", "gt/nux/b-1", same, Evidence{Commit: changed, Exists: true}},
		{"an unknown base", "gt/nux/b-1", aside, Evidence{Commit: changed, Exists: true}},
	} {
		got, err := w.Verify(ctx, rig, c.branch, c.base)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
	_, err := w.Verify(ctx, rig, "--x", tip)
	wantKind(t, err, errs.Invalid)
	_, err = w.Verify(ctx, rig, "x", "HEAD")
	wantKind(t, err, errs.Invalid)
}

func TestARepeatedCandidateIsTheSameCommit(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", "agent\n")
	tip2 := w.person(t, tip, "b.txt", "person\n")
	if _, err := w.Fetch(t.Context(), rig, w.remote); err != nil {
		t.Fatal(err)
	}
	first, err := w.Candidate(t.Context(), rig, spec(tip2, c))
	if err != nil || first.Commit == "" || first.Conflict || first.AlreadyIn || first.Tip != tip2 {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := w.Candidate(t.Context(), rig, spec(tip2, c))
	if err != nil || again.Commit != first.Commit {
		t.Fatalf("%+v, %v", again, err)
	}
	refs, err := w.Refs(t.Context(), rig, "refs/gastown/merge/b-1/")
	if err != nil || len(refs) != 1 || refs["refs/gastown/merge/b-1/1"] != first.Commit {
		t.Errorf("published: %v, %v", refs, err)
	}
	dir, _ := w.Path(rig)
	if got := sh(t, dir, "log", "-1", "--format=%P|%an|%ce|%ct|%s", first.Commit); got != tip2+" "+c+"|Gastown|g@localhost|1700000000|Merge b-1" {
		t.Errorf("the commit is %s", got)
	}
	if got := sh(t, dir, "show", first.Commit+":a.txt") + sh(t, dir, "show", first.Commit+":b.txt"); got != "agentperson" {
		t.Errorf("merged to %q", got)
	}
}

func TestACandidateTellsConflictFromAlreadyIn(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	ctx := t.Context()
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", "agent\n")
	tip2 := w.person(t, tip, "a.txt", "person\n")
	if _, err := w.Fetch(ctx, rig, w.remote); err != nil {
		t.Fatal(err)
	}
	got, err := w.Candidate(ctx, rig, spec(tip2, c))
	if err != nil || !got.Conflict || got.Commit != "" || len(got.ConflictFiles) != 1 || got.ConflictFiles[0] != "a.txt" {
		t.Fatalf("%+v, %v", got, err)
	}
	if !strings.Contains(got.Detail, "Merge conflict in a.txt") {
		t.Errorf("detail: %q", got.Detail)
	}
	if refs, err := w.Refs(ctx, rig, "refs/gastown/"); err != nil || len(refs) != 0 {
		t.Errorf("a conflict published %v, %v", refs, err)
	}
	if got, err = w.Candidate(ctx, rig, spec(tip2, tip)); err != nil || !got.AlreadyIn || got.Commit != "" {
		t.Errorf("an ancestor: %+v, %v", got, err)
	}
	sh(t, w.clone, "checkout", "-q", "--orphan", "alone")
	alone := commit(t, w.clone, "a.txt", "alone")
	dir, _ := w.Path(rig)
	sh(t, w.clone, "push", "-q", dir, alone+":refs/heads/gt/nux/b-9")
	if got, err = w.Candidate(ctx, rig, spec(tip2, alone)); err != nil || !got.Conflict || !strings.Contains(got.Detail, "no history") {
		t.Errorf("unrelated: %+v, %v", got, err)
	}
	_, err = w.Candidate(ctx, rig, spec(tip2, strings.Repeat("1", 40)))
	wantKind(t, err, errs.NotFound)
	bad := spec(tip2, c)
	for _, bead := range []string{"", "a/b", "..", "x.lock", "-x", "a b"} {
		bad.Bead = bead
		_, err = w.Candidate(ctx, rig, bad)
		wantKind(t, err, errs.Invalid)
	}
}

func TestAnOddAuthorIsCleaned(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", "agent\n")
	for i, who := range []Identity{{}, {"<>\n", "\x00"}, {"a\nb <x>", "a b"}, {".", ","}} {
		s := spec(tip, c)
		s.Author, s.Message, s.When, s.N = who, "m\x00\xff", time.Time{}, i+1
		if got, err := w.Candidate(t.Context(), rig, s); err != nil || got.Commit == "" {
			t.Errorf("%q: %v", who, err)
		}
	}
}

func (w *world) candidate(t testing.TB, tip, c string) string {
	t.Helper()
	got, err := w.Candidate(t.Context(), rig, spec(tip, c))
	if err != nil || got.Commit == "" {
		t.Fatalf("no candidate: %+v, %v", got, err)
	}
	return got.Commit
}

func BenchmarkVerify(b *testing.B) {
	w, tip := bigWorld(b)
	w.agent(b, tip, "gt/nux/b-1", "d1/f1", "x\n")
	for b.Loop() {
		if e, err := w.Verify(b.Context(), rig, "gt/nux/b-1", tip); err != nil || !e.Changed {
			b.Fatal(e, err)
		}
	}
}

func BenchmarkCandidate(b *testing.B) {
	w, tip := bigWorld(b)
	c := w.agent(b, tip, "gt/nux/b-1", "d1/f1", "x\n")
	tip2 := w.person(b, tip, "d2/f2", "y\n")
	if _, err := w.Fetch(b.Context(), rig, w.remote); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if got, err := w.Candidate(b.Context(), rig, spec(tip2, c)); err != nil || got.Commit == "" {
			b.Fatal(got, err)
		}
	}
}

// bigWorld has 2,000 files.
func bigWorld(b *testing.B) (*world, string) {
	w := emptyWorld(b)
	for i := range 2000 {
		write(b, w.clone, fmt.Sprintf("d%d/f%d", i%50, i), fmt.Sprintln(i))
	}
	commit(b, w.clone)
	sh(b, w.clone, "push", "-q", "origin", "main")
	tip, err := w.Add(b.Context(), rig, w.remote, AddOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return w, tip
}
