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

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

func TestNewWorkStartsASandboxAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		defer f.stop()
		begin := time.Now()
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
		synctest.Wait()
		if n := f.out.count("sandbox.start"); n != 1 {
			t.Fatalf("%d sandboxes were started, not 1: %v", n, f.out.list())
		}
		if took := time.Since(begin); took != 0 {
			t.Fatalf("it took %s without an alarm", took)
		}
	})
}

func TestAnEffectLeavesOnlyAfterTheCommitThatClaimedIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		defer f.stop()
		f.out.do = func(ctx context.Context, ref hall.TownRef, e town.Effect) (any, error, bool) {
			_, rows, err := f.store.Load(ctx, ref.ID, 0)
			if err != nil {
				t.Error(err)
			}
			for _, r := range rows {
				if r.Kind == "claim" && r.ID == e.Key && strings.Contains(string(r.Body), fmt.Sprintf(`"id":%d,`, e.ID)) {
					return nil, nil, false
				}
			}
			t.Errorf("effect %s %d was performed without a committed claim", e.Key, e.ID)
			return nil, nil, false
		}
		f.awake("house")
		if f.out.count("sandbox.start") != 1 {
			t.Fatal("nothing was performed")
		}
	})
}

func TestNothingIsPerformedWhenTheCommitFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fs := &faulty{Store: storetest.NewMemory()}
		f := newFixture(t, func(c *hall.Config) { c.Store = fs })
		defer f.stop()
		id := f.town("house")
		fs.set(func(func() (int64, error), store.Commit) (int64, error) {
			return 0, errs.New(errs.Unavailable, "disk full")
		})
		in := f.bead(id, "house")
		if err := f.h.Do(t.Context(), id, in); !errs.Is(err, errs.Unavailable) {
			t.Fatalf("got %v", err)
		}
		synctest.Wait()
		if got := f.out.list(); len(got) != 0 {
			t.Fatalf("performed %v", got)
		}
		fs.set(nil)
		f.must(f.h.Do(t.Context(), id, in)) // the copy that was ahead of the store is gone
	})
}

func TestUnknownOutcomes(t *testing.T) {
	t.Parallel()
	t.Run("a commit that happened counts, and its effects are performed once", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			fs := &faulty{Store: storetest.NewMemory()}
			f := newFixture(t, func(c *hall.Config) { c.Store = fs })
			defer f.stop()
			id := f.town("house")
			fs.set(func(next func() (int64, error), _ store.Commit) (int64, error) {
				if _, err := next(); err != nil {
					return 0, err
				}
				return 0, store.ErrUnknown
			})
			f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
			fs.set(nil)
			synctest.Wait()
			if n := f.out.count("sandbox.start"); n != 1 {
				t.Fatalf("%d starts", n)
			}
		})
	})
	t.Run("a commit that can't be found performs nothing and says so", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			fs := &faulty{Store: storetest.NewMemory()}
			f := newFixture(t, func(c *hall.Config) { c.Store = fs })
			defer f.stop()
			id := f.town("house")
			fs.set(func(func() (int64, error), store.Commit) (int64, error) { return 0, store.ErrUnknown })
			in := f.bead(id, "house")
			err := f.h.Do(t.Context(), id, in)
			if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "same idempotency key") {
				t.Fatalf("got %v", err)
			}
			fs.set(nil)
			synctest.Wait()
			if got := f.out.list(); len(got) != 0 {
				t.Fatalf("performed %v", got)
			}
			f.must(f.h.Do(t.Context(), id, in))
		})
	})
	t.Run("the idempotency record proves a commit that others followed", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			mem := storetest.NewMemory()
			fs := &faulty{Store: mem}
			f := newFixture(t, func(c *hall.Config) { c.Store = fs })
			defer f.stop()
			id := f.town("house")
			fs.set(func(next func() (int64, error), c store.Commit) (int64, error) {
				v, err := next()
				if err != nil {
					return 0, err
				}
				if _, err := mem.Commit(context.Background(), store.Commit{Town: id, Expect: v, CommitID: "other", Columns: c.Columns}); err != nil {
					t.Error(err)
				}
				fs.mu.Lock()
				fs.commit = nil
				fs.mu.Unlock()
				return 0, store.ErrUnknown
			})
			status, body, replayed, err := f.h.DoIdem(t.Context(), id, f.bead(id, "house"), "k", "h", func(*town.Town) (int, []byte) { return 201, []byte("made") })
			if err != nil || status != 201 || string(body) != "made" || !replayed {
				t.Fatalf("got %d %q %v %v", status, body, replayed, err)
			}
		})
	})
}

