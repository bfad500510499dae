package storetest

import (
	"errors"
	"fmt"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// admit asks for a slot and returns the answer as "granted position".
func (k *kit) admit(town string, now int64, l store.Limits) string {
	k.Helper()
	a, err := k.Admit(k.ctx, town, now, l)
	k.ok(err)
	return fmt.Sprint(a.Granted, a.Position)
}

// slot commits nothing but a slot change.
func (k *kit) slot(town string, s store.SlotChange) {
	k.Helper()
	c := k.next(town)
	c.Slot = s
	k.commit(c)
}

func slotTests() []conformanceTest {
	return []conformanceTest{
		{"slots are granted up to the limit, then towns wait in order and say their position", func(k *kit) {
			for _, id := range []string{"a", "b", "c", "d"} {
				k.create(id)
			}
			l := store.Limits{MaxAwake: 1, MaxStarting: 1}
			k.same("d", k.admit("d", 1, l), "true 0")
			k.same("d again", k.admit("d", 2, l), "true 0")
			k.same("c", k.admit("c", 2, l), "false 1")
			k.same("b", k.admit("b", 3, l), "false 2")
			k.same("a", k.admit("a", 3, l), "false 2") // same moment: the lower id goes first
			k.same("b", k.admit("b", 4, l), "false 3")
			waiting, err := k.Waiting(k.ctx, 10)
			k.ok(err)
			k.same("waiting", waiting, []string{"c", "a", "b"})
			counts, err := k.SlotCounts(k.ctx)
			k.ok(err)
			k.same("counts", counts, store.SlotCounts{Waiting: 3, Starting: 1})
			k.slot("d", store.SlotAwake)
			k.same("awake still counts", k.admit("c", 5, l), "false 1")
			k.slot("d", store.SlotRelease)
			k.same("not before the one who waits longer", k.admit("a", 6, l), "false 2")
			k.same("the one who waits longest", k.admit("c", 7, l), "true 0")
			k.slot("a", store.SlotRelease)
			k.slot("c", store.SlotRelease)
			k.same("who stopped waiting is not in the way", k.admit("b", 8, l), "true 0")
		}},
		{"starting and awake have separate limits", func(k *kit) {
			for _, id := range []string{"a", "b", "c"} {
				k.create(id)
			}
			l := store.Limits{MaxAwake: 2, MaxStarting: 1}
			k.same("a", k.admit("a", 1, l), "true 0")
			k.same("b", k.admit("b", 2, l), "false 1")
			k.slot("a", store.SlotAwake)
			k.same("b", k.admit("b", 3, l), "true 0")
			k.slot("b", store.SlotAwake)
			k.same("c", k.admit("c", 4, l), "false 1")
			k.same("without limits", k.admit("c", 5, store.Limits{}), "true 0")
			slots, err := k.Slots(k.ctx)
			k.ok(err)
			k.same("slots", slots, []store.Slot{{Town: "a", State: "awake", Since: 1, Seen: 1, At: 2000},
				{Town: "b", State: "awake", Since: 2, Seen: 3, At: 2000}, {Town: "c", State: "starting", Since: 4, Seen: 5, At: 5}})
		}},
	}
}

func fairnessTests() []conformanceTest {
	return []conformanceTest{
		{"a place is kept for those who wait longer, and only for as many", func(k *kit) {
			for _, id := range []string{"a", "b", "c", "d"} {
				k.create(id)
			}
			none := store.Limits{MaxAwake: 1, MaxStarting: 1}
			k.same("a", k.admit("a", 1, none), "true 0")
			k.same("b", k.admit("b", 2, none), "false 1")
			k.same("c", k.admit("c", 3, none), "false 2")
			k.same("d", k.admit("d", 4, none), "false 3")
			three := store.Limits{MaxAwake: 3, MaxStarting: 3}
			k.same("two places, third in line", k.admit("d", 5, three), "false 3")
			k.same("two places, second in line", k.admit("c", 6, three), "true 0")
			k.same("one place, second in line", k.admit("d", 7, three), "false 2")
			k.same("one place, first in line", k.admit("b", 8, three), "true 0")
		}},
		{"a town that stopped asking blocks nobody, and keeps its place", func(k *kit) {
			for _, id := range []string{"a", "b", "c"} {
				k.create(id)
			}
			one := store.Limits{MaxAwake: 1}
			k.same("a", k.admit("a", 1, one), "true 0")
			k.same("b", k.admit("b", 2, one), "false 1")
			k.same("c", k.admit("c", 3, one), "false 2")
			later := int64(2 + store.WaiterTTL)
			k.same("b counts to the last moment", k.admit("c", later, one), "false 2")
			k.same("b is gone", k.admit("c", later+1, one), "false 1")
			k.same("b is back", k.admit("b", later+2, one), "false 1")
			k.same("c is behind it again", k.admit("c", later+3, one), "false 2")
		}},
		{"a sandbox that runs counts even if nobody let it in", func(k *kit) {
			k.create("a")
			k.create("b")
			k.slot("a", store.SlotAwake)
			k.same("b", k.admit("b", 1, store.Limits{MaxAwake: 1}), "false 1")
		}},
		{"asking for a slot leaves the version alone", func(k *kit) {
			k.create("a")
			c := k.next("a")
			k.admit("a", 1, store.Limits{})
			k.same("version", k.commit(c), 2)
		}},
	}
}

func ledgerTests() []conformanceTest {
	return []conformanceTest{
		{"the ledger is read in either order, in pages, by subject and by kind", func(k *kit) {
			k.create("t1")
			k.create("t2")
			for i := range int64(10) {
				c := k.next("t1")
				c.Ledger = []store.Entry{{Seq: i + 1, At: 100 + i, Kind: []string{"x", "y"}[i%2], Subject: []string{"p", "q", "r"}[i%3], Actor: "ann", Body: []byte{byte('0' + i)}}}
				k.commit(c)
			}
			for _, test := range []struct {
				q    store.LedgerQuery
				want string
			}{
				{store.LedgerQuery{}, "1 2 3 4 5 6 7 8 9 10"},
				{store.LedgerQuery{Limit: 3}, "1 2 3"},
				{store.LedgerQuery{After: 3, Limit: 3}, "4 5 6"},
				{store.LedgerQuery{Desc: true, Limit: 3}, "10 9 8"},
				{store.LedgerQuery{Desc: true, Before: 8, Limit: 3}, "7 6 5"},
				{store.LedgerQuery{After: 2, Before: 5}, "3 4"},
				{store.LedgerQuery{Subject: "p"}, "1 4 7 10"},
				{store.LedgerQuery{Kind: "y"}, "2 4 6 8 10"},
				{store.LedgerQuery{Subject: "p", Kind: "y", Desc: true}, "10 4"},
				{store.LedgerQuery{Subject: "none"}, ""},
			} {
				entries, err := k.Ledger(k.ctx, "t1", test.q)
				k.ok(err)
				var seqs []string
				for _, e := range entries {
					seqs = append(seqs, fmt.Sprint(e.Seq))
				}
				k.same(fmt.Sprintf("%+v", test.q), strings.Join(seqs, " "), test.want)
			}
			entries, err := k.Ledger(k.ctx, "t1", store.LedgerQuery{Limit: 1})
			k.ok(err)
			k.same("entry", entries, []store.Entry{{Seq: 1, At: 100, Kind: "x", Subject: "p", Actor: "ann", Body: []byte("0")}})
			entries, err = k.Ledger(k.ctx, "t2", store.LedgerQuery{})
			k.ok(err)
			k.same("of another town", len(entries), 0)
		}},
		{"pruning takes the oldest entries and the numbers go on", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			for i := range int64(6) {
				c.Ledger = append(c.Ledger, store.Entry{Seq: i + 1, At: []int64{1, 2, 9, 3, 4, 5}[i]})
			}
			k.commit(c)
			n, err := k.PruneLedger(k.ctx, "t1", 6, 1)
			k.ok(err)
			k.same("limited", n, 1)
			n, err = k.PruneLedger(k.ctx, "t1", 6, 10)
			k.ok(err)
			k.same("stops at a young entry", n, 1)
			entries, err := k.Ledger(k.ctx, "t1", store.LedgerQuery{})
			k.ok(err)
			k.same("left", fmt.Sprint(len(entries), entries[0].Seq), "4 3")
			n, err = k.PruneLedger(k.ctx, "t1", 100, 10)
			k.ok(err)
			k.same("the rest", n, 4)
			c = k.next("t1")
			c.Ledger = []store.Entry{{Seq: 1}}
			_, err = k.Store.Commit(k.ctx, c)
			k.kind(err, errs.Invalid)
			c.Ledger[0].Seq = 7
			k.commit(c)
		}},
	}
}

