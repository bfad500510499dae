// Package client speaks the HTTP API of a Gastown server. The command line uses
// nothing else, and neither should another program in Go.
//
// What all methods promise:
//
//   - An error is an *errs.Error: its kind, message and hint are the server's own
//     words (problem+json). A server that can't be reached is Unavailable.
//   - Every POST carries an Idempotency-Key, and a retry carries the same one, so
//     that a bead is created once however often the answer got lost.
//   - 429 and 503 are retried, after the time the server asks for, a few times and
//     within half a minute; so is a connection that broke after the request was
//     sent. A refused connection is not: nobody listens there.
//   - The token is sent only to the server it was given for: redirects are not
//     followed, and it never appears in an error.
//   - Streams resume by themselves after the last event they delivered, for as
//     long as the context lives.
//
// A Client is safe for concurrent use.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
)

const (
	// requestTimeout bounds one try of an ordinary request.
	requestTimeout = time.Minute
	// slowTimeout is for requests during which the server clones or asks a forge.
	slowTimeout = 45 * time.Minute
	// maxTries and maxWait bound the retries of one call.
	maxTries = 5
	maxWait  = 30 * time.Second
	// maxAnswer is more than any page of the API has.
	maxAnswer = 64 << 20
)

// Options say where the server is and how to speak with it.
type Options struct {
	URL   string // http:// or https://, without a path
	Token string // the admin token; "" for calls that need none
	Agent string // the User-Agent; "" for "gastown"
	User  string // who asks, for the ledger; "" for nobody in particular
	// Transport replaces the default one, for tests.
	Transport http.RoundTripper
	// Wait replaces waiting between tries, for tests. It returns early when ctx ends.
	Wait func(ctx context.Context, d time.Duration) error
}

// Client is a connection to one server.
type Client struct {
	base  string
	token string
	agent string
	user  string
	http  *http.Client
	wait  func(ctx context.Context, d time.Duration) error
}

// New checks the options. It does not contact the server.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		// The text of err could repeat credentials in the URL.
		return nil, errs.New(errs.Invalid, "the server's URL is not an http:// or https:// address").
			WithHint("set GASTOWN_URL like http://127.0.0.1:7070, or give --data DIR")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errs.New(errs.Invalid, "the server's URL must not contain credentials, a query or a fragment").
			WithHint("give the token in GASTOWN_TOKEN")
	}
	if strings.ContainsAny(o.Token, "\r\n\x00 ") {
		return nil, errs.New(errs.Invalid, "the token contains spaces or line ends").WithHint("check GASTOWN_TOKEN")
	}
	c := &Client{
		base:  strings.TrimSuffix(u.String(), "/"),
		token: o.Token,
		agent: o.Agent,
		user:  oneLine(o.User),
		wait:  o.Wait,
		http: &http.Client{
			Transport:     o.Transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if c.agent == "" {
		c.agent = "gastown"
	}
	if c.wait == nil {
		c.wait = sleep
	}
	return c, nil
}

// URL returns the server's address.
func (c *Client) URL() string { return c.base }

// request is one call of the API.
type request struct {
	method string
	path   string // escaped, see at
	query  url.Values
	body   any
	etag   string // If-Match
	slow   bool
}

// at joins path segments of strangers' names under /api/v1. A name that would
// change the path ("", ".", "..") can't exist and is refused by the server as a
// name; escaping it here keeps it one segment.
func at(segments ...string) string {
	var b strings.Builder
	b.WriteString("/api/v1")
	for _, s := range segments {
		b.WriteByte('/')
		switch s {
		case "":
			b.WriteString("%20")
		case ".", "..":
			b.WriteString(strings.ReplaceAll(s, ".", "%2E"))
		default:
			b.WriteString(url.PathEscape(s))
		}
	}
	return b.String()
}

// call performs a request and decodes the answer into T.
func call[T any](ctx context.Context, c *Client, r request) (T, error) {
	var out T
	body, err := c.do(ctx, r)
	if err != nil {
		return out, err
	}
	if len(body) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, errs.Wrap(errs.Internal, err, "the server's answer to %s %s can't be read", r.method, r.path)
	}
	return out, nil
}

