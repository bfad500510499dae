package town

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// setSandbox is the only function that changes the state of the sandbox.
func (t *Town) setSandbox(now Time, to SandboxState, why string) {
	s := &t.info.Sandbox
	if !s.State.legal(to) {
		panic("town: sandbox: illegal move " + string(s.State) + " to " + string(to))
	}
	from := s.State
	s.State, s.Since = to, now
	t.meter(now)
	if to == SandboxStopping || to == SandboxWedged {
		s.StopReason = why
	}
	if to == SandboxAsleep && from.Running() {
		s.Ref, s.HelloBy, s.DrainBy, s.Drained, s.LastHold, s.Leftover = "", 0, 0, false, 0, 0
		s.StopReason = why
		t.log(now, "sandbox.asleep", t.info.Name, "", why, "generation", strconv.FormatInt(s.Generation, 10),
			"awake_ms", strconv.FormatInt(s.AwakeMS-s.AwakeBase, 10), "ended", s.LastHoldWas)
		for _, subject := range []string{"sandbox.stop", "sandbox.inspect", "token"} {
			t.dropBreaker(now, subject, "", "the sandbox is gone")
		}
	}
	t.mark(kindTown, t.info.ID)
}

// Holds returns why the sandbox is wanted awake now. Holds are derived: each
// lives exactly as long as its cause.
func (t *Town) Holds(at time.Time) []Hold { return t.holds(At(at)) }

func (t *Town) holds(now Time) []Hold {
	var out []Hold
	for _, r := range t.sortedRuns() {
		limit := t.duration("run.time_limit", t.beads[r.Bead], t.rigs[r.Rig])
		out = append(out, Hold{Reason: HoldRun, Subject: r.ID, Bead: r.Bead, Since: r.CreatedAt,
			Until: cmp.Or(r.SpawnedAt, now).Add(limit + time.Duration(r.UnheardMS)*time.Millisecond + stopPatience)})
	}
	for _, id := range t.gating() {
		m := t.beads[id].Merge
		out = append(out, Hold{Reason: HoldGates, Subject: id, Bead: id, Since: m.Since, Until: m.Deadline})
	}
	if t.info.AwakeFor > now {
		out = append(out, Hold{Reason: HoldHuman, Subject: t.info.AwakeBy, Since: t.info.AwakeFrom, Until: t.info.AwakeFor})
	}
	return out
}

