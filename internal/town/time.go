package town

import (
	"math"
	"time"
)

// Time is a moment in UTC milliseconds since 1970; 0 means "never" or "not yet".
type Time int64

// At converts a moment.
func At(t time.Time) Time {
	if t.IsZero() {
		return 0
	}
	return Time(t.UnixMilli())
}

// Time converts back; the zero Time gives the zero time.Time.
func (t Time) Time() time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(t)).UTC()
}

// Add returns t moved by d, rounded to milliseconds; the ends of time stay.
func (t Time) Add(d time.Duration) Time {
	sum := t + Time(d/time.Millisecond)
	switch {
	case d > 0 && sum < t:
		return math.MaxInt64
	case d < 0 && sum > t:
		return math.MinInt64
	}
	return sum
}

// Sub returns t-u, or the longest Duration where that is more than one can hold:
// times of damaged rows must not turn around.
func (t Time) Sub(u Time) time.Duration {
	const longest = Time(math.MaxInt64 / time.Millisecond)
	d := t - u
	switch {
	case t > u && (d < 0 || d > longest):
		return math.MaxInt64
	case t < u && (d > 0 || d < -longest):
		return math.MinInt64
	}
	return time.Duration(d) * time.Millisecond
}

// String formats t as RFC 3339 in UTC, or "never".
func (t Time) String() string {
	if t == 0 {
		return "never"
	}
	return t.Time().Format(time.RFC3339)
}