// do performs a request with retries and returns the body of a 2xx answer.
func (c *Client) do(ctx context.Context, r request) ([]byte, error) {
	var payload []byte
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "encoding the request")
		}
		payload = b
	}
	key := ""
	if r.method == http.MethodPost {
		key = rand.Text()
	}
	var waited time.Duration
	for try := 1; ; try++ {
		body, again, err := c.once(ctx, r, payload, key)
		if err == nil || !again || ctx.Err() != nil || try == maxTries {
			return body, err
		}
		pause := pauseBefore(err, try)
		if waited += pause; waited > maxWait {
			return nil, err
		}
		if c.wait(ctx, pause) != nil {
			return nil, err
		}
	}
}

// pauseBefore returns how long to wait before the next try: what the server
// asked for, else 200 ms doubling.
func pauseBefore(err error, try int) time.Duration {
	var e *errs.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		return e.RetryAfter
	}
	return 200 * time.Millisecond << (try - 1)
}

// once is one try; again says that another may succeed.
func (c *Client) once(ctx context.Context, r request, payload []byte, key string) (body []byte, again bool, err error) {
	limit := requestTimeout
	if r.slow {
		limit = slowTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := c.build(ctx, r, payload)
	if err != nil {
		return nil, false, err
	}
	if key != "" {
		req.Header.Set(api.HeaderIdempotencyKey, key)
	}
	res, err := c.http.Do(req)
	if err != nil {
		err, again = c.unreachable(err)
		return nil, again, err
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer)); err != nil {
		err, again = c.unreachable(err)
		return nil, again, err
	}
	if res.StatusCode/100 != 2 {
		e := problem(res, body)
		return nil, e.Kind == errs.Overloaded || e.Kind == errs.Unavailable, e
	}
	return body, false, nil
}

func (c *Client) build(ctx context.Context, r request, payload []byte) (*http.Request, error) {
	u := c.base + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	var body io.Reader
	if payload != nil {
		body = bytes.NewReader(payload)
	}
	return c.buildBody(ctx, r, u, body)
}

func (c *Client) buildBody(ctx context.Context, r request, u string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, u, body)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "building the request")
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.user != "" {
		req.Header.Set(api.HeaderUser, c.user)
	}
	if r.etag != "" {
		req.Header.Set("If-Match", r.etag)
	}
	return req, nil
}

// unreachable turns a failure of the transport into an error without the URL's
// query. A refused connection and an ended context are final; anything else may
// be tried again.
func (c *Client) unreachable(err error) (e error, again bool) {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	if errors.Is(err, context.Canceled) {
		return errs.Wrap(errs.Unavailable, err, "interrupted"), false
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return errs.New(errs.Unavailable, "no server answers at %s: %v", c.base, err).
			WithHint("start one with: gastown serve --data DIR, or check GASTOWN_URL"), false
	}
	return errs.Wrap(errs.Unavailable, err, "talking with the server at %s", c.base), !errors.Is(err, context.DeadlineExceeded)
}

// problem reads an error answer of whatever shape.
func problem(res *http.Response, body []byte) *errs.Error {
	e := errs.New(errs.KindOfStatus(res.StatusCode), "the server answered with HTTP status %d", res.StatusCode)
	var p api.Problem
	if json.Unmarshal(body, &p) == nil {
		switch {
		case p.Detail != "":
			e.Message = p.Detail
		case p.Title != "":
			e.Message = p.Title
		}
		for i, d := range p.Errors {
			if i < 5 && d.Message != "" && !strings.Contains(e.Message, d.Message) {
				e.Message += "; " + strings.TrimSpace(d.Location+" "+d.Message)
			}
		}
		if p.Kind != "" {
			e.Kind = errs.Kind(p.Kind)
		}
		e.Hint = p.Hint
		e.RetryAfter = time.Duration(p.RetryAfterMS) * time.Millisecond
	}
	if e.RetryAfter == 0 {
		if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
			e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
		}
	}
	if e.Kind == errs.Unauthorized && e.Hint == "" {
		e.Hint = "set GASTOWN_TOKEN, or give --data DIR on the server's machine"
	}
	return e
}

// oneLine makes a name fit for a header: printable ASCII, at most 100 bytes.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return strings.TrimSpace(s[:min(len(s), 100)])
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
