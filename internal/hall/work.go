package hall

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// verdict says how an attempt at a batch ended.
type verdict int

const (
	answered verdict = iota // every request got its answer
	again                   // the copy was stale: take a new one
	apart                   // one request may have spoilt it for the others: take them one by one
)

// handle answers all requests of a batch. The caller is the worker of e.
func (h *Hall) handle(ctx context.Context, e *entry, batch []*request) {
	for try := range maxTries {
		if try > 1 {
			h.pause(e.id, try)
		}
		batch = slices.DeleteFunc(batch, func(r *request) bool { return r.settled })
		switch h.attempt(ctx, e, batch) {
		case answered:
			return
		case again:
			e.copy = nil
		case apart:
			e.copy = nil
			for _, r := range batch {
				if !r.settled {
					h.handle(ctx, e, []*request{r})
				}
			}
			return
		}
	}
	for _, r := range batch {
		if r.settled {
			continue
		}
		r.answer(errs.New(errs.Unavailable, "the town changes too fast elsewhere").WithHint("try again"))
	}
}

// pause waits up to 2^try ms, at most 64, so that two processes that keep getting
// in each other's way part. How long follows from who waits, for what and when.
func (h *Hall) pause(id string, try int) {
	f := fnv.New64a()
	fmt.Fprint(f, h.cfg.Boot, id, try, h.now().UnixNano()) // a hash takes everything
	over := make(chan struct{})
	h.cfg.Clock.AfterFunc(time.Duration(f.Sum64()%uint64(time.Millisecond<<min(try, 6))), func() { close(over) })
	if w, ok := h.cfg.Exec.(Waiter); ok {
		w.Wait(over)
		return
	}
	<-over
}

// alarmed reports whether a batch came from the alarm.
func alarmed(batch []*request) bool {
	return slices.ContainsFunc(batch, func(r *request) bool { return r.due != 0 })
}

// turn is one attempt at a batch.
type turn struct {
	h       *Hall
	ctx     context.Context
	e       *entry
	c       *copyOf
	now     time.Time
	fresh   bool // the copy's version was read after every request of the batch arrived
	ticks   bool // nothing but ticks is asked
	ask     []*request
	refused map[*request]error
	claims  []town.Effect
}

func (h *Hall) attempt(ctx context.Context, e *entry, batch []*request) verdict {
	tn := &turn{h: h, ctx: ctx, e: e, refused: map[*request]error{}}
	if e.copy == nil {
		if slices.ContainsFunc(batch, func(r *request) bool { _, tick := r.in.(town.Tick); return tick }) {
			h.metrics.TickLoads.Add(1)
		}
		c, err := h.load(ctx, e.id)
		if err != nil {
			h.loadFailed(ctx, c, err, alarmed(batch))
			h.deaf(e.id)
			for _, r := range batch {
				r.answer(plain(err))
			}
			return answered
		}
		e.copy, tn.fresh = c, true
	}
	tn.c, tn.now = e.copy, h.now()
	day, err := h.today(ctx, tn.now)
	if err != nil {
		return tn.failOr(answered, err, batch)
	}
	tn.c.t.SetServerDay(day)
	tn.c.t.SetOffers(h.offers())
	var views []*request
	for _, r := range batch {
		if r.view != nil {
			views = append(views, r)
		} else {
			tn.ask = append(tn.ask, r)
		}
	}
	if len(views) > 0 {
		if v, err := tn.refresh(); err != nil || v != answered {
			return tn.failOr(v, err, batch)
		}
		tn.show(views)
	}
	if len(tn.ask) == 0 {
		return answered
	}
	if e.copy == nil {
		return again // a view broke it
	}
	return tn.change()
}

