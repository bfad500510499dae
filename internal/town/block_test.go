package town

import (
	"fmt"
	"testing"
	"time"

	"gastown/internal/errs"
)

// take asks for a block for the run of a bead, and returns what it got.
func (d *driver) take(bead, id string, tokens, cost int64) (Block, error) {
	d.t.Helper()
	r := d.run(bead)
	if err := d.try(TakeBlock{Run: r.ID, Epoch: r.Epoch, ID: id, Tokens: tokens, Cost: cost}); err != nil {
		return Block{}, err
	}
	for _, b := range d.town.Blocks() {
		if b.ID == id {
			return b, nil
		}
	}
	d.t.Fatalf("block %s is not there", id)
	return Block{}, nil
}

func (d *driver) settle(bead, id string, tokens, cost int64) {
	d.t.Helper()
	r := d.run(bead)
	d.do(Metered{Run: r.ID, Epoch: r.Epoch, Meter: id, Seq: 1, Tokens: tokens, Cost: cost})
}

func (d *driver) budget(setting string) Budget {
	d.t.Helper()
	for _, b := range append(d.town.Budgets(d.now), d.town.BeadBudgets(d.now, "web-aaaaa")...) {
		if b.Setting() == setting {
			return b
		}
	}
	d.t.Fatalf("no budget %s", setting)
	return Budget{}
}

func TestBlocksNeverExceedWhatIsLeftOfABudget(t *testing.T) {
	t.Parallel()
	for _, scope := range []string{"bead", "town", "server"} {
		t.Run(scope, func(t *testing.T) {
			t.Parallel()
			set := Settings{"budget." + scope + ".tokens": "1000", "budget." + scope + ".cost": "2"}
			own := set
			if scope == "server" {
				own = nil
			}
			d := working(t, own)
			if scope == "server" {
				d.town.server = set
				clear(d.town.limits)
			}
			sum := Granted{}
			for i := range 40 {
				b, err := d.take("web-aaaaa", fmt.Sprint("b", i), 100, 100_000)
				if err != nil {
					if !errs.Is(err, errs.Overloaded) || i < 8 {
						t.Fatalf("block %d: %v", i, err)
					}
					break
				}
				if b.Tokens == 0 || b.Cost == 0 || i == 0 && (b.Tokens != 125 || b.Cost != 250_000) {
					t.Fatalf("block %d is %+v", i, b)
				}
				sum = sum.add(Granted{b.Tokens, b.Cost})
			}
			if bud := d.budget("budget." + scope + ".tokens"); sum.Tokens != 1000 || bud.Granted != 1000 || bud.Left() != 0 || bud.Spent != 0 || sum.Cost > 2_000_000 {
				t.Fatalf("granted %+v; %+v", sum, bud)
			}
			if d.run("web-aaaaa").State != RunRunning {
				t.Fatal("it is stopped by what is only granted")
			}
			// What comes back can be granted again.
			d.settle("web-aaaaa", "b0", 25, 50_000)
			if bud := d.budget("budget." + scope + ".tokens"); bud.Spent != 25 || bud.Left() != 100 {
				t.Fatalf("%+v", bud)
			}
			if b, err := d.take("web-aaaaa", "again", 5000, 1); err != nil || b.Tokens != 100 {
				t.Fatalf("%+v, %v", b, err)
			}
		})
	}
}

func TestARunOnABlockGoesOnUntilItIsSpent(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.tokens": "100"})
	if b, err := d.take("web-aaaaa", "b", 5000, 0); err != nil || b.Tokens != 100 || b.Cost != 0 {
		t.Fatalf("%+v, %v", b, err)
	}
	if r := d.run("web-aaaaa"); r.State != RunRunning || !d.town.NeedsBlock(r.ID) {
		t.Fatalf("%+v", r)
	}
	d.settle("web-aaaaa", "b", 120, 0) // the last request goes over
	if r := d.run("web-aaaaa"); r.Stop == "" || r.StopClass != ClassLimit || r.Spent.Tokens != 120 {
		t.Fatalf("%+v", r)
	}
	if _, err := d.take("web-aaaaa", "c", 1, 0); !errs.Is(err, errs.Conflict) {
		t.Fatalf("%v", err)
	}
}

func TestABlockThatNobodySettlesIsChargedInFull(t *testing.T) {
	t.Parallel()
	for _, ended := range []bool{false, true} {
		d := working(t, Settings{"budget.town.tokens": "8000"})
		b, err := d.take("web-aaaaa", "b", 10, 0)
		if err != nil || b.Tokens != 1000 {
			t.Fatalf("%+v, %v", b, err)
		}
		r := d.run("web-aaaaa")
		if ended {
			d.done("web-aaaaa")
			d.ended(r, OutcomeDone, "", "")
		}
		if bud := d.budget("budget.town.tokens"); bud.Granted != 1000 || bud.Spent != 0 {
			t.Fatalf("%+v", bud)
		}
		d.pass(BlockLife - time.Millisecond)
		if len(d.town.Blocks()) != 1 {
			t.Fatal("it ended before its time")
		}
		if w, ok := d.town.NextWake(d.now); !ok || w.After(d.now.Add(time.Millisecond)) {
			t.Fatalf("the town wakes at %s", w)
		}
		d.pass(time.Millisecond)
		if bud := d.budget("budget.town.tokens"); bud.Granted != 0 || bud.Spent != 1000 || len(d.town.Blocks()) != 0 || d.count("budget.unsettled") != 1 {
			t.Fatalf("%+v", bud)
		}
		// The meter was not dead, only late: it was charged more than enough.
		d.do(Metered{Run: r.ID, Epoch: r.Epoch, Meter: "b", Seq: 1, Tokens: 70})
		if bud := d.budget("budget.town.tokens"); bud.Spent != 1000 || d.town.BeadSpend(d.now, "web-aaaaa").Fresh.Tokens != 1000 {
			t.Fatalf("%+v", bud)
		}
	}
}

