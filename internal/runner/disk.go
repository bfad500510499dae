package runner

import (
	"context"
	"os"
	"time"

	"gastown/internal/town"
)

// diskEvery is how often the runner looks whether its disk is still there.
const diskEvery = time.Second

// lostDisk reports whether the disk that the runner locked is no longer at its
// path. Then everything here fails for a reason that no bead, rig or agent is to
// blame for, and nothing more of it is told: the runner ends, its sandbox counts
// as lost, and the next one gets a disk.
func (r *Runner) lostDisk() bool {
	if r.held == nil {
		return false
	}
	was, err := r.held.Stat()
	if err != nil {
		return false // closed: the runner has ended
	}
	is, err := os.Stat(r.cfg.Disk)
	if err == nil && os.SameFile(was, is) || err != nil && !os.IsNotExist(err) {
		return false
	}
	select {
	case r.diskLost <- struct{}{}:
	default: // a token is there already
	}
	return true
}

// watchDisk returns true when the disk was taken away.
func (r *Runner) watchDisk(ctx context.Context) bool {
	t := time.NewTicker(diskEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-r.base.Done():
			return false
		case <-r.diskLost:
			return true
		case <-t.C:
			r.lostDisk()
		}
	}
}

// diskGone ends a run whose files are gone: nothing can be saved, and nothing is
// said of it.
func diskGone() ending {
	return ending{how: endKill, outcome: town.OutcomeLost, class: town.ClassInfra, reason: "the sandbox's disk was taken away"}
}