// refresh makes sure that the copy is what is committed now.
func (tn *turn) refresh() (verdict, error) {
	if tn.fresh {
		return answered, nil
	}
	ctx, cancel := storeCtx(tn.ctx)
	defer cancel()
	head, err := tn.h.cfg.Store.Head(ctx, tn.e.id)
	if err != nil {
		return answered, err
	}
	if head.Version != tn.c.head.Version {
		return again, nil
	}
	tn.fresh = true
	return answered, nil
}

// failOr answers all of rs with err, or passes the verdict on.
func (tn *turn) failOr(v verdict, err error, rs []*request) verdict {
	if err == nil {
		return v
	}
	tn.e.copy = nil
	for _, r := range rs {
		r.answer(plain(err))
	}
	return answered
}

// plain turns a failure of a town's own state into an error for its caller.
func plain(err error) error {
	var b *brokenError
	if errors.As(err, &b) {
		return &errs.Error{Kind: errs.Internal, Message: "the state or the rules of this town are broken", Err: b.error,
			Hint: "other towns are not affected; the server's log has the details"}
	}
	return err
}

func (tn *turn) show(views []*request) {
	for _, r := range views {
		err := guard(func() error { return r.view(tn.c.t, tn.now) })
		if panicked(err) {
			tn.h.metrics.Panics.Add(1)
			tn.h.cfg.Log.Error("a view of a town panicked", "town", tn.e.id, "err", err)
			tn.e.copy = nil
		}
		r.answer(plain(err))
	}
}

// change lets the town handle all inputs, commits, answers and performs.
func (tn *turn) change() verdict {
	h := tn.h
	var com store.Commit
	dirty := false
	err := guard(func() (err error) {
		dirty, com, err = tn.decide()
		return err
	})
	if err != nil {
		return tn.spoilt(err)
	}
	if !dirty {
		if !tn.ticks || h.cfg.Shared { // a stale copy must not put an alarm off
			if v, err := tn.refresh(); err != nil || v != answered {
				return tn.failOr(v, err, tn.ask)
			}
		}
		h.listened(tn.c)
		tn.answerAll()
		tn.maybeForget()
		return answered
	}
	version, err := tn.commit(com)
	if err != nil {
		return tn.notCommitted(com, err)
	}
	tn.count(com)
	tn.c.committed(com, version)
	tn.done(com)
	return answered
}

// count notes what a commit means, before the copy takes its columns.
func (tn *turn) count(com store.Commit) {
	m, was, sb := &tn.h.metrics, tn.c.head.Columns, tn.c.t.Sandbox()
	if com.Columns.Generation > was.Generation {
		hold, _, _ := strings.Cut(sb.StartHold, " ")
		m.started(hold)
	}
	m.Renewals.Add(sb.Renewals - tn.c.renewals)
	tn.c.renewals = sb.Renewals
	if com.Columns.IdleMS != was.IdleMS {
		tn.h.alarm.ownChanged(tn.now, com.Columns.IdleMS)
	}
}

// done follows a commit: replies first, then everything that it sets in motion.
func (tn *turn) done(com store.Commit) {
	h := tn.h
	h.metrics.Commits.Add(1)
	h.day.spent(com.Spend)
	h.listened(tn.c)
	tn.answerAll()
	h.alarm.poke(town.Time(com.Columns.DueAt).Time())
	h.changed(com.Town)
	if com.Slot != store.SlotKeep {
		h.spawn(h.pokeWaiting)
	}
	h.perform(tn.e, tn.c.ref(), tn.claims)
	tn.reoffered()
	tn.maybeForget()
}

// maybeForget ends a town of which only the rows are left.
func (tn *turn) maybeForget() {
	if tn.c.t.Info().Removed {
		tn.h.forget(tn.ctx, tn.e)
	}
}

