package town

import (
	"testing"
	"time"
)

// checkInvariants asserts the promises that the state of a town can show.
func checkInvariants(t testing.TB, town *Town, now time.Time) {
	t.Helper()
	at := At(now)
	s := &town.info.Sandbox
	perRig, onBead := map[string]int{}, map[string]string{}
	for id, r := range town.runs {
		b := town.beads[r.Bead]
		switch {
		case b == nil || b.Epoch != r.Epoch || id != b.currentRun():
			t.Fatalf("run %s is not the latest of its bead", id)
		case r.State != RunDraining && b.Status != BeadInProgress:
			t.Fatalf("run %s works on bead %s, which is %s", id, b.ID, b.Status)
		case r.Generation > s.Generation:
			t.Fatalf("run %s is of generation %d, the sandbox is %d", id, r.Generation, s.Generation)
		case onBead[r.Bead] != "":
			t.Fatalf("bead %s has two runs", r.Bead)
		}
		onBead[r.Bead] = id
		perRig[r.Rig]++
	}
	for rig, n := range perRig {
		if limit := town.number("polecats.per_rig", nil, town.rigs[rig]); n > limit {
			t.Fatalf("%d runs on rig %s, at most %d", n, rig, limit)
		}
		if n != town.ix.runsByRig[rig] {
			t.Fatalf("index counts %d runs on rig %s, there are %d", town.ix.runsByRig[rig], rig, n)
		}
	}
	merging, open := map[string]string{}, 0
	for id, b := range town.beads {
		if !b.Status.Terminal() {
			open++
		}
		checkBead(t, town, b, at, onBead[id])
		if b.Status == BeadInReview && b.Merge.State != MergeQueued && b.Merge.State != MergeWaiting {
			if merging[b.Rig] != "" {
				t.Fatalf("two candidates at once on rig %s: %s and %s", b.Rig, merging[b.Rig], id)
			}
			merging[b.Rig] = id
		}
	}
	if open != town.ix.open {
		t.Fatalf("index counts %d open beads, there are %d", town.ix.open, open)
	}
	checkSandbox(t, town, at)
	checkEscalations(t, town)
	for _, f := range town.Doctor(now) {
		if f.Severity == SeverityProblem && f.Check != "row.quarantined" {
			t.Fatalf("doctor finds %s %s: %s", f.Check, f.Subject, f.What)
		}
	}
	var booked int64
	for _, u := range town.Usage(now) {
		booked += u.Awake()
	}
	if got := town.AwakeMS(now); got != booked {
		t.Fatalf("awake for %d ms, of which %d are accounted for", got, booked)
	}
	checkAlarm(t, town, now)
}

// checkAlarm asserts that somebody comes back for all that time alone, or an
// effect, is to change. The rules have just run at now.
func checkAlarm(t testing.TB, town *Town, now time.Time) {
	t.Helper()
	at := At(now)
	w, ok := town.NextWake(now)
	if ok && !w.After(now) {
		t.Fatalf("next wake %s is not after %s", w, now)
	}
	c := town.Columns(now)
	if c.DueAt != At(w) || c.Open != int64(town.ix.open) || c.Sandbox != town.info.Sandbox.State {
		t.Fatalf("columns %+v with a wake at %s", c, w)
	}
	if c.Wanted && c.Sandbox == SandboxAsleep {
		t.Fatalf("the sandbox is wanted, nothing keeps it from starting, and it sleeps: %+v", c)
	}
	if c.DueAt == 0 && (c.Wanted || c.Sandbox != SandboxAsleep || c.Mode == ModeDeleting) && len(town.Effects(now)) == 0 && !town.info.Removed {
		t.Fatalf("nobody comes back: %+v", c)
	}
	for id, b := range town.beads {
		if why := town.why(b, at); why.State != Terminal && why.Until > at && (!ok || At(w) > why.Until) {
			t.Fatalf("bead %s waits until %s and the next wake is %s: %+v", id, why.Until, w, why)
		}
	}
}

func checkBead(t testing.TB, town *Town, b *Bead, now Time, run string) {
	t.Helper()
	why := town.why(b, now)
	switch {
	case b.Status == BeadClosed && b.Proof == nil:
		t.Fatalf("bead %s is closed without a proof", b.ID)
	case b.Status != BeadClosed && b.Proof != nil:
		t.Fatalf("bead %s is %s and has a proof", b.ID, b.Status)
	case b.Status == BeadInProgress && run == "":
		t.Fatalf("bead %s is in progress without a run", b.ID)
	case (b.Status == BeadInReview) != (b.Merge != nil):
		t.Fatalf("bead %s is %s with merge %v", b.ID, b.Status, b.Merge)
	case b.Status.Terminal() != (why.State == Terminal):
		t.Fatalf("bead %s is %s and stands %s", b.ID, b.Status, why.State)
	case why.State == Runnable:
		t.Fatalf("bead %s could run and was left: %+v", b.ID, why)
	case why.Text == "" || why.State == Waiting && why.Kind == "":
		t.Fatalf("bead %s stands without a reason: %+v", b.ID, why)
	}
}

func checkEscalations(t testing.TB, town *Town) {
	t.Helper()
	open, seen := 0, map[string]bool{}
	for id, e := range town.escalations {
		if !e.Open() {
			continue
		}
		open++
		key := string(e.Cause) + " " + e.Subject
		b := town.beads[e.Subject]
		switch {
		case seen[key]:
			t.Fatalf("two escalations are open for %s", key)
		case e.Cause == CauseBreaker && town.breakers[e.Subject] == nil:
			t.Fatalf("escalation %s outlived the breaker of %s", id, e.Subject)
		case e.Cause == CauseUnsaved && (b == nil || b.Status != BeadInProgress):
			t.Fatalf("escalation %s outlived the run: %+v", id, e)
		case e.Cause == CauseFailed && (b == nil || b.Status != BeadFailed), e.Cause == CauseEscalated && (b == nil || !b.Escalated):
			t.Fatalf("escalation %s outlived its cause: %+v", id, e)
		}
		seen[key] = true
	}
	if open != town.ix.openEscalations || len(town.escalations)-open > maxClosed {
		t.Fatalf("index counts %d open escalations, there are %d of %d", town.ix.openEscalations, open, len(town.escalations))
	}
	for _, b := range town.beads {
		if b.Escalated && town.info.Mode != ModeImporting && (town.latest(CauseEscalated, b.ID) == nil || !town.latest(CauseEscalated, b.ID).Open()) && town.ix.openEscalations < maxOpen {
			t.Fatalf("bead %s waits for a person and there is no escalation", b.ID)
		}
	}
}

func checkSandbox(t testing.TB, town *Town, now Time) {
	t.Helper()
	s := &town.info.Sandbox
	why := town.WhyTown(now.Time())
	if s.State == SandboxAwake && len(why.Holds) == 0 && why.GraceEnd == 0 {
		t.Fatalf("the sandbox is awake and nobody can say why: %s", why.Text)
	}
	if s.State == SandboxQueued && len(why.Holds) == 0 {
		t.Fatalf("the sandbox is to start for nothing: %s", why.Text)
	}
	if s.State == SandboxStarting && s.HelloBy == 0 || s.State == SandboxDraining && s.DrainBy == 0 {
		t.Fatalf("sandbox %s has no deadline", s.State)
	}
	if _, parked := town.parked(now); len(why.Holds) > 0 && !parked && town.info.Mode == ModeActive && s.State == SandboxAsleep && !town.broken("sandbox", now) {
		t.Fatalf("a hold exists and the sandbox sleeps: %s", why.Text)
	}
}
