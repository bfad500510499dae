package town

import (
	"testing"
	"time"
)

// atWork is a town with one bead whose agent runs.
func atWork(t testing.TB, gates ...Gate) (*driver, Run) {
	d := newDriver(t)
	d.rig(gates...)
	d.bead("web-aaaaa")
	d.hello()
	return d, d.spawn("web-aaaaa")
}

// later moves the clock without anybody saying anything.
func (d *driver) later(t time.Duration) { d.now = d.now.Add(t) }

// refused says that an input must be refused with a kind of error.
func (d *driver) refused(in Input, want func(error) bool) {
	d.t.Helper()
	if err := d.try(in); err == nil || !want(err) {
		d.t.Fatalf("%T gave %v", in, err)
	}
}

func (d *driver) set(s Settings) {
	d.t.Helper()
	d.do(SetTown{By: "ann", Set: s})
}

func TestAnEndedBeadIsMovedByPersonsOnly(t *testing.T) {
	all := []BeadStatus{BeadOpen, BeadInProgress, BeadInReview, BeadClosed, BeadFailed, BeadCancelled}
	for _, from := range all {
		for _, to := range all {
			if from.Terminal() && from.legal(to, false) {
				t.Errorf("a rule may move a bead from %s to %s", from, to)
			}
			if from.legal(from, true) {
				t.Errorf("%s to itself is legal", from)
			}
		}
		if from.Terminal() && !from.legal(BeadOpen, true) {
			t.Errorf("a person can't reopen a bead that is %s", from)
		}
	}
}

func TestOnlyLegalMovesOfASandboxAreTaken(t *testing.T) {
	for from, tos := range sandboxMoves {
		for to := range sandboxMoves {
			want := false
			for _, l := range tos {
				want = want || l == to
			}
			if from.legal(to) != want {
				t.Errorf("%s to %s: legal is %v", from, to, !want)
			}
		}
	}
	if SandboxStopping.legal(SandboxAwake) || SandboxStopping.legal(SandboxDraining) {
		t.Error("stopping is not the point of no return")
	}
}

func TestABreakerDoublesItsPauseUpToALimit(t *testing.T) {
	town := New("tn1", "acme", "", At(epoch0))
	now := At(epoch0)
	for i, want := range []time.Duration{30, 60, 120, 240, 480, 900, 900, 900} {
		town.failed(now, "agent/x", "it broke")
		want *= time.Second
		if got := town.breakers["agent/x"].Until.Sub(now); got < want || got > want*5/4 {
			t.Fatalf("pause %d is %s, want %s to %s", i+1, got, want, want*5/4)
		}
		now = town.breakers["agent/x"].Until
	}
	if town.backoff(3, "agent/x") == town.backoff(3, "agent/y") {
		t.Error("two subjects pause for the same time: there is no jitter")
	}
	town.proved(now, "agent/x")
	town.failed(now, "agent/x", "it broke again")
	if br := town.breakers["agent/x"]; br.Fails != 1 || br.Until.Sub(now) > 38*time.Second {
		t.Fatalf("after a success the breaker begins with %+v", br)
	}
}

// Six agents that lose one disk, or meet one outage, are one failure: each of
// them doubling the pause would be a quarter of an hour after the first second.
func TestRunsThatMeetOneOutageOpenABreakerOnce(t *testing.T) {
	d := newDriver(t)
	d.rig()
	var ids []string
	for _, id := range []string{"web-aaaaa", "web-bbbbb", "web-ccccc", "web-ddddd"} {
		d.bead(id)
		ids = append(ids, id)
	}
	d.hello()
	var runs []Run
	for _, id := range ids {
		runs = append(runs, d.run(id))
	}
	for _, r := range runs {
		d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: OutcomeFailed, Class: ClassInfra, Subject: "rig/web",
			Reason: "the worktree can't be made for " + r.ID})
	}
	br := d.town.breakers["rig/web"]
	if br == nil || br.Fails != 1 || br.Until.Sub(At(d.now)) > 38*time.Second {
		t.Fatalf("the breaker is %+v", br)
	}
	if want := "the worktree can't be made for " + runs[3].ID; br.Last != want {
		t.Errorf("it says %q, want %q", br.Last, want)
	}
	if n := d.count("breaker.open"); n != 1 {
		t.Errorf("it opened %d times", n)
	}
}

