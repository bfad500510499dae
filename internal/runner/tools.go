package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// maxToolText bounds a text that an agent gives to a tool, in bytes: what the
// town keeps of a reason.
const maxToolText = town.MaxReason

// toolbox performs the tools of one run. Its texts are for the agent.
type toolbox interface {
	prime(ctx context.Context) (string, error)
	beadShow(ctx context.Context, id string) (string, error)
	complete(ctx context.Context, summary string) (string, error)
	say(ctx context.Context, kind town.VerdictKind, reason string) (string, error)
	checkpointNow(ctx context.Context) (string, error)
}

// toolArg is the one argument that a tool takes.
type toolArg struct {
	name     string
	help     string
	required bool
	max      int
}

type toolDef struct {
	name string
	help string
	arg  *toolArg
	call func(ctx context.Context, b toolbox, arg string) (string, error)
}

func toolDefs() []toolDef {
	reason := func(help string) *toolArg { return &toolArg{"reason", help, true, maxToolText} }
	return []toolDef{
		{"prime", "Your work: the task, the branch, the rules, and why an earlier attempt was not enough. Call it first.", nil,
			func(ctx context.Context, b toolbox, _ string) (string, error) { return b.prime(ctx) }},
		{"bead_show", "Shows a bead (a work item) by its id; without an id, your own.",
			&toolArg{"id", "the id of the bead, such as web-k3x9a", false, 64},
			func(ctx context.Context, b toolbox, id string) (string, error) { return b.beadShow(ctx, id) }},
		{"done", "Your work is finished and committed. Refused while files are uncommitted. Pushes your branch itself. End your turn after it was accepted.",
			&toolArg{"summary", "what you changed and how you checked it, in a few sentences", false, maxToolText},
			func(ctx context.Context, b toolbox, s string) (string, error) { return b.complete(ctx, s) }},
		{"no_change", "Nothing needs to be changed for this task. End your turn after it was accepted.",
			reason("why nothing has to be changed, with what you looked at"),
			func(ctx context.Context, b toolbox, s string) (string, error) {
				return b.say(ctx, town.VerdictNoChange, s)
			}},
		{"checkpoint", "Saves your work in progress on the server now. It happens by itself too; your files and branch are not touched.", nil,
			func(ctx context.Context, b toolbox, _ string) (string, error) { return b.checkpointNow(ctx) }},
		{"escalate", "A person has to decide something before this task can go on. End your turn after it was accepted.",
			reason("what you need from a person, and what you found so far"),
			func(ctx context.Context, b toolbox, s string) (string, error) {
				return b.say(ctx, town.VerdictEscalate, s)
			}},
	}
}

func (a *toolArg) schema() json.RawMessage {
	s := map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
	if a != nil {
		s["properties"] = map[string]any{a.name: map[string]any{"type": "string", "description": a.help, "maxLength": a.max}}
		if a.required {
			s["required"] = []string{a.name}
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return json.RawMessage(`{"type":"object"}`) // can't happen: the map above is plain
	}
	return b
}

// parse reads the arguments of a call as a stranger sends them.
func (a *toolArg) parse(tool string, raw json.RawMessage) (string, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		raw = []byte("{}")
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(raw, &given); err != nil {
		return "", fmt.Errorf("%s takes its arguments as a JSON object", tool)
	}
	for _, name := range sortedNames(given) {
		if a == nil {
			return "", fmt.Errorf("%s takes no arguments; call it again without %q", tool, clip(name, 40))
		}
		if name != a.name {
			return "", fmt.Errorf("%s has no argument %q; it takes %q", tool, clip(name, 40), a.name)
		}
	}
	if a == nil {
		return "", nil
	}
	var text string
	if v, ok := given[a.name]; ok && !bytes.Equal(bytes.TrimSpace(v), []byte("null")) {
		if err := json.Unmarshal(v, &text); err != nil {
			return "", fmt.Errorf("the argument %q of %s must be a string", a.name, tool)
		}
	}
	text = strings.TrimSpace(cleanText(text))
	if a.required && text == "" {
		return "", fmt.Errorf("%s needs the argument %q: %s", tool, a.name, a.help)
	}
	if len(text) > a.max {
		return "", fmt.Errorf("the argument %q of %s is %d bytes long; at most %d are taken, so shorten it and call %s again",
			a.name, tool, len(text), a.max, tool)
	}
	return text, nil
}

// cleanText drops what the server would refuse: control characters and what is not UTF-8.
func cleanText(s string) string {
	return strings.Map(func(r rune) rune {
		if (r < ' ' && r != '\n' && r != '\t') || (r >= 0x7f && r <= 0x9f) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func sortedNames(m map[string]json.RawMessage) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// newTools serves a toolbox over MCP. Each request stands alone, so that no
// state outlives the run.
func newTools(b toolbox, version string) http.Handler {
	s := mcp.NewServer(&mcp.Implementation{Name: "gastown", Version: version}, &mcp.ServerOptions{
		Instructions: "Tools of your work in gastown. Begin with prime. Finish with done, no_change or escalate: ending your turn alone finishes nothing.",
	})
	for _, d := range toolDefs() {
		s.AddTool(&mcp.Tool{Name: d.name, Description: d.help, InputSchema: d.arg.schema()},
			func(ctx context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				arg, err := d.arg.parse(d.name, req.Params.Arguments)
				var text string
				if err == nil {
					text, err = d.call(ctx, b, arg)
				}
				if err != nil {
					return toolResult(toolError(err), true), nil
				}
				return toolResult(text, false), nil
			})
	}
	return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s },
		&mcp.StreamableHTTPOptions{Stateless: true, JSONResponse: true, MaxRequestBodyBytes: 1 << 20})
}

func toolResult(text string, failed bool) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}, IsError: failed}
}

// toolError is what an agent reads of a failure.
func toolError(err error) string {
	var e *errs.Error
	switch {
	case errors.As(err, &e) && again(err):
		return "The server could not answer: " + err.Error() + ". Your work is safe here; wait a moment and call the tool again."
	case errs.Is(err, errs.Gone):
		return "This run is over: " + err.Error() + ". Stop working and end your turn."
	}
	return err.Error()
}
