package town

import (
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func gone(err error) bool     { return errs.Is(err, errs.Gone) }
func conflict(err error) bool { return errs.Is(err, errs.Conflict) }
func invalid(err error) bool  { return errs.Is(err, errs.Invalid) }

func TestVerdictsAreFencedByGenerationAndEpoch(t *testing.T) {
	d, r := atWork(t)
	good := Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "c", Kind: VerdictNoChange, Text: "fine"}
	for name, change := range map[string]func(*Verdict){
		"an older generation": func(v *Verdict) { v.Generation = 0 },
		"a newer generation":  func(v *Verdict) { v.Generation = 2 },
		"another epoch":       func(v *Verdict) { v.Epoch = 2 },
		"another run":         func(v *Verdict) { v.Run = "web-aaaaa.2" },
		"no run":              func(v *Verdict) { v.Run = "" },
	} {
		v := good
		change(&v)
		if err := d.try(v); !gone(err) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	d.wantBead("web-aaaaa", BeadInProgress)
	for name, change := range map[string]func(*Verdict){
		"no reason":          func(v *Verdict) { v.Text = "" },
		"an unknown kind":    func(v *Verdict) { v.Kind = "maybe" },
		"a NUL in the text":  func(v *Verdict) { v.Text = "a\x00" },
		"a text of 10 KB":    func(v *Verdict) { v.Text = strings.Repeat("x", 10<<10) },
		"escalate in silent": func(v *Verdict) { v.Kind, v.Text = VerdictEscalate, "" },
	} {
		v := good
		change(&v)
		if err := d.try(v); !invalid(err) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	d.do(good)
	other := good
	other.CallID = "d"
	d.refused(other, conflict)
}

func TestReportsAreFencedByEpoch(t *testing.T) {
	d, old := atWork(t)
	d.ended(old, OutcomeStopped, "", "moved")
	r := d.spawn("web-aaaaa")
	d.report(
		Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeExited, Class: ClassWork},
		Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 1, Commit: commitName(5), Ref: WipRef("web-aaaaa", 1)},
		Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 2, Commit: commitName(5), Ref: WipRef("web-aaaaa", 1)},
		Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 2, Commit: "--all", Ref: WipRef("web-aaaaa", 2)},
		Report{Kind: ReportStarted, Run: r.ID, Epoch: 1, PID: 99, Session: "s"})
	if b := d.wantBead("web-aaaaa", BeadInProgress); b.Charged != 0 || b.Checkpoint != "" || b.Session != "" || d.run("web-aaaaa").PID != 42 {
		t.Fatalf("%+v", b)
	}
	d.town.runs[r.ID].Generation = 7 // as if another sandbox had it
	if got := d.town.fencedRun(Reports{Generation: 1}, Report{Run: r.ID, Epoch: 2}); got != nil {
		t.Fatal("a report of another generation was taken")
	}
	if got := d.town.fencedRun(Reports{Generation: 7}, Report{Run: r.ID, Epoch: 2}); got == nil {
		t.Fatal("its own report was not taken")
	}
}

func TestAHeartbeatRenewsOnlyTheLeaseOfTheCurrentEpoch(t *testing.T) {
	d, r := atWork(t)
	d.later(10 * time.Second)
	lease := d.run("web-aaaaa").LeaseUntil
	d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: 2}, {Run: "web-zzzzz.1", Epoch: 1}}})
	if got := d.run("web-aaaaa").LeaseUntil; got != lease {
		t.Fatalf("moved to %s", got)
	}
	d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: 1, IdleMS: -5}}})
	if got := d.run("web-aaaaa"); got.LeaseUntil != lease.Add(10*time.Second) || got.IdleMS != 0 || got.LifeAt != At(d.now) {
		t.Fatalf("%+v", got)
	}
}

