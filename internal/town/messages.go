package town

import (
	"strconv"
	"time"

	"gastown/internal/errs"
)

// current refuses messages of a generation that is not the current one, or
// whose sandbox the town no longer counts on.
func (t *Town) current(gen int64) error {
	s := &t.info.Sandbox
	if gen != s.Generation || gen <= s.Floor || !s.State.Running() || s.State == SandboxWedged {
		return errs.New(errs.Gone, "generation %d of the sandbox of town %s is over: exit", gen, t.info.Name)
	}
	return nil
}

func (t *Town) hello(now Time, in Hello) error {
	if err := t.current(in.Generation); err != nil {
		return err
	}
	s := &t.info.Sandbox
	if s.State == SandboxStopping {
		return errs.New(errs.Gone, "the sandbox is being stopped: exit")
	}
	if in.Stream == "" || len(in.Stream) > 64 {
		return errs.New(errs.Invalid, "a stream id has 1 to 64 characters")
	}
	if s.Stream != in.Stream {
		s.Stream, s.Seq = in.Stream, 0
	}
	s.LastSeen, s.HelloBy, s.Extended = now, 0, 0
	first := s.HelloAt == 0
	if first {
		s.FreshDisk = s.Wedges >= 2 // it has one now; one that was wedged twice must prove itself
		s.HelloAt = now             // a runner that only says hello again gives its runs and gates no more time
	}
	t.mark(kindTown, t.info.ID)
	if s.State == SandboxStarting {
		t.setSandbox(now, SandboxAwake, "it said hello")
		t.log(now, "sandbox.awake", t.info.Name, "", "", "generation", strconv.FormatInt(s.Generation, 10))
		t.dropClaim("sandbox/start")
	}
	t.adoptRuns(now)
	if !first {
		return nil
	}
	for _, id := range t.gating() {
		b := t.beads[id]
		t.edit(b, now, func() { b.Merge.Deadline = now.Add(t.gatesLimit(t.rigs[b.Rig])) })
	}
	return nil
}

// reports takes the next messages of the current stream. Another number than
// the expected one is a Conflict; the sender reads Sandbox().Seq+1.
func (t *Town) reports(now Time, in Reports) error {
	if err := t.current(in.Generation); err != nil {
		return err
	}
	s := &t.info.Sandbox
	if s.Stream != in.Stream || s.State == SandboxStarting {
		return errs.New(errs.Conflict, "say hello first: stream %q is unknown", clip(in.Stream, 64))
	}
	if in.From != s.Seq+1 {
		return errs.New(errs.Conflict, "report %d is expected next, not %d", s.Seq+1, in.From)
	}
	s.Seq += int64(len(in.Items))
	s.LastSeen = now
	s.Inspected, s.Extended = 0, 0
	t.mark(kindTown, t.info.ID)
	for i, p := range in.Items {
		t.report(now, in, in.From+int64(i), p)
	}
	return nil
}

func (t *Town) report(now Time, in Reports, n int64, p Report) {
	switch p.Kind {
	case ReportHeartbeat:
		if len(p.Runs) > maxLives {
			t.poison(now, in.Generation, n, "a heartbeat that speaks of "+strconv.Itoa(len(p.Runs))+" runs")
			return
		}
		for _, l := range p.Runs {
			if r := t.runs[l.Run]; r != nil && r.Epoch == l.Epoch && r.Generation == in.Generation {
				t.renewLease(r, now)
				idle := min(max(l.IdleMS, 0), int64(7*day/time.Millisecond))
				idle = r.waitedFor(now, idle)
				r.IdleMS = idle
				r.LifeAt = max(r.LifeAt, now-Time(idle))
			}
		}
		return
	case ReportDrained:
		if t.info.Sandbox.State == SandboxDraining {
			t.info.Sandbox.Drained = true
		}
		return
	case ReportStarted, ReportEnded, ReportCheckpoint, ReportUnsaved, ReportNudged:
	case ReportLost:
		t.poison(now, in.Generation, n, p.Reason)
		return
	default:
		t.poison(now, in.Generation, n, "a report of the unknown kind "+plain(string(p.Kind), 40))
		return
	}
	r := t.fencedRun(in, p)
	if r == nil {
		return
	}
	switch p.Kind {
	case ReportStarted:
		t.runStarted(r, now, p)
	case ReportEnded:
		t.runEnded(r, now, p)
	case ReportCheckpoint:
		t.checkpointed(r, now, p)
	case ReportUnsaved:
		if r.Verdict == "" {
			t.saveFailed(r, now, p.Reason)
		}
	case ReportNudged:
		t.nudged(r, now, p.Nudge)
	}
}

// exchange gives a runner whose token expired a new one. The throttle is the
// stored time of the last renewal: within it the same token is the answer.
func (t *Town) exchange(now Time, in Exchange) error {
	if err := t.current(in.Generation); err != nil {
		return err
	}
	s := &t.info.Sandbox
	if now.Sub(s.TokenAt) >= t.duration("token.refresh_interval", nil, nil) || s.TokenAt > now {
		t.renewed(now, now)
	}
	return nil
}

func (t *Town) renewed(now, at Time) {
	s := &t.info.Sandbox
	s.TokenAt, s.RenewAsked = at, false
	s.Renewals++
	t.mark(kindTown, t.info.ID)
	t.log(now, "token.renewed", t.info.Name, "", "")
}

// listenAgain is how long silence is forgiven after nobody listened, and how
// often at most in a row.
const (
	listenAgain    = 45 * time.Second
	maxForgiveness = 5
)

// unheard prolongs leases that may only have lapsed because nobody listened.
func (t *Town) unheard(now Time) {
	again := now.Add(listenAgain)
	s := &t.info.Sandbox
	lease := t.duration("lease", nil, nil)
	if gap := now.Sub(s.LastSeen); s.State == SandboxAwake && gap > lease {
		t.notCounted(now, gap)
	}
	if s.Extended < maxForgiveness {
		switch s.State {
		case SandboxStarting:
			if s.HelloBy < again {
				s.HelloBy = again
				s.Extended++
				t.mark(kindTown, t.info.ID)
			}
		case SandboxAwake, SandboxDraining:
			if s.LastSeen.Add(lease) < again {
				s.LastSeen = again.Add(-lease)
				s.Extended++
				t.mark(kindTown, t.info.ID)
			}
		case SandboxAsleep, SandboxQueued, SandboxStopping, SandboxWedged:
		}
	}
	for _, r := range t.runs {
		if r.LeaseUntil != 0 && r.LeaseUntil < again && r.Extended < maxForgiveness {
			r.LeaseUntil = again
			r.Extended++
			t.mark(kindRun, r.ID)
		}
	}
}

// notCounted takes a time in which nobody listened off the time limits of runs
// and gates: a laptop that slept did no work. The runner, whose clock stands
// still meanwhile, keeps the limits itself.
func (t *Town) notCounted(now Time, gap time.Duration) {
	for _, r := range t.runs {
		if r.SpawnedAt != 0 {
			r.UnheardMS += gap.Milliseconds()
			t.mark(kindRun, r.ID)
		}
	}
	for _, id := range t.gating() {
		b := t.beads[id]
		t.edit(b, now, func() { b.Merge.Deadline = b.Merge.Deadline.Add(gap) })
	}
}