// gating returns the beads whose candidates are being checked, sorted.
func (t *Town) gating() []string {
	var out []string
	for _, id := range t.ix.merging {
		if t.beads[id].Merge.State == MergeGating {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Gating reports whether gates are wanted on a bead's candidate now.
func (t *Town) Gating(bead string) bool { return slices.Contains(t.gating(), bead) }

// graceEnd is when the grace after the last hold ends; 0 while a hold exists or
// nothing runs.
func (t *Town) graceEnd() Time {
	s := &t.info.Sandbox
	if s.LastHold == 0 {
		return 0
	}
	return s.LastHold.Add(t.duration("sandbox.grace", nil, nil))
}

// wanted reports whether the sandbox should be awake: a hold exists, or its
// grace runs, and no person suppressed it.
func (t *Town) wanted(now Time) bool {
	if t.info.Mode == ModeSleeping || t.info.Mode == ModeDeleting || t.info.Mode == ModeImporting {
		return false
	}
	s := &t.info.Sandbox
	if _, over := t.parked(now); over {
		return len(t.runs) > 0 || t.gatesUnderWay()
	}
	if t.hasHold(now) {
		return true
	}
	return (s.State == SandboxAwake || s.State == SandboxStarting) && now < t.graceEnd()
}

// gatesUnderWay reports whether gates are being checked in a sandbox that is up:
// they finish when a budget is used up, but nothing is started for them.
func (t *Town) gatesUnderWay() bool {
	s := t.info.Sandbox.State
	return len(t.gating()) > 0 && (s == SandboxStarting || s == SandboxAwake || s == SandboxDraining)
}

func (t *Town) hasHold(now Time) bool {
	return len(t.runs) > 0 || t.info.AwakeFor > now || len(t.gating()) > 0
}

// keepGrace notes when the last hold ended.
func (t *Town) keepGrace(now Time) {
	s := &t.info.Sandbox
	if !s.State.Running() {
		return
	}
	if hs := t.holds(now); len(hs) > 0 {
		if name := hs[len(hs)-1].Name(); s.LastHold != 0 || s.LastHoldWas != name {
			s.LastHold, s.LastHoldWas = 0, name
			t.mark(kindTown, t.info.ID)
		}
		return
	}
	if s.LastHold == 0 {
		s.LastHold = now
		if a := t.info.AwakeFor; a != 0 && a < now && a > s.StartedAt && strings.HasPrefix(s.LastHoldWas, string(HoldHuman)+" ") {
			s.LastHold = a // a human hold ends by itself, also when nobody looks
		}
		t.mark(kindTown, t.info.ID)
	}
}

// driveSandbox moves the sandbox by one step towards what is wanted, and
// reports whether it moved.
func (t *Town) driveSandbox(now Time) bool {
	s := &t.info.Sandbox
	want := t.wanted(now)
	switch s.State {
	case SandboxAsleep:
		if want && !t.broken("sandbox", now) {
			h := t.holds(now)[0]
			s.StartHold, s.StartReason = h.Name(), t.holdText(h)
			s.AdmitAt, s.Position = now, 0
			t.setSandbox(now, SandboxQueued, "")
			return true
		}
	case SandboxQueued:
		if !want {
			t.dropClaim("sandbox/admit")
			t.setSandbox(now, SandboxAsleep, "no longer wanted")
			return true
		}
	case SandboxStarting:
		switch {
		case !want:
			t.setSandbox(now, SandboxStopping, t.stopText(now))
			return true
		case now >= s.HelloBy:
			t.wedge(now, "it did not say hello in time")
			return true
		}
	case SandboxAwake:
		if !want {
			s.DrainBy, s.Drained = now.Add(t.duration("sandbox.drain_timeout", nil, nil)), false
			t.setSandbox(now, SandboxDraining, "")
			t.log(now, "sandbox.draining", t.info.Name, "", t.stopText(now))
			t.drainRuns(now)
			return true
		}
	case SandboxDraining:
		switch {
		case want && t.info.Mode == ModeActive && !t.hasStopping():
			t.setSandbox(now, SandboxAwake, "")
			t.adoptRuns(now)
			t.log(now, "sandbox.awake", t.info.Name, "", "work arrived while it was draining")
			return true
		case s.Drained || now >= s.DrainBy:
			t.dropRuns(now, OutcomeStopped, "", stopDrain)
			t.setSandbox(now, SandboxStopping, t.stopText(now))
			return true
		}
	case SandboxStopping, SandboxWedged:
		// Only the driver's word that it is gone ends these.
	}
	return false
}

// stopText says why the sandbox is not wanted.
func (t *Town) stopText(now Time) string {
	switch t.info.Mode {
	case ModeSleeping:
		return "put to sleep by " + t.info.ModeBy
	case ModeDeleting:
		return "the town is being deleted"
	case ModeActive, ModePaused, ModeImporting:
	}
	if b, over := t.parked(now); over {
		return t.budgetText(b, "")
	}
	return "nothing to do since " + t.info.Sandbox.LastHoldWas + " ended"
}

func (t *Town) hasStopping() bool {
	for _, r := range t.runs {
		if r.Stop == stopDrain {
			return true
		}
	}
	return false
}

func (t *Town) drainRuns(now Time) {
	for _, r := range t.sortedRuns() {
		if r.Verdict == "" {
			t.stopRun(r, now, stopDrain)
		}
	}
}

// dropRuns ends every run that the sandbox had.
func (t *Town) dropRuns(now Time, o Outcome, c Class, why string) {
	runs := t.sortedRuns()
	for _, r := range runs {
		if r.Generation == 0 && o == OutcomeStopped {
			continue // it was never given to this sandbox: it waits for the next one
		}
		class := c
		if b := t.beads[r.Bead]; b != nil && o == OutcomeLost && r.SpawnedAt != 0 && r.Verdict == "" {
			if b.suspect() && len(runs) == 1 {
				class = ClassWork // it ran alone: it is what ends its sandboxes
			}
			t.edit(b, now, func() { b.Losses++ })
		}
		t.endRun(r, now, o, class, why)
	}
}

// suspect reports whether a bead ran at two losses of a sandbox in a row: it
// then runs alone.
func (b *Bead) suspect() bool { return b.Losses >= 2 }

// adoptRuns gives runs that no sandbox has yet to the one that is awake.
func (t *Town) adoptRuns(now Time) {
	for _, r := range t.runs {
		if r.Generation == 0 {
			r.Generation = t.info.Sandbox.Generation
		}
		t.renewLease(r, now)
	}
}

// admitted takes the answer to a request for one of the server's slots.
func (t *Town) admitted(now Time, a Admitted) {
	s := &t.info.Sandbox
	if s.State != SandboxQueued {
		return
	}
	if !a.Granted {
		s.Position = a.Position
		s.AdmitAt = now.Add(admitAgain)
		t.mark(kindTown, t.info.ID)
		return
	}
	s.Generation++
	s.Starts++
	s.Position, s.AdmitAt, s.StopReason = 0, 0, ""
	s.StartedAt, s.TokenAt, s.AwakeBase = now, now, s.AwakeMS
	s.HelloBy = now.Add(t.duration("sandbox.hello_timeout", nil, nil))
	s.Stream, s.Seq, s.Unknown, s.LastSeen, s.HelloAt, s.Inspected = "", 0, false, 0, 0, 0
	s.LastHold, s.LastHoldWas, s.Extended, s.RenewAsked = 0, s.StartHold, 0, false
	t.setSandbox(now, SandboxStarting, "")
	for _, r := range t.runs {
		r.Generation = s.Generation
		t.mark(kindRun, r.ID)
	}
	t.log(now, "sandbox.starting", t.info.Name, "", s.StartReason, "hold", s.StartHold, "generation", strconv.FormatInt(s.Generation, 10))
}

// askAgain lets a town that waits for a place ask now. An answer that is still on
// its way was given before the place became free, so it no longer counts; a place
// that it grants is found by the new question.
func (t *Town) askAgain(now Time) {
	s := &t.info.Sandbox
	if s.State != SandboxQueued {
		return
	}
	t.dropClaim("sandbox/admit")
	s.AdmitAt = now
	t.mark(kindTown, t.info.ID)
}

// admitAgain is when a town asks for a slot again without being poked.
const admitAgain = 15 * time.Second

// wedge gives up on a sandbox that the driver says runs but that does not talk.
func (t *Town) wedge(now Time, why string) {
	s := &t.info.Sandbox
	s.Wedges++
	s.FreshDisk = s.FreshDisk || s.Wedges >= 2
	t.dropClaim("sandbox/start")
	t.setSandbox(now, SandboxWedged, why)
	t.log(now, "sandbox.wedged", t.info.Name, "", why)
	t.dropRuns(now, OutcomeLost, ClassInfra, "the sandbox is wedged: "+why)
	t.failed(now, "sandbox", why)
}

// sandboxGone records that no sandbox of the current generation exists.
func (t *Town) sandboxGone(now Time, why string) {
	s := &t.info.Sandbox
	t.dropClaim("sandbox/start")
	t.dropClaim("sandbox/stop")
	t.dropClaim("sandbox/inspect")
	switch s.State {
	case SandboxAsleep, SandboxQueued:
		return
	case SandboxStopping, SandboxWedged:
		t.setSandbox(now, SandboxAsleep, cmp.Or(s.StopReason, t.stopText(now)))
	case SandboxDraining:
		if s.Drained {
			t.dropRuns(now, OutcomeStopped, "", stopDrain)
			t.setSandbox(now, SandboxAsleep, t.stopText(now))
			break
		}
		t.sandboxLost(now, why)
	case SandboxStarting, SandboxAwake:
		t.sandboxLost(now, why)
	}
	for _, r := range t.runs {
		r.Generation, r.LeaseUntil = 0, 0
		t.mark(kindRun, r.ID)
	}
}

func (t *Town) sandboxLost(now Time, why string) {
	t.log(now, "sandbox.lost", t.info.Name, "", why)
	t.dropRuns(now, OutcomeLost, ClassInfra, "the sandbox went away: "+why)
	t.failed(now, "sandbox", why)
	t.setSandbox(now, SandboxAsleep, "it went away: "+why)
}

func (t *Town) sandboxExited(now Time, in SandboxExited) {
	if in.Generation == t.info.Sandbox.Generation {
		t.sandboxGone(now, cmp.Or(plain(in.Reason, 500), "it exited"))
	}
}

// silent reports whether the sandbox has been silent for longer than its lease.
func (t *Town) silent(now Time) bool {
	s := &t.info.Sandbox
	return (s.State == SandboxAwake || s.State == SandboxDraining) && now >= s.LastSeen.Add(t.duration("lease", nil, nil))
}

// inspected takes the driver's word on a silent sandbox.
func (t *Town) inspected(now Time, i Inspected) {
	s := &t.info.Sandbox
	s.Inspected = now
	t.mark(kindTown, t.info.ID)
	switch {
	case i.State != "gone" && i.State != "running":
		t.failed(now, "sandbox.inspect", "the driver can't say whether it runs: "+cmp.Or(i.Reason, i.State))
	case i.State == "gone":
		t.sandboxGone(now, cmp.Or(plain(i.Reason, 500), "it is gone"))
	case i.State == "running" && t.silent(now):
		t.wedge(now, "it was silent for "+now.Sub(s.LastSeen).Round(time.Second).String()+" while it runs")
	}
}
