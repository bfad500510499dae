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
	return append(ownBeatTests(), []conformanceTest{
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
			k.createWith("own", store.Columns{Sandbox: store.Asleep, IdleMS: 10})
			before := k.Stats()
			_, err := k.IdleSlice(k.ctx, 0, 1, 100)
			k.ok(err)
			_, _, err = k.IdleOwn(k.ctx, 0, 100)
			k.ok(err)
			_, err = k.ClaimDue(k.ctx, 100, 200, 10)
			k.ok(err)
			_, err = k.PruneIdem(k.ctx, 100, 10)
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
	}...)
}

func ownBeatTests() []conformanceTest {
	return []conformanceTest{
		{"a town with an idle interval of its own is found at its own beats and nowhere else", func(k *kit) {
			const idle, start = 1000, 1_700_000_000_000
			bad := map[string]store.Columns{
				"due":      {Sandbox: store.Asleep, DueAt: 100, IdleMS: idle},
				"wanted":   {Sandbox: store.Asleep, Wanted: true, IdleMS: idle},
				"failing":  {Sandbox: store.Asleep, Failing: "x", IdleMS: idle},
				"deleting": {Sandbox: store.Asleep, Status: store.Deleting, IdleMS: idle},
				"awake":    {Sandbox: "awake", IdleMS: 3 * idle},
			}
			for id, c := range bad {
				k.createWith(id, c)
			}
			k.createWith("healthy", store.Columns{Sandbox: store.Asleep, IdleMS: 700})
			k.createWith("armed", store.Columns{Sandbox: "awake", DueAt: 2 * start, IdleMS: idle})
			k.createWith("theirs", store.Columns{Sandbox: "awake"})
			found := map[string]int{}
			for from := int64(start); from < start+3*idle; from += 10 {
				heads, least, err := k.IdleOwn(k.ctx, from, from+10)
				k.ok(err)
				k.same("least interval", least, 700)
				for _, h := range heads {
					found[h.ID]++
					if at := store.Beat(h.ID, h.IdleMS, from); at > from+10 || at <= from {
						k.Fatalf("%s was found between %d and %d, its beat is at %d", h.ID, from, from+10, at)
					}
				}
			}
			for id, c := range bad {
				k.same("found "+id, found[id], 3*idle/c.IdleMS)
			}
			k.same("found in all", len(found), len(bad))
			shared, err := k.IdleSlice(k.ctx, 0, 1, start)
			k.ok(err)
			k.same("found with the others", ids(shared), "theirs")
			heads, _, err := k.IdleOwn(k.ctx, start, start)
			k.ok(err)
			k.same("found in no time", len(heads), 0)
		}},
		{"an idle interval of its own comes and goes with commits", func(k *kit) {
			k.createWith("t1", store.Columns{Sandbox: "awake"})
			_, least, err := k.IdleOwn(k.ctx, 0, 100)
			k.ok(err)
			k.same("least of none", least, 0)
			k.set("t1", func(c *store.Columns) { c.IdleMS = 40 })
			h, err := k.Head(k.ctx, "t1")
			k.ok(err)
			k.same("stored", h.IdleMS, 40)
			heads, least, err := k.IdleOwn(k.ctx, 1000, 1040)
			k.ok(err)
			k.same("found", ids(heads)+fmt.Sprint(" ", least), "t1 40")
			k.set("t1", func(c *store.Columns) { c.IdleMS = 0 })
			heads, err = k.IdleSlice(k.ctx, 0, 1, 100)
			k.ok(err)
			k.same("found with the others", ids(heads), "t1")
			bad := k.next("t1")
			bad.Columns.IdleMS = -1
			_, err = k.Store.Commit(k.ctx, bad)
			k.kind(err, errs.Invalid)
		}},
	}
}
