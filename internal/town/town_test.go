package town

import (
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func TestABeadBecomesAMergedCommit(t *testing.T) {
	d := newDriver(t)
	d.rig(Gate{Name: "test", Command: "go test ./..."})
	d.wantSandbox(SandboxAsleep)
	d.bead("web-aaaaa")
	d.wantSandbox(SandboxStarting)
	d.wantWhy("web-aaaaa", Waiting, waitSandbox)
	d.hello()
	d.wantSandbox(SandboxAwake)
	r := d.spawn("web-aaaaa")
	if got := d.town.Desired(); len(got.Runs) != 1 || got.Runs[0].Prompt == "" || got.Runs[0].Branch != "gt/amber/web-aaaaa" {
		t.Fatalf("desired = %+v", got)
	}
	d.done("web-aaaaa")
	d.wantBead("web-aaaaa", BeadInReview)
	if got := d.town.Desired(); len(got.Gates) != 1 || got.Runs[0].Verdict != OutcomeDone {
		t.Fatalf("desired = %+v", got)
	}
	d.ended(r, OutcomeDone, "", "")
	d.gates("web-aaaaa", true)
	b := d.wantBead("web-aaaaa", BeadClosed)
	if b.Proof.Kind != ProofMerged || b.Proof.Commit != commitName(1001) {
		t.Fatalf("proof = %+v", b.Proof)
	}
	if b.Refs {
		t.Fatal("its refs were not removed from the hub")
	}
	d.pass(2*time.Minute - time.Second)
	d.wantSandbox(SandboxAwake)
	d.pass(time.Second)
	d.wantSandbox(SandboxDraining)
	d.report(Report{Kind: ReportDrained})
	d.wantSandbox(SandboxAsleep)
	if w, ok := d.town.NextWake(d.now); ok {
		t.Fatalf("an idle town wakes at %s", w)
	}
	if why := d.town.WhyTown(d.now).Text; !strings.Contains(why, "nothing to do since") {
		t.Fatalf("why = %s", why)
	}
	if n := d.count("sandbox.starting"); n != 1 {
		t.Fatalf("%d starts", n)
	}
}

func TestARedGateChargesAnAttemptAndTheFifthFailsTheBead(t *testing.T) {
	d := newDriver(t)
	d.rig(Gate{Name: "test", Command: "false"})
	d.bead("web-aaaaa")
	d.hello()
	for i := 1; i <= 5; i++ {
		r := d.spawn("web-aaaaa")
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		d.gates("web-aaaaa", false)
		if i == 5 {
			break
		}
		b := d.wantBead("web-aaaaa", BeadOpen)
		if b.Attempt != i+1 || b.Charged != i || !strings.Contains(b.Reason, "log of test") {
			t.Fatalf("after %d failures: attempt %d, charged %d, reason %q", i, b.Attempt, b.Charged, b.Reason)
		}
		d.wantWhy("web-aaaaa", Waiting, waitBackoff)
		for d.the("web-aaaaa").Status == BeadOpen {
			d.pass(30 * time.Second)
			if s := d.town.info.Sandbox.State; s == SandboxStarting {
				d.hello()
			} else if s == SandboxDraining {
				d.report(Report{Kind: ReportDrained})
			} else if s == SandboxAwake {
				d.report(Report{Kind: ReportHeartbeat})
			}
		}
	}
	d.wantBead("web-aaaaa", BeadFailed)
	d.wantWhy("web-aaaaa", Terminal, "failed")
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	if b := d.the("web-aaaaa"); b.Charged != 0 || b.Status.Terminal() {
		t.Fatalf("reopened: %+v", b)
	}
}

func TestConflictsWithNewerCommitsAreChargedToNobody(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.tip = 7
	if rig := d.town.rigs["web"]; rig != nil {
		rig.Tip = commitName(7) // somebody pushed
		d.town.mark(kindRig, "web")
		d.save()
	}
	d.conflict["web-aaaaa"] = true
	d.done("web-aaaaa")
	b := d.wantBead("web-aaaaa", BeadOpen)
	if b.Charged != 0 || b.Conflicts != 1 || b.Attempt != 2 {
		t.Fatalf("after the conflict: %+v", b)
	}
	d.wantWhy("web-aaaaa", Waiting, waitCleanup)
	d.ended(r, OutcomeDone, "", "")
	if r := d.run("web-aaaaa"); r.Base != commitName(7) || r.Epoch != 2 {
		t.Fatalf("the second run begins at %s, epoch %d", r.Base, r.Epoch)
	}
}

func TestInfrastructureFailuresNeverUseUpAttempts(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	for range 7 {
		r := d.run("web-aaaaa")
		d.ended(r, OutcomeFailed, ClassInfra, "opencode: not found")
		b := d.wantBead("web-aaaaa", BeadOpen)
		if b.Charged != 0 || b.Attempt != 1 {
			t.Fatalf("charged %d, attempt %d", b.Charged, b.Attempt)
		}
		w := d.wantWhy("web-aaaaa", Waiting, waitBreaker)
		if w.Subject != "agent/scripted" || !strings.Contains(w.Text, "not found") {
			t.Fatalf("why = %+v", w)
		}
		d.pass(w.Until.Time().Sub(d.now))
		if d.town.info.Sandbox.State == SandboxDraining {
			d.pass(30 * time.Second)
		}
		if d.town.info.Sandbox.State == SandboxStarting {
			d.hello()
		}
	}
	if br := d.town.breakers["agent/scripted"]; br.Fails != 7 {
		t.Fatalf("breaker = %+v", br)
	}
}

func TestStaleMessagesOfRunsAreRefused(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	old := d.spawn("web-aaaaa")
	d.ended(old, OutcomeStopped, "", "moved")
	now := d.spawn("web-aaaaa")
	if now.Epoch != 2 {
		t.Fatalf("epoch %d", now.Epoch)
	}
	good := Evidence{Commit: commitName(9), Exists: true, Descends: true, Changed: true}
	late := Verdict{Generation: d.gen(), Run: old.ID, Epoch: 1, CallID: "x", Kind: VerdictDone, Evidence: good}
	if err := d.try(late); !errs.Is(err, errs.Gone) {
		t.Fatalf("a late done gave %v", err)
	}
	d.ended(old, OutcomeExited, ClassWork, "late")
	d.wantBead("web-aaaaa", BeadInProgress)
	if err := d.try(Hello{Generation: 0, Stream: "x"}); !errs.Is(err, errs.Gone) {
		t.Fatalf("hello of an old generation gave %v", err)
	}
	call := Verdict{Generation: d.gen(), Run: now.ID, Epoch: 2, CallID: "y", Kind: VerdictDone, Evidence: good}
	d.do(call)
	d.do(call) // a repeat is accepted again
	d.ended(now, OutcomeDone, "", "")
	d.do(call)
	d.wantBead("web-aaaaa", BeadClosed)
}

func TestDoneNeedsEvidence(t *testing.T) {
	for name, e := range map[string]Evidence{
		"no commit":        {},
		"another base":     {Commit: commitName(1), Exists: true, Changed: true},
		"an empty diff":    {Commit: commitName(1), Exists: true, Descends: true},
		"a missing branch": {Commit: commitName(1), Descends: true, Changed: true},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			d := newDriver(t)
			d.rig()
			d.bead("web-aaaaa")
			d.hello()
			r := d.spawn("web-aaaaa")
			err := d.try(Verdict{Generation: d.gen(), Run: r.ID, Epoch: 1, CallID: "x", Kind: VerdictDone, Evidence: e})
			if !errs.Is(err, errs.Conflict) {
				t.Fatalf("got %v", err)
			}
			d.wantBead("web-aaaaa", BeadInProgress)
		})
	}
}

