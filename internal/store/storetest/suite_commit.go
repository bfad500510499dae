package storetest

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"gastown/internal/errs"
	"gastown/internal/store"
)

func commitTests() []conformanceTest {
	return []conformanceTest{
		{"a commit raises the version by one and replaces all columns", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			c.Columns = store.Columns{DueAt: 70, DesiredRev: 2, Sandbox: "queued", Generation: 9, Wanted: true, Open: 4, Failing: "f", Status: "paused"}
			k.same("version", k.commit(c), 2)
			h, err := k.Head(k.ctx, "t1")
			k.ok(err)
			k.same("columns", h.Columns, c.Columns)
			k.same("version and commit", fmt.Sprint(h.Version, " ", h.CommitID), "2 t1-2")
		}},
		{"a commit on an old or future version is refused and changes nothing", func(k *kit) {
			k.create("t1")
			k.commit(k.next("t1"))
			for _, expect := range []int64{0, 1, 3} {
				_, err := k.Store.Commit(k.ctx, store.Commit{Town: "t1", Expect: expect, CommitID: "bad", Columns: store.Columns{Sandbox: "awake"},
					Rows: []store.Row{row("bead", "b", "{}")}, Ledger: []store.Entry{{Seq: 1}}, Idem: []store.Idem{{Key: "k"}},
					Rigs: []store.RigIndex{{Rig: "r", Prefix: "p"}}, Slot: store.SlotAwake})
				if !errors.Is(err, store.ErrVersion) || !errs.Is(err, errs.Conflict) {
					k.Fatalf("expect %d: got %v", expect, err)
				}
			}
			k.untouched("t1")
		}},
		{"a refused idempotency key, prefix or ledger seq undoes the whole commit", func(k *kit) {
			k.create("t0")
			c := k.next("t0")
			c.Rigs = []store.RigIndex{{Rig: "r", Prefix: "taken"}}
			k.commit(c)
			k.create("t1")
			c = k.next("t1")
			c.Idem = []store.Idem{{Key: "used", Hash: "h"}}
			k.commit(c)
			full := func(change func(*store.Commit)) error {
				_, err := k.Store.Commit(k.ctx, bad(change))
				return err
			}
			k.kind(full(func(c *store.Commit) { c.Rigs[0].Prefix = "taken" }), errs.Conflict)
			err := full(func(c *store.Commit) { c.Idem[0] = store.Idem{Key: "used", Hash: "other"} })
			k.kind(err, errs.Conflict)
			k.same("replay", errors.Is(err, store.ErrReplay), false)
			err = full(func(c *store.Commit) { c.Idem[0] = store.Idem{Key: "used", Hash: "h"} })
			k.same("replay", errors.Is(err, store.ErrReplay), true)
			k.kind(full(func(c *store.Commit) { c.Ledger[0].Seq = 2 }), errs.Invalid)
			k.untouched("t1")
			k.ok(full(func(*store.Commit) {}))
		}},
	}
}

func invalidTests() []conformanceTest {
	return []conformanceTest{
		{"a commit that can never be right is invalid", func(k *kit) {
			k.create("t1")
			for name, change := range map[string]func(*store.Commit){
				"no commit id":    func(c *store.Commit) { c.CommitID = "" },
				"large row":       func(c *store.Commit) { c.Rows[0].Body = make([]byte, store.MaxRow+1) },
				"empty row":       func(c *store.Commit) { c.Rows[0].Body = []byte{} },
				"row without id":  func(c *store.Commit) { c.Rows[0].ID = "" },
				"rig, no prefix":  func(c *store.Commit) { c.Rigs[0].Prefix = "" },
				"idem, no key":    func(c *store.Commit) { c.Idem[0].Key = "" },
				"gap in ledger":   func(c *store.Commit) { c.Ledger = append(c.Ledger, store.Entry{Seq: 3}) },
				"negative due":    func(c *store.Commit) { c.Columns.DueAt = -1 },
				"unknown slot":    func(c *store.Commit) { c.Slot = 9 },
				"large ledger":    func(c *store.Commit) { c.Ledger[0].Body = make([]byte, store.MaxRow+1) },
				"large idem body": func(c *store.Commit) { c.Idem[0].Body = make([]byte, store.MaxRow+1) },
			} {
				c := bad(change)
				c.Expect = 1
				if _, err := k.Store.Commit(k.ctx, c); !errs.Is(err, errs.Invalid) {
					k.Errorf("%s: got %v", name, err)
				}
			}
			h, err := k.Head(k.ctx, "t1")
			k.ok(err)
			k.same("version", h.Version, 1)
		}},
	}
}

