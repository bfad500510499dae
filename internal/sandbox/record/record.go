// Package record keeps what a sandbox driver must know of each town when its
// own memory is gone: the newest generation, how far its start came, and how it
// ended. There is one JSON file per town, replaced in one step and made durable,
// and one lock file per town that also excludes other processes.
//
//	<root>/<town>/gen.json   the record
//	<root>/.locks/<town>     locked (flock) while a record is being changed
//
// A start has two phases: the intent is on disk before anything runs, the
// identity of what runs after. A driver that finds an intent of an earlier
// process must settle it by looking at what really runs.
package record

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
)

// File is the name of a record in a town's directory.
const File = "gen.json"

const locksDir = ".locks"

// Phase says how far a generation is.
type Phase string

// The phases.
const (
	Starting Phase = "starting" // an intent: it may or may not run
	Running  Phase = "running"  // the identity of what runs is known
	Ended    Phase = "ended"    // it exited and its leftovers are dead
)

// Record is what is known of the newest generation of a town. A process has
// Boot, PID and Start, a container has Container.
type Record struct {
	Town       string    `json:"town"`
	Generation int64     `json:"generation"`
	Phase      Phase     `json:"phase"`
	Boot       string    `json:"boot,omitempty"` // id of the machine's boot
	PID        int       `json:"pid,omitempty"`
	Start      string    `json:"start,omitempty"`     // when the process started, as the system tells it
	Box        bool      `json:"box,omitempty"`       // the process stands before a box, whose first process is its child
	Cgroup     string    `json:"cgroup,omitempty"`    // its directory, if it is bounded
	Container  string    `json:"container,omitempty"` // id
	StartedAt  time.Time `json:"started_at,omitzero"`
	ExitedAt   time.Time `json:"exited_at,omitzero"`
	ExitCode   int       `json:"exit_code,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

// End marks a generation as ended now.
func (r *Record) End(code int, reason string) {
	r.Phase, r.ExitedAt, r.ExitCode, r.Reason = Ended, time.Now().UTC(), code, reason
}

// Book is the records of one driver. The zero value is unusable; see Open.
type Book struct {
	root string
	log  *slog.Logger
}

// Open returns the records below root, an absolute path, which it creates.
func Open(root string, log *slog.Logger) (*Book, error) {
	if err := os.MkdirAll(filepath.Join(root, locksDir), 0o700); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "sandbox: create the directory of records")
	}
	return &Book{root: root, log: log}, nil
}

// Dir is the directory of a town.
func (b *Book) Dir(town string) string { return filepath.Join(b.root, town) }

// Towns lists the towns that have a directory.
func (b *Book) Towns() ([]string, error) {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: list sandboxes")
	}
	var towns []string
	for _, e := range entries {
		if e.IsDir() && sandbox.ValidTown(e.Name()) {
			towns = append(towns, e.Name())
		}
	}
	return towns, nil
}

// Load reads a town's record, nil if there is none.
func (b *Book) Load(town string) (*Record, error) {
	path := filepath.Join(b.Dir(town), File)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: read the record of town %s", town)
	}
	rec, err := Parse(raw)
	if err == nil && rec.Town != town {
		err = errors.New("it names another town")
	}
	if err != nil {
		return nil, errs.New(errs.Internal, "sandbox: the record of town %s is damaged: %v", town, err).
			WithHint("look for what runs of that town, then remove %s", path)
	}
	return rec, nil
}

// Parse reads a record.
func Parse(raw []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	switch {
	case !sandbox.ValidTown(r.Town), r.Generation < 1, r.PID < 0, r.PID == 1:
		return nil, errors.New("a field is out of range")
	case r.Phase == Running && r.Container == "" && (r.PID == 0 || r.Start == ""):
		return nil, errors.New("it has no process")
	case r.Phase != Starting && r.Phase != Running && r.Phase != Ended:
		return nil, errors.New("its phase is unknown")
	}
	return &r, nil
}

// Save replaces a town's record in one step and makes it durable. The town's
// directory must exist. Under the town's lock.
func (b *Book) Save(r Record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "sandbox: encode the record of town %s", r.Town)
	}
	if err := replaceFile(filepath.Join(b.Dir(r.Town), File), raw); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: write the record of town %s", r.Town)
	}
	return nil
}

// Restore puts back what was recorded before a start that ran nothing; nil is
// no record. Under the town's lock.
func (b *Book) Restore(town string, old *Record) error {
	if old != nil {
		return b.Save(*old)
	}
	err := os.Remove(filepath.Join(b.Dir(town), File))
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

// Lock takes the town's lock, which also excludes other drivers of this root.
func (b *Book) Lock(ctx context.Context, town string) (unlock func(), err error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		unlock, ok, err := b.TryLock(town)
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

// TryLock is Lock without waiting. The file may be deleted by whoever holds it
// (DropLock), so a lock counts only on the file that has the name now.
func (b *Book) TryLock(town string) (unlock func(), ok bool, err error) {
	path := filepath.Join(b.root, locksDir, town)
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
			b.log.Warn("a town stays locked longer than needed", "town", town, "err", err)
		}
		// Nothing was written to it; a failure to close loses nothing.
		_ = f.Close()
	}, true, nil
}

// DropLock deletes the lock file of a town that is removed. Under the town's lock.
func (b *Book) DropLock(town string) error {
	err := os.Remove(filepath.Join(b.root, locksDir, town))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errs.Wrap(errs.Unavailable, err, "sandbox: remove the lock of town %s", town)
}

// Against holds a start against the record of an earlier one: already when this
// generation runs, an error when it may not start, neither when it may.
func (r *Record) Against(spec sandbox.Spec, runs bool) (already bool, err error) {
	switch {
	case r.Generation > spec.Generation:
		return false, errs.New(errs.Conflict, "sandbox: town %s is at generation %d already, %d is too late",
			spec.Town, r.Generation, spec.Generation)
	case r.Generation < spec.Generation && runs:
		return false, errs.New(errs.Conflict, "sandbox: generation %d of town %s still runs", r.Generation, spec.Town).
			WithHint("stop it first")
	case r.Generation < spec.Generation:
		return false, nil
	case !runs:
		return false, errs.New(errs.Gone, "sandbox: generation %d of town %s has ended and can't start again",
			r.Generation, spec.Town)
	}
	return true, nil
}
