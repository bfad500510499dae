package town

import (
	"math"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

// onProvider has beads at work on a provider.
func onProvider(t *testing.T, ids ...string) *driver {
	t.Helper()
	d := newDriver(t)
	d.rig()
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"provider": "house"}})
	for _, id := range ids {
		d.bead(id)
	}
	d.hello()
	for _, id := range ids {
		d.spawn(id)
	}
	return d
}

// limit says that the provider of a bead's run answered 429.
func (d *driver) limit(id string, wait time.Duration) {
	d.t.Helper()
	r := d.run(id)
	in := Limited{Run: r.ID, Epoch: r.Epoch, Provider: r.Provider, Reason: "429 Too Many Requests"}
	if wait != 0 {
		in.Until = At(d.now.Add(wait))
	}
	d.do(in)
}

func TestAnAgentWaitsOutAShortLimit(t *testing.T) {
	t.Parallel()
	d := onProvider(t, "web-aaaaa")
	d.do(SetTown{By: "ann", Set: Settings{"stuck.nudge_after": "30s", "stuck.restart_after": "70s", "sandbox.grace": "5m"}})
	d.limit("web-aaaaa", 4*time.Minute)
	d.bead("web-bbbbb")
	if w := d.wantWhy("web-bbbbb", Waiting, waitLimit); w.Subject != "provider/house" || w.Until != At(d.now.Add(4*time.Minute)) {
		t.Fatalf("%+v", w)
	}
	if w := d.wantWhy("web-aaaaa", Active, "run"); w.Until != At(d.now.Add(4*time.Minute)) || !strings.Contains(w.Text, "limits its use") {
		t.Fatalf("%+v", w)
	}
	silent := func(until time.Duration) {
		for begin := d.now; d.now.Sub(begin) < until; {
			d.now = d.now.Add(20 * time.Second)
			r := d.run("web-aaaaa")
			d.report(Report{Kind: ReportHeartbeat, Runs: []RunLife{{Run: r.ID, Epoch: r.Epoch, IdleMS: int64(d.now.Sub(epoch0) / time.Millisecond)}}})
		}
	}
	silent(4 * time.Minute)
	if r := d.run("web-aaaaa"); r.Stop != "" || r.Stuck != 0 {
		t.Fatalf("blamed for waiting: %+v", r)
	}
	d.wantBead("web-bbbbb", BeadInProgress) // the limit is over
	silent(time.Minute)
	if r := d.run("web-aaaaa"); r.Stuck != 1 || r.Stop != "" {
		t.Fatalf("silent for a minute since: %+v", r)
	}
	silent(20 * time.Second)
	if r := d.run("web-aaaaa"); r.Stop == "" {
		t.Fatalf("silent for 80 s since: %+v", r)
	}
}

func TestALongLimitReleasesTheSandboxUntilItsEnd(t *testing.T) {
	t.Parallel()
	d := onProvider(t, "web-aaaaa", "web-bbbbb")
	d.do(SetTown{By: "ann", Set: Settings{"stuck.nudge_after": "1h"}})
	d.bead("web-ccccc", func(c *CreateBead) { c.Settings = Settings{"provider": "other"} })
	d.spawn("web-ccccc")
	begin := d.now
	d.limit("web-aaaaa", 3*time.Hour)
	for _, id := range []string{"web-aaaaa", "web-bbbbb"} {
		r := d.run(id)
		d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: r.Epoch, Commit: commitName(7), Ref: WipRef(r.Bead, r.Epoch)})
		d.ended(r, OutcomeExited, ClassWork, "the model failed") // the agent gave up at the same moment
		b := d.wantBead(id, BeadOpen)
		if rec := b.Runs[0]; rec.Outcome != OutcomeStopped || rec.Class != ClassLimit || b.Charged != 0 || b.NotBefore != 0 {
			t.Fatalf("%+v, charged %d", rec, b.Charged)
		}
		if w := d.wantWhy(id, Waiting, waitLimit); w.Until != At(begin.Add(3*time.Hour)) {
			t.Fatalf("%+v", w)
		}
	}
	r := d.run("web-ccccc")
	if r.Stop != "" {
		t.Fatal("a run on another provider was stopped")
	}
	d.done("web-ccccc")
	d.ended(r, OutcomeDone, "", "")
	d.pass(5 * time.Minute)
	d.wantSandbox(SandboxAsleep)
	d.wantWake(begin.Add(3 * time.Hour).Sub(d.now))
	d.now = begin.Add(3 * time.Hour)
	d.do(Tick{})
	for _, id := range []string{"web-aaaaa", "web-bbbbb"} {
		if told := d.run(id).Told; !strings.Contains(told, "provider/house limits its use") || !strings.Contains(told, short(commitName(7))) {
			t.Fatalf("told %q", told)
		}
	}
	d.wantSandbox(SandboxStarting)
}

func TestAPersonEndsALimit(t *testing.T) {
	t.Parallel()
	d := onProvider(t, "web-aaaaa")
	d.limit("web-aaaaa", 3*time.Hour)
	d.stopped("web-aaaaa")
	d.wantWhy("web-aaaaa", Waiting, waitLimit)
	d.do(Retry{By: "ann", ID: "provider/house"})
	d.wantBead("web-aaaaa", BeadInProgress)
}

