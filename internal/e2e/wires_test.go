//go:build e2e

package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"gastown/internal/api"
)

// anthropic is a request as Anthropic's messages define it, as far as it matters here.
type anthropic struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"` // a text, or a list of blocks
	} `json:"messages"`
	Tools []struct {
		Name string `json:"name"`
	} `json:"tools"`
}

func (c anthropic) request(r *http.Request) *Request {
	out := &Request{At: time.Now(), Path: r.URL.Path, Authorization: r.Header.Get("X-Api-Key"), Model: c.Model}
	for _, m := range c.Messages {
		msg := Message{Role: m.Role, Text: content(m.Content)}
		var blocks []struct {
			Type    string          `json:"type"`
			Name    string          `json:"name"`
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(m.Content, &blocks) == nil {
			for _, b := range blocks {
				switch b.Type {
				case "tool_use":
					msg.Calls = append(msg.Calls, b.Name)
				case "tool_result":
					msg.Role = "tool"
					msg.Text += content(b.Content)
				}
			}
		}
		out.Messages = append(out.Messages, msg)
	}
	for _, t := range c.Tools {
		out.Tools = append(out.Tools, t.Name)
	}
	return out
}

// events writes the parts of a stream that has names for its events.
type events struct {
	m  *Model
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newEvents(m *Model, w http.ResponseWriter) events {
	w.Header().Set("Content-Type", "text/event-stream")
	return events{m, w, http.NewResponseController(w)}
}

func (e events) send(name string, v map[string]any) {
	v["type"] = name
	b, err := json.Marshal(v)
	if err != nil {
		e.m.fault("encoding an answer: %v", err)
		return
	}
	// A client that went away needs no answer.
	_, _ = fmt.Fprintf(e.w, "event: %s\ndata: %s\n\n", name, b)
	_ = e.rc.Flush()
}

// messages answers a request of Anthropic's messages.
func (m *Model) messages(w http.ResponseWriter, r *http.Request) {
	var c anthropic
	if err := json.NewDecoder(io.LimitReader(r.Body, 32<<20)).Decode(&c); err != nil || !c.Stream && len(c.Tools) > 0 {
		m.fault("%s (stream %t): %v", r.URL.Path, c.Stream, err)
		http.Error(w, `{"type":"error","error":{"type":"invalid_request_error","message":"only streams"}}`, http.StatusBadRequest)
		return
	}
	q := c.request(r)
	m.keep(q)
	if !c.Stream {
		m.wholeMessage(w, r, q)
		return
	}
	a := m.answer(q)
	if m.fails(w, q, a) {
		return
	}
	defer m.answered(r, q)
	u := answerUses(api.WireMessages)
	e := newEvents(m, w)
	e.send("message_start", map[string]any{"message": map[string]any{"id": "msg_" + rand.Text(), "type": "message", "role": "assistant", "model": q.Model,
		"content": []any{}, "stop_reason": nil, "stop_sequence": nil, "usage": map[string]any{"input_tokens": u.Input, "output_tokens": 1,
			"cache_read_input_tokens": u.CacheRead, "cache_creation_input_tokens": u.CacheWrite}}})
	index, stop := 0, "end_turn"
	if a.Text != "" || a.Tool == "" {
		e.send("content_block_start", map[string]any{"index": index, "content_block": map[string]any{"type": "text", "text": ""}})
		for _, piece := range pieces(a.Text) {
			e.send("content_block_delta", map[string]any{"index": index, "delta": map[string]any{"type": "text_delta", "text": piece}})
		}
		if a.stalls(r) {
			return
		}
		e.send("content_block_stop", map[string]any{"index": index})
		index++
	}
	if a.Tool != "" {
		stop = "tool_use"
		args, err := json.Marshal(a.Args)
		if err != nil {
			m.fault("encoding the arguments of %s: %v", a.Tool, err)
		}
		e.send("content_block_start", map[string]any{"index": index, "content_block": map[string]any{"type": "tool_use",
			"id": "toolu_" + rand.Text(), "name": a.Tool, "input": map[string]any{}}})
		for _, piece := range pieces(string(args)) {
			e.send("content_block_delta", map[string]any{"index": index, "delta": map[string]any{"type": "input_json_delta", "partial_json": piece}})
		}
		e.send("content_block_stop", map[string]any{"index": index})
	}
	e.send("message_delta", map[string]any{"delta": map[string]any{"stop_reason": stop, "stop_sequence": nil}, "usage": map[string]any{"output_tokens": u.Output}})
	e.send("message_stop", map[string]any{})
}

// wholeMessage answers a request that wants no stream: the agent asks whether
// there is such a model.
func (m *Model) wholeMessage(w http.ResponseWriter, r *http.Request, q *Request) {
	defer m.answered(r, q)
	u := answerUses(api.WireMessages)
	w.Header().Set("Content-Type", "application/json")
	err := json.NewEncoder(w).Encode(map[string]any{"id": "msg_" + rand.Text(), "type": "message", "role": "assistant", "model": q.Model,
		"content": []any{map[string]any{"type": "text", "text": "yes"}}, "stop_reason": "end_turn", "stop_sequence": nil,
		"usage": map[string]any{"input_tokens": u.Input, "output_tokens": u.Output, "cache_read_input_tokens": u.CacheRead, "cache_creation_input_tokens": u.CacheWrite}})
	if err != nil {
		m.fault("encoding an answer: %v", err)
	}
}

// responsesRequest is a request as OpenAI's responses define it.
type responsesRequest struct {
	Model  string `json:"model"`
	Stream bool   `json:"stream"`
	Input  []struct {
		Type    string          `json:"type"`
		Role    string          `json:"role"`
		Name    string          `json:"name"`
		Content json.RawMessage `json:"content"`
		Output  json.RawMessage `json:"output"`
	} `json:"input"`
	Tools []struct {
		Type  string `json:"type"`
		Name  string `json:"name"`
		Tools []struct {
			Name string `json:"name"`
		} `json:"tools"` // of a namespace
	} `json:"tools"`
}

func (c responsesRequest) request(r *http.Request) *Request {
	out := &Request{At: time.Now(), Path: r.URL.Path, Authorization: r.Header.Get("Authorization"), Model: c.Model}
	for _, i := range c.Input {
		switch i.Type {
		case "message", "":
			out.Messages = append(out.Messages, Message{Role: i.Role, Text: content(i.Content)})
		case "function_call", "custom_tool_call":
			out.Messages = append(out.Messages, Message{Role: "assistant", Calls: []string{i.Name}})
		case "function_call_output", "custom_tool_call_output":
			out.Messages = append(out.Messages, Message{Role: "tool", Text: content(i.Output)})
		}
	}
	for _, t := range c.Tools {
		if t.Name != "" && len(t.Tools) == 0 {
			out.Tools = append(out.Tools, t.Name)
		}
		for _, inner := range t.Tools {
			out.Tools = append(out.Tools, t.Name+namespaced+inner.Name)
		}
	}
	return out
}

// namespaced stands between the name of a namespace and of a tool in it.
const namespaced = "::"

// responses answers a request of OpenAI's responses.
func (m *Model) responses(w http.ResponseWriter, r *http.Request) {
	var c responsesRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 32<<20)).Decode(&c); err != nil || !c.Stream {
		m.fault("%s (stream %t): %v", r.URL.Path, c.Stream, err)
		http.Error(w, `{"error":{"message":"only streams"}}`, http.StatusBadRequest)
		return
	}
	q := c.request(r)
	m.keep(q)
	a := m.answer(q)
	if m.fails(w, q, a) {
		return
	}
	defer m.answered(r, q)
	u := answerUses(api.WireResponses)
	e := newEvents(m, w)
	id := fmt.Sprintf("resp_%d", q.step())
	e.send("response.created", map[string]any{"response": map[string]any{"id": id, "object": "response", "status": "in_progress", "model": q.Model, "output": []any{}}})
	var output []any
	item := func(v map[string]any) {
		e.send("response.output_item.added", map[string]any{"output_index": len(output), "item": v})
		e.send("response.output_item.done", map[string]any{"output_index": len(output), "item": v})
		output = append(output, v)
	}
	if a.Stall {
		partly(e, id, a)
		a.stalls(r)
		return
	}
	if a.Text != "" || a.Tool == "" {
		item(map[string]any{"type": "message", "id": "msg_" + id, "role": "assistant", "status": "completed",
			"content": []any{map[string]any{"type": "output_text", "text": a.Text, "annotations": []any{}}}})
	}
	if a.Tool != "" {
		item(functionCall(m, q, a))
	}
	e.send("response.completed", map[string]any{"response": map[string]any{"id": id, "object": "response", "status": "completed", "model": q.Model,
		"output": output, "usage": map[string]any{"input_tokens": u.Input + u.CacheRead, "input_tokens_details": map[string]any{"cached_tokens": u.CacheRead},
			"output_tokens": u.Output, "output_tokens_details": map[string]any{"reasoning_tokens": 0}, "total_tokens": usedTokens}}})
}

// partly begins a message that does not end.
func partly(e events, id string, a Answer) {
	e.send("response.output_item.added", map[string]any{"output_index": 0, "item": map[string]any{"type": "message", "id": "msg_" + id,
		"role": "assistant", "status": "in_progress", "content": []any{}}})
	for _, piece := range pieces(a.Text) {
		e.send("response.output_text.delta", map[string]any{"item_id": "msg_" + id, "output_index": 0, "content_index": 0, "delta": piece})
	}
}

func functionCall(m *Model, q *Request, a Answer) map[string]any {
	args, err := json.Marshal(a.Args)
	if err != nil {
		m.fault("encoding the arguments of %s: %v", a.Tool, err)
	}
	id := fmt.Sprintf("call_%d", q.step())
	call := map[string]any{"type": "function_call", "id": "fc_" + id, "call_id": id, "name": a.Tool, "arguments": string(args), "status": "completed"}
	if space, name, ok := strings.Cut(a.Tool, namespaced); ok {
		call["namespace"], call["name"] = space, name
	}
	return call
}
