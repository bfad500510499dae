package town

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

// keys are the keys of effects.
func keys(effects []Effect) []string {
	out := []string{}
	for _, e := range effects {
		out = append(out, e.Key)
	}
	return out
}

// claim claims all effects and returns the one with a key.
func (d *driver) claim(key string) Effect {
	d.t.Helper()
	effects := d.town.Claim(d.now, "boot")
	d.save()
	for _, e := range effects {
		if e.Key == key {
			return e
		}
	}
	d.t.Fatalf("no effect %s among %v", key, keys(effects))
	return Effect{}
}

func TestAClaimedEffectIsOthersOnlyAfterItsTime(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	d.bead("web-aaaaa")
	e := d.claim("sandbox/admit")
	if got := d.town.Claim(d.now, "other"); len(got) != 0 {
		t.Fatalf("claimed twice: %v", keys(got))
	}
	d.later(e.Timeout - time.Millisecond)
	if got := d.town.Effects(d.now); len(got) != 0 {
		t.Fatalf("offered to others: %v", keys(got))
	}
	d.later(time.Millisecond)
	again := d.claim("sandbox/admit")
	if c := d.town.claims["sandbox/admit"]; c.Attempt != 2 || again.ID <= e.ID {
		t.Fatalf("claim %+v after %d", c, e.ID)
	}
	d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Admitted{Granted: true}})
	d.wantSandbox(SandboxQueued) // the first one came too late
	if len(d.town.Claims()) != 1 {
		t.Fatal("a late outcome ended the claim of another")
	}
	d.do(EffectDone{Key: again.Key, ID: again.ID, Result: Admitted{Granted: true}})
	d.wantSandbox(SandboxStarting)
	d.do(EffectDone{Key: again.Key, ID: again.ID, Result: Admitted{Granted: true}})
	if d.gen() != 1 {
		t.Fatalf("a repeated outcome counted: generation %d", d.gen())
	}
}

func TestClaimsOfOtherBootsCanBeVoided(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	d.bead("web-aaaaa")
	d.claim("sandbox/admit")
	d.town.VoidClaims("boot")
	if len(d.town.Claims()) != 1 {
		t.Fatal("its own claim was voided")
	}
	d.town.VoidClaims("next")
	if len(d.town.Claims()) != 0 || len(d.town.Effects(d.now)) != 1 {
		t.Fatalf("claims %v, effects %v", d.town.Claims(), d.town.Effects(d.now))
	}
}

func TestATokenIsRenewedWhenItsIntervalIsOver(t *testing.T) {
	d, _ := atWork(t)
	d.set(Settings{"lease": "1h"})
	d.perform = false
	d.later(time.Hour - time.Millisecond)
	if got := d.town.Effects(d.now); len(got) != 0 {
		t.Fatalf("too early: %v", keys(got))
	}
	d.report(Report{Kind: ReportHeartbeat})
	d.later(time.Millisecond)
	e, issued := d.claim("token/renew"), d.town.info.Sandbox.TokenAt
	d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "the owner is suspended"})
	if s := d.town.info.Sandbox; s.TokenAt != issued {
		t.Fatalf("a failed renewal moved the time from %s to %s", issued, s.TokenAt)
	}
	if len(d.town.Effects(d.now)) != 0 || d.town.info.Sandbox.Renewals != 0 {
		t.Fatal("a failure has no pause, or counted")
	}
	d.later(40 * time.Second)
	e = d.claim("token/renew")
	d.do(EffectDone{Key: e.Key, ID: e.ID})
	if s := d.town.info.Sandbox; s.Renewals != 1 || s.TokenAt != At(d.now) || d.town.breakers["token"] != nil {
		t.Fatalf("%+v", s)
	}
}

func TestACleanupThatNeverAnswersHoldsAReopenedBeadNoLongerThanItsClaim(t *testing.T) {
	d, r := atWork(t)
	d.set(Settings{"lease": "1h"})
	d.perform = false
	d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "n", Kind: VerdictNoChange, Text: "fine as it is"})
	d.ended(r, OutcomeNoChange, "", "")
	e := d.claim("cleanup/web-aaaaa")
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	d.wantWhy("web-aaaaa", Waiting, waitCleanup)
	if w, ok := d.town.NextWake(d.now); !ok || w.Sub(d.now) > timeoutGit {
		t.Fatalf("its wait has no end: %s %v", w, ok)
	}
	d.later(timeoutGit)
	d.perform = true
	d.do(Tick{})
	d.wantBead("web-aaaaa", BeadInProgress)
	d.do(EffectDone{Key: e.Key, ID: e.ID})
	if b := d.wantBead("web-aaaaa", BeadInProgress); !b.Refs {
		t.Fatal("a late cleanup took the refs of a bead at work")
	}
}

func TestALateCleanupOfAReopenedBeadForgetsNoRefs(t *testing.T) {
	d, r := atWork(t)
	d.perform = false
	d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "n", Kind: VerdictNoChange, Text: "fine"})
	d.ended(r, OutcomeNoChange, "", "")
	e := d.claim("cleanup/web-aaaaa")
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	d.do(EffectDone{Key: e.Key, ID: e.ID})
	if b := d.wantBead("web-aaaaa", BeadInProgress); !b.Refs {
		t.Fatal("refs")
	}
}

