package hall_test

import (
	"context"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/git/hub"
	"gastown/internal/town"
)

func (h *fakeHub) Refs(_ context.Context, id hub.ID, _ string) (map[string]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listed = append(h.listed, id.String())
	return maps.Clone(h.refs), nil
}

func (h *fakeHub) DropRefs(_ context.Context, _ hub.ID, refs map[string]string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range refs {
		delete(h.refs, name)
	}
	return nil
}

func (h *fakeHub) DropBead(context.Context, hub.ID, string, ...string) error { return nil }

func TestStrayReferencesAreRemovedAndLiveOnesStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := boxes(t)
		f.cfg.Server = town.Settings{"lease": "1h"}
		f.restartOn("boot1")
		id := f.awake("awake")
		live, over := f.bead(id, "awake"), f.bead(id, "awake")
		f.must(f.h.Do(t.Context(), id, live))
		over.Staged = true
		f.must(f.h.Do(t.Context(), id, over))
		f.must(f.h.Do(t.Context(), id, town.CancelBead{By: "tester", Bead: over.ID}))
		hb := f.cfg.Hub.(*fakeHub)
		keep := []string{"refs/gastown/wip/" + live.ID + "/1", "refs/gastown/merge/" + live.ID + "/1", "refs/gastown/other/x", "refs/gastown/wip/odd"}
		hb.mu.Lock()
		hb.ids = []hub.ID{{Town: id, Rig: "web"}, {Town: f.town("asleep"), Rig: "web"}}
		hb.refs = map[string]string{"refs/gastown/wip/" + over.ID + "/3": oid, "refs/gastown/merge/" + over.ID + "/1": oid, "refs/gastown/wip/awake-zzzzz/1": oid}
		for _, k := range keep {
			hb.refs[k] = oid
		}
		hb.mu.Unlock()
		f.must(f.h.Do(t.Context(), id, town.SetTown{By: "tester", Set: town.Settings{"run.time_limit": "168h"}}))
		seq := int64(0)
		hours := func(n int) {
			for range 3 * n {
				seq++
				f.must(f.h.Do(t.Context(), id, town.Reports{Generation: 1, Stream: "s", From: seq,
					Items: []town.Report{{Kind: town.ReportHeartbeat, Runs: []town.RunLife{{Run: f.run(id), Epoch: 1}}}}}))
				sleep(20 * time.Minute)
			}
		}
		hours(2)
		hb.mu.Lock()
		defer hb.mu.Unlock()
		slices.Sort(keep)
		if got := slices.Sorted(maps.Keys(hb.refs)); !slices.Equal(got, keep) {
			t.Errorf("left are %q", got)
		}
		if want := []string{id + "/web"}; !slices.Equal(hb.listed, want) {
			t.Errorf("looked at %q, want %q", hb.listed, want)
		}
		if n := f.h.Metrics().Strays.Load(); n != 3 {
			t.Errorf("%d are counted", n)
		}
		hb.mu.Unlock()
		f.stop()
		f.again("boot2") // a restart repeats nothing
		hours(2)
		f.stop()
		hb.mu.Lock()
		if len(hb.listed) != 1 {
			t.Errorf("looked at %q", hb.listed)
		}
	})
}

func TestARepositoryIsLookedAtOnceMoreWhenItsTownSleeps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, _ := boxes(t)
		f.restartOn("boot1")
		id := f.town("town")
		hb := f.cfg.Hub.(*fakeHub)
		hb.ids = []hub.ID{{Town: id, Rig: "web"}}
		looks := func() int {
			hb.mu.Lock()
			defer hb.mu.Unlock()
			return len(hb.listed)
		}
		f.must(f.store.SetMeta(t.Context(), "hub.strays", `{"`+id+`/web":1}`))
		for range 5 {
			sleep(time.Hour)
		}
		if looks() != 1 {
			t.Errorf("%d looks at the repository of a town that fell asleep", looks())
		}
		f.must(f.store.SetMeta(t.Context(), "hub.strays", `{"`))
		sleep(time.Hour)
		if looks() != 1 {
			t.Errorf("unreadable times made it look at a town that sleeps")
		}
		f.stop()
	})
}
