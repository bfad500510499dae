package town

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// world is a town with everything around it: which sandbox really runs, what
// the remote's target contains, and which effects are under way.
type world struct {
	scope  *scope
	town   *Town
	now    time.Time
	alive  int64             // generation of the sandbox that runs, 0 when none does
	over   int64             // the latest generation of which the driver said that it is gone
	tip    int               // of the target upstream
	landed []onTarget        // candidates that the target contains, oldest first
	flight map[string]Effect // claimed by the living process, not yet answered
	boot   int
	left   int // deviations that may still happen
}

// onTarget is a candidate on the target, and the commit of a bead in it.
type onTarget struct{ bead, candidate, commit string }

// move is one thing that may happen next.
type move struct {
	name   string
	costs  bool // a deviation
	fault  bool // of infrastructure: no bead may pay for it
	person bool
	do     func(*world)
}

func newWorld(s scope) *world {
	w := &world{scope: &s, now: epoch0, flight: map[string]Effect{}, boot: 1, left: s.deviations}
	w.town = New("tn1", "acme", "", At(w.now))
	w.must(SetTown{By: "ann", Set: townOnly(modelSettings)})
	rig := Rig{Name: "web", Prefix: "web", URL: "/srv/web.git", Target: "main", Tip: commitName(0), Settings: Settings{}}
	if s.rig != nil {
		s.rig(&rig)
	}
	w.must(AddRig{By: "ann", Rig: rig})
	for _, b := range s.beads {
		w.must(b)
		if s.tired {
			b := w.town.beads[b.ID]
			b.Charged, b.Conflicts, b.Losses = 1, 1, 1
		}
	}
	w.town.Changes()
	w.town.Entries()
	w.claim()
	return w
}

func townOnly(s Settings) Settings { return maps.Clone(s) }

func (w *world) must(in Input) {
	if err := w.town.Handle(w.now, in); err != nil {
		fail("%s: %v", InputName(in), err)
	}
}

// in gives the town an input. A refusal must change nothing.
func (w *world) in(in Input) error {
	dirty := len(w.town.dirty)
	err := w.town.Handle(w.now, in)
	if err != nil && (len(w.town.dirty) != dirty || len(w.town.entries) > 0 && dirty == 0) {
		fail("%s was refused (%v) and changed %v", InputName(in), err, w.town.dirty)
	}
	return err
}

// claim is the end of each step: the commit claims all that can be performed.
func (w *world) claim() {
	for _, e := range w.town.Claim(w.now, fmt.Sprintf("boot%d", w.boot)) {
		if a, ok := e.Action.(StartSandbox); ok && w.over < a.Generation-1 {
			fail("generation %d is to be started and nobody said that %d is gone", a.Generation, a.Generation-1)
		}
		w.flight[e.Key] = e
	}
}

// clone copies a world. Rows of a town are copied one by one, the index is
// made anew.
func (w *world) clone() *world {
	c := *w
	c.flight = maps.Clone(w.flight)
	c.landed = slices.Clone(w.landed)
	c.town = cloneTown(w.town)
	return &c
}

func cloneTown(t *Town) *Town {
	if len(t.bad) > 0 || len(t.odd) > 0 {
		fail("rows of the town's own making are odd: %v %v", t.bad, t.odd)
	}
	c := empty()
	c.info, c.server = t.info, t.server
	copyRows(c.rigs, t.rigs, func(*Rig) {})
	copyRows(c.beads, t.beads, func(b *Bead) {
		if b.Merge != nil {
			m := *b.Merge
			b.Merge = &m
		}
	})
	copyRows(c.runs, t.runs, func(r *Run) { r.Nudges = slices.Clone(r.Nudges) })
	copyRows(c.agents, t.agents, func(*Agent) {})
	copyRows(c.claims, t.claims, func(*Claim) {})
	copyRows(c.breakers, t.breakers, func(*Breaker) {})
	copyRows(c.notices, t.notices, func(*Notice) {})
	copyRows(c.usage, t.usage, func(u *Usage) { u.Holds = maps.Clone(u.Holds) })
	copyRows(c.escalations, t.escalations, func(*Escalation) {})
	c.serverDay, c.delta, c.limits = t.serverDay, maps.Clone(t.delta), maps.Clone(t.limits)
	c.reindex()
	return c
}

