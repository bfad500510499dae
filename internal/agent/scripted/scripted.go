// Package scripted is a coding agent without a model: a real agent of the
// Agent Client Protocol that runs the shell block of its bead. Demos and end to
// end tests use it, so that everything around an agent is the real thing.
//
// A turn connects to the tool server named "gastown" with the headers it was
// given, calls prime, picks a block of the bead's body (see Choose), runs it
// with sh -eu in the session's directory, commits what it left, and calls the
// tool that the block's end attribute names:
//
//	```sh attempt=1 end=none
//	echo "the first attempt forgets to say that it is done"
//	```
//	```sh
//	echo hello > greeting.txt
//	```
//
// The script sees GASTOWN_BEAD, GASTOWN_ATTEMPT, GASTOWN_REASON, GASTOWN_NUDGE
// and GASTOWN_RESUMED: how many turns its session had when it was loaded by
// this process, 0 for a new one. A script that fails ends the turn without a call, and so does
// an error of the tool; a further prompt in the session is a nudge and runs
// again. crash and hang leave the worktree as it is, uncommitted.
//
// The script has its own process group, which is killed when the turn ends, is
// cancelled, or the agent is told to stop.
package scripted

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/coder/acp-go-sdk"
)

// ServerName is the tool server that the agent looks for.
const ServerName = "gastown"

// ExitError asks the caller of Main to exit with a code.
type ExitError struct{ Code int }

// Error says that it was asked for.
func (e *ExitError) Error() string {
	return fmt.Sprintf("scripted agent: exit with code %d, as the block asked", e.Code)
}

// Main serves the protocol on in and out until in ends or ctx does (nil), or a
// block says crash (*ExitError). It returns when no script is left running.
func Main(ctx context.Context, in io.Reader, out io.Writer, stderr io.Writer) error {
	a := &agent{
		sessions: map[acp.SessionId]*session{},
		stop:     make(chan struct{}),
		crash:    make(chan struct{}),
		log:      slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	gate := &gated{in: in, open: make(chan struct{})}
	a.conn = acp.NewAgentSideConnection(a, out, gate)
	a.conn.SetLogger(a.log)
	close(gate.open)
	var err error
	select {
	case <-a.conn.Done():
	case <-ctx.Done():
	case <-a.crash:
		err = &ExitError{Code: 3}
	}
	a.shut()
	return err
}

// gated is an input that is read only when it is open: the connection reads as
// soon as it exists, before the agent knows it.
type gated struct {
	in   io.Reader
	open chan struct{}
}

func (g *gated) Read(p []byte) (int, error) {
	<-g.open
	return g.in.Read(p)
}

// agent implements the agent's side of the protocol.
type agent struct {
	conn  *acp.AgentSideConnection
	log   *slog.Logger
	stop  chan struct{} // closed when Main ends: turns end
	crash chan struct{} // closed by a block with end=crash
	once  sync.Once     // closes crash

	mu       sync.Mutex // guards the fields below
	sessions map[acp.SessionId]*session
	turns    sync.WaitGroup
	closed   bool
}

// session is one as this process knows it; turns are those of this process.
type session struct {
	cwd    string
	mcp    *acp.McpServerHttpInline
	turns  int
	before int // turns before the session was loaded

	mu  sync.Mutex // guards mem
	mem memory
}

var (
	_ acp.Agent       = (*agent)(nil)
	_ acp.AgentLoader = (*agent)(nil)
)

func (a *agent) shut() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	close(a.stop)
	a.turns.Wait()
}

// Initialize implements acp.Agent.
func (a *agent) Initialize(context.Context, acp.InitializeRequest) (acp.InitializeResponse, error) {
	return acp.InitializeResponse{
		ProtocolVersion: acp.ProtocolVersionNumber,
		AgentInfo:       &acp.Implementation{Name: "gastown-scripted", Version: "1"},
		AuthMethods:     []acp.AuthMethod{},
		AgentCapabilities: acp.AgentCapabilities{
			LoadSession:     true,
			McpCapabilities: acp.McpCapabilities{Http: true},
		},
	}, nil
}

func (a *agent) keep(id acp.SessionId, cwd string, servers []acp.McpServer, mem memory) {
	s := &session{cwd: cwd, before: mem.Turns, mem: mem}
	for _, m := range servers {
		if m.Http != nil && m.Http.Name == ServerName {
			s.mcp = m.Http
		}
	}
	a.mu.Lock()
	a.sessions[id] = s
	a.mu.Unlock()
}

