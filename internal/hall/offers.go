package hall

import (
	"context"

	"gastown/internal/town"
)

// offers is what the server has for agents at this moment, nil when nothing is known.
func (h *Hall) offers() *town.Offers {
	if h.cfg.Offers == nil {
		return nil
	}
	return h.cfg.Offers()
}

// Reoffer makes the towns in which work waits for what the server did not have
// look again. It is called after Config.Offers began to give something else.
func (h *Hall) Reoffer(ctx context.Context) error {
	ctx, cancel := storeCtx(ctx)
	defer cancel()
	heads, err := h.cfg.Store.BudgetTowns(ctx)
	if err != nil {
		return err
	}
	for _, head := range heads {
		h.tickSoon(head.ID)
	}
	return nil
}

// tickSoon queues a town for the alarm's loop.
func (h *Hall) tickSoon(townID string) {
	h.alarm.mu.Lock()
	h.alarm.addLocked(wanted{id: townID})
	h.alarm.mu.Unlock()
	h.alarm.poke(h.now())
}

// reoffered looks again at a town that began to wait for what the server may
// have got while the commit was under way: Reoffer may not have found it yet.
func (tn *turn) reoffered() {
	if tn.c.head.WaitsBudget && tn.c.t.Offers() != tn.h.offers() {
		tn.h.tickSoon(tn.c.head.ID)
	}
}
