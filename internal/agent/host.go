package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coder/acp-go-sdk"

	"gastown/internal/errs"
)

// Host holds several sessions in one agent process. The process is started with
// the first session and ends with the last; a session that is opened later
// starts another. Each session has its own directory, tools and events, and its
// slot: a place in the agent's configuration, with a base URL and a key.
type Host struct {
	base    Spec
	opening chan struct{} // holds a token while a session is opened

	mu    sync.Mutex // guards the fields below
	proc  *process
	tired bool
}

// NewHost says how the process is to be started: Preset, Dir, Env, SelfExe,
// Stderr, Start and Sweep of base. slots are the models that sessions choose
// from; none for an agent without a provider.
func NewHost(base Spec, slots []Model) (*Host, error) {
	base.slots = slots
	if len(slots) > 0 {
		base.Model = &slots[0]
	}
	if !base.Preset.Shares() {
		return nil, errs.New(errs.Invalid, "agent %s: its sessions share no process", base.Preset.Name)
	}
	return &Host{base: base, opening: make(chan struct{}, 1)}, base.check()
}

// Tired says that the process served its time: it died, or a session would not
// end. It takes more sessions all the same, but a new Host is the better place.
func (h *Host) Tired() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tired || h.proc != nil && h.proc.tired.Load()
}

// Open opens a session; Dir, MCP, OnEvent and LoadSession of spec are its own,
// and slot is its place among the models. One session is opened at a time. The
// errors are those of Start.
func (h *Host) Open(ctx context.Context, spec Spec, slot int) (Session, error) {
	select {
	case h.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, errs.Wrap(errs.Unavailable, ctx.Err(), "open a session")
	}
	defer func() { <-h.opening }()
	own := h.base
	own.Dir, own.MCP, own.OnEvent, own.LoadSession = spec.Dir, spec.MCP, spec.OnEvent, spec.LoadSession
	if len(own.slots) > 0 {
		name, err := own.Preset.Model.sessionModel(own.slot(slot))
		if err != nil {
			return nil, err
		}
		own.sessionModel = name
	}
	if err := own.check(); err != nil {
		return nil, err
	}
	a := newAgent(own)
	if err := h.join(ctx, a); err != nil {
		return nil, err
	}
	step, err := a.open(ctx)
	if err == nil {
		return a, nil
	}
	a.tired.Store(true)
	err = a.startError(step, err)
	// Why it can't be used is known; Close only cleans up.
	_ = a.Close(0)
	return nil, err
}

// join gives the session the living process, or a new one.
func (h *Host) join(ctx context.Context, a *Agent) error {
	h.mu.Lock()
	old := h.proc
	h.mu.Unlock()
	if old != nil {
		a.process = old
		if old.members.add(a) {
			old.members.know(a.spec.secrets())
			a.lifecycle("joined", fmt.Sprintf("pid %d, which serves %d runs", old.pid, len(old.members.all())))
			return nil
		}
		// It is on its way out; two at once would need twice the memory.
		select {
		case <-old.done:
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for the old process")
		}
		h.mu.Lock()
		h.tired = h.tired || old.tired.Load() || old.err() != nil
		h.mu.Unlock()
	}
	spec := h.base
	spec.MCP = a.spec.MCP
	p, err := startProcess(ctx, spec, a, true)
	h.mu.Lock()
	h.proc = p
	h.mu.Unlock()
	return err
}

// Close implements Session. A session that shares its process ends alone: its
// turn is cancelled, and what its tools left in its directory is killed where
// that can be found; the last one ends the process.
func (a *Agent) Close(grace time.Duration) error {
	a.turnMu.Lock()
	again := a.left
	a.left = true
	a.turnMu.Unlock()
	switch {
	case !a.shared:
		return a.process.close(grace)
	case again:
		<-a.gone
		return nil
	}
	end := time.NewTimer(grace)
	defer end.Stop()
	if len(a.members.all()) > 1 {
		a.endTurn(end.C)
	}
	if a.members.leave(a) {
		return a.process.close(grace)
	}
	var err error
	if a.canClose && grace > 0 {
		_, err = call[acp.CloseSessionResponse](context.Background(), a.process, acp.AgentMethodSessionClose, grace, acp.CloseSessionRequest{SessionId: a.session})
		var refused *TurnError
		if errors.As(err, &refused) || a.ending() {
			err = nil // then it only stays in the agent's memory, or went with it
		}
	}
	if n := sweepDir(a.pid, a.cookie, a.spec.Dir, goneTimeout); n > 0 {
		err = errors.Join(err, errs.New(errs.Internal, "agent %s: %d processes of a session outlived SIGKILL", a.spec.Preset.Name, n))
	}
	a.goneOnce.Do(func() { close(a.gone) })
	return err
}

// endTurn cancels the turn in progress. An agent that does not end it makes its
// process one that takes no more sessions.
func (a *Agent) endTurn(limit <-chan time.Time) {
	t := a.cancelTurn()
	if t == nil {
		return
	}
	select {
	case <-t.over:
	case <-a.done:
	case <-limit:
		a.tired.Store(true)
	}
}
