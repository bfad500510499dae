package hall

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// request is one caller's wish, waiting in a town's queue: an input, a view, or
// neither (settle the slot).
type request struct {
	in      town.Input
	view    func(*town.Town, time.Time) error
	idem    *Idem
	respond func(*town.Town) (int, []byte) // with idem
	due     int64                          // the alarm's claim moved the deadline to this; 0: no alarm
	stored  *store.Head                    // what an alarm found in the town's row; nil: nothing odd
	slot    bool                           // the town may hold a slot that nobody knows of
	noSlot  bool                           // the town runs and seems to hold no slot
	write   bool                           // the row is written even if nothing but its alarm differs

	own bool // the hall's: not counted against the queue's length

	begun atomic.Int32 // 0 waiting, 1 begun by the worker, 2 given up by the caller

	settled bool // answered; for the worker

	// The answer, to be read after done was closed.
	err      error
	status   int
	body     []byte
	replayed bool
	done     chan struct{}
}

func (r *request) answer(err error) {
	r.err, r.settled = err, true
	if err != nil {
		r.status, r.body = 0, nil
	}
	close(r.done)
}

// entry is a town that something happens to, or whose copy is kept.
type entry struct {
	id      string
	queue   []*request // guarded by Hall.mu
	working bool       // guarded by Hall.mu; whoever set it owns copy
	effects int        // under way; guarded by Hall.mu
	usedAt  time.Time  // guarded by Hall.mu
	lookAt  time.Time  // next look in memory, zero for none; guarded by Hall.mu
	wakeAt  time.Time  // when time alone changes something, zero for never; set with lookAt

	holds []string // kinds of the holds of a running town; guarded by Hall.mu

	copy *copyOf // owned by the worker
}

// submit queues r and returns when it was answered. The caller that finds the
// town idle works for it: at most one batch, the rest goes to the executor. When
// ctx ends before r was begun it never happens; once begun it is waited for, so
// that the answer is definite and r's functions don't outlive the call.
func (h *Hall) submit(ctx context.Context, townID string, r *request) error {
	r.done = make(chan struct{})
	e, worker, err := h.enqueue(townID, r)
	if err != nil {
		return err
	}
	if worker {
		h.work(context.WithoutCancel(ctx), e)
	}
	select {
	case <-r.done:
		return r.err
	default:
	}
	if w, ok := h.cfg.Exec.(Waiter); ok && !w.Wait(r.done) {
		return errs.New(errs.Unavailable, "the server is over")
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.begun.CompareAndSwap(0, 2) {
			return errs.Wrap(errs.Unavailable, context.Cause(ctx), "the town was busy for too long; nothing was changed")
		}
		<-r.done
	}
	return r.err
}

func (h *Hall) enqueue(townID string, r *request) (e *entry, worker bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state == hallClosed {
		return nil, false, errs.New(errs.Unavailable, "the server is stopping").WithHint("try again in a moment")
	}
	e = h.entries[townID]
	if e == nil {
		e = &entry{id: townID}
		h.entries[townID] = e
	}
	if len(e.queue) >= h.cfg.QueueLen && !r.own {
		h.metrics.Full.Add(1)
		full := errs.New(errs.Overloaded, "too many requests wait for this town").WithHint("try again in a second")
		full.RetryAfter = time.Second
		return nil, false, full
	}
	e.queue = append(e.queue, r)
	if e.working {
		return e, false, nil
	}
	h.takeLocked(e)
	return e, true, nil
}

// takeLocked makes the caller the worker of e.
func (h *Hall) takeLocked(e *entry) {
	e.working = true
	if i := slices.Index(h.idle, e); i >= 0 {
		h.idle = slices.Delete(h.idle, i, i+1)
	}
}

// work handles one batch of e and leaves it, or hands it on.
func (h *Hall) work(ctx context.Context, e *entry) {
	h.mu.Lock()
	n := min(len(e.queue), maxBatch)
	batch := make([]*request, 0, n)
	for _, r := range e.queue[:n] {
		if r.begun.CompareAndSwap(0, 1) {
			batch = append(batch, r)
		}
	}
	e.queue = e.queue[n:]
	h.mu.Unlock()

	if len(batch) > 0 {
		h.handle(ctx, e, batch)
	}
	h.leave(e)
}

// leave ends the work on e: the next batch goes to the executor, a copy that is
// not needed goes away.
func (h *Hall) leave(e *entry) {
	now := h.now()
	var look, wake time.Time
	var seen sight
	running := false
	if e.copy != nil {
		if err := guard(func() error {
			look, wake = h.nextLook(e.copy, now)
			seen = sightOf(e.copy, now)
			return nil
		}); err != nil {
			h.cfg.Log.Error("the rules of a town broke", "town", e.id, "err", err)
			e.copy = nil
		} else {
			running = e.copy.running()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seeLocked(e, seen)
	if len(e.queue) > 0 {
		h.cfg.Exec.Go(func() { h.work(h.background, e) })
		return
	}
	e.queue, e.working, e.usedAt, e.lookAt = nil, false, now, time.Time{}
	switch {
	case h.state == hallClosed, e.copy == nil && e.effects == 0:
		delete(h.entries, e.id)
	case e.copy != nil && (e.effects > 0 || running):
		e.lookAt, e.wakeAt = look, wake
		h.alarm.poke(look)
	case e.effects == 0:
		h.idle = append(h.idle, e)
		h.trimLocked()
	}
}

// trimLocked drops idle copies that are too old or too many, the oldest first,
// and arms a timer for those that stay.
func (h *Hall) trimLocked() {
	now := h.now()
	for len(h.idle) > 0 && (len(h.idle) > h.cfg.KeepCount || now.Sub(h.idle[0].usedAt) >= h.cfg.KeepIdle) {
		delete(h.entries, h.idle[0].id)
		h.idle = h.idle[1:]
	}
	if len(h.idle) == 0 {
		h.idle = nil
	} else if !h.trimming && h.state != hallClosed {
		h.trimming = true
		h.cfg.Clock.AfterFunc(h.cfg.KeepIdle, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.trimming = false
			h.trimLocked()
		})
	}
}

// InMemory counts the towns that are in memory now.
func (h *Hall) InMemory() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.entries)
}
