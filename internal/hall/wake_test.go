package hall_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

// watched is a store that shows each commit, and counts what else is written.
type watched struct {
	store.Store
	mu      sync.Mutex
	commits []store.Commit
	loads   []string
	slow    time.Duration // that a load takes
	now     int           // loads under way
	most    int
}

func (w *watched) Commit(ctx context.Context, c store.Commit) (int64, error) {
	v, err := w.Store.Commit(ctx, c)
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.commits = append(w.commits, c)
	}
	return v, err
}

func (w *watched) Load(ctx context.Context, id string, since int64) (store.Head, []store.Row, error) {
	w.mu.Lock()
	w.loads = append(w.loads, id)
	w.now++
	w.most = max(w.most, w.now)
	slow := w.slow
	w.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.now--
	}()
	return w.Store.Load(ctx, id, since)
}

func (w *watched) take() []store.Commit {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.commits
	w.commits = nil
	return out
}

func watching(t *testing.T, mod func(*hall.Config)) (*fixture, *watched) {
	w := &watched{Store: storetest.NewMemory()}
	return newFixture(t, func(c *hall.Config) {
		c.Store = w
		if mod != nil {
			mod(c)
		}
	}), w
}

// claimOf returns the claim with a prefix that a commit made.
func claimOf(c store.Commit, prefix string) bool {
	for _, r := range c.Rows {
		if r.Kind == "claim" && r.Body != nil && strings.HasPrefix(r.ID, prefix) {
			return true
		}
	}
	return false
}

func TestNewWorkIsClaimedInTheCommitThatBringsIt(t *testing.T) {
	t.Parallel()
	cases := map[string]func(f *fixture, id string){
		"asleep in memory": func(*fixture, string) {},
		"evicted":          func(*fixture, string) { sleep(time.Minute) },
		"never loaded by this process": func(f *fixture, _ string) {
			f.stop()
			f.restart("boot2")
		},
		"asleep again after it was awake": func(f *fixture, id string) {
			f.must(f.h.Do(f.t.Context(), id, town.Resume{By: "tester", For: time.Minute}))
			synctest.Wait()
			f.hello(id)
			f.must(f.h.Do(f.t.Context(), id, town.Pause{By: "tester", Now: true}))
			sleep(2 * time.Minute)
			f.must(f.h.Do(f.t.Context(), id, town.Resume{By: "tester"}))
			sleep(time.Minute)
			if got := f.head(id).Sandbox; got != store.Asleep {
				f.t.Fatalf("the sandbox is %s", got)
			}
		},
	}
	for name, before := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, w := watching(t, nil)
				defer func() { f.stop() }()
				id := f.town("house")
				f.must(f.h.Do(t.Context(), id, town.SetRig{By: "tester", Rig: "web", Set: town.Settings{"fetch.interval": "1h"}}))
				f.h.Start(t.Context())
				sleep(time.Second)
				before(f, id)
				w.take()
				begin := time.Now()
				f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
				first := w.take()[0]
				if !claimOf(first, "sandbox/admit") {
					t.Fatalf("the commit of the new bead claims no sandbox: %+v", first.Columns)
				}
				if in := first.Columns.DueAt - begin.UnixMilli(); in <= 0 || in > 5000 {
					t.Fatalf("if the process died now, the work would be taken up in %d ms", in)
				}
				synctest.Wait()
				if got := f.head(id).Sandbox; got != "starting" || !time.Now().Equal(begin) {
					t.Fatalf("%s later the sandbox is %s", time.Since(begin), got)
				}
			})
		})
	}
}

