package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/coder/acp-go-sdk"

	"gastown/internal/errs"
)

const (
	// maxLine is the longest protocol message; the library's own limit is 10 MiB.
	maxLine = 8 << 20
	// maxAsked is how many requests of the agent may be unanswered at once.
	maxAsked = 64
	// writeTimeout is how long an agent may leave its stdin unread.
	writeTimeout = 30 * time.Second
)

// dial lays the protocol over the agent's pipes. The library handles requests
// and responses; session/update never reaches it, because its queue of
// notifications is short and closes the connection when it is full.
func (a *process) dial() {
	pr, pw := io.Pipe()
	a.conn = acp.NewConnection(a.serve, stdinWriter{a}, pr)
	a.conn.SetLogger(slog.New(slog.DiscardHandler))
	a.readers.Go(func() {
		err := a.pump(pw)
		// A pipe's CloseWithError never fails.
		_ = pw.CloseWithError(err)
		a.stdoutEnded(err)
	})
	a.readers.Go(a.readStderr)
}

// pump reads the agent's stdout until its end: updates become events, the rest
// goes to the library. It returns nil at a plain end.
func (a *process) pump(to io.Writer) error {
	br := bufio.NewReaderSize(a.stdout, 64<<10)
	for {
		line, err := readLine(br, maxLine)
		if len(line) > 0 {
			if ferr := a.line(line, to); ferr != nil {
				return ferr
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (a *process) line(line []byte, to io.Writer) error {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
		Params json.RawMessage `json:"params"`
	}
	if json.Unmarshal(line, &m) != nil {
		a.tellAll(Event{Kind: KindNoise, Text: string(line)})
		return nil
	}
	hasID := len(m.ID) > 0 && string(m.ID) != "null"
	switch {
	case m.Method == acp.ClientMethodSessionUpdate && !hasID:
		a.update(m.Params)
		return nil
	case m.Method != "" && !hasID, m.Method == "" && !hasID:
		return nil // other notifications say nothing that we use
	case m.Method != "":
		select {
		case a.asked <- struct{}{}:
		case <-a.ended:
			return nil
		}
	}
	if _, err := to.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("hand a message on: %w", err)
	}
	return nil
}

// update hands an update to its session. One for a session that was closed is
// dropped: its run is over.
func (a *process) update(params json.RawMessage) {
	id, e := updateEvent(params)
	m := a.members.of(acp.SessionId(id), !a.shared)
	if m == nil {
		return
	}
	e.Replayed = m.replaying.Load()
	m.emit(e)
}

// readLine returns the next line without its end. A line longer than limit is
// an error; a last line without an end is returned with io.EOF.
func readLine(br *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("the agent sent a line of more than %d bytes", limit)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return bytes.TrimSpace(line), err
	}
}

// stdinWriter writes protocol messages to the agent. A failed write ends the
// agent: half a message can't be taken back.
type stdinWriter struct{ a *process }

func (w stdinWriter) Write(p []byte) (int, error) {
	// Where deadlines aren't supported the write itself still fails when the agent is gone.
	_ = w.a.stdin.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := w.a.stdin.Write(p)
	if err != nil {
		w.a.broken.Store(true)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.a.fail(errors.New("the agent did not read its input for 30 seconds"))
		} else {
			w.a.endSoon("the agent closed its input")
		}
		return n, err
	}
	var m struct {
		Method string `json:"method"`
	}
	if json.Unmarshal(p, &m) == nil && m.Method == "" {
		select { // a response to something that the agent asked
		case <-w.a.asked:
		default:
		}
	}
	return n, nil
}

// ending reports whether the agent can't be spoken to any more, so that its
// process ends soon.
func (a *process) ending() bool {
	select {
	case <-a.conn.Done():
		return true
	default:
		return a.broken.Load()
	}
}

