//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"gastown/internal/api"
)

// Model is a model without intelligence behind an OpenAI-compatible streaming
// API on loopback: it follows a script, and keeps every request that it got.
//
// The script is a list of steps. Which one answers a request follows from the
// request alone, from the number of answers in its history: an agent that asks
// again after a failure gets the same answer again. Past its end the model only
// says that it is finished. Requests that offer no tools are not for the script:
// agents ask for titles and summaries in that way. A model whose script is one
// function (NewScripted) asks it instead of the list.
type Model struct {
	server *httptest.Server
	steps  []Step
	script Step

	scriptMu sync.Mutex // held while script runs

	mu       sync.Mutex // guards the fields below
	requests []*Request
	faults   []string
}

// Step is the model's answer to one request.
type Step func(*Request) Answer

// Answer is text, or a call of a tool, or first one and then the other; or a fault.
type Answer struct {
	Text string
	Tool string // the whole name, or what follows the agent's own prefix
	Args map[string]any
	// Fault is what a provider answers that does not do what it is asked.
	Fault *Fault
	// Stall lets the stream stop after the text, until whoever asked is gone.
	Stall bool
}

// Fault is an answer without a model's word in it.
type Fault struct {
	Status     int    // 0: the connection is cut before an answer
	RetryAfter string // "": not said
	Body       string // JSON, or events where the status is 200
}

// Used is what a provider says that an answer used. Input holds nothing of the cache.
type Used struct{ Input, Output, CacheRead, CacheWrite int64 }

// answerUses is what each answer uses; only Anthropic's messages tell of writes to the cache.
func answerUses(wire string) Used {
	if wire == api.WireMessages {
		return Used{Input: 300, Output: 20, CacheRead: 600, CacheWrite: 100}
	}
	return Used{Input: 400, Output: 20, CacheRead: 600}
}

// usedTokens is the sum of each.
const usedTokens = 1020

// Say answers with text and so ends the turn.
func Say(text string) Step { return func(*Request) Answer { return Answer{Text: text} } }

// Call answers with a call of a tool. args are pairs of name and value.
func Call(tool string, args ...any) Step {
	m := map[string]any{}
	for i := 0; i+1 < len(args); i += 2 {
		m[fmt.Sprint(args[i])] = args[i+1]
	}
	return func(*Request) Answer { return Answer{Tool: tool, Args: m} }
}

// Bash answers with a command for the agent's shell.
func Bash(command string) Step {
	return Call("bash", "command", command, "description", "works on the task", "timeout", 60_000)
}

// Request is what an agent asked the model.
type Request struct {
	At            time.Time
	Path          string
	Authorization string
	Model         string
	Messages      []Message
	Tools         []string
	Whole         bool      // the answer went out to its end
	Ended         time.Time // when it did
	Refused       bool      // the answer was a fault
}

// Message is one message of a request's history.
type Message struct {
	Role  string
	Text  string
	Calls []string // names of the tools that an answer called
}

// Last returns the text of the last message of a role, "" when there is none.
func (r *Request) Last(role string) string {
	for _, m := range slices.Backward(r.Messages) {
		if m.Role == role {
			return m.Text
		}
	}
	return ""
}

// step is the number of answers in the history.
func (r *Request) step() int {
	n := 0
	for _, m := range r.Messages {
		if m.Role == "assistant" {
			n++
		}
	}
	return n
}

// tool finds the agent's name for a tool.
func (r *Request) tool(name string) (string, bool) {
	for _, t := range r.Tools {
		if t == name || strings.HasSuffix(t, "_"+name) || strings.HasSuffix(t, namespaced+name) {
			return t, true
		}
	}
	return "", false
}

// NewModel starts a model; Close ends it.
func NewModel(steps ...Step) *Model {
	m := &Model{steps: steps}
	m.server = httptest.NewServer(m)
	return m
}

// NewScripted starts a model whose answers a function gives, one at a time.
func NewScripted(script Step) *Model {
	m := NewModel()
	m.script = script
	return m
}

// Close ends the model. Streams that are open are cut off.
func (m *Model) Close() {
	m.server.CloseClientConnections()
	m.server.Close()
}

// URL is the base URL that a provider is configured with.
func (m *Model) URL() string { return m.server.URL + "/v1" }

// Requests returns copies of all requests so far, the oldest first.
func (m *Model) Requests() []*Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Request
	for _, q := range m.requests {
		c := *q
		out = append(out, &c)
	}
	return out
}

// answered notes that an answer is out, unless whoever asked is gone.
func (m *Model) answered(r *http.Request, q *Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q.Whole, q.Ended = r.Context().Err() == nil, time.Now()
}

// Steps returns the requests that the script answered, the oldest first.
func (m *Model) Steps() []*Request {
	return slices.DeleteFunc(m.Requests(), func(r *Request) bool { return len(r.Tools) == 0 })
}

// Faults says what the model could not make sense of.
func (m *Model) Faults() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.faults)
}

func (m *Model) fault(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

// chat is a request as OpenAI's chat completions define it, as far as it matters here.
type chat struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"` // a text, or a list of parts, or null
		Calls   []struct {
			Function struct {
				Name string `json:"name"`
			} `json:"function"`
		} `json:"tool_calls"`
	} `json:"messages"`
	Tools []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
}

