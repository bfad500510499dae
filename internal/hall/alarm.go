package hall

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	loopMax   = 10 * time.Second // longest pause of the loop
	loopGap   = 15 * time.Second // at most; the loop ran so much later than it meant to: nobody listened
	loopRetry = time.Second      // after the store failed
)

// wanted is a town to tick. stored is its head as an idle look read it, when it
// contradicts itself: a copy in memory doesn't know of a row damaged by hand.
type wanted struct {
	id     string
	stored *store.Head
}

// alarm is the loop that brings time to towns.
type alarm struct {
	h         *Hall
	poked     chan struct{} // capacity 1
	unclaimed bool          // the last step could not claim due towns; of the loop alone

	mu      sync.Mutex // guards all below
	next    time.Time  // when the loop means to run again; zero while it runs
	queue   []wanted   // towns to tick that need no claim
	queued  map[string]bool
	ticks   int  // under way
	boot    bool // running towns were not looked at since the last silence
	budgets bool // towns that wait for a budget were looked at since the process began
	ran     time.Time
	idle    idleLooks
	sweepAt time.Time
	sweep   sweep
	house   house

	over    bool               // Stop was called: Start does nothing
	cancel  context.CancelFunc // of the loop, nil before Start
	stopped chan struct{}      // closed when it ended
}

func (a *alarm) init(h *Hall) {
	a.h, a.poked, a.queued, a.boot = h, make(chan struct{}, 1), map[string]bool{}, true
}

// Start begins the alarm loop, the watch over the driver's exits and the sweep.
// It ends with ctx or Stop. Starting twice, or after Stop, does nothing.
func (h *Hall) Start(ctx context.Context) {
	a := &h.alarm
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil || a.over {
		return
	}
	ctx, a.cancel = context.WithCancel(ctx)
	a.stopped = make(chan struct{})
	go a.loop(ctx, a.stopped)
}

func (a *alarm) stop() {
	a.mu.Lock()
	a.over = true
	cancel, stopped := a.cancel, a.stopped
	a.mu.Unlock()
	if cancel != nil {
		cancel()
		<-stopped
	}
}

func (a *alarm) loop(ctx context.Context, stopped chan struct{}) {
	defer close(stopped)
	var exits <-chan sandbox.Ref
	if a.h.cfg.Driver != nil {
		exits = a.h.cfg.Driver.Exits()
	}
	for ctx.Err() == nil {
		next := a.h.Step(ctx)
		stop := a.h.cfg.Clock.AfterFunc(next.Sub(a.h.now()), a.wake)
		select {
		case <-ctx.Done():
		case <-a.poked:
		case ref := <-exits:
			a.h.spawn(func() { a.h.Exited(ref) })
		}
		stop()
	}
}

// poke makes the loop run at t if it meant to run later; the zero time is no time.
func (a *alarm) poke(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.IsZero() || a.next.IsZero() || !t.Before(a.next) {
		return
	}
	a.next = t
	a.wake()
}

func (a *alarm) wake() {
	select {
	case a.poked <- struct{}{}:
	default:
	}
}

// Next returns when the loop means to run again, for a simulator that calls Step itself.
func (h *Hall) Next() time.Time {
	h.alarm.mu.Lock()
	defer h.alarm.mu.Unlock()
	return h.alarm.next
}

// Step does everything that is due now and returns when to call it again. The
// loop calls it; so does a simulator instead of Start. It starts work through the
// executor and does not wait for it.
func (h *Hall) Step(ctx context.Context) time.Time {
	a := &h.alarm
	now := h.now()
	a.begin(now)
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	next := now.Add(loopMax)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if err := a.wakeUp(ctx); err != nil {
		h.cfg.Log.Warn("running towns could not be listed", "err", err)
		sooner(now.Add(loopRetry))
	}
	sooner(h.looks(now))
	if err := a.idleLook(ctx, now); err != nil {
		h.cfg.Log.Warn("idle towns could not be looked at", "err", err)
	}
	a.maybeSweep(now)
	a.maybeKeepHouse(now)
	due, err := a.dispatch(ctx, now)
	if err != nil && ctx.Err() == nil {
		if !a.unclaimed { // once: it is tried each second, for as long as a disk is full
			h.cfg.Log.Warn("due towns could not be claimed", "err", err)
		}
		sooner(now.Add(loopRetry))
	}
	a.unclaimed = err != nil
	sooner(due)
	return a.end(next)
}

