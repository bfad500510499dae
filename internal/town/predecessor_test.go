package town

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// What the system before this one did to its users, one test for each way. It
// ran all agents of a town in one container, kept its counters in memory or
// where the failure handler reset them, and believed what agents said.
//
// Money that ran away:
//   - dispatch without a breaker: a dead container, thousands of failures, one triage after another
//   - a cap without a reset: a town dead for half a day at its limit of attempts
//   - the reviewer started again without end, because a start counted as success
//   - a landing that failed at its own precondition, asked for again every 5 seconds
//   - the same alert, and the same triage, again and again
//   - ended beads opened again by the removal of an agent
//   - a poll without an answer that never ended
//   - no limit on money (budget_test.go)
//
// States that contradicted each other:
//   - an idle agent with a bead that no rule matched; a bead in progress that nobody worked on
//   - a start that timed out and may have happened: rolled back or not, one was wrong
//   - two sessions for one bead
//   - an event that could not be applied, tried for ever (quarantine_test.go)
//   - a status written past the function that keeps the rest true
//   - a review applied to another commit than the one reviewed
//   - new work that waited for the next poll
//   - one timestamp with two meanings
//
// Containers:
//   - work lost whenever one died without a farewell (the runner's checkpoint tests)
//   - a dead one, or a hanging one, that nobody noticed
//   - one eviction that hit the agents' attempts
//   - a start that failed without a reason that anybody could read
//   - a deleted town that came back
//
// Sessions: an agent that fell silent counted as done; agents forgot to report;
// the same work was created twice.
//
// Work lost or wrongly finished: done without evidence; late completions
// applied to another bead; a finished branch forgotten; healthy starts counted
// as failures; one breaker tripped by healthy work; work redone after a person had
// rejected it; failed blockers that counted as resolved; failed work that
// nobody could reopen; effects lost in a crash; nudges delivered twice.
//
// Races and loops: two rules that acted on one old snapshot; drains with
// contradicting timers; calls of an old container accepted for hours; one bad
// row that stopped a town.

func TestADispatchThatAlwaysFailsPausesEverLongerAndCostsNoAttempt(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	starts := 0
	for end := d.now.Add(70 * time.Hour); d.now.Before(end); {
		if d.town.info.Sandbox.State == SandboxStarting {
			starts++
			d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
		}
		next, ok := d.town.NextWake(d.now)
		if !ok {
			t.Fatal("it gave up for ever")
		}
		d.now = next
		d.do(Tick{})
	}
	if b := d.the("web-aaaaa"); b.Charged != 0 || starts > 4*70+10 {
		t.Fatalf("%d starts in 70 hours, %d attempts charged", starts, b.Charged)
	}
}

func TestABeadAtItsCapGoesOnWhenAPersonSaysSoAndHasACapAgain(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"work.max_attempts": "2"})
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	for range 2 {
		for range 2 {
			d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
			d.pass(10 * time.Second)
			d.pass(30 * time.Second)
		}
		d.wantBead("web-aaaaa", BeadFailed)
		before := len(d.ledger)
		d.pass(time.Minute)
		if n := d.count("run.started"); n%2 != 0 || len(d.ledger)-before > 2 {
			t.Fatalf("at its cap it goes on: %d runs, %v", n, d.ledger[before:])
		}
		d.do(Retry{By: "ann", ID: "web-aaaaa"})
		d.wantBead("web-aaaaa", BeadInProgress)
	}
}

func TestAStartWithoutProgressCountsAsAnAttempt(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(Resume{By: "ann", For: 3 * time.Hour})
	d.hello()
	d.bead("web-aaaaa")
	for range 5 {
		d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "idle after a turn of text")
		d.pass(10 * time.Minute)
	}
	d.wantBead("web-aaaaa", BeadFailed)
	d.pass(time.Hour)
	if n := d.count("run.started"); n != 5 {
		t.Fatalf("started %d times", n)
	}
}

