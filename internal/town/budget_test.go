package town

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

// usage is a fake meter: it says what the run of a bead spent.
func (d *driver) usage(id string, seq, tokens, cost int64) {
	d.t.Helper()
	r := d.run(id)
	d.do(Metered{Run: r.ID, Epoch: r.Epoch, Meter: "gw1", Seq: seq, Tokens: tokens, Cost: cost})
}

// working has a bead whose agent runs in an awake sandbox.
func working(t *testing.T, set Settings) *driver {
	t.Helper()
	d := newDriver(t)
	d.rig()
	d.do(SetTown{By: "ann", Set: set})
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	return d
}

// stopped lets the runner obey a stop.
func (d *driver) stopped(id string) {
	d.t.Helper()
	r := d.run(id)
	if r.Stop == "" {
		d.t.Fatalf("run %s is not asked to stop", r.ID)
	}
	d.ended(r, OutcomeStopped, "", "")
}

func TestARunStopsAtExactlyItsLimit(t *testing.T) {
	t.Parallel()
	for _, scope := range []string{"bead", "town"} {
		for _, test := range []struct {
			what, limit string
			spend       func(d *driver, last bool)
		}{
			{"tokens", "1000", func(d *driver, last bool) { d.usage("web-aaaaa", 1+toSeq(last), 999-998*toSeq(last), 0) }},
			{"cost", "2.50", func(d *driver, last bool) { d.usage("web-aaaaa", 1+toSeq(last), 0, 2_499_999-2_499_998*toSeq(last)) }},
			{"awake", "10m", func(d *driver, last bool) {
				if !last {
					d.pass(10*time.Minute - time.Millisecond)
					return
				}
				if w, ok := d.town.NextWake(d.now); !ok || !w.Equal(d.now.Add(time.Millisecond)) {
					t.Errorf("next wake %s, the limit is reached at %s", w, d.now.Add(time.Millisecond))
				}
				d.pass(time.Millisecond)
			}},
		} {
			t.Run(scope+" "+test.what, func(t *testing.T) {
				key := "budget." + scope + "." + test.what
				d := working(t, Settings{key: test.limit, "notify.url": "http://hooks.example/x"})
				test.spend(d, false)
				if r := d.run("web-aaaaa"); r.Stop != "" {
					t.Fatalf("stopped before its limit: %s", r.Stop)
				}
				d.perform = false
				test.spend(d, true)
				r := d.run("web-aaaaa")
				if r.State != RunDraining || !strings.Contains(r.Stop, key) {
					t.Fatalf("at its limit the run is %s: %q", r.State, r.Stop)
				}
				d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: r.Epoch, Commit: commitName(7), Ref: WipRef(r.Bead, r.Epoch)})
				d.stopped("web-aaaaa")
				b := d.wantBead("web-aaaaa", BeadOpen)
				rec := b.Runs[0]
				if rec.Outcome != OutcomeStopped || rec.Class != ClassLimit || b.Charged != 0 || b.Attempt != 1 {
					t.Fatalf("record %+v, charged %d, attempt %d", rec, b.Charged, b.Attempt)
				}
				w := d.wantWhy("web-aaaaa", Waiting, waitBudget)
				if want := map[string]Time{"bead": 0, "town": At(epoch0.Truncate(day).Add(day))}[scope]; w.Until != want {
					t.Fatalf("waits until %s, want %s", w.Until, want)
				}
				if n := d.count("budget.reached"); n != 1 {
					t.Fatalf("%d entries in the ledger", n)
				}
				if ns := d.town.Notices(); len(ns) != 1 || ns[0].Kind != "budget.reached" {
					t.Fatalf("notices %+v", ns)
				}
				d.perform = true
				higher := map[string]string{"tokens": "2000", "cost": "2.500001", "awake": "20m"}
				d.do(SetTown{By: "ann", Set: Settings{key: higher[test.what]}})
				if b := d.wantBead("web-aaaaa", BeadInProgress); b.Epoch != 2 {
					t.Fatalf("raising it did not resume: %+v", b)
				}
				if told := d.run("web-aaaaa").Told; !strings.Contains(told, key) {
					t.Fatalf("the next run is told %q", told)
				}
			})
		}
	}
}

