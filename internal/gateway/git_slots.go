package gateway

import (
	"context"
	"sync"
	"time"

	"gastown/internal/errs"
)

// slots bounds the git processes at a time, in all and per town, so that one
// town's agents can't keep the others from their repositories.
type slots struct {
	all  chan struct{} // holds one token per request in progress
	each int
	wait time.Duration

	mu    sync.Mutex // guards towns
	towns map[string]*townSlots
}

type townSlots struct {
	held  chan struct{}
	users int // holders and waiters; guarded by slots.mu
}

func newSlots(lim GitLimits) *slots {
	return &slots{all: make(chan struct{}, lim.Concurrent), each: lim.PerTown, wait: lim.Wait, towns: map[string]*townSlots{}}
}

// enter waits for a turn and returns how to give it back.
func (s *slots) enter(ctx context.Context, town string) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	t := s.join(town)
	// The town's turn first: waiting for it must not take one from the others.
	select {
	case t.held <- struct{}{}:
	case <-ctx.Done():
		s.part(town, t)
		return nil, errBusy()
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-t.held
		s.part(town, t)
		return nil, errBusy()
	}
	return func() {
		<-s.all
		<-t.held
		s.part(town, t)
	}, nil
}

func errBusy() error {
	return errs.New(errs.Overloaded, "too many git requests at once").WithHint("try again in a few seconds")
}

func (s *slots) join(town string) *townSlots {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.towns[town]
	if t == nil {
		t = &townSlots{held: make(chan struct{}, s.each)}
		s.towns[town] = t
	}
	t.users++
	return t
}

func (s *slots) part(town string, t *townSlots) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(s.towns, town)
	}
}
