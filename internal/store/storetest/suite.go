package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// Run checks that the stores made by open keep the contract of package store. open
// is called once per test, for an empty store, and closes it with t.Cleanup.
func Run(t *testing.T, open func(*testing.T) store.Store) {
	for _, test := range suite() {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			test.run(&kit{T: t, Store: s, ctx: t.Context()})
		})
	}
}

type conformanceTest struct {
	name string
	run  func(*kit)
}

func suite() []conformanceTest {
	return slices.Concat(townTests(), listTests(), serverTests(), commitTests(), invalidTests(), concurrencyTests(), loadTests(),
		indexTests(), alarmTests(), idleTests(), slotTests(), budgetTests(), fairnessTests(), ledgerTests(), idemTests(), transcriptTests())
}

// kit is a test with its store and short ways to say common things.
type kit struct {
	*testing.T
	store.Store
	ctx context.Context
}

func (k *kit) ok(err error) {
	k.Helper()
	if err != nil {
		k.Fatalf("unexpected error: %v", err)
	}
}

func (k *kit) kind(err error, want errs.Kind) {
	k.Helper()
	if got := errs.KindOf(err); got != want {
		k.Fatalf("error %v is of kind %q, want %q", err, got, want)
	}
}

func (k *kit) same(what string, got, want any) {
	k.Helper()
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		k.Fatalf("%s: got %s, want %s", what, g, w)
	}
}

// healthy are the columns of an idle town that needs nobody.
func healthy() store.Columns {
	return store.Columns{Sandbox: store.Asleep, Status: "active"}
}

func (k *kit) create(id string) {
	k.Helper()
	k.createWith(id, healthy())
}

func (k *kit) createWith(id string, c store.Columns) {
	k.Helper()
	k.ok(k.CreateTown(k.ctx, store.Head{ID: id, Name: "name-" + id, Owner: "ann", CreatedAt: 1000, CommitID: "c0", Columns: c}, nil, nil))
}

// next is a commit on the present version of a town that changes nothing else.
func (k *kit) next(id string) store.Commit {
	k.Helper()
	h, err := k.Head(k.ctx, id)
	k.ok(err)
	return store.Commit{Town: id, Expect: h.Version, CommitID: fmt.Sprintf("%s-%d", id, h.Version+1), At: 2000, Columns: h.Columns}
}

func (k *kit) commit(c store.Commit) int64 {
	k.Helper()
	v, err := k.Commit(k.ctx, c)
	k.ok(err)
	return v
}

// set commits new columns.
func (k *kit) set(id string, change func(*store.Columns)) {
	k.Helper()
	c := k.next(id)
	change(&c.Columns)
	k.commit(c)
}

func ids(heads []store.Head) string {
	var out []string
	for _, h := range heads {
		out = append(out, h.ID)
	}
	return strings.Join(out, " ")
}

func show(rows []store.Row) string {
	var out []string
	for _, r := range rows {
		body := "deleted"
		if r.Body != nil {
			body = string(r.Body)
		}
		out = append(out, fmt.Sprintf("%s/%s@%d=%s", r.Kind, r.ID, r.Version, body))
	}
	return strings.Join(out, " ")
}

func row(kind, id, body string) store.Row {
	if body == "" {
		return store.Row{Kind: kind, ID: id}
	}
	return store.Row{Kind: kind, ID: id, Body: []byte(body)}
}

func townTests() []conformanceTest {
	return []conformanceTest{
		{"a created town is found by id and by name, at version 1, with its rows", func(k *kit) {
			c := store.Columns{DueAt: 7, DesiredRev: 3, Sandbox: "awake", Generation: 4, Wanted: true, Open: 5, Failing: "x", Status: "paused"}
			k.ok(k.CreateTown(k.ctx, store.Head{ID: "t1", Name: "alpha", Owner: "ann", CommitID: "c0", CreatedAt: 9, Columns: c},
				[]store.Row{row("bead", "b", "{}"), row("agent", "a", "{1}")}, []store.Entry{{Seq: 1, At: 5, Kind: "created"}}))
			want := store.Head{ID: "t1", Name: "alpha", Owner: "ann", Version: 1, CommitID: "c0", CreatedAt: 9, LedgerSeq: 1, Columns: c}
			for _, key := range []string{"t1", "alpha"} {
				h, err := k.Find(k.ctx, key)
				k.ok(err)
				k.same("found by "+key, h, want)
			}
			h, rows, err := k.Load(k.ctx, "t1", 0)
			k.ok(err)
			k.same("loaded head", h, want)
			k.same("rows", show(rows), "agent/a@1={1} bead/b@1={}")
		}},
		{"a town's id wins over another town's name", func(k *kit) {
			k.ok(k.CreateTown(k.ctx, store.Head{ID: "t1", Name: "t2", Columns: healthy()}, nil, nil))
			k.ok(k.CreateTown(k.ctx, store.Head{ID: "t2", Name: "other", Columns: healthy()}, nil, nil))
			h, err := k.Find(k.ctx, "t2")
			k.ok(err)
			k.same("found", h.ID, "t2")
		}},
		{"a second town of the same name or id is a conflict", func(k *kit) {
			k.create("t1")
			k.kind(k.CreateTown(k.ctx, store.Head{ID: "t2", Name: "name-t1"}, nil, nil), errs.Conflict)
			k.kind(k.CreateTown(k.ctx, store.Head{ID: "t1", Name: "fresh"}, nil, nil), errs.Conflict)
			_, err := k.Find(k.ctx, "t2")
			k.kind(err, errs.NotFound)
		}},
		{"an unknown town is not found, whatever is asked of it", func(k *kit) {
			_, err := k.Head(k.ctx, "no")
			k.kind(err, errs.NotFound)
			_, _, err = k.Load(k.ctx, "no", 0)
			k.kind(err, errs.NotFound)
			_, err = k.Store.Commit(k.ctx, store.Commit{Town: "no", CommitID: "c", Columns: healthy()})
			k.kind(err, errs.NotFound)
			_, err = k.Admit(k.ctx, "no", 1, store.Limits{})
			k.kind(err, errs.NotFound)
			k.kind(k.DeleteTown(k.ctx, "no"), errs.NotFound)
			k.kind(k.DeleteTown(k.ctx, ""), errs.NotFound)
			k.kind(k.AppendTranscript(k.ctx, []store.Chunk{{Town: "no", Run: "r", Seq: 1}}), errs.NotFound)
			k.kind(k.PutIdem(k.ctx, "no", store.Idem{Key: "k"}), errs.NotFound)
			_, err = k.CommitKnown(k.ctx, "no", "c")
			k.kind(err, errs.NotFound)
		}},
	}
}