// decide runs the rules and builds the commit; dirty says whether there is
// anything to write.
func (tn *turn) decide() (dirty bool, com store.Commit, err error) {
	h, c := tn.h, tn.c
	h.alarm.notice(tn.now)
	at, settled := int64(town.At(tn.now)), tn.hear()
	var idem []store.Idem
	tn.ticks = true
	slotAsked, noSlot, write := false, false, false
	for _, r := range tn.ask {
		if r.due != 0 {
			c.head.DueAt = r.due
		}
		if r.stored != nil && r.stored.Version == c.head.Version {
			c.head.Columns = r.stored.Columns // so that what differs is written
		}
		slotAsked, noSlot, write = slotAsked || r.slot, noSlot || r.noSlot, write || r.write
		if _, tick := r.in.(town.Tick); !tick {
			tn.ticks = false
		}
		if r.in == nil {
			continue
		}
		if err := c.t.Handle(tn.now, r.in); err != nil {
			tn.refused[r] = err
			continue
		}
		settled = true
		if r.idem != nil {
			r.status, r.body = r.respond(c.t)
			idem = append(idem, store.Idem{Key: r.idem.Key, Hash: r.idem.Hash, Status: r.status, Body: r.body, At: at})
		}
	}
	if !settled { // a deadline that passed since the rules ran would be missing in columns as of now
		if err := c.t.Handle(tn.now, town.Tick{}); err != nil {
			return false, com, err
		}
	}
	c.settled = tn.now
	tn.claims = c.t.Claim(tn.now, h.cfg.Boot)
	changed := c.t.Changes()
	rows, entries, err := encode(changed, c.t.Entries())
	if err != nil {
		return false, com, err
	}
	com = store.Commit{Town: c.head.ID, Expect: c.head.Version, CommitID: h.cfg.NewID(), At: at, Columns: h.columnsOf(c.t, tn.now),
		Rows: rows, Ledger: entries, Idem: idem, Rigs: c.rigChanges(changed),
		Spend: spend(c.t.TakeSpend()), Limits: store.DayLimits{Runs: h.day.limit.Runs, Tokens: h.day.limit.Tokens, Cost: h.day.limit.Cost}}
	com.Slot = slotChange(c.head.Columns, com.Columns)
	if slotAsked && com.Columns.Sandbox == store.Asleep {
		com.Slot = store.SlotRelease
	}
	if noSlot && com.Slot == store.SlotKeep && town.SandboxState(com.Columns.Sandbox).Running() {
		com.Slot = store.SlotAwake
	}
	dirty = len(rows)+len(entries)+len(idem) > 0 || com.Slot != store.SlotKeep || com.Columns != c.head.Columns
	soon := tn.ticks || c.head.DueAt <= com.Columns.DueAt
	if dirty && !write && soon && onlyDue(com, c.head.Columns) && (c.running() || h.busy(tn.e)) {
		dirty = false // it is looked at in memory until then; c.head says what is stored
	}
	return dirty, com, nil
}

// hear tells a town of a silence of the server, and reports whether its rules ran.
func (tn *turn) hear() bool {
	if !tn.h.unheard(tn.c) {
		return false
	}
	err := tn.c.t.Handle(tn.now, town.Unheard{})
	if err != nil {
		tn.h.cfg.Log.Warn("a town refused to hear of the silence", "town", tn.c.head.ID, "err", err)
	}
	return err == nil
}

// onlyDue reports a commit that would only move the deadline.
func onlyDue(com store.Commit, was store.Columns) bool {
	if len(com.Rows)+len(com.Ledger)+len(com.Idem) > 0 || com.Slot != store.SlotKeep || was.DueAt == 0 {
		return false
	}
	was.DueAt = com.Columns.DueAt
	return was == com.Columns
}

// busy reports effects under way.
func (h *Hall) busy(e *entry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.effects > 0
}

func (tn *turn) commit(com store.Commit) (int64, error) {
	ctx, cancel := storeCtx(tn.ctx)
	defer cancel()
	return tn.h.cfg.Store.Commit(ctx, com)
}

