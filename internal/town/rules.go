package town

import (
	"slices"
	"strconv"
	"time"
)

// maxSteps bounds a settling. Every rule moves something towards an end, so only
// a bug can reach it.
const maxSteps = 200_000

// settle runs the rules to a fixpoint. Each rule looks at the state as the one
// before left it, changes it through the transition functions, and reports
// whether it changed anything.
func (t *Town) settle(now Time) {
	rules := []func(Time) bool{
		t.ruleMend, t.ruleClock, t.ruleImport, t.ruleClaims, t.ruleBackoffOver, t.ruleLeases, t.ruleStuck, t.ruleUnsaved, t.ruleGatesOverdue,
		t.ruleBlocks, t.ruleBudget,
		t.ruleMerge, t.ruleDispatch, t.driveSandbox,
	}
	for step := 0; ; step++ {
		moved := false
		for _, rule := range rules {
			t.keepGrace(now)
			moved = rule(now) || moved
		}
		if !moved {
			break
		}
		if step == maxSteps {
			panic("town: the rules do not settle")
		}
	}
	t.meter(now)
	t.finished(now)
	t.revise()
}

// ruleClock pulls deadlines that lie further ahead than they can be back: they
// were written under a wrong clock.
func (t *Town) ruleClock(now Time) bool {
	moved := false
	clamp := func(at *Time, longest time.Duration, k rowKind, id string) {
		if *at > now.Add(longest+maxClock) {
			*at = now.Add(longest)
			t.mark(k, id)
			moved = true
		}
	}
	s := &t.info.Sandbox
	lease := t.duration("lease", nil, nil)
	clamp(&s.HelloBy, max(t.duration("sandbox.hello_timeout", nil, nil), listenAgain), kindTown, t.info.ID)
	clamp(&s.DrainBy, t.duration("sandbox.drain_timeout", nil, nil), kindTown, t.info.ID)
	clamp(&s.AdmitAt, admitAgain, kindTown, t.info.ID)
	for _, at := range []*Time{&s.StartedAt, &s.HelloAt, &s.LastSeen, &s.Inspected} {
		clamp(at, 0, kindTown, t.info.ID)
	}
	clamp(&s.LastHold, 0, kindTown, t.info.ID)
	clamp(&s.TokenAt, 0, kindTown, t.info.ID)
	clamp(&t.info.AwakeFor, maxAwakeFor, kindTown, t.info.ID)
	for i := range t.info.Blocks {
		clamp(&t.info.Blocks[i].Until, BlockLife, kindTown, t.info.ID)
	}
	for id, r := range t.runs {
		clamp(&r.LeaseUntil, max(lease, listenAgain), kindRun, id)
		clamp(&r.CreatedAt, 0, kindRun, id)
		clamp(&r.SpawnedAt, 0, kindRun, id)
		if most := max(now.Sub(max(r.SpawnedAt, r.CreatedAt)).Milliseconds(), 0); r.UnheardMS < 0 || r.UnheardMS > most {
			r.UnheardMS = most
			t.mark(kindRun, id)
		}
		clamp(&r.StopAt, 0, kindRun, id)
		clamp(&r.WaitUntil, t.duration("sandbox.grace", nil, nil), kindRun, id)
	}
	for name, r := range t.rigs {
		if r.FetchedAt > now.Add(maxClock) {
			r.FetchedAt = 0 // nobody knows how old the tip is
			t.mark(kindRig, name)
			moved = true
		}
		if r.WriteAt > now.Add(maxClock) {
			r.WriteAt = 0
			t.mark(kindRig, name)
			moved = true
		}
	}
	for _, id := range t.gating() {
		b := t.beads[id]
		clamp(&b.Merge.Deadline, t.gatesLimit(t.rigs[b.Rig]), kindBead, id)
	}
	for id := range t.ix.waiting {
		clamp(&t.beads[id].Merge.CheckedAt, 0, kindBead, id)
	}
	for id, br := range t.breakers {
		longest := t.duration("infra.backoff_max", nil, nil) * 5 / 4
		if br.Limit {
			longest = max(longest, t.duration("limit.max_wait", nil, nil))
		}
		clamp(&br.Until, longest, kindBreaker, id)
	}
	for key, c := range t.claims {
		clamp(&c.Until, maxClaim, kindClaim, key)
	}
	for id, n := range t.notices {
		clamp(&n.Next, t.duration("infra.backoff_max", nil, nil)*5/4, kindNotice, strconv.FormatInt(id, 10))
	}
	return moved
}

