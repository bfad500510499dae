package town

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Phase is what a millisecond of awake time was for. Every millisecond between
// the start and the end of a sandbox belongs to exactly one.
type Phase string

// The phases.
const (
	PhaseNone     Phase = ""         // no sandbox
	PhaseStarting Phase = "starting" // from the order to start until hello
	PhaseHeld     Phase = "held"     // at least one hold
	PhaseGrace    Phase = "grace"    // after the last hold
	PhaseDraining Phase = "draining" // checkpointing before sleep
	PhaseStopping Phase = "stopping" // until the driver says it is gone
)

// Meter is what the awake time since Since is for.
type Meter struct {
	Since Time     `json:"since,omitempty"`
	Phase Phase    `json:"phase,omitempty"`
	Holds []string `json:"holds,omitempty"`
}

// Usage is what a town used on one day in UTC; times are in milliseconds.
type Usage struct {
	Day      string           `json:"day"` // 2006-01-02
	Starting int64            `json:"starting_ms"`
	Held     int64            `json:"held_ms"` // the union of all holds
	Grace    int64            `json:"grace_ms"`
	Draining int64            `json:"draining_ms"`
	Stopping int64            `json:"stopping_ms"`
	Holds    map[string]int64 `json:"holds,omitempty"` // by hold; they may overlap

	Runs   int64 `json:"runs,omitempty"` // started
	Tokens int64 `json:"tokens,omitempty"`
	Cost   int64 `json:"cost_micros,omitempty"` // millionths of a dollar
	// Unpriced is how many of the tokens are of models without a price of their own.
	Unpriced int64 `json:"unpriced_tokens,omitempty"`
}

// Awake is the awake time of the day in all phases.
func (u Usage) Awake() int64 { return u.Starting + u.Held + u.Grace + u.Draining + u.Stopping }

// maxHoldsPerDay bounds the list of a day; later ones are summed as "others".
const maxHoldsPerDay = 500

func (t *Town) phase(now Time) (Phase, []string) {
	switch t.info.Sandbox.State {
	case SandboxStarting:
		return PhaseStarting, nil
	case SandboxDraining:
		return PhaseDraining, nil
	case SandboxStopping, SandboxWedged:
		return PhaseStopping, nil
	case SandboxAwake:
		hs := t.holds(now)
		if len(hs) == 0 {
			return PhaseGrace, nil
		}
		names := make([]string, 0, len(hs))
		for _, h := range hs {
			names = append(names, h.Name())
		}
		return PhaseHeld, names
	case SandboxAsleep, SandboxQueued:
	}
	return PhaseNone, nil
}

// meter books awake time whenever what it is for changes, and now and then
// while it does not, with rows that are written anyway.
func (t *Town) meter(now Time) {
	phase, holds := t.phase(now)
	m := &t.info.Meter
	if phase == m.Phase && slices.Equal(holds, m.Holds) {
		if phase != PhaseNone && now.Sub(m.Since) >= bookEach && len(t.dirty) > 0 {
			t.bookUntil(now)
		}
		return
	}
	at := now
	if last := t.info.Sandbox.LastHold; phase == PhaseGrace && last >= m.Since && last != 0 {
		at = min(last, now) // the hold ended by itself before anyone looked
	}
	t.bookUntil(at)
	*m = Meter{Since: at, Phase: phase, Holds: holds}
	if phase == PhaseNone {
		m.Since = 0
	}
}

// maxStay bounds what is booked at once: a longer stay is a damaged row.
const maxStay = 400 * day

// split returns what a meter measured until a time, day by day.
func split(m Meter, until Time) []Usage {
	if m.Phase == PhaseNone {
		return nil
	}
	var out []Usage
	for from := max(m.Since, until.Add(-maxStay)); from < until; {
		midnight := At(from.Time().Truncate(day).Add(day))
		to := min(midnight, until)
		u := Usage{Day: from.Time().Format(time.DateOnly)}
		span := int64(to - from)
		switch m.Phase {
		case PhaseStarting:
			u.Starting = span
		case PhaseHeld:
			u.Held = span
			u.Holds = map[string]int64{}
			for _, h := range m.Holds {
				u.Holds[h] = span
			}
		case PhaseGrace:
			u.Grace = span
		case PhaseDraining:
			u.Draining = span
		case PhaseStopping:
			u.Stopping = span
		case PhaseNone:
		}
		out = append(out, u)
		from = to
	}
	return out
}

func (t *Town) book(u Usage) {
	t.usageOf(u.Day).add(u)
	t.info.Sandbox.AwakeMS += u.Awake()
	t.delta[u.Day] = t.delta[u.Day].add(Spend{AwakeMS: u.Awake()})
	t.mark(kindUsage, u.Day)
}

func (u *Usage) add(o Usage) {
	u.Starting += o.Starting
	u.Held += o.Held
	u.Grace += o.Grace
	u.Draining += o.Draining
	u.Stopping += o.Stopping
	for h, n := range o.Holds {
		if u.Holds == nil {
			u.Holds = map[string]int64{}
		}
		if _, ok := u.Holds[h]; !ok && len(u.Holds) >= maxHoldsPerDay {
			h = "others"
		}
		u.Holds[h] += n
	}
}

// Usage returns what was used by day, the oldest first, up to now.
func (t *Town) Usage(at time.Time) []Usage {
	days := map[string]*Usage{}
	for d, u := range t.usage {
		c := *u
		c.Holds = maps.Clone(u.Holds)
		days[d] = &c
	}
	for _, u := range split(t.info.Meter, At(at)) {
		if days[u.Day] == nil {
			days[u.Day] = &Usage{Day: u.Day}
		}
		days[u.Day].add(u)
	}
	return sortedCopies(days, func(a, b Usage) int { return cmp.Compare(a.Day, b.Day) })
}

// AwakeMS is the awake time of the town in milliseconds, up to now.
func (t *Town) AwakeMS(at time.Time) int64 {
	total := t.info.Sandbox.AwakeMS
	for _, u := range split(t.info.Meter, At(at)) {
		total += u.Awake()
	}
	return total
}