func TestAPutBackBeadBeginsWhereItsWorkIs(t *testing.T) {
	t.Run("at the newest tip when nothing was done", func(t *testing.T) {
		d, r := atWork(t)
		d.tip = 4
		d.later(2 * time.Minute)
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: 1}}})
		d.ended(r, OutcomeStopped, "", "moved")
		if got := d.run("web-aaaaa"); got.Base != commitName(4) || got.Start != commitName(4) {
			t.Fatalf("begins at %s", got.Base)
		}
	})
	t.Run("at its base when there is a checkpoint", func(t *testing.T) {
		d, r := atWork(t)
		d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 1, Commit: commitName(77), Ref: WipRef("web-aaaaa", 1)})
		d.tip = 4
		d.later(2 * time.Minute)
		d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: 1}}})
		d.ended(r, OutcomeStopped, "", "moved")
		got := d.run("web-aaaaa")
		if got.Base != commitName(0) || got.Start != commitName(0) {
			t.Fatalf("begins at %s", got.Base)
		}
		doc := d.town.Desired().Runs[0]
		if doc.Resume != commitName(77) || doc.ResumeRef != WipRef("web-aaaaa", 1) || !strings.Contains(doc.Prompt, "interrupted (moved)") {
			t.Fatalf("%+v", doc)
		}
	})
}

func TestInfrastructureFailuresChargeTheBreakerTheyAreAbout(t *testing.T) {
	for name, c := range map[string]struct{ subject, want string }{
		"its rig": {"rig/web", "rig/web"}, "the sandbox": {"sandbox", "sandbox"}, "its agent": {"agent/scripted", "agent/scripted"},
		"another rig, which it can't know": {"rig/api", "agent/scripted"}, "nothing": {"", "agent/scripted"}, "the town": {"town", "agent/scripted"},
	} {
		t.Run(name, func(t *testing.T) {
			d, r := atWork(t)
			d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeFailed, Class: ClassInfra, Subject: c.subject, Reason: "broke"})
			if br := d.town.Breakers(); len(br) != 1 || br[0].Subject != c.want {
				t.Fatalf("%+v", br)
			}
			if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 0 || b.Attempt != 1 || len(b.Failures) != 1 || b.Failures[0].Class != ClassInfra {
				t.Fatalf("%+v", b)
			}
		})
	}
	t.Run("and nobody after a verdict", func(t *testing.T) {
		d, r := atWork(t)
		d.done("web-aaaaa")
		d.ended(r, OutcomeFailed, ClassInfra, "broke")
		if br := d.town.Breakers(); len(br) != 0 {
			t.Fatalf("%+v", br)
		}
		d.wantBead("web-aaaaa", BeadClosed)
	})
}

func TestAnAgentThatIsKilledAgainAndAgainPaysFromTheThirdTimeOn(t *testing.T) {
	d, r := atWork(t)
	for epoch := int64(1); epoch <= 3; epoch++ {
		d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: epoch, Outcome: OutcomeFailed, Class: ClassInfra, Subject: SubjectKilled, Reason: "signal: killed"})
		b := d.the("web-aaaaa")
		if want := max(int(epoch)-2, 0); b.Charged != want || b.Losses != int(epoch) || len(d.town.Breakers()) != 0 {
			t.Fatalf("run %d: charged %d, losses %d, %+v", epoch, b.Charged, b.Losses, d.town.Breakers())
		}
		if epoch < 3 {
			r = d.spawn("web-aaaaa")
		}
	}
}

func TestAnUnknownEndOfARunIsWork(t *testing.T) {
	for _, o := range []Outcome{"", "vanished", OutcomeDone, OutcomeNoChange, OutcomeLost} {
		d, r := atWork(t)
		d.ended(r, o, ClassInfra, "")
		if b := d.wantBead("web-aaaaa", BeadOpen); b.Charged != 1 || len(d.town.Breakers()) != 0 {
			t.Errorf("%q: charged %d, %+v", o, b.Charged, d.town.Breakers())
		}
	}
}

