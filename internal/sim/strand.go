package sim

import (
	"iter"
	"slices"
	"time"
)

// strand is a piece of work that can stop in the middle of a call to the outside
// and go on later, when the simulator chooses to. So two servers, or two inputs
// of one, really get in each other's way, and a process can die with calls under
// way. All strands share one goroutine's worth of time: one runs, or none.
type strand struct {
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	f     func() // nil when the strand is spare

	// While it stands still:
	p    *process // whose call it is
	at   time.Time
	wait <-chan struct{} // nil: only for its time
}

// ready reports whether a strand that stands still could go on.
func (s *strand) ready(now time.Time) bool {
	if s.p.dead {
		return true
	}
	if s.wait == nil {
		return !s.at.After(now)
	}
	select {
	case <-s.wait:
		return true
	default:
		return false
	}
}

// run does f, until it ends or stands still for the first time.
func (w *world) run(f func()) {
	var s *strand
	if n := len(w.spare); n > 0 {
		s, w.spare = w.spare[n-1], w.spare[:n-1]
	} else {
		s = &strand{}
		s.next, s.stop = iter.Pull(func(yield func(struct{}) bool) {
			s.yield = yield
			for {
				s.f()
				s.f = nil
				if !yield(struct{}{}) {
					return
				}
			}
		})
	}
	s.f = f
	w.resume(s)
}

func (w *world) resume(s *strand) {
	old := w.current
	w.current = s
	s.next()
	w.current = old
	if s.f == nil {
		w.spare = append(w.spare, s)
	}
}

// goOn lets one of the strands that stand still go on.
func (w *world) goOn(i int) {
	s := w.still[i]
	w.still = slices.Delete(w.still, i, i+1)
	w.resume(s)
}

// stand lets the strand that runs stand still until a time, or until wait is
// closed. It returns false when the process died meanwhile.
func (p *process) stand(at time.Time, wait <-chan struct{}) bool {
	w := p.w
	if p.dead {
		return false
	}
	s := w.current
	if s == nil {
		if wait != nil {
			panic("sim: a call that has to wait was made from outside of a strand")
		}
		return true
	}
	s.p, s.at, s.wait = p, at, wait
	w.still = append(w.still, s)
	s.yield(struct{}{})
	return !p.dead
}

// Wait implements hall.Waiter.
func (p *process) Wait(done <-chan struct{}) bool { return p.stand(p.w.now, done) }

// pause is a place at which others may come first.
func (p *process) pause() {
	switch w := p.w; {
	case p.dead || w.atomic || w.current == nil:
	case w.fault("slow-call", 0):
		p.stand(w.now.Add(w.extent(10*time.Millisecond, 10*time.Second)), nil)
	case w.order.chance(0.2):
		p.stand(w.now, nil)
	}
}

// unwind ends all strands, with their processes dead.
func (w *world) unwind() {
	for _, p := range w.procs {
		p.dead = true
	}
	for len(w.still) > 0 {
		w.goOn(0)
	}
	for _, s := range w.spare {
		s.stop()
	}
	w.spare = nil
}