func copyRows[K comparable, V any](to, from map[K]*V, more func(*V)) {
	for k, v := range from {
		c := *v
		more(&c)
		to[k] = &c
	}
}

func (w *world) gen() int64 { return w.town.info.Sandbox.Generation }

// talks reports whether the sandbox that the town counts on runs and has said hello.
func (w *world) talks() bool {
	s := &w.town.info.Sandbox
	return w.alive != 0 && w.alive == s.Generation && s.Stream != "" && (s.State == SandboxAwake || s.State == SandboxDraining || s.State == SandboxStopping)
}

// commitOf is the commit that an agent makes in a run.
func commitOf(r *Run) string {
	return fmt.Sprintf("%s%035x", strings.Repeat("abcde", 1), int(r.Bead[4])*1000+int(r.Epoch))
}

func candidateOf(bead string, n int) string {
	return fmt.Sprintf("%s%035x", "cafe0", int(bead[4])*1000+n)
}

func (w *world) report(items ...Report) {
	s := &w.town.info.Sandbox
	if err := w.in(Reports{Generation: s.Generation, Stream: s.Stream, From: s.Seq + 1, Items: items}); err != nil {
		fail("a report of the living sandbox is refused: %v", err)
	}
}

// heartbeat speaks of all runs, idle for so long.
func (w *world) heartbeat(idle time.Duration) {
	var lives []RunLife
	for _, r := range w.town.sortedRuns() {
		if r.Generation == w.alive {
			lives = append(lives, RunLife{Run: r.ID, Epoch: r.Epoch, IdleMS: ms(idle)})
		}
	}
	w.report(Report{Kind: ReportHeartbeat, Runs: lives})
}

// wait lets time go by until it acts; a runner that talks sends its heartbeats.
func (w *world) wait(talk bool, more time.Duration) {
	next, ok := w.town.NextWake(w.now)
	if !ok {
		fail("nothing is ever going to happen")
	}
	for end := next.Add(more); w.now.Before(end); {
		w.now = w.now.Add(min(30*time.Second, end.Sub(w.now)))
		if talk && w.talks() {
			w.heartbeat(0)
		}
		if err := w.in(Tick{}); err != nil {
			fail("tick: %v", err)
		}
		w.claim()
	}
}

// crash is the death of the process: what was not stored is gone, and the next
// one voids the claims of the dead.
func (w *world) crash() {
	t, err := Decode("tn1", w.town.Rows(), nil)
	if err != nil {
		fail("after a crash: %v", err)
	}
	w.town = t
	w.flight = map[string]Effect{}
	w.boot++
	t.VoidClaims(fmt.Sprintf("boot%d", w.boot))
	if len(t.claims) > 0 {
		fail("claims of the dead process are left: %v", t.Claims())
	}
	if err := w.in(Unheard{}); err != nil {
		fail("unheard: %v", err)
	}
}

// answer gives the town the outcome of an effect that is under way.
func (w *world) answer(key string, result any, why string) {
	e := w.flight[key]
	delete(w.flight, key)
	if no, ok := result.(refusal); ok {
		result, why = nil, string(no)
	}
	switch a := e.Action.(type) {
	case StopSandbox:
		if why == "" {
			w.over = max(w.over, a.Generation)
		}
	case InspectSandbox:
		if i, ok := result.(Inspected); ok && i.State == "gone" {
			w.over = max(w.over, a.Generation)
		}
	}
	if err := w.in(EffectDone{Key: key, ID: e.ID, Result: result, Err: why}); err != nil {
		fail("outcome of %s: %v", key, err)
	}
}

// refusal is what a performer says when it failed.
type refusal string

