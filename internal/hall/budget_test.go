package hall_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

// countDays counts the reads of the server's days.
type countDays struct {
	store.Store
	mu sync.Mutex
	n  int
}

func (c *countDays) ServerDays(ctx context.Context, from string, limit int) ([]store.DaySpend, error) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.Store.ServerDays(ctx, from, limit)
}

func budgeted(key, value string) func(*hall.Config) {
	return func(c *hall.Config) { c.Server = town.Settings{key: value} }
}

// why returns how the one bead of a town stands.
func (f *fixture) why(id, bead string) (r town.Reason) {
	f.t.Helper()
	f.must(f.h.View(f.t.Context(), id, func(tn *town.Town, now time.Time) (err error) {
		r, err = tn.Why(now, bead)
		return err
	}))
	return r
}

func (f *fixture) today() store.DaySpend {
	f.t.Helper()
	days, err := f.store.ServerDays(f.t.Context(), time.Now().UTC().Format(time.DateOnly), 1)
	f.must(err)
	if len(days) == 0 {
		return store.DaySpend{}
	}
	return days[0]
}

func TestReplicasNeverStartMoreRunsThanTheServersDayHas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const towns, limit = 64, 7
		f := newFixture(t, func(c *hall.Config) {
			c.Shared = true
			c.Server = town.Settings{"budget.server.runs": fmt.Sprint(limit)}
		})
		defer f.stop()
		second := f.cfg
		second.Boot = "boot2"
		halls := []*hall.Hall{f.h, hall.New(second)}
		defer stopHall(halls[1])
		var ids, beads []string
		for i := range towns {
			name := fmt.Sprintf("town-%c%c", 'a'+i/26, 'a'+i%26)
			id := f.town(name)
			in := f.bead(id, strings.ReplaceAll(name, "-", ""))
			in.Staged = true
			f.must(f.h.Do(t.Context(), id, in))
			ids, beads = append(ids, id), append(beads, in.ID)
		}
		// Both know the day from before, and neither knows of what the other starts.
		for _, h := range halls {
			f.must(h.View(t.Context(), ids[0], func(*town.Town, time.Time) error { return nil }))
		}
		var all sync.WaitGroup
		for i := range towns {
			all.Go(func() {
				if err := halls[i%2].Do(t.Context(), ids[i], town.SlingBead{By: "tester", Bead: beads[i]}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		synctest.Wait()
		parked, started := 0, 0
		for i, id := range ids {
			switch w := f.why(id, beads[i]); {
			case w.Kind == "budget" && w.Subject == "server" && !w.Until.Time().IsZero() && f.head(id).WaitsBudget:
				parked++
			case w.Kind == "budget":
				t.Fatalf("%+v, column %v", w, f.head(id).WaitsBudget)
			default:
				started++
			}
		}
		if started != limit || parked != towns-limit || f.today().Runs != limit {
			t.Fatalf("%d started, %d parked, %d runs in the day", started, parked, f.today().Runs)
		}
	})
}

func TestARaisedServerBudgetIsNoticedAtBootAndMidnightByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, budgeted("budget.server.tokens", "100"))
		f.h.Start(t.Context())
		id := f.awake("house")
		bead := fmt.Sprintf("house-%05d", f.beads)
		f.must(f.h.Do(t.Context(), id, town.Metered{Run: bead + ".1", Epoch: 1, Meter: "gw", Seq: 1, Tokens: 100}))
		f.must(f.h.Do(t.Context(), id, town.Reports{Generation: 1, Stream: "s", From: 1,
			Items: []town.Report{{Kind: town.ReportEnded, Run: bead + ".1", Epoch: 1, Outcome: town.OutcomeStopped}, {Kind: town.ReportDrained}}}))
		sleep(5 * time.Minute)
		if h := f.head(id); h.Sandbox != store.Asleep || !h.WaitsBudget {
			t.Fatalf("sandbox %s, waits %v", h.Sandbox, h.WaitsBudget)
		}
		stopHall(f.h)

		// The same limit: the town is looked at and nothing is written.
		jobs := f.store.Stats().Jobs
		f.again("boot2")
		sleep(10 * time.Minute)
		if got := f.store.Stats().Jobs; got != jobs || f.h.Metrics().Ticks.Load() == 0 {
			t.Fatalf("%d writes, %d ticks", got-jobs, f.h.Metrics().Ticks.Load())
		}
		midnight := time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
		if due := f.head(id).DueAt; due != midnight.UnixMilli() {
			t.Fatalf("its alarm is at %s", time.UnixMilli(due).UTC())
		}
		stopHall(f.h)

		// Raised while nothing ran.
		f.cfg.Server = town.Settings{"budget.server.tokens": "101"}
		f.again("boot3")
		sleep(time.Second)
		if w := f.why(id, bead); w.Kind == "budget" || f.head(id).WaitsBudget {
			t.Fatalf("%+v", w)
		}
		f.hello(id)
		f.must(f.h.Do(t.Context(), id, town.Metered{Run: bead + ".2", Epoch: 2, Meter: "gw", Seq: 1, Tokens: 1}))
		f.must(f.h.Do(t.Context(), id, town.Reports{Generation: f.head(id).Generation, Stream: "s", From: 1,
			Items: []town.Report{{Kind: town.ReportEnded, Run: bead + ".2", Epoch: 2, Outcome: town.OutcomeStopped}, {Kind: town.ReportDrained}}}))
		sleep(5 * time.Minute)
		if w := f.why(id, bead); w.Kind != "budget" {
			t.Fatalf("%+v", w)
		}
		starts := f.out.count("sandbox.start")
		sleep(time.Until(midnight) - time.Second)
		if f.out.count("sandbox.start") != starts {
			t.Fatal("it was started before midnight")
		}
		sleep(2 * time.Second)
		if f.out.count("sandbox.start") != starts+1 {
			t.Fatal("it was not started at midnight")
		}
		f.stop()
	})
}

