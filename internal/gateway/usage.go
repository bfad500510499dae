package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// Tokens is what a provider says that one request used. Input holds neither
// what was read from its cache nor what was written to it.
type Tokens struct {
	Input      int64 `json:"input"`
	Output     int64 `json:"output"`
	CacheRead  int64 `json:"cache_read,omitempty"`
	CacheWrite int64 `json:"cache_write,omitempty"`
}

// Total is the sum of all kinds.
func (t Tokens) Total() int64 { return t.Input + t.Output + t.CacheRead + t.CacheWrite }

// ModelMeter hears what requests used.
type ModelMeter interface {
	// ModelUsed says what one answer used; model is its name as the provider says
	// it, and cost in millionths of a dollar, 0 where there are no prices; priced says that the
	// model has a price of its own. It is
	// called before the agent sees the end of the answer, which waits for it.
	ModelUsed(g ModelGrant, provider, model string, t Tokens, cost int64, priced bool)
}

// ModelBudget gives requests shares of what their runs may spend.
type ModelBudget interface {
	// Reserve returns when a request that needs about so much may begin. Its error
	// says why it may not.
	Reserve(ctx context.Context, g ModelGrant, tokens, cost int64) (Share, error)
}

// Share is what one request holds of a budget.
type Share interface {
	// Spent says what the request really used; priced is as of ModelMeter.
	Spent(tokens, cost int64, priced bool)
	// End gives back what the request did not use. It may be called again.
	End()
}

// Price is what a model costs, in millionths of a dollar for a million tokens.
type Price struct {
	Input      int64 `json:"input"`
	Output     int64 `json:"output"`
	CacheRead  int64 `json:"cache_read"`
	CacheWrite int64 `json:"cache_write"`
}

// MaxPrice bounds a price: a thousand dollars for a million tokens.
const MaxPrice = 1_000_000_000

// Of is the price of tokens in millionths of a dollar, rounded up for each kind.
func (p Price) Of(t Tokens) int64 {
	part := func(tokens, price int64) int64 { return (tokens*price + 999_999) / 1_000_000 }
	return part(t.Input, p.Input) + part(t.Output, p.Output) + part(t.CacheRead, p.CacheRead) + part(t.CacheWrite, p.CacheWrite)
}

const (
	// maxTokens bounds one request: more is nonsense from a stranger.
	maxTokens = 1 << 32
	// maxUsageLine is the longest line of a stream that is looked at, in bytes. The
	// usage stands in short ones, or in the last, whole answer.
	maxUsageLine = 4 << 20
	// beginning is how many events a stream may have before the model's first word:
	// a provider that then says that it failed has refused the request, and is not
	// paid for it.
	beginning = 3
)

// usageReader passes an answer on and reads its usage on the way. It
// understands the streams and the whole answers of OpenAI's chat completions and
// responses, of Anthropic's messages and of Gemini's generateContent; anything
// else has no usage. done is
// called once, at the end of the answer or when it is closed, with the last
// usage that was said and the model that said it. What was not said, or not
// waited for, is estimated; but a stream that begins with an error used nothing.
type usageReader struct {
	body   io.ReadCloser
	stream bool
	sent   *request // what was asked; nil: unknown
	done   func(model string, t Tokens, known bool)

	passed passed

	line  []byte // the present line of a stream, or the whole answer
	over  bool   // it is too long to look at
	model string
	used  Tokens
	known bool
	later bool // the model goes on when the answer has ended
	ended bool
}

func newUsageReader(body io.ReadCloser, contentType string, done func(model string, t Tokens, known bool)) *usageReader {
	return &usageReader{body: body, stream: strings.HasPrefix(contentType, "text/event-stream"), done: done}
}

// Read passes on.
func (u *usageReader) Read(p []byte) (int, error) {
	n, err := u.body.Read(p)
	if u.ended {
		return n, err
	}
	u.passed.bytes += int64(n)
	u.take(p[:n])
	if err != nil {
		u.end(errors.Is(err, io.EOF))
	}
	return n, err
}

// Close passes on. What was read until then counts.
func (u *usageReader) Close() error {
	u.end(false)
	return u.body.Close()
}

func (u *usageReader) take(p []byte) {
	if !u.stream {
		u.keep(p)
		return
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			u.keep(p)
			return
		}
		u.keep(p[:i])
		u.look()
		p = p[i+1:]
	}
}

func (u *usageReader) keep(p []byte) {
	if u.over || len(u.line)+len(p) > maxUsageLine {
		u.over, u.line = true, u.line[:0]
		return
	}
	u.line = append(u.line, p...)
}

// look reads one line of a stream, or the whole answer.
func (u *usageReader) look() {
	line := u.line
	over := u.over
	u.line, u.over = u.line[:0], false
	if over {
		return
	}
	if u.stream {
		var ok bool
		if line, ok = bytes.CutPrefix(line, []byte("data:")); !ok {
			return
		}
		u.passed.events++
	}
	// Most lines of a stream are a few words of text: they are not worth parsing.
	begins := u.stream && u.passed.events <= beginning
	if u.stream && !bytes.Contains(line, []byte(`"usage`)) && u.model != "" && !begins {
		return
	}
	if list := bytes.TrimSpace(line); !u.stream && len(list) > 0 && list[0] == '[' {
		// Gemini streams a list to who does not ask for events.
		var all []usageMessage
		if json.Unmarshal(list, &all) == nil {
			for _, m := range all {
				u.heard(m, false)
			}
		}
		return
	}
	var m usageMessage
	if json.Unmarshal(line, &m) == nil {
		u.heard(m, begins)
	}
}

