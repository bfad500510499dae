package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gastown/internal/hall"
	"gastown/internal/town"
)

// process is one life of the server.
type process struct {
	w         *world
	boot      string
	hall      *hall.Hall
	dead      bool
	forgetful bool          // a bug for a test: no record of an answer is ever found
	stepping  bool          // its loop is in the middle of a step
	skew      time.Duration // of its clock
	server    town.Settings // that it was started with
	tasks     []task
	timers    []*timer
}

// task is something that the hall wants done beside the rest.
type task struct {
	at time.Time // not before
	f  func()
}

type timer struct {
	at      time.Time
	f       func()
	stopped bool
}

// Go implements hall.Executor: the simulator runs f when it chooses to.
func (p *process) Go(f func()) {
	if p.dead {
		return
	}
	t := task{p.w.now, f}
	if p.w.fault("slow-task", 0) {
		t.at = p.w.now.Add(p.w.extent(0, 10*time.Second))
	}
	p.tasks = append(p.tasks, t)
}

// slowest is how late an effect begins at most.
const slowest = 4 * time.Minute

// Now implements hall.Clock.
func (p *process) Now() time.Time { return p.w.now.Add(p.skew) }

// AfterFunc implements hall.Clock. Time goes by in whole milliseconds.
func (p *process) AfterFunc(d time.Duration, f func()) func() {
	d = (max(d, 0) + time.Millisecond - 1).Truncate(time.Millisecond)
	t := &timer{at: p.w.now.Add(d), f: f}
	p.timers = append(p.timers, t)
	return func() { t.stopped = true }
}

// boot starts a server on what the last one left in the store.
func (w *world) boot() {
	w.boots++
	w.disturbed = w.now
	p := &process{w: w, boot: fmt.Sprintf("boot%d", w.boots), server: w.server}
	p.skew = w.skewed
	if w.pair {
		p.skew += w.order.between(-500*time.Millisecond, 500*time.Millisecond)
	} else if w.fault("clock-wrong", 0) {
		p.skew = w.extent(-time.Hour, time.Hour)
		w.stepped()
	}
	if !w.pair && p.skew != w.lastSkew { // the clock was wrong before, or is now
		w.stepped()
	}
	w.lastSkew = p.skew
	n, boot := 0, w.boots
	drv, hub := &mortalDriver{p}, &mortalHub{p}
	p.hall = hall.New(hall.Config{
		Store: &mortalStore{Store: w.mem, p: p}, Boot: p.boot, Shared: w.pair, Clock: p, Exec: p, Server: p.server, Limits: w.limits,
		Driver: drv, Hub: hub, Log: w.opt.Log,
		Perform: &performer{p: p, Outside: hall.Outside{Driver: drv, Hub: hub, Tokens: &mortalTokens{p}, Notifier: &mortalNotifier{p},
			Runner: func(hall.TownRef, int64) ([]string, []string) { return []string{"runner"}, nil }}},
		NewID: func() string { n++; return fmt.Sprintf("%d-%d", boot, n) },
	})
	w.procs = append(w.procs, p)
	p.forgetful = w.opt.forgetful
}

// stepped says that clocks changed: what was measured by them starts anew.
func (w *world) stepped() {
	w.disturbed, w.setAt = w.now, w.now
	w.bounds.forget()
	w.shadow.forgetLimits()
}

// crash ends a process where it stands.
func (w *world) crash(p *process) {
	w.crashes++
	p.dead = true
	w.disturbed = w.now
	w.procs = slices.DeleteFunc(w.procs, func(o *process) bool { return o == p })
	for _, c := range w.claimed {
		if c.By == p.boot {
			c.excused = true
		}
	}
	down := w.order.between(0, 3*time.Minute)
	if w.fault("outage", 0) {
		down = w.extent(10*time.Minute, 8*time.Hour)
	}
	w.at(down, w.boot)
}

// reach is the server that a call reaches, nil while none runs.
func (w *world) reach() *process {
	switch len(w.procs) {
	case 0:
		return nil
	case 1:
		return w.procs[0]
	}
	return w.procs[w.order.IntN(len(w.procs))]
}

// do hands an input to a server, if one runs. lost says that no answer came: the
// input may have taken effect.
func (w *world) do(id string, in town.Input) (err error, lost bool) {
	p := w.reach()
	if p == nil {
		return nil, true
	}
	err = p.hall.Do(context.Background(), id, in)
	return err, p.dead
}
