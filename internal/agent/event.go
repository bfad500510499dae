package agent

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// Kind says what an Event is about.
type Kind string

// The kinds of events.
const (
	KindMessage    Kind = "message"     // text that the agent says
	KindThought    Kind = "thought"     // text that the agent thinks
	KindUser       Kind = "user"        // a prompt, repeated by the agent (while a session is loaded)
	KindToolCall   Kind = "tool_call"   // a tool starts; Tool is its title, ID its id
	KindToolUpdate Kind = "tool_update" // a tool's output or status; ID as in the tool_call
	KindPlan       Kind = "plan"        // the agent's list of steps, in Raw
	KindPermission Kind = "permission"  // a permission was asked and answered; Status is "allow" or "deny"
	KindUsage      Kind = "usage"       // what the agent says it used: shown, never counted
	KindStderr     Kind = "stderr"      // a line of the agent's stderr
	KindNoise      Kind = "noise"       // a line on stdout that is not of the protocol
	KindLifecycle  Kind = "lifecycle"   // what this package did or found: Status names it
	KindOther      Kind = "other"       // an update that this version does not know, in Raw
)

// TextLimit is the most bytes of text, and of Raw, that an Event carries.
const TextLimit = 64 << 10

// Event is one thing that happened in a session.
type Event struct {
	Kind   Kind   `json:"kind"`
	Text   string `json:"text,omitempty"`
	Tool   string `json:"tool,omitempty"`
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	// Raw is the update as the agent sent it; nil when it is larger than TextLimit.
	Raw json.RawMessage `json:"raw,omitempty"`
	// Size is the length of the whole text in bytes, before it was cut.
	Size int `json:"size,omitempty"`
	// Truncated says that Text was cut or Raw left out.
	Truncated bool `json:"truncated,omitempty"`
	// Shared says that the event is of a process that serves other sessions, too,
	// each of which has it.
	Shared bool `json:"shared,omitempty"`
	// Replayed says that the event repeats history while a session is loaded.
	Replayed bool `json:"replayed,omitempty"`
}

// capped applies TextLimit; it never cuts a character in two.
func (e Event) capped() Event {
	e.Size = len(e.Text)
	if len(e.Text) > TextLimit {
		cut := TextLimit
		for cut > 0 && !utf8.RuneStart(e.Text[cut]) {
			cut--
		}
		e.Text, e.Truncated = e.Text[:cut], true
	}
	if len(e.Raw) > TextLimit {
		e.Raw, e.Truncated = nil, true
	}
	e.Tool, e.Status, e.ID = clip(e.Tool, 1024), clip(e.Status, 256), clip(e.ID, 256)
	return e
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// redactor replaces the secrets of one agent by a mark.
type redactor struct{ r *strings.Replacer }

// newRedactor ignores secrets under 8 bytes: they would match ordinary text.
func newRedactor(secrets ...string) redactor {
	var pairs []string
	for _, s := range secrets {
		if len(s) >= 8 {
			pairs = append(pairs, s, "[redacted]")
		}
	}
	if len(pairs) == 0 {
		return redactor{}
	}
	return redactor{strings.NewReplacer(pairs...)}
}

func (r redactor) text(s string) string {
	if r.r == nil {
		return s
	}
	return r.r.Replace(s)
}

func (r redactor) event(e Event) Event {
	if r.r == nil {
		return e
	}
	e.Text, e.Tool, e.Status, e.ID = r.text(e.Text), r.text(e.Tool), r.text(e.Status), r.text(e.ID)
	if e.Raw != nil {
		e.Raw = json.RawMessage(r.text(string(e.Raw)))
	}
	return e
}
