package storetest

import (
	"fmt"
	"sync"
	"sync/atomic"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// due creates a town with a deadline.
func (k *kit) due(id string, at int64) {
	k.Helper()
	c := healthy()
	c.DueAt = at
	k.createWith(id, c)
}

func alarmTests() []conformanceTest {
	return []conformanceTest{
		{"due towns are claimed oldest first, each once, never early, and keep their version", func(k *kit) {
			k.due("late", 300)
			k.due("early", 100)
			k.due("middle", 200)
			k.due("future", 301)
			k.create("never")
			got, err := k.ClaimDue(k.ctx, 99, 1000, 10)
			k.ok(err)
			k.same("too early", ids(got), "")
			got, err = k.ClaimDue(k.ctx, 300, 1000, 2)
			k.ok(err)
			k.same("first claim", ids(got), "early middle")
			k.same("old deadline", got[0].DueAt, 100)
			got, err = k.ClaimDue(k.ctx, 300, 1000, 2)
			k.ok(err)
			k.same("second claim", ids(got), "late")
			got, err = k.ClaimDue(k.ctx, 300, 1000, 2)
			k.ok(err)
			k.same("nothing is left", ids(got), "")
			h, err := k.Head(k.ctx, "early")
			k.ok(err)
			k.same("claimed until, same version", fmt.Sprint(h.DueAt, h.Version), "1000 1")
			got, err = k.ClaimDue(k.ctx, 1000, 2000, 10)
			k.ok(err)
			k.same("an abandoned claim is due again", ids(got), "future early late middle")
		}},
		{"a claim must end after now", func(k *kit) {
			_, err := k.ClaimDue(k.ctx, 100, 100, 1)
			k.kind(err, errs.Invalid)
		}},
		{"claimers at the same time share out the towns", func(k *kit) {
			for i := range 30 {
				k.due(fmt.Sprintf("t%02d", i), int64(i+1))
			}
			var claims atomic.Int64 // ends the test even if a claim never sticks
			var mu sync.Mutex       // guards seen
			seen := map[string]int{}
			var all sync.WaitGroup
			for range 6 {
				all.Go(func() {
					for {
						got, err := k.ClaimDue(k.ctx, 100, 1000, 4)
						if err != nil || len(got) == 0 || claims.Add(1) > 1000 {
							return
						}
						mu.Lock()
						for _, h := range got {
							seen[h.ID]++
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			k.same("towns", len(seen), 30)
			for id, n := range seen {
				k.same("claims of "+id, n, 1)
			}
		}},
		{"the next deadline is the earliest one, or none", func(k *kit) {
			k.create("never")
			_, ok, err := k.NextDue(k.ctx)
			k.ok(err)
			k.same("some", ok, false)
			k.due("b", 500)
			k.due("a", 400)
			at, ok, err := k.NextDue(k.ctx)
			k.ok(err)
			k.same("next", fmt.Sprint(at, ok), "400 true")
			k.set("a", func(c *store.Columns) { c.DueAt = 0 })
			at, ok, err = k.NextDue(k.ctx)
			k.ok(err)
			k.same("next", fmt.Sprint(at, ok), "500 true")
		}},
	}
}

func idleTests() []conformanceTest {
	return []conformanceTest{
		{"an idle look finds due and contradictory towns, each in one slice, and no others", func(k *kit) {
			bad := map[string]store.Columns{
				"due":      {Sandbox: store.Asleep, DueAt: 100},
				"wanted":   {Sandbox: store.Asleep, Wanted: true},
				"failing":  {Sandbox: store.Asleep, Failing: "x"},
				"deleting": {Sandbox: store.Asleep, Status: store.Deleting},
				"queued":   {Sandbox: "queued"}, "starting": {Sandbox: "starting"}, "awake": {Sandbox: "awake"},
				"draining": {Sandbox: "draining"}, "stopping": {Sandbox: "stopping"}, "wedged": {Sandbox: "wedged"},
			}
			for id, c := range bad {
				k.createWith(id, c)
				if c.DueAt == 0 {
					c.DueAt = 101
					k.createWith("armed-"+id, c)
				}
			}
			for i := range 50 {
				k.create(fmt.Sprint("idle", i))
			}
			const slices = 7
			found := map[string]int{}
			for slice := range slices {
				heads, err := k.IdleSlice(k.ctx, slice, slices, 100)
				k.ok(err)
				for _, h := range heads {
					found[h.ID]++
				}
			}
			for id := range bad {
				k.same("found "+id, found[id], 1)
			}
			k.same("found in all", len(found), len(bad))
			whole, err := k.IdleSlice(k.ctx, 0, 1, 100)
			k.ok(err)
			k.same("in one slice", len(whole), len(bad))
		}},
		{"a contradiction that was settled is not found again", func(k *kit) {
			k.createWith("t1", store.Columns{Sandbox: "awake"})
			k.set("t1", func(c *store.Columns) { c.Sandbox = store.Asleep })
			found, err := k.IdleSlice(k.ctx, 0, 1, 100)
			k.ok(err)
			k.same("found", ids(found), "")
		}},
		{"a slice that does not exist is invalid", func(k *kit) {
			for _, s := range [][2]int{{0, 0}, {-1, 2}, {2, 2}} {
				_, err := k.IdleSlice(k.ctx, s[0], s[1], 1)
				k.kind(err, errs.Invalid)
			}
		}},
		{"looking and claiming write nothing while nobody is due", func(k *kit) {
			k.create("t1")
			before := k.Stats()
			_, err := k.IdleSlice(k.ctx, 0, 1, 100)
			k.ok(err)
			_, err = k.ClaimDue(k.ctx, 100, 200, 10)
			k.ok(err)
			_, err = k.PruneIdem(k.ctx, 100)
			k.ok(err)
			_, err = k.PruneTranscripts(k.ctx, 100, 10)
			k.ok(err)
			_, err = k.PruneLedger(k.ctx, "t1", 100, 10)
			k.ok(err)
			k.same("stats", k.Stats(), before)
		}},
		{"towns whose sandbox is not asleep are listed by id", func(k *kit) {
			k.create("a")
			k.createWith("c", store.Columns{Sandbox: "awake", DueAt: 1})
			k.createWith("b", store.Columns{Sandbox: "queued", DueAt: 1})
			k.set("c", func(c *store.Columns) { c.Generation = 2 })
			got, err := k.AwakeTowns(k.ctx)
			k.ok(err)
			k.same("awake", ids(got), "b c")
		}},
	}
}