// NewSession implements acp.Agent.
func (a *agent) NewSession(_ context.Context, p acp.NewSessionRequest) (acp.NewSessionResponse, error) {
	id := acp.SessionId("scripted-" + rand.Text())
	if err := errors.Join(memory{}.remember(id), forgetOld()); err != nil {
		a.log.Warn("the session can't be kept", "err", err)
	}
	a.keep(id, p.Cwd, p.McpServers, memory{})
	return acp.NewSessionResponse{SessionId: id}, nil
}

// LoadSession implements acp.AgentLoader: what was said before is said again, as
// the protocol wants it. An unknown session is refused.
func (a *agent) LoadSession(ctx context.Context, p acp.LoadSessionRequest) (acp.LoadSessionResponse, error) {
	mem, err := recall(p.SessionId)
	if err != nil {
		return acp.LoadSessionResponse{}, acp.NewInvalidParams(map[string]any{"error": "no such session"})
	}
	a.keep(p.SessionId, p.Cwd, p.McpServers, mem)
	if mem.Said != "" {
		err = a.conn.SessionUpdate(ctx, acp.SessionNotification{SessionId: p.SessionId, Update: acp.UpdateAgentMessageText(mem.Said)})
		if err != nil {
			return acp.LoadSessionResponse{}, err
		}
	}
	return acp.LoadSessionResponse{}, nil
}

// Prompt implements acp.Agent. The library ends ctx on session/cancel.
func (a *agent) Prompt(ctx context.Context, p acp.PromptRequest) (acp.PromptResponse, error) {
	a.mu.Lock()
	s := a.sessions[p.SessionId]
	if s == nil || a.closed {
		a.mu.Unlock()
		return acp.PromptResponse{}, acp.NewInvalidParams(map[string]any{"error": "no such session"})
	}
	nudge := s.turns
	s.turns++
	a.turns.Add(1)
	a.mu.Unlock()
	s.note(a.log, p.SessionId, func(m *memory) { m.Turns++ })
	stop, err := a.turn(ctx, &turn{a: a, id: p.SessionId, s: s, nudge: nudge})
	a.turns.Done()
	if errors.Is(err, errCrash) {
		a.once.Do(func() { close(a.crash) })
		<-a.conn.Done() // a process that crashes does not answer
	}
	return acp.PromptResponse{StopReason: stop}, err
}

// note changes what outlives the process.
func (s *session) note(log *slog.Logger, id acp.SessionId, edit func(*memory)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(&s.mem)
	if err := s.mem.remember(id); err != nil {
		log.Warn("the session can't be kept", "err", err)
	}
}

func (a *agent) turn(ctx context.Context, t *turn) (acp.StopReason, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-a.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := t.run(ctx)
	switch {
	case errors.Is(err, errCrash):
		return "", err
	case ctx.Err() != nil:
		return acp.StopReasonCancelled, nil
	case err != nil:
		t.say(err.Error() + "\n")
	}
	return acp.StopReasonEndTurn, nil
}

// Cancel implements acp.Agent; the turn's context has ended already.
func (a *agent) Cancel(context.Context, acp.CancelNotification) error { return nil }

// Authenticate implements acp.Agent.
func (a *agent) Authenticate(context.Context, acp.AuthenticateRequest) (acp.AuthenticateResponse, error) {
	return acp.AuthenticateResponse{}, nil
}

// CloseSession implements acp.Agent.
func (a *agent) CloseSession(context.Context, acp.CloseSessionRequest) (acp.CloseSessionResponse, error) {
	return acp.CloseSessionResponse{}, acp.NewMethodNotFound(acp.AgentMethodSessionClose)
}

// ListSessions implements acp.Agent.
func (a *agent) ListSessions(context.Context, acp.ListSessionsRequest) (acp.ListSessionsResponse, error) {
	return acp.ListSessionsResponse{}, acp.NewMethodNotFound(acp.AgentMethodSessionList)
}

// ResumeSession implements acp.Agent.
func (a *agent) ResumeSession(context.Context, acp.ResumeSessionRequest) (acp.ResumeSessionResponse, error) {
	return acp.ResumeSessionResponse{}, acp.NewMethodNotFound(acp.AgentMethodSessionResume)
}

// SetSessionConfigOption implements acp.Agent.
func (a *agent) SetSessionConfigOption(context.Context, acp.SetSessionConfigOptionRequest) (acp.SetSessionConfigOptionResponse, error) {
	return acp.SetSessionConfigOptionResponse{}, acp.NewMethodNotFound(acp.AgentMethodSessionSetConfigOption)
}

// SetSessionMode implements acp.Agent.
func (a *agent) SetSessionMode(context.Context, acp.SetSessionModeRequest) (acp.SetSessionModeResponse, error) {
	return acp.SetSessionModeResponse{}, acp.NewMethodNotFound(acp.AgentMethodSessionSetMode)
}
