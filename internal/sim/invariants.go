package sim

import (
	"context"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

// tooLong is how long a sandbox may run that nothing needs: grace, drain and stop
// with their failures and pauses, and a server that was down meanwhile.
const tooLong = 20 * time.Minute

func invariants() []string {
	return []string{
		"each bead is merged at most once, and only when its town decided so",
		"a bead closed as merged is contained in the target",
		"terminal beads change only on the word of a person",
		"no acknowledged command and no acknowledged report is lost",
		"epochs never fall",
		"no message of an old generation is taken, no report twice",
		"an effect is performed only by who committed its claim, once per claim",
		"no sandbox and no run that is well is given up",
		"no two sandboxes of one town",
		"sandboxes stay within the server's limit",
		"a sandbox is awake only with a hold or a grace, and ends when nothing needs it",
		"runs stay within their caps",
		"no town has contradictory columns, none fails",
		"a token is renewed at most once an hour",
		"when faults stop, every bead ends or waits for a person",
		"when work ends, all sandboxes end and all slots are free",
		"an idle server writes nothing and loads nothing",
	}
}

// check is done after each step.
func (w *world) check() {
	for _, x := range w.boxes.by {
		switch {
		case !x.running || w.shadow.towns[x.town].wants(w.now):
			x.unused = time.Time{}
		case x.unused.IsZero():
			x.unused = w.now
		case w.now.Sub(x.unused) > tooLong:
			w.violate("the sandbox of %s runs, and nothing has needed it for %s", w.shadow.towns[x.town].name, tooLong)
		}
	}
}

// checkRest looks at everything after the long rest, then lets another hour pass.
func (w *world) checkRest() {
	if len(w.procs) == 0 {
		w.violate("no server came back")
		return
	}
	for _, t := range w.towns {
		w.checkTown(t)
	}
	for _, x := range w.boxes.sorted() {
		if x.running {
			w.violate("a sandbox of %s still runs after the rest", x.town)
		}
	}
	ctx := context.Background()
	if c, err := w.mem.SlotCounts(ctx); err != nil || c != (store.SlotCounts{}) {
		w.violate("slots are held after the rest: %+v, %s", c, errText(err))
	}
	writes, loads := w.mem.Stats().Writes, w.loads()
	w.play(w.now.Add(quiet))
	if n := w.mem.Stats().Writes - writes; n != 0 {
		w.violate("%d rows were written in an hour in which nothing happened", n)
	}
	if n := w.loads() - loads; n != 0 {
		w.violate("%d towns were loaded in an hour in which nothing happened", n)
	}
	for _, p := range w.procs {
		if n := p.hall.InMemory(); n != 0 {
			w.violate("%d towns are in memory in an hour in which nothing happened", n)
		}
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
		w.violate("town %s does not exist", t.name)
		return
	}
	for _, b := range t.beads {
		if st.beads[b] == nil {
			w.violate("bead %s was acknowledged and is not there", b)
		}
	}
	if st.columns.Sandbox != store.Asleep {
		w.violate("the sandbox of %s is %s after the rest", t.name, st.columns.Sandbox)
	}
	sb := st.info.Sandbox
	w.renewals += sb.Renewals
	if sb.Renewals > sb.AwakeMS/time.Hour.Milliseconds() {
		w.violate("town %s renewed its token %d times in %d ms awake", t.name, sb.Renewals, sb.AwakeMS)
	}
	err := w.procs[0].hall.View(context.Background(), t.id, func(tn *town.Town, now time.Time) error {
		for _, b := range tn.Beads() {
			why, err := tn.Why(now, b.ID)
			if err != nil {
				w.violate("nobody knows why %s: %v", b.ID, err)
				continue
			}
			switch {
			case why.State == town.Terminal:
			case why.State == town.Waiting && (why.Kind == "person" || why.Kind == "blocker" || why.Kind == "staged"):
			default:
				w.violate("bead %s is %s (%s) after the rest: %s", b.ID, why.State, why.Kind, why.Text)
			}
		}
		return nil
	})
	if err != nil {
		w.violate("town %s can't be looked at: %v", t.name, err)
	}
}
