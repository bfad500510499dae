package town

import (
	"slices"
	"testing"
	"time"

	"gastown/internal/errs"
)

func TestAnOpenBreakerKeepsASandboxFromStarting(t *testing.T) {
	d := reviewed(t, nil, oneGate)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.do(SandboxExited{Generation: 1, Reason: "out of memory"})
	d.wantMerge("web-aaaaa", MergeGating)
	d.wantSandbox(SandboxAsleep)
	if len(d.town.Holds(d.now)) != 1 || d.town.Columns(d.now).Wanted {
		t.Fatal("the hold of the gates is missing, or it counts as wanted")
	}
	until := d.town.breakers["sandbox"].Until
	d.now = until.Time().Add(-time.Millisecond)
	d.do(Tick{})
	d.wantSandbox(SandboxAsleep)
	d.now = until.Time()
	d.do(Tick{})
	d.wantSandbox(SandboxQueued)
	if got := d.town.info.Sandbox.StartHold; got != "gates web-aaaaa" {
		t.Fatalf("started for %q", got)
	}
}

func TestADrainThatStopsRunsIsNotTurnedBack(t *testing.T) {
	d, r := atWork(t)
	d.do(Pause{By: "ann", Now: true})
	d.wantSandbox(SandboxDraining)
	d.do(Resume{By: "ann"})
	d.wantSandbox(SandboxDraining)
	if !d.town.Desired().Drain {
		t.Fatal("the runner is told to go on")
	}
	d.ended(r, OutcomeStopped, "", "drained")
	d.wantBead("web-aaaaa", BeadInProgress) // its next run came back to the same sandbox
	d.wantSandbox(SandboxAwake)
	if got := d.run("web-aaaaa"); got.Epoch != 2 || got.Generation != 1 || got.Stop != "" {
		t.Fatalf("%+v", got)
	}
}

func TestADrainEndsAtItsDeadlineAndPutsWorkBack(t *testing.T) {
	d, _ := atWork(t)
	d.perform = false
	d.do(Pause{By: "ann", Now: true})
	d.later(30*time.Second - time.Millisecond)
	d.do(Tick{})
	d.wantSandbox(SandboxDraining)
	d.later(time.Millisecond)
	d.do(Tick{})
	d.wantSandbox(SandboxStopping)
	if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 0 || len(b.Failures) != 0 || b.Losses != 0 {
		t.Fatalf("%+v", b)
	}
	if e := d.claim("sandbox/stop"); e.Action.(StopSandbox).Generation != 1 || e.Action.(StopSandbox).Grace != 10*time.Second {
		t.Fatalf("%+v", e.Action)
	}
}

func TestASandboxThatNeverSaysHelloIsWedgedAndTheSecondTimeGetsAFreshDisk(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	for i := 1; i <= 3; i++ {
		d.wantSandbox(SandboxStarting)
		if s := d.town.info.Sandbox; s.Generation != int64(i) || s.FreshDisk != (i > 2) {
			t.Fatalf("start %d: %+v", i, s)
		}
		d.later(time.Minute - time.Millisecond)
		d.do(Tick{})
		d.wantSandbox(SandboxStarting)
		d.perform = false
		d.later(time.Millisecond)
		d.do(Tick{})
		d.wantSandbox(SandboxWedged)
		if s := d.town.info.Sandbox; s.Wedges != i {
			t.Fatalf("wedges: %d", s.Wedges)
		}
		d.refused(Hello{Generation: int64(i), Stream: "late"}, gone)
		d.perform = true
		d.do(Tick{})
		d.wantSandbox(SandboxAsleep)
		d.now = d.town.breakers["sandbox"].Until.Time()
		d.do(Tick{})
	}
	if b := d.the("web-aaaaa"); b.Charged != 0 || b.Losses != 0 {
		t.Fatalf("a bead that never ran there pays: %+v", b)
	}
	d.hello()
	d.spawn("web-aaaaa")
	d.done("web-aaaaa")
	if s := d.town.info.Sandbox; s.Wedges != 0 || s.FreshDisk || d.town.breakers["sandbox"] != nil {
		t.Fatalf("work that was done does not prove it: %+v", s)
	}
}