func toSeq(last bool) int64 {
	if last {
		return 1
	}
	return 0
}

func TestRunsAreCountedBeforeEachDispatch(t *testing.T) {
	t.Parallel()
	again := func(d *driver) {
		d.ended(d.spawn("web-aaaaa"), OutcomeFailed, ClassInfra, "broken")
		d.pass(time.Hour)
		if d.town.info.Sandbox.State == SandboxStarting {
			d.hello()
		}
	}
	for _, scope := range []string{"bead", "town", "server"} {
		t.Run(scope, func(t *testing.T) {
			d := newDriver(t)
			d.rig()
			key := "budget." + scope + ".runs"
			d.town.SetServer(Settings{key: "3", "lease": "90s"})
			d.bead("web-aaaaa")
			d.hello()
			again(d)
			d.wantBead("web-aaaaa", BeadInProgress)
			again(d)
			b := d.wantBead("web-aaaaa", BeadInProgress)
			if b.Epoch != 3 {
				t.Fatalf("run %d", b.Epoch)
			}
			d.pass(10 * time.Minute)
			d.wantBead("web-aaaaa", BeadInProgress) // the last one that is allowed may finish
			if text := d.town.WhyTown(d.now).Text; strings.Contains(text, "nothing new starts: its budget is used up") != (scope != "bead") {
				t.Errorf("why the town: %s", text)
			}
			d.ended(d.spawn("web-aaaaa"), OutcomeFailed, ClassInfra, "broken")
			d.pass(2 * time.Hour)
			d.wantBead("web-aaaaa", BeadOpen)
			w := d.wantWhy("web-aaaaa", Waiting, waitBudget)
			if !strings.Contains(w.Text, "3 runs of 3 runs") || !strings.Contains(w.Text, key) {
				t.Fatal(w.Text)
			}
			d.wantSandbox(SandboxAsleep)
			if c := d.town.Columns(d.now); !c.Budget {
				t.Fatal("the store is not told that it waits for a budget")
			}
			d.town.SetServer(Settings{key: "4"})
			d.do(Tick{})
			d.wantBead("web-aaaaa", BeadInProgress)
			if d.town.Columns(d.now).Budget {
				t.Fatal("it waits no more")
			}
		})
	}
}

func TestABudgetIsResumedWhereItIsRaised(t *testing.T) {
	t.Parallel()
	for name, raise := range map[string]Input{
		"the bead": EditBead{By: "ann", Bead: "web-aaaaa", Set: Settings{"budget.bead.tokens": "200"}},
		"the rig":  SetRig{By: "ann", Rig: "web", Set: Settings{"budget.bead.tokens": "0"}},
		"the town": SetTown{By: "ann", Unset: []string{"budget.bead.tokens"}},
		"a reopen": ReopenBead{By: "ann", Bead: "web-aaaaa"},
	} {
		t.Run(name, func(t *testing.T) {
			d := working(t, Settings{"budget.bead.tokens": "100"})
			d.usage("web-aaaaa", 1, 100, 0)
			d.stopped("web-aaaaa")
			d.wantWhy("web-aaaaa", Waiting, waitBudget)
			d.pass(time.Hour)
			d.wantWhy("web-aaaaa", Waiting, waitBudget)
			if name == "a reopen" {
				d.do(CancelBead{By: "ann", Bead: "web-aaaaa"})
			}
			d.do(raise)
			d.wantBead("web-aaaaa", BeadInProgress)
			if s := d.town.BeadSpend(d.now, "web-aaaaa"); s.Total().Tokens != 100 || (s.Fresh.Tokens == 0) != (name == "a reopen") {
				t.Fatalf("spent %+v", s)
			}
		})
	}
}