// TestWhateverIsCommittedIsTakenUpInTimeWhenTheProcessDies drives one town with
// random inputs and looks at the deadline in every commit.
func TestWhateverIsCommittedIsTakenUpInTimeWhenTheProcessDies(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			f, w := watching(t, func(c *hall.Config) {
				c.Server = town.Settings{"fetch.interval": "1s", "alarm.active_interval": rapid.SampledFrom([]string{"1s", "5s", "1h"}).Draw(rt, "interval")}
				c.Limits = store.Limits{MaxAwake: rapid.IntRange(1, 2).Draw(rt, "max awake")}
			})
			f.out.do = func(ctx context.Context, ref hall.TownRef, e town.Effect) (any, error, bool) {
				if e.ID%3 == 0 {
					<-ctx.Done() // it takes as long as it may
					return nil, ctx.Err(), true
				}
				return nil, nil, false
			}
			f.h.Start(t.Context())
			defer f.stop()
			ids := []string{f.town("one"), f.town("two")}
			until := map[string]map[string]int64{ids[0]: {}, ids[1]: {}}
			for range rapid.IntRange(5, 40).Draw(rt, "steps") {
				f.some(rt, ids[rapid.IntRange(0, 1).Draw(rt, "town")])
				for _, c := range w.take() {
					checkDue(rt, c, until[c.Town])
				}
			}
		})
	})
}

// some lets something happen, which may be refused.
func (f *fixture) some(rt *rapid.T, id string) {
	ctx := f.t.Context()
	h := f.head(id)
	in := func(in town.Input) {
		_ = f.h.Do(ctx, id, in) // a refusal is part of the game
	}
	switch rapid.IntRange(0, 8).Draw(rt, "what") {
	case 0, 1:
		in(f.bead(id, h.Name))
	case 2:
		in(town.Hello{Generation: h.Generation, Stream: "s"})
	case 3:
		in(town.SandboxExited{Generation: h.Generation, Reason: "killed"})
	case 4:
		in(town.Pause{By: "tester", Now: true})
	case 5:
		in(town.Resume{By: "tester", For: time.Minute})
	case 6:
		in(town.SetTown{By: "tester", Set: town.Settings{"sandbox.grace": "5s"}})
	default:
		sleep(time.Duration(rapid.IntRange(1, 60_000).Draw(rt, "ms")) * time.Millisecond)
	}
	synctest.Wait()
}

// checkDue wants a commit's deadline to be no further away than promised: 5 s with
// effects under way, 30 s while a sandbox runs. until has the claims so far.
func checkDue(rt *rapid.T, c store.Commit, until map[string]int64) {
	for _, r := range c.Rows {
		if r.Kind != "claim" {
			continue
		}
		delete(until, r.ID)
		if r.Body != nil {
			var cl town.Claim
			if err := decodeJSON(r.Body, &cl); err != nil {
				rt.Fatal(err)
			}
			until[r.ID] = int64(cl.Until)
		}
	}
	most := int64(-1)
	if town.SandboxState(c.Columns.Sandbox).Running() {
		most = 30_000
	}
	for _, at := range until {
		if at > c.At {
			most = 5000
		}
	}
	if in := c.Columns.DueAt - c.At; most > 0 && (c.Columns.DueAt == 0 || in > most) {
		rt.Fatalf("the deadline is %d ms away, not at most %d: %+v, claims until %v", in, most, c.Columns, until)
	}
}

func TestAfterADownTimeOverdueTownsAreSpreadAndRequestsComeFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, w := watching(t, nil)
		f.out.do = fetchFails
		var ids []string
		for i := range 1000 {
			name := fmt.Sprintf("t%04d", i)
			id := f.town(name)
			ids = append(ids, id)
			if i < 999 {
				f.damage(id, func(c *store.Columns) { c.DueAt = time.Now().UnixMilli() + int64(i) })
			}
		}
		f.stop()
		time.Sleep(time.Hour)
		f.restart("boot2")
		w.mu.Lock()
		w.loads, w.most, w.slow = nil, 0, 200*time.Millisecond // of virtual time
		w.mu.Unlock()
		f.h.Start(t.Context())
		defer f.stop()
		sleep(time.Second)
		begin := time.Now()
		for _, id := range []string{ids[999], ids[998]} { // one that is not due, and the last that is
			f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester"}))
		}
		if took := time.Since(begin); took > 500*time.Millisecond {
			t.Errorf("two requests took %s while others were overdue", took)
		}
		w.mu.Lock()
		loads, most := len(w.loads), w.most
		w.mu.Unlock()
		if loads > 100 {
			t.Errorf("the backlog was over when the requests were answered: %d loads", loads)
		}
		if most > 8+1 {
			t.Errorf("%d towns were loaded at once", most)
		}
		sleep(30 * time.Second)
		for _, id := range ids {
			if h := f.head(id); h.DueAt != 0 && h.DueAt <= time.Now().UnixMilli() {
				t.Fatalf("%s is still overdue", h.Name)
			}
		}
		if n := f.h.Metrics().Claimed.Load(); n < 998 {
			t.Errorf("%d were claimed", n)
		}
		if _, n := f.h.Metrics().Late(); n < 998 {
			t.Errorf("the lateness of %d is known", n)
		}
	})
}