func TestASandboxThatCouldNotBeStartedIsRemovedAndPauses(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	d.bead("web-aaaaa")
	d.answer("sandbox/admit", Admitted{Granted: true})
	e := d.claim("sandbox/start")
	d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "no such image"})
	d.wantSandbox(SandboxWedged)
	d.answer("sandbox/stop", nil)
	d.wantSandbox(SandboxAsleep)
	w := d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	if b := d.the("web-aaaaa"); w.Subject != "sandbox" || b.Charged != 0 {
		t.Fatalf("%+v, charged %d", w, b.Charged)
	}
}

// lose lets the sandbox die under the bead's spawned runs and starts the next.
func (d *driver) lose() {
	d.t.Helper()
	d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
	d.now = d.town.breakers["sandbox"].Until.Time()
	d.do(Tick{})
	d.hello()
}

func TestABeadThatRanAtTwoLossesRunsAloneAndPaysForTheThird(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb", func(c *CreateBead) { c.Priority = 3 })
	d.hello()
	for range 2 {
		d.spawn("web-aaaaa")
		d.spawn("web-bbbbb")
		d.lose()
	}
	if a, b := d.the("web-aaaaa"), d.the("web-bbbbb"); a.Losses != 2 || b.Losses != 2 || a.Charged+b.Charged != 0 {
		t.Fatalf("losses %d and %d, charged %d and %d", a.Losses, b.Losses, a.Charged, b.Charged)
	}
	d.wantBead("web-aaaaa", BeadInProgress)
	d.wantWhy("web-bbbbb", Waiting, waitAlone)
	d.bead("web-ccccc", func(c *CreateBead) { c.Priority = 0 })
	if w := d.wantWhy("web-ccccc", Waiting, waitAlone); w.Subject != "web-aaaaa" {
		t.Fatalf("%+v", w)
	}
	d.spawn("web-aaaaa")
	d.lose()
	if b := d.the("web-aaaaa"); b.Charged != 1 || b.Losses != 3 {
		t.Fatalf("charged %d, losses %d", b.Charged, b.Losses)
	}
	if b := d.the("web-bbbbb"); b.Charged != 0 {
		t.Fatal("one that did not run pays")
	}
}

func TestABeadThatRanAtTwoLossesWaitsForOthersToEnd(t *testing.T) {
	d, r := atWork(t)
	d.bead("web-bbbbb", func(c *CreateBead) { c.Staged, c.Priority = true, 0 })
	d.town.beads["web-bbbbb"].Losses = 2
	d.town.mark(kindBead, "web-bbbbb")
	d.save()
	d.do(SlingBead{By: "ann", Bead: "web-bbbbb"})
	d.wantWhy("web-bbbbb", Waiting, waitAlone)
	d.bead("web-ccccc")
	if w := d.wantWhy("web-ccccc", Waiting, waitAlone); w.Subject != "web-bbbbb" {
		t.Fatalf("%+v", w) // or it would wait for ever
	}
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.wantBead("web-bbbbb", BeadInProgress)
	d.wantWhy("web-ccccc", Waiting, waitAlone)
}

func TestTwoBeadsLostTogetherPayNothing(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb")
	d.hello()
	d.spawn("web-aaaaa")
	d.spawn("web-bbbbb")
	d.town.beads["web-aaaaa"].Losses, d.town.beads["web-bbbbb"].Losses = 2, 2
	d.town.mark(kindBead, "web-aaaaa")
	d.town.mark(kindBead, "web-bbbbb")
	d.save()
	d.do(SandboxExited{Generation: 1, Reason: "killed"})
	if a, b := d.the("web-aaaaa"), d.the("web-bbbbb"); a.Charged+b.Charged != 0 {
		t.Fatalf("charged %d and %d, and neither was alone", a.Charged, b.Charged)
	}
}

