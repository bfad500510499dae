package town

import (
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

var oneGate = Gate{Name: "test", Command: "true", Timeout: time.Minute}

// reviewed is a town with a bead whose run has ended with done.
func reviewed(t testing.TB, set Settings, gates ...Gate) *driver {
	d := newDriver(t)
	d.rig(gates...)
	if set != nil {
		d.do(SetRig{By: "ann", Rig: "web", Set: set})
	}
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.perform = false
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	return d
}

// answer claims an effect and gives its outcome.
func (d *driver) answer(key string, result any) {
	d.t.Helper()
	e := d.claim(key)
	d.do(EffectDone{Key: e.Key, ID: e.ID, Result: result})
}

func (d *driver) wantMerge(id string, s MergeState) Merge {
	d.t.Helper()
	b := d.the(id)
	if b.Merge == nil || b.Merge.State != s {
		d.t.Fatalf("bead %s is %s with merge %+v, want %s", id, b.Status, b.Merge, s)
	}
	return *b.Merge
}

func TestGateResultsCountForTheirCandidateOnly(t *testing.T) {
	d := reviewed(t, nil, oneGate, Gate{Name: "lint", Command: "true"})
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.wantMerge("web-aaaaa", MergeGating)
	good := GatesDone{Generation: 1, Bead: "web-aaaaa", N: 1, Candidate: commitName(8), Results: []GateRun{{Name: "test", Passed: true}, {Name: "lint", Passed: true}}}
	for name, c := range map[string]struct {
		change func(*GatesDone)
		want   func(error) bool
	}{
		"an old generation":         {func(g *GatesDone) { g.Generation = 0 }, gone},
		"another number":            {func(g *GatesDone) { g.N = 2 }, gone},
		"another candidate":         {func(g *GatesDone) { g.Candidate = commitName(9) }, gone},
		"another bead":              {func(g *GatesDone) { g.Bead = "web-bbbbb" }, gone},
		"no results":                {func(g *GatesDone) { g.Results = nil }, invalid},
		"too many results":          {func(g *GatesDone) { g.Results = append(g.Results, GateRun{Name: "x"}) }, invalid},
		"another gate":              {func(g *GatesDone) { g.Results = []GateRun{{Name: "vet"}} }, invalid},
		"green, but not all":        {func(g *GatesDone) { g.Results = g.Results[:1] }, invalid},
		"results after a red one":   {func(g *GatesDone) { g.Results = []GateRun{{Name: "test"}, {Name: "lint", Passed: true}} }, invalid},
		"the gates the wrong way":   {func(g *GatesDone) { g.Results = []GateRun{g.Results[1], g.Results[0]} }, invalid},
		"the same gate, both times": {func(g *GatesDone) { g.Results = []GateRun{g.Results[0], g.Results[0]} }, invalid},
	} {
		in := good
		c.change(&in)
		if err := d.try(in); err == nil || !c.want(err) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	d.wantMerge("web-aaaaa", MergeGating)
	d.do(good)
	d.wantMerge("web-aaaaa", MergeLanding)
	d.refused(good, gone)
}

func TestARedGateStopsAtItselfAndItsLogIsClipped(t *testing.T) {
	d := reviewed(t, nil, oneGate, Gate{Name: "lint", Command: "true"})
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.do(GatesDone{Generation: 1, Bead: "web-aaaaa", N: 1, Candidate: commitName(8),
		Results: []GateRun{{Name: "test", TimedOut: true, Log: strings.Repeat("x", 100<<10) + "the end\xff"}}})
	b := d.wantBead("web-aaaaa", BeadOpen)
	if b.Charged != 1 || len(b.Reason) > 5000 || !strings.Contains(b.Reason, "the end") || !strings.Contains(b.Reason, "time limit") {
		t.Fatalf("charged %d, reason of %d bytes", b.Charged, len(b.Reason))
	}
	if b.Start != commitName(500) {
		t.Fatalf("the next run begins at %s, not at its own commit", b.Start)
	}
}

func TestGatesThatCouldNotRunChargeABreaker(t *testing.T) {
	d := reviewed(t, nil, oneGate)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.do(GatesDone{Generation: 1, Bead: "web-aaaaa", N: 1, Candidate: commitName(8), Infra: "no space left"})
	d.wantMerge("web-aaaaa", MergeQueued)
	if b := d.the("web-aaaaa"); b.Charged != 0 || d.town.breakers["gates/web"] == nil {
		t.Fatalf("charged %d, %+v", b.Charged, d.town.Breakers())
	}
	d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	d.later(40 * time.Second)
	d.do(Tick{})
	d.wantMerge("web-aaaaa", MergeBuilding)
}

func TestGatesThatNeverReportAreTriedAgain(t *testing.T) {
	d := reviewed(t, nil, oneGate)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	m := d.wantMerge("web-aaaaa", MergeGating)
	if got := m.Deadline.Sub(At(d.now)); got != 6*time.Minute {
		t.Fatalf("a minute of gates may take %s", got)
	}
	d.pass(6*time.Minute - time.Second)
	d.wantMerge("web-aaaaa", MergeGating)
	d.pass(time.Second)
	d.wantMerge("web-aaaaa", MergeQueued)
	if b := d.the("web-aaaaa"); b.Charged != 0 || d.town.breakers["gates/web"] == nil {
		t.Fatalf("charged %d, %+v", b.Charged, d.town.Breakers())
	}
}

func TestACandidateWhoseGatesWereRemovedIsNotWaitedFor(t *testing.T) {
	d := reviewed(t, nil, oneGate)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.do(SetRig{By: "ann", Rig: "web", Gates: &[]Gate{}})
	if m := d.wantMerge("web-aaaaa", MergeBuilding); m.N != 2 || len(d.town.gating()) != 0 {
		t.Fatalf("%+v", m)
	}
}

func TestAConflictIsChargedOnlyWhenItRepeatsOnTheSameTip(t *testing.T) {
	again := func(d *driver) {
		d.perform = true
		d.do(Tick{})
		r := d.spawn("web-aaaaa")
		d.perform = false
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
	}
	d := reviewed(t, nil)
	d.town.beads["web-aaaaa"].Merge.Tip = commitName(7) // somebody pushed before the candidate
	d.town.mark(kindBead, "web-aaaaa")
	d.save()
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Conflict: true, Detail: "main.go"})
	if b := d.the("web-aaaaa"); b.Charged != 0 || b.Conflicts != 1 || b.Attempt != 2 || b.Merge != nil || b.Status == BeadInReview {
		t.Fatalf("the first conflict: %+v", b)
	}
	if b := d.the("web-aaaaa"); !strings.Contains(b.Reason, "main.go") {
		t.Fatalf("reason %q", b.Reason)
	}
	again(d)
	d.town.beads["web-aaaaa"].Merge.Tip = commitName(7)
	d.town.mark(kindBead, "web-aaaaa")
	d.save()
	d.answer("merge/web-aaaaa/2/candidate", Candidate{Conflict: true, Detail: "main.go"})
	if b := d.the("web-aaaaa"); b.Charged != 1 || b.Conflicts != 1 {
		t.Fatalf("the same conflict again: charged %d, conflicts %d", b.Charged, b.Conflicts)
	}
}

