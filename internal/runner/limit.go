package runner

import (
	"cmp"
	"strconv"
	"time"

	"gastown/internal/town"
)

// limit is what the server said of the model's last answer: the provider refuses
// requests for a while. An agent that waits by itself goes on; one that ended its
// turn over it ends its run, and the next one begins when the limit is over.
type limit struct {
	until time.Time // zero: the provider does not say
}

// newLimit reads the header of a limit; nil when there is none.
func newLimit(header string, now time.Time) *limit {
	if header == "" {
		return nil
	}
	ms, err := strconv.ParseInt(header, 10, 64)
	if err != nil || ms < 0 {
		return &limit{}
	}
	return &limit{until: now.Add(time.Duration(min(ms, int64(366*24*time.Hour/time.Millisecond))) * time.Millisecond)}
}

func (l *limit) ending(d town.DesiredRun, now time.Time) *ending {
	e := &ending{how: endNow, outcome: town.OutcomeStopped, class: town.ClassLimit,
		reason: "the provider " + cmp.Or(d.Provider, "of the model") + " limits its use, and the agent ended its turn"}
	if !l.until.IsZero() {
		e.waitMS = max(l.until.Sub(now).Milliseconds(), 1)
	}
	return e
}