func TestALostSandboxPutsItsBeadsBack(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb")
	d.hello()
	d.spawn("web-aaaaa")
	r := d.run("web-aaaaa")
	d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 1, Commit: commitName(77), Ref: WipRef("web-aaaaa", 1)})
	d.do(SandboxExited{Generation: d.gen(), Reason: "killed"})
	d.wantSandbox(SandboxAsleep)
	d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	d.pass(40 * time.Second)
	d.wantSandbox(SandboxStarting)
	if d.gen() != 2 {
		t.Fatalf("generation %d", d.gen())
	}
	d.hello()
	for _, run := range d.town.Desired().Runs {
		if run.Bead == "web-aaaaa" && (run.Resume != commitName(77) || run.ResumeRef != WipRef("web-aaaaa", 1)) {
			t.Fatalf("the next run does not resume: %+v", run)
		}
	}
	if b := d.the("web-aaaaa"); b.Losses != 1 || b.Charged != 0 || b.Attempt != 1 {
		t.Fatalf("%+v", b)
	}
}

func TestDependenciesBlockUntilClosed(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb", func(c *CreateBead) { c.BlockedBy = []string{"web-aaaaa"} })
	d.hello()
	d.wantWhy("web-bbbbb", Waiting, waitBlocker)
	d.spawn("web-aaaaa")
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.wantWhy("web-bbbbb", Waiting, waitBlocker) // cancelled is not done
	d.do(DependBead{By: "ann", Bead: "web-bbbbb", On: "web-aaaaa", Remove: true})
	d.wantBead("web-bbbbb", BeadInProgress)
}

