package app

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
)

// gate stands before the server's handler, so that the server behind it can be
// replaced while the listeners stay. While it is closed, requests are told to come
// again.
type gate struct {
	mu      sync.Mutex // guards all below
	handler http.Handler
	stop    func()        // ends the streams of the server behind the gate
	under   int           // requests under way
	left    chan struct{} // closed when a request ends while somebody waits for that; nil otherwise
	ctx     context.Context
	cancel  context.CancelFunc // of requests under way
}

// open lets requests through to h.
func (g *gate) open(h http.Handler, stop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.handler, g.stop = h, stop
	g.ctx, g.cancel = context.WithCancel(context.Background())
}

// endStreams ends streams and long polls.
func (g *gate) endStreams() {
	g.mu.Lock()
	stop := g.stop
	g.mu.Unlock()
	if stop != nil {
		stop()
	}
}

const (
	politely  = 3 * time.Second // for requests to end by themselves when the gate closes
	lastWords = 2 * time.Second // for the answers of those that are cancelled then
)

// close turns new requests away and returns when at most rest of those under way
// are left: first their streams are ended, then they are cancelled. It fails when
// they don't end before ctx does.
func (g *gate) close(ctx context.Context, rest int) error {
	g.mu.Lock()
	g.handler = nil
	cancel := g.cancel
	g.mu.Unlock()
	g.endStreams()
	timer := time.AfterFunc(politely, cancel)
	defer timer.Stop()
	for {
		g.mu.Lock()
		if g.under <= rest {
			g.mu.Unlock()
			return nil
		}
		if g.left == nil {
			g.left = make(chan struct{})
		}
		left := g.left
		g.mu.Unlock()
		select {
		case <-left:
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "requests under way did not end").WithHint("try again")
		}
	}
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	h, over := g.handler, g.ctx
	if h != nil {
		g.under++
	}
	g.mu.Unlock()
	if h == nil {
		comeAgain(w)
		return
	}
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.under--
		if g.left != nil {
			close(g.left)
			g.left = nil
		}
	}()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	defer context.AfterFunc(over, func() {
		cancel()
		// A body that is sent or read slowly, on purpose perhaps, knows no context.
		// Recorders in tests know no deadlines.
		_, _ = rc.SetReadDeadline(time.Now()), rc.SetWriteDeadline(time.Now().Add(lastWords))
	})()
	h.ServeHTTP(w, r.WithContext(ctx))
}

// comeAgain answers while a backup is being restored.
func comeAgain(w http.ResponseWriter) {
	p := api.Problem{Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable, Kind: string(errs.Unavailable),
		Detail: "a backup is being restored", Hint: "try again in a moment", RetryAfterMS: 1000}
	w.Header().Set("Content-Type", api.ProblemType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Retry-After", "1")
	w.Header().Set(wire.HeaderAway, "1")
	w.WriteHeader(http.StatusServiceUnavailable)
	// The client may be gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(p)
}
