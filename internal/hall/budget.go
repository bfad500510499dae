package hall

import (
	"context"
	"sync"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

// dayFresh is how old the known totals of the server's day may be. The limit of
// runs, and what is granted of tokens and cost, is checked by the store with each commit; what is measured while things run
// (awake time, tokens, cost) is known this late.
const dayFresh = time.Second

// serverDay is what this process knows of the server's budget and its day.
type serverDay struct {
	limit town.Spend // 0 where there is no limit; set once

	mu      sync.Mutex // guards all below
	known   store.DaySpend
	at      time.Time // when it was read; zero: read it again
	changes int64     // of known, by commits; one during a read makes what was read old
}

// today returns what all towns spent on the day of now. Where the server has no
// budget nothing is read.
func (h *Hall) today(ctx context.Context, now time.Time) (town.DaySpend, error) {
	d := &h.day
	if d.limit == (town.Spend{}) {
		return town.DaySpend{}, nil
	}
	day := now.UTC().Format(time.DateOnly)
	k, changes, fresh := d.get(day, now)
	if !fresh {
		ctx, cancel := storeCtx(ctx)
		defer cancel()
		found, err := h.cfg.Store.ServerDays(ctx, day, 1) // no lock is held while the store works
		if err != nil {
			return town.DaySpend{}, err
		}
		k = store.DaySpend{Day: day}
		if len(found) > 0 && found[0].Day == day {
			k = found[0]
		}
		d.put(k, now, changes)
	}
	return town.DaySpend{Day: k.Day, Spend: town.Spend{Runs: k.Runs, AwakeMS: k.AwakeMS, Tokens: k.Tokens, Cost: k.Cost},
		Granted: town.Granted{Tokens: k.GrantedTokens, Cost: k.GrantedCost}}, nil
}

// get returns what is known, and whether that is fresh enough.
func (d *serverDay) get(day string, now time.Time) (k store.DaySpend, changes int64, fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	age := now.Sub(d.at)
	return d.known, d.changes, !d.at.IsZero() && d.known.Day == day && age >= 0 && age <= dayFresh
}

// put takes what was read. What a commit added meanwhile may be in it or not:
// then the next look reads again.
func (d *serverDay) put(k store.DaySpend, now time.Time, changes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known, d.at = k, now; d.changes != changes {
		d.at = time.Time{}
	}
}

// spent notes that a commit of this process added something. It is not added here:
// a read that ended while the commit was under way may have seen it, and what is
// counted twice parks a town for a budget that is not used up.
func (d *serverDay) spent(all []store.DaySpend) {
	if d.limit != (town.Spend{}) && len(all) > 0 {
		d.forget()
	}
}

// forget makes the next look read the totals again.
func (d *serverDay) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes++
	d.at = time.Time{}
}

// spend turns what a town spent into what the store takes.
func spend(all []town.DaySpend) []store.DaySpend {
	out := make([]store.DaySpend, 0, len(all))
	for _, s := range all {
		out = append(out, store.DaySpend{Day: s.Day, Runs: min(s.Runs, store.MaxSpend), AwakeMS: min(s.AwakeMS, store.MaxSpend),
			Tokens: min(s.Tokens, store.MaxSpend), Cost: min(s.Cost, store.MaxSpend),
			GrantedTokens: s.Granted.Tokens, GrantedCost: s.Granted.Cost})
	}
	return out
}