func concurrencyTests() []conformanceTest {
	return []conformanceTest{
		{"of many committers on one version exactly one wins", func(k *kit) {
			k.create("t1")
			const n = 16
			results := make([]error, n)
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					_, results[i] = k.Store.Commit(k.ctx, store.Commit{Town: "t1", Expect: 1, CommitID: fmt.Sprint(i), Columns: healthy(),
						Rows: []store.Row{row("bead", fmt.Sprint(i), "{}")}})
				})
			}
			all.Wait()
			winner := -1
			for i, err := range results {
				switch {
				case err == nil && winner < 0:
					winner = i
				case err == nil:
					k.Fatalf("both %d and %d won", winner, i)
				case !errors.Is(err, store.ErrVersion):
					k.Fatalf("loser %d got %v", i, err)
				}
			}
			h, rows, err := k.Load(k.ctx, "t1", 0)
			k.ok(err)
			k.same("commit", h.CommitID, fmt.Sprint(winner))
			k.same("rows", show(rows), fmt.Sprintf("bead/%d@2={}", winner))
		}},
		{"commits of many towns at once all stand, and bad ones among them undo only themselves", func(k *kit) {
			const n = 40
			for i := range n {
				k.create(fmt.Sprintf("t%02d", i))
			}
			results := make([]error, n)
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					expect := int64(1 + i%2) // every other one misses
					_, results[i] = k.Store.Commit(k.ctx, store.Commit{Town: fmt.Sprintf("t%02d", i), Expect: expect, CommitID: "c1", Columns: healthy(),
						Rows: []store.Row{row("bead", "b", "{}")}, Rigs: []store.RigIndex{{Rig: "r", Prefix: fmt.Sprint("p", i/4)}}})
				})
			}
			all.Wait()
			for i, err := range results {
				_, rows, lerr := k.Load(k.ctx, fmt.Sprintf("t%02d", i), 0)
				k.ok(lerr)
				switch {
				case i%2 == 1 && !errors.Is(err, store.ErrVersion):
					k.Fatalf("town %d: got %v, want a version miss", i, err)
				case err == nil && show(rows) != "bead/b@2={}":
					k.Fatalf("town %d: acknowledged, but has rows %q", i, show(rows))
				case err != nil && len(rows) != 0:
					k.Fatalf("town %d: refused with %v, but has rows %q", i, err, show(rows))
				case i%4 == 0 && (results[i] == nil) == (results[i+2] == nil):
					k.Fatalf("towns %d and %d share a prefix: %v, %v", i, i+2, results[i], results[i+2])
				}
			}
		}},
	}
}

func loadTests() []conformanceTest {
	return []conformanceTest{
		{"a delta load gives what changed since, tombstones included; a full load has none", func(k *kit) {
			k.create("t1")
			for _, rows := range [][]store.Row{
				{row("bead", "a", "1"), row("bead", "b", "1"), row("run", "r", "1")},
				{row("bead", "b", "2")},
				{row("bead", "a", ""), row("agent", "z", "1")},
			} {
				c := k.next("t1")
				c.Rows = rows
				k.commit(c)
			}
			for since, want := range map[int64]string{
				0: "agent/z@4=1 bead/b@3=2 run/r@2=1",
				1: "agent/z@4=1 bead/a@4=deleted bead/b@3=2 run/r@2=1",
				2: "agent/z@4=1 bead/a@4=deleted bead/b@3=2",
				3: "agent/z@4=1 bead/a@4=deleted",
				4: "", 9: "",
			} {
				h, rows, err := k.Load(k.ctx, "t1", since)
				k.ok(err)
				k.same(fmt.Sprint("rows since ", since), show(rows), want)
				k.same("version", h.Version, 4)
			}
			c := k.next("t1")
			c.Rows = []store.Row{row("bead", "a", "again")}
			k.commit(c)
			_, rows, err := k.Load(k.ctx, "t1", 0)
			k.ok(err)
			k.same("a row may return", show(rows), "agent/z@4=1 bead/a@5=again bead/b@3=2 run/r@2=1")
		}},
		{"a load is one snapshot: its rows are as old as its head", func(k *kit) {
			k.create("t1")
			var all sync.WaitGroup
			all.Go(func() {
				for v := range int64(200) {
					_, err := k.Store.Commit(k.ctx, store.Commit{Town: "t1", Expect: v + 1, CommitID: "c", Columns: healthy(),
						Rows: []store.Row{row("bead", "a", "x"), row("bead", "b", "x")}})
					if err != nil {
						k.Errorf("commit on version %d: %v", v+1, err)
						return
					}
				}
			})
			for range 200 {
				h, rows, err := k.Load(k.ctx, "t1", 0)
				if err != nil {
					k.Error(err)
					break
				}
				for _, r := range rows {
					if r.Version != h.Version {
						k.Errorf("head at %d, row %s at %d", h.Version, r.ID, r.Version)
					}
				}
			}
			all.Wait()
		}},
		{"a body of the largest size comes back whole", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			body := strings.Repeat("x", store.MaxRow-1) + "y"
			c.Rows = []store.Row{row("bead", "b", body)}
			k.commit(c)
			_, rows, err := k.Load(k.ctx, "t1", 0)
			k.ok(err)
			if len(rows) != 1 || string(rows[0].Body) != body {
				k.Fatal("the body changed")
			}
		}},
		{"the store keeps its own copy of a body", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			body := []byte("before")
			c.Rows = []store.Row{{Kind: "bead", ID: "b", Body: body}}
			k.commit(c)
			copy(body, "after!")
			_, rows, err := k.Load(k.ctx, "t1", 0)
			k.ok(err)
			k.same("rows", show(rows), "bead/b@2=before")
		}},
	}
}

