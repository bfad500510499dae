package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

const (
	// agentsFor bounds the whole measurement: real agents take seconds to start.
	agentsFor = 10 * time.Minute
	// lookEvery is how often the memory of the agents is read.
	lookEvery = 250 * time.Millisecond
)

// AgentsOptions say how to measure what runs of a real agent cost.
type AgentsOptions struct {
	Place *Place
	Agent string // a preset that speaks the format of OpenAI's chat completions
	Runs  int
	Own   bool     // a process for each run
	Args  []string // for gastown serve
	Note  func(format string, args ...any)
}

// Agents is what runs of a real agent cost in one sandbox, all of them at work at
// once. Memory is the sum over the agents' processes, and those of their tools, of
// what is theirs (shared pages in parts: PSS).
type Agents struct {
	Agent      string    `json:"agent"`
	Runs       int       `json:"runs"`
	PeakBytes  int64     `json:"peak_bytes"`
	Processes  int       `json:"processes"` // of agents, without their tools, at most at once
	Prompted   Quantiles `json:"first_model_request_ms"`
	Closed     int       `json:"closed"`
	TokensSeen int64     `json:"tokens_counted"` // by the server, for the beads
	TokensSent int64     `json:"tokens_sent"`    // by the model
}

// MeasureAgents slings beads of one rig at once. Its model answers only when all
// runs have asked it the second time, so that all are at work together; then each
// changes a file, commits it and is done.
func MeasureAgents(ctx context.Context, o AgentsOptions) (out Agents, err error) {
	ctx, cancel := context.WithTimeout(ctx, agentsFor)
	defer cancel()
	repo := filepath.Join(o.Place.Dir, "agents.git")
	if err := writeRepository(ctx, repo, 100); err != nil {
		return out, err
	}
	model, err := newTogether(o.Runs)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, model.srv.Close()) }()
	runs := strconv.Itoa(o.Runs)
	args := append([]string{"--isolation", "none", "--set", "agent=" + o.Agent, "--set", "provider=house", "--set", "model=model-1",
		"--set", "polecats.per_rig=" + runs, "--set", "polecats.per_town=" + runs, "--set", "process_per_run=" + strconv.FormatBool(o.Own)}, o.Args...)
	s, err := o.Place.Serve(ctx, filepath.Join(o.Place.Dir, "agents"), args...)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	c, err := s.Client()
	if err != nil {
		return out, err
	}
	beads, err := slingAll(ctx, c, repo, model.url, o.Runs)
	if err != nil {
		return out, err
	}
	model.start()
	out = Agents{Agent: o.Agent, Runs: o.Runs}
	for len(beads) > out.Closed {
		if err := wait(ctx, lookEvery); err != nil {
			return out, errs.Wrap(errs.Unavailable, err, "%d of %d beads were closed in %s", out.Closed, o.Runs, agentsFor)
		}
		bytes, processes, err := agentMemory(o.Place.Dir)
		if err != nil {
			return out, err
		}
		out.PeakBytes, out.Processes = max(out.PeakBytes, bytes), max(out.Processes, processes)
		if out.Closed, out.TokensSeen, err = closed(ctx, c, beads); err != nil {
			return out, err
		}
	}
	out.Prompted, out.TokensSent = quantiles(model.first), model.tokens
	return out, nil
}

// slingAll makes a town and gives it its work.
func slingAll(ctx context.Context, c *client.Client, repo, model string, n int) ([]string, error) {
	if _, err := c.AddProvider(ctx, api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: model, Key: "key-of-the-measurement", Models: []string{"model-1"}}); err != nil {
		return nil, err
	}
	if _, err := c.CreateTown(ctx, api.CreateTown{Name: "agents"}); err != nil {
		return nil, err
	}
	if _, err := c.AddRig(ctx, "agents", api.AddRig{Name: "web", URL: repo, Target: "main"}); err != nil {
		return nil, err
	}
	var beads []string
	for i := range n {
		b, err := c.CreateBead(ctx, "agents", api.CreateBead{Rig: "web", Title: fmt.Sprintf("task %d", i), Body: "Make a file and commit it."})
		if err != nil {
			return nil, err
		}
		beads = append(beads, b.ID)
	}
	return beads, nil
}