// perform does an effect in the world and returns what the performer would say.
func (w *world) perform(e Effect) any {
	switch a := e.Action.(type) {
	case Admit:
		return Admitted{Granted: true}
	case StartSandbox:
		if w.alive != 0 && w.alive != a.Generation {
			return refusal("an older generation runs") // the driver refuses
		}
		w.alive = a.Generation
		return Started{Ref: "ref"}
	case StopSandbox:
		if w.alive == a.Generation {
			w.alive = 0
		}
	case InspectSandbox:
		if w.alive == a.Generation {
			return Inspected{State: "running"}
		}
		return Inspected{State: "gone"}
	case FetchRig:
		return Fetched{Tip: commitName(w.tip), Writable: true}
	case BuildCandidate:
		if slices.ContainsFunc(w.landed, func(l onTarget) bool { return l.commit == a.Commit }) {
			return Candidate{AlreadyIn: true}
		}
		return Candidate{Commit: candidateOf(a.Bead, a.N)}
	case Land:
		return w.land(a)
	case CheckTarget:
		return Checked{In: slices.ContainsFunc(w.landed, func(l onTarget) bool { return l.commit == a.Commit }), Tip: commitName(w.tip)}
	}
	return nil
}

// land pushes a candidate. What the target contains already is not pushed
// again; no commit may reach it twice.
func (w *world) land(a Land) Landed {
	if slices.ContainsFunc(w.landed, func(l onTarget) bool { return l.candidate == a.Candidate }) {
		return Landed{Tip: commitName(w.tip)}
	}
	if a.Tip != commitName(w.tip) {
		return Landed{Lost: true, Tip: commitName(w.tip)}
	}
	w.push(a.Bead, a.Candidate)
	return Landed{Tip: commitName(w.tip)}
}

func (w *world) push(bead, candidate string) {
	b := w.town.beads[bead]
	for _, l := range w.landed {
		if l.commit == b.Commit {
			fail("bead %s is merged twice: %s and %s", bead, l.candidate, candidate)
		}
	}
	w.tip++
	w.landed = append(w.landed, onTarget{bead, candidate, b.Commit})
}

// moves are all things that may happen next, within the budget.
func (w *world) moves() []move {
	var out []move
	add := func(name string, do func(*world)) { out = append(out, move{name: name, do: do}) }
	fault := func(name string, do func(*world)) {
		if w.left > 0 {
			out = append(out, move{name: name, costs: true, fault: true, do: do})
		}
	}
	other := func(name string, do func(*world)) {
		if w.left > 0 {
			out = append(out, move{name: name, costs: true, do: do})
		}
	}
	w.effectMoves(add, fault, other)
	w.sandboxMoves(add, fault, other)
	w.runMoves(add, fault, other)
	w.mergeMoves(add, fault, other)
	if _, ok := w.town.NextWake(w.now); ok {
		if w.owed() {
			fault("time goes by and what is due does not come", func(w *world) { w.wait(true, 0) })
		} else {
			slow := add
			if len(w.town.runs) > 0 {
				slow = other
			}
			slow("time goes by until it acts", func(w *world) { w.wait(true, 0) })
		}
		fault("time goes by in silence", func(w *world) { w.wait(false, 0) })
		fault("time goes by in silence, longer than a lease", func(w *world) { w.wait(false, 91*time.Second) })
	}
	fault("the process dies", func(w *world) { w.crash() })
	if len(w.flight) > 0 {
		fault("the process performs its effects, then dies", func(w *world) {
			for _, key := range slices.Sorted(maps.Keys(w.flight)) {
				w.perform(w.flight[key])
			}
			w.crash()
		})
	}
	for _, b := range w.town.Beads() {
		if b.Staged && !b.Status.Terminal() {
			add("sling "+b.ID, func(w *world) { w.must(SlingBead{By: "ann", Bead: b.ID}) })
		}
	}
	if w.left > 0 {
		w.peopleMoves(func(name string, in Input) {
			out = append(out, move{name: "a person: " + name, costs: true, person: true, do: func(w *world) {
				if err := w.in(in); err != nil && !conflict(err) && !isNotFound(err) {
					fail("%s: %v", name, err)
				}
			}})
		})
	}
	return out
}

