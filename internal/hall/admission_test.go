package hall_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// inn plays a server with few places: its sandboxes say hello after 300 ms, and
// are put to sleep a second later.
type inn struct {
	f      *fixture
	ids    []string
	mu     sync.Mutex
	begun  map[string]time.Time
	up     map[string]bool // between start and stop, as the driver saw it
	most   int
	starts int
}

func (n *inn) perform(_ context.Context, t hall.TownRef, e town.Effect) (any, error, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch e.Action.(type) {
	case town.StartSandbox:
		if _, ok := n.begun[t.ID]; !ok {
			n.begun[t.ID] = time.Now()
		}
		n.starts++
		n.up[t.ID] = true
		n.most = max(n.most, len(n.up))
	case town.StopSandbox:
		delete(n.up, t.ID)
	}
	return nil, nil, false
}

// open makes towns that all become runnable in the same instant.
func (n *inn) open(towns int) {
	n.begun, n.up = map[string]time.Time{}, map[string]bool{}
	n.f.out.do = n.perform
	ctx := n.f.t.Context()
	for i := range towns {
		id := n.f.town(fmt.Sprintf("inn%03d", i))
		n.ids = append(n.ids, id)
		n.f.must(n.f.h.Do(ctx, id, town.Pause{By: "tester"}))
		n.f.must(n.f.h.Do(ctx, id, n.f.bead(id, fmt.Sprintf("inn%03d", i))))
	}
	var all sync.WaitGroup
	for _, id := range n.ids {
		all.Go(func() {
			if err := n.f.h.Do(ctx, id, town.Resume{By: "tester"}); err != nil {
				n.f.t.Error(err)
			}
		})
	}
	all.Wait()
	synctest.Wait()
	// Whoever asked first has a place; who waits since the same moment is served by id.
	slices.SortFunc(n.ids, func(a, b string) int {
		return cmp.Or(cmp.Compare(n.turn(a), n.turn(b)), cmp.Compare(a, b))
	})
}

func (n *inn) turn(id string) int {
	if _, ok := n.start(id); ok {
		return 0
	}
	return 1
}

func (n *inn) start(id string) (time.Time, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, ok := n.begun[id]
	return at, ok
}

// turns is how many towns had their turn.
func (n *inn) turns() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.begun)
}

// serve lets sandboxes speak and sleep until a number of towns had their turn.
func (n *inn) serve(until int) {
	n.f.t.Helper()
	ctx := n.f.t.Context()
	for range 4000 {
		sleep(100 * time.Millisecond)
		counts, err := n.f.store.SlotCounts(ctx)
		n.f.must(err)
		if counts.Starting > 2 || counts.Starting+counts.Awake > 5 {
			n.f.t.Fatalf("the limits were passed: %+v", counts)
		}
		heads, err := n.f.store.AwakeTowns(ctx)
		n.f.must(err)
		for _, h := range heads {
			at, _ := n.start(h.ID)
			age := time.Since(at)
			switch {
			case h.Sandbox == "starting" && age >= 300*time.Millisecond:
				n.f.hello(h.ID)
			case h.Sandbox == "awake" && age >= time.Second && h.Status == "active":
				n.f.must(n.f.h.Do(ctx, h.ID, town.Pause{By: "tester", Now: true}))
			}
		}
		if n.turns() >= until {
			return
		}
	}
	n.f.t.Fatalf("only %d of %d towns were started", n.turns(), len(n.ids))
}

func (n *inn) position(id string) (p int, why string) {
	n.f.must(n.f.h.View(n.f.t.Context(), id, func(t *town.Town, now time.Time) error {
		p, why = t.Sandbox().Position, t.WhyTown(now).Text
		return nil
	}))
	return p, why
}

func TestManyTownsStartInTheOrderOfTheirWaitingWithinTheLimits(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, func(c *hall.Config) {
				c.Limits = store.Limits{MaxAwake: 5, MaxStarting: 2}
				c.Server = town.Settings{"sandbox.drain_timeout": "1s"}
			})
			f.h.Start(t.Context())
			defer func() { f.stop() }()
			n := &inn{f: f}
			n.open(200)
			if n.turns() != 2 {
				t.Fatalf("%d sandboxes start in the first moment", n.turns())
			}
			sleep(16 * time.Second) // everyone has asked again and knows how many wait
			last := n.ids[199]
			before, why := n.position(last)
			if want := fmt.Sprintf("position %d in the queue", before); before != 198 || !containsText(why, want) {
				t.Fatalf("the last one is at %d: %s", before, why)
			}
			for _, served := range []int{30, 90, 150, 200} {
				if restart && served == 90 {
					f.stop()
					f.restart("boot2")
					f.out.do = n.perform
					f.h.Start(t.Context())
					sleep(time.Second)
				}
				n.serve(served)
				sleep(16 * time.Second)
				now, _ := n.position(last)
				if now >= before && served < 200 {
					t.Errorf("the last one went from position %d to %d", before, now)
				}
				before = now
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.most > 5 {
				t.Errorf("%d sandboxes at once", n.most)
			}
			if n.starts != 200 {
				t.Errorf("%d starts of 200 towns", n.starts)
			}
			for i := 1; i < len(n.ids); i++ {
				if a, b := n.begun[n.ids[i-1]], n.begun[n.ids[i]]; b.Before(a) {
					t.Errorf("place %d started %s after place %d", i, a.Sub(b), i+1)
				}
			}
		})
	}
}

func TestAFreedPlaceIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Limits = store.Limits{MaxAwake: 1, MaxStarting: 1} })
		f.h.Start(t.Context())
		defer f.stop()
		first, second := f.awake("first"), f.town("second")
		f.must(f.h.Do(t.Context(), second, f.bead(second, "second")))
		sleep(7 * time.Second) // between two times at which it asks by itself
		if got := f.head(second).Sandbox; got != "queued" {
			t.Fatalf("the second sandbox is %s", got)
		}
		f.must(f.h.Do(t.Context(), first, town.SandboxExited{Generation: 1, Reason: "gone"}))
		synctest.Wait()
		if got := f.head(second).Sandbox; got != "starting" {
			t.Fatalf("a place was freed, and the town that waits for it is %s", got)
		}
	})
}