func TestAFailingTownShowsItsErrorAndSlowsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fs := &faulty{Store: storetest.NewMemory()}
		f := newFixture(t, func(c *hall.Config) { c.Store = fs })
		var bad []string
		for i := range 20 {
			bad = append(bad, f.town(fmt.Sprint("bad", i)))
		}
		good := f.town("good")
		f.stop()
		f.restart("boot2")
		fs.load = func(id string) error {
			if id != good {
				return errors.New("damaged")
			}
			return nil
		}
		for _, id := range bad {
			f.damage(id, func(c *store.Columns) { c.DueAt = time.Now().UnixMilli() })
		}
		f.h.Start(t.Context())
		defer f.stop()
		sleep(6 * time.Hour)
		for _, id := range bad {
			h := f.head(id)
			if !strings.Contains(h.Failing, "the town's own row can't be read") {
				t.Fatalf("failing is %q", h.Failing)
			}
			if in := h.DueAt - time.Now().UnixMilli(); in <= 0 || in > 15*60*1000 {
				t.Fatalf("it is tried again in %d ms", in)
			}
			if n := h.Failing; !strings.HasPrefix(n, "failed 3") { // about 9 while it backs off, then 4 an hour
				t.Fatalf("%q in six hours", n)
			}
		}
		begin := time.Now()
		f.must(f.h.Do(t.Context(), good, f.bead(good, "good")))
		synctest.Wait()
		if f.out.count("good sandbox.start") != 1 || !time.Now().Equal(begin) {
			t.Fatal("a healthy town waited for the failing ones")
		}
	})
}

// act is something that people or servers do all day.
type act struct {
	writes int64 // that it may cost: what the caller asked to store
	do     func(f *fixture, id string) error
}

