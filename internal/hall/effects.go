package hall

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	maxErrText = 600 // bytes of a failure that go into a town's state
	feedTries  = 4   // deliveries of an effect's outcome; after that its claim runs out
)

// spawn runs f beside the caller, unless the hall is stopping, and lets Stop
// wait for it.
func (h *Hall) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state != hallOpen {
		return false
	}
	h.flying++
	h.cfg.Exec.Go(func() {
		defer h.landOne()
		f()
	})
	return true
}

func (h *Hall) landOne() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flying--
	if h.flying == 0 && h.landed != nil {
		close(h.landed)
		h.landed = nil
	}
}

// perform starts the effects that a commit claimed. What is not started because
// the hall stops stays claimed; the next boot voids that.
func (h *Hall) perform(e *entry, ref TownRef, claims []town.Effect) {
	for _, eff := range claims {
		h.mu.Lock()
		e.effects++
		h.mu.Unlock()
		if !h.spawn(func() { h.performOne(e, ref, eff) }) {
			h.mu.Lock()
			e.effects--
			h.mu.Unlock()
		}
	}
}

func (h *Hall) performOne(e *entry, ref TownRef, eff town.Effect) {
	name := town.ActionName(eff.Action)
	begin := h.now()
	ctx, cancel := context.WithTimeout(h.background, eff.Timeout)
	var result any
	err := guard(func() (err error) {
		if _, ok := eff.Action.(town.Admit); ok {
			result, err = h.admit(ctx, ref.ID)
			return err
		}
		if _, ok := eff.Action.(town.StartSandbox); ok {
			h.metrics.Starts.Add(1)
		}
		result, err = h.cfg.Perform.Perform(ctx, ref, eff)
		return err
	})
	cancel()
	if err != nil {
		result = nil
	}
	h.metrics.effect(name, err != nil, h.now().Sub(begin))
	if err != nil {
		h.cfg.Log.Warn("an effect failed", "town", ref.Name, "action", name, "key", eff.Key, "err", err)
	}

	h.mu.Lock()
	e.effects--
	h.mu.Unlock()
	granted, _ := result.(town.Admitted)
	h.feed(ref.ID, town.EffectDone{Key: eff.Key, ID: eff.ID, Err: errText(err), Result: result}, granted.Granted, 1)
}

// feed delivers the outcome of an effect. The town takes it once: a repeat finds
// its claim gone. A delivery that never succeeds costs only a repeat of the
// effect, after its claim ran out.
func (h *Hall) feed(id string, done town.EffectDone, slot bool, try int) {
	err := h.submit(h.background, id, &request{in: done, slot: slot, own: true})
	switch k := errs.KindOf(err); {
	case err == nil, k == errs.Gone, k == errs.NotFound, k == errs.Conflict, k == errs.Invalid:
		return
	case try >= feedTries || h.background.Err() != nil:
		h.cfg.Log.Warn("the outcome of an effect could not be recorded; it will be repeated", "town", id, "key", done.Key, "err", err)
		return
	}
	h.cfg.Clock.AfterFunc(feedPause<<try, func() {
		h.spawn(func() { h.feed(id, done, slot, try+1) })
	})
}

// errText is what of a failure goes into the town's state.
func errText(err error) string {
	if err == nil {
		return ""
	}
	s := strings.ToValidUTF8(err.Error(), "?")
	if s == "" {
		s = "failed without a word"
	}
	if len(s) > maxErrText {
		s = strings.ToValidUTF8(s[:maxErrText], "") + "…"
	}
	return s
}

func (h *Hall) admit(ctx context.Context, id string) (town.Admitted, error) {
	a, err := h.cfg.Store.Admit(ctx, id, int64(town.At(h.now())), h.cfg.Limits)
	return town.Admitted{Granted: a.Granted, Position: a.Position}, err
}

// pokeWaiting lets towns that wait for a slot ask again at once, now that one
// may have become free. Only so many are poked as could get
// one; the others keep their place.
func (h *Hall) pokeWaiting() {
	ctx, cancel := storeCtx(h.background)
	defer cancel()
	n := 4
	if m := h.cfg.Limits.MaxStarting; m > 0 {
		n = m
	}
	ids, err := h.cfg.Store.Waiting(ctx, n)
	if err != nil {
		h.cfg.Log.Warn("the queue for sandboxes could not be read; the towns ask again by themselves", "err", err)
		return
	}
	for _, id := range ids {
		// A town that sleeps and left a place in the queue behind gives it back.
		r := &request{in: town.SlotFree{}, slot: true, own: true}
		if err := h.submit(h.background, id, r); err != nil {
			h.cfg.Log.Debug("a waiting town could not be told of a free place", "town", id, "err", err)
		}
	}
}