// begin is the begin of a step.
func (a *alarm) begin(now time.Time) {
	a.notice(now)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ran, a.next = now, time.Time{}
}

// notice sees that nobody listened for a while: the loop is much later than it
// meant to be, its step takes very long, or the clock was put back. Inputs ask too, because one may be
// handled before the loop runs.
func (a *alarm) notice(now time.Time) {
	a.mu.Lock()
	meant := &a.next
	if meant.IsZero() {
		meant = &a.ran // a step is under way
	}
	gap := !meant.IsZero() && now.Sub(*meant) > a.h.silenceFor()
	if a.ran.Sub(now) > a.h.silenceFor() { // the clock was put back: stored times lie in the future
		gap, a.ran = true, now
	}
	if gap {
		a.boot, *meant = true, now
	}
	a.mu.Unlock()
	if gap {
		a.h.cfg.Log.Info("the server did not run for a while; silence of sandboxes until now proves nothing")
		a.h.mu.Lock()
		a.h.silence++
		a.h.mu.Unlock()
	}
}

// silenceFor is how late the loop must be for silence to prove nothing: well
// below the shortest lease that the server's settings give.
func (h *Hall) silenceFor() time.Duration {
	return min(loopGap, h.serverDuration("lease")/3)
}

// end says when to run again. What was queued while the step ran is seen too.
func (a *alarm) end(next time.Time) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range []time.Time{a.idle.sliceAt, a.idle.ownAt, a.sweepAt, a.house.at} {
		next = earliest(next, t)
	}
	a.next = next
	if len(a.queue) > 0 && a.ticks < a.h.cfg.MaxTicks {
		a.next = a.ran
		a.wake()
	}
	return a.next
}

// earliest returns the earlier of two times, of which zero ones don't count.
func earliest(t, u time.Time) time.Time {
	if t.IsZero() || !u.IsZero() && u.Before(t) {
		return u
	}
	return t
}

// unheard reports that nobody listened to a town's sandbox since it was last told so.
func (h *Hall) unheard(c *copyOf) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return c.head.Sandbox != store.Asleep && h.heard[c.head.ID] != h.silence
}

// listened records that a town knows of the latest silence.
func (h *Hall) listened(c *copyOf) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.head.Sandbox == store.Asleep {
		delete(h.heard, c.head.ID)
	} else {
		h.heard[c.head.ID] = h.silence
	}
}

// deaf records that something said to a town was not taken, because the store
// did not work: the silence of its sandbox until now proves nothing.
func (h *Hall) deaf(townID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.heard, townID)
}