func TestACycleOfDependenciesIsRefusedAndNamed(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	for _, id := range []string{"web-aaaaa", "web-bbbbb", "web-ccccc"} {
		d.bead(id, func(c *CreateBead) { c.Staged = true })
	}
	d.do(DependBead{By: "ann", Bead: "web-bbbbb", On: "web-aaaaa"})
	d.do(DependBead{By: "ann", Bead: "web-ccccc", On: "web-bbbbb"})
	err := d.try(DependBead{By: "ann", Bead: "web-aaaaa", On: "web-ccccc"})
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "web-aaaaa is blocked by web-ccccc is blocked by web-bbbbb is blocked by web-aaaaa") {
		t.Fatalf("got %v", err)
	}
	if err := d.try(DependBead{By: "ann", Bead: "web-aaaaa", On: "web-aaaaa"}); !errs.Is(err, errs.Conflict) {
		t.Fatalf("self: got %v", err)
	}
}

func TestConcurrencyIsEnforcedPerRigAndTown(t *testing.T) {
	d := newDriver(t)
	d.rig()
	for _, c := range "abcdefgh" {
		d.bead("web-aaaa" + string(c))
	}
	d.hello()
	if n := len(d.town.runs); n != 4 {
		t.Fatalf("%d runs, want the default of 4", n)
	}
	d.wantWhy("web-aaaae", Waiting, waitCapacity)
	d.do(SetTown{By: "ann", Set: Settings{"polecats.per_town": "5"}})
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"polecats.per_rig": "9"}})
	if n := len(d.town.runs); n != 5 {
		t.Fatalf("%d runs, want the town's limit of 5", n)
	}
}

func TestOneSandboxAtATime(t *testing.T) {
	t.Run("work that arrives while draining brings it back", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(Resume{By: "ann", For: time.Minute})
		d.hello()
		d.pass(3 * time.Minute)
		d.wantSandbox(SandboxDraining)
		d.bead("web-aaaaa")
		d.wantSandbox(SandboxAwake)
		if d.gen() != 1 || d.run("web-aaaaa").Generation != 1 {
			t.Fatalf("generation %d", d.gen())
		}
	})
	t.Run("work that arrives while stopping waits for the next generation", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(Resume{By: "ann", For: time.Minute})
		d.hello()
		d.pass(3 * time.Minute)
		d.perform = false
		d.report(Report{Kind: ReportDrained})
		d.wantSandbox(SandboxStopping)
		d.bead("web-aaaaa")
		d.wantSandbox(SandboxStopping)
		d.perform = true
		d.do(Tick{})
		d.wantSandbox(SandboxStarting)
		if d.gen() != 2 {
			t.Fatalf("generation %d", d.gen())
		}
	})
}