func TestABeadFailsWithItsLastAttemptAndNotBefore(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"work.max_attempts": "2", "notify.url": "http://localhost/x"})
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
	d.wantBead("web-aaaaa", BeadOpen)
	d.do(Retry{By: "ann", ID: "web-aaaaa"})
	d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict again")
	b := d.wantBead("web-aaaaa", BeadFailed)
	if b.NotBefore != 0 || b.ClosedAt == 0 || len(b.Runs) != 2 || len(b.Failures) != 2 || !b.Failures[1].Charged {
		t.Fatalf("%+v", b)
	}
	if a := d.town.Agents()[0]; a.Failed != 2 || a.Run != "" || a.Closed != 0 {
		t.Fatalf("%+v", a)
	}
	if d.count("notice.sent") != 2 { // bead.failed, town.finished
		t.Fatalf("%d notices", d.count("notice.sent"))
	}
	d.refused(EditBead{By: "ann", Bead: "web-aaaaa"}, conflict)
	d.do(CloseBead{By: "ann", Bead: "web-aaaaa", Reason: "did it by hand"})
	if b := d.wantBead("web-aaaaa", BeadClosed); b.Proof.Kind != ProofPerson || b.Proof.By != "ann" {
		t.Fatalf("%+v", b.Proof)
	}
}

func TestAnEscalatedBeadGoesOnWhenAPersonReopensIt(t *testing.T) {
	d, r := atWork(t)
	d.refused(ReopenBead{By: "ann", Bead: "web-aaaaa"}, conflict)
	d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "e", Kind: VerdictEscalate, Text: "which colour?"})
	if w := d.wantWhy("web-aaaaa", Waiting, waitPerson); !strings.Contains(w.Text, "which colour?") {
		t.Fatalf("%+v", w)
	}
	d.ended(r, OutcomeStopped, "", "")
	d.pass(time.Minute)
	d.wantWhy("web-aaaaa", Waiting, waitPerson)
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa", Reason: "blue"})
	b := d.wantBead("web-aaaaa", BeadInProgress)
	if b.Escalated || b.Attempt != 2 || b.Charged != 0 || !strings.Contains(d.town.Desired().Runs[0].Prompt, "blue") {
		t.Fatalf("%+v", b)
	}
}

func TestReopeningATerminalBeadBeginsAnew(t *testing.T) {
	d, r := atWork(t)
	d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: 1, Commit: commitName(77), Ref: WipRef("web-aaaaa", 1)})
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.refused(ReopenBead{By: "ann", Bead: "web-aaaaa"}, conflict) // its run is still ending
	d.ended(r, OutcomeStopped, "", "")
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	if b := d.wantBead("web-aaaaa", BeadInProgress); b.Checkpoint != "" || b.Attempt != 2 || b.ClosedAt != 0 || b.Proof != nil || b.Epoch != 2 {
		t.Fatalf("%+v", b)
	}
}

func TestARunsAgentIsTheBeadsLastOneWhereItIsFree(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb")
	d.hello()
	a, b := d.run("web-aaaaa"), d.run("web-bbbbb")
	if a.Agent == b.Agent {
		t.Fatalf("both have %s", a.Agent)
	}
	d.ended(b, OutcomeExited, ClassWork, "x")
	d.ended(a, OutcomeStopped, "", "moved")
	d.do(Retry{By: "ann", ID: "web-bbbbb"})
	if got := d.run("web-bbbbb").Agent; got != b.Agent {
		t.Fatalf("went from %s to %s", b.Agent, got)
	}
}

func TestGitRulesFollowTheRun(t *testing.T) {
	d, r := atWork(t)
	g, err := d.town.GitRules(r.ID, 1, "web")
	if err != nil || g.Branch != "refs/heads/gt/amber/web-aaaaa" || g.Wip != "refs/gastown/wip/web-aaaaa/1" || g.Frozen != "" {
		t.Fatalf("%+v %v", g, err)
	}
	for _, c := range []struct {
		run, rig string
		epoch    int64
	}{{r.ID, "api", 1}, {r.ID, "web", 2}, {"web-bbbbb.1", "web", 1}} {
		if _, err := d.town.GitRules(c.run, c.epoch, c.rig); !gone(err) {
			t.Errorf("%+v gave %v", c, err)
		}
	}
	d.perform = false
	d.done("web-aaaaa")
	if g, err := d.town.GitRules(r.ID, 1, "web"); err != nil || g.Frozen == "" {
		t.Fatalf("not frozen after done: %+v %v", g, err)
	}
	d.ended(r, OutcomeDone, "", "")
	if _, err := d.town.GitRules(r.ID, 1, "web"); !gone(err) {
		t.Fatalf("after its end: %v", err)
	}
}

