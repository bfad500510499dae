package store_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// BenchmarkCommitsBesideASnapshot says how long a commit takes at most and at the
// median while a database of 100 MB is copied.
func BenchmarkCommitsBesideASnapshot(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		s := openSQLite(b, dir, small)
		createTown(b, s, "big")
		body := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
		for v := int64(1); v <= 400; v++ {
			if err := commitRow(b, s, "big", v, body); err != nil {
				b.Fatal(err)
			}
		}
		createTown(b, s, "t")
		ctx, stop := context.WithCancel(b.Context())
		var took []time.Duration
		var all sync.WaitGroup
		all.Go(func() {
			for v := int64(1); ctx.Err() == nil; v++ {
				begin := time.Now()
				if err := commitRow(b, s, "t", v, []byte("{}")); err != nil {
					b.Error(err)
					return
				}
				took = append(took, time.Since(begin))
			}
		})
		begin := time.Now()
		if _, err := s.Snapshot(b.Context(), filepath.Join(dir, "copy.db")); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(begin).Milliseconds()), "snapshot-ms")
		stop()
		all.Wait()
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "commit-p50-us")
		b.ReportMetric(float64(took[len(took)-1].Microseconds()), "commit-max-us")
		b.ReportMetric(float64(len(took)), "commits")
	}
}

func TestASnapshotIsOneStateWhileWritesGoOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSQLite(t, filepath.Join(dir, "a 'quoted' dir"), small)
	createTown(t, s, "t")
	ctx, stop := context.WithCancel(t.Context())
	begun := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for v := int64(1); ctx.Err() == nil; v++ {
			_, err := s.Commit(t.Context(), store.Commit{Town: "t", Expect: v, CommitID: "c", Columns: store.Columns{Sandbox: store.Asleep},
				Rows: []store.Row{{Kind: "bead", ID: fmt.Sprint(v), Body: []byte("{}")}}, Ledger: []store.Entry{{Seq: v}}})
			if err != nil {
				t.Error(err)
				return
			}
			if v == 50 {
				close(begun)
			}
		}
	})
	<-begun
	var found []int64
	for i := range 5 {
		to := filepath.Join(dir, fmt.Sprintf("copy 'no %d'", i))
		path := filepath.Join(to, store.FileName)
		closeStore(t, openSQLite(t, to, small)) // makes the directory
		for _, n := range store.Files() {
			removeFile(t, filepath.Join(to, n))
		}
		c, err := s.Snapshot(t.Context(), path)
		if err != nil || c.Towns != 1 {
			t.Fatalf("%+v, %v", c, err)
		}
		if _, err := store.Verify(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		other := openSQLite(t, to, small)
		h, rows, err := other.Load(t.Context(), "t", 0)
		if err != nil || int64(len(rows)) != h.Version-1 || h.LedgerSeq != h.Version-1 {
			t.Fatalf("version %d with %d rows and ledger %d, %v", h.Version, len(rows), h.LedgerSeq, err)
		}
		found = append(found, h.Version)
		closeStore(t, other)
	}
	stop()
	all.Wait()
	if !slices.IsSorted(found) || found[0] == found[4] {
		t.Errorf("the snapshots have versions %v", found)
	}
}

func TestASnapshotNeverReplacesAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSQLite(t, dir, small)
	if _, err := s.Snapshot(t.Context(), filepath.Join(dir, store.FileName)); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	if _, err := store.SnapshotOf(t.Context(), t.TempDir(), filepath.Join(dir, "x")); !errs.Is(err, errs.NotFound) {
		t.Fatalf("got %v", err)
	}
}
