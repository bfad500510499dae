package agent

import (
	"encoding/json"
	"strings"
)

// updateWire is the part of a session/update that events are made of. It is
// read leniently: agents send kinds of updates that no version of a library
// knows all of.
type updateWire struct {
	SessionUpdate string          `json:"sessionUpdate"`
	Content       json.RawMessage `json:"content"`
	ToolCallID    string          `json:"toolCallId"`
	Title         string          `json:"title"`
	Status        string          `json:"status"`
}

type contentWire struct {
	Type    string       `json:"type"`
	Text    string       `json:"text"`
	URI     string       `json:"uri"`
	Path    string       `json:"path"`
	Content *contentWire `json:"content"`
}

// updateEvent turns the params of a session/update into the session's id and an event.
func updateEvent(params json.RawMessage) (string, Event) {
	var n struct {
		Session string          `json:"sessionId"`
		Update  json.RawMessage `json:"update"`
	}
	var u updateWire
	if json.Unmarshal(params, &n) != nil || json.Unmarshal(n.Update, &u) != nil {
		return n.Session, Event{Kind: KindOther, Status: "unreadable", Raw: params}
	}
	e := Event{Kind: KindOther, Raw: n.Update, ID: u.ToolCallID, Status: u.Status}
	switch u.SessionUpdate {
	case "agent_message_chunk":
		e.Kind, e.Text = KindMessage, contentText(u.Content)
	case "agent_thought_chunk":
		e.Kind, e.Text = KindThought, contentText(u.Content)
	case "user_message_chunk":
		e.Kind, e.Text = KindUser, contentText(u.Content)
	case "tool_call":
		e.Kind, e.Tool, e.Text = KindToolCall, u.Title, contentText(u.Content)
	case "tool_call_update":
		e.Kind, e.Tool, e.Text = KindToolUpdate, u.Title, contentText(u.Content)
	case "plan":
		e.Kind = KindPlan
	case "usage_update":
		e.Kind = KindUsage
	default:
		e.Status = u.SessionUpdate
	}
	return n.Session, e
}

// contentText returns the text of a content block or of a list of them.
func contentText(raw json.RawMessage) string {
	var one contentWire
	if json.Unmarshal(raw, &one) == nil {
		return one.plain()
	}
	var many []contentWire
	if json.Unmarshal(raw, &many) != nil {
		return ""
	}
	var parts []string
	for _, c := range many {
		if s := c.plain(); s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, "\n")
}

func (c contentWire) plain() string {
	switch {
	case c.Content != nil:
		return c.Content.plain()
	case c.Text != "":
		return c.Text
	case c.Path != "":
		return "[" + c.Type + " " + c.Path + "]"
	case c.URI != "":
		return "[" + c.Type + " " + c.URI + "]"
	}
	return ""
}
