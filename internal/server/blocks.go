package server

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

const (
	// blockIdle is how long what is left of a block stays with a run that asks nothing.
	blockIdle = 20 * time.Second
	// blockRenew is how old a block gets; one with requests under way is prolonged.
	blockRenew = town.BlockLife / 2
	// blockWait is how long a request waits for others to give back what is left.
	blockWait = 30 * time.Second
	// blockLook is how often it looks meanwhile: others may be other servers.
	blockLook = time.Second
)

// blocks are what this process holds of the budgets of runs. Requests live on the
// block of their run without a commit each; what they used is reported when the
// block is used up, or nobody needs it. A process that dies reports nothing, and
// its blocks are charged in full by their towns.
type blocks struct {
	hall Hall
	log  *slog.Logger

	mu   sync.Mutex // guards all below, and all accounts and blocks
	runs map[gateway.ModelGrant]*account
	back chan struct{} // closed, and replaced, when a block was taken or settled
}

// account is what a run has.
type account struct {
	asking bool                // somebody asks for a block
	cur    *block              // for the next request; nil: none
	all    map[*block]struct{} // that are not settled
}

// block is a town.Block in use.
type block struct {
	key           gateway.ModelGrant
	id            string
	tokens, cost  int64 // granted; 0: nothing limits them
	used, held    town.Granted
	unpriced      int64 // of used
	requests      int   // under way
	over, settled bool  // over: it takes no more requests
	begin         time.Time
	timer         *time.Timer
}

func newBlocks(h Hall, log *slog.Logger) *blocks {
	return &blocks{hall: h, log: log, runs: map[gateway.ModelGrant]*account{}, back: make(chan struct{})}
}

// keyOf leaves only what names a run.
func keyOf(g gateway.ModelGrant) gateway.ModelGrant {
	return gateway.ModelGrant{Town: g.Town, Run: g.Run, Epoch: g.Epoch}
}

func (b *blocks) account(key gateway.ModelGrant) *account {
	a := b.runs[key]
	if a == nil {
		a = &account{all: map[*block]struct{}{}}
		b.runs[key] = a
	}
	return a
}

// Reserve implements gateway.ModelBudget.
func (b *blocks) Reserve(ctx context.Context, g gateway.ModelGrant, tokens, cost int64) (gateway.Share, error) {
	key, need, end := keyOf(g), town.Granted{Tokens: tokens, Cost: cost}, time.Now().Add(blockWait)
	for {
		s, old, back := b.hold(key, need)
		if s != nil {
			return s, nil
		}
		if back != nil { // another request of the run asks
			if err := wait(ctx, back, blockLook); err != nil {
				return nil, err
			}
			continue
		}
		if old != nil {
			b.settle(old)
		}
		s, back, err := b.more(ctx, key, need)
		if err == nil || !errs.Is(err, errs.Overloaded) || time.Now().After(end) {
			if err != nil {
				return nil, err
			}
			return s, nil
		}
		if b.settleIdle(g.Town, "") {
			continue
		}
		if err := wait(ctx, back, blockLook); err != nil {
			return nil, err
		}
	}
}

func wait(ctx context.Context, c <-chan struct{}, most time.Duration) error {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
	case <-ctx.Done():
		return errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for a budget")
	}
	return nil
}

// hold takes a share of the present block, or says for what to wait, or makes the
// caller the one who asks for another block. It then settles old, if there is one.
func (b *blocks) hold(key gateway.ModelGrant, need town.Granted) (s *share, old *block, back <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.account(key)
	if a.cur != nil && a.cur.fits(need) {
		return b.share(a.cur, need), nil, nil
	}
	if a.asking {
		return nil, nil, b.back
	}
	a.asking = true
	if old = a.cur; old != nil {
		a.cur, old.over = nil, true
		if old.requests > 0 {
			old = nil // the last of them settles it
		}
	}
	return nil, old, nil
}

// fits reports whether a request may live on a block. The first one always may:
// the end of a budget is less than it needs.
func (k *block) fits(need town.Granted) bool {
	enough := func(granted, used, held, need int64) bool { return granted == 0 || used+held+need <= granted }
	return !k.over && time.Since(k.begin) < blockRenew &&
		enough(k.tokens, k.used.Tokens, k.held.Tokens, need.Tokens) && enough(k.cost, k.used.Cost, k.held.Cost, need.Cost)
}

// more asks the town for a block.
func (b *blocks) more(ctx context.Context, key gateway.ModelGrant, need town.Granted) (*share, <-chan struct{}, error) {
	k, err := b.take(ctx, key, need)
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.account(key)
	a.asking = false
	back := b.back
	if err != nil {
		b.drop(key, nil)
		return nil, back, err
	}
	a.cur = k
	a.all[k] = struct{}{}
	k.timer = time.AfterFunc(blockRenew, func() { b.look(k) })
	b.signal()
	return b.share(k, need), nil, nil
}

func (b *blocks) signal() {
	close(b.back)
	b.back = make(chan struct{})
}

