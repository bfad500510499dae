package town

import "time"

// Columns are what the store knows of a town without reading its rows.
type Columns struct {
	DueAt      Time // the next deadline, 0 when there is none
	DesiredRev int64
	Sandbox    SandboxState
	Generation int64
	Wanted     bool  // a hold or a grace wants the sandbox, and nothing keeps it from starting
	Open       int64 // beads that are not terminal
	Mode       Mode
	Budget     bool          // work waits for a budget, or for what the server has for agents
	Idle       time.Duration // the town's own alarm.idle_interval; 0 = the server's
}

// Columns returns the town's columns as of now.
func (t *Town) Columns(at time.Time) Columns {
	c := Columns{DesiredRev: t.info.DesiredRev, Sandbox: t.info.Sandbox.State, Generation: t.info.Sandbox.Generation,
		Wanted: t.wanted(At(at)) && (t.info.Sandbox.State.Running() || !t.broken("sandbox", At(at))),
		Open:   int64(t.ix.open), Mode: t.info.Mode, Idle: t.ownIdle(), Budget: t.waitsBudget(At(at)) || t.waitsAgent()}
	if w, ok := t.NextWake(at); ok {
		c.DueAt = At(w)
	}
	return c
}

// ownIdle is alarm.idle_interval as the town itself sets it, 0 if it does not.
func (t *Town) ownIdle() time.Duration {
	if v := t.resolve("alarm.idle_interval", nil, nil); v.From == LevelTown {
		return t.duration("alarm.idle_interval", nil, nil)
	}
	return 0
}

// NextWake returns the exact earliest moment, after now, at which time alone
// changes something: a deadline, or an effect that is to be performed again.
// Effects that can be performed now are not its matter (see Effects).
func (t *Town) NextWake(at time.Time) (time.Time, bool) {
	now := At(at)
	var next Time
	see := func(d Time) {
		if d == 0 {
			return
		}
		d = max(d, now+1)
		if next == 0 || d < next {
			next = d
		}
	}
	future := func(d Time) {
		if d > now {
			see(d)
		}
	}
	t.sandboxWake(now, see, future)
	t.budgetWake(now, see)
	for _, b := range t.info.Blocks {
		see(b.Until)
	}
	for _, r := range t.runs {
		if r.SaveError != "" && !r.SaveTold {
			see(r.unsavedAt())
		}
		if t.silent(now) {
			continue
		}
		if r.State == RunDraining {
			see(r.StopAt.Add(stopPatience))
		} else if r.Generation != 0 {
			see(t.runLimit(r))
		}
		if t.talking() && r.LeaseUntil != 0 {
			see(r.LeaseUntil)
		}
	}
	if t.info.Mode == ModeImporting {
		if in := t.info.Import; in != nil {
			see(in.Until)
		}
	} else if len(t.ix.delayed) > 0 {
		see(t.ix.delayed[0].at)
	}
	for _, br := range t.breakers {
		future(br.Until)
	}
	for _, c := range t.claims {
		future(c.Until)
		see(c.Until.Add(maxClaim))
	}
	for _, n := range t.notices {
		if !n.Dead {
			future(n.Next)
		}
	}
	for id := range t.ix.waiting {
		b := t.beads[id]
		if b.Merge.Pushed {
			future(b.Merge.CheckedAt.Add(t.duration("branch.poll_interval", nil, t.rigs[b.Rig])))
		}
	}
	return next.Time(), next != 0
}

// talking reports whether the runner's words are expected.
func (t *Town) talking() bool {
	s := t.info.Sandbox.State
	return s == SandboxAwake || s == SandboxDraining
}

// sandboxWake sees the deadlines of rules, and of effects those to come: one
// that is due is performed now, or its claim or its breaker says when again.
func (t *Town) sandboxWake(now Time, see, future func(Time)) {
	s := &t.info.Sandbox
	switch s.State {
	case SandboxQueued:
		future(s.AdmitAt)
	case SandboxStarting:
		see(s.HelloBy)
		see(t.graceEnd())
	case SandboxDraining:
		see(s.DrainBy)
		t.silenceWake(now, future)
	case SandboxAwake:
		see(t.graceEnd())
		future(s.TokenAt.Add(t.duration("token.refresh_interval", nil, nil)))
		t.silenceWake(now, future)
		for _, id := range t.gating() {
			if !t.silent(now) {
				see(t.beads[id].Merge.Deadline)
			}
		}
	case SandboxAsleep, SandboxStopping, SandboxWedged:
	}
	if t.info.AwakeFor > now {
		see(t.info.AwakeFor)
	}
}

func (t *Town) silenceWake(now Time, future func(Time)) {
	s := &t.info.Sandbox
	if !t.silent(now) {
		future(s.LastSeen.Add(t.duration("lease", nil, nil)))
		return
	}
	if !t.broken("sandbox.inspect", now) {
		future(s.Inspected.Add(inspectAgain))
	}
}
