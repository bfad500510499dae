package storetest

import (
	"errors"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/store"
)

func TestMemoryConforms(t *testing.T) {
	t.Parallel()
	Run(t, func(t *testing.T) store.Store { return NewMemory() })
}

func TestFaultyWithoutFaultsConforms(t *testing.T) {
	t.Parallel()
	Run(t, func(t *testing.T) store.Store { return &Faulty{Store: NewMemory()} })
}

func TestReopenedMemoryHasTheSameData(t *testing.T) {
	t.Parallel()
	m := NewMemory()
	if err := m.SetMeta(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	again := m.Reopen()
	if _, _, err := m.Meta(t.Context(), "k"); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("the old store still answers: %v", err)
	}
	if v, _, err := again.Meta(t.Context(), "k"); err != nil || v != "v" {
		t.Fatalf("got %q, %v", v, err)
	}
}

func TestFaultsDoWhatTheySay(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fault         Fault
		done, unknown bool
	}{
		{FaultNone, true, false}, {FaultFail, false, false}, {FaultFull, false, false},
		{FaultUnknownLost, false, true}, {FaultUnknownDone, true, true},
	} {
		m := NewMemory()
		if err := m.CreateTown(t.Context(), store.Head{ID: "t", Name: "t"}, nil, nil); err != nil {
			t.Fatal(err)
		}
		f := &Faulty{Store: m, Next: func(op, town string) Fault { return test.fault }}
		_, err := f.Commit(t.Context(), store.Commit{Town: "t", Expect: 1, CommitID: "c"})
		if (err == nil) != (test.fault == FaultNone) || errors.Is(err, store.ErrUnknown) != test.unknown {
			t.Errorf("fault %d: got %v", test.fault, err)
		}
		if err != nil && !errs.Is(err, errs.Unavailable) {
			t.Errorf("fault %d: kind %q", test.fault, errs.KindOf(err))
		}
		if done, err := m.CommitKnown(t.Context(), "t", "c"); err != nil || done != test.done {
			t.Errorf("fault %d: done %v, %v", test.fault, done, err)
		}
		if _, err := f.Head(t.Context(), "t"); (err == nil) != (test.fault == FaultNone) {
			t.Errorf("fault %d: a read gave %v", test.fault, err)
		}
	}
}
