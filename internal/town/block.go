package town

import (
	"slices"
	"strconv"
	"time"

	"gastown/internal/errs"
)

// Block is an amount of tokens and money that a run may spend before its meter
// reports: it is stored before the first request that lives on it, so that nothing
// is spent that no budget knows of. Until it is settled, by a report under its
// name, it counts in full; one that is never settled is charged in full.
type Block struct {
	ID     string `json:"id"` // the name of the meter that settles it
	Run    string `json:"run"`
	Epoch  int64  `json:"epoch"`
	Bead   string `json:"bead"`
	Day    string `json:"day"`              // on which it counts
	Tokens int64  `json:"tokens,omitempty"` // 0: nothing limits them
	Cost   int64  `json:"cost_micros,omitempty"`
	Until  Time   `json:"until"` // when it is charged in full
}

// Granted is what was granted and not settled.
type Granted struct {
	Tokens int64 `json:"tokens,omitempty"`
	Cost   int64 `json:"cost_micros,omitempty"`
}

func (g Granted) add(o Granted) Granted { return Granted{g.Tokens + o.Tokens, g.Cost + o.Cost} }

const (
	// BlockLife is how long a block lives that nobody prolongs.
	BlockLife = 10 * time.Minute
	// maxBlocks bounds the blocks of a town. A run needs one, and for a moment two.
	maxBlocks = 500
	// blockTokens and blockCost are the largest block that is granted to a request
	// that needs less; blockShare is the part of what is left that it may take.
	blockTokens = 200_000
	blockCost   = 1_000_000
	blockShare  = 8
)

// takeBlock grants a run a block, or prolongs the one of this name. It gets what
// the request needs, or a share of what is left if that is more, and at the end of
// a budget whatever is left: the request that goes over it is the last.
func (t *Town) takeBlock(now Time, in TakeBlock) error {
	if err := cleanLine("name of the block", in.ID, 64); err != nil {
		return err
	}
	if in.ID == "" || in.Tokens < 0 || in.Tokens > maxMeterTokens || in.Cost < 0 || in.Cost > maxMeterCost {
		return errs.New(errs.Invalid, "a block needs a name, and tokens and cost that can be")
	}
	r := t.runs[in.Run]
	if r == nil || r.Epoch != in.Epoch {
		return errs.New(errs.Gone, "run %s, epoch %d, is not current", clip(in.Run, 60), in.Epoch)
	}
	if i := slices.IndexFunc(t.info.Blocks, func(b Block) bool { return b.ID == in.ID }); i >= 0 {
		return t.prolong(now, i, in)
	}
	b := t.beads[r.Bead]
	switch {
	case b == nil:
		return errs.New(errs.Gone, "the bead of run %s is gone", r.ID)
	case r.State == RunDraining:
		return errs.New(errs.Conflict, "run %s is being stopped", r.ID)
	case slices.ContainsFunc(r.Marks, func(m Mark) bool { return m.Meter == in.ID }):
		return errs.New(errs.Conflict, "the block is settled already")
	case len(t.info.Blocks) >= maxBlocks:
		return overGranted("town " + t.info.Name + " has " + strconv.Itoa(maxBlocks) + " blocks that are not settled")
	}
	tokens, cost, err := t.blockFor(b, now, in)
	if err != nil {
		return err
	}
	t.info.Blocks = append(slices.Clone(t.info.Blocks), Block{ID: in.ID, Run: r.ID, Epoch: r.Epoch, Bead: b.ID, Day: dayOf(now),
		Tokens: tokens, Cost: cost, Until: now.Add(BlockLife)})
	t.mark(kindTown, t.info.ID)
	t.lend(dayOf(now), tokens, cost)
	return nil
}

func (t *Town) prolong(now Time, i int, in TakeBlock) error {
	if b := t.info.Blocks[i]; b.Run != in.Run || b.Epoch != in.Epoch {
		return errs.New(errs.Conflict, "the block is that of another run")
	}
	t.info.Blocks = slices.Clone(t.info.Blocks)
	t.info.Blocks[i].Until = now.Add(BlockLife)
	t.mark(kindTown, t.info.ID)
	return nil
}

