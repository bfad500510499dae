package hub

import (
	"testing"
)

func TestBeadRefsAreFoundLooseAndPacked(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	ctx := t.Context()
	if refs, err := w.BeadRefs(ctx, rig); err != nil || len(refs) != 0 {
		t.Fatalf("of no bead: %v, %v", refs, err)
	}
	dir, err := w.Path(rig)
	if err != nil {
		t.Fatal(err)
	}
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n")
	sh(t, w.clone, "push", "-q", dir, c+":refs/gastown/wip/b-2/1")
	want := []BeadRef{{"refs/gastown/wip/b-2/1", "b-2", ""}, {"refs/heads/gt/nux/b-1", "b-1", "gt/nux/b-1"}}
	for _, how := range []string{"loose", "packed"} {
		refs, err := w.BeadRefs(ctx, rig)
		if err != nil || len(refs) != 2 || refs[0] != want[0] || refs[1] != want[1] {
			t.Errorf("%s: %v, %v", how, refs, err)
		}
		sh(t, dir, "--git-dir=.", "pack-refs", "--all", "--prune")
	}
	for _, bead := range []string{"b-1", "b-2"} {
		if err := w.DropBead(ctx, rig, bead, "gt/nux/b-1"); err != nil {
			t.Fatal(err)
		}
	}
	if refs, err := w.BeadRefs(ctx, rig); err != nil || len(refs) != 0 {
		t.Errorf("after they were dropped: %v, %v", refs, err)
	}
	if mayHoldBeads(dir) {
		t.Error("git is asked although nothing is there")
	}
}
