package town

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Severity says what a finding is.
type Severity string

// The severities. Only a problem makes an examination end badly: a promise is
// not kept, or something stored can't be used. Information is what a person may
// want to know of a town that works as it should.
const (
	SeverityProblem Severity = "problem"
	SeverityInfo    Severity = "info"
)

// Finding is something that an examination found.
type Finding struct {
	Check    string
	Severity Severity
	Subject  string // what it is about, by the name that other commands take
	What     string // what is the case
	Means    string // what that means
	Fix      string // what to do about it
	Fixable  bool   // Mend does it
}

// late is by how much time alone must have passed a deadline before it counts as
// missed: alarms have second chances.
const late = 2 * time.Minute

// lateRepeats is from how many tries of one effect on it is worth a word.
const lateRepeats = 5

// Doctor examines the state of the town as it is stored: it looks, changes
// nothing, and finds what no rule repairs or should have repaired by now.
func (t *Town) Doctor(at time.Time) []Finding {
	d := &examination{t: t, now: At(at)}
	d.rows()
	d.beads()
	d.runs()
	d.sandbox()
	d.repeats()
	d.people()
	slices.SortFunc(d.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Subject, b.Subject))
	})
	return d.found
}

type examination struct {
	t     *Town
	now   Time
	found []Finding
}

func (d *examination) problem(check, subject, what, means, fix string, fixable bool) {
	d.found = append(d.found, Finding{Check: check, Severity: SeverityProblem, Subject: subject, What: what, Means: means, Fix: fix, Fixable: fixable})
}

func (d *examination) info(check, subject, what, means, fix string) {
	d.found = append(d.found, Finding{Check: check, Severity: SeverityInfo, Subject: subject, What: what, Means: means, Fix: fix})
}

func (d *examination) rows() {
	for _, q := range d.t.bad {
		fix := "a newer version may read it; gastown doctor --fix --town " + d.t.info.Name + " " + q.Name() + " deletes it for good"
		d.problem("row.quarantined", q.Name(), q.Error, "the row is kept as it is and changes nothing; the rest of the town goes on without it", fix, false)
	}
	for k, why := range d.t.odd {
		d.problem("row.odd", string(k.kind)+"/"+k.id, why, "two rows contradict each other, as after damage by hand", "the town mends it at its next look", true)
	}
	if n := d.t.info.PoisonN; n > 0 {
		last := d.t.info.Poison[len(d.t.info.Poison)-1]
		d.info("report.poisoned", d.t.info.Name, fmt.Sprintf("%d reports could not be taken; the last, %d of generation %d at %s: %s", n, last.N, last.Generation, last.At, last.What),
			"each was skipped and the next ones taken; what it told is lost", "look at the runner's version and at what runs in the sandbox")
	}
}

func (d *examination) beads() {
	merging := map[string]string{}
	for _, b := range d.t.Beads() {
		if why := d.contradiction(&b); why != "" {
			d.problem("bead.state", b.ID, why, "no sequence of commands leads there: a row was changed by hand or by a fault", "gastown bead close, cancel or reopen "+b.ID+" puts it into a state that you choose", false)
			continue
		}
		if shelf, _ := d.t.place(d.t.beads[b.ID]); shelf == shelfMerging {
			if o := merging[b.Rig]; o != "" {
				d.problem("merge.twice", b.ID, "it is being merged together with "+o, "one candidate at a time per rig is what keeps each merged once", "the town mends it at its next look", true)
			}
			merging[b.Rig] = b.ID
		}
		d.standing(&b)
	}
}

// contradiction says what is wrong with a bead by itself.
func (d *examination) contradiction(b *Bead) string {
	run := d.t.runs[b.currentRun()]
	switch {
	case d.t.odd[rowKey{kindBead, b.ID}] != "":
		return "" // told already
	case b.Status == BeadClosed && b.Proof == nil:
		return "it is closed and nothing proves that it is done"
	case b.Status != BeadClosed && b.Proof != nil:
		return "it is " + string(b.Status) + " and has a proof that it is done"
	case b.Status == BeadInProgress && run == nil:
		return "it is in progress and nothing runs"
	case (b.Status == BeadInReview) != (b.Merge != nil):
		return "it is " + string(b.Status) + ", which does not fit its merge"
	}
	return ""
}

// standing finds beads that no rule matches, and those that wait for a time that
// is over.
func (d *examination) standing(b *Bead) {
	before := d.now.Add(-late)
	if b.UpdatedAt > before {
		return
	}
	then, is := d.t.why(d.t.beads[b.ID], before), d.t.why(d.t.beads[b.ID], d.now)
	switch {
	case is.State == Waiting && is.Kind == "" || is.Text == "":
		d.problem("bead.unmatched", b.ID, "it is "+string(b.Status)+" and no rule says what it waits for", "it would wait for ever", "the town is looked at again; if it stays, that is a bug", true)
	case then.State == Runnable && is.State == Runnable:
		d.problem("bead.left", b.ID, "it could have run since "+before.String()+" at least, and nobody took it", "an alarm of its town was missed", "the town is looked at now", true)
	case is.State == Waiting && is.Until != 0 && is.Until < before:
		d.problem("bead.left", b.ID, "it waited until "+is.Until.String()+", and nobody looked then", "an alarm of its town was missed", "the town is looked at now", true)
	}
}