// take commits a block and reads how much it has.
func (b *blocks) take(ctx context.Context, key gateway.ModelGrant, need town.Granted) (*block, error) {
	k := &block{key: key, id: "bk-" + rand.Text(), begin: time.Now()}
	ctx, cancel := context.WithTimeout(ctx, usedTimeout)
	defer cancel()
	if err := b.do(ctx, key.Town, k.take(need)); err != nil {
		return nil, err
	}
	found := false
	err := b.hall.View(ctx, key.Town, func(t *town.Town, _ time.Time) error {
		for _, is := range t.Blocks() {
			if is.ID == k.id {
				k.tokens, k.cost, found = is.Tokens, is.Cost, true
			}
		}
		return nil
	})
	if err == nil && !found {
		err = errs.New(errs.Unavailable, "a block of the budget was granted and is gone")
	}
	return k, err
}

func (k *block) take(need town.Granted) town.TakeBlock {
	return town.TakeBlock{Run: k.key.Run, Epoch: k.key.Epoch, ID: k.id, Tokens: need.Tokens, Cost: need.Cost}
}

// do hands an input in, again while its outcome is unknown.
func (b *blocks) do(ctx context.Context, id string, in town.Input) (err error) {
	for range 3 {
		if err = b.hall.Do(ctx, id, in); !errs.Is(err, errs.Unavailable) {
			break
		}
	}
	return err
}

// share is what one request holds of a block.
type share struct {
	b    *blocks
	k    *block
	need town.Granted
	once sync.Once
}

// share takes a part of a block, with the lock held.
func (b *blocks) share(k *block, need town.Granted) *share {
	k.held.Tokens += need.Tokens
	k.held.Cost += need.Cost
	if k.requests++; k.requests == 1 {
		k.timer.Reset(blockRenew)
	}
	return &share{b: b, k: k, need: need}
}

// Spent implements gateway.Share.
func (s *share) Spent(tokens, cost int64, priced bool) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.k.used.Tokens += tokens
	s.k.used.Cost += cost
	if !priced {
		s.k.unpriced += tokens
	}
}

// End implements gateway.Share. Who uses a block up reports it, so that the town
// knows at once.
func (s *share) End() { s.once.Do(s.end) }

func (s *share) end() {
	b, k := s.b, s.k
	b.mu.Lock()
	k.held.Tokens -= s.need.Tokens
	k.held.Cost -= s.need.Cost
	k.requests--
	used := k.tokens > 0 && k.used.Tokens >= k.tokens || k.cost > 0 && k.used.Cost >= k.cost
	k.over = k.over || used
	done := k.over && k.requests == 0
	if !done && k.requests == 0 {
		k.timer.Reset(blockIdle)
	}
	b.mu.Unlock()
	if done {
		b.settle(k)
	}
}

// look settles a block that nobody uses, and prolongs one in use.
func (b *blocks) look(k *block) {
	b.mu.Lock()
	use := k.requests > 0
	k.over = k.over || !use
	b.mu.Unlock()
	if !use {
		b.settle(k)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), usedTimeout)
	defer cancel()
	if err := b.do(ctx, k.key.Town, k.take(town.Granted{})); err != nil {
		b.log.Debug("a block of a budget could not be prolonged", "run", k.key.Run, "err", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !k.settled {
		k.timer.Reset(blockRenew)
	}
}

// settle reports what a block without requests used, and gives the rest back.
func (b *blocks) settle(k *block) {
	b.mu.Lock()
	again := k.settled || k.requests > 0
	k.settled = k.settled || !again
	b.mu.Unlock()
	if again {
		return
	}
	k.timer.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), usedTimeout)
	defer cancel()
	err := b.do(ctx, k.key.Town, town.Metered{Run: k.key.Run, Epoch: k.key.Epoch, Meter: k.id, Seq: 1,
		Tokens: k.used.Tokens, Cost: k.used.Cost, Unpriced: k.unpriced})
	if err != nil {
		b.log.Error("what a run used of its budget could not be recorded: its block will count in full", "run", k.key.Run,
			"tokens", k.used.Tokens, "cost", k.used.Cost, "err", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(k.key, k)
	b.signal()
}

// drop forgets a block, and an account without any.
func (b *blocks) drop(key gateway.ModelGrant, k *block) {
	a := b.runs[key]
	if a == nil {
		return
	}
	if delete(a.all, k); a.cur == k {
		a.cur = nil
	}
	if len(a.all) == 0 && !a.asking {
		delete(b.runs, key)
	}
}

// settleIdle settles what has no request under way, of a run, or of a town, or of
// all. It reports whether there was anything.
func (b *blocks) settleIdle(townID, run string) bool {
	b.mu.Lock()
	var all []*block
	for key, a := range b.runs {
		if townID != "" && key.Town != townID || run != "" && key.Run != run {
			continue
		}
		for k := range a.all {
			if k.requests == 0 && !k.settled {
				k.over = true
				all = append(all, k)
			}
		}
	}
	b.mu.Unlock()
	for _, k := range all {
		b.settle(k)
	}
	return len(all) > 0
}

// settleEnded settles the blocks of runs before their end is told: what they cost
// is then known when they end.
func (b *blocks) settleEnded(townID string, in wire.ReportsRequest) {
	for _, item := range in.Items {
		if item.Kind == town.ReportEnded {
			b.settleIdle(townID, item.Run)
		}
	}
}

// Settle reports what runs used of their budgets, as a server does that ends. What
// it can't report counts in full.
func (s *Server) Settle() { s.blocks.settleIdle("", "") }
