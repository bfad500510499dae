package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// loan is a block of a budget in the hands of the server that took it. It dies
// with the server.
type loan struct {
	r      *runner
	p      *process
	run    string
	epoch  int64
	id     string
	used   int64 // tokens, by all requests that live on it
	handed bool  // its use was handed in, taken or not
	maybe  bool  // and nobody knows yet whether it was taken
}

// needsBlock reports whether a run may ask its model only on a block.
func (r *runner) needsBlock(a *agent, p *process) (needs bool) {
	err := p.hall.View(context.Background(), r.x.town, func(t *town.Town, _ time.Time) error {
		needs = t.NeedsBlock(a.d.ID)
		return nil
	})
	return err == nil && needs
}

// borrow takes a block for a request, which answers at once, or after minutes in
// which the block is prolonged; sometimes its use is told when it ran out already.
func (r *runner) borrow(a *agent, p *process) {
	w := r.w
	w.blocks++
	l := &loan{r: r, p: p, run: a.d.ID, epoch: a.d.Epoch, id: fmt.Sprintf("bk-%s-%d", p.boot, w.blocks), used: 100 + int64(r.dice.IntN(20_000))}
	need := 4_096 + int64(r.dice.IntN(8_000))
	lasts := r.dice.between(time.Second, 3*time.Minute)
	if r.dice.chance(0.1) {
		lasts = r.dice.between(3*time.Minute, 25*time.Minute)
	}
	if err := l.do(l.take(need)); err != nil || p.dead {
		return // refused; or nobody knows, and the block stays until it is charged
	}
	w.loans[l.id] = l
	if w.fault("settled-late", r.x.who) {
		w.at(w.extent(town.BlockLife-2*time.Minute, town.BlockLife+4*time.Minute), l.settle)
		return
	}
	l.hold(lasts)
}

func (l *loan) take(need int64) town.TakeBlock {
	return town.TakeBlock{Run: l.run, Epoch: l.epoch, ID: l.id, Tokens: need, Cost: 3 * need}
}

// hold keeps a block for as long as requests live on it.
func (l *loan) hold(left time.Duration) {
	const each = town.BlockLife / 2
	if left <= each {
		l.r.w.at(left, l.settle)
		return
	}
	l.r.w.at(each, func() {
		if l.p.dead {
			return
		}
		_ = l.do(l.take(0)) // refused when the run has ended: the block may then run out
		l.hold(left - each)
	})
}

// do hands in an input, some times again while nobody knows what came of it.
func (l *loan) do(in town.Input) (err error) {
	l.r.w.shadow.input(l.r.x.town, in)
	for range 3 {
		if err = l.p.hall.Do(context.Background(), l.r.x.town, in); l.p.dead || !errs.Is(err, errs.Unavailable) {
			break
		}
	}
	return err
}

// settle tells what was used, and gives the rest back.
func (l *loan) settle() {
	w := l.r.w
	if l.p.dead {
		return
	}
	u := w.provider(l.r.x.town).of(l.run)
	if w.loans[l.id] == l { // else it was charged already
		l.maybe = true
		u.maybe += l.used
	}
	l.handed = true
	err := l.do(town.Metered{Run: l.run, Epoch: l.epoch, Meter: l.id, Seq: 1, Tokens: l.used, Cost: 3 * l.used})
	if l.p.dead || !l.maybe || errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Overloaded) {
		return
	}
	l.maybe = false
	u.maybe -= l.used
	if err == nil {
		u.told += l.used
		w.shadow.counted(l.r.x.town, l.run, u)
	}
}

func blockOf(all []town.Block, id string) (town.Block, bool) {
	i := slices.IndexFunc(all, func(b town.Block) bool { return b.ID == id })
	if i < 0 {
		return town.Block{}, false
	}
	return all[i], true
}

// lent sums the blocks that count.
func lent(all []town.Block, counts func(town.Block) bool) (s town.Spend) {
	for _, b := range all {
		if counts(b) {
			s = plus(s, town.Spend{Tokens: b.Tokens, Cost: b.Cost})
		}
	}
	return s
}

// beyond reports whether more is used than there is.
func beyond(s, limit town.Spend) bool {
	return limit.Tokens > 0 && s.Tokens > limit.Tokens || limit.Cost > 0 && s.Cost > limit.Cost
}

// checkBlocks looks at the blocks that a commit granted, prolonged and ended.
func (s *shadow) checkBlocks(t *shadowTown, c store.Commit, p *process, was before) {
	if len(was.blocks) == 0 && len(t.info.Blocks) == 0 {
		return
	}
	var excess town.Spend
	w := s.w
	for _, b := range was.blocks {
		if _, ok := blockOf(t.info.Blocks, b.ID); !ok {
			excess = plus(excess, s.blockEnded(t, c, b))
		}
	}
	for _, b := range t.info.Blocks {
		old, ok := blockOf(was.blocks, b.ID)
		if ok && b.Until <= old.Until {
			continue // clocks that were set back shorten it
		}
		w.holds(invGranted, was.runs[b.Run] && int64(b.Until) <= c.At+town.BlockLife.Milliseconds(), t, "run %s, which is over or has too long, got block %s until %s", b.Run, b.ID, b.Until)
		if !ok {
			s.checkGrant(t, c, b, p, was)
		}
	}
	for _, b := range was.blocks { // when all are known that this commit charged
		if _, ok := blockOf(t.info.Blocks, b.ID); !ok {
			s.counted(t.id, b.Run, w.provider(t.id).of(b.Run))
		}
	}
	s.checkShare(t, c, p, was, excess)
	var told town.Spend
	for _, d := range c.Spend {
		told = plus(told, town.Spend{Tokens: d.GrantedTokens, Cost: d.GrantedCost})
	}
	all := func(town.Block) bool { return true }
	moved := minus(lent(t.info.Blocks, all), lent(was.blocks, all))
	w.holds(invGranted, told == moved, t, "%s granted %+v in one commit, and told the server of %+v", t.name, moved, told)
}