func TestABlockIsProlongedByItsName(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.tokens": "8000"})
	for range 5 {
		if b, err := d.take("web-aaaaa", "b", 10, 0); err != nil || b.Until != At(d.now.Add(BlockLife)) || b.Tokens != 1000 {
			t.Fatalf("%+v, %v", b, err)
		}
		d.pass(BlockLife - time.Second)
	}
	d.settle("web-aaaaa", "b", 7, 0)
	if bud := d.budget("budget.town.tokens"); bud.Spent != 7 || bud.Granted != 0 {
		t.Fatalf("%+v", bud)
	}
	if _, err := d.take("web-aaaaa", "b", 10, 0); !errs.Is(err, errs.Conflict) {
		t.Fatalf("a settled block is taken again: %v", err)
	}
}

func TestABlockCountsOnTheDayItWasGranted(t *testing.T) {
	t.Parallel()
	d := newDriver(t)
	d.now = d.now.UTC().Truncate(day).Add(day - time.Minute)
	d.rig()
	d.do(SetTown{By: "ann", Set: Settings{"budget.town.tokens": "1000"}})
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	before := dayOf(At(d.now))
	if _, err := d.take("web-aaaaa", "b", 600, 0); err != nil {
		t.Fatal(err)
	}
	d.pass(2 * time.Minute)
	if bud := d.budget("budget.town.tokens"); bud.Granted != 0 || bud.Left() != 1000 {
		t.Fatalf("%+v", bud)
	}
	d.settle("web-aaaaa", "b", 500, 0)
	if bud := d.budget("budget.town.tokens"); bud.Spent != 0 || d.days[before].Tokens != 500 || d.lent[before] != (Granted{}) {
		t.Fatalf("%+v, %+v", bud, d.days)
	}
}

func TestWithoutABudgetNobodyNeedsABlock(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.awake": "10h", "budget.bead.runs": "10"})
	if d.town.NeedsBlock(d.run("web-aaaaa").ID) || d.town.NeedsBlock("web-zzzzz.1") {
		t.Fatal("a block is needed")
	}
	d.do(SetTown{By: "ann", Set: Settings{"budget.bead.cost": "1"}})
	if !d.town.NeedsBlock(d.run("web-aaaaa").ID) {
		t.Fatal("no block is needed")
	}
}

func TestBlocksOfStrangersAndOddOnesAreRefused(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.tokens": "1000"})
	r := d.run("web-aaaaa")
	for _, c := range []struct {
		in   TakeBlock
		want errs.Kind
	}{
		{TakeBlock{Run: r.ID, Epoch: 2, ID: "b"}, errs.Gone},
		{TakeBlock{Run: "web-zzzzz.1", Epoch: 1, ID: "b"}, errs.Gone},
		{TakeBlock{Run: r.ID, Epoch: 1}, errs.Invalid},
		{TakeBlock{Run: r.ID, Epoch: 1, ID: "b\n"}, errs.Invalid},
		{TakeBlock{Run: r.ID, Epoch: 1, ID: "b", Tokens: -1}, errs.Invalid},
		{TakeBlock{Run: r.ID, Epoch: 1, ID: "b", Cost: maxMeterCost + 1}, errs.Invalid},
	} {
		if err := d.try(c.in); !errs.Is(err, c.want) {
			t.Errorf("%+v: %v", c.in, err)
		}
	}
}

func TestWhatADeletedTownWasGrantedCountsInFull(t *testing.T) {
	t.Parallel()
	d := working(t, Settings{"budget.town.tokens": "8000"})
	if _, err := d.take("web-aaaaa", "b", 10, 0); err != nil {
		t.Fatal(err)
	}
	day := dayOf(At(d.now))
	d.do(DeleteTown{By: "ann"})
	if d.lent[day].Tokens != 1000 || len(d.town.Blocks()) != 1 {
		t.Fatalf("who took the block may still settle it, and %+v is granted", d.lent[day])
	}
	d.pass(30 * time.Second)
	if !d.town.info.Removed || d.lent[day] != (Granted{}) || d.days[day].Tokens != 1000 {
		t.Fatalf("removed: %v; the server's day has %+v, and %+v granted", d.town.info.Removed, d.days[day], d.lent[day])
	}
}
