package hall_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/town"
)

// TestAnAlarmIsNotPutOffByAStaleCopy: one of two servers handles the last input
// and dies. The other claims the alarm, with a copy from before in which nothing
// is due.
func TestAnAlarmIsNotPutOffByAStaleCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Shared = true })
		defer f.stop()
		second := f.cfg
		second.Boot = "boot2"
		g := hall.New(second)
		defer stopHall(g)
		id := f.awake("house")
		run := fmt.Sprintf("house-%05d.1", f.beads)
		g.Start(t.Context())
		sleep(time.Second)
		epoch := func() (n int64) {
			f.must(g.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
				n = tn.Beads()[0].Epoch
				return nil
			}))
			return n
		}
		if n := epoch(); n != 1 { // from now on g keeps a copy, because the town runs
			t.Fatalf("epoch %d", n)
		}
		f.must(f.h.Do(t.Context(), id, town.Reports{Generation: 1, Stream: "s", From: 1,
			Items: []town.Report{{Kind: town.ReportEnded, Run: run, Epoch: 1, Outcome: town.OutcomeExited, Class: town.ClassWork, Reason: "it gave up"}}}))
		sleep(32 * time.Second)               // the first pause of work.backoff is 30 s
		if n := epochInStore(f, id); n != 2 { // a look through g would refresh its copy
			t.Errorf("30 seconds after the run of epoch 1 ended the bead is at epoch %d", n)
		}
	})
}

// epochInStore is the highest epoch of the beads of a town, as they are stored.
func epochInStore(f *fixture, id string) (n int64) {
	f.t.Helper()
	_, rows, err := f.store.Load(f.t.Context(), id, 0)
	f.must(err)
	for _, r := range rows {
		var b struct {
			Epoch int64 `json:"epoch"`
		}
		if r.Kind == "bead" {
			f.must(decodeJSON(r.Body, &b))
			n = max(n, b.Epoch)
		}
	}
	return n
}
