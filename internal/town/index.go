package town

import (
	"cmp"
	"maps"
	"slices"
)

// index finds beads without looking at all of them. It is derived from the
// beads: place says where each one belongs, and edit keeps it so.
type index struct {
	ready           map[string]*queue              // by rig: open beads that only need capacity, most urgent first
	delayed         queue                          // open beads in backoff, by the end of it
	review          map[string]*queue              // by rig: beads whose merge is queued
	merging         map[string]string              // by rig: the bead whose candidate is being made, gated or landed
	waiting         map[string]struct{}            // beads whose branch waits upstream
	refs            map[string]struct{}            // ended beads whose refs are still in the hub
	dependents      map[string]map[string]struct{} // by blocker
	open            int                            // beads that are not terminal
	ownBudget       int                            // of these, beads with limits of their own
	ownSelection    int                            // of these, beads that choose their agent or model
	runsByRig       map[string]int
	escalations     map[string][]string // ids by subject, in the order of their numbers
	openEscalations int
	bulk            bool // being rebuilt: queues are sorted at the end
}

func newIndex() index {
	return index{ready: map[string]*queue{}, review: map[string]*queue{}, merging: map[string]string{}, waiting: map[string]struct{}{},
		refs: map[string]struct{}{}, dependents: map[string]map[string]struct{}{}, runsByRig: map[string]int{}, escalations: map[string][]string{}}
}

// queue is a sorted list of beads. Insertion and removal move memory, which for
// tens of thousands of entries costs microseconds.
type queue []ticket

type ticket struct {
	rank int64
	at   Time
	id   string
}

func (a ticket) compare(b ticket) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.at, b.at), cmp.Compare(a.id, b.id))
}

func (q *queue) add(t ticket) {
	if i, found := slices.BinarySearchFunc(*q, t, ticket.compare); !found {
		*q = slices.Insert(*q, i, t)
	}
}

func (ix *index) put(q *queue, k ticket) {
	if ix.bulk {
		*q = append(*q, k)
		return
	}
	q.add(k)
}

func (q *queue) remove(t ticket) {
	if i, found := slices.BinarySearchFunc(*q, t, ticket.compare); found {
		*q = slices.Delete(*q, i, i+1)
	}
}

func (ix *index) queueOf(m map[string]*queue, rig string) *queue {
	q := m[rig]
	if q == nil {
		q = new(queue)
		m[rig] = q
	}
	return q
}

// shelf is where the index keeps a bead.
type shelf int

const (
	shelfNone shelf = iota
	shelfReady
	shelfDelayed
	shelfReview
	shelfMerging
	shelfWaiting
	shelfRefs
)

// place says where a bead belongs.
func (t *Town) place(b *Bead) (shelf, ticket) {
	switch {
	case b.Status.Terminal():
		if b.Refs {
			return shelfRefs, ticket{}
		}
	case b.Status == BeadOpen:
		if b.Staged || b.Escalated || t.blocker(b) != "" {
			return shelfNone, ticket{}
		}
		if b.NotBefore != 0 {
			return shelfDelayed, ticket{at: b.NotBefore, id: b.ID}
		}
		return shelfReady, ticket{rank: int64(b.Priority), at: b.CreatedAt, id: b.ID}
	case b.Status == BeadInReview && b.Merge != nil:
		switch b.Merge.State {
		case MergeQueued:
			return shelfReview, ticket{rank: int64(b.Priority), at: b.Merge.Since, id: b.ID}
		case MergeWaiting:
			return shelfWaiting, ticket{}
		case MergeBuilding, MergeGating, MergeLanding:
			return shelfMerging, ticket{}
		}
	}
	return shelfNone, ticket{}
}

func (t *Town) shelve(b *Bead) {
	if !b.Status.Terminal() {
		t.ix.open++
		if b.ownBudget() {
			t.ix.ownBudget++
		}
		if b.ownSelection() {
			t.ix.ownSelection++
		}
	}
	s, k := t.place(b)
	switch s {
	case shelfReady:
		t.ix.put(t.ix.queueOf(t.ix.ready, b.Rig), k)
	case shelfDelayed:
		t.ix.put(&t.ix.delayed, k)
	case shelfReview:
		t.ix.put(t.ix.queueOf(t.ix.review, b.Rig), k)
	case shelfMerging:
		t.ix.merging[b.Rig] = b.ID
	case shelfWaiting:
		t.ix.waiting[b.ID] = struct{}{}
	case shelfRefs:
		t.ix.refs[b.ID] = struct{}{}
	case shelfNone:
	}
}

func (t *Town) unshelve(b *Bead) {
	if !b.Status.Terminal() {
		t.ix.open--
		if b.ownBudget() {
			t.ix.ownBudget--
		}
		if b.ownSelection() {
			t.ix.ownSelection--
		}
	}
	s, k := t.place(b)
	switch s {
	case shelfReady:
		t.ix.queueOf(t.ix.ready, b.Rig).remove(k)
	case shelfDelayed:
		t.ix.delayed.remove(k)
	case shelfReview:
		t.ix.queueOf(t.ix.review, b.Rig).remove(k)
	case shelfMerging:
		delete(t.ix.merging, b.Rig)
	case shelfWaiting:
		delete(t.ix.waiting, b.ID)
	case shelfRefs:
		delete(t.ix.refs, b.ID)
	case shelfNone:
	}
}

// edit is the only way in which a bead changes: it keeps the index true and
// marks the row.
func (t *Town) edit(b *Bead, now Time, change func()) {
	deps := t.ix.dependents[b.ID]
	for id := range deps {
		if d := t.beads[id]; d != nil {
			t.unshelve(d)
		}
	}
	t.unshelve(b)
	change()
	t.shelve(b)
	for id := range deps {
		if d := t.beads[id]; d != nil {
			t.shelve(d)
		}
	}
	b.UpdatedAt = now
	t.mark(kindBead, b.ID)
}

// blocker returns the first bead that blocks b, or "". Only a closed bead lets
// others pass: a failed, cancelled or unreadable one blocks.
func (t *Town) blocker(b *Bead) string {
	for _, id := range b.BlockedBy {
		if d := t.beads[id]; d == nil || d.Status != BeadClosed {
			return id
		}
	}
	return ""
}

func (t *Town) linkBlockers(b *Bead) {
	for _, on := range b.BlockedBy {
		m := t.ix.dependents[on]
		if m == nil {
			m = map[string]struct{}{}
			t.ix.dependents[on] = m
		}
		m[b.ID] = struct{}{}
	}
}

// reindex rebuilds everything that is derived.
func (t *Town) reindex() {
	t.ix = newIndex()
	t.ix.bulk = true
	for _, b := range t.beads {
		t.linkBlockers(b)
	}
	for _, b := range t.beads {
		t.shelve(b)
	}
	t.ix.bulk = false
	slices.SortFunc(t.ix.delayed, ticket.compare)
	for _, m := range []map[string]*queue{t.ix.ready, t.ix.review} {
		for _, q := range m {
			slices.SortFunc(*q, ticket.compare)
		}
	}
	for _, r := range t.runs {
		t.ix.runsByRig[r.Rig]++
	}
	for _, id := range slices.SortedFunc(maps.Keys(t.escalations), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	}) {
		e := t.escalations[id]
		t.ix.escalations[e.Subject] = append(t.ix.escalations[e.Subject], id)
		if e.Open() {
			t.ix.openEscalations++
		}
	}
}
