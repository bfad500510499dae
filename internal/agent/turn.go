package agent

import (
	"context"
	"encoding/json"
	"time"

	"github.com/coder/acp-go-sdk"

	"gastown/internal/errs"
)

// cancelRepeat is when a cancel is sent again: one that overtakes its prompt
// inside the agent is lost. Much shorter, and a turn that is about to end would
// get a second one for nothing.
const cancelRepeat = 4 * time.Second

// turn is a prompt in progress.
type turn struct {
	cancel chan struct{} // holds one token once a cancel was asked for
	over   chan struct{} // closed when Prompt returns
}

type answer struct {
	res acp.PromptResponse
	err error
}

// Prompt implements Session.
func (a *Agent) Prompt(ctx context.Context, text string) (StopReason, error) {
	if err := ctx.Err(); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "prompt")
	}
	t := &turn{cancel: make(chan struct{}, 1), over: make(chan struct{})}
	if err := a.begin(t); err != nil {
		return "", err
	}
	defer func() {
		a.turnMu.Lock()
		a.turn = nil
		a.turnMu.Unlock()
		close(t.over)
	}()

	// The request outlives ctx, because the answer to a cancel belongs to it.
	reqCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	got := make(chan answer, 1)
	go func() {
		res, err := acp.SendRequest[acp.PromptResponse](a.conn, reqCtx, acp.AgentMethodSessionPrompt, acp.PromptRequest{
			SessionId: a.session, Prompt: []acp.ContentBlock{acp.TextBlock(text)},
		})
		got <- answer{res, err}
	}()
	select {
	case r := <-got:
		return a.turnEnd(r)
	case <-ctx.Done():
	case <-t.cancel:
	}
	return a.cancelled(got)
}

func (a *Agent) begin(t *turn) error {
	a.turnMu.Lock()
	defer a.turnMu.Unlock()
	switch {
	case a.turn != nil:
		return errs.New(errs.Conflict, "agent %s: a turn is in progress", a.spec.Preset.Name)
	case a.left && a.shared:
		return errs.New(errs.Unavailable, "agent %s: the session was closed", a.spec.Preset.Name)
	}
	a.turn = t
	return nil
}

// cancelled asks the agent to end the turn until it does or time is up.
func (a *Agent) cancelled(got <-chan answer) (StopReason, error) {
	limit := orDefault(a.spec.Preset.CancelTimeout, 10*time.Second)
	end := time.NewTimer(limit)
	defer end.Stop()
	again := time.NewTicker(cancelRepeat)
	defer again.Stop()
	for {
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			// A failed write ends the agent, and that is noticed below.
			_ = a.conn.SendNotification(context.Background(), acp.AgentMethodSessionCancel, acp.CancelNotification{SessionId: a.session})
		}()
		select {
		case r := <-got:
			<-sent // it must not come after the next prompt
			return a.turnEnd(r)
		case <-end.C:
			return "", errs.New(errs.Unavailable, "agent %s did not end its turn within %s of the cancel", a.spec.Preset.Name, limit)
		case <-again.C:
		}
	}
}

func (a *Agent) turnEnd(r answer) (StopReason, error) {
	if r.err != nil {
		if a.ending() { // its exit says more than the broken connection
			<-a.done
			return "", a.endedError()
		}
		return "", errs.Wrap(errs.Unavailable, a.requestError(r.err), "agent %s: the turn failed", a.spec.Preset.Name)
	}
	if r.res.Usage != nil {
		if raw, err := json.Marshal(r.res.Usage); err == nil {
			a.emit(Event{Kind: KindUsage, Status: "turn", Raw: raw})
		}
	}
	return StopReason(r.res.StopReason), nil
}

// Cancel implements Session. Without a turn in progress it does nothing.
func (a *Agent) Cancel(ctx context.Context) error {
	select {
	case <-a.gone:
		return a.endedError()
	default:
	}
	if err := ctx.Err(); err != nil {
		return errs.Wrap(errs.Unavailable, err, "cancel")
	}
	a.cancelTurn()
	return nil
}

// cancelTurn asks for the end of the turn in progress, which it returns; nil: there is none.
func (a *Agent) cancelTurn() *turn {
	a.turnMu.Lock()
	defer a.turnMu.Unlock()
	if a.turn != nil {
		select {
		case a.turn.cancel <- struct{}{}:
		default: // asked already
		}
	}
	return a.turn
}
