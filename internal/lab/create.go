package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// CreateOptions say how to measure the creation of beads.
type CreateOptions struct {
	Place   *Place
	Clients int
	Towns   int
	For     time.Duration
	Args    []string
}

// Create is how fast beads were created. Each is durable when it is answered,
// and each request carries an idempotency key of its own.
type Create struct {
	Clients   int       `json:"clients"`
	Towns     int       `json:"towns"`
	PerSecond float64   `json:"per_second"`
	TookMS    Quantiles `json:"took_ms"`
	ServerCPU float64   `json:"server_cpu_pct"` // of one core
	PerCommit float64   `json:"jobs_per_transaction"`
	Errors    int       `json:"errors"`
	FirstFail string    `json:"first_error,omitempty"`
}

// creator is one client after another's shared state.
type creator struct {
	s     *Server
	http  *http.Client
	towns int
	next  atomic.Int64

	mu    sync.Mutex // guards the fields below
	took  []time.Duration
	fails int
	first error
}

// MeasureCreate lets clients create staged beads over HTTP for a while, each as
// soon as its last one was answered, in all towns by turns.
func MeasureCreate(ctx context.Context, o CreateOptions) (out Create, err error) {
	data := filepath.Join(o.Place.Dir, fmt.Sprintf("create-%d-%d", o.Clients, o.Towns))
	if err := Seed(ctx, data, o.Towns, 0); err != nil {
		return out, err
	}
	s, err := o.Place.Serve(ctx, data, o.Args...)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	c := &creator{s: s, towns: o.Towns, http: &http.Client{Timeout: callFor,
		Transport: &http.Transport{MaxIdleConnsPerHost: o.Clients, DisableCompression: true}}}
	if err := c.one(ctx, 0); err != nil { // the first connection and the first page
		return out, err
	}
	before, err := s.metrics(ctx)
	if err != nil {
		return out, err
	}
	used, err := s.usage(before)
	if err != nil {
		return out, err
	}
	begin := time.Now()
	c.run(ctx, o.Clients, begin.Add(o.For))
	took := time.Since(begin)
	after, err := s.metrics(ctx)
	if err != nil {
		return out, err
	}
	usedAfter, err := s.usage(after)
	if err != nil {
		return out, err
	}
	rise := func(name string) float64 { return after.sum(name, "") - before.sum(name, "") }
	out = Create{Clients: o.Clients, Towns: o.Towns, PerSecond: float64(len(c.took)) / took.Seconds(), TookMS: quantiles(c.took),
		ServerCPU: 100 * (usedAfter.cpu - used.cpu) / took.Seconds(), Errors: c.fails,
		PerCommit: rise("gastown_store_jobs_total") / max(1, rise("gastown_store_transactions_total"))}
	if c.first != nil {
		out.FirstFail = c.first.Error()
	}
	return out, nil
}

func (c *creator) run(ctx context.Context, clients int, until time.Time) {
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			var took []time.Duration
			for time.Now().Before(until) && ctx.Err() == nil {
				begin := time.Now()
				if err := c.one(ctx, c.next.Add(1)); err != nil {
					c.fail(err)
					continue
				}
				took = append(took, time.Since(begin))
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.took = append(c.took, took...)
		})
	}
	all.Wait()
}

func (c *creator) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails++
	if c.first == nil {
		c.first = err
	}
}

// one creates one bead.
func (c *creator) one(ctx context.Context, i int64) error {
	body := fmt.Appendf(nil, `{"rig":"web","title":"bead %d","body":"Make the function do what its comment says, and add a test.","staged":true}`, i)
	url := c.s.URL + "/api/v1/towns/" + SeedName(int(i%int64(c.towns))) + "/beads"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.s.Token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderIdempotencyKey, fmt.Sprintf("lab-%d", i))
	res, err := c.http.Do(req)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "creating a bead")
	}
	defer func() {
		_ = res.Body.Close() // read to its end
	}()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusCreated {
		err = errs.New(errs.Internal, "status %d: %.200s", res.StatusCode, text)
	}
	return errs.Wrap(errs.KindOf(err), err, "creating a bead")
}
