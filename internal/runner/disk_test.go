package runner

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// A disk that goes away under a living runner makes agents, gates and git fail.
// None of that is told as if it were their fault.
func TestARunnerWithoutItsDiskBlamesNobodyAndEnds(t *testing.T) {
	f := newTown(t)
	outside := t.TempDir()
	begun, release := filepath.Join(outside, "begun"), filepath.Join(outside, "release")
	hold := "echo >> '" + begun + "'; while [ ! -e '" + release + "' ]; do sleep 0.02; done; exit 1"
	f.body = "```sh\n" + hold + "\n```\n"
	r := f.begin(nil)
	f.publish(func(d *town.Desired) {
		d.Gates = []town.GateJob{{Bead: "app-bbbbb", N: 1, Rig: "app", Ref: "refs/gastown/merge/app-bbbbb/1", Candidate: f.tip,
			Gates: []town.GateLimit{{Name: "held", Command: hold, TimeoutMS: 60_000}}}}
	})
	f.addRun(func(d *town.DesiredRun) { d.TurnNudges = 0 })
	awaitLines(t, begun, 2)
	if err := os.Rename(f.disk, f.disk+".lost"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(release, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := r.wait()
	if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "disk") {
		t.Errorf("the runner ended with %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.reports {
		if p.Kind == town.ReportEnded {
			t.Errorf("it reported %+v", p)
		}
	}
	if len(f.gates) > 0 {
		t.Errorf("it reported gates: %+v", f.gates)
	}
}

// awaitLines waits until a file has so many lines.
func awaitLines(t *testing.T, path string, n int) {
	t.Helper()
	end, tick := time.NewTimer(patience), time.NewTicker(5*time.Millisecond)
	defer end.Stop()
	defer tick.Stop()
	for {
		text, err := os.ReadFile(path)
		if err == nil && strings.Count(string(text), "\n") >= n {
			return
		}
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("waited in vain for %s: %q, %v", path, text, err)
		}
	}
}

// A worktree in the making names a commit that is not here yet. Another fetch
// into the same clone must not trip over it.
func TestAWorktreeInTheMakingBreaksNoOtherFetch(t *testing.T) {
	b := newWorkbench(t)
	missing := strings.Repeat("1", 40)
	for _, s := range []treeSpec{{bead: "app-bbbbb", start: missing}, {bead: "app-ccccc", branch: "gt/jet/app-ccccc", start: missing}} {
		if _, err := b.clone.prepare(context.Background(), filepath.Join(b.disk, "work", s.bead), filepath.Join(b.disk, "trash"), s); err == nil {
			t.Fatal("a worktree was made of a commit that nobody has")
		}
	}
	b.write(b.work, "a.txt", "two\n")
	b.must(b.work, "commit", "-q", "-a", "-m", "another")
	b.must(b.clone.dir, "fetch", "-q", b.work, "+HEAD:refs/gastown/have/other")
	w, err := b.clone.prepare(context.Background(), filepath.Join(b.disk, "gates", "app-bbbbb"), filepath.Join(b.disk, "trash"),
		treeSpec{bead: "app-bbbbb", start: b.must(b.work, "rev-parse", "HEAD")})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := w.state(context.Background()); err != nil || st.branch != "" || st.head != b.must(b.work, "rev-parse", "HEAD") || len(st.dirty) > 0 {
		t.Fatalf("the worktree is %+v, %v", st, err)
	}
}