func TestTheGraceBeginsWhenTheLastHoldEnded(t *testing.T) {
	t.Run("a person's at its own end, also when nobody looked", func(t *testing.T) {
		d := newDriver(t)
		d.set(Settings{"lease": "1h"})
		d.rig()
		d.do(Resume{By: "ann", For: 10 * time.Minute})
		d.hello()
		end := d.town.info.AwakeFor
		d.later(11 * time.Minute)
		d.do(Tick{})
		if s := d.town.info.Sandbox; s.LastHold != end {
			t.Fatalf("the grace begins at %s, the hold ended at %s", s.LastHold, end)
		}
		d.later(time.Minute)
		d.do(Tick{})
		d.wantSandbox(SandboxDraining)
	})
	t.Run("a run's at its end, also when a person's ended before", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(Resume{By: "ann", For: time.Minute})
		d.bead("web-aaaaa")
		d.hello()
		r := d.spawn("web-aaaaa")
		d.pass(10 * time.Minute)
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		d.wantSandbox(SandboxAwake)
		d.pass(2*time.Minute - time.Second)
		d.wantSandbox(SandboxAwake)
		d.pass(time.Second)
		d.wantSandbox(SandboxDraining)
	})
}

func TestAwakeTimeIsCountedToTheMillisecond(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.perform = false
	d.later(50 * time.Second)
	d.bead("web-aaaaa")
	d.later(3 * time.Second) // waiting for a place is not being awake
	d.answer("sandbox/admit", Admitted{Granted: true})
	began := d.now
	d.perform = true
	d.later(777 * time.Millisecond)
	d.do(Tick{})
	d.hello()
	d.later(1234 * time.Millisecond)
	r := d.spawn("web-aaaaa")
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.pass(2 * time.Minute)
	d.wantSandbox(SandboxDraining)
	d.perform = false
	d.later(5 * time.Second)
	d.report(Report{Kind: ReportDrained})
	d.later(321 * time.Millisecond)
	d.answer("sandbox/stop", nil)
	d.wantSandbox(SandboxAsleep)
	want := d.now.Sub(began).Milliseconds()
	d.later(time.Hour)
	if got := d.town.AwakeMS(d.now); got != want {
		t.Fatalf("awake for %d ms, counted %d", want, got)
	}
}

func TestNoWaitForAPlaceIsLongerThanItsReason(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	d.bead("web-aaaaa")
	d.answer("sandbox/admit", Admitted{Position: 4})
	if w := d.wantWhy("web-aaaaa", Waiting, waitSandbox); d.town.info.Sandbox.Position != 4 || w.Text == "" {
		t.Fatalf("%+v", w)
	}
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.wantSandbox(SandboxAsleep)
	if got := keys(d.town.Effects(d.now)); slices.Contains(got, "sandbox/admit") {
		t.Fatalf("still asks: %v", got)
	}
	d.bead("web-bbbbb")
	d.claim("sandbox/admit")
	d.do(CancelBead{By: "ann", Bead: "web-bbbbb"})
	d.bead("web-ccccc")
	if got := keys(d.town.Effects(d.now)); !slices.Contains(got, "sandbox/admit") {
		t.Fatalf("new work waits for the answer to an old question: %v", got)
	}
}

func TestRunsThatNoSandboxHeardOfSurviveAStop(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.wantSandbox(SandboxStarting)
	d.perform = false
	d.do(Pause{By: "ann", Now: true})
	d.wantSandbox(SandboxStopping)
	d.answer("sandbox/stop", nil)
	d.wantSandbox(SandboxAsleep)
	d.pass(3 * time.Hour)
	d.wantSandbox(SandboxAsleep)
	d.perform = true
	d.do(Resume{By: "ann"})
	d.hello()
	if r := d.run("web-aaaaa"); r.Epoch != 1 || r.Generation != 2 || r.Stop != "" {
		t.Fatalf("%+v", r)
	}
}

func TestASecondOrderOfTheSameIsHarmless(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(Pause{By: "ann"})
	d.do(Pause{By: "bob"})
	if d.town.info.ModeBy != "ann" || d.count("town.paused") != 1 {
		t.Fatalf("%+v", d.town.info.ModeBy)
	}
	for _, in := range []Input{Resume{By: "ann", For: -1}, Resume{By: "ann", For: 25 * time.Hour}, Pause{By: "a\x00"}} {
		d.refused(in, invalid)
	}
	d.do(DeleteTown{By: "ann"})
	d.do(DeleteTown{By: "ann"})
	d.refused(Resume{By: "ann"}, conflict)
	d.refused(Hello{Generation: 1, Stream: "x"}, func(err error) bool { return errs.Is(err, errs.Gone) })
}
