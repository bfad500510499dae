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
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/sandboxtest"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

func TestIdleTownsCostNoWriteAndNoLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		for i := range 200 {
			f.town(fmt.Sprintf("town%d", i))
		}
		f.h.Start(t.Context())
		defer f.stop()
		sleep(time.Minute)
		writes, loads := f.store.Stats().Writes, f.h.Metrics().Loads.Load()
		sleep(time.Hour)
		if n := f.store.Stats().Writes - writes; n != 0 {
			t.Errorf("%d rows were written", n)
		}
		if n := f.h.Metrics().Loads.Load() - loads; n != 0 {
			t.Errorf("%d towns were loaded", n)
		}
		if n := f.h.Metrics().IdleReads.Load(); n < 12*64 {
			t.Errorf("only %d slices were read in an hour", n)
		}
		if got := f.out.list(); len(got) != 0 {
			t.Errorf("performed %v", got)
		}
	})
}

func TestAnAwakeTownIsLookedAtWithoutWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.awake("house")
		sleep(time.Second)
		version := f.head(id).Version
		looks := f.h.Metrics().Looks.Load()
		sleep(40 * time.Second)
		if n := f.h.Metrics().Looks.Load() - looks; n < 7 {
			t.Errorf("%d looks in 40 s", n)
		}
		if n := f.head(id).Version - version; n != 0 {
			t.Errorf("%d commits while nothing happened", n)
		}
	})
}

func TestAnEffectUnderWayCostsNoCommitsAndDeadlinesAreExact(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Server = town.Settings{"sandbox.hello_timeout": "50s"} })
		f.out.do = func(ctx context.Context, _ hall.TownRef, e town.Effect) (any, error, bool) {
			if _, ok := e.Action.(town.StartSandbox); ok {
				<-ctx.Done()
				return nil, ctx.Err(), true
			}
			return nil, nil, false
		}
		f.h.Start(t.Context())
		defer f.stop()
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
		sleep(time.Millisecond)
		version := f.head(id).Version
		sleep(49 * time.Second)
		if n := f.head(id).Version - version; n != 0 {
			t.Errorf("%d commits while a start was under way", n)
		}
		sleep(1100 * time.Millisecond)
		if got := f.head(id).Sandbox; got == "starting" {
			t.Errorf("the deadline of the hello passed and nobody acted")
		}
	})
}

func TestTimeActsByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
		sleep(time.Second)
		// No hello for a minute: the sandbox is wedged, stopped, and started again.
		sleep(4 * time.Minute)
		if n := f.out.count("sandbox.start"); n < 2 {
			t.Fatalf("%d starts: %v", n, f.out.list())
		}
		if n := f.out.count("sandbox.stop"); n == 0 {
			t.Fatal("the wedged sandbox was not stopped")
		}
	})
}

func TestSilenceCountsOnlyWhileSomeoneListened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		id := f.awake("house")
		sleep(time.Second)
		f.stop()
		f.stop() // twice is harmless
		time.Sleep(time.Hour)
		f.restart("boot2")
		f.h.Start(t.Context())
		defer f.stop()
		sleep(time.Second)
		see := func() (runs int, state town.SandboxState) {
			f.must(f.h.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
				runs, state = len(tn.Runs()), tn.Sandbox().State
				return nil
			}))
			return runs, state
		}
		if runs, state := see(); runs != 1 || state != town.SandboxAwake {
			t.Fatalf("after an hour without a server: %d runs, sandbox %s", runs, state)
		}
		if n := f.out.count("sandbox.inspect"); n != 0 {
			t.Fatal("the sandbox was suspected at once")
		}
		sleep(3 * time.Minute)
		if n := f.out.count("sandbox.inspect"); n == 0 {
			t.Fatal("a sandbox that stays silent was never inspected")
		}
	})
}

func TestAFailingTownBacksOffAndComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fs := &faulty{Store: storetest.NewMemory()}
		f := newFixture(t, func(c *hall.Config) { c.Store = fs })
		f.h.Start(t.Context())
		defer f.stop()
		id, other := f.awake("house"), f.town("other")
		f.stop()
		f.restart("boot2")
		fs.mu.Lock()
		fs.load = func(town string) error {
			if town == id {
				return errors.New("damaged")
			}
			return nil
		}
		fs.mu.Unlock()
		f.h.Start(t.Context())
		sleep(time.Second)
		if got := f.head(id).Failing; !strings.HasPrefix(got, "failed 1 times") {
			t.Fatalf("failing is %q", got)
		}
		if err := f.h.View(t.Context(), id, func(*town.Town, time.Time) error { return nil }); !errs.Is(err, errs.Internal) {
			t.Fatalf("a view of a broken town: %v", err)
		}
		f.must(f.h.Do(t.Context(), other, f.bead(other, "other")))
		sleep(time.Minute)
		if n := f.h.Metrics().Failures.Load(); n < 4 || n > 6 {
			t.Errorf("%d failures in the first minute, not about 2+4+8+16+32 s apart", n)
		}
		sleep(4 * time.Hour)
		n := f.h.Metrics().Failures.Load()
		if n < 10 || n > 40 {
			t.Errorf("%d failures in four hours", n)
		}
		if wait := f.head(id).DueAt - time.Now().UnixMilli(); wait > (15*time.Minute+time.Second).Milliseconds() || wait <= 0 {
			t.Errorf("the next try is %d ms away", wait)
		}
		fs.mu.Lock()
		fs.load = nil
		fs.mu.Unlock()
		sleep(16 * time.Minute)
		if got := f.head(id).Failing; got != "" {
			t.Errorf("still failing after it was healed: %s", got)
		}
	})
}

// boxes makes a hall over a fake driver.
func boxes(t *testing.T) (*fixture, *sandboxtest.Fake) {
	d := sandboxtest.NewFake()
	f := newFixture(t, func(c *hall.Config) {
		c.Driver = d
		c.Hub = &fakeHub{}
		c.Perform = &hall.Outside{Driver: d, Hub: c.Hub, Tokens: tokens{}, Runner: func(hall.TownRef, int64) ([]string, []string) {
			return []string{"runner"}, nil
		}}
	})
	return f, d
}

type tokens struct{}

func (tokens) Sandbox(_ context.Context, t hall.TownRef, generation int64, at town.Time) ([]byte, error) {
	return fmt.Appendf(nil, "%s %d %d", t.ID, generation, at), nil
}

type fakeHub struct {
	hall.Hub
	mu      sync.Mutex
	ids     []hub.ID
	removed []string
	packed  []string
	listed  []string
	refs    map[string]string
}

func (h *fakeHub) List() ([]hub.ID, error) { return h.ids, nil }

func (h *fakeHub) RemoveRig(_ context.Context, id hub.ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removed = append(h.removed, id.String())
	return nil
}

func (h *fakeHub) RemoveTown(_ context.Context, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removed = append(h.removed, id)
	return nil
}

func TestTheEndOfASandboxIsNoticedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, d := boxes(t)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.awake("house")
		if !d.Kill(id, 9) {
			t.Fatal("nothing runs")
		}
		synctest.Wait()
		if got := f.head(id).Sandbox; got == "awake" {
			t.Fatal("the town still thinks that its sandbox is awake")
		}
	})
}

func TestOrphansAreEndedAfterASecondLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, d := boxes(t)
		id := f.awake("house")
		quiet := f.town("quiet")
		f.cfg.Hub.(*fakeHub).ids = []hub.ID{{Town: id, Rig: "web"}, {Town: id, Rig: "ghost"}, {Town: "nobody", Rig: "web"}}
		for _, orphan := range []string{"nobody", quiet} {
			if _, err := d.Start(t.Context(), sandbox.Spec{Town: orphan, Generation: 4, Command: []string{"runner"}}); err != nil {
				t.Fatal(err)
			}
		}
		f.h.Start(t.Context())
		defer f.stop()
		sleep(time.Second)
		if n := len(d.Awake()); n != 3 {
			t.Fatalf("%d sandboxes after the first look", n)
		}
		keepAlive(f, id, 7*time.Minute)
		if got := d.Awake(); len(got) != 1 || got[0] != id {
			t.Fatalf("awake are %v, not only %s", got, id)
		}
		if n := d.Count("start", ""); n != 3 {
			t.Fatalf("the sweep started something: %d starts", n)
		}
		h := f.cfg.Hub.(*fakeHub)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, r := range h.removed {
			if r == id+"/web" {
				t.Fatal("a rig's repository was removed")
			}
		}
		if len(h.removed) == 0 {
			t.Fatal("no repository was removed")
		}
	})
}

