package lab_test

import (
	"testing"

	"gastown/internal/lab"
	"gastown/internal/store"
)

// BenchmarkTown10000 measures a town of 10,000 open beads through hall and store.
func BenchmarkTown10000(b *testing.B) {
	s, err := store.Open(b.Context(), b.TempDir(), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	big, err := lab.NewBigTown(b.Context(), s, 10_000)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for _, c := range []struct {
		name string
		once func() error
	}{
		{"load", func() error { return big.Load(b.Context()) }},
		{"settle", func() error { return big.Settle(n) }},
		{"change", func() error { return big.Change(b.Context(), 0, n) }},
		{"conflict", func() error { // two changes, of which the second meets a stale copy
			if err := big.Change(b.Context(), 1, n); err != nil {
				return err
			}
			return big.Change(b.Context(), 0, n)
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n++
				if err := c.once(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
