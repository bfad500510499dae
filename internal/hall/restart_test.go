package hall_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/sandbox/sandboxtest"
	"gastown/internal/store"
	"gastown/internal/town"
)

// again is a restart that keeps the outside world and the sum of loads.
func (f *fixture) again(boot string) {
	f.cfg.Boot = boot
	loads := f.h.Metrics().Loads.Load()
	f.h = hall.New(f.cfg)
	f.h.Metrics().Loads.Store(loads)
	f.h.Start(f.t.Context())
}

func TestAServerKilledWhileASandboxGoesToSleepFinishesTheJob(t *testing.T) {
	t.Parallel()
	for _, state := range []string{"draining", "stopping"} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f, d := boxes(t)
				f.h.Start(t.Context())
				id := f.awake("house")
				if state == "stopping" {
					d.Break("stop", id, 1, sandboxtest.Hang, nil) // the process dies before the driver answers
				}
				f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester", Now: true}))
				if state == "stopping" {
					sleep(31 * time.Second) // the drain timed out
				}
				if got := f.head(id).Sandbox; got != state {
					t.Fatalf("the sandbox is %s", got)
				}
				kill(f.h)
				stops := d.Count("stop", id)
				time.Sleep(time.Minute)
				f.again("boot2")
				defer f.stop()
				sleep(2 * time.Minute)
				if got := f.head(id).Sandbox; got != store.Asleep || d.Running(id) != 0 {
					t.Fatalf("the sandbox is %s, generation %d runs", got, d.Running(id))
				}
				if d.Count("stop", id) == stops {
					t.Error("the driver was not asked to stop it again")
				}
				c, err := f.store.SlotCounts(t.Context())
				f.must(err)
				if c != (store.SlotCounts{}) {
					t.Errorf("slots %+v", c)
				}
				asleep, err := f.store.Ledger(t.Context(), id, store.LedgerQuery{Kind: "sandbox.asleep"})
				f.must(err)
				if len(asleep) != 1 || !strings.Contains(string(asleep[0].Body), "put to sleep by tester") {
					t.Errorf("the ledger says %d times that it sleeps: %v", len(asleep), asleep)
				}
				starts, writes := d.Count("start", id), f.store.Stats().Jobs
				sleep(2 * time.Hour)
				if d.Count("start", id) != starts || f.store.Stats().Jobs != writes {
					t.Error("something woke it, or wrote, afterwards")
				}
				f.must(f.h.Do(t.Context(), id, town.Resume{By: "tester", For: time.Minute}))
				sleep(time.Second)
				if d.Running(id) != 2 {
					t.Errorf("after resume generation %d runs", d.Running(id))
				}
			})
		})
	}
}

// kill ends a hall as a killed process ends: what it had begun is cut off.
func kill(h *hall.Hall) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.Stop(ctx)
	synctest.Wait()
}
