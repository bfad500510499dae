package hall

import (
	"context"
	"time"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// Watch returns a channel that gets a value after commits of this process to a
// town; several commits may share one. The caller must call cancel. It holds no
// town in memory.
func (h *Hall) Watch(townID string) (changed <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers[townID] == nil {
		h.watchers[townID] = map[chan struct{}]struct{}{}
	}
	h.watchers[townID][ch] = struct{}{}
	return ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers[townID], ch)
		if len(h.watchers[townID]) == 0 {
			delete(h.watchers, townID)
		}
	}
}

// changed tells those who watch a town.
func (h *Hall) changed(townID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.watchers[townID] {
		select {
		case ch <- struct{}{}:
		default: // it has not looked since the last one
		}
	}
}

// Desired returns the desired document of a sandbox's generation as soon as its
// revision is above after; false when ctx ended first. A generation that is not
// the current one, or not running any more, gets errs.Gone.
func (h *Hall) Desired(ctx context.Context, townID string, generation, after int64) (town.Desired, bool, error) {
	changed, cancel := h.Watch(townID)
	defer cancel()
	for {
		d, ok, err := h.desired(ctx, townID, generation, after)
		if err != nil || ok {
			return d, ok, err
		}
		if !h.waitChange(ctx, townID, changed, after) {
			return town.Desired{}, false, nil
		}
	}
}

func (h *Hall) desired(ctx context.Context, townID string, generation, after int64) (d town.Desired, ok bool, err error) {
	err = h.View(ctx, townID, func(t *town.Town, _ time.Time) error {
		sb := t.Sandbox()
		if sb.Generation != generation || !sb.State.Running() {
			return errs.New(errs.Gone, "generation %d of the sandbox is over", generation).WithHint("stop everything and exit")
		}
		if t.Info().DesiredRev > after {
			d, ok = t.Desired(), true
		}
		return nil
	})
	if ctx.Err() != nil && errs.Is(err, errs.Unavailable) {
		return d, false, nil
	}
	return d, ok, err
}

// waitChange waits until the town may have a newer document. With other
// processes on the same store it looks at the stored revision every second.
func (h *Hall) waitChange(ctx context.Context, townID string, changed <-chan struct{}, after int64) bool {
	for {
		var again chan struct{}
		stop := func() {}
		if h.cfg.Shared {
			again = make(chan struct{})
			stop = h.cfg.Clock.AfterFunc(time.Second, func() { close(again) })
		}
		select {
		case <-ctx.Done():
			stop()
			return false
		case <-changed:
			stop()
			return true
		case <-again:
			if head, err := h.Resolve(ctx, townID); err != nil || head.DesiredRev > after || !town.SandboxState(head.Sandbox).Running() {
				return ctx.Err() == nil
			}
		}
	}
}