func TestATownAtItsLimitGoesOnWhenItsPeriodEnds(t *testing.T) {
	t.Parallel()
	for period, want := range map[string]time.Time{
		"day":   time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC),
		"month": time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC),
		"total": {},
	} {
		t.Run(period, func(t *testing.T) {
			d := working(t, Settings{"budget.town.cost": "1", "budget.town.period": period})
			d.usage("web-aaaaa", 1, 0, 1_000_000)
			d.stopped("web-aaaaa")
			d.bead("web-bbbbb")
			d.pass(5 * time.Minute)
			d.wantSandbox(SandboxAsleep)
			if is := findings(d.town.Doctor(d.now), SeverityInfo); !slices.Equal(is, []string{"budget.reached budget.town.cost"}) {
				t.Errorf("doctor tells of %q", is)
			}
			if w := d.wantWhy("web-bbbbb", Waiting, waitBudget); w.Until != At(want) {
				t.Fatalf("until %s, want %s", w.Until, want)
			}
			next, ok := d.town.NextWake(d.now)
			if ok != !want.IsZero() || !next.Equal(want) {
				t.Fatalf("next wake %s %v, want %s", next, ok, want)
			}
			if !ok {
				return
			}
			d.now = want.Add(-time.Millisecond)
			d.do(Tick{})
			d.wantSandbox(SandboxAsleep)
			d.now = want
			d.do(Tick{})
			d.wantBead("web-aaaaa", BeadInProgress)
			d.wantBead("web-bbbbb", BeadInProgress)
		})
	}
}

func TestATownWithNothingToDoIsNotWokenForItsBudget(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.tokens": "10", "notify.url": "http://hooks.example/x"})
	d.usage("web-aaaaa", 1, 9, 0)
	r := d.run("web-aaaaa")
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.pass(5 * time.Minute)
	d.wantSandbox(SandboxAsleep)
	d.do(Metered{Run: r.ID, Epoch: r.Epoch, Meter: "gw1", Seq: 2, Tokens: 1})
	if w, ok := d.town.NextWake(d.now); ok || d.count("budget.reached") != 0 || d.town.Columns(d.now).Budget {
		t.Fatalf("next wake %s, reached %d", w, d.count("budget.reached"))
	}
}

func TestUsageIsCountedOnceAndWhereItBelongs(t *testing.T) {
	t.Parallel()
	d := working(t, nil)
	r := d.run("web-aaaaa")
	say := func(meter string, seq, tokens int64) {
		d.do(Metered{Run: r.ID, Epoch: r.Epoch, Meter: meter, Seq: seq, Tokens: tokens, Cost: tokens * 10})
	}
	say("gw1", 1, 100)
	say("gw1", 1, 100)
	say("gw1", 4, 50)
	say("gw1", 2, 1000)
	say("gw2", 1, 7)
	d.pass(2 * time.Minute)
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	say("gw1", 4, 50) // once more, after its end
	say("gw2", 2, 3)
	d.pass(5 * time.Minute)
	d.now = d.now.Add(day)
	say("gw3", 1, 40) // late: money of the next day
	d.do(ReopenBead{By: "ann", Bead: "web-aaaaa"})
	say("gw3", 2, 5)
	b := d.the("web-aaaaa")
	if rec := b.Runs[0]; rec.Spent.Tokens != 205 || rec.Spent.Cost != 2050 || rec.Spent.Runs != 1 || rec.Spent.AwakeMS != 120_000 {
		t.Fatalf("record %+v", rec.Spent)
	}
	if s := d.town.BeadSpend(d.now, "web-aaaaa"); s.Past.Tokens != 205 || s.Fresh != (Spend{Runs: 1}) || s.Past.Runs != 1 {
		t.Fatalf("bead %+v", s)
	}
	u := d.town.Usage(d.now)
	if len(u) != 2 || u[0].Tokens != 160 || u[0].Runs != 1 || u[1].Tokens != 45 || u[1].Cost != 450 {
		t.Fatalf("days %+v", u)
	}
	if d.spent.Tokens != 205 || d.spent.Cost != 2050 || d.spent.Runs != 2 {
		t.Fatalf("given to the server's days: %+v", d.spent)
	}
}