func (d *examination) runs() {
	s := &d.t.info.Sandbox
	for _, r := range d.t.sortedRuns() {
		b := d.t.beads[r.Bead]
		switch {
		case b != nil && b.Status.Terminal() && r.State != RunDraining:
			d.problem("run.useless", r.ID, "it goes on, and its bead is "+string(b.Status), "it costs money for nothing", "gastown sleep "+d.t.info.Name+" ends it, gastown town resume "+d.t.info.Name+" lets the others go on", false)
		case d.t.odd[rowKey{kindRun, r.ID}] != "":
		case r.Generation > s.Generation:
			d.problem("run.lease", r.ID, fmt.Sprintf("it is of generation %d of the sandbox, and the latest was %d", r.Generation, s.Generation), "it has no lease from anybody", "the town mends it at its next look", true)
		case d.t.talking() && !d.t.silent(d.now) && r.Generation == s.Generation && (r.LeaseUntil == 0 || r.LeaseUntil < d.now.Add(-late)):
			d.problem("run.lease", r.ID, "its lease ended at "+r.LeaseUntil.String()+" and it goes on", "nobody speaks of it and nobody ended it: an alarm was missed", "the town is looked at now", true)
		case r.State == RunDraining && !d.t.silent(d.now) && r.StopAt.Add(stopPatience) < d.now.Add(-late):
			d.problem("run.lease", r.ID, "it was to end at "+r.StopAt.String()+" and did not", "it holds its sandbox awake: an alarm was missed", "the town is looked at now", true)
		}
	}
	for _, a := range d.t.Agents() {
		if a.Run != "" && d.t.runs[a.Run] == nil {
			d.problem("agent.busy", a.ID, "it is said to work on run "+a.Run+", which does not exist", "the name is not given to other work", "it is freed when the town is loaded", true)
		}
	}
}

func (d *examination) sandbox() {
	s, name := &d.t.info.Sandbox, d.t.info.Name
	before := d.now.Add(-late)
	missed := func(what string) {
		d.problem("alarm.late", name, what, "the town should have acted and was not looked at", "the town is looked at now", true)
	}
	switch {
	case s.State == SandboxAwake && s.Since < before && !d.t.wanted(d.now) && !d.t.wanted(before):
		d.problem("hold.dangling", name, "its sandbox is awake, and nothing has held it since "+before.String()+" at least", "it costs money for nothing", "the town is looked at now", true)
	case s.State == SandboxStarting && s.HelloBy != 0 && s.HelloBy < before:
		missed("its sandbox should have said hello by " + s.HelloBy.String())
	case s.State == SandboxDraining && s.DrainBy != 0 && s.DrainBy < before:
		missed("its sandbox should have been drained by " + s.DrainBy.String())
	case s.State == SandboxAsleep && s.Since < before && d.t.wanted(d.now) && d.t.wanted(before) && !d.t.broken("sandbox", before):
		d.problem("hold.unheard", name, "its sandbox sleeps, and "+d.t.holdText(d.t.holds(d.now)[0])+" wants it awake", "work waits for nothing", "the town is looked at now", true)
	case s.State == SandboxQueued && len(d.t.holds(d.now)) == 0:
		d.problem("hold.dangling", name, "its sandbox is to start, and nothing wants it", "it would cost money for nothing", "the town is looked at now", true)
	}
	if a := d.t.info.AwakeFor; a > d.now.Add(maxAwakeFor+maxClock) {
		d.problem("hold.dangling", name, d.t.info.AwakeBy+" keeps it awake until "+a.String()+", longer than anybody may", "it costs money for nothing", "the town mends it at its next look", true)
	}
}

// repeats finds what repeats by itself and shouldn't, or does so for long.
func (d *examination) repeats() {
	if b, ok := usedUp(d.t.sharedBudgets(d.now, true)); ok && d.t.waitsBudget(d.now) {
		d.info("budget.reached", b.Setting(), d.t.budgetText(b, ""), "work waits, and no attempt is charged", "raise the limit, or wait for the next period")
	}
	for _, br := range d.t.Breakers() {
		switch {
		case !d.t.exists(br.Subject):
			d.problem("breaker.orphan", br.Subject, "there is a breaker for it and it does not exist", "nothing will ever prove that it works", "the breaker is removed", true)
		case br.Fails >= noticeFails || br.Fails > 0 && br.Until > d.now:
			d.info("breaker.open", br.Subject, fmt.Sprintf("it failed %d times since %s; the next try is at %s; the last: %s", br.Fails, br.Since, br.Until, clip(br.Last, 200)),
				"what depends on it waits", "fix the cause, then gastown retry "+br.Subject+" --town "+d.t.info.Name)
		}
	}
	for _, c := range d.t.Claims() {
		switch {
		case c.Until.Add(maxClaim+late) < d.now:
			d.problem("claim.dead", c.Key, "a server began it, vanished, and nobody has wanted it since "+c.Until.String(), "it is in nobody's way", "the claim is removed", true)
		case c.Attempt >= lateRepeats:
			d.info("claim.repeats", c.Key, "it is tried for the "+strconv.Itoa(c.Attempt)+"th time, because whoever did it never came back", "each try takes its whole time", "the server's log says more")
		}
	}
}

