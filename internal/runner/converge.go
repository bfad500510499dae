package runner

import (
	"context"
	"slices"
	"time"

	"gastown/internal/town"
)

// apply converges to a document: it starts, ends and tells; it never waits.
func (r *Runner) apply(doc town.Desired) {
	r.api.setToken(doc.Token)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return
	}
	if doc.Heartbeat > 0 {
		r.setHeartbeat(time.Duration(doc.Heartbeat) * time.Millisecond)
	}
	r.drain = doc.Drain
	if !doc.Drain {
		r.drained = false
	}
	r.applyRunsLocked(doc)
	r.applyGatesLocked(doc)
	r.tellDrainedLocked()
}

func (r *Runner) applyRunsLocked(doc town.Desired) {
	rigs := map[string]town.DesiredRig{}
	for _, g := range doc.Rigs {
		rigs[g.Name] = g
	}
	wanted := map[runKey]bool{}
	for _, d := range doc.Runs {
		key := runKey{d.ID, d.Epoch}
		wanted[key] = true
		n := r.runs[key]
		if n == nil {
			n = r.meetLocked(d, rigs[d.Rig], doc.Drain)
			r.runs[key] = n
		}
		if n.over() {
			continue
		}
		n.update(d)
		if doc.Drain {
			n.ask(stopped("the sandbox is being drained"))
		}
	}
	for key, n := range r.runs {
		switch {
		case wanted[key]:
		case n.over():
			delete(r.runs, key)
		default:
			n.ask(stopped("the run is no longer wanted"))
		}
	}
}

// meetLocked begins a run, or ends one that need not or can't begin.
func (r *Runner) meetLocked(d town.DesiredRun, rig town.DesiredRig, drain bool) *run {
	n := r.newRun(d, rig, nil)
	n.story("received", "")
	refuse := func(e ending) *run {
		n.finish(e)
		n.abandon()
		close(n.done)
		return n
	}
	err := checkRun(d)
	switch {
	case err != nil:
		r.log.Error("the document has a run that can't be used", "err", err)
		return refuse(ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassInfra,
			reason: clip(err.Error(), town.MaxReason), subject: "rig/" + clip(d.Rig, 60)})
	case d.Stop != "":
		return refuse(stopped(d.Stop))
	case d.Verdict != "":
		return refuse(ending{how: endNow, outcome: d.Verdict})
	case drain:
		return refuse(stopped("the sandbox is being drained"))
	}
	for _, o := range r.runs {
		if o.want.Rig == d.Rig && o.want.Bead == d.Bead && !o.over() {
			if n.prev == nil || o.key.epoch > n.prev.key.epoch {
				n.prev = o
			}
		}
	}
	r.goes(func() {
		n.main()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tellDrainedLocked()
	})
	return n
}

func (r *Runner) applyGatesLocked(doc town.Desired) {
	wanted := map[gateKey]bool{}
	for _, j := range doc.Gates {
		wanted[keyOf(j)] = !doc.Drain
	}
	for key, g := range r.gates {
		if !wanted[key] {
			g.cancel()
			r.leaving = append(r.leaving, g)
			delete(r.gates, key)
		}
	}
	r.leaving = slices.DeleteFunc(r.leaving, func(g *gateRun) bool {
		select {
		case <-g.done:
			return true
		default:
			return false
		}
	})
	for _, j := range doc.Gates {
		if key := keyOf(j); wanted[key] && r.gates[key] == nil {
			r.gates[key] = r.gateLocked(j)
		}
	}
}

// gateLocked begins a job, after those of the same bead: they share a worktree.
func (r *Runner) gateLocked(j town.GateJob) *gateRun {
	var before []*gateRun
	for _, g := range r.gates {
		if g.bead == j.Bead {
			before = append(before, g)
		}
	}
	for _, g := range r.leaving {
		if g.bead == j.Bead {
			before = append(before, g)
		}
	}
	ctx, cancel := context.WithCancel(r.base)
	n := &gateRun{bead: j.Bead, cancel: cancel, done: make(chan struct{})}
	r.goes(func() {
		for _, g := range before {
			<-g.done
		}
		if ctx.Err() == nil {
			r.runGates(ctx, j)
		}
		cancel()
		close(n.done)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tellDrainedLocked()
	})
	return n
}

// tellDrainedLocked reports once per drain that nothing runs any more.
func (r *Runner) tellDrainedLocked() {
	if !r.drain || r.drained || r.closing {
		return
	}
	for _, n := range r.runs {
		if !n.over() {
			return
		}
	}
	for _, g := range r.leaving {
		select {
		case <-g.done:
		default:
			return
		}
	}
	r.leaving = nil
	r.drained = true
	r.outbox.add(town.Report{Kind: town.ReportDrained})
}

// beat reports what lives here.
func (r *Runner) beat(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lives := []town.RunLife{}
	for key, n := range r.runs {
		if !n.over() {
			lives = append(lives, town.RunLife{Run: key.id, Epoch: key.epoch, IdleMS: n.idle(now).Milliseconds()})
		}
	}
	r.outbox.add(town.Report{Kind: town.ReportHeartbeat, Runs: lives})
}