func TestWhatTheServersDaysGetIsWhatTheTownUsed(t *testing.T) {
	t.Parallel()
	d := working(t, nil)
	d.now = time.Date(2026, 3, 1, 23, 0, 0, 0, time.UTC)
	d.pass(3 * time.Hour)
	d.done("web-aaaaa")
	d.ended(d.run("web-aaaaa"), OutcomeDone, "", "")
	d.pass(10 * time.Minute)
	d.wantSandbox(SandboxAsleep)
	if d.spent.AwakeMS != d.town.AwakeMS(d.now) || d.spent.AwakeMS == 0 {
		t.Fatalf("%d ms given, %d used", d.spent.AwakeMS, d.town.AwakeMS(d.now))
	}
}

func TestAwakeTimeIsBookedWhileAwake(t *testing.T) {
	t.Parallel()
	d := working(t, nil)
	d.pass(10 * time.Minute)
	if late := d.town.AwakeMS(d.now) - d.spent.AwakeMS; late > ms(bookEach) {
		t.Fatalf("%d ms are not booked", late)
	}
}

func TestAbsurdUsageIsRefused(t *testing.T) {
	t.Parallel()
	d := working(t, nil)
	good := Metered{Run: "web-aaaaa.1", Epoch: 1, Meter: "gw1", Seq: 1, Tokens: 1, Cost: 1}
	for name, test := range map[string]struct {
		change func(*Metered)
		kind   errs.Kind
	}{
		"no meter":         {func(m *Metered) { m.Meter = "" }, errs.Invalid},
		"a meter of lines": {func(m *Metered) { m.Meter = "a\nb" }, errs.Invalid},
		"a long meter":     {func(m *Metered) { m.Meter = strings.Repeat("m", 65) }, errs.Invalid},
		"no number":        {func(m *Metered) { m.Seq = 0 }, errs.Invalid},
		"negative tokens":  {func(m *Metered) { m.Tokens = -1 }, errs.Invalid},
		"negative cost":    {func(m *Metered) { m.Cost = -1 }, errs.Invalid},
		"too many tokens":  {func(m *Metered) { m.Tokens = math.MaxInt64 }, errs.Invalid},
		"too much money":   {func(m *Metered) { m.Cost = math.MaxInt64 }, errs.Invalid},
		"another bead":     {func(m *Metered) { m.Run = "web-zzzzz.1" }, errs.NotFound},
		"another epoch":    {func(m *Metered) { m.Epoch = 2 }, errs.NotFound},
		"a run to come":    {func(m *Metered) { m.Run, m.Epoch = "web-aaaaa.2", 2 }, errs.NotFound},
		"no run":           {func(m *Metered) { m.Run = "web-aaaaa" }, errs.NotFound},
	} {
		m := good
		test.change(&m)
		if err := d.try(m); errs.KindOf(err) != test.kind { // try checks that nothing changed
			t.Errorf("%s: %v", name, err)
		}
	}
	d.do(good)
}

func TestSumsOfSpendingSaturate(t *testing.T) {
	t.Parallel()
	most := Spend{math.MaxInt64 - 1, math.MaxInt64, 5, math.MaxInt64}
	if got := most.add(most); got != (Spend{math.MaxInt64, math.MaxInt64, 10, math.MaxInt64}) {
		t.Fatalf("%+v", got)
	}
}

func TestAParkedTownStartsNoSandboxForAnybody(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.awake": "5m"})
	d.pass(5 * time.Minute)
	d.stopped("web-aaaaa")
	d.wantSandbox(SandboxDraining) // no grace: it would cost more
	d.report(Report{Kind: ReportDrained})
	d.wantSandbox(SandboxAsleep)
	d.do(Resume{By: "ann", For: 20 * time.Hour})
	d.wantSandbox(SandboxAsleep)
	if why := d.town.WhyTown(d.now).Text; !strings.Contains(why, "budget.town.awake") {
		t.Fatal(why)
	}
	d.now = epoch0.Truncate(day).Add(day)
	d.do(Tick{})
	d.wantSandbox(SandboxStarting)
}

