package town

import (
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func TestAwakeTimeIsTheSumOfItsReasons(t *testing.T) {
	d := newDriver(t)
	d.now = time.Date(2026, 3, 1, 23, 58, 0, 0, time.UTC)
	d.rig()
	d.bead("web-aaaaa") // starting
	d.now = d.now.Add(1500 * time.Millisecond)
	d.hello()
	r := d.spawn("web-aaaaa")
	d.pass(3 * time.Minute) // over midnight
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.pass(2 * time.Minute) // grace
	d.wantSandbox(SandboxDraining)
	d.now = d.now.Add(700 * time.Millisecond)
	d.perform = false
	d.report(Report{Kind: ReportDrained})
	d.now = d.now.Add(300 * time.Millisecond)
	d.perform = true
	d.do(Tick{})
	d.wantSandbox(SandboxAsleep)
	want := []Usage{
		{Day: "2026-03-01", Starting: 1500, Held: 118_500, Holds: map[string]int64{"run web-aaaaa.1": 118_500}},
		{Day: "2026-03-02", Held: 61_500, Grace: 120_000, Draining: 700, Stopping: 300, Holds: map[string]int64{"run web-aaaaa.1": 61_500}},
	}
	got := d.town.Usage(d.now.Add(time.Hour))
	if len(got) != len(want) {
		t.Fatalf("usage = %+v", got)
	}
	for i := range want {
		w, g := want[i], got[i]
		if w.Holds["run web-aaaaa.1"] != g.Holds["run web-aaaaa.1"] || len(g.Holds) != 1 {
			t.Errorf("holds of %s = %v, want %v", w.Day, g.Holds, w.Holds)
		}
		w.Holds, g.Holds = nil, nil
		if w.Starting != g.Starting || w.Held != g.Held || w.Grace != g.Grace || w.Draining != g.Draining || w.Stopping != g.Stopping || w.Day != g.Day {
			t.Errorf("usage = %+v, want %+v", g, w)
		}
	}
}

func TestAHumanHoldIsBookedUntilItsOwnEndHoweverLateAnyoneLooks(t *testing.T) {
	d := newDriver(t)
	d.do(Resume{By: "ann", For: 10 * time.Minute})
	d.hello()
	d.now = d.now.Add(10*time.Minute + 45*time.Second)
	d.do(Unheard{})
	if u := d.town.Usage(d.now); u[0].Held != 600_000 || u[0].Grace != 45_000 || u[0].Holds["human ann"] != 600_000 {
		t.Fatalf("usage = %+v", u)
	}
	d.pass(75 * time.Second)
	d.wantSandbox(SandboxDraining)
}

func TestAForcedRenewalNeedsAnAwakeSandbox(t *testing.T) {
	d := newDriver(t)
	if err := d.try(RefreshToken{By: "ann"}); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "asleep") {
		t.Fatalf("asleep: got %v", err)
	}
	d.do(Resume{By: "ann", For: time.Hour})
	d.hello()
	d.pass(time.Minute)
	rev := d.town.Desired().Rev
	d.do(RefreshToken{By: "ann"})
	if s := d.town.Sandbox(); s.Renewals != 1 || s.TokenAt != At(d.now) || d.town.Desired().Rev == rev {
		t.Fatalf("not renewed: %+v", s)
	}
	d.pass(30 * time.Minute)
	if s := d.town.Sandbox(); s.Renewals != 1 {
		t.Fatalf("%d renewals", s.Renewals)
	}
}
