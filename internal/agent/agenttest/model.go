package agenttest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Model is a model without intelligence behind an OpenAI-compatible streaming
// API. In each turn it has the agent call prime, run Script with its shell
// tool, and, with Done, call done; then it says that it is finished.
type Model struct {
	url  string
	task Task

	mu   sync.Mutex // guards keys
	keys map[string]int
}

// NewModel starts a model for a task; it ends with the test.
func NewModel(t testing.TB, task Task) *Model {
	m := &Model{task: task, keys: map[string]int{}}
	ts := httptest.NewServer(m)
	t.Cleanup(func() {
		// Agents keep streams open; they are gone by now, or must not matter.
		ts.CloseClientConnections()
		ts.Close()
	})
	m.url = ts.URL
	return m
}

// URL is the base to which agents append /chat/completions.
func (m *Model) URL() string { return m.url }

// Keys says how many requests came with which bearer key.
func (m *Model) Keys() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]int{}
	for k, n := range m.keys {
		out[k] = n
	}
	return out
}

type chatRequest struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Role string `json:"role"`
	} `json:"messages"`
	Tools []struct {
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	} `json:"tools"`
}

// ServeHTTP implements http.Handler.
func (m *Model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	m.keys[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]++
	m.mu.Unlock()
	var req chatRequest
	if !strings.HasSuffix(r.URL.Path, "/chat/completions") || json.NewDecoder(r.Body).Decode(&req) != nil || !req.Stream {
		http.Error(w, `{"error":{"message":"only streamed chat completions"}}`, http.StatusBadRequest)
		return
	}
	delta, finish := m.next(req)
	w.Header().Set("Content-Type", "text/event-stream")
	chunk := func(delta map[string]any, finish any) {
		b, err := json.Marshal(map[string]any{
			"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": req.Model,
			"choices": []any{map[string]any{"index": 0, "delta": delta, "finish_reason": finish}},
			"usage":   map[string]any{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
		})
		if err == nil {
			// A client that went away needs no answer.
			_, _ = fmt.Fprintf(w, "data: %s\n\n", b)
		}
	}
	chunk(delta, nil)
	chunk(map[string]any{}, finish)
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n") // as above
}

// next decides by how many tools answered since the last prompt.
func (m *Model) next(req chatRequest) (delta map[string]any, finish string) {
	answered := 0
	for _, msg := range req.Messages {
		switch msg.Role {
		case "user":
			answered = 0
		case "tool":
			answered++
		}
	}
	tool := func(suffix string) string {
		for _, t := range req.Tools {
			if t.Function.Name == suffix || strings.HasSuffix(t.Function.Name, "_"+suffix) {
				return t.Function.Name
			}
		}
		return ""
	}
	name, args := "", map[string]any{}
	switch {
	case answered == 0:
		name = tool("prime")
	case answered == 1:
		name = tool("bash")
		args = map[string]any{"command": m.task.Script, "description": "does the task", "timeout": 600_000}
	case answered == 2 && m.task.Done:
		name = tool("done")
		args = map[string]any{"summary": "did the task"}
	}
	if name == "" {
		return map[string]any{"role": "assistant", "content": "finished"}, "stop"
	}
	b, err := json.Marshal(args)
	if err != nil {
		return map[string]any{"role": "assistant", "content": err.Error()}, "stop"
	}
	return map[string]any{"role": "assistant", "tool_calls": []any{map[string]any{
		"index": 0, "id": fmt.Sprintf("call_%d_%d", len(req.Messages), answered), "type": "function",
		"function": map[string]any{"name": name, "arguments": string(b)},
	}}}, "tool_calls"
}