func (tn *turn) answerAll() {
	tn.h.metrics.Inputs.Add(int64(len(tn.ask)))
	tn.h.metrics.Refused.Add(int64(len(tn.refused)))
	for _, r := range tn.ask {
		if err := tn.refused[r]; err == nil || r.idem == nil || !tn.replay(r) {
			r.answer(err)
		}
	}
}

// replay answers a request from the record of an earlier one with its key, if
// there is one: a repeat that overtook the look-up before it was queued is
// refused by the rules, because what it asks for was done.
func (tn *turn) replay(r *request) bool {
	rec, ok, err := tn.h.recorded(tn.ctx, tn.e.id, r.idem.Key, r.idem.Hash)
	if err != nil || !ok {
		return false
	}
	r.status, r.body, r.replayed = rec.Status, rec.Body, true
	r.answer(nil)
	return true
}

// spoilt is the end of an attempt in which the rules broke.
func (tn *turn) spoilt(err error) verdict {
	if panicked(err) {
		tn.h.metrics.Panics.Add(1)
	}
	tn.e.copy = nil
	if len(tn.ask) > 1 {
		return apart
	}
	tn.h.cfg.Log.Error("the rules of a town broke", "town", tn.e.id, "input", inputName(tn.ask[0].in), "err", err)
	tn.h.markFailing(tn.ctx, tn.c.head, err, alarmed(tn.ask))
	tn.ask[0].answer(plain(&brokenError{err}))
	return answered
}

// notCommitted is the end of an attempt whose commit failed. The copy is ahead
// of the store: it goes.
func (tn *turn) notCommitted(com store.Commit, err error) verdict {
	h := tn.h
	tn.e.copy = nil
	switch {
	case errors.Is(err, store.ErrVersion):
		h.metrics.Conflicts.Add(1)
		return again
	case errors.Is(err, store.ErrBudget):
		h.day.forget()
		return again
	case errors.Is(err, store.ErrUnknown):
		h.day.forget()
		h.metrics.Unknown.Add(1)
		return tn.unknown(com, err)
	case errs.Is(err, errs.Unavailable), errs.Is(err, errs.NotFound):
		h.deaf(tn.e.id)
		return tn.failOr(answered, err, tn.ask)
	case len(tn.ask) > 1:
		return apart
	case errors.Is(err, store.ErrReplay) && tn.ask[0].idem != nil:
		if !tn.replay(tn.ask[0]) {
			tn.ask[0].answer(err)
		}
		return answered
	}
	if !errs.Is(err, errs.Conflict) {
		h.cfg.Log.Error("a town could not be committed", "town", tn.e.id, "err", err)
		h.markFailing(tn.ctx, tn.c.head, err, alarmed(tn.ask))
	}
	tn.ask[0].answer(err)
	return answered
}

// unknown finds out whether a commit happened, as far as that can be known. A
// commit that is found is as good as any other: its claims are performed.
func (tn *turn) unknown(com store.Commit, cause error) verdict {
	h := tn.h
	ctx, cancel := storeCtx(tn.ctx)
	defer cancel()
	if known, err := h.cfg.Store.CommitKnown(ctx, com.Town, com.CommitID); err == nil && known {
		tn.count(com)
		tn.c.committed(com, com.Expect+1)
		tn.done(com)
		return answered
	}
	h.deaf(com.Town)
	for _, r := range tn.ask {
		if r.idem != nil {
			// The key may prove what the commit id can't: a later commit may have followed.
			if tn.replay(r) {
				continue
			}
		}
		r.answer(errs.Wrap(errs.Unavailable, cause, "it is not known whether this happened"))
	}
	h.alarm.poke(tn.now)
	return answered
}

// panicError is a recovered panic.
type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// guard turns a panic of f into an error.
func guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &brokenError{&panicError{v, debug.Stack()}}
		}
	}()
	return f()
}

func panicked(err error) bool {
	var p *panicError
	return errors.As(err, &p)
}

func inputName(in town.Input) string {
	if in == nil {
		return "slot"
	}
	return town.InputName(in)
}
