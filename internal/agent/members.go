package agent

import (
	"fmt"
	"slices"
	"sync"

	"github.com/coder/acp-go-sdk"
)

// SharedError says that a process ended that several sessions shared: which of
// them is to blame is not known.
type SharedError struct {
	Sessions int
	Err      error
}

// Error says how many sessions ended with it.
func (e *SharedError) Error() string {
	return fmt.Sprintf("it served %d runs: %v", e.Sessions, e.Err)
}

// Unwrap returns how the process ended.
func (e *SharedError) Unwrap() error { return e.Err }

// members are the sessions of a process.
type members struct {
	mu      sync.Mutex // guards the fields below
	list    []*Agent
	byID    map[acp.SessionId]*Agent
	opening *Agent                 // gets updates of a session whose id is not known yet
	left    map[acp.SessionId]bool // sessions of which nothing more is heard
	over    bool
	secrets []string
	redact  redactor
}

func newMembers(first *Agent) *members {
	return &members{list: []*Agent{first}, byID: map[acp.SessionId]*Agent{}, left: map[acp.SessionId]bool{}, opening: first}
}

// know adds secrets that no event of the process may show.
func (m *members) know(secrets []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets = append(m.secrets, secrets...)
	m.redact = newRedactor(m.secrets...)
}

func (m *members) redactor() redactor {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.redact
}

func (m *members) all() []*Agent {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

// add takes a session in that is about to be opened; false: the process is over.
func (m *members) add(a *Agent) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over {
		return false
	}
	m.list = append(m.list, a)
	m.opening = a
	delete(m.left, acp.SessionId(a.spec.LoadSession)) // it comes back
	return true
}

// opened tells the id of the session that was being opened.
func (m *members) opened(a *Agent) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byID[a.session] = a
	if m.opening == a {
		m.opening = nil
	}
}

// of finds the session of a message; only is for a process that has but one,
// whatever the agent calls it. What comes late of one that left is nobody's, and
// never that of the one that is being opened.
func (m *members) of(id acp.SessionId, only bool) *Agent {
	m.mu.Lock()
	defer m.mu.Unlock()
	if only && len(m.list) == 1 {
		return m.list[0]
	}
	if a := m.byID[id]; a != nil || m.left[id] {
		return a
	}
	return m.opening
}

// leave takes a session out; last says that it was the only one, and then the
// process takes no other.
func (m *members) leave(a *Agent) (last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Equal(m.list, []*Agent{a}) {
		m.over = true
		return true // it stays, to hear of the end
	}
	m.list = slices.DeleteFunc(m.list, func(o *Agent) bool { return o == a })
	if m.byID[a.session] == a {
		delete(m.byID, a.session)
		m.left[a.session] = true
	}
	if m.opening == a {
		m.opening = nil
	}
	return false
}

// end tells all sessions that the process is gone.
func (m *members) end() {
	m.mu.Lock()
	m.over = true
	list := slices.Clone(m.list)
	m.mu.Unlock()
	for _, a := range list {
		a.goneOnce.Do(func() { close(a.gone) })
	}
}