func TestGatesUnderWayFinishAndOthersWait(t *testing.T) {
	t.Parallel()
	d := newDriver(t)
	d.rig(Gate{Name: "test", Command: "true"})
	d.do(SetTown{By: "ann", Set: Settings{"budget.town.tokens": "10"}})
	for _, id := range []string{"web-aaaaa", "web-bbbbb"} {
		d.bead(id)
	}
	d.hello()
	for _, id := range []string{"web-aaaaa", "web-bbbbb"} {
		d.spawn(id)
		r := d.run(id)
		d.done(id)
		d.ended(r, OutcomeDone, "", "")
	}
	d.do(Metered{Run: "web-aaaaa.1", Epoch: 1, Meter: "gw1", Seq: 1, Tokens: 10})
	d.pass(time.Minute)
	d.wantSandbox(SandboxAwake)
	d.wantWhy("web-aaaaa", Active, "merge")
	d.gates("web-aaaaa", true)
	d.wantBead("web-aaaaa", BeadClosed)
	d.wantWhy("web-bbbbb", Waiting, waitBudget)
	d.report(Report{Kind: ReportDrained})
	d.wantSandbox(SandboxAsleep)
	if w, _ := d.town.NextWake(d.now); !w.Equal(epoch0.Truncate(day).Add(day)) {
		t.Fatalf("next wake %s", w)
	}
	d.do(SetTown{By: "ann", Unset: []string{"budget.town.tokens"}})
	d.wantSandbox(SandboxStarting)
}

func TestTheServersDayCountsForAllTowns(t *testing.T) {
	t.Parallel()
	d := newDriver(t)
	d.rig()
	d.town.SetServer(Settings{"budget.server.cost": "10"})
	d.days["2026-03-01"] = Spend{Cost: 9_000_000} // by others
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	d.usage("web-aaaaa", 1, 0, 999_999)
	if d.run("web-aaaaa").Stop != "" {
		t.Fatal("stopped too early")
	}
	d.usage("web-aaaaa", 2, 0, 1)
	d.stopped("web-aaaaa")
	if w := d.wantWhy("web-aaaaa", Waiting, waitBudget); w.Subject != "server" || w.Until != At(epoch0.Truncate(day).Add(day)) {
		t.Fatalf("%+v", w)
	}
	d.now = epoch0.Truncate(day).Add(day) // yesterday's totals count no more
	d.do(Tick{})
	d.wantBead("web-aaaaa", BeadInProgress)
}

func TestPeopleAreToldOncePerPeriodAndLimit(t *testing.T) {
	t.Parallel()
	d := newDriver(t)
	d.rig()
	d.now = epoch0.Truncate(day).Add(day - 30*time.Minute)
	d.do(SetTown{By: "ann", Set: Settings{"budget.town.runs": "1"}})
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	for i := range 5 {
		d.bead("web-bbbb" + strconv.Itoa(i))
		d.pass(time.Minute)
	}
	if n := d.count("budget.reached"); n != 1 {
		t.Fatalf("told %d times", n)
	}
	d.do(SetTown{By: "ann", Set: Settings{"budget.town.runs": "2"}})
	if n := d.count("budget.reached"); n != 2 {
		t.Fatalf("a raised limit that is used up again was told %d times", n)
	}
	d.pass(26 * time.Minute)
	if n := d.count("budget.reached"); n != 3 {
		t.Fatalf("the next day: %d", n)
	}
}

func TestMoneyIsReadAndWrittenWithoutLoss(t *testing.T) {
	t.Parallel()
	for text, micros := range map[string]int64{"0": 0, "12": 12_000_000, "12.5": 12_500_000, "0.000001": 1, "999999999.999999": 999_999_999_999_999} {
		if got, ok := ParseMoney(text); !ok || got != micros {
			t.Errorf("%s: %d %v", text, got, ok)
		}
	}
	for _, text := range []string{"", ".", "1.", ".5", "-1", "+1", "1e3", "0x1", "1,5", "1.0000001", "9999999999", " 1", "1 "} {
		if _, ok := ParseMoney(text); ok {
			t.Errorf("%q was taken", text)
		}
	}
	for micros, text := range map[int64]string{0: "$0.00", 1_500_000: "$1.50", 1: "$0.000001", 12_345_000: "$12.345", 100_000_000: "$100.00"} {
		if got := Money(micros); got != text {
			t.Errorf("%d: %s, want %s", micros, got, text)
		}
	}
}
