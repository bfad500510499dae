package sim

import (
	"context"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

// invariant is one of the things that always hold.
type invariant int

const (
	invOnce invariant = iota
	invDecided
	invProof
	invTerminal
	invAcked
	invIdem
	invEpoch
	invStale
	invClaims
	invPerformed
	invDue
	invWell
	invSaved
	invOneBox
	invLimit
	invHeld
	invRuns
	invAttempts
	invBounded
	invRenewals
	invBudget
	invParked
	invUsage
	invGranted
	invCharged
	invProvider
	invEscalated
	invColumns
	invSlots
	invRemoved
	invRest
	invQuiet
	invariantCount
)

var invariantNames = [invariantCount]string{
	invOnce:      "each bead is merged at most once",
	invDecided:   "only what a town decided is checked and merged",
	invProof:     "a closed bead has a proof, and as merged the target contained it",
	invTerminal:  "terminal beads change only on the word of a person",
	invAcked:     "no acknowledged command and no acknowledged report is lost",
	invIdem:      "a command happens once, however often it is repeated; a refused one never",
	invEpoch:     "epochs never fall",
	invStale:     "nothing of an old generation, epoch or number is taken",
	invClaims:    "an effect is performed only by who committed its claim, once per claim",
	invPerformed: "what a living server claimed it performs",
	invDue:       "what is due is done within minutes, whoever died",
	invWell:      "no sandbox and no run that is well is given up",
	invSaved:     "a run begins with all work that was checkpointed",
	invOneBox:    "no two sandboxes of one town",
	invLimit:     "sandboxes stay within the server's limit",
	invHeld:      "a sandbox is awake only with a hold or a grace, and ends when nothing needs it",
	invRuns:      "runs stay within their caps",
	invAttempts:  "attempts and conflicts stay within their caps",
	invBounded:   "work that repeats by itself is bounded per hour",
	invRenewals:  "a token is renewed at most once an hour",
	invBudget:    "nothing starts on a budget that is used up, of runs not one more, and what runs on it is stopped",
	invParked:    "work waits for a budget only while one is used up",
	invUsage:     "what was used is counted once, and for the bead, the town and the server alike",
	invGranted:   "blocks are of what budgets have left, which only answers that are larger than estimated exceed",
	invCharged:   "a block that nobody settles is charged in full, once, and when its time is over",
	invProvider:  "nothing starts with a limited provider before its time",
	invEscalated: "at most one escalation per cause and subject is open, and only while its subject needs a person",
	invColumns:   "no town has contradictory columns, none fails",
	invSlots:     "a slot is freed with its sandbox",
	invRemoved:   "only what was deleted is removed, and all of it",
	invRest:      "when faults stop, every bead ends or waits for a person, and every sandbox sleeps",
	invQuiet:     "an idle server writes nothing and loads nothing",
}

func (i invariant) String() string { return invariantNames[i] }

// tooLong is how long a sandbox may run that nothing needs: grace, drain and stop
// with their failures and pauses.
const tooLong = 25 * time.Minute

// check is done after each step.
func (w *world) check() {
	w.checked[invHeld]++
	now := w.clock()
	for _, x := range w.boxes.by {
		if !x.running {
			continue
		}
		t := w.shadow.towns[x.town]
		switch {
		case t.wants(now), len(w.procs) == 0: // without a server nobody can end it
			x.unused = time.Time{}
		case x.unused.IsZero(), w.disturbed.After(x.unused):
			x.unused = w.now
		case w.now.Sub(x.unused) > tooLong:
			w.violate(invHeld, t, "the sandbox of %s runs, and nothing has needed it for %s", x.town, tooLong)
		}
	}
}

// clock is what the servers take for the time: the earliest of their clocks.
func (w *world) clock() time.Time {
	now := w.now.Add(w.skewed)
	for i, p := range w.procs {
		if t := p.Now(); i == 0 || t.Before(now) {
			now = t
		}
	}
	return now
}

// checkRest looks at everything after the long rest, then lets another hour pass.
func (w *world) checkRest() {
	w.checked[invRest]++
	if len(w.procs) == 0 {
		w.violate(invRest, nil, "no server came back")
		return
	}
	for _, t := range w.towns {
		w.checkTown(t)
	}
	for _, t := range w.gone {
		w.holds(invRemoved, w.shadow.towns[t.id] == nil, w.shadow.towns[t.id], "town %s was deleted and is still there", t.name)
	}
	for _, x := range w.boxes.sorted() {
		w.holds(invRest, !x.running, w.shadow.towns[x.town], "a sandbox of %s still runs after the rest", x.town)
	}
	for _, id := range w.hub.list() {
		w.holds(invRemoved, w.shadow.hasRig(id.Town, id.Rig), w.shadow.towns[id.Town], "the repository %s is there, and its rig is not", id)
	}
	ctx := context.Background()
	c, err := w.mem.SlotCounts(ctx)
	w.holds(invSlots, err == nil && c == (store.SlotCounts{}), nil, "slots are held after the rest: %+v, %s", c, errText(err))
	writes, loads := w.mem.Stats().Writes, w.loads()
	w.tell = func(what string) { w.inQuiet = append(w.inQuiet, what) }
	w.play(w.now.Add(quiet))
	w.holds(invQuiet, w.mem.Stats().Writes == writes || len(w.inQuiet) == 0, nil, "%d rows were written in an hour in which nothing happened: %v", w.mem.Stats().Writes-writes, w.inQuiet)
	w.holds(invQuiet, w.loads() == loads, nil, "%d towns were loaded in an hour in which nothing happened", w.loads()-loads)
	for _, p := range w.procs {
		n := p.hall.InMemory()
		w.holds(invQuiet, n == 0, nil, "%d towns are in memory in an hour in which nothing happened", n)
	}
}

func (w *world) loads() (n int64) {
	for _, p := range w.procs {
		n += p.hall.Metrics().Loads.Load()
	}
	return n
}

// checkTown wants a town at rest: everything ended, or waiting for a person.
func (w *world) checkTown(t *simTown) {
	st := w.shadow.towns[t.id]
	if st == nil {
		if t.id != "" || !w.end.Before(w.now.Add(-rest)) {
			w.violate(invAcked, nil, "town %s does not exist", t.name)
		}
		return
	}
	if !t.leaving {
		for _, b := range t.beads {
			w.holds(invAcked, st.beads[b] != nil, st, "bead %s was acknowledged and is not there", b)
		}
	}
	w.holds(invRest, st.columns.Sandbox == store.Asleep, st, "the sandbox of %s is %s after the rest", t.name, st.columns.Sandbox)
	w.run(func() { w.checkBeads(t, st) })
	w.play(w.now.Add(time.Second))
}

func (w *world) checkBeads(t *simTown, st *shadowTown) {
	err := w.procs[0].hall.View(context.Background(), t.id, func(tn *town.Town, now time.Time) error {
		for _, b := range tn.Beads() {
			why, err := tn.Why(now, b.ID)
			if err != nil {
				w.violate(invRest, st, "nobody knows why %s: %v", b.ID, err)
				continue
			}
			ok := why.State == town.Terminal || why.State == town.Waiting && (why.Kind == "person" || why.Kind == "blocker" || why.Kind == "staged")
			w.holds(invRest, ok, st, "bead %s is %s (%s) after the rest: %s", b.ID, why.State, why.Kind, why.Text)
		}
		return nil
	})
	w.holds(invRest, err == nil, st, "town %s can't be looked at: %v", t.name, err)
}
