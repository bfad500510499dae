package town

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func (d *driver) openFor(c Cause, subject string) bool {
	e := d.town.latest(c, subject)
	return e != nil && e.Open()
}

// otherRig adds a second rig and beads on it.
func (d *driver) otherRig(beads ...string) {
	d.t.Helper()
	d.do(AddRig{By: "ann", Rig: Rig{Name: "api", Prefix: "api", URL: "/srv/api.git", Target: "main", Tip: commitName(0), Settings: Settings{"agent": "scripted"}}})
	for _, id := range beads {
		d.do(CreateBead{By: "ann", ID: id, Rig: "api", Title: "do " + id, Priority: 2})
	}
}

func TestABeadThatMustRunAloneLetsNobodyPassOnOtherRigs(t *testing.T) {
	d, _ := atWork(t)
	d.otherRig("api-aaaaa", "api-bbbbb")
	d.town.edit(d.town.beads["web-aaaaa"], At(d.now), func() { d.town.beads["web-aaaaa"].Losses = 2 })
	d.save()
	d.ended(d.run("web-aaaaa"), OutcomeStopped, "", "moved") // two of the other rig run now
	if n := len(d.town.Runs()); n != 2 {
		t.Fatalf("%d runs", n)
	}
	d.do(CreateBead{By: "ann", ID: "api-ccccc", Rig: "api", Title: "later"})
	d.do(CreateBead{By: "ann", ID: "api-ddddd", Rig: "api", Title: "later, not urgent", Priority: 4})
	d.wantBead("api-ccccc", BeadInProgress) // priority 0 is before it
	d.wantWhy("api-ddddd", Waiting, waitAlone)
	for _, id := range []string{"api-aaaaa", "api-bbbbb", "api-ccccc"} {
		d.wantWhy("web-aaaaa", Waiting, waitAlone)
		r := d.spawn(id)
		d.done(id)
		d.ended(r, OutcomeStopped, "", "")
	}
	d.wantBead("web-aaaaa", BeadInProgress)
	d.wantWhy("api-ddddd", Waiting, waitAlone)
}

func TestABeadThatMustRunAloneIsNotPassedWhileItsTipIsFetched(t *testing.T) {
	d, r := atWork(t)
	d.town.edit(d.town.beads["web-aaaaa"], At(d.now), func() { d.town.beads["web-aaaaa"].Losses = 2 })
	d.save()
	d.pass(5 * time.Minute)
	d.otherRig()
	d.perform = false
	d.ended(r, OutcomeStopped, "", "moved")
	d.do(CreateBead{By: "ann", ID: "api-aaaaa", Rig: "api", Title: "on a rig whose tip is known", Priority: 2})
	d.wantWhy("web-aaaaa", Waiting, waitFetch)
	d.wantWhy("api-aaaaa", Waiting, waitAlone)
	d.perform = true
	d.do(Tick{})
	d.wantBead("web-aaaaa", BeadInProgress)
	d.wantWhy("api-aaaaa", Waiting, waitAlone)
}

func TestATimeLimitTellsPeople(t *testing.T) {
	for name, end := range map[string]func(d *driver, r Run){
		"that the town keeps": func(d *driver, r Run) {
			d.pass(10 * time.Minute)
			d.ended(r, OutcomeStopped, "", "")
		},
		"that the runner keeps": func(d *driver, r Run) {
			d.pass(10*time.Minute - 5*time.Second)
			d.ended(r, OutcomeExited, ClassWork, "the run reached its time limit of 10m0s")
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			d.rig()
			d.set(Settings{"run.time_limit": "10m"})
			d.bead("web-aaaaa")
			d.hello()
			end(d, d.spawn("web-aaaaa"))
			if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 1 || !d.openFor(CauseStuck, "web-aaaaa") {
				t.Fatalf("charged %d, escalations %+v", b.Charged, d.town.escalations)
			}
			d.pass(time.Minute)
			d.spawn("web-aaaaa")
			d.done("web-aaaaa")
			if d.openFor(CauseStuck, "web-aaaaa") {
				t.Fatal("the escalation outlives the verdict")
			}
		})
	}
	t.Run("but not of an agent that ends early", func(t *testing.T) {
		d, r := atWork(t)
		d.ended(r, OutcomeExited, ClassWork, "no verdict")
		if d.openFor(CauseStuck, "web-aaaaa") {
			t.Fatal("it is called stuck")
		}
	})
}

func TestARunThatIsNeverSpawnedInItsTimeIsInfrastructure(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"run.time_limit": "10m"})
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	d.pass(11 * time.Minute)
	if b := d.the("web-aaaaa"); b.Charged != 0 || b.Runs[0].Class != ClassInfra || d.town.breakers["agent/scripted"] == nil {
		t.Fatalf("charged %d, %+v", b.Charged, b.Runs)
	}
}

func TestATimeLimitThatPassesWhileTheSandboxIsSilentIsChargedToNobody(t *testing.T) {
	d, r := atWork(t)
	d.pass(2*time.Hour - time.Minute)
	d.quiet = true
	d.perform = false // nobody can say what became of the sandbox
	d.pass(10 * time.Minute)
	if got, ok := d.town.Run(r.ID); ok && d.the("web-aaaaa").Charged != 0 {
		t.Fatalf("%+v", got)
	}
	d.perform = true
	d.do(Tick{})
	if b := d.the("web-aaaaa"); b.Charged != 0 || b.Losses != 1 {
		t.Fatalf("charged %d, losses %d", b.Charged, b.Losses)
	}
}

