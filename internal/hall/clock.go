package hall

import "time"

// Clock is where time enters.
type Clock interface {
	// Now returns the wall clock.
	Now() time.Time
	// AfterFunc calls f once after d, on any goroutine, unless stop is called
	// before. Stopping twice is harmless.
	AfterFunc(d time.Duration, f func()) (stop func())
}

// Executor runs functions beside the caller. A simulator runs them later, on the
// one goroutine, in an order of its choice; it must never run them inside Go.
type Executor interface {
	Go(f func())
}

// Waiter is an Executor on whose goroutine nothing may block: the hall waits
// through it.
type Waiter interface {
	// Wait returns true once done is closed, false when that no longer matters
	// because the process is over.
	Wait(done <-chan struct{}) bool
}

// RealClock is the clock of the machine.
type RealClock struct{}

// Now returns the wall clock without its monotonic reading: a laptop that slept
// must see the gap, and stored deadlines are wall times.
func (RealClock) Now() time.Time { return time.Now().Round(0) }

// AfterFunc implements Clock.
func (RealClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

// Goroutines runs each function on a goroutine of its own.
type Goroutines struct{}

// Go implements Executor.
func (Goroutines) Go(f func()) { go f() }