// forget removes the rows of a town whose sandbox, repositories and credentials
// are gone. The caller is the worker of e. If it fails, the town is deleting and
// removed, and every later look at it tries again.
func (h *Hall) forget(ctx context.Context, e *entry) {
	ctx, cancel := storeCtx(ctx)
	defer cancel()
	e.copy = nil
	if err := h.cfg.Store.DeleteTown(ctx, e.id); err != nil && !errs.Is(err, errs.NotFound) {
		h.cfg.Log.Warn("the rows of a deleted town could not be removed yet", "town", e.id, "err", err)
		return
	}
	h.mu.Lock()
	delete(h.heard, e.id)
	delete(h.metered, e.id)
	h.mu.Unlock()
	h.changed(e.id)
	h.spawn(h.pokeWaiting)
}

// loadFailed marks a town whose rows can't be read.
func (h *Hall) loadFailed(ctx context.Context, c *copyOf, err error, alarmed bool) {
	if _, broken := err.(*brokenError); !broken {
		return
	}
	h.cfg.Log.Error("a town could not be loaded", "town", c.head.ID, "err", err)
	h.markFailing(ctx, c.head, err, alarmed)
}

// markFailing records that a town's loop failed and when it is tried again: 2 s
// later, then doubling to 15 min. The next success clears it. Only failures of an
// alarm lengthen the pause: a page that is looked at often does not.
func (h *Hall) markFailing(ctx context.Context, head store.Head, cause error, alarmed bool) {
	now := h.now()
	if head.Failing != "" && !alarmed && head.DueAt > int64(town.At(now)) {
		return
	}
	h.metrics.Failures.Add(1)
	n := failures(head.Failing) + 1
	wait := maxBackoff
	if n < 12 {
		wait = min(maxBackoff, minBackoff<<(n-1))
	}
	cols := head.Columns
	cols.Failing = fmt.Sprintf("failed %d times: %s", n, errText(cause))
	cols.DueAt = int64(town.At(now.Add(wait)))
	ctx, cancel := storeCtx(ctx)
	defer cancel()
	_, err := h.cfg.Store.Commit(ctx, store.Commit{Town: head.ID, Expect: head.Version, CommitID: h.cfg.NewID(),
		At: int64(town.At(now)), Columns: cols})
	if err != nil {
		// Its deadline stands as it was, so it is tried again anyway.
		h.cfg.Log.Warn("a failing town could not be marked", "town", head.ID, "err", err)
		return
	}
	h.alarm.poke(now.Add(wait))
	h.changed(head.ID)
}

// failures reads the count back from the column.
func failures(text string) int {
	var n int
	if _, err := fmt.Sscanf(text, "failed %d times", &n); err != nil || n < 0 {
		return 0
	}
	return n
}

// Stop ends the hall: no new effects begin, those under way may finish until ctx
// ends, then they are cancelled, and no more inputs are taken. Stopping twice is
// harmless.
func (h *Hall) Stop(ctx context.Context) {
	h.alarm.stop()
	h.mu.Lock()
	if h.state == hallOpen {
		h.state = hallStopping
	}
	landed := h.landed
	if h.flying > 0 && landed == nil {
		landed = make(chan struct{})
		h.landed = landed
	}
	h.mu.Unlock()
	if landed != nil {
		select {
		case <-landed:
		case <-ctx.Done():
		}
	}
	h.cancel()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state = hallClosed
	for _, e := range h.idle {
		delete(h.entries, e.id)
	}
	h.idle = nil
}

// nextLook says when a town in memory is looked at again, and when time alone
// changes something in it.
func (h *Hall) nextLook(c *copyOf, now time.Time) (look, wake time.Time) {
	look = now.Add(h.active(c.t))
	from := now
	if !c.settled.IsZero() && c.settled.Before(now) {
		from = c.settled // a view may come after a deadline and before its tick
	}
	at, ok := c.t.NextWake(from)
	if !ok {
		return look, time.Time{}
	}
	if !at.After(now.Add(time.Millisecond)) {
		at = now.Add(overdueAgain)
	}
	return earliest(look, at), at
}