// harmless are the acts that may wake no town.
func harmless() map[string]act {
	input := func(in town.Input) func(*fixture, string) error {
		return func(f *fixture, id string) error { return f.h.Do(f.t.Context(), id, in) }
	}
	refused := func(in town.Input) func(*fixture, string) error {
		return func(f *fixture, id string) error {
			if err := f.h.Do(f.t.Context(), id, in); err == nil {
				return fmt.Errorf("%s was not refused", town.InputName(in))
			}
			return nil
		}
	}
	view := func(fn func(*town.Town, time.Time)) func(*fixture, string) error {
		return func(f *fixture, id string) error {
			return f.h.View(f.t.Context(), id, func(t *town.Town, now time.Time) error { fn(t, now); return nil })
		}
	}
	return map[string]act{
		"a view": {0, view(func(t *town.Town, _ time.Time) { t.Beads() })},
		"why":    {0, view(func(t *town.Town, now time.Time) { t.WhyTown(now) })},
		"usage":  {0, view(func(t *town.Town, now time.Time) { t.Usage(now) })},
		"a list of towns": {0, func(f *fixture, _ string) error {
			_, err := f.store.Heads(f.t.Context(), "", 100)
			return err
		}},
		"the ledger": {0, func(f *fixture, id string) error {
			_, err := f.store.Ledger(f.t.Context(), id, store.LedgerQuery{Limit: 100})
			return err
		}},
		"an event stream": {0, func(f *fixture, id string) error {
			changed, cancel := f.h.Watch(id)
			defer cancel()
			sleep(20 * time.Minute)
			select {
			case <-changed:
				return errors.New("something happened")
			default:
				return nil
			}
		}},
		"a long poll of an old runner": {0, func(f *fixture, id string) error {
			if _, _, err := f.h.Desired(f.t.Context(), id, 1, 0); err == nil {
				return errors.New("it was answered")
			}
			return nil
		}},
		"a setting saved":           {1, input(town.SetTown{By: "tester", Set: town.Settings{"sandbox.grace": "9m"}})},
		"a rig's setting":           {1, input(town.SetRig{By: "tester", Rig: "web", Set: town.Settings{"agent": "claude"}})},
		"a rig added":               {1, input(town.AddRig{By: "tester", Rig: town.Rig{Name: "api", Prefix: "api", URL: "/upstream/api", Target: "main", Tip: oid}})},
		"a staged bead":             {1, input(town.CreateBead{By: "tester", ID: "house-00077", Rig: "web", Title: "later", Staged: true})},
		"a pause":                   {1, input(town.Pause{By: "tester"})},
		"a resume":                  {0, input(town.Resume{By: "tester"})},
		"a token's renewal":         {0, refused(town.RefreshToken{By: "tester"})},
		"a token exchanged":         {0, refused(town.Exchange{Generation: 1})},
		"a late hello":              {0, refused(town.Hello{Generation: 1, Stream: "s"})},
		"mail to nobody":            {0, refused(town.NudgeBead{By: "tester", Bead: "house-nosuch", Text: "hi"})},
		"the end of an old sandbox": {0, input(town.SandboxExited{Generation: 1, Reason: "evicted"})},
		"a place that is free":      {0, input(town.SlotFree{})},
		"restarts of the server": {0, func(f *fixture, _ string) error {
			for i := range 20 {
				f.stop()
				f.again(fmt.Sprint("boot", i+2))
				sleep(time.Minute)
			}
			return nil
		}},
		"sweeps and housekeeping": {0, func(*fixture, string) error { sleep(5 * time.Hour); return nil }},
	}
}

// TestNothingElseWakes does it all to a sleeping town.
func TestNothingElseWakes(t *testing.T) {
	t.Parallel()
	for name, a := range harmless() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, d := boxes(t)
				id := f.town("house")
				f.h.Start(t.Context())
				defer func() { f.stop() }()
				f.must(f.h.Do(t.Context(), id, town.Resume{By: "tester", For: time.Second}))
				synctest.Wait()
				f.hello(id)
				f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester", Now: true}))
				f.must(f.h.Do(t.Context(), id, town.Resume{By: "tester"}))
				sleep(100 * time.Minute) // it sleeps, the token of its sandbox is old, and all sweeps are over
				if h := f.head(id); h.Sandbox != store.Asleep || h.Generation != 1 || h.DueAt != 0 {
					t.Fatalf("it does not sleep: %+v", h)
				}
				d.ForgetCalls()
				writes, loads := f.store.Stats().Jobs, f.h.Metrics().Loads.Load()
				f.must(a.do(f, id))
				done, loaded := f.store.Stats().Jobs, f.h.Metrics().Loads.Load()
				sleep(10 * time.Minute)
				if n := done - writes; n != a.writes {
					t.Errorf("%d writes, not %d", n, a.writes)
				}
				if n := loaded - loads; n > 1 {
					t.Errorf("%d loads", n)
				}
				if f.store.Stats().Jobs != done || f.h.Metrics().Loads.Load() != loaded {
					t.Errorf("%d writes and %d loads followed", f.store.Stats().Jobs-done, f.h.Metrics().Loads.Load()-loaded)
				}
				for _, op := range []string{"start", "stop", "inspect", "remove"} {
					if n := d.Count(op, ""); n != 0 {
						t.Errorf("the driver was asked to %s %d times", op, n)
					}
				}
				if n := f.h.InMemory(); n != 0 {
					t.Errorf("%d towns in memory", n)
				}
			})
		})
	}
}