func TestABeadGoesOnWhenItsPauseIsOver(t *testing.T) {
	d, r := atWork(t)
	d.ended(r, OutcomeExited, ClassWork, "no verdict")
	until := d.wantWhy("web-aaaaa", Waiting, waitBackoff).Until
	if got := until.Sub(At(d.now)); got != 30*time.Second {
		t.Fatalf("the first pause is %s", got)
	}
	d.later(30*time.Second - time.Millisecond)
	d.do(Tick{})
	d.wantBead("web-aaaaa", BeadOpen)
	d.later(time.Millisecond)
	d.do(Tick{})
	if b := d.wantBead("web-aaaaa", BeadInProgress); b.Attempt != 2 {
		t.Fatalf("attempt %d", b.Attempt)
	}
}

func TestARunThatItsSandboxForgetsIsLost(t *testing.T) {
	d, r := atWork(t)
	for range 2 {
		d.later(40 * time.Second)
		d.report(Report{Kind: ReportHeartbeat})
	}
	d.wantBead("web-aaaaa", BeadInProgress)
	d.later(10*time.Second - time.Millisecond)
	d.do(Tick{})
	if _, ok := d.town.Run(r.ID); !ok {
		t.Fatal("it ended before its lease")
	}
	d.later(time.Millisecond)
	d.do(Tick{})
	if _, ok := d.town.Run(r.ID); ok {
		t.Fatal("it outlives its lease")
	}
	b := d.the("web-aaaaa")
	if b.Charged != 0 || b.Runs[0].Outcome != OutcomeLost || b.Runs[0].Class != ClassInfra {
		t.Fatalf("charged %d, %+v", b.Charged, b.Runs)
	}
}

func TestARunThatDoesNotEndWhenAskedCountsAsEnded(t *testing.T) {
	d, r := atWork(t)
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	if got := d.run("web-aaaaa"); got.State != RunDraining || got.Stop == "" {
		t.Fatalf("%+v", got)
	}
	d.pass(30 * time.Second)
	d.later(30*time.Second - time.Millisecond)
	d.do(Tick{})
	if _, ok := d.town.Run(r.ID); !ok {
		t.Fatal("it had no minute to end")
	}
	d.later(time.Millisecond)
	d.do(Tick{})
	if _, ok := d.town.Run(r.ID); ok {
		t.Fatal("it still counts")
	}
}

func TestTheLadderForSilentAgents(t *testing.T) {
	d, r := atWork(t)
	idle := func(r Run, t time.Duration) {
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: r.Epoch, IdleMS: ms(t)}}})
	}
	idle(r, 15*time.Minute-time.Millisecond)
	if got := d.run("web-aaaaa"); len(got.Nudges) != 0 {
		t.Fatalf("nudged too early: %+v", got.Nudges)
	}
	idle(r, 15*time.Minute)
	idle(r, 16*time.Minute)
	if got := d.run("web-aaaaa"); len(got.Nudges) != 1 || got.Nudges[0].From != "town" {
		t.Fatalf("nudges: %+v", got.Nudges)
	}
	idle(r, 45*time.Minute)
	if got := d.run("web-aaaaa"); got.Stop != stopStuck {
		t.Fatalf("stop %q", got.Stop)
	}
	d.ended(r, OutcomeStopped, "", "")
	if b := d.wantBead("web-aaaaa", BeadInProgress); b.Charged != 0 || !b.Restarted {
		t.Fatalf("after the restart: %+v", b)
	}
	r = d.spawn("web-aaaaa")
	idle(r, 45*time.Minute)
	if got := d.run("web-aaaaa"); got.Stop != stopStuckAgain {
		t.Fatalf("stop %q", got.Stop)
	}
	d.ended(r, OutcomeStopped, "", "")
	if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 1 || b.NotBefore == 0 {
		t.Fatalf("the second silence is not charged: %+v", b)
	}
}

func TestTheTimeLimitOfARunIsChargedToItsBead(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.set(Settings{"run.time_limit": "10m"})
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.pass(10*time.Minute - time.Second)
	if got := d.run("web-aaaaa"); got.Stop != "" {
		t.Fatalf("stopped early: %s", got.Stop)
	}
	d.pass(time.Second)
	if got := d.run("web-aaaaa"); got.Stop != stopLimit {
		t.Fatalf("stop %q", got.Stop)
	}
	d.ended(r, OutcomeStopped, "", "")
	if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 1 || b.Reason != stopLimit {
		t.Fatalf("charged %d, reason %q", b.Charged, b.Reason)
	}
}

