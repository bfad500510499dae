package town

import (
	"strings"
	"testing"
	"time"
)

// saved says that a run's work was checkpointed.
func (d *driver) saved(r Run, n int) {
	d.t.Helper()
	d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: r.Epoch, Commit: commitName(n), Ref: WipRef(r.Bead, r.Epoch)})
}

// inSession is atWork with an agent that told its session.
func inSession(t *testing.T, gates ...Gate) (*driver, Run) {
	d := newDriver(t)
	d.rig(gates...)
	d.bead("web-aaaaa")
	d.hello()
	r := d.run("web-aaaaa")
	d.report(Report{Kind: ReportStarted, Run: r.ID, Epoch: 1, PID: 42, Session: "s"})
	return d, d.run("web-aaaaa")
}

// onwards lets time pass, with a sandbox that says what it must, until the bead
// has another run than before.
func (d *driver) onwards(id string, before int64) Run {
	d.t.Helper()
	for range 400 {
		if b := d.the(id); b.Epoch > before {
			return d.run(id)
		}
		switch d.town.info.Sandbox.State {
		case SandboxStarting:
			d.hello()
		case SandboxDraining:
			d.report(Report{Kind: ReportDrained})
		case SandboxAwake:
			d.report(Report{Kind: ReportHeartbeat})
		default:
		}
		d.pass(15 * time.Second)
	}
	d.t.Fatalf("bead %s got no further run: %+v", id, d.town.why(d.town.beads[id], At(d.now)))
	return Run{}
}

func TestAnAgentIsToldWhatHappenedAndWhatWasRestored(t *testing.T) {
	const restored, anew = "restored from its last checkpoint", "Nothing of it was saved"
	idle := func(d *driver, r Run, t time.Duration) {
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: r.Epoch, IdleMS: t.Milliseconds()}}})
	}
	for name, c := range map[string]struct {
		gates []Gate
		saved bool
		end   func(d *driver, r Run)
		want  []string
		never string
	}{
		"its agent was killed": {saved: true, end: func(d *driver, r Run) {
			d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeFailed, Class: ClassInfra, Subject: SubjectKilled, Reason: "agent exited: signal: killed"})
		}, want: []string{"interrupted (lost: agent exited: signal: killed)", restored, "session could not be restored"}},
		"its runner or sandbox was killed": {saved: true, end: func(d *driver, _ Run) {
			d.do(SandboxExited{Generation: d.gen(), Reason: "signal: killed"})
		}, want: []string{"the sandbox went away: signal: killed", restored}},
		"it was lost before its first checkpoint": {end: func(d *driver, _ Run) {
			d.do(SandboxExited{Generation: d.gen(), Reason: "signal: killed"})
		}, want: []string{"the sandbox went away", anew}, never: restored},
		"it was drained": {saved: true, end: func(d *driver, r Run) {
			d.ended(r, OutcomeStopped, "", stopDrain)
		}, want: []string{"interrupted (the sandbox is being drained)", restored}},
		"it was stuck": {saved: true, end: func(d *driver, r Run) {
			idle(d, r, 46*time.Minute)
			d.ended(r, OutcomeStopped, "", "whatever")
		}, want: []string{"no sign of life: restarted from the last checkpoint", restored}},
		"it gave no verdict": {saved: true, end: func(d *driver, r Run) {
			d.ended(r, OutcomeExited, ClassWork, "the agent ended its turn without done")
		}, want: []string{"without done", restored}, never: "interrupted"},
		"its gate was red": {gates: []Gate{{Name: "test", Command: "false"}}, saved: true, end: func(d *driver, r Run) {
			d.done(r.Bead)
			d.ended(r, OutcomeDone, "", "")
			d.gates(r.Bead, false)
		}, want: []string{"log of test", "begins with your earlier commit"}, never: restored},
		"its commit conflicts": {saved: true, end: func(d *driver, r Run) {
			d.town.rigs["web"].Tip, d.tip = commitName(7), 7
			d.town.mark(kindRig, "web")
			d.save()
			d.conflict[r.Bead] = true
			d.done(r.Bead)
			d.ended(r, OutcomeDone, "", "")
		}, want: []string{"conflicts with newer commits", "your earlier commit is still there"}, never: restored},
	} {
		t.Run(name, func(t *testing.T) {
			d, r := inSession(t, c.gates...)
			if c.saved {
				d.saved(r, 77)
			}
			c.end(d, r)
			next := d.onwards(r.Bead, 1)
			p, err := d.town.Prime(next.ID, next.Epoch)
			if err != nil {
				t.Fatal(err)
			}
			prompt := d.town.prompt(d.town.beads[r.Bead], d.town.rigs["web"], &next)
			for _, text := range []string{p.Reason, prompt} {
				for _, w := range c.want {
					if !strings.Contains(text, w) {
						t.Errorf("no %q in %q", w, text)
					}
				}
				if c.never != "" && strings.Contains(text, c.never) {
					t.Errorf("%q in %q", c.never, text)
				}
			}
			if d.town.info.Sandbox.State == SandboxStarting {
				d.hello()
			}
			d.saved(next, 78)
			if again, err := d.town.Prime(next.ID, next.Epoch); err != nil || again.Reason != p.Reason {
				t.Errorf("its own checkpoint changed what it is told to %q (%v)", again.Reason, err)
			}
		})
	}
}

