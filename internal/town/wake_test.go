package town

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// rest is what a tick of a copy at a moment does: the rows it changes, and the
// effects that it leaves to be performed.
func (d *driver) rest(at time.Time) (rows []Row, effects []Effect) {
	d.t.Helper()
	c := d.reload()
	if err := c.Handle(at, Tick{}); err != nil {
		d.t.Fatal(err)
	}
	return c.Changes(), c.Effects(at)
}

// wantWake says that time alone acts after exactly this long.
func (d *driver) wantWake(in time.Duration) {
	d.t.Helper()
	w, ok := d.town.NextWake(d.now)
	if !ok || w.Sub(d.now) != in {
		d.t.Fatalf("it wakes in %s (%v), want %s: %s", w.Sub(d.now), ok, in, d.town.WhyTown(d.now).Text)
	}
	if rows, effects := d.rest(w.Add(-time.Millisecond)); len(rows)+len(effects) > 0 {
		d.t.Fatalf("something happens before: %v %v", rows, effects)
	}
	if rows, effects := d.rest(w); len(rows)+len(effects) == 0 {
		d.t.Fatal("nothing happens then")
	}
}

// slowTown has a rig and settings under which nothing happens soon by itself.
func slowTown(t *testing.T, more ...string) *driver {
	t.Helper()
	d := newDriver(t)
	s := Settings{"lease": "1h", "sandbox.hello_timeout": "1h", "sandbox.drain_timeout": "1h", "token.refresh_interval": "7h"}
	for i := 0; i < len(more); i += 2 {
		s[more[i]] = more[i+1]
	}
	d.set(s)
	d.rig()
	return d
}

func TestNextWakeIsTheExactMoment(t *testing.T) {
	t.Run("never for a town at rest", func(t *testing.T) {
		d := slowTown(t)
		if w, ok := d.town.NextWake(d.now); ok {
			t.Fatalf("wakes at %s", w)
		}
	})
	t.Run("the end of the grace", func(t *testing.T) {
		d := slowTown(t, "sandbox.grace", "3m")
		d.bead("web-aaaaa")
		d.hello()
		d.spawn("web-aaaaa")
		r := d.run("web-aaaaa")
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		d.wantWake(3 * time.Minute)
	})
	t.Run("the end of the grace of one that is starting", func(t *testing.T) {
		d := slowTown(t)
		d.bead("web-aaaaa")
		d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
		d.wantWake(stopPatience) // its run may have been spawned
		d.later(stopPatience)
		d.do(Tick{})
		d.wantSandbox(SandboxStarting)
		d.wantWake(2 * time.Minute)
	})
	t.Run("the end of waiting for hello", func(t *testing.T) {
		d := slowTown(t, "sandbox.hello_timeout", "50s")
		d.bead("web-aaaaa")
		d.wantWake(50 * time.Second)
	})
	t.Run("the end of a breaker", func(t *testing.T) {
		d := slowTown(t)
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.run("web-aaaaa"), OutcomeFailed, ClassInfra, "not installed")
		d.wantWake(d.town.breakers["agent/scripted"].Until.Time().Sub(d.now))
	})
	t.Run("the end of a claim", func(t *testing.T) {
		d := slowTown(t)
		d.perform = false
		d.bead("web-aaaaa")
		d.town.Claim(d.now, "boot")
		d.save()
		d.wantWake(timeoutQuick)
	})
	t.Run("asking for a place again", func(t *testing.T) {
		d := slowTown(t)
		d.perform = false
		d.bead("web-aaaaa")
		e := d.town.Claim(d.now, "boot")[0]
		d.save()
		d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Admitted{Position: 2}})
		d.wantWake(admitAgain)
	})
}

