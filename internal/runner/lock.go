//go:build unix

package runner

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gastown/internal/errs"
)

// lockDisk takes the disk for this process. The lock is on the directory
// itself, so that taking it writes nothing; it goes with the process. An old
// generation gets up to wait to leave.
func lockDisk(ctx context.Context, dir string, wait time.Duration) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the sandbox's disk")
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the sandbox's disk")
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "locking the sandbox's disk"), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(errs.New(errs.Conflict, "another runner holds the sandbox's disk").
				WithHint("it was given %s to leave", wait), f.Close())
		case <-tick.C:
		}
	}
}
