package hall_test

import (
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

func TestMetricsMeasureAwakeTimeHoldsAndRenewals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Server = town.Settings{"run.time_limit": "168h"} })
		f.h.Start(t.Context())
		defer f.stop()
		begin := time.Now()
		id := f.awake("house")
		m := f.h.Metrics()
		keepAlive(f, id, 210*time.Minute)
		if n := m.Renewals.Load(); n != 3 {
			t.Errorf("%d renewals in three and a half hours", n)
		}
		if got := m.Holds(); got["run"] != 1 || got["human"] != 0 {
			t.Errorf("holds %v", got)
		}
		f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester", Now: true}))
		sleep(time.Minute)
		if got := f.head(id).Sandbox; got != store.Asleep {
			t.Fatalf("the sandbox is %s", got)
		}
		var awake int64
		f.must(f.h.View(t.Context(), id, func(tn *town.Town, now time.Time) error { awake = tn.AwakeMS(now); return nil }))
		if got := m.AwakeMS.Load(); got != awake || awake < (210*time.Minute).Milliseconds() || awake > time.Since(begin).Milliseconds() {
			t.Errorf("%d ms awake were counted, the town booked %d", got, awake)
		}
		if got := m.Holds(); got["run"] != 0 {
			t.Errorf("holds of an asleep town: %v", got)
		}
		if got := m.StartsBy(); got["run"] != 1 || got["human"] != 0 {
			t.Errorf("starts %v", got)
		}
		f.must(f.h.Do(t.Context(), id, town.Resume{By: "tester", For: time.Hour}))
		synctest.Wait()
		if got := m.Holds(); got["human"] != 1 {
			t.Errorf("holds %v", got)
		}
	})
}
