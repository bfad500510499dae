package runner

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"gastown/internal/agent"
	"gastown/internal/agent/agenttest"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

type bearerTransport string

func (b bearerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", string(b))
	return http.DefaultTransport.RoundTrip(r)
}

// callTool calls a tool of a fake agent's session as the agent would.
func callTool(ctx context.Context, spec agent.Spec, name string, args any) (text string, failed bool, err error) {
	c := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	s, err := c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: spec.MCP[0].URL, DisableStandaloneSSE: true,
		HTTPClient: &http.Client{Transport: bearerTransport(spec.MCP[0].Headers["Authorization"])}}, nil)
	if err != nil {
		return "", false, err
	}
	defer func() { _ = s.Close() }() // the session is stateless
	res, err := s.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		return "", false, err
	}
	return res.Content[0].(*mcp.TextContent).Text, res.IsError, nil
}

// hand is a fake agent whose one turn the test plays itself.
type hand struct {
	f       *fakeTown
	session *agenttest.Session
	release chan struct{} // closing it ends the turn
}

// play starts a run with a fake agent and returns it in its first turn.
func (f *fakeTown) play(edit func(d *town.DesiredRun)) *hand {
	f.t.Helper()
	h := &hand{f: f, release: make(chan struct{})}
	begun := make(chan *agenttest.Session, 1)
	starter := &agenttest.Starter{OnStart: func(_ context.Context, s *agenttest.Session) error {
		s.OnPrompt = func(ctx context.Context, s *agenttest.Session, n int, _ string) (agent.StopReason, error) {
			if n > 0 {
				return agent.StopEndTurn, nil
			}
			begun <- s
			select {
			case <-h.release:
			case <-s.CancelAsked():
				return agent.StopCancelled, nil
			case <-ctx.Done():
			}
			return agent.StopEndTurn, nil
		}
		return nil
	}}
	f.addRun(edit)
	f.begin(func(c *Config) { c.Start = starter.Start })
	h.session = <-begun
	return h
}

func (h *hand) call(name string, args any) (string, bool) {
	h.f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text, failed, err := callTool(ctx, h.session.Spec, name, args)
	if err != nil {
		h.f.t.Fatalf("%s: %v", name, err)
	}
	return text, failed
}

func (h *hand) dir() string { return h.session.Spec.Dir }

