//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// geminiRequest is a request as Gemini's generateContent defines it, as far as it
// matters here.
type geminiRequest struct {
	Contents []struct {
		Role  string `json:"role"`
		Parts []struct {
			Text string `json:"text"`
			Call *struct {
				Name string `json:"name"`
			} `json:"functionCall"`
			Result *struct {
				Name     string          `json:"name"`
				Response json.RawMessage `json:"response"`
			} `json:"functionResponse"`
		} `json:"parts"`
	} `json:"contents"`
	Tools []struct {
		Declared []struct {
			Name string `json:"name"`
		} `json:"functionDeclarations"`
	} `json:"tools"`
}

func (c geminiRequest) request(r *http.Request, model string) *Request {
	out := &Request{At: time.Now(), Path: r.URL.Path, Authorization: r.Header.Get("X-Goog-Api-Key"), Model: model}
	for _, m := range c.Contents {
		msg := Message{Role: m.Role}
		if m.Role == "model" {
			msg.Role = "assistant"
		}
		for _, p := range m.Parts {
			msg.Text += p.Text
			if p.Call != nil {
				msg.Calls = append(msg.Calls, p.Call.Name)
			}
			if p.Result != nil {
				msg.Role = "tool"
				msg.Text += string(p.Result.Response)
			}
		}
		out.Messages = append(out.Messages, msg)
	}
	for _, t := range c.Tools {
		for _, d := range t.Declared {
			out.Tools = append(out.Tools, d.Name)
		}
	}
	return out
}

// gemini answers a request of Gemini's generateContent, streamed or whole; false
// when it is none.
func (m *Model) gemini(w http.ResponseWriter, r *http.Request) bool {
	name, verb, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1beta/models/"), ":")
	if !ok || r.Method != http.MethodPost {
		return false
	}
	var c geminiRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 32<<20)).Decode(&c); err != nil {
		m.fault("%s: %v", r.URL.Path, err)
		http.Error(w, `{"error":{"message":"not JSON"}}`, http.StatusBadRequest)
		return true
	}
	if verb == "countTokens" {
		_, _ = fmt.Fprint(w, `{"totalTokens":1000}`) // a client that went away needs no answer
		return true
	}
	q := c.request(r, name)
	m.keep(q)
	a := m.answer(q)
	var parts []any
	if a.Text != "" || a.Tool == "" {
		parts = append(parts, map[string]any{"text": a.Text})
	}
	if a.Tool != "" {
		parts = append(parts, map[string]any{"functionCall": map[string]any{"name": a.Tool, "args": a.Args}})
	}
	b, err := json.Marshal(map[string]any{"modelVersion": name, "responseId": fmt.Sprintf("resp-%d", q.step()),
		"candidates":    []any{map[string]any{"index": 0, "finishReason": "STOP", "content": map[string]any{"role": "model", "parts": parts}}},
		"usageMetadata": map[string]any{"promptTokenCount": 1000, "candidatesTokenCount": 20, "totalTokenCount": 1020}})
	if err != nil {
		m.fault("encoding an answer: %v", err)
	}
	if verb == "streamGenerateContent" {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = fmt.Fprintf(w, "data: %s\r\n\r\n", b) // as above
		return true
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // as above
	return true
}
