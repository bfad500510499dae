package hall_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

func (h *fakeHub) Maintain(_ context.Context, id hub.ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.packed = append(h.packed, id.String())
	return nil
}

func TestAnswersAreForgottenAfterADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.town("house")
		now := time.Now().UnixMilli()
		for i := range 11_000 {
			f.must(f.store.PutIdem(t.Context(), id, store.Idem{Key: fmt.Sprint("k", i), Hash: "h", At: now}))
		}
		f.must(f.store.PutIdem(t.Context(), "", store.Idem{Key: "young", Hash: "h", At: now + (2 * time.Hour).Milliseconds()}))
		left := func() (n int) {
			for i := range 11_000 {
				_, ok, err := f.store.Idem(t.Context(), id, fmt.Sprint("k", i))
				f.must(err)
				if ok {
					n++
				}
			}
			return n
		}
		sleep(23*time.Hour + 59*time.Minute)
		if n := left(); n != 11_000 {
			t.Fatalf("%d are left before the day is over", n)
		}
		loads, jobs := f.h.Metrics().Loads.Load(), f.store.Stats().Jobs
		sleep(61*time.Minute + time.Second)
		if n := left(); n != 1000 {
			t.Fatalf("%d are left after one round, which is bounded", n)
		}
		if n := f.store.Stats().Jobs - jobs; n != 20 {
			t.Fatalf("one round was %d writes", n)
		}
		sleep(3 * time.Minute)
		if n := left(); n != 0 {
			t.Fatalf("%d are left", n)
		}
		if _, ok, err := f.store.Idem(t.Context(), "", "young"); err != nil || !ok {
			t.Fatalf("a young one is gone: %v", err)
		}
		if n := f.h.Metrics().Loads.Load() - loads; n != 0 || f.h.InMemory() != 0 {
			t.Fatalf("%d towns were loaded for it", n)
		}
		jobs = f.store.Stats().Jobs
		sleep(50 * time.Minute)
		if f.store.Stats().Jobs != jobs {
			t.Fatal("something is written with nothing to do")
		}
	})
}

func TestRetentionIsASetting(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name               string
		server             town.Settings
		afterDays          int
		wantEntry, wantRow bool
	}{
		{name: "by default history stays and transcripts stay a month", afterDays: 29, wantEntry: true, wantRow: true},
		{name: "by default transcripts go after a month", afterDays: 31, wantEntry: true},
		{name: "history goes when a setting says so", server: town.Settings{"ledger.retention": "240h", "transcript.retention": "0"}, afterDays: 11, wantRow: true},
		{name: "both stay until then", server: town.Settings{"ledger.retention": "240h", "transcript.retention": "240h"}, afterDays: 9, wantEntry: true, wantRow: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, func(cfg *hall.Config) { cfg.Server = c.server })
				id := f.town("house")
				f.must(f.store.AppendTranscript(t.Context(), []store.Chunk{{Town: id, Run: "r", Epoch: 1, Seq: 1, At: time.Now().UnixMilli()}}))
				loads := f.h.Metrics().Loads.Load()
				time.Sleep(time.Duration(c.afterDays) * 24 * time.Hour)
				f.h.Start(t.Context())
				defer f.stop()
				sleep(time.Hour + time.Second)
				entries, err := f.store.Ledger(t.Context(), id, store.LedgerQuery{})
				f.must(err)
				chunks, err := f.store.Transcript(t.Context(), id, "r", 1, 0, 0)
				f.must(err)
				if got := len(entries) > 0; got != c.wantEntry {
					t.Errorf("%d ledger entries are left", len(entries))
				}
				if got := len(chunks) > 0; got != c.wantRow {
					t.Errorf("%d transcript chunks are left", len(chunks))
				}
				if f.h.Metrics().Loads.Load() != loads {
					t.Error("a town was loaded")
				}
				f.must(f.h.Do(t.Context(), id, town.Pause{By: "tester"})) // history goes on after what was pruned
			})
		})
	}
}

func TestRepositoriesOfAwakeTownsArePackedOnceADay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := boxes(t)
		f.cfg.Server = town.Settings{"lease": "1h"}
		f.restartOn("boot1")
		awake, asleep := f.awake("awake"), f.town("asleep")
		hb := f.cfg.Hub.(*fakeHub)
		hb.ids = []hub.ID{{Town: awake, Rig: "web"}, {Town: asleep, Rig: "web"}}
		packed := func() []string {
			hb.mu.Lock()
			defer hb.mu.Unlock()
			return slices.Clone(hb.packed)
		}
		f.must(f.h.Do(t.Context(), awake, town.SetTown{By: "tester", Set: town.Settings{"run.time_limit": "168h"}}))
		seq := int64(0)
		for day := range 3 {
			for hour := range 24 {
				for range 3 {
					seq++
					f.must(f.h.Do(t.Context(), awake, town.Reports{Generation: 1, Stream: "s", From: seq,
						Items: []town.Report{{Kind: town.ReportHeartbeat, Runs: []town.RunLife{{Run: f.run(awake), Epoch: 1}}}}}))
					sleep(20 * time.Minute)
				}
				f.stop()
				f.again(fmt.Sprint("boot", day, hour)) // a restart repeats nothing
			}
			if got := packed(); len(got) != day+1 || got[0] != awake+"/web" {
				t.Fatalf("after %d days these were packed: %v", day+1, got)
			}
		}
		f.stop()
	})
}

// restartOn makes the hall anew from f.cfg, with its outside world.
func (f *fixture) restartOn(boot string) {
	f.cfg.Boot = boot
	f.h = hall.New(f.cfg)
	f.h.Start(f.t.Context())
}

func (f *fixture) run(id string) (run string) {
	f.t.Helper()
	f.must(f.h.View(f.t.Context(), id, func(t *town.Town, _ time.Time) error {
		for _, r := range t.Runs() {
			run = r.ID
		}
		return nil
	}))
	return run
}
