package hall

import (
	"testing"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

// A read of the day may end while a commit that it saw is still under way.
func TestWhatACommitSpentIsReadAgainAndNotCountedTwice(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 6, 6, 0, 0, 0, time.UTC)
	seen := store.DaySpend{Day: "2026-01-06", AwakeMS: 9_000_000}
	d := &serverDay{limit: town.Spend{AwakeMS: 10_000_000}}
	_, changes, _ := d.get(seen.Day, now)
	d.put(seen, now, changes)
	d.spent([]store.DaySpend{seen})
	if k, _, fresh := d.get(seen.Day, now); fresh || k.AwakeMS != seen.AwakeMS {
		t.Errorf("it knows of %d ms, fresh %v; want %d that are read again", k.AwakeMS, fresh, seen.AwakeMS)
	}
}
