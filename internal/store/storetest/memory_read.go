package storetest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"gastown/internal/store"
)

func byID(a, b store.Head) int { return strings.Compare(a.ID, b.ID) }

func byName(a, b store.Head) int { return strings.Compare(a.Name, b.Name) }

func byDue(a, b store.Head) int { return cmp.Or(cmp.Compare(a.DueAt, b.DueAt), byID(a, b)) }

// heads returns the towns that match, sorted.
func (m *Memory) heads(ctx context.Context, match func(*townData) bool, order func(a, b store.Head) int) ([]store.Head, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return m.matching(match, order), nil
}

func (m *Memory) matching(match func(*townData) bool, order func(a, b store.Head) int) []store.Head {
	var out []store.Head
	for _, t := range m.d.towns {
		if match(t) {
			out = append(out, t.head)
		}
	}
	slices.SortFunc(out, order)
	return out
}

// Find implements store.Store.
func (m *Memory) Find(ctx context.Context, nameOrID string) (store.Head, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return store.Head{}, err
	}
	defer leave()
	if t, ok := m.d.towns[nameOrID]; ok {
		return t.head, nil
	}
	if id, ok := m.d.names[nameOrID]; ok {
		return m.d.towns[id].head, nil
	}
	return store.Head{}, store.ErrNoTown(nameOrID)
}

// Heads implements store.Store.
func (m *Memory) Heads(ctx context.Context, after string, limit int) ([]store.Head, error) {
	all, err := m.heads(ctx, func(t *townData) bool { return t.head.Name > after }, byName)
	return firstN(all, limit), err
}

// Head implements store.Store.
func (m *Memory) Head(ctx context.Context, id string) (store.Head, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return store.Head{}, err
	}
	defer leave()
	t, err := m.town(id)
	if err != nil {
		return store.Head{}, err
	}
	return t.head, nil
}

// Load implements store.Store.
func (m *Memory) Load(ctx context.Context, id string, since int64) (store.Head, []store.Row, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return store.Head{}, nil, err
	}
	defer leave()
	t, err := m.town(id)
	if err != nil {
		return store.Head{}, nil, err
	}
	if since >= t.head.Version {
		return t.head, nil, nil
	}
	var rows []store.Row
	for _, r := range t.rows {
		if r.Version > since && (since > 0 || r.Body != nil) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b store.Row) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
	})
	return t.head, rows, nil
}

// CommitKnown implements store.Store.
func (m *Memory) CommitKnown(ctx context.Context, town, commitID string) (bool, error) {
	h, err := m.Head(ctx, town)
	return err == nil && h.CommitID == commitID, err
}

// NextDue implements store.Store.
func (m *Memory) NextDue(ctx context.Context) (int64, bool, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return 0, false, err
	}
	defer leave()
	next := int64(unbounded)
	for _, t := range m.d.towns {
		if t.head.DueAt != 0 {
			next = min(next, t.head.DueAt)
		}
	}
	if next == unbounded {
		return 0, false, nil
	}
	return next, true, nil
}

// IdleSlice implements store.Store.
func (m *Memory) IdleSlice(ctx context.Context, slice, slices int, now int64) ([]store.Head, error) {
	lo, hi, err := store.SliceBounds(slice, slices)
	if err != nil {
		return nil, err
	}
	return m.heads(ctx, func(t *townData) bool {
		due := t.head.DueAt != 0 && t.head.DueAt <= now
		return t.head.IdleMS == 0 && t.hash >= lo && t.hash < hi && (due || t.head.Contradicts())
	}, byID)
}

// IdleOwn implements store.Store.
func (m *Memory) IdleOwn(ctx context.Context, from, to int64) (found []store.Head, least int64, err error) {
	found, err = m.heads(ctx, func(t *townData) bool {
		h := t.head
		if h.IdleMS == 0 {
			return false
		}
		if least == 0 || h.IdleMS < least {
			least = h.IdleMS
		}
		due := h.DueAt != 0 && h.DueAt <= to
		return (due || h.Contradicts()) && store.Beat(h.ID, h.IdleMS, from) <= to
	}, byID)
	return found, least, err
}