func TestPauseSleepWakeAndResume(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(Pause{By: "ann"})
	d.bead("web-aaaaa")
	d.wantSandbox(SandboxAsleep)
	d.wantWhy("web-aaaaa", Waiting, waitPause)
	d.do(Resume{By: "ann"})
	d.hello()
	d.spawn("web-aaaaa")
	d.do(Pause{By: "ann", Now: true})
	d.wantSandbox(SandboxDraining)
	r := d.run("web-aaaaa")
	d.ended(r, OutcomeStopped, "", "drained")
	d.report(Report{Kind: ReportDrained})
	d.wantSandbox(SandboxAsleep)
	b := d.wantBead("web-aaaaa", BeadOpen)
	if b.Charged != 0 || b.Attempt != 1 {
		t.Fatalf("sleep was charged: %+v", b)
	}
	d.pass(time.Hour)
	d.wantSandbox(SandboxAsleep)
	d.do(Resume{By: "ann", For: 30 * time.Minute})
	d.wantSandbox(SandboxStarting)
}

func TestSilenceOfASandbox(t *testing.T) {
	t.Run("is looked into and a gone one is replaced", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.quiet = true
		d.pass(90 * time.Second)
		d.wantSandbox(SandboxAsleep)
	})
	t.Run("proves nothing while nobody listened", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.now = d.now.Add(10 * time.Minute)
		d.do(Unheard{})
		d.do(Tick{})
		d.wantSandbox(SandboxAwake)
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: "web-aaaaa.1", Epoch: 1}}})
		d.wantBead("web-aaaaa", BeadInProgress)
		d.quiet = true
		d.pass(89 * time.Second)
		d.wantSandbox(SandboxAwake)
	})
	t.Run("is forgiven five times at most", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		for i := 1; i <= 7; i++ {
			d.now = d.now.Add(time.Minute)
			d.do(Unheard{})
			if lost := d.count("sandbox.lost") > 0; lost != (i > 5) {
				t.Fatalf("after %d minutes of silence: lost %v", i, lost)
			}
		}
	})
}

func TestTokensAreRenewedByTheStoredTime(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(SetTown{By: "ann", Set: Settings{"run.time_limit": "24h", "stuck.restart_after": "48h", "stuck.nudge_after": "48h"}})
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	for range 24 * 60 {
		d.now = d.now.Add(time.Minute)
		d.town = d.reload() // nothing may live in memory
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: "web-aaaaa.1", Epoch: 1}}})
		d.do(Exchange{Generation: 1})
		d.do(Tick{})
	}
	if n := d.town.info.Sandbox.Renewals; n < 23 || n > 24 {
		t.Fatalf("%d renewals in 24 h, want at most 24 and not far fewer", n)
	}
}