func TestCleanupsComeAFewAtATime(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"polecats.per_rig": "20"}})
	d.hello2()
	d.perform = false
	for _, c := range "abcdefghij" {
		id := "web-aaaa" + string(c)
		d.bead(id)
		r := d.spawn(id)
		d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "n", Kind: VerdictNoChange, Text: "fine"})
		d.ended(r, OutcomeNoChange, "", "")
	}
	if got := d.town.Effects(d.now); len(got) != cleanupsAtOnce {
		t.Fatalf("%v", keys(got))
	}
	effects := d.town.Claim(d.now, "boot")
	d.save()
	if got := d.town.Effects(d.now); len(got) != 0 {
		t.Fatalf("more while those are under way: %v", keys(got))
	}
	for _, e := range effects {
		d.do(EffectDone{Key: e.Key, ID: e.ID})
	}
	if got := d.town.Effects(d.now); len(got) != 2 {
		t.Fatalf("the rest: %v", keys(got))
	}
	e := d.claim("cleanup/web-aaaai")
	d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "disk full"})
	if got := d.town.Effects(d.now); len(got) != 0 || !d.the("web-aaaai").Refs {
		t.Fatalf("after a failure: %v", keys(got))
	}
}

// hello2 wakes the sandbox for a person, without work.
func (d *driver) hello2() {
	d.t.Helper()
	d.do(Resume{By: "ann", For: 24 * time.Hour})
	d.hello()
}

func TestANoticeIsGivenUpAfterEightTriesAndAPersonMayRetryIt(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.set(Settings{"notify.url": "http://localhost/hook"})
	d.perform = false
	d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	fail := func() {
		t.Helper()
		e := d.claim("notice/1")
		if a, ok := e.Action.(SendNotice); !ok || a.URL != "http://localhost/hook" || a.Notice.Kind != "town.finished" {
			t.Fatalf("%+v", e.Action)
		}
		d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "500"})
	}
	var last time.Duration
	for i := 1; i <= 8; i++ {
		fail()
		n := d.town.Notices()[0]
		if n.Tries != i || n.Error != "500" || n.Dead != (i == 8) {
			t.Fatalf("after %d tries: %+v", i, n)
		}
		pause := n.Next.Time().Sub(d.now)
		if i > 1 && i < 6 && pause < last*3/2 {
			t.Fatalf("pause %d is %s after %s", i, pause, last)
		}
		last = pause
		d.later(pause - time.Millisecond)
		if got := d.town.Effects(d.now); len(got) != 0 {
			t.Fatalf("tried before its pause is over: %v", keys(got))
		}
		d.later(time.Millisecond)
	}
	d.later(day)
	if got := d.town.Effects(d.now); len(got) != 0 {
		t.Fatalf("a dead notice is tried: %v", keys(got))
	}
	if w, ok := d.town.NextWake(d.now); ok {
		t.Fatalf("a dead notice wakes at %s", w)
	}
	d.do(Retry{By: "ann", ID: "notice/1"})
	e := d.claim("notice/1")
	d.do(EffectDone{Key: e.Key, ID: e.ID})
	if len(d.town.Notices()) != 0 || d.count("notice.sent") != 1 || d.count("notice.dead") != 1 {
		t.Fatalf("%v", d.town.Notices())
	}
}

func TestPeopleAreToldOnceOfABreakerThatStaysOpen(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"notify.url": "http://localhost/hook"})
	for range 9 {
		d.failsAgain("agent/x")
	}
	n := d.town.Notices()
	if len(n) != 1 || n[0].Kind != "breaker.open" || n[0].Subject != "agent/x" {
		t.Fatalf("%+v", n)
	}
}

