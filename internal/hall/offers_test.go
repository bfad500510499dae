package hall_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// TestWorkGoesOnOnceTheServerHasItsAgent has a town that waits asleep, without a
// write and without a sandbox, for an agent that is installed later.
func TestWorkGoesOnOnceTheServerHasItsAgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var offers atomic.Pointer[town.Offers]
		offers.Store(&town.Offers{Agents: map[string]town.AgentOffer{"opencode": {Missing: "it is not here"}}})
		f := newFixture(t, func(c *hall.Config) { c.Offers = offers.Load })
		defer f.stop()
		f.h.Start(t.Context())
		id := f.town("house")
		in := f.bead(id, "house")
		f.must(f.h.Do(t.Context(), id, in))
		sleep(time.Minute)
		jobs := f.store.Stats().Jobs
		sleep(time.Hour)
		if w := f.why(id, in.ID); w.Kind != "agent" || f.head(id).Sandbox != store.Asleep || !f.head(id).WaitsBudget {
			t.Fatalf("%+v, %+v", w, f.head(id))
		}
		if got := f.store.Stats().Jobs; got != jobs {
			t.Errorf("%d writes while it waits", got-jobs)
		}
		offers.Store(&town.Offers{Agents: map[string]town.AgentOffer{"opencode": {}}})
		f.must(f.h.Reoffer(t.Context()))
		synctest.Wait()
		if w := f.why(id, in.ID); w.Kind == "agent" || f.head(id).WaitsBudget {
			t.Errorf("after the agent came: %+v", w)
		}
	})
}

// TestABootLooksWhetherTheAgentIsThereNow has the agent installed while no server runs.
func TestABootLooksWhetherTheAgentIsThereNow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) {
			c.Offers = func() *town.Offers { return &town.Offers{} }
		})
		id := f.town("house")
		in := f.bead(id, "house")
		f.must(f.h.Do(t.Context(), id, in))
		stopHall(f.h)
		f.cfg.Offers = func() *town.Offers { return &town.Offers{Agents: map[string]town.AgentOffer{"opencode": {}}} }
		f.again("boot2")
		defer f.stop()
		sleep(time.Minute)
		if w := f.why(id, in.ID); w.Kind == "agent" {
			t.Errorf("after the boot: %+v", w)
		}
	})
}
