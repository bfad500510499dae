package hall

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// Metrics counts what a hall did since it was made. All are safe to read at any time.
type Metrics struct {
	Inputs    atomic.Int64 // inputs answered, refusals included
	Refused   atomic.Int64 // inputs that the rules refused
	Loads     atomic.Int64 // towns read from the store
	Commits   atomic.Int64 // successful commits
	Conflicts atomic.Int64 // commits that met a newer version
	Unknown   atomic.Int64 // commits whose outcome was not known
	Panics    atomic.Int64 // of rules
	Failures  atomic.Int64 // times that a town was marked as failing
	Looks     atomic.Int64 // looks at running towns in memory
	IdleReads atomic.Int64 // slices of idle towns read
	Claimed   atomic.Int64 // due towns claimed
	Ticks     atomic.Int64 // alarms handled
	Starts    atomic.Int64 // sandboxes asked for
	Full      atomic.Int64 // inputs refused because a queue was full
	LateMS    atomic.Int64 // sum over claimed towns of how late they were
	LateMaxMS atomic.Int64 // the worst of them

	mu      sync.Mutex // guards effects
	effects map[EffectKey]EffectCount
}

// EffectKey names a kind of outcome.
type EffectKey struct {
	Action  string
	Outcome string // ok or error
}

// EffectCount counts the outcomes of one kind and the time they took.
type EffectCount struct {
	N    int64
	Took time.Duration
}

// Effects returns the outcomes so far.
func (m *Metrics) Effects() map[EffectKey]EffectCount {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.effects)
}

func (m *Metrics) effect(action string, failed bool, took time.Duration) {
	k := EffectKey{action, "ok"}
	if failed {
		k.Outcome = "error"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.effects == nil {
		m.effects = map[EffectKey]EffectCount{}
	}
	c := m.effects[k]
	c.N++
	c.Took += took
	m.effects[k] = c
}

func (m *Metrics) late(ms int64) {
	ms = max(ms, 0)
	m.LateMS.Add(ms)
	for {
		old := m.LateMaxMS.Load()
		if ms <= old || m.LateMaxMS.CompareAndSwap(old, ms) {
			return
		}
	}
}