// keepAlive sends heartbeats.
func keepAlive(f *fixture, id string, d time.Duration) {
	f.t.Helper()
	seq := int64(0)
	for range d / (30 * time.Second) {
		sleep(30 * time.Second)
		var life []town.RunLife
		f.must(f.h.View(f.t.Context(), id, func(tn *town.Town, _ time.Time) error {
			for _, r := range tn.Runs() {
				life = append(life, town.RunLife{Run: r.ID, Epoch: r.Epoch})
			}
			return nil
		}))
		seq++
		f.must(f.h.Do(f.t.Context(), id, town.Reports{Generation: f.head(id).Generation, Stream: "s", From: seq,
			Items: []town.Report{{Kind: town.ReportHeartbeat, Runs: life}}}))
	}
}

func TestASlotThatNobodyUsesIsFreed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		id := f.town("house")
		if _, err := f.store.Admit(t.Context(), id, time.Now().UnixMilli(), store.Limits{}); err != nil {
			t.Fatal(err)
		}
		f.h.Start(t.Context())
		defer f.stop()
		sleep(5 * time.Minute)
		if c, err := f.store.SlotCounts(t.Context()); err != nil || c != (store.SlotCounts{}) {
			t.Fatalf("slots %+v, %v", c, err)
		}
	})
}

func TestADeletedTownGoesWithEverything(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, d := boxes(t)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.awake("house")
		f.must(f.h.Do(t.Context(), id, town.DeleteTown{By: "tester"}))
		sleep(5 * time.Minute)
		if _, err := f.h.Resolve(t.Context(), id); !errs.Is(err, errs.NotFound) {
			t.Fatalf("the town is still there: %v", err)
		}
		if st, err := d.List(t.Context()); err != nil || len(st) != 0 {
			t.Fatalf("sandboxes %v, %v", st, err)
		}
		if err := f.h.Do(t.Context(), id, town.Tick{}); !errs.Is(err, errs.NotFound) {
			t.Fatalf("an input to a deleted town: %v", err)
		}
		if n := f.h.InMemory(); n != 0 {
			t.Fatalf("%d towns in memory", n)
		}
	})
}

func TestDesired(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.awake("house")
		gen := f.head(id).Generation
		d, ok, err := f.h.Desired(t.Context(), id, gen, 0)
		if err != nil || !ok || len(d.Runs) != 1 {
			t.Fatalf("got %+v %v %v", d, ok, err)
		}
		if _, _, err := f.h.Desired(t.Context(), id, gen-1, 0); !errs.Is(err, errs.Gone) {
			t.Fatalf("an old generation got %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, ok, err := f.h.Desired(short, id, gen, d.Rev); ok || err != nil {
			t.Fatalf("an unchanged document was delivered: %v %v", ok, err)
		}
		got := make(chan town.Desired, 1)
		go func() {
			d, _, err := f.h.Desired(t.Context(), id, gen, d.Rev)
			if err != nil {
				t.Error(err)
			}
			got <- d
		}()
		synctest.Wait()
		f.must(f.h.Do(t.Context(), id, town.NudgeBead{By: "tester", Bead: d.Runs[0].Bead, Text: "hello"}))
		if next := <-got; next.Rev <= d.Rev || len(next.Runs[0].Nudges) != 1 {
			t.Fatalf("got %+v", next)
		}
	})
}

func TestStartAndStopAtAnyMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		id := f.town("house")
		for i := range 30 {
			h := hall.New(f.cfg)
			var wg sync.WaitGroup
			wg.Go(func() { h.Start(t.Context()) })
			wg.Go(func() { h.Start(t.Context()) })
			wg.Go(func() {
				if err := h.Do(t.Context(), id, f.bead(id, "house")); err != nil && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Conflict) {
					t.Error(err)
				}
			})
			if i%2 == 0 {
				wg.Wait()
			}
			wg.Go(func() { stopHall(h) })
			wg.Go(func() { stopHall(h) })
			wg.Wait()
			stopHall(h)
			if err := h.Do(t.Context(), id, town.Tick{}); !errs.Is(err, errs.Unavailable) {
				t.Fatalf("a stopped hall took an input: %v", err)
			}
		}
	})
}