func listTests() []conformanceTest {
	return []conformanceTest{
		{"heads are listed by name, page by page", func(k *kit) {
			for _, id := range []string{"c", "a", "d", "b"} {
				k.create(id)
			}
			page, err := k.Heads(k.ctx, "", 3)
			k.ok(err)
			k.same("first page", ids(page), "a b c")
			page, err = k.Heads(k.ctx, page[2].Name, 3)
			k.ok(err)
			k.same("second page", ids(page), "d")
		}},
		{"a deleted town leaves nothing and its name and prefix are free", func(k *kit) {
			k.create("t1")
			k.create("t2")
			for _, id := range []string{"t1", "t2"} {
				c := k.next(id)
				c.Rows = []store.Row{row("bead", "b", "{}")}
				c.Ledger = []store.Entry{{Seq: 1, Kind: "x", Subject: "b"}}
				c.Idem = []store.Idem{{Key: "k", Hash: "h"}}
				c.Rigs = []store.RigIndex{{Rig: "rig", Prefix: "p" + id}}
				c.Slot = store.SlotAwake
				k.commit(c)
				k.ok(k.AppendTranscript(k.ctx, []store.Chunk{{Town: id, Run: "r", Epoch: 1, Seq: 1}}))
			}
			k.ok(k.DeleteTown(k.ctx, "t1"))
			_, err := k.Find(k.ctx, "name-t1")
			k.kind(err, errs.NotFound)
			k.create("t1")
			_, rows, err := k.Load(k.ctx, "t1", 0)
			k.ok(err)
			k.same("rows", show(rows), "")
			entries, err := k.Ledger(k.ctx, "t1", store.LedgerQuery{})
			k.ok(err)
			k.same("ledger", len(entries), 0)
			_, found, err := k.Idem(k.ctx, "t1", "k")
			k.ok(err)
			k.same("idempotency record found", found, false)
			chunks, err := k.Transcript(k.ctx, "t1", "r", 1, 0, 0)
			k.ok(err)
			k.same("chunks", len(chunks), 0)
			rigs, err := k.FindRig(k.ctx, "rig")
			k.ok(err)
			k.same("rigs", rigs, []store.RigIndex{{Town: "t2", Rig: "rig", Prefix: "pt2"}})
			rigs, err = k.FindPrefix(k.ctx, "pt1")
			k.ok(err)
			k.same("prefix", len(rigs), 0)
			slots, err := k.Slots(k.ctx)
			k.ok(err)
			k.same("slots", len(slots), 1)
		}},
	}
}

func serverTests() []conformanceTest {
	return []conformanceTest{
		{"server facts are kept and replaced", func(k *kit) {
			_, found, err := k.Meta(k.ctx, "key")
			k.ok(err)
			k.same("found", found, false)
			k.ok(k.SetMeta(k.ctx, "key", "one"))
			k.ok(k.SetMeta(k.ctx, "key", "two"))
			v, found, err := k.Meta(k.ctx, "key")
			k.ok(err)
			k.same("value", fmt.Sprint(v, " ", found), "two true")
		}},
		{"a closed store refuses everything, and closing it twice is harmless", func(k *kit) {
			k.create("t1")
			k.ok(k.Close())
			k.ok(k.Close())
			_, err := k.Head(k.ctx, "t1")
			k.kind(err, errs.Unavailable)
			k.kind(k.SetMeta(k.ctx, "key", "v"), errs.Unavailable)
		}},
		{"a call with an ended context does nothing", func(k *kit) {
			ctx, cancel := context.WithCancel(k.ctx)
			cancel()
			err := k.SetMeta(ctx, "key", "v")
			if !errors.Is(err, context.Canceled) || errors.Is(err, store.ErrUnknown) {
				k.Fatalf("got %v", err)
			}
			_, err = k.Head(ctx, "t1")
			if !errors.Is(err, context.Canceled) {
				k.Fatalf("got %v", err)
			}
			_, found, err := k.Meta(k.ctx, "key")
			k.ok(err)
			k.same("found", found, false)
		}},
	}
}
