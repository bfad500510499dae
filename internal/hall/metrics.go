package hall

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/town"
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
	Found     atomic.Int64 // towns with contradictory columns that idle looks found
	TickLoads atomic.Int64 // towns read from the store for an alarm
	Renewals  atomic.Int64 // of tokens
	AwakeMS   atomic.Int64 // awake time of all towns while this process saw them
	Starts    atomic.Int64 // sandboxes asked for
	Strays    atomic.Int64 // references without a bead that were removed
	Full      atomic.Int64 // inputs refused because a queue was full
	LateMS    atomic.Int64 // sum over claimed towns of how late they were
	LateMaxMS atomic.Int64 // the worst of them

	mu      sync.Mutex // guards all below
	effects map[EffectKey]EffectCount
	starts  map[string]int64
	holds   map[string]int64
	late    [len(LateBuckets)]uint64
	lateN   uint64
}

// LateBuckets are the upper bounds, in seconds, of the lateness of alarms.
var LateBuckets = [...]float64{.005, .01, .05, .1, .5, 1, 5, 15, 30, 60, 300, 900}

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

func (m *Metrics) wasLate(ms int64) {
	ms = max(ms, 0)
	m.LateMS.Add(ms)
	m.mu.Lock()
	m.lateN++
	for i, most := range LateBuckets {
		if float64(ms) <= most*1000 {
			m.late[i]++
		}
	}
	m.mu.Unlock()
	for {
		old := m.LateMaxMS.Load()
		if ms <= old || m.LateMaxMS.CompareAndSwap(old, ms) {
			return
		}
	}
}

// Late returns how late claimed towns were: for each of LateBuckets how many were
// no later, and how many there were.
func (m *Metrics) Late() (atMost map[float64]uint64, n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	atMost = make(map[float64]uint64, len(LateBuckets))
	for i, most := range LateBuckets {
		atMost[most] = m.late[i]
	}
	return atMost, m.lateN
}

func (m *Metrics) started(hold string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.starts == nil {
		m.starts = map[string]int64{}
	}
	m.starts[hold]++
}

// StartsBy returns how many generations of sandboxes were begun, by the kind of
// hold that they were for.
func (m *Metrics) StartsBy() map[string]int64 { return m.all(&m.starts) }

// Holds returns how many holds the running towns in memory have, by kind.
func (m *Metrics) Holds() map[string]int64 { return m.all(&m.holds) }

// all copies counts by kind of hold, with 0 for kinds that have none.
func (m *Metrics) all(counts *map[string]int64) map[string]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]int64{string(town.HoldRun): 0, string(town.HoldGates): 0, string(town.HoldHuman): 0}
	maps.Copy(out, *counts)
	return out
}

func (m *Metrics) held(was, is []string) {
	if slices.Equal(was, is) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holds == nil {
		m.holds = map[string]int64{}
	}
	for _, k := range was {
		m.holds[k]--
	}
	for _, k := range is {
		m.holds[k]++
	}
}

// sight is what the metrics want to know of a town in memory.
type sight struct {
	known   bool
	running bool
	awakeMS int64
	holds   []string
}

func sightOf(c *copyOf, now time.Time) sight {
	s := sight{known: true, running: c.running(), awakeMS: c.t.AwakeMS(now)}
	if s.running {
		for _, h := range c.t.Holds(now) {
			s.holds = append(s.holds, string(h.Reason))
		}
	}
	return s
}

// seeLocked counts what became of a town since it was last seen.
func (h *Hall) seeLocked(e *entry, s sight) {
	h.metrics.held(e.holds, s.holds)
	e.holds = s.holds
	if !s.known {
		return
	}
	if was, ok := h.metered[e.id]; ok {
		h.metrics.AwakeMS.Add(max(s.awakeMS-was, 0))
	}
	if s.running {
		h.metered[e.id] = s.awakeMS
	} else {
		delete(h.metered, e.id)
	}
}
