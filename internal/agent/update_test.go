package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestUpdatesBecomeEvents(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		want Event
	}{
		"a message": {`{"update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hi"}}}`,
			Event{Kind: KindMessage, Text: "hi"}},
		"a thought": {`{"update":{"sessionUpdate":"agent_thought_chunk","content":{"type":"text","text":"hm"}}}`,
			Event{Kind: KindThought, Text: "hm"}},
		"a tool call": {`{"update":{"sessionUpdate":"tool_call","toolCallId":"1","title":"ls","status":"pending"}}`,
			Event{Kind: KindToolCall, Tool: "ls", ID: "1", Status: "pending"}},
		"a tool's output": {`{"update":{"sessionUpdate":"tool_call_update","toolCallId":"1","status":"completed","content":[{"type":"content","content":{"type":"text","text":"a"}},{"type":"diff","path":"/x"}]}}`,
			Event{Kind: KindToolUpdate, Text: "a\n[diff /x]", ID: "1", Status: "completed"}},
		"a plan":            {`{"update":{"sessionUpdate":"plan","entries":[]}}`, Event{Kind: KindPlan}},
		"usage":             {`{"update":{"sessionUpdate":"usage_update","used":1}}`, Event{Kind: KindUsage}},
		"an unknown update": {`{"update":{"sessionUpdate":"dance","content":{"text":"x"}}}`, Event{Kind: KindOther, Status: "dance"}},
		"nonsense":          {`[1]`, Event{Kind: KindOther, Status: "unreadable"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := updateEvent(json.RawMessage(c.in))
			if e.Raw == nil {
				t.Error("no raw update")
			}
			if e.Kind != c.want.Kind || e.Text != c.want.Text || e.Tool != c.want.Tool || e.ID != c.want.ID || e.Status != c.want.Status {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestLongTextIsCutAndItsSizeKept(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", TextLimit)
	e := Event{Text: "x" + long, Raw: json.RawMessage(long)}.capped()
	if !e.Truncated || e.Size != 2*TextLimit+1 || len(e.Text) > TextLimit || !utf8.ValidString(e.Text) || e.Raw != nil {
		t.Errorf("truncated %v, size %d, text %d bytes, raw %d bytes", e.Truncated, e.Size, len(e.Text), len(e.Raw))
	}
	if e := (Event{Text: "short"}).capped(); e.Truncated || e.Size != 5 || e.Text != "short" {
		t.Errorf("a short text changed: %+v", e)
	}
}

func FuzzUpdateEvent(f *testing.F) {
	f.Add([]byte(`{"update":{"sessionUpdate":"tool_call_update","content":[{"content":{"content":{"text":"x"}}}]}}`))
	f.Add([]byte(`{"sessionId":"s","update":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, e := updateEvent(data)
		if e = e.capped(); e.Kind == "" || len(e.Text) > TextLimit || len(e.Raw) > TextLimit {
			t.Fatalf("%+v", e)
		}
	})
}
