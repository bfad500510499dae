package agenttest

import (
	"context"
	"sync"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
)

// Session is an agent.Session without a process. Its functions may be set
// before it is used; the defaults are a turn that ends at once, and a clean end.
type Session struct {
	Spec agent.Spec // as given to the Starter
	ID   string

	// OnPrompt runs a turn; n counts from 0. It should return when ctx ends or
	// CancelAsked is closed.
	OnPrompt func(ctx context.Context, s *Session, n int, text string) (agent.StopReason, error)

	done chan struct{}

	mu      sync.Mutex // guards the fields below
	prompts []string
	err     error
	ended   bool
	closed  int
	cancel  chan struct{}
	at      time.Time
}

var _ agent.Session = (*Session)(nil)

// NewSession returns a session that runs.
func NewSession() *Session {
	return &Session{ID: "fake", done: make(chan struct{}), cancel: make(chan struct{}), at: time.Now()}
}

// Prompt implements agent.Session.
func (s *Session) Prompt(ctx context.Context, text string) (agent.StopReason, error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return "", s.gone()
	}
	n := len(s.prompts)
	s.prompts = append(s.prompts, text)
	s.cancel = make(chan struct{})
	s.mu.Unlock()
	if s.OnPrompt == nil {
		return agent.StopEndTurn, nil
	}
	return s.OnPrompt(ctx, s, n, text)
}

func (s *Session) gone() error {
	if err := s.Err(); err != nil {
		return err
	}
	return errs.New(errs.Unavailable, "agent was closed")
}

// Cancel implements agent.Session: it closes CancelAsked of the current turn.
func (s *Session) Cancel(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errs.New(errs.Unavailable, "agent ended")
	}
	select {
	case <-s.cancel:
	default:
		close(s.cancel)
	}
	return nil
}

// CancelAsked is closed when the current turn is to be cancelled.
func (s *Session) CancelAsked() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cancel
}

// Close implements agent.Session.
func (s *Session) Close(time.Duration) error {
	s.mu.Lock()
	s.closed++
	s.mu.Unlock()
	s.Exit(nil)
	return nil
}

// Exit ends the agent as if its process had; err is what Err returns.
func (s *Session) Exit(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended, s.err = true, err
		close(s.done)
	}
}

// Emit sends an event to the Spec's callback.
func (s *Session) Emit(e agent.Event) {
	if s.Spec.OnEvent != nil {
		s.Spec.OnEvent(e)
	}
}

// Prompts are the texts of all turns so far.
func (s *Session) Prompts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.prompts...)
}

// Closed says how often Close was called.
func (s *Session) Closed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Done implements agent.Session.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err implements agent.Session.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// PID implements agent.Session; 0, since there is no process.
func (s *Session) PID() int { return 0 }

// SessionID implements agent.Session.
func (s *Session) SessionID() string { return s.ID }

// Spawned implements agent.Session.
func (s *Session) Spawned() time.Time { return s.at }

// Starter starts fake sessions and records them.
type Starter struct {
	// OnStart prepares a session, or refuses with an error. May be nil.
	OnStart func(ctx context.Context, s *Session) error

	mu       sync.Mutex // guards sessions
	sessions []*Session
}

// Start is an agent.Starter.
func (f *Starter) Start(ctx context.Context, spec agent.Spec) (agent.Session, error) {
	s := NewSession()
	s.Spec = spec
	if f.OnStart != nil {
		if err := f.OnStart(ctx, s); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sessions = append(f.sessions, s)
	return s, nil
}

// Sessions are those that were started, in order.
func (f *Starter) Sessions() []*Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*Session(nil), f.sessions...)
}