func idemTests() []conformanceTest {
	return []conformanceTest{
		{"an answer is kept with its commit, per town", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			want := store.Idem{Key: "k", Hash: "h", Status: 201, Body: []byte("made"), At: 5}
			c.Idem = []store.Idem{want}
			k.commit(c)
			got, ok, err := k.Idem(k.ctx, "t1", "k")
			k.ok(err)
			k.same("record", fmt.Sprintf("%+v %v", got, ok), fmt.Sprintf("%+v true", want))
			_, ok, err = k.Idem(k.ctx, "", "k")
			k.ok(err)
			k.same("in another scope", ok, false)
		}},
		{"the first answer in the server's scope stays, another request under its key is a conflict", func(k *kit) {
			k.ok(k.PutIdem(k.ctx, "", store.Idem{Key: "k", Hash: "h", Status: 200}))
			k.ok(k.PutIdem(k.ctx, "", store.Idem{Key: "k", Hash: "h", Status: 500}))
			k.kind(k.PutIdem(k.ctx, "", store.Idem{Key: "k", Hash: "other"}), errs.Conflict)
			k.kind(k.PutIdem(k.ctx, "", store.Idem{Hash: "h"}), errs.Invalid)
			got, ok, err := k.Idem(k.ctx, "", "k")
			k.ok(err)
			k.same("record", fmt.Sprint(got.Status, ok), "200 true")
		}},
		{"the same key twice in one commit is refused", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			c.Idem = []store.Idem{{Key: "k", Hash: "h"}, {Key: "k", Hash: "h"}}
			_, err := k.Store.Commit(k.ctx, c)
			k.same("replay", errors.Is(err, store.ErrReplay), true)
		}},
		{"old answers are pruned, young ones stay", func(k *kit) {
			for i := range int64(5) {
				k.ok(k.PutIdem(k.ctx, "", store.Idem{Key: fmt.Sprint(i), At: i}))
			}
			n, err := k.PruneIdem(k.ctx, 3, 10)
			k.ok(err)
			k.same("pruned", n, 3)
			_, ok, err := k.Idem(k.ctx, "", "3")
			k.ok(err)
			k.same("stays", ok, true)
		}},
	}
}

