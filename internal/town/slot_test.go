package town

import (
	"testing"
	"time"
)

func TestATownThatWaitsForAPlaceAsksAtOnceWhenOneIsFree(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.perform = false
	d.bead("web-aaaaa")
	ask := func() (Effect, bool) {
		effs := d.town.Claim(d.now, "boot")
		d.save()
		for _, e := range effs {
			if e.Key == "sandbox/admit" {
				return e, true
			}
		}
		return Effect{}, false
	}
	answer := func(e Effect, a Admitted) { d.do(EffectDone{Key: e.Key, ID: e.ID, Result: a}) }
	first, ok := ask()
	if !ok {
		t.Fatal("it does not ask for a place")
	}
	answer(first, Admitted{Position: 3})
	d.now = d.now.Add(time.Second)
	d.do(Tick{})
	if _, ok := ask(); ok {
		t.Fatal("it asks again after a second without a word")
	}
	d.do(SlotFree{})
	second, ok := ask()
	if !ok {
		t.Fatal("a place is free and it does not ask")
	}
	d.do(SlotFree{}) // another place, before the answer came
	third, ok := ask()
	if !ok {
		t.Fatal("it does not ask for the second place")
	}
	answer(second, Admitted{Position: 2})
	answer(third, Admitted{Granted: true})
	d.wantSandbox(SandboxStarting)
	if n := d.town.info.Sandbox.Starts; n != 1 {
		t.Fatalf("%d starts", n)
	}
	before := len(d.ledger)
	d.do(SlotFree{})
	if len(d.ledger) != before || len(d.town.Effects(d.now)) != 1 {
		t.Fatal("a place for a town that has one changed something")
	}
}

func TestAnAwakeSandboxStaysWantedWhileItsBreakerIsOpen(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	d.town.failed(At(d.now), "sandbox", "it could not be started")
	d.save()
	if c := d.town.Columns(d.now); c.Sandbox != SandboxAwake || !c.Wanted {
		t.Fatalf("columns %+v", c)
	}
	d.do(SandboxExited{Generation: 1, Reason: "killed"})
	d.do(Resume{By: "ann", For: time.Hour})
	if c := d.town.Columns(d.now); c.Sandbox != SandboxAsleep || c.Wanted {
		t.Fatalf("asleep under an open breaker, columns %+v", c)
	}
}

func TestColumnsNameOnlyTheTownsOwnIdleInterval(t *testing.T) {
	d := newDriver(t)
	d.town.SetServer(Settings{"alarm.idle_interval": "1m"})
	if got := d.town.Columns(d.now).Idle; got != 0 {
		t.Fatalf("the server's interval is the town's own: %s", got)
	}
	d.do(SetTown{By: "ann", Set: Settings{"alarm.idle_interval": "7m"}})
	if got := d.town.Columns(d.now).Idle; got != 7*time.Minute {
		t.Fatalf("its own interval is %s", got)
	}
	d.do(SetTown{By: "ann", Unset: []string{"alarm.idle_interval"}})
	if got := d.town.Columns(d.now).Idle; got != 0 {
		t.Fatalf("after unset its own interval is %s", got)
	}
}
