package sim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/town"
)

// runner is what a runner would do inside a sandbox.
type runner struct {
	x       *box
	w       *world
	stream  string
	greeted bool
	frozen  bool // runs, and says nothing any more
	first   int64
	outbox  []town.Report // the first has number first
	sending bool
	runs    map[string]*agent
	gates   map[string]bool
	drained bool
	seen    int64 // the newest desired revision that it was told of
}

// agent is a run inside the sandbox.
type agent struct {
	d       town.DesiredRun
	said    bool // a verdict was accepted
	stopped bool
}

const heartbeat = 30 * time.Second

func newRunner(x *box) *runner {
	w := x.w
	r := &runner{x: x, w: w, stream: fmt.Sprintf("s%d", x.gen), first: 1, runs: map[string]*agent{}, gates: map[string]bool{}}
	r.frozen = w.fault("sandbox never speaks", 0.02)
	r.later(300*time.Millisecond, 3*time.Second, r.hello)
	r.later(0, 0, r.fate)
	return r
}

// later does f after a while, if the sandbox still lives and speaks.
func (r *runner) later(lo, hi time.Duration, f func()) {
	r.w.at(r.w.between(lo, hi), func() {
		if r.x.running && !r.frozen {
			f()
		}
	})
}

// fate lets some sandboxes die or freeze.
func (r *runner) fate() {
	switch {
	case r.w.fault("sandbox died", 0.02):
		r.x.end("killed by the host", r.w.chance(0.7))
	case r.w.fault("sandbox froze", 0.01):
		r.frozen = true
	default:
		r.later(10*time.Minute, 10*time.Minute, r.fate)
	}
}

// call hands an input to the server through a bad network. When no answer came,
// or one that means "try again", it does so; ok is called with the answer else.
func (r *runner) call(in town.Input, answer func(error)) {
	again := func() { r.later(time.Second, 10*time.Second, func() { r.call(in, answer) }) }
	if r.w.fault("message lost", 0.01) {
		again()
		return
	}
	late := 0.1
	if _, reports := in.(town.Reports); reports {
		late = 0.01
	}
	if r.w.fault("late copy of a message", late) {
		r.w.at(r.w.between(0, 3*time.Hour), func() {
			_, _ = r.say(in) // nobody waits for the answer to a late copy
		})
	}
	err, lost := r.say(in)
	if !lost && r.w.fault("message repeated", 0.01) {
		e2, l2 := r.say(in)
		if _, reports := in.(town.Reports); reports && err == nil && e2 == nil && !l2 {
			r.w.violate("town %s took the same reports twice", r.x.town)
		}
		lost = l2 // else the first answer holds
	}
	switch k := errs.KindOf(err); {
	case lost, k == errs.Unavailable, k == errs.Overloaded, r.w.fault("answer lost", 0.01):
		again()
	case k == errs.Internal:
		r.w.violate("%s was answered with: %v", town.InputName(in), err)
	default:
		answer(err)
	}
}

// say hands an input to the server. What comes from a generation that is not the
// current one must be refused, but for the repeat of a verdict that was accepted:
// it gets the same answer, and changes nothing.
func (r *runner) say(in town.Input) (error, bool) {
	v, verdict := in.(town.Verdict)
	bead, _, _ := strings.Cut(v.Run, ".")
	before := r.w.shadow.epochOf(r.x.town, bead)
	err, lost := r.w.do(r.x.town, in)
	if verdict && before == r.w.shadow.epochOf(r.x.town, bead) {
		return err, lost
	}
	if t := r.w.shadow.towns[r.x.town]; !lost && err == nil && t != nil && t.columns.Generation != r.x.gen {
		r.w.violate("%s of generation %d was taken by %s at generation %d", town.InputName(in), r.x.gen, t.name, t.columns.Generation)
	}
	return err, lost
}

func (r *runner) hello() {
	r.call(town.Hello{Generation: r.x.gen, Stream: r.stream}, func(err error) {
		if err != nil {
			r.exit()
			return
		}
		if !r.greeted {
			r.greeted = true
			r.beat()
		}
		r.sync()
	})
}

func (r *runner) exit() { r.x.end("told to exit", r.w.chance(0.7)) }

func (r *runner) beat() {
	var lives []town.RunLife
	for _, id := range sortedKeys(r.runs) {
		lives = append(lives, town.RunLife{Run: id, Epoch: r.runs[id].d.Epoch})
	}
	r.report(town.Report{Kind: town.ReportHeartbeat, Runs: lives})
	r.sync()
	r.later(heartbeat, heartbeat+time.Second, r.beat)
}

func (r *runner) report(p town.Report) {
	r.outbox = append(r.outbox, p)
	r.flush()
}

// flush sends what is in the outbox, one message after the other.
func (r *runner) flush() {
	if r.sending || len(r.outbox) == 0 || !r.greeted {
		return
	}
	r.sending = true
	n := len(r.outbox)
	in := town.Reports{Generation: r.x.gen, Stream: r.stream, From: r.first, Items: append([]town.Report(nil), r.outbox...)}
	r.call(in, func(err error) {
		r.sending = false
		switch {
		case err == nil:
			r.first += int64(n)
			r.outbox = r.outbox[n:]
		case errs.Is(err, errs.Conflict):
			r.realign()
			return
		default:
			r.exit()
			return
		}
		r.flush()
	})
}