// owed reports whether a world that behaves has something to do before time goes
// by: only agents and other people take their time.
func (w *world) owed() bool {
	if len(w.flight) > 0 || w.alive != 0 && (w.town.info.Sandbox.State != SandboxAwake || len(w.town.gating()) > 0) {
		return true
	}
	return slices.ContainsFunc(w.town.Runs(), func(r Run) bool { return r.Generation == w.alive && w.alive != 0 && r.State != RunRunning })
}

func isNotFound(err error) bool { return strings.Contains(err.Error(), "there is nothing called") }

type adds func(name string, do func(*world))

// effectMoves are the ends of effects under way.
func (w *world) effectMoves(add, fault, other adds) {
	for _, key := range slices.Sorted(maps.Keys(w.flight)) {
		e := w.flight[key]
		add(key+" succeeds", func(w *world) { w.answer(key, w.perform(e), "") })
		fault(key+" fails", func(w *world) { w.answer(key, nil, "it broke") })
		fault(key+" is performed and never answered", func(w *world) {
			w.perform(e)
			delete(w.flight, key)
		})
		fault(key+" is never performed", func(w *world) { delete(w.flight, key) })
		switch a := e.Action.(type) {
		case Admit:
			other(key+" is refused", func(w *world) { w.answer(key, Admitted{Position: 1}, "") })
		case StartSandbox:
			fault(key+" is performed and reported as failed", func(w *world) {
				w.perform(e)
				w.answer(key, nil, "time-out")
			})
		case InspectSandbox:
			fault(key+" says nobody knows", func(w *world) { w.answer(key, Inspected{State: "unknown"}, "") })
		case BuildCandidate:
			other(key+" conflicts", func(w *world) {
				if c, ok := w.perform(e).(Candidate); ok && !c.AlreadyIn {
					w.answer(key, Candidate{Conflict: true, Detail: "main.go"}, "")
				}
			})
		case Land:
			fault(key+" loses its lease to somebody else", func(w *world) {
				w.tip++
				w.answer(key, w.perform(e), "")
			})
			fault(key+" is performed and reported as failed", func(w *world) {
				w.perform(e)
				w.answer(key, nil, "time-out")
			})
		case CheckTarget:
			add("others merge "+a.Bead, func(w *world) {
				if !slices.ContainsFunc(w.landed, func(l onTarget) bool { return l.commit == a.Commit }) {
					w.push(a.Bead, candidateOf(a.Bead, 99))
				}
				w.answer(key, w.perform(e), "")
			})
		}
	}
}

// sandboxMoves are the life of the sandbox as a whole.
func (w *world) sandboxMoves(add, fault, other adds) {
	s := &w.town.info.Sandbox
	if w.alive == 0 {
		return
	}
	fault("the sandbox dies", func(w *world) {
		gen := w.alive
		w.alive = 0
		w.exited(gen)
	})
	fault("the sandbox dies without a word", func(w *world) { w.alive = 0 })
	if w.alive != s.Generation || !s.State.Running() {
		add("an old generation hears that it is over, and exits", func(w *world) { w.leave() })
		return
	}
	if s.State == SandboxStarting {
		add("hello", func(w *world) { w.hello("s1") })
		return
	}
	if !w.talks() {
		return
	}
	fault("the runner starts again and says hello", func(w *world) { w.hello(map[string]string{"s1": "s2", "s2": "s1"}[s.Stream]) })
	drained := other
	if s.State == SandboxDraining && len(w.town.runs) == 0 {
		drained = add
	}
	drained("drained", func(w *world) { w.report(Report{Kind: ReportDrained}) })
}

// leave is a sandbox that nobody counts on: it says hello, is told so and exits.
func (w *world) leave() {
	gen := w.alive
	if err := w.in(Hello{Generation: gen, Stream: "old"}); err == nil || !gone(err) {
		fail("generation %d is over and its hello got %v", gen, err)
	}
	w.alive = 0
	w.exited(gen)
}

func (w *world) hello(stream string) {
	if err := w.in(Hello{Generation: w.alive, Stream: stream}); err != nil && !gone(err) {
		fail("hello: %v", err)
	}
}

func (w *world) exited(gen int64) {
	w.over = max(w.over, gen)
	if err := w.in(SandboxExited{Generation: gen, Reason: "killed"}); err != nil {
		fail("the driver's word is refused: %v", err)
	}
}

