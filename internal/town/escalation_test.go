package town

import (
	"fmt"
	"testing"
	"time"

	"gastown/internal/errs"
)

func (d *driver) wantEscalations(want ...string) {
	d.t.Helper()
	var got []string
	for _, e := range d.town.Escalations(false) {
		got = append(got, fmt.Sprintf("%s %s %d", e.Cause, e.Subject, e.Count))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		d.t.Fatalf("escalations %q, want %q", got, want)
	}
}

// breaks lets a subject fail so often that people are told.
func (d *driver) breaks(subject string) {
	d.t.Helper()
	for range noticeFails {
		d.failsAgain(subject)
	}
	d.save()
}

// failsAgain fails a subject whose pause is over, without the time for it.
func (d *driver) failsAgain(subject string) {
	if br := d.town.breakers[subject]; br != nil {
		br.Until = min(br.Until, At(d.now))
	}
	d.town.failed(At(d.now), subject, "broke")
}

func TestAnEscalationIsOnePerCauseAndSubject(t *testing.T) {
	d := newDriver(t)
	for range 9 {
		d.failsAgain("agent/x")
	}
	d.save()
	d.wantEscalations("breaker.open agent/x 5")
	d.breaks("agent/y")
	d.wantEscalations("breaker.open agent/x 5", "breaker.open agent/y 1")
	if n := d.count("escalation.opened"); n != 2 {
		t.Fatalf("%d were opened", n)
	}
	if len(d.town.Notices()) != 0 {
		t.Fatal("somebody is told although there is no way to")
	}
}

func TestAnEscalationClosesWithItsSubject(t *testing.T) {
	escalated := func(t *testing.T) *driver {
		d, r := atWork(t)
		d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "e", Kind: VerdictEscalate, Text: "which one?"})
		d.ended(r, OutcomeStopped, "", "")
		d.wantEscalations("bead.escalated web-aaaaa 1")
		return d
	}
	for name, in := range map[string]Input{
		"reopened":  ReopenBead{By: "ann", Bead: "web-aaaaa"},
		"closed":    CloseBead{By: "ann", Bead: "web-aaaaa"},
		"cancelled": CancelBead{By: "ann", Bead: "web-aaaaa"},
		"retried":   Retry{By: "ann", ID: "web-aaaaa"},
		"retried by the number of the escalation": Retry{By: "ann", ID: "esc/1"},
		"removed with its rig":                    DropRig{By: "ann", Rig: "web", Force: true},
	} {
		t.Run(name, func(t *testing.T) {
			d := escalated(t)
			d.do(in)
			d.wantEscalations()
			if e := d.town.Escalations(true); len(e) != 1 || e[0].How == "" || !e[0].ByHand {
				t.Fatalf("%+v", e)
			}
		})
	}
	t.Run("a breaker that works again", func(t *testing.T) {
		d := newDriver(t)
		d.breaks("agent/x")
		d.town.proved(At(d.now), "agent/x")
		d.save()
		d.wantEscalations()
	})
	t.Run("a breaker that a person resets", func(t *testing.T) {
		d := newDriver(t)
		d.breaks("agent/x")
		d.do(Retry{By: "ann", ID: "esc/1"})
		d.wantEscalations()
		if len(d.town.Breakers()) != 0 {
			t.Fatal("the breaker is still open")
		}
		d.refused(Retry{By: "ann", ID: "esc/1"}, conflict)
	})
	t.Run("a failed bead stays until somebody decides", func(t *testing.T) {
		d := newDriver(t)
		d.set(Settings{"work.max_attempts": "1"})
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
		d.wantEscalations("bead.failed web-aaaaa 1")
		d.later(72 * time.Hour)
		d.do(Tick{})
		d.wantEscalations("bead.failed web-aaaaa 1")
		d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
		d.wantEscalations()
	})
}