func TestWaitingForASandboxIsNotTheTimeOfARun(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	d.bead("web-aaaaa")
	for range 3 * 60 * 4 { // three hours without a place
		for _, e := range d.town.Claim(d.now, "boot") {
			d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Admitted{Position: 3}})
		}
		d.later(15 * time.Second)
		d.do(Tick{})
	}
	d.wantSandbox(SandboxQueued)
	d.perform = true
	d.do(Tick{})
	d.wantSandbox(SandboxStarting)
	d.hello()
	if b := d.wantBead("web-aaaaa", BeadInProgress); b.Charged != 0 || b.Epoch != 1 {
		t.Fatalf("charged %d, epoch %d", b.Charged, b.Epoch)
	}
	r := d.spawn("web-aaaaa")
	d.pass(time.Hour)
	if got := d.run("web-aaaaa"); got.ID != r.ID || got.Stop != "" {
		t.Fatalf("%+v", got)
	}
}

func TestDeadlinesOfAWrongClockArePulledBack(t *testing.T) {
	year := 365 * day
	d, r := atWork(t, Gate{Name: "test", Command: "true"})
	ahead := At(d.now.Add(year))
	d.town.failed(At(d.now), "agent/x", "broke")
	d.town.claims["rig/web/fetch"] = &Claim{Key: "rig/web/fetch", Until: ahead}
	d.town.notices[9] = &Notice{ID: 9, Next: ahead}
	d.town.breakers["agent/x"].Until = ahead
	run, s := d.town.runs[r.ID], &d.town.info.Sandbox
	run.LeaseUntil, run.SpawnedAt, run.CreatedAt = ahead, ahead, ahead
	s.StartedAt, s.LastSeen, s.TokenAt, s.Inspected, s.HelloAt = ahead, ahead, ahead, ahead, ahead
	d.town.rigs["web"].FetchedAt = ahead
	d.town.info.AwakeFor = ahead
	d.town.Rows()
	if err := d.town.Handle(d.now, Tick{}); err != nil {
		t.Fatal(err)
	}
	now := At(d.now)
	for name, c := range map[string]struct {
		at    Time
		limit time.Duration
	}{
		"breaker": {d.town.breakers["agent/x"].Until, 20 * time.Minute}, "claim": {d.town.claims["rig/web/fetch"].Until, 15 * time.Minute},
		"notice": {d.town.notices[9].Next, 20 * time.Minute}, "lease": {run.LeaseUntil, 90 * time.Second}, "spawned": {run.SpawnedAt, 0},
		"created": {run.CreatedAt, 0}, "started": {s.StartedAt, 0}, "last seen": {s.LastSeen, 0}, "token": {s.TokenAt, 0}, "inspected": {s.Inspected, 0},
		"hello": {s.HelloAt, 0}, "kept awake": {d.town.info.AwakeFor, day}, "fetched": {d.town.rigs["web"].FetchedAt, 0},
	} {
		if c.at.Sub(now) > c.limit {
			t.Errorf("%s is at %s, now is %s", name, c.at, now)
		}
	}
	if len(d.town.dirty) < 6 {
		t.Errorf("not all rows are to be written: %v", d.town.dirty)
	}
}

func TestATownSaysOnceThatItHasFinished(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"notify.url": "http://localhost/x"})
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb")
	d.hello()
	a, b := d.spawn("web-aaaaa"), d.spawn("web-bbbbb")
	d.done("web-aaaaa")
	d.ended(a, OutcomeDone, "", "")
	if n := d.count("town.finished"); n != 0 {
		t.Fatal("it said so before the last bead")
	}
	d.done("web-bbbbb")
	d.ended(b, OutcomeDone, "", "")
	d.pass(10 * time.Minute)
	if n := d.count("town.finished"); n != 1 {
		t.Fatalf("said %d times", n)
	}
	if n := d.count("notice.sent"); n != 1 {
		t.Fatalf("%d notices were sent", n)
	}
	d.bead("web-ccccc")
	d.do(CancelBead{By: "ann", Bead: "web-ccccc"})
	d.pass(5 * time.Minute)
	if n := d.count("town.finished"); n != 2 {
		t.Fatalf("said %d times after more work", n)
	}
}