func TestDoneIsRefusedWhileTheWorktreeIsDirty(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(nil)
	f.write(h.dir(), "a.txt", "changed\n")
	for _, c := range "abcdefghijklmnopqrstuvw" {
		f.write(h.dir(), "new/"+string(c), "x")
	}
	text, failed := h.call("done", map[string]any{"summary": "all good"})
	if !failed || !strings.Contains(text, `"a.txt"`) || !strings.Contains(text, `"new/s"`) || !strings.Contains(text, "and 4 more") {
		t.Errorf("failed %v: %s", failed, text)
	}
	f.must(h.dir(), "add", "-A")
	f.must(h.dir(), "commit", "-q", "-m", "work")
	head := f.must(h.dir(), "rev-parse", "HEAD")
	f.must(h.dir(), "checkout", "-q", "--detach")
	if text, failed = h.call("done", nil); !failed || !strings.Contains(text, "detached") {
		t.Errorf("failed %v: %s", failed, text)
	}
	f.must(h.dir(), "checkout", "-q", branch)
	if text, failed = h.call("done", nil); failed || !strings.Contains(text, "Accepted") {
		t.Errorf("failed %v: %s", failed, text)
	}
	if text, failed = h.call("no_change", map[string]any{"reason": "no"}); failed || !strings.Contains(text, "done was accepted already") {
		t.Errorf("failed %v: %s", failed, text)
	}
	if got := f.must(f.dir, "rev-parse", "refs/heads/"+branch); got != head {
		t.Errorf("the hub holds %s, not %s", got, head)
	}
	close(h.release)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestDoneOnAFrozenBranchTellsWhy(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.frozen = "the work on it is being reviewed"
	h := f.play(nil)
	f.write(h.dir(), "b.txt", "b\n")
	f.must(h.dir(), "add", "-A")
	f.must(h.dir(), "commit", "-q", "-m", "work")
	if text, failed := h.call("done", nil); !failed || !strings.Contains(text, "being reviewed") {
		t.Errorf("failed %v: %s", failed, text)
	}
	close(h.release)
}

func TestTheAgentPushesItsBranchWithoutKnowingAToken(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(nil)
	f.write(h.dir(), "b.txt", "b\n")
	f.must(h.dir(), "add", "-A")
	f.must(h.dir(), "commit", "-q", "-m", "work")
	f.must(h.dir(), "push", "-q", "origin", "HEAD")
	if out, err := f.try(h.dir(), "push", "-q", "origin", "HEAD:refs/heads/main"); err == nil || !strings.Contains(out, "not yours to push") {
		t.Errorf("a push to the target: %v, %s", err, out)
	}
	f.must(h.dir(), "fetch", "-q", "origin")
	for _, kv := range h.session.Spec.Env {
		if strings.Contains(kv, "token-1") {
			t.Errorf("the agent's environment has the sandbox token: %s", kv)
		}
	}
	close(h.release)
}

func TestNoChangeAndEscalateNeedAReason(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(nil)
	for _, tool := range []string{"no_change", "escalate"} {
		if text, failed := h.call(tool, nil); !failed || !strings.Contains(text, `needs the argument "reason"`) {
			t.Errorf("%s: %v %s", tool, failed, text)
		}
	}
	if text, failed := h.call("no_change", map[string]any{"reason": "it works already"}); failed {
		t.Errorf("no_change: %s", text)
	}
	close(h.release)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeNoChange {
		t.Errorf("ended: %+v", e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.verdicts[0].Text != "it works already" {
		t.Errorf("verdict: %+v", f.verdicts[0])
	}
}

func TestTheSameWordsAfterARefusalAreAnotherCall(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	refusals := 0
	f.onVerdict = func(wire.VerdictRequest) error {
		if refusals++; refusals == 1 {
			return errs.New(errs.Conflict, "look again")
		}
		return nil
	}
	h := f.play(nil)
	if text, failed := h.call("no_change", map[string]any{"reason": "same"}); !failed || !strings.Contains(text, "look again") {
		t.Errorf("%v %s", failed, text)
	}
	if text, failed := h.call("no_change", map[string]any{"reason": "same"}); failed {
		t.Error(text)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.verdicts[0].CallID == f.verdicts[1].CallID {
		t.Error("both calls have the same id")
	}
	close(h.release)
}

func TestANewEpochWaitsUntilTheOldOneHasLeftTheWorktree(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	starter := &agenttest.Starter{OnStart: func(_ context.Context, s *agenttest.Session) error {
		s.OnPrompt = func(_ context.Context, s *agenttest.Session, _ int, _ string) (agent.StopReason, error) {
			<-s.Done() // deaf to a cancel
			return "", errs.New(errs.Unavailable, "closed")
		}
		return nil
	}}
	f.addRun(nil)
	f.begin(func(c *Config) { c.Start = starter.Start })
	f.awaitReport(town.ReportStarted, 0)
	f.publish(func(d *town.Desired) {
		n := d.Runs[0]
		n.ID, n.Epoch = "app-aaaaa.2", 2
		d.Runs = []town.DesiredRun{n}
	})
	if s := f.awaitReport(town.ReportStarted, 1); s.Epoch != 2 {
		t.Errorf("started: %+v", s)
	}
	if f.order(town.ReportEnded) < 0 || f.order(town.ReportEnded) > f.order(town.ReportStarted) {
		t.Error("the new run started in the worktree of the old one")
	}
}

func TestPrimeAndBeadShowAnswerWithJSON(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "the task"
	h := f.play(nil)
	text, failed := h.call("prime", map[string]any{})
	var p town.Prime
	if err := json.Unmarshal([]byte(text), &p); err != nil || failed || p.Bead.Body != "the task" || p.Run != theRun {
		t.Errorf("prime: %v %s", err, text)
	}
	if text, failed = h.call("bead_show", map[string]any{"id": "app-bbbbb"}); failed || !strings.Contains(text, "app-bbbbb") {
		t.Errorf("bead_show: %v %s", failed, text)
	}
	if text, failed = h.call("bead_show", map[string]any{"id": "../x"}); !failed || !strings.Contains(text, "no bead id") {
		t.Errorf("bead_show: %v %s", failed, text)
	}
	if text, failed = h.call("checkpoint", map[string]any{}); failed || !strings.Contains(text, "Nothing has changed") {
		t.Errorf("checkpoint: %v %s", failed, text)
	}
	f.write(h.dir(), "wip.txt", "wip")
	if text, failed = h.call("checkpoint", map[string]any{}); failed || !strings.Contains(text, "Saved as checkpoint") {
		t.Errorf("checkpoint: %v %s", failed, text)
	}
	close(h.release)
}

func TestAToolCallAfterTheRunIsRefused(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(func(d *town.DesiredRun) { d.TurnNudges = 0 })
	close(h.release)
	f.awaitReport(town.ReportEnded, 0)
	if text, _, err := callTool(t.Context(), h.session.Spec, "prime", nil); err == nil {
		t.Errorf("a dead run's secret still works: %s", text)
	}
}

func TestEveryToolHasASchemaAndHelp(t *testing.T) {
	t.Parallel()
	for _, d := range toolDefs() {
		var s struct {
			Type       string         `json:"type"`
			Properties map[string]any `json:"properties"`
			Required   []string       `json:"required"`
		}
		if err := json.Unmarshal(d.arg.schema(), &s); err != nil || s.Type != "object" || d.help == "" {
			t.Errorf("%s: %v %+v", d.name, err, s)
		}
		if d.arg != nil && (s.Properties[d.arg.name] == nil || d.arg.required != (len(s.Required) == 1)) {
			t.Errorf("%s: %+v", d.name, s)
		}
	}
}

func TestToolErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"call the tool again": errs.New(errs.Unavailable, "no route"),
		"end your turn":       errs.New(errs.Gone, "old epoch"),
		"commit it":           errs.New(errs.Conflict, "dirty").WithHint("commit it"),
	} {
		if got := toolError(err); !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}

func FuzzToolArguments(f *testing.F) {
	for _, s := range []string{"", "null", "{}", "[]", `{"reason":"x"}`, `{"reason":5}`, `{"reason":null}`, `{"id":"../x"}`, `{"summary":"` + strings.Repeat("é", 9000) + `"}`,
		`{"reason":"\u0000\ud800"}`, `{"reason":"a","reason":"b"}`, `{"x":{}}`, "{", `"reason"`} {
		f.Add([]byte(s))
	}
	defs := toolDefs()
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, d := range defs {
			text, err := d.arg.parse(d.name, raw)
			if err != nil {
				if text != "" || !strings.Contains(err.Error(), d.name) || len(err.Error()) > 1000 {
					t.Errorf("%s: %q, %v", d.name, text, err)
				}
				continue
			}
			if d.arg == nil && text != "" || d.arg != nil && (len(text) > d.arg.max || d.arg.required && text == "") {
				t.Errorf("%s took %q", d.name, text)
			}
			if !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b") {
				t.Errorf("%s let %q through", d.name, text)
			}
		}
	})
}
