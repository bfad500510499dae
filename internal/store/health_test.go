package store_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/store"
)

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// told opens a store that sends its health into the channel.
func told(t *testing.T, dir string, opts store.Options) (*store.SQLite, chan store.Health) {
	t.Helper()
	news := make(chan store.Health, 100)
	opts.CacheKiB, opts.Readers = 2048, 2
	opts.Changed = func(h store.Health) { news <- h }
	s, err := store.Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s, news
}

func until(t *testing.T, news chan store.Health, what func(store.Health) bool) store.Health {
	t.Helper()
	for {
		select {
		case h := <-news:
			if what(h) {
				return h
			}
		case <-t.Context().Done():
			t.Fatal("it did not come")
		}
	}
}

func TestACleanStopNeedsNoCheckAnUncleanOneDoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, _ := told(t, dir, store.Options{})
	if h := s.Health(); h.State != store.Healthy || h.Check != store.CheckNone {
		t.Fatalf("a fresh store: %+v", h)
	}
	createTown(t, s, "t")
	closeStore(t, s)
	s, _ = told(t, dir, store.Options{})
	if h := s.Health(); h.Check != store.CheckNone {
		t.Fatalf("after a clean stop: %+v", h)
	}
	// A copy of the files of a running store is what a crash leaves.
	crashed := t.TempDir()
	for _, n := range []string{"gastown.db", "gastown.db-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err == nil {
			err = os.WriteFile(filepath.Join(crashed, n), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	s, news := told(t, crashed, store.Options{})
	if h := until(t, news, func(h store.Health) bool { return h.Check != store.CheckRunning }); h.Check != store.CheckOK {
		t.Fatalf("after a crash: %+v", h)
	}
	closeStore(t, s)
	s, _ = told(t, crashed, store.Options{})
	if h := s.Health(); h.Check != store.CheckNone {
		t.Fatalf("after the check: %+v", h)
	}
	closeStore(t, s)
}

func TestADamagedFileTurnsTheStoreReadOnlyWithTheWayOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, _ := told(t, dir, store.Options{})
	createTown(t, s, "t")
	for v := int64(1); v < 60; v++ {
		if err := commitRow(t, s, "t", v, bytes.Repeat([]byte("x"), 20_000)); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	path := filepath.Join(dir, store.FileName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	removeFile(t, filepath.Join(dir, "gastown.clean"))
	for at := len(b) / 2; at < len(b)/2+200_000; at += 4096 {
		copy(b[at:], bytes.Repeat([]byte{0xa5}, 64))
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // it stays so over restarts
		s, news := told(t, dir, store.Options{})
		h := until(t, news, func(h store.Health) bool { return h.State == store.Damaged })
		if !strings.Contains(h.Hint, "gastown restore FILE") {
			t.Errorf("the hint is %q", h.Hint)
		}
		err = s.SetMeta(t.Context(), "k", "v")
		if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "gastown restore") {
			t.Errorf("a write gave %v", err)
		}
		if _, err := s.Head(t.Context(), "t"); err != nil {
			t.Errorf("a read of what is whole: %v", err)
		}
		if err := s.Check(t.Context()); !errs.Is(err, errs.Internal) {
			t.Errorf("a check gave %v", err)
		}
		closeStore(t, s)
	}
}

func TestAFullDiskIsAStateThatEndsByItself(t *testing.T) {
	t.Parallel()
	s, news := told(t, t.TempDir(), store.Options{MaxPages: 200})
	defer closeStore(t, s)
	createTown(t, s, "big")
	var err error
	for v := int64(1); err == nil && v < 100; v++ {
		err = commitRow(t, s, "big", v, bytes.Repeat([]byte("x"), 50_000))
	}
	if !errs.Is(err, errs.Unavailable) {
		t.Fatal(err)
	}
	h := until(t, news, func(h store.Health) bool { return h.State != store.Healthy })
	if h.State != store.Full || h.Writable() || !strings.Contains(h.Hint, "free space on the disk of ") {
		t.Fatalf("%+v", h)
	}
	if h := s.Health(); h.State != store.Full {
		t.Fatalf("%+v", h)
	}
	if err := s.DeleteTown(context.WithoutCancel(t.Context()), "big"); err != nil {
		t.Fatal(err)
	}
	until(t, news, func(h store.Health) bool { return h.State == store.Healthy })
}
