package runner

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"gastown/internal/git"
)

// Runs of one rig begin together on a disk that lacks their base: whoever looks
// while another one's fetch ends must not take that for a failure.
func TestACommitThatAnotherRunFetchesMeanwhileIsCheckedOut(t *testing.T) {
	b := newWorkbench(t)
	b.write(b.work, "a.txt", "two\n")
	b.must(b.work, "commit", "-q", "-a", "-m", "another")
	tip := b.must(b.work, "rev-parse", "HEAD")

	// A git whose first checkout fails, after which the commit is there.
	program, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(b.disk, "bin")
	b.write(bin, "git", `#!/bin/sh
case " $* " in *" checkout "*)
	if mkdir "`+bin+`/once" 2>/dev/null; then
		"`+program+`" "$@"; rc=$?
		"`+program+`" --git-dir="`+b.clone.dir+`" fetch -q "`+b.work+`" +HEAD:refs/gastown/have/other >/dev/null 2>&1
		exit $rc
	fi;;
esac
exec "`+program+`" "$@"
`)
	if err := os.Chmod(filepath.Join(bin, "git"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if b.clone.of.git, err = git.New(); err != nil {
		t.Fatal(err)
	}
	w, err := b.clone.prepare(context.Background(), filepath.Join(b.disk, "work", "app-bbbbb"), filepath.Join(b.disk, "trash"),
		treeSpec{bead: "app-bbbbb", branch: "gt/jet/app-bbbbb", start: tip})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "once")); err != nil {
		t.Fatal("the first checkout did not fail: the test proves nothing")
	}
	if got, err := os.ReadFile(filepath.Join(w.dir, "a.txt")); err != nil || string(got) != "two\n" {
		t.Fatalf("a.txt is %q, %v", got, err)
	}
}
