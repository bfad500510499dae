package store_test

import (
	"fmt"
	"slices"
	"testing"

	"gastown/internal/store"
)

func TestSurveyReadsColumnsAndTheEndsOfLedgers(t *testing.T) {
	t.Parallel()
	s := openSQLite(t, t.TempDir(), small)
	for i := range 5 {
		id := fmt.Sprint("t", i)
		h := store.Head{ID: id, Name: "n" + id, Columns: store.Columns{Sandbox: store.Asleep}}
		entries := []store.Entry{{Seq: 1, At: 1, Kind: "a"}, {Seq: 2, At: 2, Kind: "b"}, {Seq: 3, At: 3, Kind: "c"}}
		if err := s.CreateTown(t.Context(), h, nil, entries[:i%4]); err != nil {
			t.Fatal(err)
		}
	}
	first, err := s.Survey(t.Context(), "", "", 3)
	if err != nil || len(first) != 3 {
		t.Fatalf("%v, %v", first, err)
	}
	rest, err := s.Survey(t.Context(), "", first[2].ID, 3)
	if err != nil || len(rest) != 2 {
		t.Fatalf("%v, %v", rest, err)
	}
	for i, got := range append(first, rest...) {
		n := int64(i % 4)
		if got.ID != fmt.Sprint("t", i) || got.Entries != n || got.Last != n || got.LedgerSeq != n || got.Lost() != 0 || got.Missed {
			t.Errorf("%+v", got)
		}
	}
	if n, err := s.PruneLedger(t.Context(), "t3", 3, 10); err != nil || n != 2 {
		t.Fatal(n, err)
	}
	one, err := s.Survey(t.Context(), "t3", "", 10)
	if err != nil || len(one) != 1 || one[0].First != 3 || one[0].Lost() != 0 {
		t.Errorf("after pruning: %+v, %v", one, err)
	}
	for _, gap := range []store.Surveyed{{Head: store.Head{LedgerSeq: 3}, First: 1, Last: 3, Entries: 2}, {Head: store.Head{LedgerSeq: 4}, First: 1, Last: 3, Entries: 3}} {
		if gap.Lost() != 1 {
			t.Errorf("%+v lacks %d", gap, gap.Lost())
		}
	}
}

func TestAllRigsAndStrays(t *testing.T) {
	t.Parallel()
	s := openSQLite(t, t.TempDir(), small)
	for _, id := range []string{"a", "b"} {
		createTown(t, s, id)
		_, err := s.Commit(t.Context(), store.Commit{Town: id, Expect: 1, CommitID: "c", Columns: store.Columns{Sandbox: store.Asleep},
			Rigs: []store.RigIndex{{Rig: "x", Prefix: id + "x"}, {Rig: "y", Prefix: id + "y"}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	town, rig := "", ""
	for {
		rigs, err := s.AllRigs(t.Context(), town, rig, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rigs {
			got = append(got, r.Town+r.Rig)
			town, rig = r.Town, r.Rig
		}
		if len(rigs) < 3 {
			break
		}
	}
	if want := []string{"ax", "ay", "bx", "by"}; !slices.Equal(got, want) {
		t.Errorf("rigs %v, want %v", got, want)
	}
	if strays, err := s.Strays(t.Context(), 10); err != nil || len(strays) != 0 {
		t.Errorf("strays %v, %v", strays, err)
	}
}