func TestALandingThatFailsIsAskedForEverLessOften(t *testing.T) {
	d, r := atWork(t)
	d.perform = false
	d.done("web-aaaaa")
	d.ended(r, OutcomeStopped, "", "")
	pushes := 0
	for end := d.now.Add(41 * time.Hour); d.now.Before(end); {
		for _, e := range d.town.Claim(d.now, "boot") {
			if _, ok := e.Action.(Land); ok {
				pushes++
				d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "refused"})
				continue
			}
			d.do(EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)})
		}
		next, ok := d.town.NextWake(d.now)
		if !ok {
			t.Fatal("it gave up for ever")
		}
		d.now = next
		if d.town.talking() {
			d.heartbeat()
		}
		d.do(Tick{})
	}
	if b := d.wantBead("web-aaaaa", BeadInReview); pushes > 41*4+10 || b.Charged != 0 {
		t.Fatalf("pushed %d times in 41 hours, charged %d", pushes, b.Charged)
	}
}

func TestTheSameTroubleTellsPeopleOnceAndEndsWithItsCause(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"notify.url": "http://localhost/x"})
	d.rig()
	for range 50 {
		d.town.failed(At(d.now), "hub/web", "it broke")
		d.pass(20 * time.Minute)
	}
	if n := d.count("notice.sent"); n > 2 {
		t.Fatalf("told %d times", n)
	}
	if !d.openFor(CauseBreaker, "hub/web") {
		t.Fatal("nobody was told")
	}
	d.town.proved(At(d.now), "hub/web")
	if d.openFor(CauseBreaker, "hub/web") {
		t.Fatal("the alert outlives its cause")
	}
}

func TestRemovingAWorkerOpensNoEndedBead(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
	if _, ok := d.town.Run(r.ID); ok {
		t.Fatal("the run goes on")
	}
	d.pass(time.Hour)
	d.wantBead("web-aaaaa", BeadCancelled)
}

func TestAPollWithoutAnAnswerHasAPause(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"merge.mode": "branch"}})
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.perform = false
	d.done("web-aaaaa")
	d.ended(r, OutcomeStopped, "", "")
	polls := 0
	for end := d.now.Add(10 * time.Hour); d.now.Before(end); {
		for _, e := range d.town.Claim(d.now, "boot") {
			out := EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)}
			if _, ok := e.Action.(CheckTarget); ok {
				polls++
				out = EffectDone{Key: e.Key, ID: e.ID, Err: "no token"}
			}
			d.do(out)
		}
		next, _ := d.town.NextWake(d.now)
		d.now = next
		d.do(Tick{})
	}
	if polls == 0 || polls > 10*12 {
		t.Fatalf("%d polls in 10 hours", polls)
	}
	d.wantBead("web-aaaaa", BeadInReview)
	if n := d.count("run.started"); n != 1 {
		t.Fatalf("finished work was begun again: %d runs", n)
	}
}

func TestAnAmbiguousStartNeedsNoGuess(t *testing.T) {
	for name, runs := range map[string]bool{"it had started": true, "it had not": false} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			d.rig()
			d.perform = false
			d.bead("web-aaaaa")
			for d.town.info.Sandbox.State != SandboxStarting {
				for _, e := range d.town.Claim(d.now, "boot") {
					d.do(EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)})
				}
			}
			d.town.Claim(d.now, "boot") // the order to start: nobody hears what became of it
			d.save()
			d.perform = true
			if runs {
				d.hello()
				d.spawn("web-aaaaa")
				d.done("web-aaaaa")
				d.wantBead("web-aaaaa", BeadClosed)
				return
			}
			d.later(61 * time.Second)
			d.do(Tick{})
			d.refused(Hello{Generation: 1, Stream: "late"}, gone)
			if b := d.the("web-aaaaa"); b.Charged != 0 {
				t.Fatalf("charged %d", b.Charged)
			}
		})
	}
}