func (c chat) request(r *http.Request) *Request {
	out := &Request{At: time.Now(), Path: r.URL.Path, Authorization: r.Header.Get("Authorization"), Model: c.Model}
	for _, m := range c.Messages {
		msg := Message{Role: m.Role, Text: content(m.Content)}
		for _, call := range m.Calls {
			msg.Calls = append(msg.Calls, call.Function.Name)
		}
		out.Messages = append(out.Messages, msg)
	}
	for _, t := range c.Tools {
		out.Tools = append(out.Tools, t.Function.Name)
	}
	return out
}

// content reads a message's text in either of its forms; another one is shown as it is.
func content(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		return string(raw)
	}
	for _, p := range parts {
		text += p.Text
	}
	return text
}

// ServeHTTP implements http.Handler.
func (m *Model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/v1beta/models/") && m.gemini(w, r):
		return
	case r.Method == http.MethodPost && r.URL.Path == "/v1/messages":
		m.messages(w, r)
		return
	case r.Method == http.MethodPost && r.URL.Path == "/v1/responses":
		m.responses(w, r)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 32<<20))
	var c chat
	if err == nil {
		err = json.Unmarshal(body, &c)
	}
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/chat/completions" || !c.Stream {
		m.fault("%s %s (stream %t): %v", r.Method, r.URL.Path, c.Stream, err)
		http.Error(w, `{"error":{"message":"only streamed chat completions"}}`, http.StatusBadRequest)
		return
	}
	q := c.request(r)
	m.keep(q)
	a := m.answer(q)
	if !m.fails(w, q, a) {
		m.stream(w, r, q, a)
	}
}

// fails answers with a fault, if there is one.
func (m *Model) fails(w http.ResponseWriter, q *Request, a Answer) bool {
	if a.Fault == nil {
		return false
	}
	m.mu.Lock()
	q.Refused = true
	m.mu.Unlock()
	if a.Fault.Status == 0 {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	if a.Fault.Status == http.StatusOK {
		w.Header().Set("Content-Type", "text/event-stream")
	}
	if a.Fault.RetryAfter != "" {
		w.Header().Set("Retry-After", a.Fault.RetryAfter)
	}
	w.WriteHeader(a.Fault.Status)
	_, _ = io.WriteString(w, a.Fault.Body) // a client that went away needs no answer
	return true
}

// stalls waits, where the answer stalls, until whoever asked is gone.
func (a Answer) stalls(r *http.Request) bool {
	if a.Stall {
		<-r.Context().Done()
	}
	return a.Stall
}

func (m *Model) keep(q *Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, q)
}

func (m *Model) answer(q *Request) Answer {
	n := q.step()
	switch {
	case len(q.Tools) == 0:
		return Answer{Text: "A title"}
	case m.script == nil && n >= len(m.steps):
		return Answer{Text: "finished"}
	}
	var a Answer
	if m.script != nil {
		m.scriptMu.Lock()
		a = m.script(q)
		m.scriptMu.Unlock()
	} else {
		a = m.steps[n](q)
	}
	if a.Tool == "" {
		return a
	}
	name, ok := q.tool(a.Tool)
	if !ok {
		m.fault("step %d wants the tool %s; offered are %s", n, a.Tool, strings.Join(q.Tools, ", "))
		return Answer{Text: "there is no tool " + a.Tool}
	}
	a.Tool = name
	return a
}

// stream writes an answer as providers do: the role first, text and arguments in
// pieces, the reason to finish, then the usage.
func (m *Model) stream(w http.ResponseWriter, r *http.Request, q *Request, a Answer) {
	defer m.answered(r, q)
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	send := func(choices []any, usage any) {
		b, err := json.Marshal(map[string]any{"id": "chat-1", "object": "chat.completion.chunk", "created": q.At.Unix(), "model": q.Model,
			"choices": choices, "usage": usage})
		if err != nil {
			m.fault("encoding an answer: %v", err)
			return
		}
		// A client that went away needs no answer.
		_, _ = fmt.Fprintf(w, "data: %s\n\n", b)
		_ = rc.Flush()
	}
	delta := func(d map[string]any) { send([]any{map[string]any{"index": 0, "delta": d}}, nil) }
	finish := "stop"
	delta(map[string]any{"role": "assistant", "content": ""})
	for _, piece := range pieces(a.Text) {
		delta(map[string]any{"content": piece})
	}
	if a.stalls(r) {
		return
	}
	if a.Tool != "" {
		finish = "tool_calls"
		args, err := json.Marshal(a.Args)
		if err != nil {
			m.fault("encoding the arguments of %s: %v", a.Tool, err)
		}
		delta(map[string]any{"tool_calls": []any{map[string]any{"index": 0, "id": fmt.Sprintf("call_%d", q.step()), "type": "function",
			"function": map[string]any{"name": a.Tool, "arguments": ""}}}})
		for _, piece := range pieces(string(args)) {
			delta(map[string]any{"tool_calls": []any{map[string]any{"index": 0, "function": map[string]any{"arguments": piece}}}})
		}
	}
	send([]any{map[string]any{"index": 0, "delta": map[string]any{}, "finish_reason": finish}}, nil)
	u := answerUses(api.WireChat)
	send([]any{}, map[string]any{"prompt_tokens": u.Input + u.CacheRead, "completion_tokens": u.Output, "total_tokens": usedTokens,
		"prompt_tokens_details": map[string]any{"cached_tokens": u.CacheRead}})
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n") // as above
}

// pieces cuts a text as a stream of tokens would, between characters.
func pieces(s string) []string {
	const size = 24
	var out []string
	r := []rune(s)
	for len(r) > 0 {
		n := min(size, len(r))
		out = append(out, string(r[:n]))
		r = r[n:]
	}
	return out
}
