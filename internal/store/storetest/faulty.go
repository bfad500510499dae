package storetest

import (
	"context"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// Fault is what happens to one call on a Faulty store.
type Fault int

// The faults. All but FaultUnknownDone leave the store as it was.
const (
	FaultNone        Fault = iota
	FaultFail              // fails with Unavailable, nothing is done
	FaultFull              // fails as a full disk does, nothing is done
	FaultUnknownLost       // reports store.ErrUnknown, nothing is done
	FaultUnknownDone       // does it, then reports store.ErrUnknown
)

// Faulty is a Store around another one that fails when Next says so. Reads know
// only FaultFail; for them every fault is that one.
type Faulty struct {
	store.Store
	// Next chooses the fault of a call. op is the method's name, town its town
	// where it has one. It may also record, count, or cancel something.
	Next func(op, town string) Fault
}

var _ store.Store = (*Faulty)(nil)

func (f *Faulty) next(op, town string) Fault {
	if f.Next == nil {
		return FaultNone
	}
	return f.Next(op, town)
}

func (f *Faulty) read(op, town string) error {
	if f.next(op, town) != FaultNone {
		return errs.New(errs.Unavailable, "%s: a fault was asked for", op)
	}
	return nil
}

// write runs do unless the fault forbids it.
func (f *Faulty) write(op, town string, do func() error) error {
	switch f.next(op, town) {
	case FaultFail:
		return errs.New(errs.Unavailable, "%s: a fault was asked for", op)
	case FaultFull:
		return errs.New(errs.Unavailable, "the store can't write: the disk is full")
	case FaultUnknownLost:
		return store.ErrUnknown
	case FaultUnknownDone:
		if err := do(); err != nil {
			return err
		}
		return store.ErrUnknown
	}
	return do()
}

// CreateTown implements store.Store.
func (f *Faulty) CreateTown(ctx context.Context, h store.Head, rows []store.Row, ledger []store.Entry) error {
	return f.write("CreateTown", h.ID, func() error { return f.Store.CreateTown(ctx, h, rows, ledger) })
}

// Commit implements store.Store.
func (f *Faulty) Commit(ctx context.Context, c store.Commit) (v int64, err error) {
	err = f.write("Commit", c.Town, func() (err error) { v, err = f.Store.Commit(ctx, c); return err })
	if err != nil {
		return 0, err
	}
	return v, nil
}

// ClaimDue implements store.Store.
func (f *Faulty) ClaimDue(ctx context.Context, now, until int64, limit int) (h []store.Head, err error) {
	err = f.write("ClaimDue", "", func() (err error) { h, err = f.Store.ClaimDue(ctx, now, until, limit); return err })
	if err != nil {
		return nil, err
	}
	return h, nil
}

// PutIdem implements store.Store.
func (f *Faulty) PutIdem(ctx context.Context, town string, r store.Idem) error {
	return f.write("PutIdem", town, func() error { return f.Store.PutIdem(ctx, town, r) })
}

// Admit implements store.Store.
func (f *Faulty) Admit(ctx context.Context, town string, now int64, l store.Limits) (a store.Admission, err error) {
	err = f.write("Admit", town, func() (err error) { a, err = f.Store.Admit(ctx, town, now, l); return err })
	if err != nil {
		return store.Admission{}, err
	}
	return a, nil
}

// AppendTranscript implements store.Store.
func (f *Faulty) AppendTranscript(ctx context.Context, chunks []store.Chunk) error {
	return f.write("AppendTranscript", "", func() error { return f.Store.AppendTranscript(ctx, chunks) })
}

// DeleteTown implements store.Store.
func (f *Faulty) DeleteTown(ctx context.Context, id string) error {
	return f.write("DeleteTown", id, func() error { return f.Store.DeleteTown(ctx, id) })
}

// SetMeta implements store.Store.
func (f *Faulty) SetMeta(ctx context.Context, key, value string) error {
	return f.write("SetMeta", "", func() error { return f.Store.SetMeta(ctx, key, value) })
}

// Find implements store.Store.
func (f *Faulty) Find(ctx context.Context, nameOrID string) (store.Head, error) {
	if err := f.read("Find", nameOrID); err != nil {
		return store.Head{}, err
	}
	return f.Store.Find(ctx, nameOrID)
}

// Head implements store.Store.
func (f *Faulty) Head(ctx context.Context, id string) (store.Head, error) {
	if err := f.read("Head", id); err != nil {
		return store.Head{}, err
	}
	return f.Store.Head(ctx, id)
}

// Load implements store.Store.
func (f *Faulty) Load(ctx context.Context, id string, since int64) (store.Head, []store.Row, error) {
	if err := f.read("Load", id); err != nil {
		return store.Head{}, nil, err
	}
	return f.Store.Load(ctx, id, since)
}

// CommitKnown implements store.Store.
func (f *Faulty) CommitKnown(ctx context.Context, town, commitID string) (bool, error) {
	if err := f.read("CommitKnown", town); err != nil {
		return false, err
	}
	return f.Store.CommitKnown(ctx, town, commitID)
}

// Idem implements store.Store.
func (f *Faulty) Idem(ctx context.Context, town, key string) (store.Idem, bool, error) {
	if err := f.read("Idem", town); err != nil {
		return store.Idem{}, false, err
	}
	return f.Store.Idem(ctx, town, key)
}

// BudgetTowns implements store.Store.
func (f *Faulty) BudgetTowns(ctx context.Context) ([]store.Head, error) {
	if err := f.read("BudgetTowns", ""); err != nil {
		return nil, err
	}
	return f.Store.BudgetTowns(ctx)
}

// ServerDays implements store.Store.
func (f *Faulty) ServerDays(ctx context.Context, from string, limit int) ([]store.DaySpend, error) {
	if err := f.read("ServerDays", ""); err != nil {
		return nil, err
	}
	return f.Store.ServerDays(ctx, from, limit)
}

// IdleSlice implements store.Store.
func (f *Faulty) IdleSlice(ctx context.Context, slice, slices int, now int64) ([]store.Head, error) {
	if err := f.read("IdleSlice", ""); err != nil {
		return nil, err
	}
	return f.Store.IdleSlice(ctx, slice, slices, now)
}

// IdleOwn implements store.Store.
func (f *Faulty) IdleOwn(ctx context.Context, from, to int64) ([]store.Head, int64, error) {
	if err := f.read("IdleOwn", ""); err != nil {
		return nil, 0, err
	}
	return f.Store.IdleOwn(ctx, from, to)
}
