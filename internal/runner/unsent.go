package runner

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/town"
)

// unsent is a last checkpoint that never reached the server, because it was
// silent. The bead's very next run on this disk begins with it: nothing can
// have come between.
type unsent struct {
	Epoch  int64  `json:"epoch"`
	Commit string `json:"commit"`
}

func (r *Runner) unsentPath(rig, bead string) string {
	return filepath.Join(r.dir("unsent"), rig+"."+bead)
}

// keepUnsent remembers a checkpoint that stays on the disk.
func (r *Runner) keepUnsent(d town.DesiredRun, commit string) error {
	text, err := json.Marshal(unsent{Epoch: d.Epoch, Commit: commit})
	if err != nil {
		return errs.Wrap(errs.Internal, err, "encoding a note")
	}
	if err := os.MkdirAll(r.dir("unsent"), 0o700); err != nil {
		return err
	}
	return writeFile(r.unsentPath(d.Rig, d.Bead), string(text))
}

// takeUnsent returns the checkpoint with which the run should begin instead of
// the document's, "" for none. It must stand on the run's base: else its
// commits could never be accepted.
func (r *Runner) takeUnsent(ctx context.Context, d town.DesiredRun, c *rigClone) string {
	path := r.unsentPath(d.Rig, d.Bead)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	var u unsent
	if err == nil {
		err = errors.Join(json.Unmarshal(text, &u), os.Remove(path))
	}
	if err == nil {
		err = errors.Join(git.ValidOID(u.Commit), git.ValidOID(d.Base))
	}
	switch {
	case err != nil:
		r.log.Warn("a checkpoint on this disk can't be used", "bead", d.Bead, "err", err)
		return ""
	case u.Epoch != d.Epoch-1:
		return ""
	}
	if !r.standsOn(ctx, c, d.Base, u.Commit) {
		r.log.Warn("a checkpoint on this disk does not stand on the base of the new run; it stays in the clone",
			"bead", d.Bead, "checkpoint", u.Commit, "clone", c.dir)
		return ""
	}
	return u.Commit
}