func TestAFlappingBreakerTellsPeopleOnceADay(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"notify.url": "http://localhost/hook"})
	d.perform = false
	start := d.now
	for d.now.Sub(start) < 3*day-time.Hour {
		d.breaks("agent/x")
		d.later(20 * time.Minute)
		d.town.proved(At(d.now), "agent/x")
		d.save()
		d.later(10 * time.Minute)
	}
	if n := len(d.town.Notices()); n != 3 {
		t.Errorf("people were told %d times in three days", n)
	}
	if all := d.town.Escalations(true); len(all) != 1 || all[0].Count < 100 {
		t.Errorf("%d escalations, the first %+v", len(all), all[0])
	}
}

func TestWhatComesUpAgainAfterAPersonDecidedIsNews(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"notify.url": "http://localhost/hook"})
	d.perform = false
	d.breaks("agent/x")
	d.do(Retry{By: "ann", ID: "agent/x"})
	d.later(time.Minute)
	d.breaks("agent/x")
	if n := len(d.town.Notices()); n != 2 {
		t.Fatalf("%d notices", n)
	}
	d.wantEscalations("breaker.open agent/x 2")
}

func TestANoticeThatFailsMakesNoEscalation(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"notify.url": "http://localhost/hook"})
	d.breaks("agent/x")
	for range maxNoticeTries {
		e := d.claim("notice/1")
		d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "no route"})
		d.later(time.Hour)
	}
	if n := d.town.Notices(); len(n) != 1 || !n[0].Dead {
		t.Fatalf("%+v", n)
	}
	d.wantEscalations("breaker.open agent/x 1")
}

func TestEscalationsAreBounded(t *testing.T) {
	d := newDriver(t)
	now := At(d.now)
	for i := range maxOpen + 50 {
		d.town.escalate(now, CauseFailed, fmt.Sprintf("web-%05d", i), "failed")
	}
	open := d.town.Escalations(false)
	if len(open) != maxOpen+1 {
		t.Fatalf("%d are open", len(open))
	}
	many := d.town.latest(CauseMany, "acme")
	if many == nil || many.Count != 50 {
		t.Fatalf("%+v", many)
	}
	for i := range maxOpen {
		now++
		d.town.settled(now, fmt.Sprintf("web-%05d", i), "", "closed")
	}
	if got := d.town.Escalations(false); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	if got := d.town.Escalations(true); len(got) != maxClosed {
		t.Fatalf("%d closed ones are kept", len(got))
	}
	d.save()
	if got, want := len(d.reload().Escalations(true)), maxClosed; got != want {
		t.Fatalf("%d after a reload, want %d", got, want)
	}
}

func TestAcknowledge(t *testing.T) {
	d := newDriver(t)
	d.breaks("agent/x")
	d.do(Acknowledge{By: "ann", ID: "esc/1"})
	d.do(Acknowledge{By: "bob", ID: "esc/1"})
	d.wantEscalations("breaker.open agent/x 1")
	if e := d.town.Escalations(false)[0]; e.SeenBy != "ann" || e.SeenAt == 0 {
		t.Fatalf("%+v", e)
	}
	d.refused(Acknowledge{By: "ann", ID: "esc/9"}, func(err error) bool { return errs.Is(err, errs.NotFound) })
}

// A remote that can be read and refuses every push was tried again and again
// without a growing pause, because each fetch closed the breaker of the push.
func TestARemoteThatRefusesPushesIsTriedEverLessOften(t *testing.T) {
	d := reviewed(t, nil)
	d.perform = false
	tries := 0
	for i := range 3 * 120 {
		d.later(30 * time.Second)
		d.quietTick()
		if i%4 == 0 { // other work has the target fetched, which works
			d.bead(fmt.Sprintf("web-%05d", i))
			if i > 0 {
				d.do(CancelBead{By: "ann", Bead: fmt.Sprintf("web-%05d", i-4)})
			}
		}
		for _, e := range d.town.Claim(d.now, "boot") {
			d.save()
			switch e.Action.(type) {
			case Land:
				tries++
				d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "pushes are refused"})
			default:
				d.do(EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)})
			}
		}
	}
	if tries < 10 || tries > 20 {
		t.Errorf("%d pushes in three hours", tries)
	}
	d.wantEscalations(fmt.Sprintf("breaker.open push/web %d", tries-noticeFails+1))
	d.wantWhy("web-aaaaa", Waiting, waitBreaker)
}