func TestAConflictWithItsOwnBaseIsCharged(t *testing.T) {
	d := reviewed(t, nil)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Conflict: true, Detail: "main.go"})
	if b := d.the("web-aaaaa"); b.Charged != 1 || b.Conflicts != 0 {
		t.Fatalf("charged %d, conflicts %d", b.Charged, b.Conflicts)
	}
}

func TestTooManyConflictsFailABead(t *testing.T) {
	d := reviewed(t, Settings{"merge.max_conflicts": "2"})
	for i := 1; i <= 2; i++ {
		d.town.beads["web-aaaaa"].Merge.Tip = commitName(70 + i)
		d.town.mark(kindBead, "web-aaaaa")
		d.save()
		e := d.claim("merge/web-aaaaa/" + string(rune('0'+i)) + "/candidate")
		d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Candidate{Conflict: true}})
		if i == 1 {
			r := d.spawn("web-aaaaa")
			d.done("web-aaaaa")
			d.ended(r, OutcomeDone, "", "")
		}
	}
	if b := d.wantBead("web-aaaaa", BeadFailed); b.Conflicts != 2 || b.Charged != 0 {
		t.Fatalf("conflicts %d, charged %d", b.Conflicts, b.Charged)
	}
}

func TestOneCandidateAtATimeAndTheOldestFirst(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.bead("web-bbbbb")
	d.bead("web-ccccc", func(c *CreateBead) { c.Priority = 0 })
	d.hello()
	d.perform = false
	for _, id := range []string{"web-bbbbb", "web-aaaaa", "web-ccccc"} {
		d.done(id)
		d.later(time.Second)
	}
	d.wantMerge("web-bbbbb", MergeBuilding)
	d.wantMerge("web-aaaaa", MergeQueued)
	if w := d.wantWhy("web-aaaaa", Waiting, waitMerge); w.Subject != "web-bbbbb" {
		t.Fatalf("%+v", w)
	}
	d.answer("merge/web-bbbbb/1/candidate", Candidate{AlreadyIn: true})
	if b := d.wantBead("web-bbbbb", BeadClosed); b.Proof.Commit != commitName(500) || b.Proof.Kind != ProofMerged {
		t.Fatalf("%+v", b.Proof)
	}
	d.wantMerge("web-ccccc", MergeBuilding) // the most urgent, then the oldest
	d.wantMerge("web-aaaaa", MergeQueued)
}

