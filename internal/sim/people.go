package sim

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/town"
)

const (
	rigName = "web"
	person  = "someone"
)

// simTown is a town as the people who use it know it.
type simTown struct {
	w      *world
	id     string
	name   string
	prefix string
	beads  []string        // acknowledged
	acked  map[string]bool // the same
	asked  int             // beads asked for
	keys   int
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// populate lets people make the towns.
func (w *world) populate() {
	for i := range w.opt.Towns {
		t := &simTown{w: w, name: fmt.Sprintf("town%d", i), prefix: fmt.Sprintf("p%d", i), acked: map[string]bool{}}
		w.towns = append(w.towns, t)
		w.at(w.between(0, time.Minute), func() { t.create(i) })
	}
	w.at(time.Hour, w.others)
	w.at(2*time.Hour, w.jump)
}

func (t *simTown) create(i int) {
	w := t.w
	p := w.server()
	if p == nil {
		w.at(10*time.Second, func() { t.create(i) })
		return
	}
	id, err := p.hall.CreateTown(context.Background(), t.name, "", nil, person, &hall.Idem{Key: "create " + t.name, Hash: "h"})
	if err != nil || p.dead {
		if err != nil && !p.dead && !errs.Is(err, errs.Unavailable) {
			w.violate("town %s could not be made: %v", t.name, err)
			return
		}
		w.at(10*time.Second, func() { t.create(i) })
		return
	}
	t.id = id
	rig := town.Rig{Name: rigName, Prefix: t.prefix, URL: "/upstream", Target: "main", Tip: w.hub.add(w.rigID(id)).tip}
	if i%2 == 0 {
		rig.Gates = []town.Gate{{Name: "build", Command: "make"}, {Name: "test", Command: "make test"}}
	}
	if i%5 == 4 {
		rig.Settings = town.Settings{"merge.mode": "branch"}
	}
	t.ask(town.AddRig{By: person, Rig: rig}, func(error) { w.at(w.between(0, time.Hour), t.live) })
}

// ask hands in a command with an idempotency key and repeats it until an answer
// comes.
func (t *simTown) ask(in town.Input, answer func(error)) {
	t.keys++
	t.askKey(in, fmt.Sprintf("key%d", t.keys), answer)
}

func (t *simTown) askKey(in town.Input, key string, answer func(error)) {
	w := t.w
	again := func() { w.at(w.between(5*time.Second, 30*time.Second), func() { t.askKey(in, key, answer) }) }
	p := w.server()
	if p == nil {
		again()
		return
	}
	_, _, _, err := p.hall.DoIdem(context.Background(), t.id, in, key, town.InputName(in), func(*town.Town) (int, []byte) { return 200, nil })
	switch k := errs.KindOf(err); {
	case p.dead, k == errs.Unavailable, k == errs.Overloaded, w.fault("answer to a person lost", 0.01):
		again()
	case k == errs.Internal:
		w.violate("%s was answered with: %v", town.InputName(in), err)
	default:
		answer(err)
	}
}

// live is one thing that the people of a town do, again and again.
func (t *simTown) live() {
	w := t.w
	if !w.restless {
		return
	}
	nothing := func(error) {}
	switch n := w.rng.IntN(100); {
	case n < 45:
		t.work(1 + w.rng.IntN(5))
	case n < 50:
		t.ask(town.Pause{By: person, Now: w.chance(0.5)}, func(error) {
			w.at(w.between(time.Minute, 3*time.Hour), func() { t.ask(town.Resume{By: person}, nothing) })
		})
	case n < 55:
		t.ask(town.Resume{By: person, For: w.between(time.Minute, time.Hour)}, nothing)
	case n < 60:
		t.onSome(func(b string) town.Input { return town.CancelBead{By: person, Bead: b, Reason: "no"} })
	case n < 64:
		t.onSome(func(b string) town.Input { return town.CloseBead{By: person, Bead: b, Reason: "done by hand"} })
	case n < 74:
		t.reopen()
	case n < 80:
		t.onSome(func(b string) town.Input { return town.NudgeBead{By: person, Bead: b, Text: "how is it going?"} })
	case n < 84:
		t.ask(town.SetTown{By: person, Set: town.Settings{"sandbox.grace": "1m"}}, nothing)
	case n < 88:
		t.ask(town.Retry{By: person, ID: "sandbox"}, nothing)
	}
	w.at(w.between(0, 90*time.Minute), t.live)
}

func (t *simTown) work(n int) {
	for range n {
		t.asked++
		in := town.CreateBead{By: person, ID: fmt.Sprintf("%s-%05d", t.prefix, t.asked), Rig: rigName, Title: "a change", Priority: t.w.rng.IntN(4)}
		if len(t.beads) > 0 && t.w.chance(0.2) {
			in.BlockedBy = []string{t.beads[t.w.rng.IntN(len(t.beads))]}
		}
		t.ask(in, func(err error) {
			if err != nil {
				t.w.violate("bead %s was refused: %v", in.ID, err)
				return
			}
			t.beads = append(t.beads, in.ID)
			t.acked[in.ID] = true
		})
	}
}

// onSome does something to a random bead, which may be refused.
func (t *simTown) onSome(do func(string) town.Input) {
	if len(t.beads) == 0 {
		return
	}
	b := t.beads[t.w.rng.IntN(len(t.beads))]
	in := do(b)
	t.w.shadow.person(t.id, b)
	_, closing := in.(town.CloseBead)
	t.ask(in, func(err error) {
		if got := t.w.shadow.status(t.id, b); err == nil && closing && got != town.BeadClosed && !t.w.shadow.reopened(t.id, b) {
			t.w.violate("bead %s was closed by a person and is %s", b, got)
		}
	})
}

// reopen takes up a bead that was given up.
func (t *simTown) reopen() {
	for _, b := range t.beads {
		if got := t.w.shadow.status(t.id, b); got == town.BeadFailed || t.w.shadow.escalated(t.id, b) {
			t.w.shadow.reopen(t.id, b)
			t.ask(town.ReopenBead{By: person, Bead: b, Reason: "try again"}, func(error) {})
			return
		}
	}
}

// others push to the targets and merge the branches that wait for them.
func (w *world) others() {
	for _, t := range w.towns {
		u := w.hub.rigs[w.rigID(t.id)]
		if u == nil {
			continue
		}
		if w.restless && w.chance(0.3) {
			u.pushes++
			u.push(oid("other", t.id, fmt.Sprint(u.pushes)))
		}
		for _, c := range u.offered {
			if !u.in[c] {
				u.push(c)
			}
		}
		u.offered = nil
	}
	w.at(w.between(10*time.Minute, time.Hour), w.others)
}

// jump lets the machine sleep: nothing runs, and then it is later.
func (w *world) jump() {
	if w.fault("machine slept", 0.8) {
		w.now = w.now.Add(w.between(time.Minute, 4*time.Hour))
		for _, x := range w.boxes.by {
			x.unused = time.Time{}
		}
	}
	for _, p := range w.procs {
		if w.fault("clock stepped", 0.2) {
			p.skew = w.skew()
		}
	}
	w.at(w.between(time.Hour, 5*time.Hour), w.jump)
}
