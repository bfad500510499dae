package hall_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/town"
)

// jumpy is a clock of a machine that is frozen now and then.
type jumpy struct {
	hall.RealClock
	by atomic.Int64
}

func (c *jumpy) Now() time.Time { return c.RealClock.Now().Add(time.Duration(c.by.Load())) }

func TestAServerFrozenForLongerThanAShortLeaseBlamesNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		clock := &jumpy{}
		f := newFixture(t, func(c *hall.Config) { c.Clock, c.Server = clock, town.Settings{"lease": "3s"} })
		f.h.Start(t.Context())
		defer f.stop()
		id := f.awake("house")
		sleep(time.Second)
		clock.by.Add(int64(4 * time.Second)) // less than what counts with the usual lease
		sleep(time.Second)
		if n := f.out.count("sandbox.inspect"); n != 0 {
			t.Fatal("the sandbox was suspected at once")
		}
		f.must(f.h.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
			if n, s := len(tn.Runs()), tn.Sandbox().State; n != 1 || s != town.SandboxAwake {
				t.Fatalf("%d runs, sandbox %s", n, s)
			}
			return nil
		}))
		sleep(time.Minute)
		if n := f.out.count("sandbox.inspect"); n == 0 {
			t.Fatal("a sandbox that stays silent was never inspected")
		}
	})
}