func TestLostLeasesAreChargedToNobodyAndThreePause(t *testing.T) {
	d := reviewed(t, nil)
	for i := 1; i <= 3; i++ {
		n := string(rune('0' + i))
		d.answer("merge/web-aaaaa/"+n+"/candidate", Candidate{Commit: commitName(800 + i)})
		d.answer("merge/web-aaaaa/"+n+"/land", Landed{Lost: true, Tip: commitName(900 + i)})
		if i < 3 {
			if m := d.wantMerge("web-aaaaa", MergeBuilding); m.Tip != commitName(900+i) || m.Candidate != "" || m.Lost != i {
				t.Fatalf("after %d: %+v", i, m)
			}
		}
	}
	d.wantMerge("web-aaaaa", MergeQueued)
	w := d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	if b := d.the("web-aaaaa"); w.Subject != "merge/web-aaaaa" || b.Charged != 0 || b.Attempt != 1 {
		t.Fatalf("%+v, charged %d", w, b.Charged)
	}
	d.now = w.Until.Time()
	d.do(Tick{})
	d.answer("merge/web-aaaaa/4/candidate", Candidate{Commit: commitName(804)})
	d.answer("merge/web-aaaaa/4/land", Landed{Tip: commitName(999)})
	if b := d.wantBead("web-aaaaa", BeadClosed); b.Proof.Commit != commitName(804) || d.town.rigs["web"].Tip != commitName(999) || d.town.breakers["merge/web-aaaaa"] != nil {
		t.Fatalf("%+v", b.Proof)
	}
}

func TestAnOldTipDelaysACandidateUntilItIsFetched(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.pass(5 * time.Minute)
	d.perform = false
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.wantMerge("web-aaaaa", MergeQueued)
	d.answer("rig/web/fetch", Fetched{Tip: commitName(44), Writable: true})
	if m := d.wantMerge("web-aaaaa", MergeBuilding); m.Tip != commitName(44) {
		t.Fatalf("built on %s", m.Tip)
	}
}

func TestAFailedPushKeepsTheCandidateAndPauses(t *testing.T) {
	d := reviewed(t, nil)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	e := d.claim("merge/web-aaaaa/1/land")
	if a := e.Action.(Land); a.Candidate != commitName(8) || a.Tip != commitName(0) {
		t.Fatalf("%+v", a)
	}
	d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "connection refused"})
	d.wantMerge("web-aaaaa", MergeLanding)
	if got := d.town.Effects(d.now); len(got) != 0 {
		t.Fatalf("at once again: %v", keys(got))
	}
	d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	d.later(40 * time.Second)
	d.do(Tick{})
	d.answer("merge/web-aaaaa/1/land", Landed{Tip: commitName(8)})
	d.wantBead("web-aaaaa", BeadClosed)
}

func TestABranchWaitsUpstreamUntilTheTargetContainsIt(t *testing.T) {
	d := reviewed(t, Settings{"merge.mode": "branch", "branch.poll_interval": "10m"}, oneGate)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.do(GatesDone{Generation: 1, Bead: "web-aaaaa", N: 1, Candidate: commitName(8), Results: []GateRun{{Name: "test", Passed: true}}})
	d.wantMerge("web-aaaaa", MergeWaiting)
	d.wantWhy("web-aaaaa", Active, "merge")
	e := d.claim("merge/web-aaaaa/1/publish")
	if a := e.Action.(Publish); a.Branch != "gt/amber/web-aaaaa" || a.Commit != commitName(500) {
		t.Fatalf("%+v", a)
	}
	d.do(EffectDone{Key: e.Key, ID: e.ID, Err: "refused"})
	d.later(40 * time.Second)
	d.do(Tick{})
	d.answer("merge/web-aaaaa/1/publish", nil)
	d.wantWhy("web-aaaaa", Waiting, waitBranch)
	if len(d.town.Holds(d.now)) != 0 {
		t.Fatal("waiting for others holds the sandbox")
	}
	d.perform = true
	d.pass(5 * time.Minute)
	d.wantSandbox(SandboxAsleep)
	d.perform = false
	d.later(10*time.Minute - 5*time.Minute - time.Millisecond)
	if got := d.town.Effects(d.now); len(got) != 0 {
		t.Fatalf("looked too early: %v", keys(got))
	}
	d.later(time.Millisecond)
	d.answer("merge/web-aaaaa/1/check", Checked{Tip: commitName(60)})
	if m := d.wantMerge("web-aaaaa", MergeWaiting); m.CheckedAt != At(d.now) || d.town.rigs["web"].Tip != commitName(60) {
		t.Fatalf("%+v", m)
	}
	d.wantSandbox(SandboxAsleep)
	d.do(Retry{By: "ann", ID: "web-aaaaa"})
	d.answer("merge/web-aaaaa/1/check", Checked{In: true, Tip: commitName(61)})
	if b := d.wantBead("web-aaaaa", BeadClosed); b.Proof.Commit != commitName(500) || b.Merge != nil {
		t.Fatalf("%+v", b.Proof)
	}
	d.wantSandbox(SandboxAsleep)
}

