package sim

import (
	"cmp"
	"fmt"
	"time"

	"gastown/internal/town"
)

// agent is a run inside the sandbox.
type agent struct {
	d       town.DesiredRun
	said    bool // a verdict was accepted
	stopped bool
	stuck   time.Time // since when it shows no sign of life; zero: it does
	units   int       // how much work is in its worktree
	waits   time.Time // since when its provider refuses it; zero: it does not
	asked   int       // answers of its provider
}

// silentSince is since when it shows no sign of life; zero: it does.
func (a *agent) silentSince() time.Time {
	if a.stuck.IsZero() {
		return a.waits
	}
	return a.stuck
}

func (r *runner) converge(d town.DesiredRun) {
	a := r.runs[d.ID]
	switch {
	case r.over[d.ID]: // the report of its end is on its way
	case a == nil && d.Stop == "" && d.Verdict == "":
		a = &agent{d: d}
		r.runs[d.ID] = a
		r.later(200*time.Millisecond, 5*time.Second, func() { r.spawn(a) })
	case (d.Stop != "" || d.Verdict != "") && (a == nil || !a.stopped):
		if a == nil {
			a = &agent{d: d}
			r.runs[d.ID] = a
		}
		a.stopped = true
		if r.w.fault("agent-deaf", r.x.who) {
			return
		}
		o := town.OutcomeStopped
		if d.Verdict != "" {
			o = town.OutcomeDone
		}
		r.later(100*time.Millisecond, 10*time.Second, func() { r.ended(a, o, "", "") })
	}
}

func (r *runner) alive(a *agent) bool { return r.runs[a.d.ID] == a }

func (r *runner) ended(a *agent, o town.Outcome, c town.Class, subject string) {
	if !r.alive(a) {
		return
	}
	delete(r.runs, a.d.ID)
	r.over[a.d.ID] = true
	r.report(town.Report{Kind: town.ReportEnded, Run: a.d.ID, Epoch: a.d.Epoch, Outcome: o, Class: c, Reason: "it ended", Subject: subject}, nil)
	r.sync()
}

// spawn starts an agent where the last one got to, and decides what will become
// of it.
func (r *runner) spawn(a *agent) {
	w, who := r.w, r.x.who
	if !r.alive(a) || a.stopped {
		return
	}
	if w.fault("agent-not-started", who) {
		r.ended(a, town.OutcomeFailed, town.ClassInfra, "")
		return
	}
	a.units = w.hub.units[cmp.Or(a.d.Resume, a.d.Start, a.d.Base)]
	w.shadow.resumed(r.x.town, a)
	r.report(town.Report{Kind: town.ReportStarted, Run: a.d.ID, Epoch: a.d.Epoch, PID: 1}, nil)
	took := r.dice.between(time.Minute, 25*time.Minute)
	var end func()
	end = func() {
		switch {
		case !r.alive(a) || a.stopped || !a.stuck.IsZero():
		case !a.waits.IsZero():
			r.later(time.Minute, 2*time.Minute, end)
		case w.fault("agent-killed", who):
			r.ended(a, town.OutcomeFailed, town.ClassInfra, town.SubjectKilled)
		case r.dice.chance(0.08):
			r.ended(a, town.OutcomeExited, town.ClassWork, "")
		case r.dice.chance(0.05):
			r.verdict(a, town.VerdictNoChange)
		case w.fault("agent-escalates", who):
			r.verdict(a, town.VerdictEscalate)
		default:
			r.verdict(a, town.VerdictDone)
		}
	}
	if w.fault("agent-stuck", who) {
		w.at(w.extent(0, took), func() { a.stuck = w.now })
	}
	for at := 45 * time.Second; at < took; at += 5 * time.Minute {
		r.later(at, at, func() { r.checkpoint(a) })
	}
	r.later(took, took, end)
	r.later(time.Second, time.Minute, func() { r.request(a) })
}

// checkpoint does some work, and brings it to the hub.
func (r *runner) checkpoint(a *agent) {
	if !r.alive(a) || a.stopped || !a.stuck.IsZero() {
		return
	}
	a.units++
	ref := town.WipRef(a.d.Bead, a.d.Epoch)
	var rules town.GitRules
	err := fmt.Errorf("nobody answers")
	if !r.view(func(t *town.Town) { rules, err = t.GitRules(a.d.ID, a.d.Epoch, a.d.Rig) }) || err != nil || rules.Wip != ref || rules.Frozen != "" {
		return // the gateway refuses the push; the next checkpoint tries again
	}
	if !r.alive(a) {
		return
	}
	c := oid("wip", r.x.town, a.d.ID, fmt.Sprint(r.x.gen, a.units))
	units := a.units
	r.w.hub.units[c] = units
	r.w.hub.wip[wipKey(r.x.town, ref)] = c
	r.report(town.Report{Kind: town.ReportCheckpoint, Run: a.d.ID, Epoch: a.d.Epoch, Commit: c, Ref: ref},
		func() { r.w.shadow.saved(r.x.town, a.d, units) })
}

func (r *runner) verdict(a *agent, k town.VerdictKind) {
	in := town.Verdict{Generation: r.x.gen, Run: a.d.ID, Epoch: a.d.Epoch, CallID: "c1", Kind: k, Text: "it is done"}
	if k == town.VerdictDone {
		c := oid("work", r.x.town, a.d.ID)
		r.w.hub.units[c] = a.units
		in.Evidence = town.Evidence{Commit: c, Exists: true, Descends: true, Changed: true}
	}
	r.call(in, func(err error) {
		if err == nil {
			a.said = true
		}
		r.sync()
	})
}

// gate runs the gates of a candidate.
func (r *runner) gate(g town.GateJob) {
	key := fmt.Sprint(g.Candidate, g.N)
	if r.gates[key] {
		return
	}
	r.gates[key] = true
	known, ok := r.w.hub.cands[g.Candidate]
	t := r.w.shadow.towns[r.x.town]
	r.w.bounds.count(r.x.town, "gates")
	r.w.holds(invDecided, ok && known.bead == g.Bead, t, "gates of %s were asked for on %s, which is no candidate of it", g.Bead, g.Candidate)
	r.later(20*time.Second, 6*time.Minute, func() {
		in := town.GatesDone{Generation: r.x.gen, Bead: g.Bead, N: g.N, Candidate: g.Candidate}
		if r.w.fault("gates-broken", r.x.who) {
			in.Infra = "no space left"
		}
		for _, gate := range g.Gates {
			passed := !r.dice.chance(0.08)
			in.Results = append(in.Results, town.GateRun{Name: gate.Name, Passed: passed, Millis: 1000})
			if !passed {
				break
			}
		}
		r.call(in, func(error) { r.gates[key] = false; r.sync() })
	})
}