func TestAnotherTownsSpendingStopsARunAWhileLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, budgeted("budget.server.cost", "1"))
		defer f.stop()
		one, two := f.awake("one"), f.awake("two")
		f.must(f.h.Do(t.Context(), one, town.Metered{Run: "one-00001.1", Epoch: 1, Meter: "gw", Seq: 1, Cost: 1_000_000}))
		sleep(2 * time.Second)
		f.must(f.h.Do(t.Context(), two, town.Reports{Generation: 1, Stream: "s", From: 1, Items: []town.Report{{Kind: town.ReportHeartbeat}}}))
		if w := f.why(two, "two-00002"); !strings.Contains(w.Text, "budget.server.cost") {
			t.Fatalf("%+v", w)
		}
	})
}

func TestTheServersDaysAreNotReadWithoutABudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		days := &countDays{Store: storetest.NewMemory()}
		f := newFixture(t, func(c *hall.Config) { c.Store = days })
		defer f.stop()
		f.h.Start(t.Context())
		f.awake("house")
		sleep(time.Minute)
		if days.n != 0 {
			t.Fatalf("read %d times", days.n)
		}
		if got := f.today(); got.Runs != 1 {
			t.Fatalf("and still they are written: %+v", got)
		}
	})
}

func TestFailedCommitsSpendNothingTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		var mu sync.Mutex
		faults := []storetest.Fault{storetest.FaultNone, storetest.FaultUnknownDone, storetest.FaultUnknownLost, storetest.FaultFail, storetest.FaultFull}
		f := newFixture(t, func(c *hall.Config) {
			c.Server = town.Settings{"budget.server.tokens": "1000000", "budget.server.runs": "1000"}
			c.Store = &storetest.Faulty{Store: c.Store, Next: func(op, id string) storetest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if op != "Commit" || n == 0 {
					return storetest.FaultNone
				}
				n++
				return faults[n%len(faults)]
			}}
		})
		defer f.stop()
		id := f.awake("house")
		mu.Lock()
		n = 1
		mu.Unlock()
		for seq := int64(1); seq <= 40; {
			err := f.h.Do(t.Context(), id, town.Metered{Run: "house-00001.1", Epoch: 1, Meter: "gw", Seq: seq, Tokens: 10})
			switch {
			case err == nil:
				seq++
			case !errs.Is(err, errs.Unavailable):
				t.Fatal(err)
			}
			sleep(7 * time.Second)
		}
		var spent town.BeadSpend
		var used []town.Usage
		f.must(f.h.View(t.Context(), id, func(tn *town.Town, now time.Time) error {
			spent, used = tn.BeadSpend(now, "house-00001"), tn.Usage(now)
			return nil
		}))
		day := f.today()
		if spent.Total().Tokens != 400 || day.Tokens != 400 || used[0].Tokens != 400 || day.Runs != spent.Total().Runs || day.Runs != used[0].Runs {
			t.Fatalf("bead %+v, town %+v, server %+v", spent, used, day)
		}
	})
}
