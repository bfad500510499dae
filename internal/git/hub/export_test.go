package hub

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// exported makes a repository of what Export hands out.
func exported(t *testing.T, h *Hub, id ID, between func(name string)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy.git")
	err := h.Export(t.Context(), id, func(name string, size int64, r io.Reader) error {
		if !Exportable(name) {
			t.Errorf("%s is handed out", name)
		}
		b, err := io.ReadAll(r)
		if err != nil || int64(len(b)) != size {
			return fmt.Errorf("%s: %d bytes of %d, %w", name, len(b), size, err)
		}
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return err
		}
		between(name)
		return os.WriteFile(p, b, 0o600)
	})
	if err == nil {
		err = Adopt(dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAnExportedRepositoryIsWholeWhileOthersPushAndPack(t *testing.T) {
	t.Parallel()
	w := emptyWorld(t)
	commit(t, w.clone, "a", "1")
	sh(t, w.clone, "push", "-q", "origin", "main")
	if _, err := w.Add(t.Context(), rig, w.remote, AddOptions{}); err != nil {
		t.Fatal(err)
	}
	dir, err := w.Path(rig)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	n := 0
	push := func() {
		n++
		commit(t, w.clone, "a", fmt.Sprint("change ", n))
		sh(t, w.clone, "push", "-q", dir, fmt.Sprintf("HEAD:refs/heads/gt/amber/b-%d", n))
	}
	for range 5 {
		push()
	}
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			if err := w.Maintain(ctx, rig); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	var pushed []string
	want := sh(t, dir, "for-each-ref")
	copied := exported(t, w.Hub, rig, func(name string) {
		if name == "packed-refs" || len(pushed) < 3 {
			pushed = append(pushed, name)
			push() // what comes later than the references is not in the copy, or not referred to
		}
	})
	stop()
	all.Wait()
	sh(t, copied, "fsck", "--full", "--strict")
	if got := sh(t, copied, "for-each-ref"); got != want {
		t.Errorf("the copy refers to\n%s\nwant\n%s", got, want)
	}
	if got := sh(t, copied, "symbolic-ref", "HEAD"); got != "refs/heads/main" {
		t.Errorf("HEAD is %s", got)
	}
}

func TestWhatAnExportCanNotHoldIsNotTakenFromOne(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"HEAD": true, "packed-refs": true, "objects/pack/pack-1.pack": true, "objects/ab/cd": true,
		"config": false, "hooks/post-receive": false, "objects/info/alternates": false, "objects/INFO/Alternates": false, "objects/../config": false, "objects/": false,
		"/etc/passwd": false, "objects//etc/passwd": false,
	} {
		if Exportable(name) != want {
			t.Errorf("Exportable(%q) is %v", name, !want)
		}
	}
}

func TestTroubleWithTheDiskIsSaidAsSuch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		stderr string
		kind   errs.Kind
	}{
		{"error: unable to write file objects/ab: No space left on device", errs.Unavailable},
		{"fatal: Unable to create 'x.lock': Read-only file system", errs.Unavailable},
		{"error: insufficient permission for adding an object to repository database objects", errs.Unavailable},
		{"fatal: bad revision", errs.Internal},
	} {
		err := diskTrouble(&git.ExitError{Code: 128, Stderr: c.stderr})
		if !errs.Is(err, c.kind) || c.kind == errs.Unavailable && !strings.Contains(err.Error(), "data directory") {
			t.Errorf("%s: %v", c.stderr, err)
		}
	}
}