func TestARepeatWithTheSameKeyGetsTheSameAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		defer f.stop()
		id := f.town("house")
		in := f.bead(id, "house")
		made := 0
		respond := func(tn *town.Town) (int, []byte) {
			made++
			return 201, fmt.Appendf(nil, "%d beads", len(tn.Beads()))
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if s, b, _, err := f.h.DoIdem(t.Context(), id, in, "key", "hash", respond); err != nil || s != 201 || string(b) != "1 beads" {
					t.Errorf("got %d %q %v", s, b, err)
				}
			})
		}
		wg.Wait()
		if _, _, _, err := f.h.DoIdem(t.Context(), id, in, "key", "other", respond); !errs.Is(err, errs.Conflict) {
			t.Fatalf("another request with the key: %v", err)
		}
		one, err := f.h.CreateTown(t.Context(), "two", "", nil, "tester", &hall.Idem{Key: "k", Hash: "h"})
		f.must(err)
		two, err := f.h.CreateTown(t.Context(), "two", "", nil, "tester", &hall.Idem{Key: "k", Hash: "h"})
		f.must(err)
		if one != two {
			t.Fatalf("one key made two towns, %s and %s", one, two)
		}
		if _, err := f.h.CreateTown(t.Context(), "two", "", nil, "tester", nil); !errs.Is(err, errs.Conflict) {
			t.Fatalf("a taken name: %v", err)
		}
	})
}

func TestTwoHallsOnOneStorePerformAnEffectOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Shared = true })
		defer f.stop()
		second := f.cfg
		second.Boot = "boot2"
		g := hall.New(second)
		defer stopHall(g)
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester"}))
		var wg sync.WaitGroup
		for i := range 40 {
			in := f.bead(id, "house")
			h := []*hall.Hall{f.h, g}[i%2]
			wg.Go(func() {
				if err := h.Do(t.Context(), id, in); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, h := range []*hall.Hall{f.h, g, f.h, g} {
			wg.Go(func() {
				if err := h.Do(t.Context(), id, town.Resume{By: "tester"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := f.out.count("sandbox.start"); n != 1 {
			t.Fatalf("%d starts: %v", n, f.out.list())
		}
		f.must(g.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
			if n := len(tn.Beads()); n != 40 {
				return fmt.Errorf("%d beads, not 40", n)
			}
			return nil
		}))
		if f.h.Metrics().Conflicts.Load()+g.Metrics().Conflicts.Load() == 0 {
			t.Log("no conflict happened; the test proved less than it could")
		}
	})
}

func TestARefusalNeverComesFromAStaleCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Shared = true })
		defer f.stop()
		second := f.cfg
		second.Boot = "boot2"
		g := hall.New(second)
		defer stopHall(g)
		id := f.town("house")
		see := func(h *hall.Hall, want int) {
			t.Helper()
			f.must(h.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
				if n := len(tn.Beads()); n != want {
					return fmt.Errorf("sees %d beads, not %d", n, want)
				}
				return nil
			}))
		}
		see(g, 0) // g keeps a copy for a while
		in := f.bead(id, "house")
		in.Staged = true
		f.must(f.h.Do(t.Context(), id, in))
		f.must(g.Do(t.Context(), id, town.CloseBead{By: "tester", Bead: in.ID, Reason: "done by hand"}))
		see(f.h, 1)
		see(g, 1)
		if err := f.h.Do(t.Context(), id, town.SlingBead{By: "tester", Bead: in.ID}); !errs.Is(err, errs.Conflict) {
			t.Fatalf("a closed bead was slung: %v", err)
		}
	})
}

func TestACrashBetweenCommitAndEffectLosesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Exec = dropped{} })
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
		if len(f.out.list()) != 0 {
			t.Fatal("the effect was performed before the crash")
		}
		f.restart("boot2")
		f.h.Start(t.Context())
		defer f.stop()
		sleep(time.Millisecond)
		if n := f.out.count("sandbox.start"); n != 1 {
			t.Fatalf("%d starts after the crash: %v", n, f.out.list())
		}
	})
}

// dropped loses everything that it is given: a process that dies right after its commit.
type dropped struct{}

func (dropped) Go(func()) {}

func TestInputsThatWaitTogetherShareOneCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		defer f.stop()
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester"}))
		before := f.h.Metrics().Commits.Load()
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.h.View(t.Context(), id, func(*town.Town, time.Time) error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 10 {
			in := f.bead(id, "house")
			wg.Go(func() {
				if err := f.h.Do(t.Context(), id, in); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := f.h.Do(t.Context(), id, town.SlingBead{By: "tester", Bead: "house-nosuch"}); err == nil {
				t.Error("a refusal got lost among the others")
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
		if n := f.h.Metrics().Commits.Load() - before; n != 1 {
			t.Fatalf("%d commits for inputs that waited together", n)
		}
	})
}

func TestAFullQueueIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.QueueLen = 3 })
		defer f.stop()
		id := f.town("house")
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.h.View(t.Context(), id, func(*town.Town, time.Time) error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		for range 3 {
			wg.Go(func() {
				if err := f.h.Do(t.Context(), id, town.Pause{By: "tester"}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		err := f.h.Do(t.Context(), id, town.Pause{By: "tester"})
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Overloaded || e.RetryAfter != time.Second {
			t.Fatalf("got %v", err)
		}
		close(release)
		wg.Wait()
	})
}

func TestACallerWhoseContextEndsBeforeItsTurnChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		defer f.stop()
		id := f.town("house")
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.h.View(t.Context(), id, func(*town.Town, time.Time) error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := f.h.Do(ctx, id, town.Pause{By: "tester"}); !errs.Is(err, errs.Unavailable) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(release)
		wg.Wait()
		if got := f.head(id).Status; got != "active" {
			t.Fatalf("the town is %s", got)
		}
	})
}

func TestAPanicIsolates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		id, other := f.town("house"), f.town("other")
		release := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := f.h.View(t.Context(), id, func(*town.Town, time.Time) error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		good := f.bead(id, "house")
		wg.Go(func() {
			if err := f.h.Do(t.Context(), id, good); err != nil {
				t.Error(err)
			}
		})
		bad := f.bead(id, "house")
		wg.Go(func() {
			_, _, _, err := f.h.DoIdem(t.Context(), id, bad, "k", "h", func(*town.Town) (int, []byte) { panic("poison") })
			if !errs.Is(err, errs.Internal) {
				t.Errorf("got %v", err)
			}
		})
		wg.Go(func() {
			err := f.h.View(t.Context(), id, func(*town.Town, time.Time) error { panic("poison") })
			if !errs.Is(err, errs.Internal) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
		f.must(f.h.Do(t.Context(), other, f.bead(other, "other")))
		f.must(f.h.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
			if _, ok := tn.Bead(bad.ID); ok {
				return errors.New("half of the poisoned input is there")
			}
			if _, ok := tn.Bead(good.ID); !ok {
				return errors.New("the good input is missing")
			}
			return nil
		}))
		sleep(5 * time.Second)
		if got := f.head(id).Failing; got != "" {
			t.Fatalf("still failing after a good tick: %s", got)
		}
	})
}

func TestASlowTownDoesNotSlowItsNeighbours(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		slow, quick := f.town("slow"), f.town("quick")
		f.out.do = func(ctx context.Context, ref hall.TownRef, e town.Effect) (any, error, bool) {
			if ref.ID == slow {
				<-ctx.Done()
				return nil, ctx.Err(), true
			}
			return nil, nil, false
		}
		release := make(chan struct{})
		var wg sync.WaitGroup
		f.must(f.h.Do(t.Context(), slow, f.bead(slow, "slow")))
		wg.Go(func() {
			if err := f.h.View(t.Context(), slow, func(*town.Town, time.Time) error { <-release; return nil }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		begin := time.Now()
		f.must(f.h.Do(t.Context(), quick, f.bead(quick, "quick")))
		synctest.Wait()
		if n := f.out.count("quick sandbox.start"); n != 1 || time.Since(begin) != 0 {
			t.Fatalf("%d starts after %s", n, time.Since(begin))
		}
		close(release)
		wg.Wait()
	})
}

func TestATownLeavesMemoryWhenNothingHappensToIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.KeepCount = 32 })
		f.h.Start(t.Context())
		defer f.stop()
		for i := range 50 {
			f.town(fmt.Sprintf("town%d", i))
		}
		if n := f.h.InMemory(); n > 32 {
			t.Fatalf("%d idle towns in memory", n)
		}
		sleep(3 * time.Second)
		if n := f.h.InMemory(); n != 0 {
			t.Fatalf("%d idle towns in memory after a while", n)
		}
		id := f.awake("house")
		sleep(time.Minute)
		if n := f.h.InMemory(); n != 1 {
			t.Fatalf("%d towns in memory, not the awake one", n)
		}
		f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester", Now: true}))
		sleep(10 * time.Minute)
		if got := f.head(id).Sandbox; got != "asleep" {
			t.Fatalf("the sandbox is %s", got)
		}
		if n := f.h.InMemory(); n != 0 {
			t.Fatalf("%d towns in memory after sleep", n)
		}
	})
}
