package process

import (
	"context"
	"os"
	"os/exec"
	"time"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// pollEvery is how often inherited sandboxes are looked at.
const pollEvery = 500 * time.Millisecond

// finishTime bounds the work after a death was seen.
const finishTime = 10 * time.Second

type key struct {
	town       string
	generation int64
}

// life is a generation that this driver watches.
type life struct {
	own  bool          // a child of this process
	done chan struct{} // closed when it is dead, its leftovers too, and recorded, or no longer watched
}

func (d *Driver) watched(k key) *life {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lives[k]
}

// begin registers a life, nil if there is one already or the driver is closed.
func (d *Driver) begin(k key, own bool) *life {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed() || d.lives[k] != nil {
		return nil
	}
	l := &life{own: own, done: make(chan struct{})}
	d.lives[k] = l
	return l
}

func (d *Driver) end(k key, l *life) {
	d.mu.Lock()
	delete(d.lives, k)
	d.mu.Unlock()
	close(l.done)
}

// waitChild waits for a child, clears up after it and tells Exits. After Close it
// still waits, so that no zombie stays, but leaves the rest to the next driver.
func (d *Driver) waitChild(cmd *exec.Cmd, rec record.Record) {
	l := d.begin(keyOf(rec), true)
	go func() {
		if l != nil {
			defer d.end(keyOf(rec), l)
		}
		awaitExit(cmd.Process.Pid)
		if d.isClosed() {
			_ = cmd.Wait() // nobody is left to hear how it ended
			return
		}
		d.killLeftovers(rec)
		err := cmd.Wait()
		reason := "exited"
		if err != nil {
			reason = err.Error()
		}
		d.finish(rec, cmd.ProcessState.ExitCode(), reason)
	}()
}

// poll watches a sandbox that is not our child, if nobody does yet.
func (d *Driver) poll(rec record.Record) {
	l := d.begin(keyOf(rec), false)
	if l == nil {
		return
	}
	d.spawn(func() {
		defer d.end(keyOf(rec), l)
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			if runs, err := d.runs(&rec); err == nil && !runs {
				break
			}
			select {
			case <-d.closed:
				return
			case <-tick.C:
			}
		}
		d.killLeftovers(rec)
		d.finish(rec, -1, "ended while no server was its parent")
	})
}

func (d *Driver) killLeftovers(rec record.Record) {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if err := d.kill(ctx, claim{town: rec.Town, from: rec.Generation, upTo: rec.Generation, rec: &rec}); err != nil {
		d.log.Warn("a sandbox ended, but not all of its processes", "town", rec.Town, "generation", rec.Generation, "err", err)
	}
}

// finish records a death and tells Exits.
func (d *Driver) finish(rec record.Record, code int, reason string) {
	ctx, cancel := context.WithTimeout(context.Background(), finishTime)
	defer cancel()
	if err := d.recordEnd(ctx, keyOf(rec), code, reason); err != nil {
		// Inspect still sees that the process is gone.
		d.log.Warn("the end of a sandbox was not recorded", "town", rec.Town, "generation", rec.Generation, "err", err)
	}
	d.log.Info("sandbox ended", "town", rec.Town, "generation", rec.Generation, "code", code, "reason", reason)
	select {
	case d.exits <- refOf(rec):
	default: // nobody receives; Exits is only a hint
	}
}

// recordEnd marks a generation as ended unless the record has moved on.
func (d *Driver) recordEnd(ctx context.Context, k key, code int, reason string) error {
	unlock, err := d.book.Lock(ctx, k.town)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := d.book.Load(k.town)
	if err == nil && now == nil { // removed meanwhile: leave no lock either
		return d.book.DropLock(k.town)
	}
	if err != nil || now.Generation != k.generation || now.Phase == record.Ended {
		return err
	}
	if now.Cgroup != "" {
		if outOfMemory(now.Cgroup) {
			reason += "; something in it was killed for want of memory"
		}
		leaveCgroup(now.Cgroup)
	}
	now.End(code, reason)
	return d.book.Save(*now)
}

// settled loads a record and resolves an intent that its driver did not live to
// complete: a living process makes it running, none makes it ended, since nobody
// can tell whether something ran. Under the town's lock.
func (d *Driver) settled(town string) (*record.Record, error) {
	rec, err := d.book.Load(town)
	if err != nil || rec == nil || rec.Phase != record.Starting {
		return rec, err
	}
	procs, err := d.marked()
	if err != nil {
		return nil, err
	}
	marked := map[int]bool{} // in a box the command leads a session, too
	for _, p := range procs {
		marked[p.pid] = true
	}
	for _, p := range procs {
		if rec.Boot == d.boot && p.town == town && p.generation == rec.Generation && p.pid == p.sid && !marked[p.ppid] {
			rec.Phase, rec.PID, rec.Start, rec.StartedAt = record.Running, p.pid, p.start, time.Now().UTC()
			return rec, d.book.Save(*rec)
		}
	}
	rec.End(-1, "the server ended while it started this generation")
	return rec, d.book.Save(*rec)
}

// adopt watches everything that an earlier driver left running.
func (d *Driver) adopt() {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		d.log.Error("can't look for sandboxes of an earlier server", "err", err)
		return
	}
	for _, e := range entries {
		if d.isClosed() {
			return
		}
		if !e.IsDir() || !sandbox.ValidTown(e.Name()) {
			continue
		}
		if err := d.adoptTown(e.Name()); err != nil {
			d.log.Warn("can't adopt a sandbox of an earlier server", "town", e.Name(), "err", err)
		}
	}
}

func (d *Driver) adoptTown(town string) error {
	rec, err := d.book.Load(town)
	if err != nil || rec == nil || rec.Phase == record.Ended {
		return err
	}
	unlock, ok, err := d.book.TryLock(town)
	if err != nil || !ok {
		return err // a call that holds the lock takes care of this town
	}
	defer unlock()
	rec, err = d.settled(town)
	if err != nil || rec == nil || rec.Phase != record.Running {
		return err
	}
	d.poll(*rec)
	return nil
}
