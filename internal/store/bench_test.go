package store_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"gastown/internal/store"
)

// fill creates n towns named t000000 and up.
func fill(b *testing.B, s store.Store, n int, c store.Columns) {
	b.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				id := fmt.Sprintf("t%06d", i)
				if err := s.CreateTown(context.Background(), store.Head{ID: id, Name: id, Columns: c}, nil, nil); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

var idle = store.Columns{Sandbox: store.Asleep, Status: "active"}

// BenchmarkCommit measures durable commits of one row and one ledger entry, each
// committer with a town of its own.
func BenchmarkCommit(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			s := openSQLite(b, b.TempDir(), store.Options{})
			fill(b, s, clients, idle)
			body := bytes.Repeat([]byte("x"), 600)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var all sync.WaitGroup
			for i := range clients {
				all.Go(func() {
					town := fmt.Sprintf("t%06d", i)
					for n := int64(1); left.Add(-1) >= 0; n++ {
						_, err := s.Commit(context.Background(), store.Commit{Town: town, Expect: n, CommitID: "c", At: n,
							Columns: store.Columns{Sandbox: store.Asleep, DueAt: n + 1000},
							Rows:    []store.Row{{Kind: "bead", ID: fmt.Sprint(n), Body: body}},
							Ledger:  []store.Entry{{Seq: n, At: n, Kind: "created", Subject: "b", Body: body[:100]}}})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
			b.ReportMetric(float64(s.Stats().Jobs)/float64(s.Stats().Batches), "jobs/batch")
		})
	}
}

// largeTown has n rows of 600 bytes, as 10,000 open beads would be.
func largeTown(b *testing.B, s store.Store, n int) {
	b.Helper()
	fill(b, s, 2, idle)
	body := bytes.Repeat([]byte("x"), 600)
	// In random order of ids and in the company of another town, as life writes them.
	for v := range int64(n / 100) {
		for _, town := range []string{"t000000", "t000001"} {
			c := store.Commit{Town: town, Expect: v + 1, CommitID: "c", Columns: idle}
			for i := range int64(100) {
				c.Rows = append(c.Rows, store.Row{Kind: "bead", ID: fmt.Sprintf("b-%x", (v*100+i)*7919%int64(n)), Body: body})
			}
			if _, err := s.Commit(b.Context(), c); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkLoad10000(b *testing.B) {
	s := openSQLite(b, b.TempDir(), store.Options{})
	largeTown(b, s, 10000)
	b.ReportAllocs()
	for b.Loop() {
		if _, rows, err := s.Load(b.Context(), "t000000", 0); err != nil || len(rows) != 10000 {
			b.Fatal(len(rows), err)
		}
	}
}

func BenchmarkLoadDelta(b *testing.B) {
	s := openSQLite(b, b.TempDir(), store.Options{})
	largeTown(b, s, 10000)
	for b.Loop() {
		if _, rows, err := s.Load(b.Context(), "t000000", 100); err != nil || len(rows) != 100 {
			b.Fatal(len(rows), err)
		}
	}
}

func BenchmarkHead(b *testing.B) {
	s := openSQLite(b, b.TempDir(), store.Options{})
	fill(b, s, 1000, idle)
	for b.Loop() {
		if _, err := s.Head(b.Context(), "t000500"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIdle100000(b *testing.B) {
	s := openSQLite(b, b.TempDir(), store.Options{})
	fill(b, s, 100_000, idle)
	b.Run("IdleSlice", func(b *testing.B) {
		for b.Loop() {
			if found, err := s.IdleSlice(b.Context(), 7, 60, 1000); err != nil || len(found) != 0 {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("ClaimDue/none", func(b *testing.B) {
		for b.Loop() {
			if found, err := s.ClaimDue(b.Context(), 1000, 2000, 256); err != nil || len(found) != 0 {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("ClaimDue/256", func(b *testing.B) {
		for i := range 256 {
			c := store.Columns{Sandbox: store.Asleep, DueAt: 1}
			if _, err := s.Commit(b.Context(), store.Commit{Town: fmt.Sprintf("t%06d", i*390), Expect: 1, CommitID: "c", Columns: c}); err != nil {
				b.Fatal(err)
			}
		}
		now := int64(1)
		for b.Loop() {
			found, err := s.ClaimDue(b.Context(), now, now+1, 256)
			if err != nil || len(found) != 256 {
				b.Fatal(len(found), err)
			}
			now++
		}
	})
	b.Run("Heads/100", func(b *testing.B) {
		for b.Loop() {
			if found, err := s.Heads(b.Context(), "t050000", 100); err != nil || len(found) != 100 {
				b.Fatal(len(found), err)
			}
		}
	})
}
