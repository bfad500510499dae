package sim

import (
	"context"
	"slices"
	"time"

	"gastown/internal/town"
)

// perHour is how much of each kind of work one town may do in one hour. Where a
// failure makes it repeat, the breaker's pauses (30 s doubling to 15 min) allow 8
// repeats per hour and subject; what is limited by an interval of the settings
// has that interval. People, who begin and stop things, come on top.
var perHour = map[string]int{
	"sandbox starts":  30,  // one per grace and stop of 2 min at the very most
	"sandbox.start":   40,  // the same, and repeats after an unknown outcome
	"sandbox.stop":    60,  // each start's, and 8 repeats
	"sandbox.inspect": 370, // every 10 s while silent and unknown
	"token.renew":     20,  // once; refused ones by the breaker; people ask
	"rig.fetch":       70,  // fetch.interval is 1 min
	"merge.candidate": 90,
	"candidates":      90,
	"merge.land":      90,
	"merge.publish":   60,
	"merge.check":     120, // branch.poll_interval is 5 min, for each bead that waits
	"bead.cleanup":    150,
	"gates":           90,
	"notify":          100,
	"rig.remove":      20,
	"town.remove":     20,
	"runs":            90,
	"failures":        60,
	"limits":          120, // a provider that states no time: by the breaker's pauses; people reset it
	"asks for a slot": 500, // every 15 s, and when a place becomes free
	"commits":         5000,
	"ledger entries":  1500,
}

// bounds counts work per town and hour.
type bounds struct {
	w    *world
	by   map[[2]string][]time.Time
	most map[string]int
}

func newBounds(w *world) *bounds {
	return &bounds{w: w, by: map[[2]string][]time.Time{}, most: map[string]int{}}
}

// forget starts all counts anew: clocks were changed.
func (b *bounds) forget() { clear(b.by) }

// count notes a piece of work.
func (b *bounds) count(townID, what string) {
	limit, ok := perHour[what]
	if !ok {
		panic("sim: " + what + " has no bound")
	}
	key := [2]string{townID, what}
	now := b.w.now
	old := now.Add(-time.Hour)
	times := append(b.by[key], now)
	for len(times) > 0 && !times[0].After(old) {
		times = times[1:]
	}
	b.by[key] = times
	b.most[what] = max(b.most[what], len(times))
	b.w.holds(invBounded, len(times) <= limit, b.w.shadow.towns[townID], "%s of %s: %d in one hour, at most %d are allowed", what, b.w.nameOf(townID), limit+1, limit)
}

func (w *world) nameOf(id string) string {
	if t := w.shadow.towns[id]; t != nil {
		return t.name
	}
	return id
}

// watch looks every minute for what should have been done long ago.
func (w *world) watch() {
	w.at(min(time.Minute, w.overduly()/4), w.watch)
	w.watchClaims()
	w.watchTotals()
	for _, t := range w.towns {
		if st := w.shadow.towns[t.id]; st != nil {
			w.watchTown(st)
		}
	}
}

// overduly is how long something may stand undone while a server runs: a tick
// that begins late, and one lost claim of the alarm; where nothing goes wrong,
// much less than such a claim.
func (w *world) overduly() time.Duration {
	if w.calm {
		return 12 * time.Second
	}
	return slowest + 2*time.Minute
}

// watchClaims wants every claim of a living server performed.
func (w *world) watchClaims() {
	w.claimed = slices.DeleteFunc(w.claimed, func(c *claim) bool {
		return c.performed || c.excused || w.shadow.towns[c.town.id] != c.town
	})
	late := w.overduly()
	for _, c := range w.claimed {
		lost := w.now.Sub(c.at) > late && w.now.Sub(w.disturbed) > late
		w.holds(invPerformed, !lost, c.town, "%s of %s was claimed by %s and not performed", c.Key, c.town.name, c.By)
	}
}

// overdue says when a town, as it was last committed, has something to do.
type overdue struct {
	t    *town.Town
	wake time.Time // zero for never
}

// watchTown wants nothing overdue in a town that nobody has changed for a while.
func (w *world) watchTown(st *shadowTown) {
	w.watchParked(st)
	w.watchBlocks(st)
	overduly := w.overduly()
	if w.now.Sub(st.at) <= overduly || w.now.Sub(w.disturbed) <= overduly || len(w.procs) == 0 {
		return
	}
	if st.wake == nil {
		st.wake = &overdue{}
		_, rows, err := w.mem.Load(context.Background(), st.id, 0)
		if err != nil {
			return // it was deleted a moment ago
		}
		plain := make([]town.Row, len(rows))
		for i, r := range rows {
			plain[i] = town.Row{Kind: r.Kind, ID: r.ID, Body: r.Body}
		}
		tn, err := town.Decode(st.id, plain, w.server)
		if err != nil {
			w.violate(invColumns, st, "town %s can't be read: %v", st.name, err)
			return
		}
		st.wake.t = tn
		if at, ok := tn.NextWake(st.by); ok {
			st.wake.wake = at
		}
	}
	if st.wake.t == nil {
		return
	}
	then := w.clock().Add(-overduly)
	day := w.totals.days[dayOf(town.At(then))]
	st.wake.t.SetServerDay(town.DaySpend{Day: day.Day, Spend: town.Spend{Runs: day.Runs, AwakeMS: day.AwakeMS, Tokens: day.Tokens, Cost: day.Cost},
		Granted: town.Granted{Tokens: day.GrantedTokens, Cost: day.GrantedCost}})
	w.holds(invDue, st.wake.wake.IsZero() || st.wake.wake.After(then), st, "a deadline of %s passed at %s and nothing happened", st.name, st.wake.wake)
	for _, e := range st.wake.t.Effects(then) {
		w.violate(invDue, st, "%s of %s can be done since %s and nobody does it", e.Key, st.name, overduly)
	}
}