func TestRetry(t *testing.T) {
	t.Run("ends the pause of a breaker", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.run("web-aaaaa"), OutcomeFailed, ClassInfra, "not installed")
		d.wantWhy("web-aaaaa", Waiting, waitBreaker)
		d.do(Retry{By: "ann", ID: "agent/scripted"})
		d.wantBead("web-aaaaa", BeadInProgress)
		if len(d.town.Breakers()) != 0 {
			t.Fatal("its count was kept")
		}
	})
	t.Run("ends the pause of a bead and keeps its count", func(t *testing.T) {
		d, r := atWork(t)
		d.ended(r, OutcomeExited, ClassWork, "no verdict")
		d.do(Retry{By: "ann", ID: "web-aaaaa"})
		if b := d.wantBead("web-aaaaa", BeadInProgress); b.Charged != 1 {
			t.Fatalf("charged %d", b.Charged)
		}
	})
	t.Run("reopens a failed bead", func(t *testing.T) {
		d := newDriver(t)
		d.set(Settings{"work.max_attempts": "1"})
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
		d.wantBead("web-aaaaa", BeadFailed)
		d.do(Retry{By: "ann", ID: "web-aaaaa"})
		if b := d.wantBead("web-aaaaa", BeadInProgress); b.Charged != 0 || b.Attempt != 2 {
			t.Fatalf("%+v", b)
		}
	})
	t.Run("looks for a branch at once", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"merge.mode": "branch"}})
		d.bead("web-aaaaa")
		d.hello()
		r := d.spawn("web-aaaaa")
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		d.perform = false
		d.do(Retry{By: "ann", ID: "web-aaaaa"})
		if got := keys(d.town.Effects(d.now)); !slices.Contains(got, "merge/web-aaaaa/1/check") {
			t.Fatalf("%v", got)
		}
	})
	t.Run("ends the pause of a merge", func(t *testing.T) {
		d, r := atWork(t)
		d.perform = false
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		e := d.claim("merge/web-aaaaa/1/candidate")
		d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "disk full"})
		d.wantWhy("web-aaaaa", Waiting, waitBreaker)
		d.do(Retry{By: "ann", ID: "web-aaaaa"})
		d.wantWhy("web-aaaaa", Active, "merge")
	})
	t.Run("refuses what does not exist", func(t *testing.T) {
		d := newDriver(t)
		for _, id := range []string{"", "web-zzzzz", "notice/7", "notice/x", "agent/y"} {
			d.refused(Retry{By: "ann", ID: id}, func(err error) bool { return errs.Is(err, errs.NotFound) })
		}
	})
}

func TestARefusedOutcomeHasAPause(t *testing.T) {
	for _, c := range []struct{ key, breaker string }{{"rig/web/fetch", "rig/web"}, {"rig/web/remove", "hub/web"}, {"sandbox/stop", "sandbox.stop"}, {"town/remove", "town"}} {
		t.Run(c.key, func(t *testing.T) {
			d := newDriver(t)
			d.rig()
			d.perform = false
			switch c.key {
			case "rig/web/fetch":
				d.later(time.Hour)
				d.bead("web-aaaaa")
			case "rig/web/remove":
				d.do(DropRig{By: "ann", Rig: "web"})
			case "town/remove":
				d.do(DeleteTown{By: "ann"})
			case "sandbox/stop":
				d.perform = true
				d.hello2()
				d.perform = false
				d.do(Pause{By: "ann", Now: true})
				d.report(Report{Kind: ReportDrained})
				d.wantSandbox(SandboxStopping)
			}
			e := d.claim(c.key)
			d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "it broke"})
			if got := d.town.Effects(d.now); len(got) != 0 {
				t.Fatalf("repeated at once: %v", keys(got))
			}
			br := d.town.breakers[c.breaker]
			if br == nil || br.Last != "it broke" {
				t.Fatalf("breakers %+v", d.town.Breakers())
			}
			d.wantWake(br.Until.Time().Sub(d.now))
			d.now = br.Until.Time()
			e = d.claim(c.key)
			d.do(EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)})
			if c.key != "town/remove" && c.key != "rig/web/remove" && d.town.breakers[c.breaker] != nil {
				t.Fatal("success does not reset it")
			}
		})
	}
}

func TestRemovingARig(t *testing.T) {
	t.Run("with work is refused", func(t *testing.T) {
		d, _ := atWork(t)
		d.refused(DropRig{By: "ann", Rig: "web"}, func(err error) bool { return errs.Is(err, errs.Conflict) && strings.Contains(err.Error(), "1 bead") })
		d.wantBead("web-aaaaa", BeadInProgress)
	})
	t.Run("with force cancels the work and waits for its runs", func(t *testing.T) {
		d, r := atWork(t)
		d.do(DropRig{By: "ann", Rig: "web", Force: true})
		d.wantBead("web-aaaaa", BeadCancelled)
		if rig, ok := d.town.Rig("web"); !ok || rig.State != RigRemoving {
			t.Fatalf("%+v %v", rig, ok)
		}
		d.do(DropRig{By: "ann", Rig: "web"}) // asked again
		d.refused(CreateBead{By: "ann", ID: "web-bbbbb", Rig: "web", Title: "x"}, func(err error) bool { return errs.Is(err, errs.Conflict) })
		d.ended(r, OutcomeStopped, "", "")
		if _, ok := d.town.Rig("web"); ok || len(d.town.Beads())+len(d.town.Agents())+len(d.town.Runs()) != 0 {
			t.Fatalf("left: %v %v", d.town.Beads(), d.town.Agents())
		}
		for key := range d.rows {
			if !strings.HasPrefix(key, "town ") && !strings.HasPrefix(key, "usage ") {
				t.Errorf("row %s is left", key)
			}
		}
		d.rig() // its name and prefix are free again
		d.bead("web-aaaaa")
		d.wantBead("web-aaaaa", BeadInProgress)
	})
	t.Run("during a push is refused", func(t *testing.T) {
		d, r := atWork(t)
		d.perform = false
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		e := d.claim("merge/web-aaaaa/1/candidate")
		d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Candidate{Commit: commitName(8)}})
		d.refused(DropRig{By: "ann", Rig: "web", Force: true}, func(err error) bool { return errs.Is(err, errs.Conflict) })
	})
}