// serve answers the agent's requests.
func (a *process) serve(_ context.Context, method string, params json.RawMessage) (any, *acp.RequestError) {
	if method == acp.ClientMethodSessionRequestPermission {
		var req acp.RequestPermissionRequest
		if err := json.Unmarshal(params, &req); err != nil {
			return nil, acp.NewInvalidParams(map[string]any{"error": err.Error()})
		}
		m := a.members.of(req.SessionId, !a.shared)
		if m == nil {
			return acp.RequestPermissionResponse{Outcome: acp.NewRequestPermissionOutcomeCancelled()}, nil
		}
		return m.permission(req, params), nil
	}
	a.tellAll(Event{Kind: KindLifecycle, Status: "not_offered", Text: "the agent asked for " + clip(method, 128) + ", which is not offered"})
	return nil, acp.NewMethodNotFound(method)
}

// permission answers from the policy, at once.
func (a *Agent) permission(req acp.RequestPermissionRequest, raw json.RawMessage) acp.RequestPermissionResponse {
	kind, title := "", ""
	if req.ToolCall.Kind != nil {
		kind = string(*req.ToolCall.Kind)
	}
	if req.ToolCall.Title != nil {
		title = *req.ToolCall.Title
	}
	d, known := a.spec.Preset.Permissions.Decide(kind)
	text := fmt.Sprintf("%s for %q by the preset's policy", d, clip(kind, 64))
	if !known {
		text = fmt.Sprintf("deny: the preset's policy does not name the kind %q", clip(kind, 64))
	}
	wanted := []acp.PermissionOptionKind{acp.PermissionOptionKindAllowOnce, acp.PermissionOptionKindAllowAlways}
	if d == Deny {
		wanted = []acp.PermissionOptionKind{acp.PermissionOptionKindRejectOnce, acp.PermissionOptionKindRejectAlways}
	}
	outcome := acp.NewRequestPermissionOutcomeCancelled()
	opt, ok := pickOption(req.Options, wanted)
	switch {
	case ok:
		outcome = acp.NewRequestPermissionOutcomeSelected(opt)
	case d == Allow:
		d, text = Deny, "deny: the agent offers no option that allows it"
	}
	a.emit(Event{Kind: KindPermission, Text: text, Tool: title, Status: string(d), ID: string(req.ToolCall.ToolCallId), Raw: raw})
	return acp.RequestPermissionResponse{Outcome: outcome}
}

func pickOption(opts []acp.PermissionOption, wanted []acp.PermissionOptionKind) (acp.PermissionOptionId, bool) {
	for _, w := range wanted {
		for _, o := range opts {
			if o.Kind == w {
				return o.OptionId, true
			}
		}
	}
	return "", false
}

// TurnError is an error that the agent answered to a prompt. Data is what it
// added, such as errorKind or http_status_code; it says nothing that rules may
// rely on.
type TurnError struct {
	Code    int
	Message string
	Data    string // JSON, at most 4 KiB
}

// Error returns the message with its code.
func (e *TurnError) Error() string {
	s := fmt.Sprintf("%s (code %d)", e.Message, e.Code)
	if e.Data != "" {
		s += " " + e.Data
	}
	return s
}

// requestError takes the library's error apart, secrets removed. Its text is
// never matched: only whether the agent answered one.
func (a *process) requestError(err error) error {
	var re *acp.RequestError
	if !errors.As(err, &re) {
		return err
	}
	data := ""
	if re.Data != nil {
		if b, merr := json.Marshal(re.Data); merr == nil {
			data = clip(a.members.redactor().text(string(b)), 4096)
		}
	}
	return &TurnError{Code: re.Code, Message: clip(a.members.redactor().text(re.Message), 1024), Data: data}
}

// call makes one request with its own deadline. When the agent ended
// meanwhile, the error is why.
func call[T any](ctx context.Context, a *process, method string, limit time.Duration, params any) (T, error) {
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := acp.SendRequest[T](a.conn, timed, method, params)
	if err == nil {
		return res, nil
	}
	if a.ending() { // its exit says more
		<-a.done
		return res, a.endedError()
	}
	switch {
	case ctx.Err() != nil:
		return res, errs.Wrap(errs.Unavailable, ctx.Err(), "the caller gave up")
	case timed.Err() != nil:
		return res, errs.New(errs.Unavailable, "no answer within %s", limit)
	}
	return res, a.requestError(err)
}