// exists reports whether the subject of a breaker is something that there is.
func (t *Town) exists(subject string) bool {
	kind, name, named := strings.Cut(subject, "/")
	if !named {
		return true
	}
	switch kind {
	case "rig", "push", "write", "gates", "hub":
		return t.rigs[name] != nil || t.unreadable(kindRig, name)
	case "merge":
		b := t.beads[name]
		return b != nil && !b.Status.Terminal() || t.unreadable(kindBead, name)
	}
	return true
}

// people finds what a person should look at.
func (d *examination) people() {
	for _, e := range d.t.Escalations(false) {
		if d.t.outlived(&e) {
			d.problem("escalation.orphan", e.ID, "it says "+string(e.Cause)+" of "+e.Subject+", which is no longer so", "people look for something that is not there", "it is closed", true)
			continue
		}
		d.info("escalation.open", e.ID, fmt.Sprintf("%s of %s, %d times since %s: %s", e.Cause, e.Subject, e.Count, e.First, clip(e.Text, 200)),
			"a person must decide", "gastown why "+e.Subject+" --town "+d.t.info.Name+"; gastown retry "+e.ID+" --town "+d.t.info.Name)
	}
	for _, n := range d.t.Notices() {
		if n.Dead {
			d.info("notice.dead", "notice/"+strconv.FormatInt(n.ID, 10), "people were not told of "+n.Subject+": "+clip(n.Error, 200), "it was tried "+strconv.Itoa(n.Tries)+" times and given up",
				"fix notify.url or the program, then gastown retry notice/"+strconv.FormatInt(n.ID, 10)+" --town "+d.t.info.Name)
		}
	}
}

// outlived reports whether the cause of an open escalation is gone.
func (t *Town) outlived(e *Escalation) bool {
	b := t.beads[e.Subject]
	switch e.Cause {
	case CauseFailed:
		return (b == nil || b.Status != BeadFailed) && !t.unreadable(kindBead, e.Subject)
	case CauseEscalated:
		return (b == nil || !b.Escalated) && !t.unreadable(kindBead, e.Subject)
	case CauseStuck:
		return (b == nil || b.Status == BeadClosed || b.Status == BeadCancelled) && !t.unreadable(kindBead, e.Subject)
	case CauseUnsaved:
		return (b == nil || b.Status != BeadInProgress) && !t.unreadable(kindBead, e.Subject)
	case CauseBreaker:
		return t.breakers[e.Subject] == nil && !t.unreadable(kindBreaker, e.Subject)
	case CauseMany:
	}
	return false
}

// mendTown does what Doctor calls fixable and no rule does by itself, and notes
// in the ledger what was done outside.
func (t *Town) mendTown(now Time, in Mend) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	for _, br := range t.Breakers() {
		if !t.exists(br.Subject) {
			t.dropBreaker(now, br.Subject, by, "its subject is gone")
			t.log(now, "doctor.fixed", br.Subject, by, "removed a breaker whose subject is gone")
		}
	}
	for _, e := range t.Escalations(false) {
		if t.outlived(&e) {
			t.closeEscalation(t.escalations[e.ID], now, by, "its cause is gone")
			t.log(now, "doctor.fixed", e.ID, by, "closed an escalation whose cause is gone")
		}
	}
	for _, c := range t.Claims() {
		if c.Until.Add(maxClaim) <= now {
			t.dropClaim(c.Key)
			t.log(now, "doctor.fixed", c.Key, by, "removed the claim of a server that is gone")
		}
	}
	if in.Lost > 0 && in.Lost != t.info.LedgerLost {
		t.info.LedgerLost = in.Lost
		t.mark(kindTown, t.info.ID)
		t.log(now, "doctor.fixed", t.info.Name, by, "noted that the ledger lacks "+strconv.FormatInt(in.Lost, 10)+" of its entries")
	}
	for _, did := range in.Did {
		t.log(now, "doctor.fixed", t.info.Name, by, plain(did, 1000))
	}
	return nil
}

// Refs says which references of beads a repository of the town may hold. Known is
// false for a bead that never was; a terminal bead keeps none once it is cleaned up.
func (t *Town) Refs(rig, bead string) (known, wanted bool) {
	if t.unreadable(kindBead, bead) || t.unreadable(kindRig, rig) {
		return true, true // nobody knows what it needs
	}
	b := t.beads[bead]
	if b == nil || b.Rig != rig {
		return false, false
	}
	return true, !b.Status.Terminal() || b.Refs
}
