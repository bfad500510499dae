package scripted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coder/acp-go-sdk"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	connectTimeout = 20 * time.Second
	// callTimeout is long because done is answered after the server checked it.
	callTimeout = 5 * time.Minute
)

// tools is a connection to the tool server for one turn.
type tools struct {
	session *mcp.ClientSession
}

func connect(ctx context.Context, srv *acp.McpServerHttpInline) (*tools, error) {
	if srv == nil {
		return nil, errors.New("the session has no tool server named \"" + ServerName + "\"")
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	client := mcp.NewClient(&mcp.Implementation{Name: "gastown-scripted", Version: "1"}, nil)
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:             srv.Url,
		HTTPClient:           &http.Client{Transport: withHeaders{srv.Headers}},
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("connect to the tool server: %w", err)
	}
	return &tools{session: s}, nil
}

// withHeaders adds the headers of the session to each request.
type withHeaders struct{ headers []acp.HttpHeader }

// RoundTrip implements http.RoundTripper.
func (w withHeaders) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for _, h := range w.headers {
		r.Header.Set(h.Name, h.Value)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (t *tools) close() {
	// The turn is over; the server forgets the session by itself.
	_ = t.session.Close()
}

func (t *tools) prime(ctx context.Context, to *assignment) error {
	res, err := t.result(ctx, "prime", map[string]any{})
	if err != nil {
		return err
	}
	if res.StructuredContent != nil {
		err = decode(res.StructuredContent, to)
	} else {
		err = json.Unmarshal([]byte(text(res)), to)
	}
	if err != nil {
		return fmt.Errorf("prime: the answer can't be read: %w", err)
	}
	return nil
}

// call calls a tool and returns its text. A refusal by the tool is an error
// with the tool's own words.
func (t *tools) call(ctx context.Context, name string, args map[string]any) (string, error) {
	res, err := t.result(ctx, name, args)
	if err != nil {
		return "", err
	}
	return text(res), nil
}

func (t *tools) result(ctx context.Context, name string, args map[string]any) (*mcp.CallToolResult, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	res, err := t.session.CallTool(ctx, &mcp.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if res.IsError {
		return nil, fmt.Errorf("%s was refused: %s", name, text(res))
	}
	return res, nil
}

func text(res *mcp.CallToolResult) string {
	var parts []string
	for _, c := range res.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			parts = append(parts, t.Text)
		}
	}
	return strings.Join(parts, "\n")
}