func TestCancelDuringTheLastPushIsRefused(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	d.perform = false
	d.done("web-aaaaa")
	for d.the("web-aaaaa").Merge.State != MergeLanding {
		for _, e := range d.town.Claim(d.now, "boot") {
			if err := d.try(EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.try(CancelBead{By: "ann", Bead: "web-aaaaa"}); !errs.Is(err, errs.Conflict) {
		t.Fatalf("got %v", err)
	}
}

func TestDeletingATownEndsWithNothingLeft(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	d.do(DeleteTown{By: "ann"})
	d.wantSandbox(SandboxDraining)
	if err := d.try(CreateBead{By: "ann", ID: "web-bbbbb", Rig: "web", Title: "x"}); !errs.Is(err, errs.Conflict) {
		t.Fatalf("got %v", err)
	}
	d.pass(30 * time.Second)
	if !d.town.info.Removed {
		t.Fatalf("not removed: %s", d.town.WhyTown(d.now).Text)
	}
}

func TestBadInputIsRefusedAndChangesNothing(t *testing.T) {
	d := newDriver(t)
	d.rig()
	ok := CreateBead{By: "ann", ID: "web-aaaaa", Rig: "web", Title: "x", Priority: 2}
	for name, change := range map[string]func(*CreateBead){
		"a title of 10 MB":        func(c *CreateBead) { c.Title = strings.Repeat("x", 10<<20) },
		"a NUL in the title":      func(c *CreateBead) { c.Title = "a\x00b" },
		"invalid UTF-8":           func(c *CreateBead) { c.Title = "a\xff" },
		"an empty title":          func(c *CreateBead) { c.Title = " \t" },
		"a title of two lines":    func(c *CreateBead) { c.Title = "a\nb" },
		"a priority of 5":         func(c *CreateBead) { c.Priority = 5 },
		"a foreign prefix":        func(c *CreateBead) { c.ID = "api-aaaaa" },
		"an id like an option":    func(c *CreateBead) { c.ID = "--upload-pack=x" },
		"an unknown rig":          func(c *CreateBead) { c.Rig = "nope" },
		"an unknown blocker":      func(c *CreateBead) { c.BlockedBy = []string{"web-zzzzz"} },
		"an unknown setting":      func(c *CreateBead) { c.Settings = Settings{"agnet": "x"} },
		"a label with a space":    func(c *CreateBead) { c.Labels = []string{"a b"} },
		"a NUL in the body":       func(c *CreateBead) { c.Body = "\x00" },
		"a setting of the server": func(c *CreateBead) { c.Settings = Settings{"max_awake": "3"} },
	} {
		t.Run(name, func(t *testing.T) {
			in := ok
			change(&in)
			if err := d.try(in); err == nil {
				t.Fatal("was accepted")
			}
		})
	}
	if err := d.try(CreateBead{By: "ann", ID: "web-aaaaa", Rig: "web", Title: "x", Settings: Settings{"agnet": "x"}}); !strings.Contains(err.Error(), "agent") {
		t.Fatalf("the nearest setting is not named: %v", err)
	}
	d.do(ok)
	if err := d.try(ok); !errs.Is(err, errs.Conflict) {
		t.Fatalf("a duplicate id gave %v", err)
	}
}

func TestPoisonRowsAreQuarantined(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
	d.bead("web-bbbbb", func(c *CreateBead) { c.Staged = true })
	for name, body := range map[string]string{"not JSON": "{", "an unknown status": `{"id":"web-aaaaa","status":"weird"}`,
		"a newer field": `{"id":"web-aaaaa","status":"open","telepathy":1}`, "another id": `{"id":"web-bbbbb","status":"open"}`} {
		t.Run(name, func(t *testing.T) {
			var rows []Row
			for k, v := range d.rows {
				kind, id, _ := strings.Cut(k, " ")
				if id == "web-aaaaa" {
					v = []byte(body)
				}
				rows = append(rows, Row{kind, id, v})
			}
			town, err := Decode("tn1", rows, nil)
			if err != nil {
				t.Fatal(err)
			}
			if q := town.Quarantined(); len(q) != 1 || q[0].ID != "web-aaaaa" {
				t.Fatalf("quarantined %v", q)
			}
			if err := town.Handle(d.now, SlingBead{By: "ann", Bead: "web-bbbbb"}); err != nil {
				t.Fatal(err)
			}
			if _, ok := town.Run("web-bbbbb.1"); !ok {
				t.Fatal("the rest of the town does not go on")
			}
		})
	}
}
