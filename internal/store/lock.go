package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"gastown/internal/errs"
)

// lockWait is how long the lock of a holder that is dead may linger.
const lockWait = 5 * time.Second

// Lock is the right to use a data directory. One process at a time has it.
type Lock struct{ file *flock.Flock }

// Release gives the directory back.
func (l *Lock) Release() error { return l.file.Unlock() }

// alive reports whether the process that a lock file names may exist.
func alive(holder string) bool {
	var pid int
	if _, err := fmt.Sscanf(holder, "pid %d ", &pid); err != nil || pid <= 0 {
		return true
	}
	p, err := os.FindProcess(pid)
	return err == nil && !errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone)
}

// TakeLock holds DIR/gastown.lock, or says who does (Conflict). The directory
// must exist.
func TakeLock(dir string, now time.Time) (*Lock, error) {
	path := filepath.Join(dir, lockName)
	lock := flock.New(path, flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	who := "another process"
	if err == nil && !ok {
		if text, err := os.ReadFile(path); err == nil && len(text) > 0 {
			who = strings.TrimSpace(string(text))
		}
		if !alive(who) {
			// A child that the dead holder was just forking may hold its lock until it
			// begins its own program.
			wait, cancel := context.WithTimeout(context.Background(), lockWait)
			defer cancel()
			if ok, err = lock.TryLockContext(wait, lockWait/100); wait.Err() != nil {
				err = nil
			}
		}
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "locking %s", path)
	}
	if !ok {
		return nil, errs.New(errs.Conflict, "the data directory %s is in use by %s", dir, who).
			WithHint("stop that server or choose another directory")
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	text := fmt.Sprintf("pid %d on %s since %s\n", os.Getpid(), host, now.UTC().Format(time.RFC3339))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "writing %s", path), lock.Unlock())
	}
	return &Lock{lock}, nil
}

// cleanName is a file that exists while the store is closed and whole.
const cleanName = "gastown.clean"

// begun takes the mark of a clean end away before anything is written, and
// reports whether it was missing. A fresh store needs none.
func begun(dir string, fresh bool) (unclean bool, err error) {
	err = os.Remove(filepath.Join(dir, cleanName))
	if errors.Is(err, os.ErrNotExist) {
		return !fresh, nil
	}
	if err == nil {
		err = syncDir(dir)
	}
	return false, errs.Wrap(errs.Unavailable, err, "removing the mark of a clean stop")
}

// ended leaves the mark.
func ended(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, cleanName), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), syncDir(dir))
	}
	return errs.Wrap(errs.Unavailable, err, "leaving the mark of a clean stop")
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
