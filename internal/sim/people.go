package sim

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/town"
)

const person = "someone"

const (
	manyBeads = 40 // after which a rig is replaced, so that a long run does not slow down
	patience  = 30 * time.Minute
)

// simTown is a town as the people who use it know it.
type simTown struct {
	w       *world
	dice    dice
	place   int // in the world, from 1
	life    int // towns that were at this place before
	id      string
	name    string
	prefix  string
	rig     string
	rigs    int             // so far
	beads   []string        // acknowledged, of the present rig
	acked   map[string]bool // the same
	staged  []string
	asked   int // beads asked for
	keys    int
	pending int  // commands that are not answered for good
	leaving bool // a rig is being replaced
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// populate lets people make the towns.
func (w *world) populate() {
	for i := range w.opt.Towns {
		w.towns = append(w.towns, nil)
		w.settle(i, 0)
	}
	w.at(time.Hour, w.outside)
	w.at(2*time.Hour, w.jump)
	w.at(time.Minute, w.watch)
	w.at(w.order.between(0, 12*time.Hour), w.operator)
}

// settle makes a town at a place.
func (w *world) settle(i, life int) {
	t := &simTown{w: w, place: i + 1, life: life, name: fmt.Sprintf("town%d", i), acked: map[string]bool{}}
	if life > 0 {
		t.name += fmt.Sprintf("-%d", life)
	}
	t.dice = w.dice("people of " + t.name)
	w.towns[i] = t
	w.at(t.dice.between(0, time.Minute), t.create)
}

func (t *simTown) create() {
	w := t.w
	again := func() { w.at(10*time.Second, t.create) }
	p := w.reach()
	if p == nil {
		again()
		return
	}
	id, err := p.hall.CreateTown(context.Background(), t.name, "", nil, person, &hall.Idem{Key: "create " + t.name, Hash: "h"})
	if err != nil || p.dead {
		if err != nil && !p.dead && !errs.Is(err, errs.Unavailable) {
			w.violate(invAcked, nil, "town %s could not be made: %v", t.name, err)
			return
		}
		again()
		return
	}
	w.holds(invAcked, w.shadow.towns[id] != nil, nil, "town %s was acknowledged and is not there", t.name)
	t.id = id
	t.begin()
	t.addRig(func() { w.at(t.dice.between(0, time.Hour), t.live) })
}

// addRig gives the town a new rig to work on.
func (t *simTown) addRig(then func()) {
	t.rigs++
	t.rig = fmt.Sprintf("web%d", t.rigs)
	t.prefix = fmt.Sprintf("p%dx%dx%d", t.place, t.life, t.rigs)
	id := hub.ID{Town: t.id, Rig: t.rig}
	rig := town.Rig{Name: t.rig, Prefix: t.prefix, URL: "/upstream", Target: "main", Tip: t.w.hub.add(id).tip}
	if t.rigs%2 == t.place%2 {
		rig.Gates = []town.Gate{{Name: "build", Command: "make"}, {Name: "test", Command: "make test"}}
	}
	if (t.rigs+t.place)%5 == 4 {
		rig.Settings = town.Settings{"merge.mode": "branch"}
	}
	t.beads, t.acked, t.staged, t.leaving = nil, map[string]bool{}, nil, false
	t.ask(command{in: town.AddRig{Rig: rig}, must: true, before: func() { t.w.hub.add(id) }, then: func(error) { then() }})
}

// live is one thing that the people of a town do, again and again.
func (t *simTown) live() {
	w := t.w
	if !w.restless || w.towns[t.place-1] != t {
		return
	}
	if len(t.beads) >= manyBeads && !t.leaving || t.leaving {
		t.move()
	} else if t.dice.chance(0.15) {
		t.budget(t.dice.IntN(100))
	} else {
		t.act(t.dice.IntN(100))
	}
	w.at(t.dice.between(0, 90*time.Minute), t.live)
}

// move replaces the rig, or the whole town.
func (t *simTown) move() {
	if t.leaving {
		return
	}
	t.leaving = true
	if t.dice.chance(0.15) {
		t.ask(command{in: town.DeleteTown{}, quiet: true, must: true, then: func(error) {
			t.w.gone = append(t.w.gone, t)
			t.w.settle(t.place-1, t.life+1)
		}})
		return
	}
	t.drop()
}

func (t *simTown) drop() {
	t.ask(command{in: town.DropRig{Rig: t.rig, Force: true}, quiet: true, then: func(err error) {
		if err != nil { // something is being pushed right now
			t.w.at(t.dice.between(time.Minute, 5*time.Minute), t.drop)
			return
		}
		t.addRig(func() {})
	}})
}

func (t *simTown) act(n int) {
	switch {
	case n < 42:
		t.work(1 + t.dice.IntN(5))
	case n < 47:
		t.ask(command{in: town.Pause{Now: t.dice.chance(0.5)}, quiet: true, then: func(error) {
			t.w.at(t.dice.between(time.Minute, 3*time.Hour), func() { t.ask(command{in: town.Resume{}, quiet: true}) })
		}})
	case n < 52:
		t.ask(command{in: town.Resume{For: t.dice.between(time.Minute, time.Hour)}})
	case n < 56:
		t.onSome(func(b string) town.Input { return town.CancelBead{Bead: b, Reason: "no"} })
	case n < 60:
		t.onSome(func(b string) town.Input { return town.CloseBead{Bead: b, Reason: "done by hand"} })
	case n < 68:
		t.reopen()
	case n < 73:
		t.onSome(func(b string) town.Input { return town.NudgeBead{Bead: b, Text: "how is it going?"} })
	case n < 78:
		t.onSome(func(b string) town.Input { return town.Retry{ID: b} })
	case n < 82:
		t.ask(command{in: town.Retry{ID: []string{"sandbox", "rig/" + t.rig, "gates/" + t.rig}[t.dice.IntN(3)]}})
	default:
		t.change(n)
	}
}

// change is what people change rather than start.
func (t *simTown) change(n int) {
	switch {
	case n < 84:
		grace := []string{"1m", "2m", "5m"}[t.dice.IntN(3)]
		t.ask(command{in: town.SetTown{Set: town.Settings{"sandbox.grace": grace}}, must: true})
	case n < 88:
		title := fmt.Sprintf("a better title %d", t.keys)
		t.onSome(func(b string) town.Input { return town.EditBead{Bead: b, Title: &title} })
	case n < 91:
		t.depend()
	case n < 93:
		t.ask(command{in: town.RefreshToken{}})
	case n < 95:
		mode := []string{"direct", "branch"}[t.dice.IntN(2)]
		t.ask(command{in: town.SetRig{Rig: t.rig, Set: town.Settings{"merge.mode": mode}}, must: true})
	case n < 97:
		gates := []town.Gate{{Name: "build", Command: "make"}}[:t.dice.IntN(2)]
		t.ask(command{in: town.SetRig{Rig: t.rig, Gates: &gates}, must: true})
	default:
		for _, b := range t.staged {
			t.ask(command{in: town.SlingBead{Bead: b}, quiet: true})
		}
		t.staged = nil
	}
}

func (t *simTown) work(n int) {
	for range n {
		t.asked++
		in := town.CreateBead{ID: fmt.Sprintf("%s-%05d", t.prefix, t.asked), Rig: t.rig, Title: "a change", Priority: t.dice.IntN(4), Staged: t.dice.chance(0.05)}
		if len(t.beads) > 0 && t.dice.chance(0.2) {
			in.BlockedBy = []string{t.beads[t.dice.IntN(len(t.beads))]}
		}
		t.ask(command{in: in, must: true, rig: t.rig, then: func(err error) {
			if err != nil || in.Rig != t.rig {
				return
			}
			t.beads = append(t.beads, in.ID)
			t.acked[in.ID] = true
			if in.Staged {
				t.staged = append(t.staged, in.ID)
			}
		}})
	}
}

// some is one of the beads, "" when there are none.
func (t *simTown) some() string {
	if len(t.beads) == 0 {
		return ""
	}
	return t.beads[t.dice.IntN(len(t.beads))]
}

// onSome does something to a random bead, which may be refused.
func (t *simTown) onSome(do func(string) town.Input) {
	b := t.some()
	if b == "" {
		return
	}
	in := do(b)
	_, closing := in.(town.CloseBead)
	t.w.shadow.person(t.id, b)
	t.ask(command{in: in, then: func(err error) {
		st := t.w.shadow.towns[t.id]
		if err != nil || !closing || st == nil || st.beads[b] == nil {
			return
		}
		t.w.holds(invAcked, st.beads[b].Status == town.BeadClosed || st.undone[b], st, "bead %s was closed by a person and is %s", b, st.beads[b].Status)
	}})
}

func (t *simTown) depend() {
	a, b := t.some(), t.some()
	if a == b {
		return
	}
	t.ask(command{in: town.DependBead{Bead: a, On: b, Remove: t.dice.chance(0.3)}, quiet: true})
}

// reopen takes up a bead that was given up.
func (t *simTown) reopen() {
	st := t.w.shadow.towns[t.id]
	if st == nil {
		return
	}
	for _, b := range t.beads {
		if x := st.beads[b]; x != nil && (x.Status == town.BeadFailed || x.Escalated) {
			t.w.shadow.reopen(t.id, b)
			t.ask(command{in: town.ReopenBead{Bead: b, Reason: "try again"}})
			return
		}
	}
}

// type1 is a person who opens the machine and types before anything else ran.
func (t *simTown) type1() {
	if t.id == "" || t.w.towns[t.place-1] != t || t.leaving {
		return
	}
	t.ask(command{in: town.SetTown{Set: town.Settings{"sandbox.stop_grace": "5s"}}, must: true})
}

// outside is what happens around the towns: others push to the targets, force
// them back, and merge the branches that wait for them; remotes go down, the
// store's disk fills up.
func (w *world) outside() {
	for _, id := range w.hub.list() {
		u, who := w.hub.rigs[id], w.place(id.Town)
		if w.fault("git-down", who) {
			u.down = w.now.Add(w.extent(10*time.Minute, 6*time.Hour))
		}
		if w.fault("target-rewound", who) {
			w.hub.rewind(u, 1+int(w.extent(0, 3*time.Millisecond)/time.Millisecond))
		}
		if w.restless && w.order.chance(0.3) {
			w.hub.others(u)
		}
		for _, c := range u.offered {
			if !w.hub.contains(u.tip, c) {
				w.hub.push(u, oid("merge of", u.tip, c), c)
			}
		}
	}
	if w.fault("disk-full", 0) {
		w.fullUntil = w.now.Add(w.extent(time.Minute, time.Hour))
	}
	if w.fault("notify-down", 0) {
		w.mute = w.now.Add(w.extent(time.Minute, 12*time.Hour))
	}
	w.at(w.order.between(10*time.Minute, time.Hour), w.outside)
}

// jump lets the machine sleep (nothing runs, and then it is later), or sets its
// clock.
func (w *world) jump() {
	w.at(w.order.between(time.Hour, 5*time.Hour), w.jump)
	if w.fault("machine-sleeps", 0) {
		w.now = w.now.Add(w.extent(time.Minute, 4*time.Hour))
		w.stepped()
		for _, x := range w.boxes.by {
			x.unused = time.Time{}
		}
		for _, t := range w.towns {
			if t.dice.chance(0.5) {
				w.typed = append(w.typed, t)
			}
		}
	}
	if w.fault("clock-step", 0) {
		d := w.extent(-time.Hour, time.Hour)
		w.skewed += d
		for _, p := range w.procs {
			p.skew += d
		}
		w.stepped()
	}
}

// rigOf is the repository of a bead's rig.
func rigOf(townID, rig string) hub.ID { return hub.ID{Town: townID, Rig: rig} }
