// Package api holds the JSON bodies of the HTTP API /api/v1, shared by the
// server, the Go client and the command line.
//
// Names are snake_case. Times are RFC 3339 in UTC with milliseconds and are
// left out when there is none. Durations are integers in fields that end in
// _ms. A list answers {"items":[...],"next":"..."}: next is an opaque cursor
// for the following page, "" on the last one. An error is a Problem with
// content type application/problem+json.
//
// Requests with unknown fields are refused. Responses may get more fields;
// clients ignore what they don't know.
package api

import "time"

// Headers with a meaning of their own.
const (
	HeaderIdempotencyKey = "Idempotency-Key"      // on creating calls: a repeat gets the first answer
	HeaderReplayed       = "Idempotency-Replayed" // "true" on an answer from the record
	HeaderUser           = "Gastown-User"         // display name of who asks, for the ledger
	ProblemType          = "application/problem+json"
	LinesType            = "application/jsonl" // of an export
)

// Problem is an error as RFC 9457 has it, with three members of ours.
type Problem struct {
	Type         string         `json:"type,omitempty" doc:"A URI that identifies the type of problem; about:blank when absent."`
	Title        string         `json:"title" doc:"The status in words."`
	Status       int            `json:"status" doc:"The HTTP status."`
	Detail       string         `json:"detail" doc:"What is wrong."`
	Kind         string         `json:"kind" doc:"Class of error; decides the exit code of the command line." enum:"invalid,not_found,conflict,unauthorized,forbidden,gone,overloaded,unavailable,internal"`
	Hint         string         `json:"hint,omitempty" doc:"What to do next."`
	RetryAfterMS int64          `json:"retry_after_ms,omitempty" doc:"When it makes sense to try again."`
	Errors       []ProblemField `json:"errors,omitempty" doc:"What is wrong with which part of the request."`
}

// ProblemField says what is wrong with one part of a request.
type ProblemField struct {
	Location string `json:"location,omitempty" doc:"Where, such as body.title or query.limit."`
	Message  string `json:"message"`
}

// List is a page of a list.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next" doc:"Cursor of the next page, empty on the last."`
}

// Server describes the server.
type Server struct {
	Version       string    `json:"version"`
	Boot          string    `json:"boot" doc:"Random id of this process."`
	StartedAt     time.Time `json:"started_at"`
	Data          string    `json:"data,omitempty" doc:"Data directory."`
	SandboxDriver string    `json:"sandbox_driver"`
	Isolation     string    `json:"isolation" doc:"How agents are kept apart from the server, in words."`
	Listen        string    `json:"listen"`
	MaxAwake      int       `json:"max_awake"`
	Awake         int       `json:"awake" doc:"Sandboxes that hold a slot and run."`
	Starting      int       `json:"starting"`
	Waiting       int       `json:"waiting" doc:"Towns that wait for a slot."`
	Towns         int       `json:"towns"`
	Store         Store     `json:"store"`
}

// The wire formats of model APIs.
const (
	WireChat      = "chat"      // OpenAI's chat completions
	WireResponses = "responses" // OpenAI's responses
	WireMessages  = "messages"  // Anthropic's messages
	WireGemini    = "gemini"    // Gemini's generateContent
)

// Wires returns the wire formats.
func Wires() []string { return []string{WireChat, WireResponses, WireMessages, WireGemini} }

// Provider is a model provider, without its key.
type Provider struct {
	Kind    string           `json:"kind" enum:"openai,anthropic,gemini,openai-compatible"`
	Name    string           `json:"name"`
	BaseURL string           `json:"base_url"`
	Models  []string         `json:"models"`
	Prices  map[string]Price `json:"prices,omitempty" doc:"By the model's name. A model without a price costs what its name without the date does, else as much as the dearest; without any price tokens alone count."`
}

// Price is what a model costs, in dollars for a million tokens.
type Price struct {
	Input      string `json:"input" doc:"Dollars, such as 1.25."`
	Output     string `json:"output"`
	CacheRead  string `json:"cache_read,omitempty" doc:"Of input that was read from the provider's cache; default: input."`
	CacheWrite string `json:"cache_write,omitempty" doc:"Of input that was written to it; default: input."`
}

// CreateProvider adds a model provider or replaces one of the same name.
type CreateProvider struct {
	Kind    string           `json:"kind" doc:"openai, anthropic, gemini or openai-compatible."`
	Name    string           `json:"name"`
	BaseURL string           `json:"base_url,omitempty" doc:"https, or http to this machine. For OpenAI's wire formats up to and with the version, such as https://models.example/v1; for Anthropic's without it. Needed for openai-compatible."`
	Key     string           `json:"key,omitempty" doc:"Sent as the kind wants it. Never returned."`
	Models  []string         `json:"models,omitempty" doc:"Names of models; the first is the default of rigs that use the provider."`
	Prices  map[string]Price `json:"prices,omitempty" doc:"By the model's name as its answers give it."`
	// AllowHTTP permits plain http to another machine.
	AllowHTTP bool `json:"allow_http,omitempty" doc:"Permit plain http to another machine: the key travels unprotected."`
}

// Setting is a setting as it holds somewhere.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	From  string `json:"from" doc:"The level that decides." enum:"bead,rig,town,server,default"`
	Help  string `json:"help"`
}

// SetSettings changes settings.
type SetSettings struct {
	Set   map[string]string `json:"set,omitempty"`
	Unset []string          `json:"unset,omitempty"`
}
