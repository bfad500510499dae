package sim

import (
	"context"
	"fmt"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/town"
)

// command is something that a person asks, repeated with one idempotency key
// until an answer comes.
type command struct {
	in     town.Input
	must   bool   // it may not be refused
	quiet  bool   // it may be accepted without a trace in the ledger
	rig    string // with must: only while this is the town's rig
	before func() // each attempt
	then   func(error)

	by  string // who asks: nobody else has this name, so the ledger shows what came of it
	key string
}

// ask hands in a command.
func (t *simTown) ask(c command) {
	t.keys++
	c.key = fmt.Sprintf("key%d", t.keys)
	c.by = fmt.Sprintf("%s %s %d", person, t.name, t.keys)
	c.in = signed(c.in, c.by)
	if e, ok := c.in.(town.EditBead); ok && e.Title != nil {
		t.w.shadow.towns[t.id].titles[c.by] = *e.Title
	}
	t.w.commands++
	t.pending++
	t.try(c)
}

// try is one attempt.
func (t *simTown) try(c command) {
	w := t.w
	again := func() { w.at(t.dice.between(5e9, 30e9), func() { t.try(c) }) }
	if c.before != nil {
		c.before()
	}
	var err, e2 error
	lost, l2, done := false, true, false
	if w.fault("command-doubled", t.place) {
		w.at(0, func() {
			if e2, l2 = t.send(c); done && !lost {
				t.same(c, err, e2, l2)
			}
		})
	}
	if err, lost = t.send(c); !lost && !l2 {
		t.same(c, err, e2, l2)
	}
	done = true
	if !lost && w.fault("command-repeated", t.place) {
		t.pending++
		w.at(w.extent(0, patience), func() {
			e2, l2 := t.send(c)
			t.pending--
			t.same(c, err, e2, l2)
		})
	}
	switch k := errs.KindOf(err); {
	case lost, k == errs.Unavailable, k == errs.Overloaded, w.fault("command-answer-lost", t.place):
		again()
	case k == errs.Internal:
		t.pending--
		w.violate(invAcked, w.shadow.towns[t.id], "%s was answered with: %v", town.InputName(c.in), err)
	default:
		t.pending--
		t.answered(c, err)
		if c.then != nil {
			c.then(err)
		}
	}
}

func (t *simTown) send(c command) (error, bool) {
	p := t.w.reach()
	if p == nil {
		return nil, true
	}
	t.w.shadow.input(t.id, c.in)
	_, _, _, err := p.hall.DoIdem(context.Background(), t.id, c.in, c.key, town.InputName(c.in), func(*town.Town) (int, []byte) { return 200, nil })
	return err, p.dead
}

// same wants a repeat of an accepted command to be answered as the first was,
// also when it overtook it.
func (t *simTown) same(c command, err, e2 error, lost bool) {
	st := t.w.shadow.towns[t.id]
	if k := errs.KindOf(e2); lost || st == nil || k == errs.Unavailable || k == errs.Overloaded || err != nil {
		return
	}
	t.w.holds(invIdem, e2 == nil, st, "%s was accepted, and its repeat with the same key was refused: %v", town.InputName(c.in), e2)
}

// answered compares an answer with what was committed.
func (t *simTown) answered(c command, err error) {
	w, st := t.w, t.w.shadow.towns[t.id]
	if st == nil {
		return // the town was deleted meanwhile
	}
	said := len(st.said[c.by])
	switch {
	case err != nil:
		w.holds(invIdem, said == 0, st, "%s was refused (%v), and it happened", town.InputName(c.in), err)
		if c.must && (c.rig == "" || c.rig == t.rig && !t.leaving) && st.columns.Status != "deleting" {
			w.violate(invAcked, st, "%s was refused: %v", town.InputName(c.in), err)
		}
	case !c.quiet:
		w.holds(invAcked, said > 0, st, "%s by %s was acknowledged, and the ledger does not know of it", town.InputName(c.in), c.by)
	}
}

// signed puts who asks into a command.
func signed(in town.Input, by string) town.Input {
	switch in := in.(type) {
	case town.CreateBead:
		in.By = by
		return in
	case town.SlingBead:
		in.By = by
		return in
	case town.EditBead:
		in.By = by
		return in
	case town.DependBead:
		in.By = by
		return in
	case town.CloseBead:
		in.By = by
		return in
	case town.CancelBead:
		in.By = by
		return in
	case town.ReopenBead:
		in.By = by
		return in
	case town.NudgeBead:
		in.By = by
		return in
	case town.Retry:
		in.By = by
		return in
	case town.Acknowledge:
		in.By = by
		return in
	case town.AddRig:
		in.By = by
		return in
	case town.SetRig:
		in.By = by
		return in
	case town.DropRig:
		in.By = by
		return in
	case town.SetTown:
		in.By = by
		return in
	case town.Pause:
		in.By = by
		return in
	case town.Resume:
		in.By = by
		return in
	case town.RefreshToken:
		in.By = by
		return in
	case town.DeleteTown:
		in.By = by
		return in
	}
	panic(fmt.Sprintf("sim: %T is no command", in))
}

var _ hall.Waiter = (*process)(nil)
