package storetest

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// Memory is a Store in maps: deterministic, without goroutines, fast enough for a
// simulator that runs days in seconds. It forgets everything when dropped, not
// when closed: Reopen gives the same data to a "new process".
type Memory struct {
	mu     sync.Mutex // guards all below
	closed bool
	d      *data
}

// data outlives Close, as files would.
type data struct {
	towns  map[string]*townData
	names  map[string]string         // name -> id
	prefix map[string]store.RigIndex // prefix -> rig
	idem   map[[2]string]store.Idem  // (town, key)
	slots  map[string]store.Slot
	meta   map[string]string
	days   map[string]store.DaySpend
	stats  store.Stats
}

type rowKey struct{ kind, id string }

type chunkKey struct {
	run        string
	epoch, seq int64
}

type townData struct {
	head   store.Head
	hash   int64
	rows   map[rowKey]store.Row
	ledger []store.Entry
	rigs   map[string]store.RigIndex
	chunks map[chunkKey]store.Chunk
}

var _ store.Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{d: &data{
		towns: map[string]*townData{}, names: map[string]string{}, prefix: map[string]store.RigIndex{},
		idem: map[[2]string]store.Idem{}, slots: map[string]store.Slot{}, meta: map[string]string{}, days: map[string]store.DaySpend{},
	}}
}

// Reopen closes m and returns a store with the same data.
func (m *Memory) Reopen() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return &Memory{d: m.d}
}

// enter locks the store for one call. The caller must run the returned function.
func (m *Memory) enter(ctx context.Context) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, store.ErrClosed()
	}
	return m.mu.Unlock, nil
}

func (m *Memory) town(id string) (*townData, error) {
	t, ok := m.d.towns[id]
	if !ok {
		return nil, store.ErrNoTown(id)
	}
	return t, nil
}

func limitOf(n int) int {
	if n <= 0 {
		return store.DefaultLimit
	}
	return n
}

func firstN[T any](s []T, n int) []T { return s[:min(len(s), limitOf(n))] }

