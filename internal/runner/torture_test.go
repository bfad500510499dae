package runner

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// breakGit puts a git before the real one that dies of SIGBUS at every third
// update of an index, as the real one does when a file is truncated while it is
// mapped, and leaves its lock behind. It returns how often that happened.
func breakGit(t *testing.T) (deaths func() int) {
	t.Helper()
	real, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	count := filepath.Join(dir, "count")
	text := `#!/bin/sh
case " $* " in *" update-index --add "*)
	echo x >> ` + count + `
	if [ $(($(wc -l < ` + count + `) % 3)) = 0 ]; then
		: > "$GIT_INDEX_FILE.lock"
		kill -BUS $$
	fi;;
esac
exec ` + real + ` "$@"
`
	if err := os.WriteFile(filepath.Join(dir, "git"), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	return func() int {
		calls, err := os.ReadFile(count)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(calls), "x") / 3
	}
}

// rewrite truncates a file and writes it in pieces, again and again, until stop.
func rewrite(t *testing.T, path string, size int, stop <-chan struct{}) (stopped chan struct{}) {
	stopped = make(chan struct{})
	piece := []byte(strings.Repeat("0123456789abcdef", 512))
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			for n := 0; n < size && err == nil; n += len(piece) {
				_, err = f.Write(piece)
			}
			if cerr := f.Close(); err != nil || cerr != nil {
				t.Error(err, cerr)
				return
			}
		}
	}()
	return stopped
}

func TestSixtyCheckpointsBesideAToolThatTruncatesAndAGitThatDies(t *testing.T) {
	deaths := breakGit(t)
	b := newWorkbench(t)
	b.c.maxFile = 50 << 20
	b.write(b.w.dir, "busy/one", "x")
	b.write(b.w.dir, "busy/two", "x")
	stop := make(chan struct{})
	one, two := rewrite(t, filepath.Join(b.w.dir, "busy/one"), 2<<20, stop), rewrite(t, filepath.Join(b.w.dir, "a.txt"), 64<<10, stop)
	for i := range 60 {
		name := fmt.Sprintf("n/%02d", i)
		whole := strings.Repeat(name+"\n", 5000)
		b.write(b.w.dir, "part", whole)
		if err := os.MkdirAll(filepath.Join(b.w.dir, "n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(b.w.dir, "part"), filepath.Join(b.w.dir, name)); err != nil {
			t.Fatal(err)
		}
		s, err := b.c.save(context.Background(), true)
		if err != nil || s.Commit == "" {
			t.Fatalf("checkpoint %d: %q, %v", i, s.Commit, err)
		}
		if got := b.must(b.clone.dir, "show", s.Commit+":"+name); got+"\n" != whole {
			t.Fatalf("checkpoint %d: %s has %d bytes, not %d", i, name, len(got)+1, len(whole))
		}
	}
	close(stop)
	<-one
	<-two
	if n := deaths(); n < 10 {
		t.Errorf("git died only %d times", n)
	}
	s := b.save()
	for name, size := range map[string]int{"busy/one": 2 << 20, "a.txt": 64 << 10, "busy/two": 1, "n/59": 25000} {
		if got := b.must(b.clone.dir, "cat-file", "-s", s.Commit+":"+name); got != fmt.Sprint(size) {
			t.Errorf("when all is quiet %s has %s bytes, not %d", name, got, size)
		}
	}
	if _, err := os.Stat(filepath.Join(b.w.admin, "index.lock")); err == nil {
		t.Error("the agent's own index is locked")
	}
}