func TestBranchesThatWaitDoNotBlockOtherMerges(t *testing.T) {
	d := reviewed(t, Settings{"merge.mode": "branch"})
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	d.answer("merge/web-aaaaa/1/publish", nil)
	d.bead("web-bbbbb")
	d.done("web-bbbbb")
	d.wantMerge("web-bbbbb", MergeBuilding)
}

func TestOutcomesOfAnOldCandidateAreIgnored(t *testing.T) {
	d := reviewed(t, nil)
	e := d.claim("merge/web-aaaaa/1/candidate")
	d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
	d.do(EffectDone{Key: e.Key, ID: e.ID, Result: Candidate{Commit: commitName(8)}})
	d.wantBead("web-aaaaa", BeadCancelled)
	if len(d.town.Claims()) != 0 {
		t.Fatal("the claim is left")
	}
}

func TestNothingIsMergedDuringAPause(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.do(Pause{By: "ann"})
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.wantMerge("web-aaaaa", MergeQueued)
	d.wantWhy("web-aaaaa", Waiting, waitPause)
	d.do(Resume{By: "ann"})
	d.wantBead("web-aaaaa", BeadClosed)
}

func TestTheMergeMessageNamesBeadAndAgent(t *testing.T) {
	d := reviewed(t, Settings{"commit.author": "Ann <ann@example.org>", "commit.signoff": "true", "commit.trailers": "Reviewed-by: nobody; Team: web"})
	e := d.claim("merge/web-aaaaa/1/candidate")
	a := e.Action.(BuildCandidate)
	for _, want := range []string{"Merge web-aaaaa: do web-aaaaa\n", "Bead: web-aaaaa\n", "Agent: web/amber\n", "Reviewed-by: nobody\n", "Team: web\n", "Signed-off-by: Ann <ann@example.org>\n", "did it"} {
		if !strings.Contains(a.Message, want) {
			t.Errorf("%q is missing in\n%s", want, a.Message)
		}
	}
	d.bead("web-bbbbb", func(c *CreateBead) {})
	wanted := d.town.Desired().Runs
	if len(wanted) == 0 {
		t.Fatal("no run was told")
	}
	want := "\nReviewed-by: nobody\nTeam: web\nSigned-off-by: Ann <ann@example.org>\n"
	if p := wanted[len(wanted)-1].Prompt; !strings.Contains(p, want) {
		t.Errorf("%q is missing in the prompt\n%s", want, p)
	}
	if a.Name != "Ann" || a.Address != "ann@example.org" || a.When == 0 {
		t.Fatalf("%+v", a)
	}
}

func TestARetryLeavesClosedWorkAlone(t *testing.T) {
	d := newDriver(t)
	d.perform = false
	d.rig()
	d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
	d.do(CloseBead{By: "ann", Bead: "web-aaaaa", Reason: "done by hand"})
	err := d.try(Retry{By: "ann", ID: "web-aaaaa"})
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "gastown bead reopen web-aaaaa") {
		t.Fatalf("got %v", err)
	}
	d.wantBead("web-aaaaa", BeadClosed)
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	d.wantBead("web-aaaaa", BeadOpen)
}

func TestGatesAreNotOverdueForATimeInWhichNobodyListened(t *testing.T) {
	d := newDriver(t)
	d.rig(Gate{Name: "test", Command: "true"})
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	was := d.the("web-aaaaa").Merge.Deadline
	d.now = d.now.Add(10 * time.Minute)
	d.do(Unheard{})
	if got := d.the("web-aaaaa").Merge.Deadline; got != was.Add(10*time.Minute) {
		t.Fatalf("the deadline moved by %s", got.Sub(was))
	}
}