func (d *driver) quietTick() {
	d.t.Helper()
	if s := d.town.info.Sandbox.State; s == SandboxAwake || s == SandboxDraining {
		d.heartbeat()
	}
	d.do(Tick{})
}

func TestBreakersGoWithTheirSubject(t *testing.T) {
	t.Run("a bead that is cancelled", func(t *testing.T) {
		d := reviewed(t, nil)
		d.breaks("merge/web-aaaaa")
		d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
		if len(d.town.Breakers()) != 0 {
			t.Fatalf("%+v", d.town.Breakers())
		}
		d.wantEscalations()
	})
	t.Run("a rig that is removed", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		for _, kind := range []string{"rig/", "push/", "gates/"} {
			d.breaks(kind + "web")
		}
		d.do(DropRig{By: "ann", Rig: "web"})
		if len(d.town.Breakers()) != 0 || len(d.town.Rigs()) != 0 {
			t.Fatalf("%+v", d.town.Breakers())
		}
		d.wantEscalations()
	})
}

func TestAClaimThatNobodyWantsIsForgotten(t *testing.T) {
	d := reviewed(t, nil)
	d.perform = false
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.town.claims["merge/web-aaaaa/1/land"] = &Claim{Key: "merge/web-aaaaa/1/land", ID: 999, Attempt: 1, By: "dead", Until: At(d.now)}
	d.town.mark(kindClaim, "merge/web-aaaaa/1/land")
	d.save()
	d.later(maxClaim - time.Millisecond)
	d.do(Tick{})
	if d.town.claims["merge/web-aaaaa/1/land"] == nil {
		t.Fatal("it is gone before its time")
	}
	d.later(time.Millisecond)
	d.do(Tick{})
	if d.town.claims["merge/web-aaaaa/1/land"] != nil {
		t.Fatal("it is still there")
	}
}

func TestDoneThatIsRefusedAgainAndAgainEndsTheRun(t *testing.T) {
	d, r := atWork(t)
	for range maxRefusals - 1 {
		d.do(Refused{Generation: 1, Run: r.ID, Epoch: 1, Why: "nothing changed"})
	}
	if got := d.run("web-aaaaa"); got.State != RunRunning || got.Refused != maxRefusals-1 {
		t.Fatalf("%+v", got)
	}
	d.do(Refused{Generation: 1, Run: "web-aaaaa.9", Epoch: 9, Why: "stale"})
	d.do(Refused{Generation: 1, Run: r.ID, Epoch: 1, Why: "nothing changed"})
	if got := d.run("web-aaaaa"); got.Stop != stopRefused {
		t.Fatalf("%+v", got)
	}
	d.ended(r, OutcomeStopped, "", "")
	if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 1 {
		t.Fatalf("charged %d", b.Charged)
	}
}

func TestASandboxThatStopsRunsAgainAndAgainMeetsAPause(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	for range freeStops + 1 {
		d.ended(d.spawn("web-aaaaa"), OutcomeStopped, "", "the runner stopped it")
	}
	d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	if b := d.the("web-aaaaa"); b.Charged != 0 {
		t.Fatalf("charged %d", b.Charged)
	}
}

func TestPoisonedReportsAreKeptOfAndCostOnlyThemselves(t *testing.T) {
	d, r := atWork(t)
	d.report(Report{Kind: ReportLost, Reason: "a report that can't be read"}, Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeExited, Class: ClassWork})
	d.wantBead("web-aaaaa", BeadOpen)
	for range 2 * maxPoison {
		d.report(Report{Kind: "telepathy"}, Report{Kind: ReportHeartbeat, Runs: make([]RunLife, maxLives+1)})
	}
	list, n := d.town.Poisoned()
	if len(list) != maxPoison || n != 4*maxPoison+1 {
		t.Fatalf("%d kept of %d", len(list), n)
	}
	if last := list[maxPoison-1]; last.N != d.seq || last.Generation != 1 || last.At != At(d.now) {
		t.Fatalf("%+v, the stream is at %d", last, d.seq)
	}
	if n := d.count("report.unknown"); n != 1 {
		t.Fatalf("the ledger tells %d times", n)
	}
}
