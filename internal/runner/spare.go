package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"gastown/internal/errs"
)

// maxSpareIndex is the size of an index, in bytes, above which a rig gets no
// spare worktree: its files would cost too much disk (some 100,000 of them).
const maxSpareIndex = 10 << 20

// spares keeps one worktree per rig ready, so that a run does not wait until
// all its files are written: the spare is renamed and only what differs from
// the run's start is rewritten. No agent was ever in a spare. One that is
// there is complete; it outlives the runner as a cache.
type spares struct {
	root string

	mu     sync.Mutex // guards making
	making map[string]bool
}

func newSpares(root string) *spares { return &spares{root: root, making: map[string]bool{}} }

// paths of a rig's spare: the files, and git's directory for them.
func (s *spares) paths(c *rigClone) (dir, admin string) {
	return filepath.Join(s.root, c.name), filepath.Join(c.dir, "worktrees", "spare."+c.name)
}

// take moves the rig's spare to where w is wanted; false when there is none.
// What goes wrong halfway is moved away by the caller's remove.
func (s *spares) take(w *worktree) bool {
	dir, admin := s.paths(w.clone)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.making[w.clone.name] {
		return false
	}
	if os.Rename(dir, w.dir) != nil {
		return false
	}
	return os.Rename(admin, w.admin) == nil
}

// fill makes a spare at a commit, unless there is one or it is being made.
func (s *spares) fill(ctx context.Context, c *rigClone, trash, commit string) error {
	dir, admin := s.paths(c)
	s.mu.Lock()
	_, err := os.Stat(dir)
	busy := s.making[c.name] || err == nil
	if !busy {
		s.making[c.name] = true
	}
	s.mu.Unlock()
	if busy {
		return nil
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.making, c.name)
	}()
	w, err := c.prepare(ctx, dir+".new", filepath.Base(admin), trash, treeSpec{bead: "spare", start: commit})
	if err != nil {
		return err
	}
	if st, err := os.Stat(filepath.Join(w.admin, "index")); err == nil && st.Size() > maxSpareIndex {
		return w.remove(trash)
	}
	if err := os.Rename(w.dir, dir); err != nil {
		return errs.Wrap(errs.Unavailable, err, "keeping a spare worktree")
	}
	// Else `git worktree prune` takes it for abandoned.
	return os.WriteFile(filepath.Join(w.admin, "gitdir"), []byte(filepath.Join(dir, ".git")+"\n"), 0o600)
}

// clear moves away what older boots left of runs and gates. Their agents are
// gone, and what was to be saved of them is in the hub or in the clone.
func (r *Runner) clear() error {
	old, err := filepath.Glob(filepath.Join(r.dir("work"), "*", "*"))
	if err != nil {
		return err
	}
	gates, err := filepath.Glob(filepath.Join(r.dir("gates"), "*"))
	if err != nil {
		return err
	}
	admins, err := filepath.Glob(filepath.Join(r.dir("rigs"), "*.git", "worktrees", "*"))
	if err != nil {
		return err
	}
	var all error
	for _, p := range append(append(old, gates...), admins...) {
		if rig := filepath.Base(filepath.Dir(filepath.Dir(p))); filepath.Base(p)+".git" == "spare."+rig {
			continue
		}
		all = errors.Join(all, discard(p, r.dir("trash")))
	}
	return all
}