// AwakeTowns implements store.Store.
func (m *Memory) AwakeTowns(ctx context.Context) ([]store.Head, error) {
	return m.heads(ctx, func(t *townData) bool { return t.head.Sandbox != store.Asleep }, byID)
}

// BudgetTowns implements store.Store.
func (m *Memory) BudgetTowns(ctx context.Context) ([]store.Head, error) {
	return m.heads(ctx, func(t *townData) bool { return t.head.WaitsBudget }, byID)
}

// ServerDays implements store.Store.
func (m *Memory) ServerDays(ctx context.Context, from string, limit int) ([]store.DaySpend, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var out []store.DaySpend
	for day, d := range m.d.days {
		if day >= from {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b store.DaySpend) int { return strings.Compare(a.Day, b.Day) })
	return firstN(out, limit), nil
}

// FindRig implements store.Store.
func (m *Memory) FindRig(ctx context.Context, rig string) ([]store.RigIndex, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var out []store.RigIndex
	for _, id := range slices.Sorted(maps.Keys(m.d.towns)) {
		if r, ok := m.d.towns[id].rigs[rig]; ok {
			out = append(out, r)
		}
	}
	return out, nil
}

// FindPrefix implements store.Store.
func (m *Memory) FindPrefix(ctx context.Context, prefix string) ([]store.RigIndex, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if r, ok := m.d.prefix[prefix]; ok {
		return []store.RigIndex{r}, nil
	}
	return nil, nil
}

// Ledger implements store.Store.
func (m *Memory) Ledger(ctx context.Context, town string, q store.LedgerQuery) ([]store.Entry, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	t, ok := m.d.towns[town]
	if !ok {
		return nil, nil
	}
	var out []store.Entry
	for _, e := range t.ledger {
		if e.Seq > q.After && (q.Before <= 0 || e.Seq < q.Before) &&
			(q.Subject == "" || e.Subject == q.Subject) && (q.Kind == "" || e.Kind == q.Kind) {
			out = append(out, e)
		}
	}
	if q.Desc {
		slices.Reverse(out)
	}
	return firstN(out, q.Limit), nil
}

// Idem implements store.Store.
func (m *Memory) Idem(ctx context.Context, town, key string) (store.Idem, bool, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return store.Idem{}, false, err
	}
	defer leave()
	r, ok := m.d.idem[[2]string{town, key}]
	return r, ok, nil
}

func (m *Memory) sortedSlots(ctx context.Context, order func(a, b store.Slot) int) ([]store.Slot, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return slices.SortedFunc(maps.Values(m.d.slots), order), nil
}

// Waiting implements store.Store.
func (m *Memory) Waiting(ctx context.Context, limit int) ([]string, error) {
	all, err := m.sortedSlots(ctx, bySince)
	var out []string
	for _, s := range all {
		if s.State == store.SlotWaiting {
			out = append(out, s.Town)
		}
	}
	return firstN(out, limit), err
}

// SlotCounts implements store.Store.
func (m *Memory) SlotCounts(ctx context.Context) (store.SlotCounts, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return store.SlotCounts{}, err
	}
	defer leave()
	return m.counts(), nil
}

// Slots implements store.Store.
func (m *Memory) Slots(ctx context.Context) ([]store.Slot, error) {
	return m.sortedSlots(ctx, func(a, b store.Slot) int { return strings.Compare(a.Town, b.Town) })
}

// Transcript implements store.Store.
func (m *Memory) Transcript(ctx context.Context, town, run string, epoch, after int64, limit int) ([]store.Chunk, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	t, ok := m.d.towns[town]
	if !ok {
		return nil, nil
	}
	var out []store.Chunk
	for k, c := range t.chunks {
		if k.run == run && k.epoch == epoch && k.seq > after {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b store.Chunk) int { return cmp.Compare(a.Seq, b.Seq) })
	return firstN(out, limit), nil
}

// Meta implements store.Store.
func (m *Memory) Meta(ctx context.Context, key string) (string, bool, error) {
	leave, err := m.enter(ctx)
	if err != nil {
		return "", false, err
	}
	defer leave()
	v, ok := m.d.meta[key]
	return v, ok, nil
}
