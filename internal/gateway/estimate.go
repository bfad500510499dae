package gateway

import (
	"io"
	"strings"
	"sync/atomic"
)

const (
	// bytesPerToken is what a token has in text, about.
	bytesPerToken = 4
	// bytesPerEvent is what an event of a stream has beside its text, about.
	bytesPerEvent = 400
	// guessedOutput is what an answer is taken to have before it comes, in tokens, and
	// guessedRequest what a request has that does not say its size, in bytes.
	guessedOutput  = 4096
	guessedRequest = 64 << 10
	// laterOutput is what counts for an answer that is made in the background, which
	// nobody sees: about the most that a model says at once.
	laterOutput = 100_000
)

// estimate is about what a request will use, before it is read; size is that of its
// body, or negative when it is not said.
func estimate(size int64) Tokens {
	if size < 0 {
		size = guessedRequest
	}
	return Tokens{Input: min(size, MaxModelRequest) / bytesPerToken, Output: guessedOutput}
}

// request counts what goes to a provider. Its Read and its other methods may be
// called from different goroutines.
type request struct {
	io.ReadCloser
	bytes atomic.Int64
	whole atomic.Bool // all of it was read
}

// Read passes on and counts.
func (q *request) Read(p []byte) (int, error) {
	n, err := q.ReadCloser.Read(p)
	q.bytes.Add(int64(n))
	if err == io.EOF {
		q.whole.Store(true)
	}
	return n, err
}

// input is about what the request has in tokens.
func (q *request) input() int64 {
	if q == nil {
		return 0
	}
	return q.bytes.Load() / bytesPerToken
}

// passed counts what an answer has. Each event of a stream has at least one token.
type passed struct {
	bytes, events int64
}

// output is about what an answer has in tokens: what nobody says or stays to
// hear is paid for, too.
func (a passed) output(stream bool) int64 {
	if !stream {
		return a.bytes / bytesPerToken
	}
	return max(a.events, (a.bytes-a.events*bytesPerEvent)/bytesPerToken)
}

// priced reports whether a model has a price of its own, or of the longest name
// that its own begins with.
func (p Provider) priced(model string) bool {
	for name := range p.Prices {
		if model == name || strings.HasPrefix(model, name+"-") {
			return true
		}
	}
	return false
}

// priceOf is what a model costs: that of its name, else of the longest name that
// its own begins with (providers add dates), else the most that any costs, since
// whoever asks chooses the model.
func (p Provider) priceOf(model string) Price {
	if price, ok := p.Prices[model]; ok {
		return price
	}
	best, found := "", false
	var most Price
	for name, price := range p.Prices {
		if strings.HasPrefix(model, name+"-") && (!found || len(name) > len(best)) {
			best, found = name, true
		}
		most = Price{max(most.Input, price.Input), max(most.Output, price.Output), max(most.CacheRead, price.CacheRead), max(most.CacheWrite, price.CacheWrite)}
	}
	if found {
		return p.Prices[best]
	}
	return most
}