func TestAnInterruptionHidesNoRedGate(t *testing.T) {
	d, r := atWork(t, Gate{Name: "test", Command: "false"})
	d.done(r.Bead)
	d.ended(r, OutcomeDone, "", "")
	d.gates(r.Bead, false)
	second := d.onwards(r.Bead, 1)
	d.spawn(r.Bead)
	d.saved(second, 77)
	d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
	third := d.onwards(r.Bead, 2)
	for _, w := range []string{"log of test", "interrupted (lost: the sandbox went away: killed)", "restored from its last checkpoint"} {
		if !strings.Contains(third.Told, w) {
			t.Errorf("no %q in %q", w, third.Told)
		}
	}
}

func TestASessionIsOfferedToAgentsOfItsPresetOnly(t *testing.T) {
	d, r := inSession(t)
	d.saved(r, 77)
	d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
	d.onwards(r.Bead, 1)
	d.hello()
	if got := d.town.Desired().Runs[0].Session; got != "s" {
		t.Fatalf("the session offered is %q", got)
	}
	next := d.run(r.Bead)
	next.Preset = "another"
	if got := sessionOf(d.town.beads[r.Bead], &next); got != "" {
		t.Errorf("another agent is offered the session %q", got)
	}
}

func TestCheckpointsThatFailOrTakeLongAreSeen(t *testing.T) {
	d, r := atWork(t)
	why := func() string { return d.wantWhy(r.Bead, Active, "run").Text }
	slow := Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 1, Commit: commitName(77), Ref: WipRef(r.Bead, 1), TookMS: 12_300}
	d.report(slow)
	slow.Commit = commitName(78)
	d.report(slow)
	if e := d.town.latest(CauseUnsaved, r.Bead); e == nil || !e.Open() || e.Count != 1 || !strings.Contains(e.Text, "took 12.3s") {
		t.Errorf("people are told: %+v", e)
	}
	if n := d.count("run.checkpoint_slow"); n != 1 || !strings.Contains(why(), "took 12.3s") {
		t.Errorf("%d entries, why: %s", n, why())
	}
	fail := Report{Kind: ReportUnsaved, Run: r.ID, Epoch: 1, Reason: "no space left on device"}
	d.report(fail, fail)
	if n := d.count("run.checkpoint_failed"); n != 1 || !strings.Contains(why(), "not being saved") || !strings.Contains(why(), "no space left") {
		t.Errorf("%d entries, why: %s", n, why())
	}
	d.report(Report{Kind: ReportUnsaved, Run: r.ID, Epoch: 1})
	if strings.Contains(why(), "not being saved") || d.count("run.checkpoint_works") != 1 {
		t.Errorf("why: %s", why())
	}
	for range 3 * maxSaveNotes {
		d.report(fail)
		d.saved(r, 79)
	}
	if n := d.count("run.checkpoint_failed"); n > maxSaveNotes {
		t.Errorf("%d entries of one run", n)
	}
	old := fail
	old.Epoch = 9
	d.report(old)
	if strings.Contains(why(), "not being saved") {
		t.Error("a report of another epoch was believed")
	}
}

func TestPeopleAreToldOfWorkThatIsNotSavedForAWhile(t *testing.T) {
	d, r := atWork(t)
	fail := Report{Kind: ReportUnsaved, Run: r.ID, Epoch: 1, Reason: "no space left on device"}
	d.report(fail)
	if d.openFor(CauseUnsaved, r.Bead) {
		t.Fatal("people were told of what may pass by itself")
	}
	d.report(Report{Kind: ReportUnsaved, Run: r.ID, Epoch: 1})
	d.report(fail)
	at := d.town.runs[r.ID].unsavedAt()
	if wake, ok := d.town.NextWake(d.now); !ok || wake.After(at.Time()) {
		t.Fatalf("nobody comes back at %s, only at %s", at, wake)
	}
	d.pass(unsavedPatience)
	e := d.town.latest(CauseUnsaved, r.Bead)
	if e == nil || !e.Open() || e.Count != 1 || !strings.Contains(e.Text, "no space left") {
		t.Fatalf("people are told: %+v", e)
	}
	d.saved(r, 80)
	if e.Open() {
		t.Error("it is saved again, and the escalation stays")
	}
	d.report(fail)
	d.pass(unsavedPatience)
	if !d.openFor(CauseUnsaved, r.Bead) {
		t.Fatal("people were not told the second time")
	}
	d.done(r.Bead)
	if d.openFor(CauseUnsaved, r.Bead) {
		t.Error("the escalation outlives the run")
	}
}

func TestAConversationThatIsTooLongIsNotResumed(t *testing.T) {
	for subject, want := range map[string]string{"": "s", SubjectOverflow: ""} {
		d, r := inSession(t)
		d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeExited, Class: ClassWork, Subject: subject, Reason: "the conversation is too long"})
		if b := d.the(r.Bead); b.Charged != 1 || b.Session != want {
			t.Errorf("subject %q: %d charged, the session is %q, want %q", subject, b.Charged, b.Session, want)
		}
	}
}
