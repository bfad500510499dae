package store_test

import (
	"testing"

	"gastown/internal/store"
	"gastown/internal/store/storetest"
)

func openSQLite(t testing.TB, dir string, opts store.Options) *store.SQLite {
	t.Helper()
	s, err := store.Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

func TestSQLiteConforms(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return openSQLite(t, t.TempDir(), store.Options{CacheKiB: 2048}) })
}