// ruleClaims drops claims that lapsed long ago: whoever performed the effect is
// gone, and nobody has wanted it since, or it would have been claimed again.
func (t *Town) ruleClaims(now Time) bool {
	moved := false
	for key, c := range t.claims {
		if now >= c.Until.Add(maxClaim) {
			t.dropClaim(key)
			moved = true
		}
	}
	return moved
}

// ruleBackoffOver lets beads whose pause is over become ready. The queue is by
// time, so the first that still waits ends the look.
func (t *Town) ruleBackoffOver(now Time) bool {
	moved := false
	for len(t.ix.delayed) > 0 && t.info.Mode != ModeImporting {
		b := t.beads[t.ix.delayed[0].id]
		if b.NotBefore > now && b.NotBefore <= now.Add(day+maxClock) {
			break
		}
		t.edit(b, now, func() { b.NotBefore = 0 })
		moved = true
	}
	return moved
}

// ruleLeases ends runs whose lease is over although their sandbox talks, and
// runs that were asked to end and did not. While a sandbox is silent nothing is
// known of its runs: what becomes of them is decided with it.
func (t *Town) ruleLeases(now Time) bool {
	moved := false
	silent := t.silent(now)
	talks := t.talking() && !silent
	for _, r := range t.sortedRuns() {
		switch {
		case r.State == RunDraining && !silent && now >= r.StopAt.Add(stopPatience):
			if r.Stop != "" {
				t.endStopped(r, now)
			} else {
				t.endRun(r, now, OutcomeStopped, "", "it did not end in time")
			}
			moved = true
		case talks && r.LeaseUntil != 0 && now >= r.LeaseUntil:
			t.failed(now, "agent/"+r.Preset, "the sandbox no longer speaks of run "+r.ID)
			t.endRun(r, now, OutcomeLost, ClassInfra, "its sandbox no longer speaks of it")
			moved = true
		}
	}
	return moved
}

// ruleStuck is the ladder for agents without a sign of life: nudge, restart
// from the checkpoint once, stop. What counts is the silence that the runner
// itself measured, so nobody is blamed while nobody listened.
func (t *Town) ruleStuck(now Time) bool {
	moved := false
	for _, r := range t.sortedRuns() {
		b, rig := t.beads[r.Bead], t.rigs[r.Rig]
		if r.State == RunDraining || r.Generation == 0 || b == nil || t.silent(now) {
			continue
		}
		idle := time.Duration(r.IdleMS) * time.Millisecond
		switch {
		case t.overtime(r, now):
			t.stopRun(r, now, stopLimit)
			t.tookTooLong(r, now)
		case idle >= t.duration("stuck.restart_after", b, rig):
			if b.Restarted {
				t.stopRun(r, now, stopStuckAgain)
				t.escalate(now, CauseStuck, b.ID, b.Title+": "+stopStuckAgain)
				break
			}
			t.edit(b, now, func() { b.Restarted = true })
			t.stopRun(r, now, stopStuck)
		case idle >= t.duration("stuck.nudge_after", b, rig) && r.Stuck == 0:
			r.Stuck = 1
			t.nudge(r, now, "town", "There was no sign of life from you for "+idle.Round(time.Second).String()+". Go on, or call done, no_change or escalate.", false)
		default:
			continue
		}
		moved = true
	}
	return moved
}

// tookTooLong tells people of a run that used up its time.
func (t *Town) tookTooLong(r *Run, now Time) {
	if b := t.beads[r.Bead]; b != nil && r.SpawnedAt != 0 && b.Status != BeadFailed {
		limit := t.duration("run.time_limit", b, t.rigs[r.Rig])
		t.escalate(now, CauseStuck, b.ID, b.Title+": its agent gave no verdict within "+limit.String()+" (run.time_limit)")
	}
}

