package sim

import (
	"container/heap"
	"context"
	"slices"
	"time"
)

// event is something that the world does at a time.
type event struct {
	at  time.Time
	seq int64
	f   func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	old[len(old)-1] = event{}
	*e = old[:len(old)-1]
	return x
}

// at schedules f for d from now.
func (w *world) at(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.events, event{w.now.Add(max(d, 0)), w.seq, f})
}

// checkEach is how many steps lie between two looks at whether to go on.
const checkEach = 1024

// play runs the world until a time.
func (w *world) play(until time.Time) {
	for !w.over() {
		if w.step() {
			w.steps++
			w.check()
			continue
		}
		next := w.next()
		if !next.Before(until) {
			w.now = latest(w.now, until)
			return
		}
		w.now = latest(w.now, next)
	}
}

// over reports that nothing more needs to be played.
func (w *world) over() bool {
	if w.steps%checkEach == 0 && w.ctx.Err() != nil {
		w.stopped = true
	}
	return w.stopped || len(w.violations) >= w.opt.most()
}

// choice is one of the things that could happen now.
type choice struct {
	what choiceKind
	p    *process
	i    int
}

type choiceKind int

const (
	anEvent choiceKind = iota
	aStrand
	aTask
	aTimer
	aLoop
)

// step does one of the things that could happen now, chosen at random; false
// when there are none.
func (w *world) step() bool {
	if n := len(w.typed); n > 0 {
		t := w.typed[n-1]
		w.typed = w.typed[:n-1]
		w.run(t.type1)
		return true
	}
	w.choices = w.choices[:0]
	if len(w.events) > 0 && !w.events[0].at.After(w.now) {
		w.choices = append(w.choices, choice{what: anEvent})
	}
	for i, s := range w.still {
		if s.ready(w.now) {
			w.choices = append(w.choices, choice{aStrand, s.p, i})
		}
	}
	for _, p := range w.procs {
		for i, t := range p.tasks {
			if !t.at.After(w.now) {
				w.choices = append(w.choices, choice{aTask, p, i})
			}
		}
		for i, t := range p.timers {
			if t.stopped || !t.at.After(w.now) {
				w.choices = append(w.choices, choice{aTimer, p, i})
			}
		}
		if !p.stepping && !p.hall.Next().After(p.Now()) {
			w.choices = append(w.choices, choice{what: aLoop, p: p})
		}
	}
	if len(w.choices) == 0 {
		return false
	}
	i := 0
	if len(w.choices) > 1 {
		i = w.order.IntN(len(w.choices))
	}
	w.do1(w.choices[i])
	for _, p := range slices.Clone(w.procs) {
		if p.dead || w.fault("crash", 0) {
			w.crash(p)
		}
	}
	return true
}

func (w *world) do1(c choice) {
	p := c.p
	switch c.what {
	case anEvent:
		w.run(heap.Pop(&w.events).(event).f)
	case aStrand:
		w.goOn(c.i)
	case aTask:
		t := p.tasks[c.i]
		p.tasks = slices.Delete(p.tasks, c.i, c.i+1)
		w.run(t.f)
	case aTimer:
		t := p.timers[c.i]
		p.timers = slices.Delete(p.timers, c.i, c.i+1)
		if !t.stopped {
			w.run(t.f)
		}
	case aLoop:
		p.stepping = true
		w.run(func() {
			p.hall.Step(context.Background())
			p.stepping = false
		})
	}
}

// next is when something happens next, or far away.
func (w *world) next() time.Time {
	next := w.now.Add(365 * 24 * time.Hour)
	see := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if len(w.events) > 0 {
		see(w.events[0].at)
	}
	for _, s := range w.still {
		if s.wait == nil {
			see(s.at)
		}
	}
	for _, p := range w.procs {
		for _, t := range p.tasks {
			see(t.at)
		}
		for _, t := range p.timers {
			see(t.at)
		}
		if !p.stepping {
			see(p.hall.Next().Add(-p.skew))
		}
	}
	return next
}

func latest(t, u time.Time) time.Time {
	if t.After(u) {
		return t
	}
	return u
}

func earlier(t, u time.Time) time.Time {
	if t.Before(u) {
		return t
	}
	return u
}
