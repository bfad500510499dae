package runner

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner/wire"
)

const (
	headerRun   = wire.HeaderRun
	headerEpoch = wire.HeaderEpoch
)

// ownEndpoint is the name of the runner's own git endpoint, in the place of a run.
const ownEndpoint = "-"

// tenant is a run as the loopback server sees it.
type tenant struct {
	id       string
	epoch    int64
	provider string
	secret   [sha256.Size]byte // the hash: lengths don't show in the comparison
	tools    http.Handler      // MCP
	alive    func()            // called for each piece of an answer of the model
	// Called for each answer of the model; 0: the gateway was unreachable. wait is
	// the header of a limit, "" without one.
	answered func(status int, wait string)
	tooLong  func() // called for each answer that finds the conversation too long
}

// loopback serves the agents: /mcp/<run>, /git/<run>/<rig>.git/... and
// /model/<run>/..., or /slot/<slot>/... for a run whose agent serves others, too, and
// hosts that their rig opens, as a proxy. Every request carries the secret of its run or slot. The sandbox
// token is added here, and a run's secret goes no further.
type loopback struct {
	api    *api
	log    *slog.Logger
	ln     net.Listener
	srv    *http.Server
	base   string
	secret string // of the runner's own git processes
	own    [sha256.Size]byte
	kept   atomic.Int64 // bytes of requests that may be sent again
	proxy  *proxy

	mu      sync.RWMutex // guards the fields below
	tenants map[string]*tenant
	slots   map[string]*slot
}

func newSecret() string { return rand.Text() + rand.Text() }

func hashSecret(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

func newLoopback(a *api, log *slog.Logger) (*loopback, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "listening on loopback")
	}
	l := &loopback{api: a, log: log, ln: ln, base: "http://" + ln.Addr().String(), secret: newSecret(),
		tenants: map[string]*tenant{}, slots: map[string]*slot{}}
	l.own = hashSecret(l.secret)
	l.proxy = newProxy(a, log)
	l.srv = &http.Server{Handler: l, ReadHeaderTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	return l, nil
}