func (t *Town) overtime(r *Run, now Time) bool {
	limit := t.runLimit(r)
	return limit != 0 && now >= limit
}

// runLimit is when a run has used up its time; 0 while its sandbox has not said
// hello yet, since waiting for one is not its time.
func (t *Town) runLimit(r *Run) Time {
	since := r.SpawnedAt
	if since == 0 {
		if t.info.Sandbox.HelloAt == 0 {
			return 0
		}
		since = max(r.CreatedAt, t.info.Sandbox.HelloAt)
	}
	return since.Add(t.duration("run.time_limit", t.beads[r.Bead], t.rigs[r.Rig]) + time.Duration(r.UnheardMS)*time.Millisecond)
}

// ruleGatesOverdue gives a candidate whose gates never reported another try.
func (t *Town) ruleGatesOverdue(now Time) bool {
	moved := false
	for _, id := range t.gating() {
		if b := t.beads[id]; len(t.rigs[b.Rig].Gates) == 0 {
			t.requeue(b, now) // its gates were removed: nothing would ever report
			moved = true
		}
	}
	if t.info.Sandbox.State != SandboxAwake || t.silent(now) {
		return moved
	}
	for _, id := range t.gating() {
		if b := t.beads[id]; now >= b.Merge.Deadline {
			t.failed(now, "gates/"+b.Rig, "the gates on candidate "+short(b.Merge.Candidate)+" did not report in time")
			t.requeue(b, now)
			moved = true
		}
	}
	return moved
}

// ruleMerge gives each rig's merge slot to the next bead in its queue.
func (t *Town) ruleMerge(now Time) bool {
	moved := false
	for _, r := range t.sortedRigs() {
		moved = t.takeTurn(r, now) || moved
	}
	return moved
}

