package runner

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner/apart"
)

// maxSpareIndex is the size of an index, in bytes, above which a rig gets no
// spare worktree: its files would cost too much disk (some 100,000 of them).
const maxSpareIndex = 10 << 20

// spares keeps one worktree per rig ready, so that a run does not wait until
// all its files are written: the spare is renamed and only what differs from
// the run's start is rewritten. No agent was ever in a spare. One that is
// there is complete; it outlives the runner as a cache. It has a cell of its own,
// which becomes the run's: so no file changes its owner.
type spares struct {
	root string

	mu     sync.Mutex // guards the fields below
	making map[string]bool
	ready  map[string]*spare
}

// spare is a worktree that waits for a run.
type spare struct {
	room string
	cell apart.Cell
}

func newSpares(root string) *spares {
	return &spares{root: root, making: map[string]bool{}, ready: map[string]*spare{}}
}

// find takes over what an older boot left: a spare whose cell can be entered
// again. The rest goes to trash.
func (s *spares) find(keeper *apart.Keeper, trash string) error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		sp := &spare{room: filepath.Join(s.root, e.Name())}
		tree := filepath.Join(sp.room, roomTree)
		if sp.cell, err = keeper.Enter(tree); err != nil {
			return err
		}
		_, err := os.Stat(filepath.Join(sp.room, roomGit, "index"))
		if err == nil && sp.cell.Owns(tree) && !strings.HasSuffix(e.Name(), ".new") {
			s.ready[e.Name()] = sp
			continue
		}
		if err := errors.Join(sp.cell.Leave(), discard(sp.room, trash)); err != nil {
			return err
		}
	}
	return nil
}

// take returns the rig's spare, nil when there is none. It is the caller's: with
// its cell a worktree is prepared.
func (s *spares) take(rig string) *spare {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.ready[rig]
	delete(s.ready, rig)
	return sp
}

// moveTo puts the spare's files and repository where w's are wanted. What goes
// wrong halfway is moved away by the caller.
func (sp *spare) moveTo(w *worktree) bool {
	if w.makeRoom() != nil || os.Rename(filepath.Join(sp.room, roomTree), w.dir) != nil {
		return false
	}
	ok := os.Rename(filepath.Join(sp.room, roomGit), w.admin) == nil
	// What stays is moved away when the next spare is made.
	_ = os.Remove(sp.room)
	return ok
}

// fill makes a spare at a commit, unless there is one or it is being made.
func (s *spares) fill(ctx context.Context, keeper *apart.Keeper, c *rigClone, trash, commit string) error {
	s.mu.Lock()
	busy := s.making[c.name] || s.ready[c.name] != nil
	if !busy {
		s.making[c.name] = true
	}
	s.mu.Unlock()
	if busy {
		return nil
	}
	sp, err := s.make(ctx, keeper, c, trash, commit)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.making, c.name)
	if sp != nil {
		s.ready[c.name] = sp
	}
	return err
}

// make makes a spare, or none (nil) of a rig that is too large.
func (s *spares) make(ctx context.Context, keeper *apart.Keeper, c *rigClone, trash, commit string) (*spare, error) {
	cell, err := keeper.Enter()
	if err != nil {
		return nil, err
	}
	sp := &spare{room: filepath.Join(s.root, c.name), cell: cell}
	leave := func(err error) (*spare, error) { return nil, errors.Join(err, cell.Leave()) }
	w, err := c.prepare(ctx, sp.room+".new", trash, treeSpec{bead: "spare", start: commit, cell: cell})
	if err != nil {
		return leave(err)
	}
	if st, err := os.Stat(filepath.Join(w.admin, "index")); err == nil && st.Size() > maxSpareIndex {
		return leave(w.remove(trash))
	}
	if err := errors.Join(discard(sp.room, trash), os.Rename(w.room, sp.room)); err != nil {
		return leave(errs.Wrap(errs.Unavailable, err, "keeping a spare worktree"))
	}
	return sp, nil
}

// keptHomes is how many homes of agents stay when a runner begins: those of the
// newest runs. Sessions in them can be resumed, and their caches are warm.
const keptHomes = 64

// clear moves away what older boots left of runs and gates. Their agents are
// gone, and what was to be saved of them is in the hub or in the clone. Homes stay.
func (r *Runner) clear() error {
	rooms, err := globs(filepath.Join(r.dir("work"), "*", "*"), filepath.Join(r.dir("gates"), "*"))
	if err != nil {
		return err
	}
	// Of an older version, whose worktrees were the clones'.
	old, err := globs(filepath.Join(r.dir("rigs"), "*.git", "worktrees"), filepath.Join(r.dir("rigs"), "*.git", "config.worktree"))
	if err != nil {
		return err
	}
	var all error
	for _, p := range old {
		all = errors.Join(all, discard(p, r.dir("trash")))
	}
	homes := map[string]time.Time{}
	for _, room := range rooms {
		entries, err := os.ReadDir(room)
		all = errors.Join(all, err)
		for _, e := range entries {
			if st, err := e.Info(); err == nil && e.Name() == roomHome {
				homes[room] = st.ModTime()
				continue
			}
			all = errors.Join(all, discard(filepath.Join(room, e.Name()), r.dir("trash")))
		}
		if _, ok := homes[room]; !ok {
			all = errors.Join(all, discard(room, r.dir("trash")))
		}
	}
	newest := slices.SortedFunc(maps.Keys(homes), func(a, b string) int { return homes[b].Compare(homes[a]) })
	for _, room := range newest[min(len(newest), keptHomes):] {
		all = errors.Join(all, discard(room, r.dir("trash")))
	}
	return errors.Join(all, r.spares.find(r.apart, r.dir("trash")))
}

func globs(patterns ...string) (all []string, err error) {
	for _, p := range patterns {
		found, e := filepath.Glob(p)
		all, err = append(all, found...), errors.Join(err, e)
	}
	return all, err
}
