package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// checkedTools is a toolbox that only looks at what it is given.
type checkedTools struct{ t *testing.T }

func (c checkedTools) see(what, text string) (string, error) {
	if !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b") || len(text) > maxToolText {
		c.t.Errorf("%s is given %q", what, text)
	}
	if strings.Contains(text, "refuse") {
		return "", errs.New(errs.Conflict, "refused: %s", text)
	}
	return what + " " + text, nil
}

func (c checkedTools) prime(context.Context) (string, error) { return c.see("prime", "") }
func (c checkedTools) beadShow(_ context.Context, id string) (string, error) {
	return c.see("bead", id)
}
func (c checkedTools) complete(_ context.Context, s string) (string, error) { return c.see("done", s) }
func (c checkedTools) say(_ context.Context, kind town.VerdictKind, reason string) (string, error) {
	if kind != town.VerdictNoChange && kind != town.VerdictEscalate || reason == "" {
		c.t.Errorf("said %q with reason %q", kind, reason)
	}
	return c.see("say", reason)
}
func (c checkedTools) checkpointNow(context.Context) (string, error) { return c.see("checkpoint", "") }

// FuzzToolCalls sends whole requests to the tools, as any program in a sandbox
// can: they neither break nor let through what parse would have refused.
func FuzzToolCalls(f *testing.F) {
	call := func(name, args string) []byte {
		return []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + name + `","arguments":` + args + `}}`)
	}
	for _, d := range toolDefs() {
		for _, args := range []string{`{}`, `null`, `[]`, `{"reason":"x"}`, `{"summary":"refuse"}`, `{"id":7}`, `{"reason":"\u0000\u001b[2J\ud800"}`} {
			f.Add(call(d.name, args))
		}
	}
	for _, s := range []string{"", "{}", "[]", "null", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}`, `{"jsonrpc":"2.0","method":"notifications/initialized"}`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, `{"jsonrpc":"1.0","id":{},"method":"tools/call"}`, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":null}`,
		`[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":1,"method":"tools/list"}]`, `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///etc/passwd"}}`} {
		f.Add([]byte(s))
	}
	f.Add(call("nothing", `{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/mcp", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
		w := httptest.NewRecorder()
		newTools(checkedTools{t}, "test").ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		if w.Header().Get("Content-Type") == "application/json" && w.Body.Len() > 0 && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("the answer is no JSON: %q", w.Body)
		}
	})
}