func TestStatedTimesAreClamped(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		until Time
		want  time.Duration
	}{
		"for ever":       {math.MaxInt64, 24 * time.Hour},
		"a year":         {At(epoch0.AddDate(1, 0, 0)), 24 * time.Hour},
		"in the past":    {1, time.Millisecond},
		"within the day": {At(epoch0.Add(7 * time.Hour)), 7 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			d := onProvider(t, "web-aaaaa")
			d.do(Limited{Run: "web-aaaaa.1", Epoch: 1, Provider: "house", Until: test.until})
			if br := d.town.breakers["provider/house"]; br.Until != At(d.now.Add(test.want)) {
				t.Fatalf("until %s, want %s", br.Until, d.now.Add(test.want))
			}
		})
	}
	t.Run("said by a runner", func(t *testing.T) {
		for _, test := range []struct {
			waitMS int64
			want   time.Duration
		}{{math.MaxInt64, 24 * time.Hour}, {3_600_000, time.Hour}, {-5, 0}, {0, 0}} {
			d := onProvider(t, "web-aaaaa")
			r := d.run("web-aaaaa")
			d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: OutcomeFailed, Class: ClassLimit, Reason: "quota", WaitMS: test.waitMS})
			b := d.wantBead("web-aaaaa", BeadOpen)
			until := d.town.breakers["provider/house"].Until
			if test.want == 0 {
				if wait := until.Sub(At(d.now)); wait < 30*time.Second || wait > 38*time.Second {
					t.Fatalf("without a stated time it waits %s", wait)
				}
			} else if until != At(d.now.Add(test.want)) {
				t.Fatalf("wait %d: until %s", test.waitMS, until)
			}
			if b.Charged != 0 || b.Runs[0].Class != ClassLimit || b.Runs[0].Outcome != OutcomeStopped {
				t.Fatalf("%+v", b.Runs[0])
			}
		}
	})
}

func TestALimitThatRepeatsWaitsLongerUntilSomethingWorks(t *testing.T) {
	t.Parallel()
	d := onProvider(t, "web-aaaaa")
	d.do(SetTown{By: "ann", Set: Settings{"sandbox.grace": "24h", "stuck.nudge_after": "24h", "stuck.restart_after": "24h", "run.time_limit": "24h", "lease": "1h"}})
	var waits []time.Duration
	for range 8 {
		d.limit("web-aaaaa", 0)
		br := *d.town.breakers["provider/house"]
		d.limit("web-aaaaa", 0) // parallel requests meet the same limit
		if *d.town.breakers["provider/house"] != br {
			t.Fatal("the same limit was counted twice")
		}
		waits = append(waits, br.Until.Sub(At(d.now)))
		d.pass(br.Until.Sub(At(d.now)))
	}
	for i, w := range waits {
		least := min(30*time.Second<<i, 15*time.Minute)
		if w < least || w > least*5/4 {
			t.Fatalf("wait %d is %s", i+1, w)
		}
	}
	if br := d.town.breakers["provider/house"]; br.Fails != 8 {
		t.Fatalf("%+v", br)
	}
	d.wantEscalations("breaker.open provider/house 4") // from the fifth time on, once
	r := d.run("web-aaaaa")
	d.do(ProviderWorks{Run: r.ID, Epoch: r.Epoch, Provider: "house"})
	if d.town.breakers["provider/house"] != nil {
		t.Fatal("success did not reset it")
	}
	d.wantEscalations()
	d.limit("web-aaaaa", time.Minute)
	d.limit("web-aaaaa", 2*time.Minute)
	if br := d.town.breakers["provider/house"]; br.Fails != 1 || br.Until != At(d.now.Add(2*time.Minute)) {
		t.Fatalf("a limit that was prolonged: %+v", br)
	}
	d.do(ProviderWorks{Run: r.ID, Epoch: r.Epoch, Provider: "house"})
	if d.town.breakers["provider/house"] == nil {
		t.Fatal("an answer to a request from before the limit ended it")
	}
}

func TestALimitOfAnotherRunIsRefused(t *testing.T) {
	t.Parallel()
	d := onProvider(t, "web-aaaaa")
	for name, test := range map[string]struct {
		in   Input
		kind errs.Kind
	}{
		"another provider": {Limited{Run: "web-aaaaa.1", Epoch: 1, Provider: "other"}, errs.Invalid},
		"another epoch":    {Limited{Run: "web-aaaaa.1", Epoch: 2, Provider: "house"}, errs.Gone},
		"no run":           {Limited{Run: "web-zzzzz.1", Epoch: 1, Provider: "house"}, errs.Gone},
		"before all time":  {Limited{Run: "web-aaaaa.1", Epoch: 1, Provider: "house", Until: -1}, errs.Invalid},
		"works, no run":    {ProviderWorks{Run: "web-zzzzz.1", Epoch: 1}, errs.Gone},
	} {
		if err := d.try(test.in); errs.KindOf(err) != test.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnAgentWithoutAProviderIsLimitedByItsPreset(t *testing.T) {
	t.Parallel()
	d := working(t, nil)
	r := d.run("web-aaaaa")
	d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: OutcomeFailed, Class: ClassLimit, Reason: "quota", WaitMS: 3_600_000})
	if w := d.wantWhy("web-aaaaa", Waiting, waitLimit); w.Subject != "agent/scripted" {
		t.Fatalf("%+v", w)
	}
	d.pass(5 * time.Minute)
	d.wantSandbox(SandboxAsleep)
	d.wantWake(55 * time.Minute)
}
