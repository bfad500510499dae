package town

import "time"

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

// Add returns t moved by d, rounded to milliseconds.
func (t Time) Add(d time.Duration) Time { return t + Time(d/time.Millisecond) }

// Sub returns t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t-u) * time.Millisecond }

// String formats t as RFC 3339 in UTC, or "never".
func (t Time) String() string {
	if t == 0 {
		return "never"
	}
	return t.Time().Format(time.RFC3339)
}