// CreateTown implements store.Store.
func (m *Memory) CreateTown(ctx context.Context, h store.Head, rows []store.Row, ledger []store.Entry) error {
	if err := store.CheckCreate(h, rows, ledger); err != nil {
		return err
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if _, ok := m.d.towns[h.ID]; ok {
		return store.ErrNameTaken(h.Name)
	}
	if _, ok := m.d.names[h.Name]; ok {
		return store.ErrNameTaken(h.Name)
	}
	h.Version, h.LedgerSeq = 1, int64(len(ledger))
	t := &townData{head: h, hash: store.HashOf(h.ID), rows: map[rowKey]store.Row{}, rigs: map[string]store.RigIndex{},
		chunks: map[chunkKey]store.Chunk{}}
	m.d.towns[h.ID], m.d.names[h.Name] = t, h.ID
	m.write(t, rows, ledger)
	m.wrote(1, 0)
	m.batch()
	return nil
}

func (m *Memory) write(t *townData, rows []store.Row, ledger []store.Entry) {
	for _, r := range rows {
		r.Version, r.Body = t.head.Version, slices.Clone(r.Body)
		t.rows[rowKey{r.Kind, r.ID}] = r
		m.wrote(1, len(r.Body))
	}
	for _, e := range ledger {
		e.Body = slices.Clone(e.Body)
		t.ledger = append(t.ledger, e)
		m.wrote(1, len(e.Body))
	}
}

func (m *Memory) wrote(n, bytes int) {
	m.d.stats.Writes += int64(n)
	m.d.stats.Bytes += int64(bytes)
}

func (m *Memory) batch() {
	m.d.stats.Jobs++
	m.d.stats.Batches++
}

// Commit implements store.Store. It checks everything before it changes anything.
func (m *Memory) Commit(ctx context.Context, c store.Commit) (int64, error) {
	if err := c.Check(); err != nil {
		return 0, err
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	t, err := m.town(c.Town)
	if err != nil {
		return 0, err
	}
	if t.head.Version != c.Expect {
		return 0, store.ErrVersion
	}
	if len(c.Ledger) > 0 && c.Ledger[0].Seq != t.head.LedgerSeq+1 {
		return 0, store.ErrGap(c.Town, t.head.LedgerSeq+1, c.Ledger[0].Seq)
	}
	if err := m.checkIdem(c.Town, c.Idem); err != nil {
		return 0, err
	}
	if err := m.checkRigs(c.Town, c.Rigs); err != nil {
		return 0, err
	}
	for _, d := range c.Spend {
		if c.Limits.Refuse(d, m.d.days[d.Day]) {
			return 0, store.ErrBudget
		}
	}
	m.apply(t, &c)
	return t.head.Version, nil
}

func (m *Memory) apply(t *townData, c *store.Commit) {
	t.head.Version++
	t.head.CommitID, t.head.Columns = c.CommitID, c.Columns
	t.head.LedgerSeq += int64(len(c.Ledger))
	m.write(t, c.Rows, c.Ledger)
	for _, r := range c.Idem {
		r.Body = slices.Clone(r.Body)
		m.d.idem[[2]string{c.Town, r.Key}] = r
		m.wrote(1, len(r.Body))
	}
	m.applyRigs(t, c.Rigs)
	for _, d := range c.Spend {
		m.d.days[d.Day] = d.Add(m.d.days[d.Day])
		m.wrote(1, 0)
	}
	switch c.Slot {
	case store.SlotAwake:
		s, ok := m.d.slots[c.Town]
		if !ok {
			s = store.Slot{Town: c.Town, Since: c.At, Seen: c.At}
		}
		s.State, s.At = store.SlotIsAwake, c.At
		m.d.slots[c.Town] = s
		m.wrote(1, 0)
	case store.SlotRelease:
		delete(m.d.slots, c.Town)
		m.wrote(1, 0)
	}
	m.wrote(1, 0)
	m.batch()
}

func (m *Memory) checkIdem(town string, records []store.Idem) error {
	seen := map[string]string{}
	for _, r := range records {
		hash, ok := seen[r.Key]
		if old, stored := m.d.idem[[2]string{town, r.Key}]; stored {
			hash, ok = old.Hash, true
		}
		switch {
		case ok && hash == r.Hash:
			return store.ErrReplay
		case ok:
			return store.ErrKeyTaken(r.Key)
		}
		seen[r.Key] = r.Hash
	}
	return nil
}

// checkRigs plays the change through on the side: removals first, then the others
// in order.
func (m *Memory) checkRigs(town string, rigs []store.RigIndex) error {
	if len(rigs) == 0 {
		return nil
	}
	mine := map[string]string{} // rig -> prefix after the change
	for rig, r := range m.d.towns[town].rigs {
		mine[rig] = r.Prefix
	}
	for _, r := range rigs {
		if r.Removed {
			delete(mine, r.Rig)
		}
	}
	for _, r := range rigs {
		if r.Removed {
			continue
		}
		if holder, ok := m.d.prefix[r.Prefix]; ok && holder.Town != town {
			return store.ErrPrefixTaken(r.Prefix)
		}
		for rig, prefix := range mine {
			if prefix == r.Prefix && rig != r.Rig {
				return store.ErrPrefixTaken(r.Prefix)
			}
		}
		mine[r.Rig] = r.Prefix
	}
	return nil
}

func (m *Memory) applyRigs(t *townData, rigs []store.RigIndex) {
	drop := func(rig string) {
		if old, ok := t.rigs[rig]; ok {
			delete(t.rigs, rig)
			delete(m.d.prefix, old.Prefix)
		}
	}
	for _, r := range rigs {
		if r.Removed {
			drop(r.Rig)
			m.wrote(1, 0)
		}
	}
	for _, r := range rigs {
		if !r.Removed {
			drop(r.Rig)
			r.Town = t.head.ID
			t.rigs[r.Rig], m.d.prefix[r.Prefix] = r, r
			m.wrote(1, 0)
		}
	}
}

// ClaimDue implements store.Store.
func (m *Memory) ClaimDue(ctx context.Context, now, until int64, limit int) ([]store.Head, error) {
	if until <= now {
		return nil, errs.New(errs.Invalid, "a claim must end after now")
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	due := m.matching(func(t *townData) bool { return t.head.DueAt != 0 && t.head.DueAt <= now }, byDue)
	if len(due) == 0 {
		return nil, nil
	}
	due = firstN(due, limit)
	for _, h := range due {
		m.d.towns[h.ID].head.DueAt = until
		m.wrote(1, 0)
	}
	m.batch()
	return due, nil
}

// PutIdem implements store.Store.
func (m *Memory) PutIdem(ctx context.Context, town string, r store.Idem) error {
	if err := store.CheckIdem(r); err != nil {
		return err
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if town != "" {
		if _, err := m.town(town); err != nil {
			return err
		}
	}
	switch err := m.checkIdem(town, []store.Idem{r}); err {
	case nil:
	case store.ErrReplay:
		return nil
	default:
		return err
	}
	r.Body = slices.Clone(r.Body)
	m.d.idem[[2]string{town, r.Key}] = r
	m.wrote(1, len(r.Body))
	m.batch()
	return nil
}

// PruneIdem implements store.Store.
func (m *Memory) PruneIdem(ctx context.Context, before int64, limit int) (int, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	var old [][2]string
	for k, r := range m.d.idem {
		if r.At < before {
			old = append(old, k)
		}
	}
	slices.SortFunc(old, func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(m.d.idem[a].At, m.d.idem[b].At), cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	})
	old = firstN(old, limit)
	for _, k := range old {
		delete(m.d.idem, k)
	}
	m.pruned(len(old))
	return len(old), nil
}

func (m *Memory) pruned(n int) {
	if n > 0 {
		m.wrote(n, 0)
		m.batch()
	}
}

// Admit implements store.Store.
func (m *Memory) Admit(ctx context.Context, town string, now int64, l store.Limits) (store.Admission, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return store.Admission{}, err
	}
	defer leave()
	if _, err := m.town(town); err != nil {
		return store.Admission{}, err
	}
	mine, ok := m.d.slots[town]
	if !ok {
		mine = store.Slot{Town: town, Since: now}
	}
	if ok && mine.State != store.SlotWaiting {
		return store.Admission{Granted: true}, nil
	}
	ahead := 0
	for _, s := range m.d.slots {
		if s.State == store.SlotWaiting && s.Seen >= now-store.WaiterTTL && bySince(s, mine) < 0 {
			ahead++
		}
	}
	answer := store.Decide(m.counts(), ahead, l)
	state := store.SlotWaiting
	if answer.Granted {
		state = store.SlotStarting
	} else if ok && now-mine.Seen < store.WaiterTTL/3 {
		return answer, nil
	}
	if mine.State != state {
		mine.At = now
	}
	mine.State, mine.Seen = state, now
	m.d.slots[town] = mine
	m.wrote(1, 0)
	m.batch()
	return answer, nil
}

func bySince(a, b store.Slot) int {
	return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.Town, b.Town))
}