// A tool that prints and a model that streams are signs of life of which the
// runner knows: the town only hears for how long there was none.
func TestAnAgentThatShowsSignsOfLifeIsLeftAloneUpToItsLimit(t *testing.T) {
	d, r := atWork(t)
	for i := range 2*60 - 1 {
		d.later(time.Minute)
		idle := time.Duration(i%15) * time.Minute
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: 1, IdleMS: ms(idle)}}})
		if got := d.run("web-aaaaa"); got.Stop != "" || len(got.Nudges) != 0 || got.Stuck != 0 {
			t.Fatalf("after %d minutes: %+v", i+1, got)
		}
	}
}

func TestABeadsOwnLimitsHoldForItsLadder(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa", func(c *CreateBead) {
		c.Settings = Settings{"stuck.nudge_after": "1m", "stuck.restart_after": "2m", "run.time_limit": "5m"}
	})
	d.hello()
	r := d.spawn("web-aaaaa")
	idle := func(t time.Duration) {
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: 1, IdleMS: ms(t)}}})
	}
	if idle(time.Minute); len(d.run("web-aaaaa").Nudges) != 1 {
		t.Fatal("no nudge after its own minute")
	}
	if idle(2 * time.Minute); d.run("web-aaaaa").Stop != stopStuck {
		t.Fatal("no restart after its own two minutes")
	}
}

func TestWhatWasRefusedIsToldToTheNextAttempt(t *testing.T) {
	d, r := atWork(t)
	for i := range 3 {
		d.do(Refused{Generation: 1, Run: r.ID, Epoch: 1, Why: fmt.Sprintf("it changes nothing (%d)", i)})
	}
	d.ended(r, OutcomeExited, ClassWork, "no verdict")
	if b := d.the("web-aaaaa"); !strings.Contains(b.Reason, "it changes nothing (2)") || !strings.Contains(b.Failures[0].Reason, "refused") {
		t.Fatalf("reason %q, %+v", b.Reason, b.Failures)
	}
}

// TestOnlySuccessOrAPersonResetsACounter fills every counter, lets everything
// happen that is neither, and looks at each again.
func TestOnlySuccessOrAPersonResetsACounter(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	fill := func() {
		b := d.town.beads["web-aaaaa"]
		d.town.edit(b, At(d.now), func() { b.Charged, b.Conflicts, b.Losses, b.Restarted = 1, 3, 1, true })
		d.town.info.Sandbox.Wedges = 1
		d.town.failed(At(d.now), "hub/web", "broke")
		d.town.mark(kindTown, "tn1")
		d.save()
	}
	fill()
	d.spawn("web-aaaaa")
	d.ended(d.run("web-aaaaa"), OutcomeStopped, "", "moved")
	d.spawn("web-aaaaa")
	d.ended(d.run("web-aaaaa"), OutcomeFailed, ClassInfra, "broke")
	d.do(Pause{By: "ann", Now: true})
	d.pass(5 * time.Minute)
	d.later(time.Hour)
	d.do(Resume{By: "ann"})
	d.hello()
	d.spawn("web-aaaaa")
	b, s := d.the("web-aaaaa"), d.town.info.Sandbox
	if b.Charged != 1 || b.Conflicts != 3 || b.Losses != 1 || !b.Restarted || s.Wedges != 1 || d.town.breakers["hub/web"] == nil || d.town.breakers["agent/scripted"] == nil {
		t.Fatalf("%+v\n%+v\n%+v", b, s, d.town.Breakers())
	}
	d.done("web-aaaaa") // a success: of the sandbox and the agent; the bead may still be sent back
	b = d.the("web-aaaaa")
	if b.Losses != 0 || d.town.info.Sandbox.Wedges != 0 || d.town.breakers["agent/scripted"] != nil || d.town.breakers["hub/web"] != nil && b.Status != BeadClosed {
		t.Fatalf("%+v\n%+v", b, d.town.Breakers())
	}
	r := d.run("web-aaaaa")
	d.ended(r, OutcomeStopped, "", "")
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	if b := d.the("web-aaaaa"); b.Charged != 0 || b.Conflicts != 0 || b.Restarted {
		t.Fatalf("a person reopened it: %+v", b)
	}
}

// A time limit that ends while nobody hears the sandbox ends nothing yet: what the
// agent did meanwhile is not known.
func TestATimeLimitThatEndsInSilenceStopsNoRun(t *testing.T) {
	d, _ := atWork(t)
	d.set(Settings{"run.time_limit": "13m"})
	r := d.spawn("web-aaaaa")
	d.pass(9 * time.Minute)
	d.quiet, d.perform = true, false
	d.pass(5 * time.Minute)
	if got, ok := d.town.Run(r.ID); !ok || got.State != RunRunning || !d.town.silent(At(d.now)) {
		t.Fatalf("the run is %q (%s)", got.State, got.Stop)
	}
}