func (t *Town) sortedRigs() []*Rig {
	out := make([]*Rig, 0, len(t.rigs))
	for _, r := range t.rigs {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *Rig) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

// ruleDispatch gives the most urgent ready bead of all rigs to an agent, one at
// a time.
func (t *Town) ruleDispatch(now Time) bool {
	var best *Bead
	var bestKey ticket
	var alone bool
	for _, r := range t.sortedRigs() {
		b, k, a := t.candidate(r, now)
		if b != nil && (best == nil || k.compare(bestKey) < 0) {
			best, bestKey, alone = b, k, a
		}
	}
	if best == nil || alone {
		return false
	}
	t.startRun(best, t.rigs[best.Rig], now)
	return true
}

// candidate is the bead of a rig whose turn it is, if the rig may start one.
// With alone it can't start yet, and nobody behind it may pass, on any rig, or
// others would keep it waiting for ever: it waits to run alone, or is about to
// and waits for the newest tip.
func (t *Town) candidate(r *Rig, now Time) (b *Bead, k ticket, alone bool) {
	wait := t.rigWaits(r, now).Kind
	if wait != "" && wait != waitFetch {
		return nil, ticket{}, false
	}
	b, k, alone = t.firstReady(r, now)
	if wait == waitFetch {
		if b == nil || !b.suspect() {
			return nil, ticket{}, false
		}
		alone = true
	}
	return b, k, alone
}

// firstReady is the most urgent bead of a rig that could start now. One that
// waits to run alone is returned, too, with alone.
func (t *Town) firstReady(r *Rig, now Time) (b *Bead, k ticket, alone bool) {
	q := t.ix.ready[r.Name]
	if q == nil {
		return nil, ticket{}, false
	}
	usualBroken := t.broken("agent/"+t.choose(keyAgent, RolePolecat, nil, r).Value, now) || t.agentWait(nil, r).Kind != ""
	if p := t.choose(keyProvider, RolePolecat, nil, r).Value; p != "" && t.broken("provider/"+p, now) {
		usualBroken = true
	}
	for _, k := range *q {
		b := t.beads[k.id]
		if b.Settings == nil && usualBroken {
			continue
		}
		wait := t.beadWaits(b, r, now)
		if wait.Kind == "" || wait.Kind == waitAlone && b.suspect() {
			return b, k, wait.Kind != ""
		}
	}
	return nil, ticket{}, false
}

// finished tells people when a town has done all its work.
func (t *Town) finished(now Time) {
	if t.info.Busy && t.ix.open == 0 && len(t.runs) == 0 {
		t.info.Busy = false
		t.mark(kindTown, t.info.ID)
		t.log(now, "town.finished", t.info.Name, "", "all beads are ended")
		t.notify(now, "town.finished", t.info.Name, "all beads of town "+t.info.Name+" are ended")
	}
}

// notify records that people should be told, where the server has a way to.
func (t *Town) notify(now Time, kind, subject, text string) {
	if t.text("notify.url", nil, nil) == "" && t.text("notify.command", nil, nil) != "true" {
		return
	}
	t.info.NoticeSeq++
	n := &Notice{ID: t.info.NoticeSeq, Kind: kind, Subject: subject, Text: text, At: now}
	t.notices[n.ID] = n
	t.mark(kindNotice, strconv.FormatInt(n.ID, 10))
	t.mark(kindTown, t.info.ID)
}

// broken reports whether the breaker of a subject is open.
func (t *Town) broken(subject string, now Time) bool {
	br := t.breakers[subject]
	return br != nil && br.Until > now
}

// failed counts a failure of infrastructure: the pause doubles from
// infra.backoff_min to infra.backoff_max, with up to a quarter of jitter that is
// a function of town, subject and count. What fails while the breaker is open
// was begun before it opened and tells of the same trouble: eight runs that meet
// one outage count once.
func (t *Town) failed(now Time, subject, why string) {
	br := t.breakers[subject]
	if br == nil {
		br = &Breaker{Subject: subject, Since: now}
		t.breakers[subject] = br
	}
	if br.Until > now {
		br.Last = plain(why, 2000)
		t.mark(kindBreaker, subject)
		return
	}
	br.Fails++
	br.Limit = false
	br.Last = plain(why, 2000)
	br.Until = now.Add(t.backoff(br.Fails, subject))
	t.mark(kindBreaker, subject)
	t.log(now, "breaker.open", subject, "", br.Last, "fails", strconv.Itoa(br.Fails), "until", br.Until.String())
	if br.Fails >= noticeFails {
		t.escalate(now, CauseBreaker, subject, "failed "+strconv.Itoa(br.Fails)+" times in a row: "+clip(br.Last, 500))
	}
}

// noticeFails is after how many failures in a row people are told.
const noticeFails = 5

func (t *Town) backoff(n int, subject string) time.Duration {
	longest := t.duration("infra.backoff_max", nil, nil)
	d := t.duration("infra.backoff_min", nil, nil)
	for i := 1; i < n && d < longest; i++ {
		d *= 2
	}
	d = min(d, longest)
	return d + time.Duration(hash(t.info.ID, subject, strconv.Itoa(n))%1000)*d/4000
}

// hash is FNV-1a, for jitter and fingerprints.
func hash(parts ...string) uint64 {
	h := uint64(14695981039346656037)
	for _, p := range parts {
		for i := range len(p) {
			h = (h ^ uint64(p[i])) * 1099511628211
		}
		h = (h ^ 0xff) * 1099511628211
	}
	return h
}

// dropBreaker forgets the breaker of a subject that is gone or was reset.
func (t *Town) dropBreaker(now Time, subject, by, why string) {
	if t.breakers[subject] == nil {
		return
	}
	delete(t.breakers, subject)
	t.mark(kindBreaker, subject)
	t.settled(now, subject, by, why)
}

// proved resets the breaker of a subject that just worked.
func (t *Town) proved(now Time, subject string) {
	if br := t.breakers[subject]; br != nil {
		delete(t.breakers, subject)
		t.mark(kindBreaker, subject)
		t.log(now, "breaker.closed", subject, "", "it works again after "+strconv.Itoa(br.Fails)+" failures")
		t.settled(now, subject, "", "it works again")
	}
	if subject == "sandbox" && t.info.Sandbox.Wedges != 0 {
		t.info.Sandbox.Wedges, t.info.Sandbox.FreshDisk = 0, false
		t.mark(kindTown, t.info.ID)
	}
}
