package runner

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	"gastown/internal/town"
)

const (
	// maxErrorLine is the longest error of a provider that is looked at, in bytes.
	maxErrorLine = 64 << 10
	// maxOverflows is how often a provider may find a conversation too long, with
	// next to nothing in between, before the run ends: an agent that shortens its
	// conversation in vain would do so for ever, and pay for it.
	maxOverflows = 8
	// ofTheTurn is how many good answers may follow an overflow that still ended the
	// turn: a title or a summary that nobody made use of.
	ofTheTurn = 1
	// ofTheSame is how many may lie between two overflows of the same trouble.
	ofTheSame = 3
)

// overflow counts how often the provider found the run's conversation too long
// for its model. Some agents then say no more than that their turn has ended.
type overflow struct {
	mu    sync.Mutex // guards the fields below
	times int        // in a row
	since int        // good answers since the last
}

func (o *overflow) good() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.since++
}

// hit reports whether it was once too often.
func (o *overflow) hit() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since > ofTheSame {
		o.times = 0
	}
	o.times++
	o.since = 0
	return o.times >= maxOverflows
}

// endedTurn reports whether a turn that ends now ends because of an overflow.
func (o *overflow) endedTurn() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.times > 0 && o.since <= ofTheTurn
}

// overflowed is the end of a run whose conversation does not fit its model any
// more. The next one begins another.
func overflowed() *ending {
	return &ending{how: endNow, outcome: town.OutcomeExited, class: town.ClassWork, subject: town.SubjectOverflow,
		reason: "the conversation became longer than the model's context, and the agent did not get it shorter; the next run begins a new one"}
}

// watchOverflow has hit called when an answer of a model says that the
// conversation is too long, before the agent has read it to its end.
func watchOverflow(res *http.Response, hit func()) {
	stream := strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	switch res.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
	case http.StatusOK:
		if !stream {
			return
		}
	default:
		return
	}
	res.Body = &errorReader{ReadCloser: res.Body, stream: stream, hit: hit}
}

// errorReader passes an answer on and looks for an error in it: in the whole of
// it, or in each line of a stream.
type errorReader struct {
	io.ReadCloser
	stream bool
	hit    func()
	line   []byte
	over   bool // the line is too long to look at
}

// Read passes on.
func (e *errorReader) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	rest := p[:n]
	for e.stream {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		e.keep(rest[:i])
		e.look()
		rest = rest[i+1:]
	}
	e.keep(rest)
	if err != nil {
		e.look()
	}
	return n, err
}

func (e *errorReader) keep(p []byte) {
	if e.over = e.over || len(e.line)+len(p) > maxErrorLine; e.over {
		e.line = e.line[:0]
		return
	}
	e.line = append(e.line, p...)
}

func (e *errorReader) look() {
	line := e.line
	over := e.over
	e.line, e.over = e.line[:0], false
	if e.stream {
		line, _ = bytes.CutPrefix(line, []byte("data:"))
	}
	// Nearly all lines of a stream are of a few words, and no error.
	if !over && bytes.Contains(line, []byte(`"error"`)) && saysTooLong(line) {
		e.hit()
	}
}

// providerError is where a provider's error stands: at the top, or in the
// response that failed. Models' words stand elsewhere.
type providerError struct {
	Error    *errorSaid `json:"error"`
	Response struct {
		Error *errorSaid `json:"error"`
	} `json:"response"`
}

type errorSaid struct {
	Code    any    `json:"code"` // a text, or a number
	Type    string `json:"type"`
	Message string `json:"message"`
}

// saysTooLong reports whether a provider's error is that a conversation is
// longer than the model's context.
func saysTooLong(text []byte) bool {
	var m providerError
	if json.Unmarshal(text, &m) != nil {
		return false
	}
	for _, e := range []*errorSaid{m.Error, m.Response.Error} {
		if e == nil {
			continue
		}
		if code, _ := e.Code.(string); code == "context_length_exceeded" || e.Type == "exceed_context_size_error" || e.Type == "request_too_large" {
			return true
		}
		said := strings.ToLower(e.Message)
		for _, words := range []string{"prompt is too long", "maximum context length", "context window", "exceed context limit",
			"exceeds the maximum number of tokens", "exceeds the available context size"} {
			if strings.Contains(said, words) {
				return true
			}
		}
	}
	return false
}