// closed counts the beads that are, with what the server counted for all. One
// that will not be is an error.
func closed(ctx context.Context, c *client.Client, beads []string) (n int, tokens int64, err error) {
	for _, id := range beads {
		b, err := c.Bead(ctx, id)
		if err != nil {
			return n, tokens, err
		}
		tokens += b.Spent.Tokens
		switch {
		case b.Status == "closed":
			n++
		case b.Status == "failed" || len(b.Failures) > 0:
			return n, tokens, errs.New(errs.Internal, "bead %s is %s: %s", id, b.Status, b.Reason)
		}
	}
	return n, tokens, nil
}

// together is a model that has all runs at work at once.
type together struct {
	url  string
	srv  *http.Server
	all  chan struct{} // closed when all runs have asked a second time
	runs int

	mu     sync.Mutex // guards the fields below
	begun  time.Time
	first  []time.Duration // of each run, from the slings to its first request
	second int
	tokens int64
}

func newTogether(runs int) (*together, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "listening for the model")
	}
	m := &together{url: "http://" + ln.Addr().String() + "/v1", all: make(chan struct{}), runs: runs, begun: time.Now()}
	m.srv = &http.Server{Handler: m, ReadHeaderTimeout: time.Minute}
	go func() { _ = m.srv.Serve(ln) }() // ends with Close
	return m, nil
}

func (m *together) start() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun = time.Now()
}

// question is what the model must know of a request.
type question struct {
	Messages []struct {
		Role string `json:"role"`
	} `json:"messages"`
	Tools []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
}

// tool finds a tool by the end of its name.
func (q question) tool(suffix string) string {
	for _, t := range q.Tools {
		if t.Function.Name == suffix || strings.HasSuffix(t.Function.Name, "_"+suffix) {
			return t.Function.Name
		}
	}
	return ""
}

// step is how many tools answered since the last prompt; -1 for a request that is
// no work, such as one for a title.
func (q question) step() int {
	n := 0
	for _, msg := range q.Messages {
		switch msg.Role {
		case "user":
			n = 0
		case "tool":
			n++
		}
	}
	if q.tool("done") == "" {
		return -1
	}
	return n
}

// ServeHTTP implements http.Handler.
func (m *together) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q question
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<20)).Decode(&q); err != nil || !strings.HasSuffix(r.URL.Path, "/chat/completions") {
		http.Error(w, `{"error":{"message":"only chat completions"}}`, http.StatusBadRequest)
		return
	}
	const command = "echo done > \"work-$$.txt\" && git add -A && git commit -qm 'Do the work'"
	name, args := "", map[string]any{}
	switch q.step() {
	case 0:
		m.note(func() { m.first = append(m.first, time.Since(m.begun)) })
		name = q.tool("prime")
	case 1:
		m.note(func() {
			if m.second++; m.second == m.runs {
				close(m.all)
			}
		})
		select {
		case <-m.all:
		case <-r.Context().Done():
			return
		}
		name, args = q.tool("bash"), map[string]any{"command": command, "description": "does the work"}
	case 2:
		name, args = q.tool("done"), map[string]any{"summary": "did the work"}
	}
	m.note(func() { m.tokens += 15 })
	m.answer(w, len(q.Messages), name, args)
}

func (m *together) note(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// answer streams a call of a tool, or a word where name is "".
func (m *together) answer(w http.ResponseWriter, n int, name string, args map[string]any) {
	delta, finish := map[string]any{"role": "assistant", "content": "finished"}, "stop"
	if name != "" {
		text, err := json.Marshal(args)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		finish = "tool_calls"
		delta = map[string]any{"role": "assistant", "tool_calls": []any{map[string]any{"index": 0, "id": "call_" + strconv.Itoa(n), "type": "function",
			"function": map[string]any{"name": name, "arguments": string(text)}}}}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for _, c := range []map[string]any{
		{"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": nil}}},
		{"choices": []any{map[string]any{"index": 0, "delta": map[string]any{}, "finish_reason": finish}},
			"usage": map[string]any{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}},
	} {
		c["id"], c["object"], c["created"], c["model"] = "c1", "chat.completion.chunk", 1, "model-1"
		if text, err := json.Marshal(c); err == nil {
			// A client that went away needs no answer.
			_, _ = fmt.Fprintf(w, "data: %s\n\n", text)
		}
	}
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n") // as above
}