func (m *Memory) counts() (c store.SlotCounts) {
	for _, s := range m.d.slots {
		switch s.State {
		case store.SlotWaiting:
			c.Waiting++
		case store.SlotStarting:
			c.Starting++
		case store.SlotIsAwake:
			c.Awake++
		}
	}
	return c
}

// AppendTranscript implements store.Store.
func (m *Memory) AppendTranscript(ctx context.Context, chunks []store.Chunk) error {
	if err := store.CheckChunks(chunks); err != nil || len(chunks) == 0 {
		return err
	}
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	for _, c := range chunks {
		if _, err := m.town(c.Town); err != nil {
			return err
		}
	}
	var room store.Room
	for _, c := range chunks {
		t := m.d.towns[c.Town]
		c, ok, err := room.Take(c, func() (size int64, full bool, err error) {
			mark := store.TranscriptEnd(c)
			_, full = t.chunks[chunkKey{c.Run, c.Epoch, mark.Seq}]
			for _, o := range t.chunks {
				if o.Run == c.Run && o.Epoch == c.Epoch {
					size += int64(len(o.Body)) + store.ChunkCost
				}
			}
			return size, full, nil
		})
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		k := chunkKey{c.Run, c.Epoch, c.Seq}
		if _, ok := t.chunks[k]; ok {
			continue
		}
		c.Body = slices.Clone(c.Body)
		t.chunks[k] = c
		m.wrote(1, len(c.Body))
	}
	m.batch()
	return nil
}

// PruneTranscripts implements store.Store.
func (m *Memory) PruneTranscripts(ctx context.Context, before int64, limit int) (int, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	var old []store.Chunk
	for _, t := range m.d.towns {
		for _, c := range t.chunks {
			if c.At < before {
				old = append(old, c)
			}
		}
	}
	slices.SortFunc(old, func(a, b store.Chunk) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Town, b.Town), cmp.Compare(a.Run, b.Run),
			cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq))
	})
	old = firstN(old, limit)
	for _, c := range old {
		delete(m.d.towns[c.Town].chunks, chunkKey{c.Run, c.Epoch, c.Seq})
	}
	m.pruned(len(old))
	return len(old), nil
}

// PruneLedger implements store.Store.
func (m *Memory) PruneLedger(ctx context.Context, town string, before int64, limit int) (int, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	t, ok := m.d.towns[town]
	if !ok {
		return 0, nil
	}
	n := 0
	for n < min(len(t.ledger), limitOf(limit)) && t.ledger[n].At < before {
		n++
	}
	t.ledger = slices.Clone(t.ledger[n:])
	m.pruned(n)
	return n, nil
}

// DeleteTown implements store.Store.
func (m *Memory) DeleteTown(ctx context.Context, id string) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	t, err := m.town(id)
	if err != nil {
		return err
	}
	delete(m.d.towns, id)
	delete(m.d.names, t.head.Name)
	delete(m.d.slots, id)
	for _, r := range t.rigs {
		delete(m.d.prefix, r.Prefix)
	}
	for k := range m.d.idem {
		if k[0] == id {
			delete(m.d.idem, k)
		}
	}
	m.wrote(1, 0)
	m.batch()
	return nil
}

// SetMeta implements store.Store.
func (m *Memory) SetMeta(ctx context.Context, key, value string) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	m.d.meta[key] = value
	m.wrote(1, len(value))
	m.batch()
	return nil
}

// Stats implements store.Store.
func (m *Memory) Stats() store.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.d.stats
}

// Close implements store.Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

const unbounded = math.MaxInt64
