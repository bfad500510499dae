package town

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

func runID(bead string, epoch int64) string { return bead + "." + strconv.FormatInt(epoch, 10) }

func (t *Town) sortedRuns() []*Run {
	out := make([]*Run, 0, len(t.runs))
	for _, r := range t.runs {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *Run) int { return cmp.Or(cmp.Compare(a.CreatedAt, b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	return out
}

// startRun gives a ready bead to an agent: a new epoch, a new lease.
func (t *Town) startRun(b *Bead, r *Rig, now Time) {
	a := t.pickAgent(b, r, now)
	t.edit(b, now, func() {
		b.Epoch++
		b.Agent = a.Name
		if b.Branch == "" {
			b.Branch = "gt/" + a.Name + "/" + b.ID
		}
		if b.Base == "" {
			b.Base, b.Start = r.Tip, r.Tip
		}
		b.Refs = true
	})
	chosen := t.selection(RolePolecat, b, r)
	run := &Run{ID: b.currentRun(), Bead: b.ID, Rig: r.Name, Epoch: b.Epoch, Role: RolePolecat, Agent: a.Name,
		Preset: chosen.Agent.Value, Provider: chosen.Provider.Value, Model: chosen.Model.Value, Chosen: chosen, OwnProcess: t.text("process_per_run", b, r) == "true",
		State: RunStarting, Spent: Spend{Runs: 1}, Base: b.Base, Start: cmp.Or(b.Start, b.Base), Branch: b.Branch, CreatedAt: now}
	run.Nudges, run.NudgeN = b.unread(), b.NudgeN
	run.Told = t.told(b, run)
	if t.info.Sandbox.State == SandboxAwake {
		run.Generation = t.info.Sandbox.Generation
		run.LeaseUntil = now.Add(t.duration("lease", nil, nil))
	}
	t.runs[run.ID] = run
	t.spend(dayOf(now), run.Spent)
	t.ix.runsByRig[r.Name]++
	a.Run, a.Bead = run.ID, b.ID
	t.mark(kindRun, run.ID)
	t.mark(kindAgent, a.ID)
	t.setStatus(b, now, BeadInProgress, "", "given to "+a.Name)
	t.log(now, "run.started", run.ID, "", "", "bead", b.ID, "agent", a.Name, "preset", run.Preset, "attempt", strconv.Itoa(b.Attempt))
}

// names is the pool of agents' names of a rig; more than these get a number.
var names = []string{"amber", "basalt", "cobalt", "dolomite", "ember", "flint", "garnet", "hazel", "indigo", "jasper",
	"kelp", "larch", "maple", "nickel", "onyx", "pewter", "quartz", "rowan", "slate", "topaz", "umber", "vetch", "willow", "yarrow", "zinc"}

// pickAgent returns the bead's last agent when it is free, else the first free
// name of the rig's pool.
func (t *Town) pickAgent(b *Bead, r *Rig, now Time) *Agent {
	if a := t.agents[r.Name+"/"+b.Agent]; b.Agent != "" && a != nil && a.Run == "" {
		return a
	}
	for i := 0; ; i++ {
		name := names[i%len(names)]
		if i >= len(names) {
			name += "-" + strconv.Itoa(i/len(names)+1)
		}
		id := r.Name + "/" + name
		a := t.agents[id]
		if a == nil {
			a = &Agent{ID: id, Rig: r.Name, Name: name, Role: RolePolecat, Since: now}
			t.agents[id] = a
		}
		if a.Run == "" {
			return a
		}
	}
}

// stopRunOf asks the run at work on a bead to end.
func (t *Town) stopRunOf(b *Bead, now Time, why string) {
	if r := t.runs[b.currentRun()]; r != nil && r.Verdict == "" {
		t.stopRun(r, now, why)
	}
}

func (t *Town) stopRun(r *Run, now Time, why string) {
	if r.State == RunDraining && r.Stop != "" {
		return
	}
	if r.Generation == 0 || !t.info.Sandbox.State.Running() {
		// No sandbox ever heard of it.
		t.endRun(r, now, OutcomeStopped, r.StopClass, why)
		return
	}
	r.State, r.Stop, r.StopAt = RunDraining, why, now
	t.mark(kindRun, r.ID)
	t.log(now, "run.stopping", r.ID, "", why, "bead", r.Bead)
}

// endRun ends a lease: the run's row becomes a record of its bead, its agent is
// free, and a bead that is still at work goes back by the class of the end.
func (t *Town) endRun(r *Run, now Time, o Outcome, c Class, reason string) {
	if r.Verdict != "" {
		o, c, reason = r.Verdict, "", ""
	}
	if c == ClassWork && r.RefusedWhy != "" {
		reason += "; its last done was refused: " + r.RefusedWhy
	}
	reason = plain(reason, MaxReason)
	t.bookUntil(now)
	delete(t.runs, r.ID)
	t.ix.runsByRig[r.Rig]--
	t.mark(kindRun, r.ID)
	if a := t.agents[r.Rig+"/"+r.Agent]; a != nil {
		a.Run, a.Bead = "", ""
		t.mark(kindAgent, a.ID)
	}
	t.log(now, "run.ended", r.ID, "", reason, "bead", r.Bead, "agent", r.Agent, "outcome", string(o), "class", string(c),
		"tokens", nonZero(r.Spent.Tokens), "cost_micros", nonZero(r.Spent.Cost))
	b := t.beads[r.Bead]
	if b == nil {
		return
	}
	t.edit(b, now, func() {
		b.Runs = append(slices.Clone(b.Runs), RunRecord{Epoch: r.Epoch, Agent: r.Agent, Preset: r.Preset, Generation: r.Generation,
			StartedAt: r.CreatedAt, SpawnedAt: r.SpawnedAt, EndedAt: now, Outcome: o, Class: c, Reason: clip(reason, 1000),
			Spent: r.Spent, Marks: r.Marks})
		t.settleRun(r, b)
		b.Runs = b.Runs[max(0, len(b.Runs)-maxRunRecords):]
	})
	if b.Status != BeadInProgress || b.Epoch != r.Epoch {
		return
	}
	switch {
	case c == ClassWork:
		t.chargeWork(b, now, reason)
	default:
		if r.SpawnedAt != 0 {
			t.edit(b, now, func() { b.Interrupted = interruption(o, reason) })
		}
		t.putBack(b, now, o, reason)
	}
}

func nonZero(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// putBack reopens a bead that lost its run through no fault of its own.
func (t *Town) putBack(b *Bead, now Time, o Outcome, reason string) {
	t.edit(b, now, func() {
		if o != OutcomeStopped {
			b.note(Failure{At: now, Epoch: b.Epoch, Class: ClassInfra, Reason: clip(reason, 1000)})
		}
		if b.Checkpoint == "" && b.Start == b.Base && b.Commit == "" {
			b.Base, b.Start = "", "" // nothing was done yet: begin at the newest tip
		}
	})
	t.setStatus(b, now, BeadOpen, "", reason)
}

// note appends to the history of failures.
func (b *Bead) note(f Failure) {
	b.Failures = append(slices.Clone(b.Failures), f)
	b.Failures = b.Failures[max(0, len(b.Failures)-maxFailures):]
}

// chargeWork is what a failure of class work does: the bead pays an attempt, and
// goes back after a pause or fails for good.
func (t *Town) chargeWork(b *Bead, now Time, reason string) {
	r := t.rigs[b.Rig]
	limit := t.number("work.max_attempts", b, r)
	t.edit(b, now, func() {
		b.Charged++
		b.note(Failure{At: now, Epoch: b.Epoch, Class: ClassWork, Charged: true, Reason: clip(reason, 4000)})
		b.Reason, b.Interrupted = reason, ""
		b.Merge = nil
	})
	if a := t.agents[b.Rig+"/"+b.Agent]; a != nil {
		a.Failed++
		t.mark(kindAgent, a.ID)
	}
	if b.Charged >= limit {
		t.setStatus(b, now, BeadFailed, "", fmt.Sprintf("%d of %d attempts failed; the last: %s", b.Charged, limit, clip(reason, 500)))
		t.escalate(now, CauseFailed, b.ID, b.Title+": "+clip(reason, 500))
		return
	}
	pause := t.workBackoff(b.Charged, b, r)
	t.edit(b, now, func() {
		b.Attempt++
		b.NotBefore = now.Add(pause)
	})
	t.setStatus(b, now, BeadOpen, "", fmt.Sprintf("attempt %d of %d failed: %s", b.Charged, limit, clip(reason, 500)))
}

// verdict takes what an agent says of its run. A repeat of the accepted call is
// answered as before.
func (t *Town) verdict(now Time, in Verdict) error {
	bead, _, _ := strings.Cut(in.Run, ".")
	r, b := t.runs[in.Run], t.beads[bead]
	if b != nil && b.LastCall != nil && *b.LastCall == (Call{Epoch: in.Epoch, ID: in.CallID}) && runID(bead, in.Epoch) == in.Run {
		return nil
	}
	if r == nil || b == nil || r.Epoch != in.Epoch || r.Generation != in.Generation || t.current(in.Generation) != nil {
		return errs.New(errs.Gone, "run %s, epoch %d, is not current: stop working on it", clip(in.Run, 60), in.Epoch)
	}
	if r.State == RunDraining || b.Status != BeadInProgress {
		return errs.New(errs.Conflict, "run %s has ended its work already (%s)", r.ID, cmp.Or(string(r.Verdict), r.Stop, string(b.Status)))
	}
	if err := cleanText("text", in.Text, MaxReason); err != nil {
		return err
	}
	switch in.Kind {
	case VerdictDone:
		if err := checkEvidence(b, in.Evidence); err != nil {
			return err
		}
	case VerdictNoChange, VerdictEscalate:
		if in.Text == "" {
			return errs.New(errs.Invalid, "say why: the reason is empty")
		}
	default:
		return errs.New(errs.Invalid, "unknown verdict %q", clip(string(in.Kind), 40))
	}
	t.accept(r, b, now, in)
	return nil
}

func checkEvidence(b *Bead, e Evidence) error {
	switch {
	case !e.Exists || e.Commit == "":
		return errs.New(errs.Conflict, "branch %s holds no commit of yours on the server", b.Branch).WithHint("commit your work, then call done again")
	case !e.Descends:
		return errs.New(errs.Conflict, "commit %s does not descend from the base %s of this work", short(e.Commit), short(b.Base)).
			WithHint("rebase or redo your change on top of %s, then call done again", b.Base)
	case !e.Changed:
		return errs.New(errs.Conflict, "commit %s changes nothing against the base %s", short(e.Commit), short(b.Base)).
			WithHint("commit your change and call done again, or call no_change with the reason")
	}
	return nil
}

func (t *Town) accept(r *Run, b *Bead, now Time, in Verdict) {
	r.State, r.StopAt = RunDraining, now
	t.mark(kindRun, r.ID)
	t.edit(b, now, func() {
		b.LastCall = &Call{Epoch: in.Epoch, ID: in.CallID}
		b.Summary = in.Text
		b.Losses, b.Interrupted = 0, ""
	})
	t.proved(now, "sandbox")
	t.proved(now, "agent/"+r.Preset)
	t.providerWorks(now, limitSubject(r))
	switch in.Kind {
	case VerdictDone:
		r.Verdict = OutcomeDone
		t.edit(b, now, func() {
			b.Commit = in.Evidence.Commit
			b.Checkpoint, b.CheckpointRef = "", ""
			b.Merge = &Merge{State: MergeQueued, Since: now}
		})
		t.setStatus(b, now, BeadInReview, "", r.Agent+" says done with "+short(b.Commit))
	case VerdictNoChange:
		r.Verdict = OutcomeNoChange
		t.closeBead(b, now, Proof{Kind: ProofNoChange, By: r.Agent, Reason: in.Text, At: now}, "")
	case VerdictEscalate:
		r.Verdict = OutcomeStopped
		t.edit(b, now, func() {
			b.Escalated = true
			b.Reason = in.Text
			b.Attempt++
		})
		t.setStatus(b, now, BeadOpen, "", r.Agent+" asks for a person: "+clip(in.Text, 500))
		t.escalate(now, CauseEscalated, b.ID, b.Title+": "+clip(in.Text, 500))
	}
}

// fencedRun returns the run that a report is about, or nil when it is stale:
// late reports are acknowledged and change nothing.
func (t *Town) fencedRun(in Reports, p Report) *Run {
	r := t.runs[p.Run]
	if r == nil || r.Epoch != p.Epoch || r.Generation != in.Generation {
		return nil
	}
	return r
}

func (t *Town) runStarted(r *Run, now Time, p Report) {
	if r.State != RunStarting {
		return
	}
	r.State, r.SpawnedAt, r.LifeAt, r.PID = RunRunning, now, now, p.PID
	t.agentThere(r.Preset)
	t.renewLease(r, now)
	if b := t.beads[r.Bead]; b != nil && p.Session != "" {
		t.edit(b, now, func() { b.Session, b.SessionEpoch = plain(p.Session, 200), r.Epoch })
	}
	t.log(now, "run.spawned", r.ID, r.Agent, "", "bead", r.Bead, "preset", r.Preset)
}

func (t *Town) renewLease(r *Run, now Time) {
	r.LeaseUntil = now.Add(t.duration("lease", nil, nil))
	r.Extended = 0
	t.mark(kindRun, r.ID)
}

// runEnded takes the runner's word on how a run ended. Only the town's own
// breakers can be charged, and only those that the run can be about.
func (t *Town) runEnded(r *Run, now Time, p Report) {
	o, c, reason := p.Outcome, p.Class, cmp.Or(p.Reason, "the agent ended")
	if r.Stop != "" {
		// It was asked to stop: why is known better here.
		if o == OutcomeStopped || c != ClassWork || r.StopClass == ClassLimit {
			t.endStopped(r, now)
			return
		}
	}
	switch o {
	case OutcomeExited, OutcomeFailed:
	case OutcomeStopped:
		// The runner was told to stop by its sandbox, not by the town.
		if b := t.beads[r.Bead]; b != nil && b.stopped() >= freeStops {
			t.failed(now, "agent/"+r.Preset, "run "+r.ID+" was stopped by its sandbox, as the "+strconv.Itoa(b.stopped())+" before: "+reason)
		}
		t.endRun(r, now, OutcomeStopped, ClassInfra, reason)
		return
	default:
		// A verdict that never arrived, or an outcome of a newer runner.
		o, c = OutcomeExited, ClassWork
	}
	if c == ClassLimit && r.Verdict == "" {
		t.limitHit(now, r, statedEnd(now, p.WaitMS), reason)
		t.endRun(r, now, OutcomeStopped, ClassLimit, reason)
		return
	}
	if c == ClassInfra && p.Subject == SubjectKilled && r.Verdict == "" {
		t.agentKilled(r, now, reason)
		return
	}
	if c == ClassInfra && p.Subject == SubjectMissing && r.Verdict == "" && t.offers != nil {
		t.agentMissing(r, now, reason)
		return
	}
	if c == ClassInfra && r.Verdict == "" {
		subject := "agent/" + r.Preset
		if p.Subject == "rig/"+r.Rig || p.Subject == "sandbox" {
			subject = p.Subject
		}
		t.failed(now, subject, reason)
		t.endRun(r, now, o, ClassInfra, reason)
		return
	}
	if b := t.beads[r.Bead]; b != nil && p.Subject == SubjectOverflow && r.Verdict == "" {
		t.edit(b, now, func() { b.Session = "" }) // whoever loads it has the same trouble
	}
	late := r.Verdict == "" && t.overtime(r, now.Add(stopPatience)) // the runner keeps the limit, too
	t.endRun(r, now, o, ClassWork, reason)
	if late {
		t.tookTooLong(r, now)
	}
}

// freeStops is how many runs of a bead in a row a sandbox may stop unasked, as one
// does that is being shut down, before there is a pause.
const freeStops = 2

// stopped counts the latest runs in a row that their sandbox stopped unasked.
func (b *Bead) stopped() int {
	n := 0
	for n < len(b.Runs) && b.Runs[len(b.Runs)-1-n].Outcome == OutcomeStopped && b.Runs[len(b.Runs)-1-n].Class == ClassInfra {
		n++
	}
	return n
}

// SubjectKilled is the subject of a run whose agent was killed from outside,
// as systems do that run out of memory.
const SubjectKilled = "killed"

// SubjectOverflow is the subject of a run whose conversation became too long for
// its model: the next run begins a new session.
const SubjectOverflow = "overflow"

// agentKilled ends a run whose agent was killed. Like a lost sandbox this costs
// an attempt only when it happens to a bead again and again.
func (t *Town) agentKilled(r *Run, now Time, reason string) {
	c := ClassInfra
	if b := t.beads[r.Bead]; b != nil {
		if b.suspect() {
			c = ClassWork
		}
		t.edit(b, now, func() { b.Losses++ })
	}
	t.endRun(r, now, OutcomeLost, c, reason)
}

// endStopped ends a run that was asked to stop.
func (t *Town) endStopped(r *Run, now Time) {
	if r.Stop == stopLimit && r.SpawnedAt == 0 {
		why := "its agent was not started within its time limit"
		t.failed(now, "agent/"+r.Preset, why)
		t.endRun(r, now, OutcomeFailed, ClassInfra, why)
		return
	}
	if r.Stop == stopLimit || r.Stop == stopStuckAgain || r.Stop == stopRefused {
		t.endRun(r, now, OutcomeExited, ClassWork, r.Stop)
		return
	}
	t.endRun(r, now, OutcomeStopped, r.StopClass, r.Stop)
}

const (
	stopLimit      = "its time limit is over"
	stopStuck      = "no sign of life: restarted from the last checkpoint"
	stopStuckAgain = "no sign of life again after a restart"
	stopRefused    = "what it called done was refused again and again"
	stopDrain      = "the sandbox is being drained"
)

// stopPatience is how long a draining run may take to end before it counts as ended.
const stopPatience = time.Minute

// checkpointNoted is how far apart the ledger's entries about checkpoints of a
// run are at least: whatever runs in a sandbox may report them without end.
const checkpointNoted = 10 * time.Second

func (t *Town) checkpointed(r *Run, now Time, p Report) {
	b := t.beads[r.Bead]
	if b == nil || r.Verdict != "" || b.Epoch != r.Epoch || !commitRE.MatchString(p.Commit) || p.Ref != WipRef(b.ID, r.Epoch) {
		return
	}
	t.savedSlowly(r, now, p.TookMS)
	t.saveFailed(r, now, "")
	if b.Checkpoint == p.Commit && b.CheckpointRef == p.Ref {
		return
	}
	t.edit(b, now, func() { b.Checkpoint, b.CheckpointRef = p.Commit, p.Ref })
	if r.SavedAt != 0 && now.Sub(r.SavedAt) < checkpointNoted {
		return
	}
	r.SavedAt = now
	t.mark(kindRun, r.ID)
	t.log(now, "run.checkpoint", r.ID, r.Agent, short(p.Commit), "bead", r.Bead)
}

// WipRef is where the checkpoints of a run live in the hub.
func WipRef(bead string, epoch int64) string {
	return "refs/gastown/wip/" + bead + "/" + strconv.FormatInt(epoch, 10)
}

// MergeRef is where a candidate lives in the hub.
func MergeRef(bead string, n int) string {
	return "refs/gastown/merge/" + bead + "/" + strconv.Itoa(n)
}

// GitRules is what a run may push to the hub.
type GitRules struct {
	Branch string // full ref of its own branch, with any history until it is frozen
	Frozen string // why the branch may no longer be pushed, "" while it may
	Wip    string // full ref of its checkpoints
	// MaxBytes is how much the town's repositories may take; 0 is no limit.
	MaxBytes int64
}

// GitRules returns what a run may push, or Gone when it is not current.
func (t *Town) GitRules(run string, epoch int64, rig string) (GitRules, error) {
	r := t.runs[run]
	if r == nil || r.Epoch != epoch || r.Rig != rig {
		return GitRules{}, errs.New(errs.Gone, "run %s, epoch %d, is not current on rig %s", clip(run, 60), epoch, clip(rig, 60))
	}
	g := GitRules{Branch: "refs/heads/" + r.Branch, Wip: WipRef(r.Bead, r.Epoch),
		MaxBytes: int64(t.number("hub.max_mb", nil, nil)) << 20}
	switch {
	case r.Verdict == OutcomeDone:
		g.Frozen = "the branch is frozen since done was accepted; it is being reviewed and merged"
	case r.Verdict != "":
		g.Frozen = "the run ended with " + string(r.Verdict)
	}
	return g, nil
}