// runMoves are what the runner may say of each run that it has.
func (w *world) runMoves(add, fault, other adds) {
	if !w.talks() {
		return
	}
	fault("a heartbeat forgets the runs", func(w *world) { w.report(Report{Kind: ReportHeartbeat}) })
	for _, r := range w.town.sortedRuns() {
		if r.Generation != w.alive {
			continue
		}
		id, epoch := r.ID, r.Epoch
		say := func(name string, add adds, p Report) {
			p.Run, p.Epoch = id, epoch
			add(id+" "+name, func(w *world) { w.report(p) })
		}
		say("started", add, Report{Kind: ReportStarted, PID: 7})
		say("ended without a verdict", other, Report{Kind: ReportEnded, Outcome: OutcomeExited, Class: ClassWork})
		asked := fault
		if r.State == RunDraining {
			asked = add
		}
		say("stopped", asked, Report{Kind: ReportEnded, Outcome: OutcomeStopped})
		say("could not be started", fault, Report{Kind: ReportEnded, Outcome: OutcomeFailed, Class: ClassInfra})
		say("was killed", fault, Report{Kind: ReportEnded, Outcome: OutcomeFailed, Class: ClassInfra, Subject: SubjectKilled})
		if b := w.town.beads[r.Bead]; b.Checkpoint == "" && r.State != RunStarting {
			say("has a checkpoint", other, Report{Kind: ReportCheckpoint, Commit: strings.Repeat("c", 40), Ref: WipRef(r.Bead, r.Epoch)})
		}
		if len(r.Nudges) > 0 {
			say("was nudged", add, Report{Kind: ReportNudged, Nudge: r.NudgeN})
		}
		if r.State == RunRunning {
			for _, idle := range []time.Duration{time.Minute, 2 * time.Minute} {
				other(fmt.Sprintf("%s is silent for %s", id, idle), func(w *world) {
					w.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: id, Epoch: epoch, IdleMS: ms(idle)}}})
				})
			}
		}
		for _, kind := range []VerdictKind{VerdictDone, VerdictNoChange, VerdictEscalate} {
			say := other
			if kind == VerdictDone {
				say = add
			}
			say(id+" says "+string(kind), func(w *world) { w.verdict(id, kind) })
		}
	}
}

// verdict is what the agent of a run says. It must be taken unless the run has
// ended its work.
func (w *world) verdict(id string, kind VerdictKind) {
	r := w.town.runs[id]
	working := r.State != RunDraining
	err := w.in(verdictOf(w.alive, r.Bead, r.Epoch, kind, commitOf(r)))
	if working && err != nil || err != nil && !conflict(err) {
		fail("the verdict of run %s: %v", id, err)
	}
}

func verdictOf(gen int64, bead string, epoch int64, kind VerdictKind, commit string) Verdict {
	return Verdict{Generation: gen, Run: runID(bead, epoch), Epoch: epoch, CallID: fmt.Sprintf("%s-%d", kind, epoch), Kind: kind, Text: "because",
		Evidence: Evidence{Commit: commit, Exists: true, Descends: true, Changed: true}}
}

// mergeMoves are the ends of gates.
func (w *world) mergeMoves(add, fault, other adds) {
	if !w.talks() {
		return
	}
	for _, id := range w.town.gating() {
		m := w.town.beads[id].Merge
		say := func(name string, add adds, in GatesDone) {
			in.Generation, in.Bead, in.N, in.Candidate = w.alive, id, m.N, m.Candidate
			add("gates of "+id+" are "+name, func(w *world) { w.must(in) })
		}
		say("green", add, GatesDone{Results: []GateRun{{Name: "test", Passed: true}}})
		say("red", other, GatesDone{Results: []GateRun{{Name: "test", ExitCode: 1}}})
		say("broken", fault, GatesDone{Infra: "no disk"})
	}
}