// heard takes what a message says of the usage; begins is for one of the first of a stream.
func (u *usageReader) heard(m usageMessage, begins bool) {
	if begins && m.fails() && !u.known {
		u.known = true // nothing was used
	}
	for _, part := range []*usagePart{&m.usagePart, m.Response, m.Message} {
		if part == nil {
			continue
		}
		if u.model == "" {
			u.model = part.Model
		}
		u.later = u.later || part.Background
		if part.Usage != nil {
			u.used, u.known = part.Usage.over(u.used), true
		}
	}
	if m.Metadata != nil {
		u.model = cmp.Or(u.model, m.ModelVersion)
		u.used, u.known = m.Metadata.tokens(), true
	}
}

// end tells what was used. Of an answer that was cut off only the beginning may
// have been said.
func (u *usageReader) end(whole bool) {
	if u.ended {
		return
	}
	u.ended = true
	u.look()
	if !u.known {
		u.used.Input = clampTokens(u.sent.input())
	}
	if !u.known || !whole {
		u.used.Output = max(u.used.Output, clampTokens(u.passed.output(u.stream)))
	}
	if !u.known && u.later {
		u.used.Output = max(u.used.Output, laterOutput)
	}
	u.done(u.model, u.used, u.known)
}

// usagePart is where an answer, or a part of one, names its model and its usage.
type usagePart struct {
	Model      string          `json:"model"`
	Usage      *usageSaid      `json:"usage"`
	Background bool            `json:"background"`
	Error      json.RawMessage `json:"error"`
}

// usageMessage is an answer, or one message of a stream: chat completions have
// the usage at the top, responses in "response", Anthropic's first message in
// "message" and its later ones at the top.
type usageMessage struct {
	usagePart
	Response *usagePart `json:"response"`
	Message  *usagePart `json:"message"`
	// Gemini's are its own.
	Metadata     *geminiUsage `json:"usageMetadata"`
	ModelVersion string       `json:"modelVersion"`
}

// geminiUsage is what Gemini says with each part of an answer: the sums so far.
// The prompt includes what came from the cache; thoughts are paid for as output.
type geminiUsage struct {
	Prompt   int64 `json:"promptTokenCount"`
	Tools    int64 `json:"toolUsePromptTokenCount"`
	Output   int64 `json:"candidatesTokenCount"`
	Thoughts int64 `json:"thoughtsTokenCount"`
	Cached   int64 `json:"cachedContentTokenCount"`
}

func (g geminiUsage) tokens() Tokens {
	in := clampTokens(clampTokens(g.Prompt) + clampTokens(g.Tools))
	cached := min(clampTokens(g.Cached), in)
	return Tokens{Input: in - cached, CacheRead: cached, Output: clampTokens(clampTokens(g.Output) + clampTokens(g.Thoughts))}
}

// fails reports whether it says that the answer failed.
func (m usageMessage) fails() bool {
	said := func(e json.RawMessage) bool { return len(e) > 0 && string(e) != "null" }
	return said(m.Error) || m.Response != nil && said(m.Response.Error)
}

// usageSaid is the usage in any of the three forms. In OpenAI's two the input
// includes what came from the cache; in Anthropic's it does not.
type usageSaid struct {
	PromptTokens     *int64 `json:"prompt_tokens"`
	CompletionTokens *int64 `json:"completion_tokens"`
	PromptDetails    struct {
		CachedTokens int64 `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`

	InputTokens  *int64 `json:"input_tokens"`
	OutputTokens *int64 `json:"output_tokens"`
	InputDetails struct {
		CachedTokens int64 `json:"cached_tokens"`
	} `json:"input_tokens_details"`
	CacheRead  *int64 `json:"cache_read_input_tokens"`
	CacheWrite *int64 `json:"cache_creation_input_tokens"`
}

// over puts what was said over what was said before: in a stream each number is
// the sum so far, and numbers that are left out stand.
func (s *usageSaid) over(t Tokens) Tokens {
	set := func(to *int64, v *int64) {
		if v != nil {
			*to = clampTokens(*v)
		}
	}
	set(&t.Input, s.PromptTokens)
	set(&t.Output, s.CompletionTokens)
	set(&t.Input, s.InputTokens)
	set(&t.Output, s.OutputTokens)
	set(&t.CacheRead, s.CacheRead)
	set(&t.CacheWrite, s.CacheWrite)
	if cached := clampTokens(s.PromptDetails.CachedTokens) + clampTokens(s.InputDetails.CachedTokens); cached > 0 && s.CacheRead == nil {
		t.CacheRead = min(cached, t.Input)
		t.Input -= t.CacheRead
	}
	return t
}

func clampTokens(n int64) int64 { return min(max(n, 0), maxTokens) }