func (l *loopback) serve() error {
	err := l.srv.Serve(l.ln)
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (l *loopback) close() error {
	l.proxy.close()
	return l.srv.Close()
}

// admit opens the endpoints of a run.
func (l *loopback) admit(t *tenant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tenants[t.id] = t
}

// expel closes them: the secret is dead.
func (l *loopback) expel(t *tenant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tenants[t.id] == t {
		delete(l.tenants, t.id)
	}
}

func (l *loopback) tenant(id string) *tenant {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.tenants[id]
}

func bearerOf(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func same(secret string, want [sha256.Size]byte) bool {
	got := hashSecret(secret)
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

// ServeHTTP finds the run, checks its secret and hands the request on.
func (l *loopback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// What ignores NO_PROXY sends even what is for here as if to a proxy.
	if r.Method == http.MethodConnect || r.URL.IsAbs() && r.URL.Host != l.ln.Addr().String() {
		l.proxy.ServeHTTP(w, r)
		return
	}
	service, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	id, rest, _ := strings.Cut(rest, "/")
	given := bearerOf(r)
	if service == "model" || service == "slot" {
		given = cmp.Or(given, r.Header.Get("X-Api-Key"), r.Header.Get("X-Goog-Api-Key"))
	}
	if service == "git" && id == ownEndpoint {
		if !same(given, l.own) {
			refuse(w)
			return
		}
		l.git(w, r, rest, r.Header.Get(headerRun), r.Header.Get(headerEpoch), l.api.transport) // the runner tries again by itself
		return
	}
	t := l.tenant(id)
	if service == "slot" {
		t = l.holder(id)
	}
	if t == nil {
		t = &tenant{secret: l.own} // compare all the same
		given = ""
	}
	if !same(given, t.secret) {
		refuse(w)
		return
	}
	switch {
	case service == "mcp" && rest == "":
		t.tools.ServeHTTP(w, r)
	case service == "git":
		l.git(w, r, rest, t.id, strconv.FormatInt(t.epoch, 10), l.holding(0)) // a push is sent once
	case service == "model" || service == "slot":
		l.model(w, r, rest, t)
	default:
		http.Error(w, "there is nothing here", http.StatusNotFound)
	}
}

func refuse(w http.ResponseWriter) {
	http.Error(w, "the credential is not that of a living run", http.StatusUnauthorized)
}

// target is the address on the server below prefix. rest must be a clean
// relative path, so that it can't leave prefix.
func (l *loopback) target(prefix, rest, query string) (*url.URL, bool) {
	clean := rest == "" || path.Clean("/"+rest) == "/"+strings.TrimSuffix(rest, "/")
	if !clean || strings.ContainsAny(rest, "\\\x00") {
		return nil, false
	}
	u := *l.api.base
	u.Path += prefix + rest
	u.RawPath = ""
	u.RawQuery = query
	return &u, true
}

func (l *loopback) git(w http.ResponseWriter, r *http.Request, rest, run, epoch string, via http.RoundTripper) {
	u, ok := l.target(wire.PathGit, rest, r.URL.RawQuery)
	if !ok {
		http.Error(w, "this is no path of a repository", http.StatusNotFound)
		return
	}
	l.forward(w, r, u, run, epoch, via, forwardHooks{})
}

func (l *loopback) model(w http.ResponseWriter, r *http.Request, rest string, t *tenant) {
	if t.provider == "" {
		http.Error(w, "this run has no model provider", http.StatusNotFound)
		return
	}
	u, ok := l.target(wire.PathModel+t.provider+"/", rest, r.URL.RawQuery)
	if !ok {
		http.Error(w, "this is no path of a model API", http.StatusNotFound)
		return
	}
	l.forward(w, r, u, t.id, strconv.FormatInt(t.epoch, 10), l.holding(holdCuts), forwardHooks{alive: t.alive, answered: t.answered, tooLong: t.tooLong})
}

// forwardHooks are told what passes; each may be nil.
type forwardHooks struct {
	alive    func()
	answered func(status int, wait string)
	tooLong  func()
}

// forward proxies without buffering. Credentials of the caller are removed,
// the sandbox token takes their place.
func (l *loopback) forward(w http.ResponseWriter, r *http.Request, u *url.URL, run, epoch string, via http.RoundTripper, h forwardHooks) {
	// Else net/http closes the request's body as soon as the answer begins, and
	// where that meets the transport's last look at the body, it cuts the answer
	// off. A writer that knows no full duplex has no such body.
	_ = http.NewResponseController(w).EnableFullDuplex()
	token := l.api.bearer()
	p := &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     via,
		ErrorLog:      l.srv.ErrorLog,
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL, pr.Out.Host = u, u.Host
			for _, k := range []string{"Authorization", "X-Api-Key", "X-Goog-Api-Key", "Cookie", "Proxy-Authorization", headerRun, headerEpoch} {
				pr.Out.Header.Del(k)
			}
			pr.Out.Header.Set("Authorization", "Bearer "+token)
			if run != "" {
				pr.Out.Header.Set(headerRun, run)
				pr.Out.Header.Set(headerEpoch, epoch)
			}
		},
		ModifyResponse: func(res *http.Response) error {
			if res.StatusCode == http.StatusUnauthorized {
				go l.renew(token)
			}
			if h.answered != nil {
				h.answered(res.StatusCode, res.Header.Get(wire.HeaderWait))
				res.Header.Del(wire.HeaderWait)
			}
			res.Header.Del(wire.HeaderAway)
			if h.tooLong != nil {
				watchOverflow(res, h.tooLong)
			}
			if h.alive != nil && res.StatusCode != http.StatusSwitchingProtocols {
				res.Body = &livelyBody{ReadCloser: res.Body, alive: h.alive}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				l.log.Warn("forwarding to the server failed", "path", u.Path, "err", err)
				if h.answered != nil {
					h.answered(0, "")
				}
			}
			w.Header().Set("Retry-After", "2")
			http.Error(w, "the server can't be reached; try again", http.StatusBadGateway)
		},
	}
	p.ServeHTTP(w, r)
}

// renew exchanges an expired token for the requests that follow.
func (l *loopback) renew(used string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if err := l.api.exchange(ctx, used); err != nil {
		l.log.Warn("the token could not be exchanged", "err", err)
	}
}

// livelyBody calls alive for each piece that is read.
type livelyBody struct {
	io.ReadCloser
	alive func()
}

func (b *livelyBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.alive()
	}
	return n, err
}