// peopleMoves are what people may do.
func (w *world) peopleMoves(add func(string, Input)) {
	for _, b := range w.town.Beads() {
		add("close "+b.ID, CloseBead{By: "ann", Bead: b.ID})
		add("cancel "+b.ID, CancelBead{By: "ann", Bead: b.ID})
		add("reopen "+b.ID, ReopenBead{By: "ann", Bead: b.ID})
		add("retry "+b.ID, Retry{By: "ann", ID: b.ID})
	}
	for _, br := range w.town.Breakers() {
		add("retry "+br.Subject, Retry{By: "ann", ID: br.Subject})
	}
	if w.town.info.Mode == ModeActive {
		add("sleep", Pause{By: "ann", Now: true})
		add("pause", Pause{By: "ann"})
		add("keep awake", Resume{By: "ann", For: 2 * time.Minute})
	}
}

// behave is the next move of a world in which nothing goes wrong and nobody
// interferes; false when nothing will happen any more.
func (w *world) behave() (move, bool) {
	do := func(name string, f func(*world)) (move, bool) { return move{name: "(well) " + name, do: f}, true }
	if keys := slices.Sorted(maps.Keys(w.flight)); len(keys) > 0 {
		e := w.flight[keys[0]]
		return do(keys[0]+" succeeds", func(w *world) {
			if c, ok := e.Action.(CheckTarget); ok && w.scopeBranch() && !slices.ContainsFunc(w.landed, func(l onTarget) bool { return l.commit == c.Commit }) {
				w.push(c.Bead, candidateOf(c.Bead, 99)) // others merge what waits
			}
			w.answer(keys[0], w.perform(e), "")
		})
	}
	s := &w.town.info.Sandbox
	if w.alive != 0 && (w.alive != s.Generation || !s.State.Running()) {
		return do("an old generation leaves", func(w *world) { w.leave() })
	}
	if w.alive != 0 && s.State == SandboxStarting {
		return do("hello", func(w *world) { w.hello("s1") })
	}
	if w.talks() {
		for _, r := range w.town.sortedRuns() {
			id, epoch := r.ID, r.Epoch
			switch {
			case r.Generation != w.alive:
			case r.State == RunDraining:
				return do(id+" ends", func(w *world) { w.report(Report{Kind: ReportEnded, Run: id, Epoch: epoch, Outcome: OutcomeStopped}) })
			case r.State == RunStarting:
				return do(id+" starts", func(w *world) { w.report(Report{Kind: ReportStarted, Run: id, Epoch: epoch, PID: 7}) })
			default:
				return do(id+" is done", func(w *world) { w.verdict(id, VerdictDone) })
			}
		}
		if gates := w.town.gating(); len(gates) > 0 {
			m := w.town.beads[gates[0]].Merge
			return do("gates are green", func(w *world) {
				w.must(GatesDone{Generation: w.alive, Bead: gates[0], N: m.N, Candidate: m.Candidate, Results: []GateRun{{Name: "test", Passed: true}}})
			})
		}
		if s.State == SandboxDraining && !s.Drained {
			return do("drained", func(w *world) { w.report(Report{Kind: ReportDrained}) })
		}
	}
	if b := w.town.beads["web-aaaaa"]; b.Staged && !b.Status.Terminal() {
		return do("sling", func(w *world) { w.must(SlingBead{By: "ann", Bead: b.ID}) })
	}
	if _, ok := w.town.NextWake(w.now); !ok {
		return move{}, false
	}
	return do("time goes by", func(w *world) { w.wait(true, 0) })
}

func (w *world) scopeBranch() bool {
	return w.town.text("merge.mode", nil, w.town.rigs["web"]) == string(ModeBranch)
}

// describe says in one line how a world stands.
func (w *world) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sandbox %s (really %d), %d runs", w.town.info.Sandbox.State, w.alive, len(w.town.runs))
	for _, bead := range w.town.Beads() {
		why := w.town.why(&bead, At(w.now))
		fmt.Fprintf(&b, "; %s %s: %s", bead.ID, bead.Status, why.Text)
	}
	return b.String()
}

// catch is a testing.TB whose failures are violations.
type catch struct{ testing.TB }

func (catch) Helper()                           {}
func (catch) Fatalf(format string, args ...any) { fail(format, args...) }
func (catch) Fatal(args ...any)                 { panic(violation(fmt.Sprint(args...))) }