// wakeUp queues all running towns, once after each silence, and at boot those
// that wait for a budget. A few of them are ticked at a time.
func (a *alarm) wakeUp(ctx context.Context) error {
	a.mu.Lock()
	boot, budgets := a.boot, a.budgets
	a.mu.Unlock()
	if !boot {
		return nil
	}
	heads, err := a.h.cfg.Store.AwakeTowns(ctx)
	if err != nil {
		return err
	}
	if !budgets { // the limits may have been raised, or an agent installed, while nothing ran
		parked, err := a.h.cfg.Store.BudgetTowns(ctx)
		if err != nil {
			return err
		}
		heads = append(heads, parked...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.boot, a.budgets = false, true
	for _, head := range heads {
		a.addLocked(wanted{id: head.ID})
	}
	return nil
}

func (a *alarm) addLocked(w wanted) {
	if !a.queued[w.id] {
		a.queued[w.id] = true
		a.queue = append(a.queue, w)
	}
}

// dispatch starts ticks, no more at once than allowed: first those that need no
// claim, then due towns, the most overdue first. It returns the next deadline.
func (a *alarm) dispatch(ctx context.Context, now time.Time) (time.Time, error) {
	h := a.h
	a.mu.Lock()
	free := h.cfg.MaxTicks - a.ticks
	n := min(max(free, 0), len(a.queue))
	first := slices.Clone(a.queue[:n])
	a.queue = slices.Delete(a.queue, 0, n)
	for _, w := range first {
		delete(a.queued, w.id)
	}
	a.ticks += n
	free -= n
	a.mu.Unlock()
	for _, w := range first {
		a.start(w, 0)
	}
	if free <= 0 {
		return time.Time{}, nil // a tick that ends wakes the loop
	}
	next, ok, err := h.cfg.Store.NextDue(ctx)
	if err != nil || !ok {
		return time.Time{}, err
	}
	at := int64(town.At(now))
	if next > at {
		return town.Time(next).Time(), nil
	}
	until := at + claimFor.Milliseconds()
	heads, err := h.cfg.Store.ClaimDue(ctx, at, until, free)
	if err != nil {
		return time.Time{}, err
	}
	a.mu.Lock()
	a.ticks += len(heads)
	a.mu.Unlock()
	h.metrics.Claimed.Add(int64(len(heads)))
	for _, head := range heads {
		h.metrics.wasLate(at - head.DueAt)
		a.start(wanted{id: head.ID}, until)
	}
	return now.Add(time.Millisecond), nil // there may be more, and the next deadline is not known
}

func (a *alarm) start(w wanted, due int64) {
	if !a.h.spawn(func() { a.h.tick(w, due); a.ended() }) {
		a.ended()
	}
}

func (a *alarm) ended() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ticks--
	if a.ticks == a.h.cfg.MaxTicks-1 {
		a.wake() // the loop may have been waiting for a place
		if !a.next.IsZero() {
			a.next = a.ran
		}
	}
}

// tick lets time act on one town.
func (h *Hall) tick(w wanted, due int64) {
	h.metrics.Ticks.Add(1)
	// A failure is recorded with the town, or its claim runs out and it is tried again.
	if err := h.submit(h.background, w.id, &request{in: town.Tick{}, due: due, stored: w.stored, own: true}); err != nil {
		h.cfg.Log.Debug("a tick failed", "town", w.id, "err", err)
	}
}

// looks looks at the running towns in memory whose time has come, without any
// read or write, and queues those with something to do. It returns when the next
// one's time comes.
func (h *Hall) looks(now time.Time) (next time.Time) {
	h.mu.Lock()
	var due []*entry
	for _, e := range h.entries {
		if e.lookAt.IsZero() || e.working || e.copy == nil {
			continue
		}
		if e.lookAt.After(now) {
			next = earliest(next, e.lookAt)
			continue
		}
		h.takeLocked(e)
		due = append(due, e)
	}
	h.mu.Unlock()
	slices.SortFunc(due, func(a, b *entry) int { return cmp.Compare(a.id, b.id) })
	for _, e := range due {
		h.metrics.Looks.Add(1)
		todo := !e.wakeAt.IsZero() && !e.wakeAt.After(now)
		if err := guard(func() error {
			todo = todo || len(e.copy.t.Effects(now)) > 0
			return nil
		}); err != nil {
			e.copy, todo = nil, true // the tick breaks too, and records it
		}
		h.leave(e)
		if todo {
			h.alarm.mu.Lock()
			h.alarm.addLocked(wanted{id: e.id})
			h.alarm.mu.Unlock()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range due {
		next = earliest(next, e.lookAt)
	}
	return next
}