func TestPrimeTellsTheAgentItsWorkAndRefusesOldOnes(t *testing.T) {
	d := newDriver(t)
	d.rig(Gate{Name: "test", Command: "go test ./..."})
	d.bead("web-aaaaa", func(c *CreateBead) { c.Body = "the body" })
	d.hello()
	r := d.spawn("web-aaaaa")
	p, err := d.town.Prime(r.ID, 1)
	if err != nil || p.Bead.Body != "the body" || p.Target != "main" || len(p.Gates) != 1 || p.Rules == "" || p.Attempt != 1 {
		t.Fatalf("%+v %v", p, err)
	}
	if _, err := d.town.Prime(r.ID, 2); !gone(err) {
		t.Fatalf("another epoch gave %v", err)
	}
}

func TestAMessageIsKeptUntilAnAgentOfTheBeadReadIt(t *testing.T) {
	d, r := atWork(t)
	d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "one"})
	d.do(NudgeBead{By: "bob", Bead: "web-aaaaa", Text: "two", Interrupt: true})
	if got := d.town.Desired().Runs[0].Nudges; len(got) != 2 || got[0].Interrupt || !got[1].Interrupt {
		t.Fatalf("desired: %+v", got)
	}
	d.report(Report{Kind: ReportNudged, Run: r.ID, Epoch: 1, Nudge: 1})
	kept := d.the("web-aaaaa").Nudges
	if len(kept) != 2 || kept[0].DeliveredAt == 0 || kept[0].Epoch != 1 || kept[1].DeliveredAt != 0 {
		t.Fatalf("kept: %+v", kept)
	}
	d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeFailed, Class: ClassInfra, Subject: SubjectKilled, Reason: "signal: killed"})
	next := d.run("web-aaaaa")
	if next.Epoch != 2 || len(next.Nudges) != 1 || next.Nudges[0].Text != "two" || next.Nudges[0].N != 2 || next.Nudges[0].Interrupt {
		t.Fatalf("the next run: %+v", next)
	}
	d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "three"})
	d.report(Report{Kind: ReportNudged, Run: next.ID, Epoch: 2, Nudge: 3})
	kept = d.the("web-aaaaa").Nudges
	if len(kept) != 3 || kept[1].Epoch != 2 || kept[2].N != 3 || kept[2].DeliveredAt == 0 || len(d.run("web-aaaaa").Nudges) != 0 {
		t.Errorf("kept: %+v", kept)
	}
	if rev := d.town.info.DesiredRev; rev == 0 {
		t.Error("no revision")
	}
}

func TestNudges(t *testing.T) {
	d, r := atWork(t)
	d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "one"})
	d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "two"})
	d.report(Report{Kind: ReportNudged, Run: r.ID, Epoch: 1, Nudge: 1})
	if got := d.town.Desired().Runs[0].Nudges; len(got) != 1 || got[0].Text != "two" || got[0].N != 2 {
		t.Fatalf("%+v", got)
	}
	d.refused(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: " "}, invalid)
	for range 19 {
		d.do(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "more"})
	}
	d.refused(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "one too many"}, func(err error) bool { return errs.Is(err, errs.Overloaded) })
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.refused(NudgeBead{By: "ann", Bead: "web-aaaaa", Text: "late"}, conflict)
}

func TestARunThatIsNeverSpawnedHasATimeLimitToo(t *testing.T) {
	d := newDriver(t)
	d.set(Settings{"run.time_limit": "10m"})
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	for range 10 {
		d.later(time.Minute)
		d.do(Hello{Generation: 1, Stream: d.now.String()})
	}
	if r := d.run("web-aaaaa"); r.Stop != stopLimit {
		t.Fatalf("a runner that only says hello keeps it for ever: %+v", r)
	}
}