func indexTests() []conformanceTest {
	return []conformanceTest{
		{"the last commit is known, others are not", func(k *kit) {
			k.create("t1")
			k.commit(k.next("t1"))
			for id, want := range map[string]bool{"t1-2": true, "c0": false, "never": false, "": false} {
				got, err := k.CommitKnown(k.ctx, "t1", id)
				k.ok(err)
				k.same("known "+id, got, want)
			}
		}},
		{"a bead prefix is unique on the server, a rig in its town, and both can move", func(k *kit) {
			k.create("t1")
			k.create("t2")
			put := func(town string, rigs ...store.RigIndex) error {
				c := k.next(town)
				c.Rigs = rigs
				_, err := k.Store.Commit(k.ctx, c)
				return err
			}
			k.ok(put("t1", store.RigIndex{Rig: "web", Prefix: "w"}, store.RigIndex{Rig: "api", Prefix: "a"}))
			k.kind(put("t2", store.RigIndex{Rig: "web", Prefix: "w"}), errs.Conflict)
			k.kind(put("t1", store.RigIndex{Rig: "third", Prefix: "a"}), errs.Conflict)
			k.ok(put("t2", store.RigIndex{Rig: "web", Prefix: "w2"}))
			rigs, err := k.FindRig(k.ctx, "web")
			k.ok(err)
			k.same("rigs", rigs, []store.RigIndex{{Town: "t1", Rig: "web", Prefix: "w"}, {Town: "t2", Rig: "web", Prefix: "w2"}})
			k.ok(put("t1", store.RigIndex{Rig: "new", Prefix: "w"}, store.RigIndex{Rig: "web", Removed: true}))
			k.ok(put("t1", store.RigIndex{Rig: "api", Prefix: "b"}))
			k.ok(put("t2", store.RigIndex{Rig: "api", Prefix: "a"}))
			rigs, err = k.FindPrefix(k.ctx, "w")
			k.ok(err)
			k.same("prefix", rigs, []store.RigIndex{{Town: "t1", Rig: "new", Prefix: "w"}})
		}},
		{"every write is counted", func(k *kit) {
			before := k.Stats()
			k.create("t1")
			c := k.next("t1")
			c.Rows = []store.Row{row("bead", "b", "12345")}
			k.commit(c)
			after := k.Stats()
			if after.Writes-before.Writes < 3 || after.Bytes-before.Bytes != 5 || after.Jobs-before.Jobs != 2 || after.Batches == before.Batches {
				k.Fatalf("before %+v, after %+v", before, after)
			}
		}},
	}
}

// bad is a commit on version 2 of t1 that changes something of every sort.
func bad(change func(*store.Commit)) store.Commit {
	c := store.Commit{Town: "t1", Expect: 2, CommitID: "bad", Columns: store.Columns{Sandbox: "awake"},
		Rows: []store.Row{row("bead", "b", "{}")}, Ledger: []store.Entry{{Seq: 1}}, Idem: []store.Idem{{Key: "k"}},
		Rigs: []store.RigIndex{{Rig: "r", Prefix: "p"}}, Slot: store.SlotAwake}
	change(&c)
	return c
}

// untouched checks that nothing of bad was kept.
func (k *kit) untouched(id string) {
	k.Helper()
	h, rows, err := k.Load(k.ctx, id, 0)
	k.ok(err)
	k.same("head", fmt.Sprint(h.Version, h.CommitID, h.Sandbox, h.LedgerSeq), fmt.Sprint(2, "t1-2", store.Asleep, 0))
	k.same("rows", show(rows), "")
	entries, err := k.Ledger(k.ctx, id, store.LedgerQuery{})
	k.ok(err)
	k.same("ledger", len(entries), 0)
	_, found, err := k.Idem(k.ctx, id, "k")
	k.ok(err)
	k.same("idempotency record", found, false)
	rigs, err := k.FindPrefix(k.ctx, "p")
	k.ok(err)
	k.same("rigs", len(rigs), 0)
	slots, err := k.Slots(k.ctx)
	k.ok(err)
	k.same("slots", len(slots), 0)
}
