package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	page = 2000
	late = 2 * time.Minute // deadlines have second chances
)

// survey looks at columns and ledgers, and decides which towns to load.
func (l *look) survey(ctx context.Context) error {
	l.phase("towns", 0)
	after := ""
	for {
		got, err := l.cfg.Store.Survey(ctx, l.o.Town, after, page)
		if err != nil {
			return err
		}
		for _, s := range got {
			l.towns[s.ID] = known{s.Name, town.SandboxState(s.Sandbox), s.Generation}
			l.columns(s)
			l.ledger(s)
			after = s.ID
		}
		l.rep.Towns += len(got)
		l.step(len(got))
		if len(got) < page || l.o.Town != "" {
			break
		}
	}
	if l.o.Town != "" && l.rep.Towns == 0 {
		return store.ErrNoTown(l.o.Town)
	}
	return nil
}

func (l *look) columns(s store.Surveyed) {
	now := l.began.UnixMilli()
	wrong := true
	switch {
	case s.Contradicts() || s.Missed:
		f := l.problem(s.ID, "alarm.missing", s.Name, "it has something to do and no alarm", "nobody comes back to it before the next idle look", "the town is looked at now")
		f.mend = true
		l.add(f)
	case s.DueAt != 0 && s.DueAt < now-late.Milliseconds():
		f := l.problem(s.ID, "alarm.late", s.Name, "its alarm of "+at(s.DueAt)+" was not answered", "the loop that watches alarms is behind or does not run", "the town is looked at now; the server's log says why it was not")
		f.mend = true
		l.add(f)
	case s.DueAt > now+(366*24*time.Hour).Milliseconds():
		f := l.problem(s.ID, "alarm.far", s.Name, "its next alarm is at "+at(s.DueAt), "a clock was wrong, or a row was changed by hand", "the town is looked at now")
		f.mend = true
		l.add(f)
	default:
		wrong = false
	}
	if s.Failing != "" {
		l.add(l.problem(s.ID, "town.failing", s.Name, s.Failing, "nothing moves in the town; it is tried again at least every 15 minutes", "the server's log says more; if its own row can't be read, restore a backup"))
		wrong = true
	}
	if wrong || l.o.Deep || l.o.Town != "" || s.Open > 0 || s.Sandbox != store.Asleep || s.Status == store.Deleting {
		l.load[s.ID] = true
	}
}

func (l *look) ledger(s store.Surveyed) {
	switch {
	case s.Lost() != 0:
		l.gaps[s.ID] = s
		l.load[s.ID] = true // it knows whether a person knows
	case s.First > 1:
		l.add(finding{town: s.ID, Finding: api.Finding{Check: "ledger.pruned", Severity: string(town.SeverityInfo), Subject: s.Name,
			What: fmt.Sprintf("it begins with entry %d", s.First), Means: "older entries were removed after ledger.retention", Fix: "nothing"}})
	}
}

// gap says what a ledger lacks. Known is how many entries a person knows to be lost.
func (l *look) gap(s store.Surveyed, known int64) finding {
	f := l.problem(s.ID, "ledger.gap", s.Name, fmt.Sprintf("it holds %d entries from %d to %d, and the last that was written is %d", s.Entries, s.First, s.Last, s.LedgerSeq),
		"a part of the town's history was removed or lost", "what is gone stays gone, but a backup may have it; --fix notes that it is known")
	f.mend, f.lost = true, s.Lost()
	if s.Lost() > 0 && s.Lost() <= known {
		f.Severity, f.Fix, f.mend = string(town.SeverityInfo), "nothing", false
	}
	return f
}

func at(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// inside loads the towns that are worth it and asks each for what it finds.
func (l *look) inside(ctx context.Context) error {
	l.phase("towns with open work", len(l.load))
	for _, id := range slices.Sorted(maps.Keys(l.load)) {
		if err := l.oneTown(ctx, id); err != nil {
			return err
		}
		l.step(1)
	}
	return nil
}

func (l *look) oneTown(ctx context.Context, id string) error {
	before, err := l.cfg.Store.Head(ctx, id)
	if errs.Is(err, errs.NotFound) {
		return nil // deleted since
	}
	if err != nil {
		return err
	}
	var cols town.Columns
	var found []town.Finding
	var lost int64
	err = l.cfg.Hall.View(ctx, id, func(t *town.Town, now time.Time) error {
		found, cols, lost = t.Doctor(now), t.Columns(now), t.Info().LedgerLost
		return nil
	})
	if s, ok := l.gaps[id]; ok && ctx.Err() == nil && !errs.Is(err, errs.NotFound) {
		l.add(l.gap(s, lost))
	}
	switch {
	case errs.Is(err, errs.NotFound):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		if before.Failing == "" { // else it is said already
			l.add(l.problem(id, "town.failing", before.Name, oneLine(err), "nothing moves in the town", "the server's log says more; if its own row can't be read, restore a backup"))
		}
		return nil
	}
	l.rep.Loaded++
	for _, f := range found {
		l.add(finding{town: id, mend: f.Fixable, Finding: api.Finding{Check: f.Check, Severity: string(f.Severity), Subject: f.Subject, What: f.What, Means: f.Means, Fix: f.Fix}})
	}
	after, err := l.cfg.Store.Head(ctx, id)
	if err != nil || after.Version != before.Version {
		return nil // it moves; what was read does not belong together
	}
	l.compare(after, cols)
	return nil
}

// compare finds columns that say something else than the rows of their town.
func (l *look) compare(h store.Head, c town.Columns) {
	wrong := ""
	switch {
	case h.Sandbox != string(c.Sandbox):
		wrong = fmt.Sprintf("the column says that the sandbox is %s, the town that it is %s", h.Sandbox, c.Sandbox)
	case h.Generation != c.Generation:
		wrong = fmt.Sprintf("the column says generation %d, the town %d", h.Generation, c.Generation)
	case h.Open != c.Open:
		wrong = fmt.Sprintf("the column says %d open beads, the town %d", h.Open, c.Open)
	case h.DesiredRev != c.DesiredRev:
		wrong = fmt.Sprintf("the column says revision %d, the town %d", h.DesiredRev, c.DesiredRev)
	case h.Status != string(c.Mode):
		wrong = fmt.Sprintf("the column says %s, the town %s", h.Status, c.Mode)
	}
	if wrong != "" {
		f := l.problem(h.ID, "column.differs", h.Name, wrong, "lists and looks that read columns are misled", "the column is written anew")
		f.mend = true
		l.add(f)
	}
	exact := int64(c.DueAt)
	switch {
	case h.Failing != "" || exact == 0 || l.alarmed(h.ID):
	case h.DueAt == 0:
		f := l.problem(h.ID, "alarm.missing", h.Name, "it should be looked at "+at(exact)+" and has no alarm", "nobody comes back to it by then", "the alarm is set")
		f.mend = true
		l.add(f)
	case h.DueAt > exact+late.Milliseconds():
		f := l.problem(h.ID, "alarm.far", h.Name, "it should be looked at "+at(exact)+", and its alarm is at "+at(h.DueAt), "what is due then waits", "the alarm is set")
		f.mend = true
		l.add(f)
	}
}

// alarmed reports whether the alarm of a town was found wrong already.
func (l *look) alarmed(id string) bool {
	return slices.ContainsFunc(l.found, func(f finding) bool {
		return f.town == id && (f.Check == "alarm.missing" || f.Check == "alarm.late" || f.Check == "alarm.far")
	})
}