func TestALateCompletionTouchesNoOtherBead(t *testing.T) {
	d, old := atWork(t)
	d.bead("web-bbbbb")
	d.ended(old, OutcomeExited, ClassWork, "no verdict")
	other := d.spawn("web-bbbbb")
	before := d.the("web-bbbbb")
	d.refused(Verdict{Generation: 1, Run: old.ID, Epoch: old.Epoch, CallID: "late", Kind: VerdictNoChange, Text: "done"}, gone)
	d.report(Report{Kind: ReportEnded, Run: old.ID, Epoch: old.Epoch, Outcome: OutcomeExited, Class: ClassWork})
	if b := d.the("web-bbbbb"); b.Status != before.Status || d.run("web-bbbbb").ID != other.ID || d.the("web-aaaaa").Charged != 1 {
		t.Fatalf("%+v", b)
	}
}

func TestFiveContainerRestartsDoNotFailAHealthyLongTask(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb")
	for i := range 5 {
		d.hello()
		if d.the("web-aaaaa").Status == BeadInProgress {
			d.spawn("web-aaaaa")
		}
		d.do(Pause{By: "deploy", Now: true}) // a deploy, an eviction with a farewell
		for _, r := range d.town.Runs() {
			d.ended(r, OutcomeStopped, "", "drained")
		}
		d.report(Report{Kind: ReportDrained})
		d.wantSandbox(SandboxAsleep)
		d.do(Resume{By: "deploy"})
		if b := d.the("web-aaaaa"); b.Charged != 0 || b.Losses != 0 || b.Attempt != 1 {
			t.Fatalf("after %d restarts: %+v", i+1, b)
		}
	}
	if len(d.town.Breakers()) != 0 {
		t.Fatalf("healthy work opened %+v", d.town.Breakers())
	}
}

func TestWorkThatAPersonRejectedIsNotDoneAgain(t *testing.T) {
	d, r := atWork(t)
	d.perform = false
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"merge.mode": "branch"}})
	d.done("web-aaaaa")
	d.ended(r, OutcomeStopped, "", "")
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa", Reason: "not wanted"})
	d.perform = true
	d.pass(5 * time.Hour)
	d.wantBead("web-aaaaa", BeadCancelled)
	if n := d.count("run.started"); n != 1 {
		t.Fatalf("%d runs", n)
	}
}

func TestAFailedBlockerBlocksAndBothCanBeTakenUpAgain(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"work.max_attempts": "1"})
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb", func(c *CreateBead) { c.BlockedBy = []string{"web-aaaaa"} })
	d.hello()
	d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
	d.wantBead("web-aaaaa", BeadFailed)
	if w := d.wantWhy("web-bbbbb", Waiting, waitBlocker); !strings.Contains(w.Text, "failed") {
		t.Fatalf("%+v", w)
	}
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	r := d.spawn("web-aaaaa")
	d.done("web-aaaaa")
	d.ended(r, OutcomeStopped, "", "")
	d.wantBead("web-bbbbb", BeadInProgress)
}

func TestANudgeIsDeliveredUntilItIsAcknowledgedAndNotAgain(t *testing.T) {
	d, r := atWork(t)
	d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "one"})
	rev := d.town.info.DesiredRev
	if got := d.town.Desired().Runs[0].Nudges; len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	for range 2 { // said twice: the acknowledgement of the first was lost
		d.report(Report{Kind: ReportNudged, Run: r.ID, Epoch: 1, Nudge: 1})
	}
	d.pass(10 * time.Minute)
	if got := d.town.Desired().Runs[0].Nudges; len(got) != 0 || d.town.info.DesiredRev != rev {
		t.Fatalf("it is delivered again: %+v", got)
	}
}

func TestOneBeadHasOneSessionHoweverOftenItsSandboxRestarts(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	for range 4 {
		d.pass(20 * time.Minute)
		for range 3 { // the runner starts again while the agent is starting
			d.stream = fmt.Sprintf("s%d", d.now.UnixNano())
			d.later(time.Second)
			if d.town.info.Sandbox.State.Running() && d.town.info.Sandbox.State != SandboxStopping && d.town.info.Sandbox.State != SandboxWedged {
				d.hello()
			}
		}
		if n := len(d.town.Desired().Runs); n > 1 {
			t.Fatalf("%d runs of one bead", n)
		}
		d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
	}
}
