package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
)

// span is a stretch of time in milliseconds.
type span struct{ from, to int64 }

// boxes are the sandboxes that really exist.
type boxes struct {
	w      *world
	by     map[string]*box   // by town: the newest generation
	lived  map[string][]span // by town: when sandboxes ran
	disks  map[string]bool   // by town: there is one
	starts int64
}

// box is one sandbox with its runner.
type box struct {
	w       *world
	town    string
	who     int // the place of its town
	gen     int64
	running bool
	since   time.Time
	ended   string    // why it ended
	unused  time.Time // since when nothing that was committed wants it awake; zero while something does
	runner  *runner
}

func newBoxes(w *world) *boxes {
	return &boxes{w: w, by: map[string]*box{}, lived: map[string][]span{}, disks: map[string]bool{}}
}

func (b *boxes) start(s sandbox.Spec) (sandbox.Ref, error) {
	ref := sandbox.Ref{Driver: "sim", Town: s.Town, Generation: s.Generation, ID: "box"}
	if old := b.by[s.Town]; old != nil {
		switch {
		case old.gen == s.Generation && old.running:
			return ref, nil
		case old.gen == s.Generation:
			return ref, errs.New(errs.Gone, "generation %d has ended", old.gen)
		case old.gen > s.Generation:
			return ref, errs.New(errs.Conflict, "generation %d is newer", old.gen)
		case old.running:
			b.w.violate(invOneBox, b.w.shadow.towns[s.Town], "two sandboxes: generation %d of %s was asked for while %d runs", s.Generation, s.Town, old.gen)
			return ref, errs.New(errs.Conflict, "generation %d still runs", old.gen)
		}
	}
	b.w.checked[invOneBox]++
	b.starts++
	b.w.bounds.count(s.Town, "sandbox starts")
	n := &box{w: b.w, town: s.Town, who: b.w.place(s.Town), gen: s.Generation, running: true, since: b.w.now}
	b.by[s.Town] = n
	fresh := s.FreshDisk || !b.disks[s.Town]
	b.disks[s.Town] = true
	n.runner = newRunner(n, fresh)
	awake := 0
	for _, o := range b.by {
		if o.running {
			awake++
		}
	}
	b.w.holds(invLimit, awake <= b.w.limits.MaxAwake, b.w.shadow.towns[s.Town], "%d sandboxes run, the limit is %d", awake, b.w.limits.MaxAwake)
	return ref, nil
}

// healthy reports that a generation runs, spoke, and would speak now.
func (b *boxes) healthy(town string, gen int64) bool {
	x := b.by[town]
	return x != nil && x.gen == gen && x.running && x.runner.greeted && !x.runner.frozen
}

// end ends a box; told says that the driver's hint reaches the server.
func (x *box) end(why string, told bool) {
	if !x.running {
		return
	}
	x.running, x.ended = false, why
	x.w.boxes.lived[x.town] = append(x.w.boxes.lived[x.town], span{x.since.UnixMilli(), x.w.now.UnixMilli()})
	if p := x.w.reach(); told && p != nil {
		p.Go(func() { p.hall.Exited(sandbox.Ref{Driver: "sim", Town: x.town, Generation: x.gen}) })
	}
}

func (b *boxes) inspect(r sandbox.Ref) sandbox.Status {
	st := sandbox.Status{Ref: r, State: sandbox.Gone, Reason: "never started"}
	if x := b.by[r.Town]; x != nil && x.gen == r.Generation {
		st.Reason = x.ended
		if x.running {
			st.State, st.Reason = sandbox.Running, "running"
		}
	}
	return st
}

func (b *boxes) stop(r sandbox.Ref) {
	if x := b.by[r.Town]; x != nil && x.gen == r.Generation {
		x.end("stopped", b.w.order.chance(0.5))
	}
}

func (b *boxes) list() (out []sandbox.Status) {
	for _, x := range b.sorted() {
		out = append(out, b.inspect(sandbox.Ref{Driver: "sim", Town: x.town, Generation: x.gen}))
	}
	return out
}

func (b *boxes) remove(r sandbox.Ref) {
	if x := b.by[r.Town]; x != nil {
		b.w.holds(invRemoved, b.w.shadow.towns[r.Town] == nil || b.w.shadow.towns[r.Town].columns.Status == "deleting", b.w.shadow.towns[r.Town],
			"the disk of %s was removed, and the town is there", r.Town)
		x.end("removed", false)
		delete(b.by, r.Town)
	}
	delete(b.disks, r.Town)
}

func (b *boxes) sorted() []*box {
	out := make([]*box, 0, len(b.by))
	for _, x := range b.by {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *box) int { return cmp.Compare(a.town, b.town) })
	return out
}

// place is the number of a town in the world, from 1; 0 for none.
func (w *world) place(id string) int {
	if t := w.shadow.towns[id]; t != nil {
		return t.place
	}
	return 0
}

func placeOf(name string) (n int) {
	if _, err := fmt.Sscanf(name, "town%d", &n); err != nil {
		return 0
	}
	return n + 1
}
