package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/acp-go-sdk"

	"gastown/internal/errs"
)

// Agent is a session of a running agent; see Session for what its methods promise.
type Agent struct {
	*process
	spec Spec

	session   acp.SessionId
	replaying atomic.Bool
	gone      chan struct{} // closed when the session is over and nothing of it runs
	goneOnce  sync.Once

	emitMu sync.Mutex // held while OnEvent runs: one event at a time

	turnMu sync.Mutex // guards the fields below
	turn   *turn
	left   bool // Close was called
}

func newAgent(spec Spec) *Agent { return &Agent{spec: spec, gone: make(chan struct{})} }

var _ Session = (*Agent)(nil)

// Launch is Start as a Starter.
func Launch(ctx context.Context, spec Spec) (Session, error) {
	a, err := Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Start spawns the agent, initialises it and opens its session. On failure
// nothing is left running, and the error names the step and the end of stderr:
// errs.NotFound when the program is missing, errs.Invalid for a bad spec,
// errs.Unauthorized when the agent wants a login, else errs.Unavailable. ctx
// bounds Start only; the agent lives until Close.
func Start(ctx context.Context, spec Spec) (*Agent, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	a := newAgent(spec)
	p, err := startProcess(ctx, spec, a, false)
	if err != nil {
		return nil, err
	}
	if step, err := a.open(ctx); err != nil {
		p.fail(errors.New("it could not be started"))
		<-p.done
		return nil, p.startError(step, err)
	}
	return a, nil
}

func (s Spec) check() error {
	name := s.Preset.Name
	switch {
	case s.Preset.Command == "":
		return errs.New(errs.Invalid, "agent %s: the preset has no command", name)
	case !filepath.IsAbs(s.Dir):
		return errs.New(errs.Invalid, "agent %s: the working directory must be an absolute path", name)
	case s.Preset.Model.NeedsProvider && s.Model == nil:
		return errs.New(errs.Invalid, "agent %s needs a model provider, and none is set", name)
	}
	if st, err := os.Stat(s.Dir); err != nil || !st.IsDir() {
		return errs.New(errs.Invalid, "agent %s: the working directory does not exist", name)
	}
	return nil
}

// secrets lists what must not appear in events: the model's key, the header
// values, and what follows their scheme ("Bearer").
func (s Spec) secrets() []string {
	var out []string
	if s.Model != nil {
		out = append(out, s.Model.Key)
	}
	for _, m := range s.slots {
		out = append(out, m.Key)
	}
	for _, m := range s.MCP {
		for _, v := range m.Headers {
			out = append(out, v)
			if _, token, ok := strings.Cut(v, " "); ok {
				out = append(out, token)
			}
		}
	}
	return out
}

// initialize runs the handshake.
func (a *process) initialize(ctx context.Context) error {
	limit := orDefault(a.spec.Preset.InitTimeout, 30*time.Second)
	res, err := call[acp.InitializeResponse](ctx, a, acp.AgentMethodInitialize, limit, acp.InitializeRequest{
		ProtocolVersion: acp.ProtocolVersionNumber,
		ClientInfo:      &acp.Implementation{Name: "gastown", Version: "1"},
	})
	switch {
	case err != nil:
		return err
	case res.ProtocolVersion != acp.ProtocolVersionNumber:
		return fmt.Errorf("the agent speaks version %d of the protocol, we speak %d", res.ProtocolVersion, acp.ProtocolVersionNumber)
	case len(a.spec.MCP) > 0 && !res.AgentCapabilities.McpCapabilities.Http:
		return errors.New("the agent can't use tool servers over HTTP")
	}
	a.canLoad, a.canClose = res.AgentCapabilities.LoadSession, res.AgentCapabilities.SessionCapabilities.Close != nil
	return nil
}

// open opens the session; step names where it failed.
func (a *Agent) open(ctx context.Context) (step string, err error) {
	p := a.spec.Preset
	timeout := orDefault(p.SessionTimeout, 60*time.Second)
	if step, err := a.openSession(ctx, a.canLoad, timeout); err != nil {
		return step, err
	}
	a.members.opened(a)
	if model := a.spec.sessionModel; model != "" {
		_, err = call[acp.UnstableSetSessionModelResponse](ctx, a.process, acp.AgentMethodSessionSetModel, timeout,
			acp.UnstableSetSessionModelRequest{SessionId: a.session, ModelId: acp.UnstableModelId(model)})
		if err != nil {
			return "session/set_model", err
		}
	}
	if p.Mode == "" {
		return "", nil
	}
	_, err = call[acp.SetSessionModeResponse](ctx, a.process, acp.AgentMethodSessionSetMode, timeout, acp.SetSessionModeRequest{
		SessionId: a.session, ModeId: acp.SessionModeId(p.Mode),
	})
	return "session/set_mode", err
}

// openSession resumes the spec's session where it can, else opens a new one.
func (a *Agent) openSession(ctx context.Context, canLoad bool, sessionTimeout time.Duration) (step string, err error) {
	if a.spec.LoadSession != "" {
		if !canLoad {
			a.lifecycle("not_resumed", "the agent can't load sessions; a new one is opened")
		} else if done, err := a.load(ctx, sessionTimeout); done || err != nil {
			return "session/load", err
		}
	}
	ns, err := call[acp.NewSessionResponse](ctx, a.process, acp.AgentMethodSessionNew, sessionTimeout, acp.NewSessionRequest{
		Cwd: a.spec.Dir, McpServers: a.spec.mcpServers(),
	})
	if err != nil {
		return "session/new", err
	}
	if ns.SessionId == "" {
		return "session/new", errors.New("the agent gave no session id")
	}
	a.session = ns.SessionId
	return "", nil
}

// load resumes the spec's session. An agent that refuses gets a new session
// (false, nil); one that died or is silent is an error.
func (a *Agent) load(ctx context.Context, timeout time.Duration) (bool, error) {
	a.replaying.Store(true)
	defer a.replaying.Store(false)
	_, err := call[acp.LoadSessionResponse](ctx, a.process, acp.AgentMethodSessionLoad, timeout, acp.LoadSessionRequest{
		SessionId: acp.SessionId(a.spec.LoadSession), Cwd: a.spec.Dir, McpServers: a.spec.mcpServers(),
	})
	var refused *TurnError
	switch {
	case err == nil:
		a.session = acp.SessionId(a.spec.LoadSession)
		a.lifecycle("resumed", "session "+clip(a.spec.LoadSession, 128))
		return true, nil
	case errors.As(err, &refused):
		a.lifecycle("not_resumed", "session/load: "+refused.Error()+"; a new session is opened")
		return false, nil
	}
	return false, err
}

func (s Spec) mcpServers() []acp.McpServer {
	out := []acp.McpServer{}
	for _, m := range s.MCP {
		h := []acp.HttpHeader{}
		for k, v := range m.Headers {
			h = append(h, acp.HttpHeader{Name: k, Value: v})
		}
		slices.SortFunc(h, func(a, b acp.HttpHeader) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, acp.McpServer{Http: &acp.McpServerHttpInline{Type: "http", Name: m.Name, Url: m.URL, Headers: h}})
	}
	return out
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// authRequired is the protocol's error code for "log in first".
const authRequired = -32000

func (a *process) startError(step string, err error) error {
	kind := errs.Unavailable
	var te *TurnError
	if errors.As(err, &te) && te.Code == authRequired {
		kind = errs.Unauthorized
	}
	msg := fmt.Sprintf("agent %s: %s failed", a.spec.Preset.Name, step)
	e := &errs.Error{Kind: kind, Message: msg, Err: err}
	if tail := a.tail.String(); tail != "" && !strings.Contains(err.Error(), tail) {
		e = e.WithHint("its stderr ends: %s", tail)
	}
	return e
}

// emit hands an event to the spec's callback.
func (a *Agent) emit(e Event) {
	if a.spec.OnEvent == nil {
		return
	}
	e = a.members.redactor().event(e).capped()
	a.emitMu.Lock()
	defer a.emitMu.Unlock()
	a.spec.OnEvent(e)
}

func (a *Agent) lifecycle(status, text string) {
	a.emit(Event{Kind: KindLifecycle, Status: status, Text: text})
}

// Done implements Session.
func (a *Agent) Done() <-chan struct{} { return a.gone }

// Err implements Session.
func (a *Agent) Err() error {
	select {
	case <-a.gone:
	default:
		return nil
	}
	a.turnMu.Lock()
	left := a.left
	a.turnMu.Unlock()
	if left && a.shared {
		return nil
	}
	return a.process.err()
}

// err says why the process ended: nil while it runs or when it was closed.
func (a *process) err() error {
	select {
	case <-a.done:
	default:
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cause == nil {
		return nil
	}
	e := &errs.Error{Kind: errs.Unavailable, Message: "agent " + a.spec.Preset.Name, Err: a.cause}
	if tail := a.tail.String(); tail != "" {
		e = e.WithHint("its stderr ends: %s", tail)
	}
	return e
}

// endedError is Err, or that Close ended it.
func (a *process) endedError() error {
	if err := a.err(); err != nil {
		return err
	}
	return errs.New(errs.Unavailable, "agent %s was closed", a.spec.Preset.Name)
}

// PID implements Session.
func (a *Agent) PID() int { return a.pid }

// SessionID implements Session.
func (a *Agent) SessionID() string { return string(a.session) }

// Spawned implements Session.
func (a *Agent) Spawned() time.Time { return a.spawned }