func transcriptTests() []conformanceTest {
	return []conformanceTest{
		{"chunks are read in order of one run and epoch, and repeated ones are ignored", func(k *kit) {
			k.create("t1")
			chunk := func(run string, epoch, seq int64, body string) store.Chunk {
				return store.Chunk{Town: "t1", Run: run, Epoch: epoch, Seq: seq, At: seq * 10, Kind: "text", Body: []byte(body)}
			}
			k.ok(k.AppendTranscript(k.ctx, nil))
			k.ok(k.AppendTranscript(k.ctx, []store.Chunk{chunk("r", 1, 2, "b"), chunk("r", 1, 1, "a"), chunk("r", 2, 1, "x"), chunk("s", 1, 1, "y")}))
			k.ok(k.AppendTranscript(k.ctx, []store.Chunk{chunk("r", 1, 2, "again"), chunk("r", 1, 3, "c")}))
			read := func(epoch, after int64, limit int) string {
				chunks, err := k.Transcript(k.ctx, "t1", "r", epoch, after, limit)
				k.ok(err)
				var out []string
				for _, c := range chunks {
					out = append(out, fmt.Sprintf("%s%d:%s", c.Run, c.Seq, c.Body))
				}
				return strings.Join(out, " ")
			}
			k.same("all", read(1, 0, 0), "r1:a r2:b r3:c")
			k.same("page", read(1, 1, 1), "r2:b")
			k.same("epoch", read(2, 0, 0), "r1:x")
			n, err := k.PruneTranscripts(k.ctx, 20, 2)
			k.ok(err)
			k.same("pruned", n, 2)
			n, err = k.PruneTranscripts(k.ctx, 20, 5)
			k.ok(err)
			k.same("pruned", n, 1)
			k.same("left", read(1, 0, 0), "r2:b r3:c")
		}},
		{"a transcript is bounded, and the loss is told once", func(k *kit) {
			k.create("t1")
			big := func(seq int64, run string) store.Chunk {
				return store.Chunk{Town: "t1", Run: run, Epoch: 1, Seq: seq, Body: make([]byte, 4<<20)}
			}
			for i := range int64(6) { // across calls and within one, again and again
				k.ok(k.AppendTranscript(k.ctx, []store.Chunk{big(2*i+1, "r"), big(2*i+2, "r")}))
			}
			k.ok(k.AppendTranscript(k.ctx, []store.Chunk{{Town: "t1", Run: "r", Epoch: 1, Seq: 99, Body: []byte("small")}, big(1, "other")}))
			chunks, err := k.Transcript(k.ctx, "t1", "r", 1, 0, 0)
			k.ok(err)
			k.same("kept", len(chunks), 8)
			k.same("the mark", strings.Contains(string(chunks[7].Body), "not kept"), true)
			others, err := k.Transcript(k.ctx, "t1", "other", 1, 0, 0)
			k.ok(err)
			k.same("another run", len(others), 1)
		}},
		{"a chunk without a run or with too much is invalid", func(k *kit) {
			k.create("t1")
			k.kind(k.AppendTranscript(k.ctx, []store.Chunk{{Town: "t1"}}), errs.Invalid)
			k.kind(k.AppendTranscript(k.ctx, []store.Chunk{{Town: "t1", Run: "r", Body: make([]byte, store.MaxRow+1)}}), errs.Invalid)
		}},
	}
}
