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
	*e = old[:len(old)-1]
	return x
}

// at schedules f for d from now.
func (w *world) at(d time.Duration, f func()) {
	w.seq++
	heap.Push(&w.events, event{w.now.Add(max(d, 0)), w.seq, f})
}

// play runs the world until a time.
func (w *world) play(until time.Time) {
	for len(w.violations) < maxViolations {
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

// step does one of the things that could happen now, chosen at random; false
// when there are none.
func (w *world) step() bool {
	var choices []func()
	if len(w.events) > 0 && !w.events[0].at.After(w.now) {
		choices = append(choices, func() { heap.Pop(&w.events).(event).f() })
	}
	for _, p := range w.procs {
		for i, t := range p.tasks {
			if t.at.After(w.now) {
				continue
			}
			choices = append(choices, func() {
				p.tasks = append(p.tasks[:i], p.tasks[i+1:]...)
				t.f()
			})
		}
		for i, t := range p.timers {
			if t.at.After(w.now) && !t.stopped {
				continue
			}
			choices = append(choices, func() {
				p.timers = append(p.timers[:i], p.timers[i+1:]...)
				if !t.stopped {
					t.f()
				}
			})
		}
		if !p.hall.Next().After(p.Now()) {
			choices = append(choices, func() { p.hall.Step(context.Background()) })
		}
	}
	if len(choices) == 0 {
		return false
	}
	choices[w.rng.IntN(len(choices))]()
	for _, p := range slices.Clone(w.procs) {
		if p.dead || w.fault("crash", 0.0003) {
			w.crash(p)
		}
	}
	return true
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
	for _, p := range w.procs {
		for _, t := range p.tasks {
			see(t.at)
		}
		for _, t := range p.timers {
			see(t.at)
		}
		see(p.hall.Next().Add(-p.skew))
	}
	return next
}

func latest(t, u time.Time) time.Time {
	if t.After(u) {
		return t
	}
	return u
}
