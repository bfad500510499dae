package process

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
)

const (
	recordFile = "gen.json"
	locksDir   = ".locks"

	phaseStarting = "starting" // an intent: a process may or may not exist
	phaseRunning  = "running"  // the identity of the process is known
	phaseEnded    = "ended"    // it exited and its leftovers are dead
)

// record is what is known of the newest generation of a town.
type record struct {
	Town       string    `json:"town"`
	Generation int64     `json:"generation"`
	Phase      string    `json:"phase"`
	Boot       string    `json:"boot"`
	PID        int       `json:"pid,omitempty"`
	Start      string    `json:"start,omitempty"` // see proc.start
	StartedAt  time.Time `json:"started_at,omitzero"`
	ExitedAt   time.Time `json:"exited_at,omitzero"`
	ExitCode   int       `json:"exit_code,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

func (r record) key() key { return key{r.Town, r.Generation} }

func (r record) ref() sandbox.Ref {
	ref := sandbox.Ref{Driver: driverName, Town: r.Town, Generation: r.Generation}
	if r.PID > 0 {
		ref.ID = strconv.Itoa(r.PID)
	}
	return ref
}

func (d *Driver) dir(town string) string { return filepath.Join(d.root, town) }

// load reads a town's record, nil if there is none.
func (d *Driver) load(town string) (*record, error) {
	path := filepath.Join(d.dir(town), recordFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: read the record of town %s", town)
	}
	rec, err := parseRecord(raw)
	if err == nil && rec.Town != town {
		err = errors.New("it names another town")
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "sandbox: the record of town %s is damaged: %v", town, err).
			WithHint("look for processes of that town, then remove %s", path)
	}
	return rec, nil
}

func parseRecord(raw []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	switch {
	case !sandbox.ValidTown(r.Town), r.Generation < 1, r.PID < 0, r.PID == 1:
		return nil, errors.New("a field is out of range")
	case r.Phase == phaseRunning && (r.PID == 0 || r.Start == ""):
		return nil, errors.New("it has no process")
	case r.Phase != phaseStarting && r.Phase != phaseRunning && r.Phase != phaseEnded:
		return nil, errors.New("its phase is unknown")
	}
	return &r, nil
}

// save replaces a town's record in one step and makes it durable. Under the
// town's lock.
func (d *Driver) save(r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "sandbox: encode the record of town %s", r.Town)
	}
	if err := replaceFile(filepath.Join(d.dir(r.Town), recordFile), raw); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: write the record of town %s", r.Town)
	}
	return nil
}

// restore puts back what was recorded before a start that ran nothing.
func (d *Driver) restore(town string, old *record) error {
	if old != nil {
		return d.save(*old)
	}
	err := os.Remove(filepath.Join(d.dir(town), recordFile))
	return errs.Wrap(errs.Unavailable, err, "sandbox: take back the record of town %s", town)
}

func replaceFile(path string, raw []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// lock takes the town's lock, which also excludes other drivers of this root.
func (d *Driver) lock(ctx context.Context, town string) (unlock func(), err error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		unlock, ok, err := d.tryLock(town)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Unavailable, ctx.Err(), "sandbox: town %s is busy", town)
		case <-tick.C:
		}
	}
}

// tryLock is lock without waiting. The file may be deleted by whoever holds it
// (Remove), so a lock counts only on the file that has the name now.
func (d *Driver) tryLock(town string) (unlock func(), ok bool, err error) {
	path := d.lockPath(town)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, errs.Wrap(errs.Unavailable, err, "sandbox: lock town %s", town)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return nil, false, f.Close()
	}
	if err != nil {
		return nil, false, errs.Wrap(errs.Unavailable, errors.Join(err, f.Close()), "sandbox: lock town %s", town)
	}
	mine, err1 := f.Stat()
	named, err2 := os.Stat(path)
	if err1 != nil || err2 != nil || !os.SameFile(mine, named) {
		return nil, false, f.Close()
	}
	return func() {
		// Not by closing alone: a child between fork and exec may still hold a copy.
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
			d.log.Warn("a town stays locked longer than needed", "town", town, "err", err)
		}
		closeQuietly(f)
	}, true, nil
}

func (d *Driver) lockPath(town string) string { return filepath.Join(d.root, locksDir, town) }