func TestNextWakeOfRunsIsTheExactMoment(t *testing.T) {
	t.Run("the silence of a sandbox", func(t *testing.T) {
		d := slowTown(t, "lease", "70s")
		d.do(Resume{By: "ann", For: time.Hour})
		d.hello()
		d.wantWake(70 * time.Second)
	})
	t.Run("the next look at a silent sandbox", func(t *testing.T) {
		d := slowTown(t, "lease", "70s")
		d.do(Resume{By: "ann", For: time.Hour})
		d.bead("web-aaaaa")
		d.hello()
		d.perform = false
		d.later(70 * time.Second)
		d.do(Tick{})
		e := d.town.Claim(d.now, "boot")[0]
		d.save()
		d.wantWake(timeoutQuick) // while somebody looks, there is nothing else to do
		d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Inspected{State: "unknown"}})
		d.wantWake(d.town.breakers["sandbox.inspect"].Until.Time().Sub(d.now))
	})
	t.Run("the lease of a run that is not spoken of", func(t *testing.T) {
		d := slowTown(t, "lease", "70s")
		d.bead("web-aaaaa")
		d.hello()
		d.later(20 * time.Second)
		d.report(Report{Kind: ReportHeartbeat})
		d.wantWake(50 * time.Second)
	})
	t.Run("the time limit of a run", func(t *testing.T) {
		d := slowTown(t, "run.time_limit", "20m")
		d.bead("web-aaaaa")
		d.hello()
		d.later(time.Minute)
		d.spawn("web-aaaaa")
		d.wantWake(20 * time.Minute)
	})
	t.Run("the patience with a run that is ending", func(t *testing.T) {
		d := slowTown(t)
		d.bead("web-aaaaa")
		d.hello()
		d.spawn("web-aaaaa")
		d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
		d.wantWake(stopPatience)
	})
	t.Run("the deadline of gates", func(t *testing.T) {
		d := slowTown(t)
		d.do(SetRig{By: "ann", Rig: "web", Gates: &[]Gate{{Name: "test", Command: "true", Timeout: 10 * time.Minute}}})
		d.bead("web-aaaaa")
		d.hello()
		r := d.spawn("web-aaaaa")
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		d.wantWake(15 * time.Minute)
	})
	t.Run("the next look for a branch that waits", func(t *testing.T) {
		d := slowTown(t)
		d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"merge.mode": "branch", "branch.poll_interval": "90s"}})
		d.bead("web-aaaaa")
		d.hello()
		r := d.spawn("web-aaaaa")
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		d.wantWake(90 * time.Second)
	})
}

func TestNextWakeOfPausesIsTheExactMoment(t *testing.T) {
	t.Run("the renewal of a token", func(t *testing.T) {
		d := slowTown(t, "token.refresh_interval", "40m")
		d.bead("web-aaaaa")
		d.hello()
		d.spawn("web-aaaaa")
		d.wantWake(40 * time.Minute)
	})
	t.Run("the end of a drain", func(t *testing.T) {
		d := slowTown(t, "sandbox.drain_timeout", "25s")
		d.do(Resume{By: "ann", For: time.Hour})
		d.hello()
		d.do(Pause{By: "ann", Now: true})
		d.wantSandbox(SandboxDraining)
		d.wantWake(25 * time.Second)
	})
	t.Run("the end of a pause after a failure", func(t *testing.T) {
		d := slowTown(t)
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
		d.wantWake(30 * time.Second)
	})
	t.Run("the end of being kept awake", func(t *testing.T) {
		d := slowTown(t)
		d.do(Resume{By: "ann", For: 7 * time.Minute})
		d.hello()
		d.wantWake(7 * time.Minute)
	})
	t.Run("the next try of a notice", func(t *testing.T) {
		d := slowTown(t, "notify.url", "http://localhost/x")
		d.perform = false
		d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
		d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
		e := d.town.Claim(d.now, "boot")[0]
		d.save()
		d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "refused"})
		d.wantWake(d.town.notices[1].Next.Time().Sub(d.now))
	})
}

