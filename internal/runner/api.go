package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/scrub"
	"gastown/internal/town"
)

// maxAnswer bounds what is read of an answer of the server, in bytes.
const maxAnswer = 32 << 20

// callTimeout bounds every call but the long poll.
const callTimeout = 20 * time.Second

// api speaks to the server. It holds the sandbox token, exchanges it when it
// expired, and remembers when the server was last heard.
type api struct {
	base      *url.URL
	transport *http.Transport
	hc        *http.Client

	heard atomic.Int64 // of a usable answer, on the monotonic clock since begin
	begin time.Time

	scrub *scrub.Set // what may not leave in a message

	mu    sync.Mutex // guards token
	token string
	swap  sync.Mutex // held during an exchange: one at a time
}

func newAPI(server, token string) (*api, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, errs.New(errs.Invalid, "the server's URL does not parse")
	}
	tr := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		DisableCompression:  true,
	}
	switch {
	case u.Scheme == "unix" && strings.HasPrefix(u.Path, "/"):
		socket := u.Path
		tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 10 * time.Second}
			return d.DialContext(ctx, "unix", socket)
		}
		u = &url.URL{Scheme: "http", Host: "gastown"}
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil:
	default:
		return nil, errs.New(errs.Invalid, "the server's URL is neither http, https nor unix:///path")
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	u.RawQuery, u.Fragment = "", ""
	a := &api{base: u, transport: tr, hc: &http.Client{Transport: tr}, token: token, begin: time.Now(), scrub: &scrub.Set{}}
	a.scrub.Put("token", token)
	return a, nil
}

func (a *api) bearer() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token
}

func (a *api) setToken(t string) {
	if t == "" {
		return
	}
	a.scrub.Put("token", t)
	a.mu.Lock()
	a.token = t
	a.mu.Unlock()
}

// silence is how long ago the server was heard.
func (a *api) silence() time.Duration { return time.Since(a.begin) - time.Duration(a.heard.Load()) }

func (a *api) contact() { a.heard.Store(int64(time.Since(a.begin))) }

// answer is what the server said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// send performs one call; a 401 is answered by one exchange of the token and
// one more try.
func (a *api) send(ctx context.Context, method, path string, query url.Values, body []byte) (answer, error) {
	used := a.bearer()
	ans, err := a.once(ctx, method, path, query, body, used)
	if err != nil || ans.status != http.StatusUnauthorized {
		return ans, err
	}
	if err := a.exchange(ctx, used); err != nil {
		return answer{}, err
	}
	return a.once(ctx, method, path, query, body, a.bearer())
}

func (a *api) once(ctx context.Context, method, path string, query url.Values, body []byte, token string) (answer, error) {
	u := *a.base
	u.Path += path
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return answer{}, errs.Wrap(errs.Internal, err, "calling the server")
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := a.hc.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return answer{}, errs.Wrap(errs.Unavailable, err, "the server can't be reached")
	}
	defer func() {
		// The body was read as far as it is wanted.
		_ = res.Body.Close()
	}()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return answer{}, errs.Wrap(errs.Unavailable, err, "the server's answer was cut off")
	}
	if len(data) > maxAnswer {
		return answer{}, errs.New(errs.Internal, "the server's answer is larger than %d bytes", maxAnswer)
	}
	if c := res.StatusCode; c < 500 && c != http.StatusUnauthorized && c != http.StatusForbidden {
		a.contact()
	}
	return answer{status: res.StatusCode, header: res.Header, body: data}, nil
}

// exchange gets a new token, unless somebody else just did.
func (a *api) exchange(ctx context.Context, used string) error {
	a.swap.Lock()
	defer a.swap.Unlock()
	if a.bearer() != used {
		return nil
	}
	ans, err := a.once(ctx, http.MethodPost, wire.PathToken, nil, []byte("{}"), used)
	if err != nil {
		return err
	}
	if err := ans.err(); err != nil {
		return errs.Wrap(errs.KindOf(err), err, "exchanging the token")
	}
	var t wire.TokenResponse
	if err := json.Unmarshal(ans.body, &t); err != nil || t.Token == "" {
		return errs.New(errs.Internal, "the server's answer to the token exchange is not usable")
	}
	a.setToken(t.Token)
	return nil
}

// err turns a refusal into an error with the server's own words.
func (ans answer) err() error {
	if ans.status >= 200 && ans.status < 300 {
		return nil
	}
	var p struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
		Hint   string `json:"hint"`
	}
	// A body that is no problem document leaves the texts empty.
	_ = json.Unmarshal(ans.body, &p)
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	if text == "" {
		text = "the server answered with status " + strconv.Itoa(ans.status)
	}
	kind := errs.KindOfStatus(ans.status)
	if ans.status >= 502 && ans.status <= 504 {
		kind = errs.Unavailable
	}
	e := errs.New(kind, "%s", clip(text, 4096))
	if p.Hint != "" {
		e = e.WithHint("%s", clip(p.Hint, 1024))
	}
	if s, err := strconv.Atoi(ans.header.Get("Retry-After")); err == nil && s > 0 && s <= 3600 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// call sends in as JSON and decodes the answer into out, where they are not nil.
func (a *api) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body []byte
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return errs.Wrap(errs.Internal, err, "encoding a message")
		}
		body = a.scrub.JSON(b)
	}
	ans, err := a.send(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	if err := ans.err(); err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(ans.body, out); err != nil {
		return errs.Wrap(errs.Internal, err, "the server's answer to %s", path)
	}
	return nil
}

// hello says the first word.
func (a *api) hello(ctx context.Context, stream, version string) (town.Desired, error) {
	var d town.Desired
	err := a.call(ctx, http.MethodPost, wire.PathHello, nil, wire.HelloRequest{Stream: stream, Version: version}, &d)
	return d, err
}

// desired long-polls; ok is false when nothing is newer than rev.
func (a *api) desired(ctx context.Context, rev int64, wait time.Duration) (d town.Desired, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ans, err := a.send(ctx, http.MethodGet, wire.PathDesired, url.Values{"after": {strconv.FormatInt(rev, 10)}}, nil)
	if err != nil {
		return d, false, err
	}
	if ans.status == http.StatusNoContent {
		return d, false, nil
	}
	if err := ans.err(); err != nil {
		return d, false, err
	}
	if err := json.Unmarshal(ans.body, &d); err != nil {
		return d, false, errs.Wrap(errs.Internal, err, "the desired document")
	}
	return d, true, nil
}

// again says whether a refused call may succeed later.
func again(err error) bool {
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.Overloaded, errs.Internal, errs.Unauthorized:
		return true
	}
	return false
}

// backoff waits before try n (from 0) is repeated, with jitter, and not
// shorter than the server asked for; it returns false when ctx ended.
func (t Timing) backoff(ctx context.Context, n int, cause error) bool {
	d := min(t.BackoffMin<<min(n, 16), t.BackoffMax)
	d = d/2 + rand.N(d/2+1)
	var e *errs.Error
	if errors.As(cause, &e) && e.RetryAfter > d {
		d = e.RetryAfter
	}
	tm := time.NewTimer(d)
	defer tm.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-tm.C:
		return true
	}
}
