package hall

import (
	"context"
	"encoding/json"
	"maps"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	houseEach     = time.Hour       // at the full hour, so that restarts neither skip nor repeat it
	houseSoon     = time.Minute     // when more is left to do
	houseTimeout  = 5 * time.Minute // of one round
	idemKeep      = 24 * time.Hour  // how long an answer can be repeated
	houseBatch    = 500             // rows that one write deletes
	houseBatches  = 20              // such writes per round and table
	houseTowns    = 1000            // ledgers looked at per round
	maintainEach  = 24 * time.Hour  // of one repository
	maintainBatch = 16              // repositories per round
	maintainedKey = "hub.maintained"
)

// house is the state of the housekeeping. It wakes and loads no town.
type house struct {
	running bool
	at      time.Time
	after   string // ledgers of towns up to this name were pruned in this turn
}

// maybeKeepHouse starts a round of housekeeping when its time has come.
func (a *alarm) maybeKeepHouse(now time.Time) {
	next := now.Truncate(houseEach).Add(houseEach)
	a.mu.Lock()
	first := a.house.at.IsZero() || a.house.at.After(next)
	wait := first || a.house.running || now.Before(a.house.at)
	if first || !wait {
		a.house.at = next
	}
	after := a.house.after
	a.house.running = a.house.running || !wait
	a.mu.Unlock()
	if wait {
		return
	}
	finish := func(after string, more bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.house.running, a.house.after = false, after
		if more {
			a.house.at = earliest(a.house.at, now.Add(houseSoon))
		}
	}
	if !a.h.spawn(func() { finish(a.h.keepHouse(now, after)) }) {
		finish(after, false)
	}
}

// keepHouse deletes what is kept for a time only, and packs repositories. It
// returns where the look at ledgers stands, and whether there is more to do.
func (h *Hall) keepHouse(now time.Time, after string) (string, bool) {
	ctx, cancel := context.WithTimeout(h.background, houseTimeout)
	defer cancel()
	more := false
	report := func(what string, left bool, err error) {
		more = more || left
		if err != nil && ctx.Err() == nil {
			h.cfg.Log.Warn("the housekeeping of "+what+" is not complete", "err", err)
		}
	}
	st := h.cfg.Store
	left, err := batches(func(n int) (int, error) { return st.PruneIdem(ctx, before(now, idemKeep), n) })
	report("idempotency records", left, err)
	if keep := h.serverDuration("transcript.retention"); keep > 0 {
		left, err := batches(func(n int) (int, error) { return st.PruneTranscripts(ctx, before(now, keep), n) })
		report("transcripts", left, err)
	}
	if keep := h.serverDuration("ledger.retention"); keep > 0 {
		next, left, err := h.pruneLedgers(ctx, before(now, keep), after)
		after = next
		report("ledgers", left, err)
	}
	if h.cfg.Hub != nil {
		left, err := h.maintain(ctx, now)
		report("repositories", left, err)
		left, err = h.strays(ctx, now)
		report("references", left, err)
	}
	return after, more
}

func before(now time.Time, keep time.Duration) int64 { return int64(town.At(now.Add(-keep))) }

// batches deletes in small writes, so that others get between them; left says
// that more may be there.
func batches(prune func(limit int) (int, error)) (left bool, err error) {
	for range houseBatches {
		n, err := prune(houseBatch)
		if err != nil || n < houseBatch {
			return false, err
		}
	}
	return true, nil
}

// pruneLedgers goes through the towns after a name.
func (h *Hall) pruneLedgers(ctx context.Context, old int64, after string) (next string, left bool, err error) {
	heads, err := h.cfg.Store.Heads(ctx, after, houseTowns)
	if err != nil {
		return after, false, err
	}
	for _, head := range heads {
		if head.CreatedAt < old {
			more, err := batches(func(n int) (int, error) { return h.cfg.Store.PruneLedger(ctx, head.ID, old, n) })
			if err != nil || more {
				return after, more, err
			}
		}
		after = head.Name
	}
	if len(heads) < houseTowns {
		return "", false, nil
	}
	return after, true, nil
}

// maintain packs the repositories of towns whose sandbox runs, each once a day.
// The times are stored before the work, so a restart repeats none.
func (h *Hall) maintain(ctx context.Context, now time.Time) (left bool, err error) {
	heads, err := h.cfg.Store.AwakeTowns(ctx)
	if err != nil {
		return false, err
	}
	running := map[string]bool{}
	for _, head := range heads {
		running[head.ID] = town.SandboxState(head.Sandbox).Running()
	}
	if len(running) == 0 {
		return false, nil
	}
	ids, err := h.cfg.Hub.List()
	if err != nil {
		return false, err
	}
	done, err := maintained(ctx, h.cfg.Store, now)
	if err != nil {
		return false, err
	}
	due := ids[:0:0]
	for _, id := range ids {
		if _, lately := done[id.String()]; !running[id.Town] || lately {
			continue
		}
		if len(due) == maintainBatch {
			left = true
			break
		}
		due = append(due, id)
		done[id.String()] = now.UnixMilli()
	}
	if len(due) == 0 {
		return false, nil
	}
	text, err := json.Marshal(done)
	if err != nil {
		return false, errs.Wrap(errs.Internal, err, "encoding the times of maintenance")
	}
	if err := h.cfg.Store.SetMeta(ctx, maintainedKey, string(text)); err != nil {
		return false, err
	}
	for _, id := range due {
		if err := h.cfg.Hub.Maintain(ctx, id); err != nil && !errs.Is(err, errs.NotFound) {
			h.cfg.Log.Warn("a repository could not be packed", "repository", id.String(), "err", err)
		}
	}
	return left, nil
}

// maintained reads when repositories were packed within the last day. Text that
// can't be read counts as none: packing twice is harmless.
func maintained(ctx context.Context, st store.Store, now time.Time) (map[string]int64, error) {
	text, ok, err := st.Meta(ctx, maintainedKey)
	done := map[string]int64{}
	if err != nil || !ok {
		return done, err
	}
	if json.Unmarshal([]byte(text), &done) != nil {
		return map[string]int64{}, nil
	}
	maps.DeleteFunc(done, func(_ string, at int64) bool {
		return now.UnixMilli()-at >= maintainEach.Milliseconds() || at > now.UnixMilli()
	})
	return done, nil
}
