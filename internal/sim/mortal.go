package sim

import (
	"context"
	"fmt"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// died is what a call of a dead process gets: nobody sees it.
func died() error { return errs.New(errs.Unavailable, "the process is dead") }

// between is run before and after every call to the outside of the process. Others may
// come first, and the process may die.
func (p *process) between() bool {
	p.pause()
	if !p.dead && p.w.fault("crash-in-call", 0) {
		p.dead = true
	}
	return !p.dead
}

// mortalStore is the store as one life of the server sees it.
type mortalStore struct {
	store.Store
	p *process
}

func (s *mortalStore) Commit(ctx context.Context, c store.Commit) (int64, error) {
	w := s.p.w
	if !s.p.between() {
		return 0, died()
	}
	who := w.place(c.Town)
	switch {
	case w.full(), w.fault("commit-refused", who):
		return 0, errs.New(errs.Unavailable, "the disk is full")
	case w.fault("commit-lost", who):
		return 0, store.ErrUnknown
	}
	v, err := s.Store.Commit(ctx, c)
	if err == nil {
		w.wrote("commit of " + w.nameOf(c.Town))
		w.commits++
		w.shadow.commit(c, s.p)
	}
	if !s.p.between() {
		return 0, died()
	}
	if err == nil && w.fault("commit-unknown", who) {
		for _, c := range w.claimed { // perhaps nobody ever knows that they are his
			c.excused = c.excused || c.at.Equal(w.now) && c.By == s.p.boot
		}
		return 0, store.ErrUnknown
	}
	return v, err
}

// wrote tells of a write in a time in which there should be none, but for
// answers that are kept for a day and no longer.
func (w *world) wrote(what string) {
	if what != "PruneIdem" && w.tell != nil && len(w.inQuiet) < 20 {
		w.tell(what)
	}
}

// full reports that the store takes no writes.
func (w *world) full() bool {
	if w.now.Before(w.fullUntil) {
		w.disturbed = w.now
		return true
	}
	return false
}

// reads runs a call that changes nothing.
func reads[T any](s *mortalStore, call func() (T, error)) (T, error) {
	var none T
	if !s.p.between() {
		return none, died()
	}
	if s.p.w.fault("read-failed", 0) {
		return none, errs.New(errs.Unavailable, "the disk does not answer")
	}
	v, err := call()
	if !s.p.between() {
		return none, died()
	}
	return v, err
}

// writes runs a call that changes something beside a commit.
func writes[T any](s *mortalStore, name string, call func() (T, error)) (T, error) {
	var none T
	if !s.p.between() {
		return none, died()
	}
	if s.p.w.full() || s.p.w.fault("write-refused", 0) {
		return none, errs.New(errs.Unavailable, "the disk is full")
	}
	v, err := call()
	s.p.w.wrote(name)
	if !s.p.between() {
		return none, died()
	}
	if err == nil && s.p.w.fault("write-unknown", 0) {
		return none, store.ErrUnknown
	}
	return v, err
}

func wrote(s *mortalStore, name string, call func() error) error {
	_, err := writes(s, name, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

func (s *mortalStore) Load(ctx context.Context, id string, since int64) (store.Head, []store.Row, error) {
	var rows []store.Row
	h, err := reads(s, func() (h store.Head, err error) {
		h, rows, err = s.Store.Load(ctx, id, since)
		return h, err
	})
	return h, rows, err
}

func (s *mortalStore) Head(ctx context.Context, id string) (store.Head, error) {
	return reads(s, func() (store.Head, error) { return s.Store.Head(ctx, id) })
}

func (s *mortalStore) CommitKnown(ctx context.Context, id, commit string) (bool, error) {
	if s.p.w.fault("lookup-failed", 0) {
		return false, errs.New(errs.Unavailable, "the disk does not answer")
	}
	return reads(s, func() (bool, error) { return s.Store.CommitKnown(ctx, id, commit) })
}

func (s *mortalStore) Idem(ctx context.Context, id, key string) (store.Idem, bool, error) {
	var ok bool
	if s.p.forgetful {
		return store.Idem{}, false, nil
	}
	rec, err := reads(s, func() (r store.Idem, err error) {
		r, ok, err = s.Store.Idem(ctx, id, key)
		return r, err
	})
	return rec, ok && err == nil, err
}

func (s *mortalStore) AwakeTowns(ctx context.Context) ([]store.Head, error) {
	return reads(s, func() ([]store.Head, error) { return s.Store.AwakeTowns(ctx) })
}

func (s *mortalStore) BudgetTowns(ctx context.Context) ([]store.Head, error) {
	return reads(s, func() ([]store.Head, error) { return s.Store.BudgetTowns(ctx) })
}

func (s *mortalStore) ServerDays(ctx context.Context, from string, limit int) ([]store.DaySpend, error) {
	return reads(s, func() ([]store.DaySpend, error) { return s.Store.ServerDays(ctx, from, limit) })
}

func (s *mortalStore) NextDue(ctx context.Context) (int64, bool, error) {
	var ok bool
	at, err := reads(s, func() (at int64, err error) {
		at, ok, err = s.Store.NextDue(ctx)
		return at, err
	})
	return at, ok, err
}

func (s *mortalStore) IdleSlice(ctx context.Context, slice, slices int, now int64) ([]store.Head, error) {
	if s.p.dead || s.p.w.fault("read-failed", 0) {
		return nil, died()
	}
	return s.Store.IdleSlice(ctx, slice, slices, now)
}

func (s *mortalStore) Slots(ctx context.Context) ([]store.Slot, error) {
	return reads(s, func() ([]store.Slot, error) { return s.Store.Slots(ctx) })
}

func (s *mortalStore) Waiting(ctx context.Context, limit int) ([]string, error) {
	return reads(s, func() ([]string, error) { return s.Store.Waiting(ctx, limit) })
}

func (s *mortalStore) FindRig(ctx context.Context, rig string) ([]store.RigIndex, error) {
	return reads(s, func() ([]store.RigIndex, error) { return s.Store.FindRig(ctx, rig) })
}

func (s *mortalStore) ClaimDue(ctx context.Context, now, until int64, limit int) ([]store.Head, error) {
	return writes(s, "ClaimDue", func() ([]store.Head, error) { return s.Store.ClaimDue(ctx, now, until, limit) })
}

func (s *mortalStore) Admit(ctx context.Context, id string, now int64, l store.Limits) (store.Admission, error) {
	s.p.w.shadow.admits(id, s.p.boot)
	return writes(s, "Admit", func() (store.Admission, error) { return s.Store.Admit(ctx, id, now, l) })
}

func (s *mortalStore) PutIdem(ctx context.Context, id string, r store.Idem) error {
	return wrote(s, "PutIdem", func() error { return s.Store.PutIdem(ctx, id, r) })
}

func (s *mortalStore) PruneIdem(ctx context.Context, before int64, limit int) (int, error) {
	return writes(s, "PruneIdem", func() (int, error) { return s.Store.PruneIdem(ctx, before, limit) })
}

func (s *mortalStore) PruneLedger(ctx context.Context, id string, before int64, limit int) (int, error) {
	return writes(s, "PruneLedger", func() (int, error) { return s.Store.PruneLedger(ctx, id, before, limit) })
}

func (s *mortalStore) SetMeta(ctx context.Context, key, value string) error {
	return wrote(s, "SetMeta", func() error { return s.Store.SetMeta(ctx, key, value) })
}

func (s *mortalStore) CreateTown(ctx context.Context, h store.Head, rows []store.Row, ledger []store.Entry) error {
	return wrote(s, "CreateTown", func() error {
		err := s.Store.CreateTown(ctx, h, rows, ledger)
		if err == nil {
			s.p.w.shadow.created(h)
		}
		return err
	})
}

func (s *mortalStore) DeleteTown(ctx context.Context, id string) error {
	return wrote(s, "DeleteTown", func() error {
		err := s.Store.DeleteTown(ctx, id)
		if err == nil {
			s.p.w.shadow.deleted(id)
		}
		return err
	})
}

// outer runs a call to the world about a town, which may fail without or with
// its effect, and in which the process may die before or after.
func outer[T any](p *process, id, name string, call func() (T, error)) (T, error) {
	var none T
	if !p.between() {
		return none, died()
	}
	who := p.w.place(id)
	if p.w.fault("effect-failed", who) {
		return none, errs.New(errs.Unavailable, "%s: no answer", name)
	}
	v, err := call()
	if !p.between() {
		return none, died()
	}
	if p.w.fault("effect-unknown", who) {
		return none, errs.New(errs.Unavailable, "%s: connection lost", name)
	}
	return v, err
}

func act(p *process, id, name string, call func() error) error {
	_, err := outer(p, id, name, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// performer checks what the hall performs against what was committed, and ends
// calls whose time is over, as the context of a real one would.
type performer struct {
	hall.Outside
	p *process
}

func (f *performer) Perform(ctx context.Context, t hall.TownRef, e town.Effect) (any, error) {
	p, w := f.p, f.p.w
	until := w.shadow.perform(t.ID, p.boot, e)
	if p.dead {
		return nil, died()
	}
	who := w.place(t.ID)
	if w.fault("effect-slow", who) {
		p.stand(w.now.Add(w.extent(0, slowest)), nil)
	}
	if p.dead || p.Now().After(until) {
		return nil, context.DeadlineExceeded
	}
	if w.fault("effect-forgotten", who) {
		p.stand(w.now.Add(e.Timeout), nil)
		return nil, context.DeadlineExceeded
	}
	if w.fault("effect-twice", who) {
		w.again(p, t, e, until)
	}
	res, err := f.Outside.Perform(ctx, t, e)
	if w.fault("effect-late", who) {
		p.stand(w.now.Add(e.Timeout+w.extent(time.Second, time.Minute)), nil)
	}
	return res, err
}

// again lets an effect happen once more later, as a request does that was on its
// way while its sender gave up. What only this machine does ends with its time;
// what a remote was asked may happen long after.
func (w *world) again(p *process, t hall.TownRef, e town.Effect, until time.Time) {
	late := w.extent(0, time.Hour)
	switch e.Action.(type) {
	case town.Land, town.Publish, town.SendNotice, town.StopSandbox, town.InspectSandbox, town.CheckTarget:
	default:
		late = min(late, max(until.Sub(p.Now()), 0))
	}
	ghost := &process{w: w, boot: "ghost"}
	w.at(late, func() {
		f := hall.Outside{Driver: &mortalDriver{ghost}, Hub: &mortalHub{ghost}, Tokens: &mortalTokens{ghost}, Notifier: &mortalNotifier{ghost},
			Runner: func(hall.TownRef, int64) ([]string, []string) { return []string{"runner"}, nil }}
		_, _ = f.Perform(context.Background(), t, e) // nobody hears of it
	})
}

type mortalTokens struct{ p *process }

func (t *mortalTokens) Sandbox(_ context.Context, ref hall.TownRef, gen int64, at town.Time) ([]byte, error) {
	return outer(t.p, ref.ID, "token", func() ([]byte, error) {
		t.p.w.tokens++
		return fmt.Appendf(nil, "%s.%d.%d", ref.ID, gen, at), nil
	})
}

type mortalNotifier struct{ p *process }

func (n *mortalNotifier) Notify(_ context.Context, t hall.TownRef, _ town.Notice, _ string) error {
	return act(n.p, t.ID, "notify", func() error {
		if n.p.w.now.Before(n.p.w.mute) {
			return errs.New(errs.Unavailable, "nobody answers")
		}
		return nil
	})
}