// blockFor is how much a new block has; 0 of what nothing limits.
func (t *Town) blockFor(b *Bead, now Time, in TakeBlock) (tokens, cost int64, err error) {
	for _, bud := range append(t.sharedBudgets(now, false), t.beadBudgets(b, now, false)...) {
		if bud.What == "awake" {
			continue
		}
		left := bud.Left()
		switch {
		case bud.Spent >= bud.Limit:
			return 0, 0, errs.New(errs.Conflict, "%s", t.budgetText(bud, b.ID))
		case left == 0:
			return 0, 0, overGranted("all that is left of " + bud.Setting() + " is granted to requests under way")
		case bud.What == "tokens":
			tokens = smaller(tokens, share(left, in.Tokens, blockTokens))
		case bud.What == "cost":
			cost = smaller(cost, share(left, in.Cost, blockCost))
		}
	}
	return tokens, cost, nil
}

func overGranted(why string) error {
	e := errs.New(errs.Overloaded, "%s", why).WithHint("try again in a second")
	e.RetryAfter = time.Second
	return e
}

// smaller is the smaller of two, of which the first may be none.
func smaller(a, b int64) int64 {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// share is what a request that needs so much gets of what is left.
func share(left, need, most int64) int64 {
	return min(left, max(need, min(most, left/blockShare), 1))
}

// takeBack ends the block that a report settles.
func (t *Town) takeBack(in Metered) (Block, bool) {
	i := slices.IndexFunc(t.info.Blocks, func(b Block) bool { return b.ID == in.Meter && b.Run == in.Run && b.Epoch == in.Epoch })
	if i < 0 {
		return Block{}, false
	}
	b := t.info.Blocks[i]
	t.info.Blocks = slices.Delete(slices.Clone(t.info.Blocks), i, i+1)
	t.mark(kindTown, t.info.ID)
	t.lend(b.Day, -b.Tokens, -b.Cost)
	return b, true
}

func (t *Town) lend(day string, tokens, cost int64) {
	if tokens != 0 || cost != 0 {
		t.lent[day] = t.lent[day].add(Granted{tokens, cost})
	}
}

// ruleBlocks charges what was granted and never settled: whoever had it has died.
// A town that is removed settles all, because the server's day outlives it.
func (t *Town) ruleBlocks(now Time) bool {
	moved := false
	for _, b := range t.info.Blocks {
		if b.Until > now && !t.info.Removed {
			continue
		}
		moved = true
		in := Metered{Run: b.Run, Epoch: b.Epoch, Meter: b.ID, Seq: 1, Tokens: b.Tokens, Cost: b.Cost}
		if t.metered(now, in) != nil { // its bead is gone
			t.takeBack(in)
			t.spend(b.Day, Spend{Tokens: b.Tokens, Cost: b.Cost})
		}
		t.log(now, "budget.unsettled", b.Run, "", "what it was granted was never settled, and counts in full", "bead", b.Bead,
			"tokens", nonZero(b.Tokens), "cost_micros", nonZero(b.Cost))
	}
	return moved
}

// grantedTo sums the blocks that count against a budget.
func (t *Town) grantedTo(counts func(Block) bool) (g Granted) {
	for _, b := range t.info.Blocks {
		if counts(b) {
			g = g.add(Granted{b.Tokens, b.Cost})
		}
	}
	return g
}

// grantedIn is what the town has granted that counts in a period.
func (t *Town) grantedIn(p period) Granted {
	return t.grantedTo(func(b Block) bool { return p.until == 0 || b.Day >= dayOf(p.from) && b.Day < dayOf(p.until) })
}

// serverGranted is what all towns have granted today, as far as this one knows.
func (t *Town) serverGranted(now Time) Granted {
	today := dayOf(now)
	g := t.lent[today]
	if t.serverDay.Day == today {
		g = g.add(t.serverDay.Granted)
	}
	return Granted{max(g.Tokens, 0), max(g.Cost, 0)}
}

// NeedsBlock reports whether what a run spends on its model is limited.
func (t *Town) NeedsBlock(run string) bool {
	r := t.runs[run]
	if r == nil {
		return false
	}
	limited := func(s Spend) bool { return s.Tokens > 0 || s.Cost > 0 }
	b := t.beads[r.Bead]
	return limited(t.limitOf(scopeTown, nil, nil)) || limited(t.limitOf(scopeServer, nil, nil)) ||
		b != nil && limited(t.limitOf(scopeBead, b, t.rigs[b.Rig]))
}

// Blocks returns what is granted and not settled.
func (t *Town) Blocks() []Block { return slices.Clone(t.info.Blocks) }