// TestTimeAloneActsExactlyAtNextWake drives random histories: before the next
// wake a tick changes nothing, at it something changes, begins or ends.
func TestTimeAloneActsExactlyAtNextWake(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDriver(t)
		d.perform = false
		h := history{rt: rt, d: d}
		d.do(AddRig{By: "ann", Rig: Rig{Name: "web", Prefix: "web", URL: "/x", Target: "main", Tip: commitName(0),
			Settings: Settings{"merge.mode": rapid.SampledFrom([]string{"direct", "branch"}).Draw(rt, "mode")}}})
		for range rapid.IntRange(1, 15).Draw(rt, "steps") {
			in, _ := h.input()
			if err := d.try(in); err != nil {
				continue
			}
			h.todo = append(h.todo, d.town.Claim(d.now, "boot")...)
			d.save()
			w, ok := d.town.NextWake(d.now)
			if !ok {
				w = d.now.Add(30 * day)
			}
			before := w.Add(-time.Millisecond)
			if rows, effects := d.rest(before); len(rows)+len(effects) > 0 {
				rt.Fatalf("after %T, %s before the wake: rows %s, effects %v", in, w.Sub(d.now), rows, effects)
			}
			if !ok {
				continue
			}
			if rows, effects := d.rest(w); len(rows)+len(effects) == 0 && !d.ends(At(w)) {
				rt.Fatalf("after %T the town wakes in %s for nothing: %s, sandbox %+v, claims %+v", in, w.Sub(d.now), d.town.WhyTown(d.now).Text, d.town.info.Sandbox, d.town.Claims())
			}
		}
	})
}

// ends reports whether a breaker, a claim, a pause or a person's hold ends at a moment:
// what waited for it may be gone.
func (d *driver) ends(at Time) bool {
	return slices.ContainsFunc(d.town.Breakers(), func(b Breaker) bool { return b.Until == at }) ||
		slices.ContainsFunc(d.town.Claims(), func(c Claim) bool { return c.Until == at }) ||
		slices.ContainsFunc(d.town.Notices(), func(n Notice) bool { return n.Next == at }) ||
		d.town.info.Mode == ModeDeleting || d.town.info.AwakeFor == at || d.underWay(at)
}

// underWay reports whether an effect is due at a moment that somebody performs
// already, since it was due before.
func (d *driver) underWay(at Time) bool {
	c := d.reload()
	c.VoidClaims("nobody")
	due := len(c.Effects(at.Add(-time.Millisecond).Time()))
	return len(c.Effects(at.Time())) > due
}

// document is the desired document without its number.
func (d *driver) document() string {
	doc := d.town.Desired()
	doc.Rev = 0
	body, err := json.Marshal(doc)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(body)
}

func TestTheRevisionRisesOnlyWithTheDocument(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDriver(t)
		d.perform = false
		h := history{rt: rt, d: d}
		d.do(AddRig{By: "ann", Rig: Rig{Name: "web", Prefix: "web", URL: "/x", Target: "main", Tip: commitName(0), Gates: []Gate{{Name: "test", Command: "true"}}}})
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			rev, doc := d.town.info.DesiredRev, d.document()
			in, _ := h.input()
			if err := d.try(in); err != nil {
				continue
			}
			if now := d.town.info.DesiredRev; now < rev || now > rev && d.document() == doc {
				rt.Fatalf("%T moved the revision from %d to %d and the document is the same", in, rev, now)
			}
		}
	})
}

func TestTheRevisionRisesWithWhatTheRunnerMustDo(t *testing.T) {
	d, r := atWork(t, Gate{Name: "test", Command: "true"})
	rises := func(name string, do func()) {
		t.Helper()
		rev := d.town.info.DesiredRev
		do()
		if d.town.info.DesiredRev <= rev {
			t.Errorf("%s: the runner is not told", name)
		}
	}
	rises("a nudge", func() { d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "hurry"}) })
	rises("another nudge", func() { d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "hurry"}) })
	rises("a new run", func() { d.bead("web-bbbbb") })
	rises("a run to be stopped", func() { d.do(CancelBead{By: "ann", Bead: "web-bbbbb"}) })
	rises("a verdict and gates", func() { d.done("web-aaaaa") })
	rises("a run that ended", func() { d.ended(r, OutcomeDone, "", "") })
	rises("gates that ended", func() { d.gates("web-aaaaa", true) })
	rises("a drain", func() { d.do(Pause{By: "ann", Now: true}) })
	rev := d.town.info.DesiredRev
	d.do(Tick{})
	d.report(Report{Kind: ReportHeartbeat})
	if d.town.info.DesiredRev != rev {
		t.Error("it rose for nothing")
	}
}
