package agenttest

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"gastown/internal/agent"
)

// Call is one call of a tool.
type Call struct {
	Tool string
	Args map[string]any
}

// Answer is what a tool says: JSON for the structured result, or a refusal.
type Answer struct {
	Result any    // nil gives {}
	Refuse string // not empty: an error result with this text
}

// Tools is a tool server over HTTP with the tools prime, done, no_change and
// escalate. It refuses requests without its bearer token and records calls.
type Tools struct {
	url   string
	token string
	calls chan Call

	mu       sync.Mutex // guards the fields below
	answers  map[string]func(Call) Answer
	recorded []Call
	refused  int
}

// Prime is the answer of the prime tool, as far as agents need it.
type Prime struct {
	Bead    Bead   `json:"bead"`
	Attempt int    `json:"attempt"`
	Reason  string `json:"reason"`
}

// Bead is the work in a Prime.
type Bead struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Body  string `json:"body"`
}

// NewTools starts a server that ends with the test.
func NewTools(t testing.TB) *Tools {
	s := &Tools{
		token:   rand.Text(),
		calls:   make(chan Call, 64),
		answers: map[string]func(Call) Answer{},
	}
	srv := mcp.NewServer(&mcp.Implementation{Name: "gastown", Version: "test"}, nil)
	for _, name := range []string{"prime", "done", "no_change", "escalate"} {
		srv.AddTool(&mcp.Tool{
			Name:        name,
			Description: "the tool " + name + " of a test",
			InputSchema: map[string]any{"type": "object"},
		}, s.handle)
	}
	h := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return srv }, &mcp.StreamableHTTPOptions{Stateless: true})
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+s.token)) != 1 {
			s.mu.Lock()
			s.refused++
			s.mu.Unlock()
			http.Error(w, "no or wrong token", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(ts.Close)
	s.url = ts.URL
	return s
}

// MCP is the server as an agent's Spec needs it.
func (s *Tools) MCP() agent.MCPServer {
	return agent.MCPServer{Name: "gastown", URL: s.url, Headers: map[string]string{"Authorization": "Bearer " + s.token}}
}

// Answer sets what a tool answers from now on.
func (s *Tools) Answer(tool string, f func(Call) Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[tool] = f
}

// Prime sets what the prime tool answers.
func (s *Tools) Prime(p Prime) {
	s.Answer("prime", func(Call) Answer { return Answer{Result: p} })
}

// Calls are all calls so far, in order.
func (s *Tools) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Call(nil), s.recorded...)
}

// Called receives each call as it is made; beyond 64 unread ones only Calls has them.
func (s *Tools) Called() <-chan Call { return s.calls }

// Refused is how many requests came without the right token.
func (s *Tools) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

func (s *Tools) handle(_ context.Context, req *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
	c := Call{Tool: req.Params.Name, Args: map[string]any{}}
	if len(req.Params.Arguments) > 0 {
		if err := json.Unmarshal(req.Params.Arguments, &c.Args); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.recorded = append(s.recorded, c)
	f := s.answers[c.Tool]
	s.mu.Unlock()
	select {
	case s.calls <- c:
	default:
	}
	var a Answer
	if f != nil {
		a = f(c)
	}
	if a.Refuse != "" {
		return &mcp.CallToolResult{IsError: true, Content: []mcp.Content{&mcp.TextContent{Text: a.Refuse}}}, nil
	}
	if a.Result == nil {
		a.Result = map[string]any{}
	}
	b, err := json.Marshal(a.Result)
	if err != nil {
		return nil, err
	}
	return &mcp.CallToolResult{StructuredContent: json.RawMessage(b), Content: []mcp.Content{&mcp.TextContent{Text: string(b)}}}, nil
}