// blockEnded looks at the end of a block: it returns by how much more was used
// than it had.
func (s *shadow) blockEnded(t *shadowTown, c store.Commit, b town.Block) (excess town.Spend) {
	w, l := s.w, s.w.loans[b.ID]
	delete(w.loans, b.ID)
	charged := slices.ContainsFunc(c.Ledger, func(e store.Entry) bool {
		return e.Kind == "budget.unsettled" && e.Subject == b.Run
	})
	if !charged || l != nil && l.handed && int64(b.Until) > c.At && !t.info.Removed {
		w.holds(invGranted, l != nil && l.handed, t, "block %s of run %s was given back, and nobody said what was used of it", b.ID, b.Run)
		if l != nil {
			excess = town.Spend{Tokens: max(l.used-b.Tokens, 0), Cost: max(3*l.used-b.Cost, 0)}
		}
		return excess
	}
	w.holds(invCharged, int64(b.Until) <= c.At || t.info.Removed, t, "block %s of run %s was charged before its time, which is %s", b.ID, b.Run, b.Until)
	u := w.provider(t.id).of(b.Run)
	if l != nil && l.maybe {
		l.maybe = false
		u.maybe -= l.used
	}
	u.told += b.Tokens
	return excess
}

// checkGrant wants a block to come from what was left.
func (s *shadow) checkGrant(t *shadowTown, c store.Commit, b town.Block, p *process, was before) {
	w, now := s.w, t.info.Blocks
	if was.settings != settingsKey(t.info.Settings) {
		return
	}
	if x := t.beads[b.Bead]; x != nil && (was.beads[b.Bead] == "" || was.beads[b.Bead] == beadKey(x)) {
		sum, l := plus(t.spentOn(x), lent(now, func(o town.Block) bool { return o.Bead == b.Bead })), t.beadLimit(x, p)
		w.holds(invGranted, !beyond(sum, l), t, "block %s was granted, and bead %s has used and granted %+v of %+v", b.ID, b.Bead, sum, l)
	}
	all, l := w.totals.days[b.Day], limit("server", p.server)
	sum := town.Spend{Tokens: all.Tokens + all.GrantedTokens, Cost: all.Cost + all.GrantedCost}
	w.holds(invGranted, !beyond(sum, l), t, "block %s was granted, and the server has used and granted %+v of %+v", b.ID, sum, l)
}

// checkShare wants a budget of the town to be exceeded only by what answers used
// beyond the blocks of their requests.
func (s *shadow) checkShare(t *shadowTown, c store.Commit, p *process, was before, excess town.Spend) {
	if was.settings != settingsKey(t.info.Settings) {
		return
	}
	day := dayOf(town.Time(c.At))
	counts := func(b town.Block) bool { return b.Day == day || t.info.Settings["budget.town.period"] == "total" }
	sum := plus(t.usedIn(t.usageNow(), day), lent(t.info.Blocks, counts))
	more := minus(sum, plus(t.usedIn(was.usage, day), lent(was.blocks, counts)))
	l := limit("town", t.info.Settings, p.server)
	s.w.holds(invGranted, !beyond(sum, l) || more.Tokens <= excess.Tokens && more.Cost <= excess.Cost, t, "%s has used and granted %+v of %+v: %+v more, and answers used %+v beyond their blocks", t.name, sum, l, more, excess)
}

// orphaned is what a commit charged for beads that are gone.
func (t *shadowTown) orphaned(was before) (s town.Spend) {
	return lent(was.blocks, func(b town.Block) bool {
		_, ok := blockOf(t.info.Blocks, b.ID)
		return !ok && t.beads[b.Bead] == nil
	})
}

// watchBlocks wants no block to outlive its time.
func (w *world) watchBlocks(st *shadowTown) {
	late := w.overduly()
	for _, b := range st.info.Blocks {
		gone := w.clock().Sub(b.Until.Time()) > late && w.now.Sub(w.disturbed) > late && len(w.procs) > 0
		w.holds(invDue, !gone, st, "block %s of run %s is not charged, and was to be at %s", b.ID, b.Run, b.Until)
	}
}

// watchLent compares what the server's days have as granted with the blocks of
// all towns.
func (w *world) watchLent(d store.DaySpend) {
	var sum town.Spend
	for _, t := range w.shadow.towns {
		sum = plus(sum, lent(t.info.Blocks, func(b town.Block) bool { return b.Day == d.Day }))
	}
	w.holds(invGranted, d.GrantedTokens == sum.Tokens && d.GrantedCost == sum.Cost, nil, "the server's day has %d tokens and %d of money granted, and all blocks are %+v", d.GrantedTokens, d.GrantedCost, sum)
}