// realign asks which report is expected.
func (r *runner) realign() {
	var want int64
	var stream string
	if !r.view(func(t *town.Town) { want, stream = t.Sandbox().Seq+1, t.Sandbox().Stream }) {
		r.later(time.Second, 5*time.Second, r.flush)
		return
	}
	if stream != r.stream {
		r.later(time.Second, 5*time.Second, r.hello)
		return
	}
	if want < r.first {
		r.w.violate("town %s forgot reports that it had taken: %d expected, %d sent", r.x.town, want, r.first)
		return
	}
	r.outbox = r.outbox[min(want-r.first, int64(len(r.outbox))):]
	r.first = want
	r.flush()
}

func (r *runner) view(f func(*town.Town)) bool {
	p := r.w.server()
	if p == nil {
		return false
	}
	err := p.hall.View(context.Background(), r.x.town, func(t *town.Town, _ time.Time) error { f(t); return nil })
	return err == nil && !p.dead
}

// wanted is told when the desired document has a new revision.
func (r *runner) wanted(rev int64) {
	if rev > r.seen && r.greeted {
		r.seen = rev
		r.later(5*time.Millisecond, 2*time.Second, r.sync)
	}
}

// sync converges to the desired document.
func (r *runner) sync() {
	var d town.Desired
	gone := false
	if !r.view(func(t *town.Town) {
		sb := t.Sandbox()
		gone = sb.Generation != r.x.gen || !sb.State.Running()
		d = t.Desired()
	}) {
		return // the next heartbeat asks again
	}
	if gone {
		r.exit()
		return
	}
	wanted := map[string]bool{}
	for _, run := range d.Runs {
		wanted[run.ID] = true
		r.converge(run)
	}
	for _, id := range sortedKeys(r.runs) {
		if !wanted[id] {
			delete(r.runs, id)
		}
	}
	for _, g := range d.Gates {
		r.gate(g)
	}
	switch {
	case !d.Drain:
		r.drained = false
	case len(r.runs) == 0 && !r.drained:
		r.drained = true
		r.report(town.Report{Kind: town.ReportDrained})
	}
}

func (r *runner) converge(d town.DesiredRun) {
	a := r.runs[d.ID]
	switch {
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
		if r.w.fault("agent does not stop", 0.02) {
			return
		}
		o := town.OutcomeStopped
		if d.Verdict != "" {
			o = town.OutcomeDone
		}
		r.later(100*time.Millisecond, 10*time.Second, func() { r.ended(a, o, "") })
	}
}

func (r *runner) alive(a *agent) bool { return r.runs[a.d.ID] == a }

func (r *runner) ended(a *agent, o town.Outcome, c town.Class) {
	if !r.alive(a) {
		return
	}
	delete(r.runs, a.d.ID)
	r.report(town.Report{Kind: town.ReportEnded, Run: a.d.ID, Epoch: a.d.Epoch, Outcome: o, Class: c, Reason: "it ended"})
	r.sync()
}

// spawn starts an agent and decides what will become of it.
func (r *runner) spawn(a *agent) {
	if !r.alive(a) || a.stopped {
		return
	}
	if r.w.fault("agent does not start", 0.02) {
		r.ended(a, town.OutcomeFailed, town.ClassInfra)
		return
	}
	r.report(town.Report{Kind: town.ReportStarted, Run: a.d.ID, Epoch: a.d.Epoch, PID: 1})
	took := r.w.between(time.Minute, 25*time.Minute)
	for at := 45 * time.Second; at < took; at += 5 * time.Minute {
		r.w.at(at, func() {
			if r.x.running && !r.frozen && r.alive(a) {
				r.report(town.Report{Kind: town.ReportCheckpoint, Run: a.d.ID, Epoch: a.d.Epoch,
					Commit: oid("wip", a.d.ID, at.String()), Ref: town.WipRef(a.d.Bead, a.d.Epoch)})
			}
		})
	}
	r.later(took, took, func() {
		switch {
		case !r.alive(a) || a.stopped:
		case r.w.chance(0.08):
			r.ended(a, town.OutcomeExited, town.ClassWork)
		case r.w.chance(0.05):
			r.verdict(a, town.VerdictNoChange)
		case r.w.fault("agent escalates", 0.02):
			r.verdict(a, town.VerdictEscalate)
		default:
			r.verdict(a, town.VerdictDone)
		}
	})
}

func (r *runner) verdict(a *agent, k town.VerdictKind) {
	in := town.Verdict{Generation: r.x.gen, Run: a.d.ID, Epoch: a.d.Epoch, CallID: "c1", Kind: k, Text: "it is done"}
	if k == town.VerdictDone {
		in.Evidence = town.Evidence{Commit: oid("work", a.d.ID), Exists: true, Descends: true, Changed: true}
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
	if r.gates[g.Candidate] {
		return
	}
	r.gates[g.Candidate] = true
	if known, ok := r.w.hub.cands[g.Candidate]; !ok || known.bead != g.Bead {
		r.w.violate("gates of %s were asked for on %s, which is no candidate of it", g.Bead, g.Candidate)
	}
	r.later(20*time.Second, 6*time.Minute, func() {
		in := town.GatesDone{Generation: r.x.gen, Bead: g.Bead, N: g.N, Candidate: g.Candidate}
		if r.w.fault("gates can't run", 0.01) {
			in.Infra = "no space left"
		}
		for _, gate := range g.Gates {
			passed := !r.w.chance(0.08)
			in.Results = append(in.Results, town.GateRun{Name: gate.Name, Passed: passed, Millis: 1000})
			if !passed {
				break
			}
		}
		r.call(in, func(error) { r.gates[g.Candidate] = false; r.sync() })
	})
}

func (w *world) rigID(townID string) hub.ID { return hub.ID{Town: townID, Rig: rigName} }
