package runner

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// maxTold bounds the refusals that are told of one user of the proxy.
const maxTold = 100

// proxyUser is a run, or the gates on a candidate, as the proxy sees it.
type proxyUser struct {
	name   string
	secret string
	hash   [sha256.Size]byte
	header http.Header       // how the server is told for whom a tunnel is
	tell   func(text string) // a refusal, once for each host
	plain  *http.Transport   // for requests that are not tunnels

	ctx context.Context // ends when it may reach nothing any more
	end context.CancelFunc

	mu   sync.Mutex // guards header, tell and told
	told map[string]bool
}

// proxy lets agents and gates reach the hosts that their rig opens. It knows no
// list: the server decides, resolves and connects. CONNECT is for everything,
// plain http:// requests are taken too.
type proxy struct {
	api *api
	log *slog.Logger

	mu    sync.RWMutex // guards users
	users map[string]*proxyUser
}

func newProxy(a *api, log *slog.Logger) *proxy {
	return &proxy{api: a, log: log, users: map[string]*proxyUser{}}
}

// admitRun lets a run in; tell hears of what is refused.
func (p *proxy) admitRun(run string, epoch int64, tell func(string)) *proxyUser {
	return p.admit(run, http.Header{wire.HeaderRun: {run}, wire.HeaderEpoch: {strconv.FormatInt(epoch, 10)}}, tell)
}

// admitGates lets the gates on a candidate in.
func (p *proxy) admitGates(j town.GateJob, tell func(string)) *proxyUser {
	n := strconv.Itoa(j.N)
	return p.admit("gates-"+j.Bead+"-"+n, http.Header{wire.HeaderGates: {j.Bead}, wire.HeaderEpoch: {n}}, tell)
}

func (p *proxy) admit(name string, header http.Header, tell func(string)) *proxyUser {
	u := &proxyUser{name: name, secret: newSecret(), header: header, tell: tell, told: map[string]bool{}}
	u.hash = hashSecret(u.secret)
	u.ctx, u.end = context.WithCancel(context.Background())
	u.plain = &http.Transport{DisableKeepAlives: true, DisableCompression: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return p.dial(ctx, u, addr) }}
	p.api.scrub.Put("proxy "+name, u.secret)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users[name] = u
	return u
}

// expel ends what a user has open; its secret is dead.
func (p *proxy) expel(u *proxyUser) {
	p.mu.Lock()
	if p.users[u.name] == u {
		delete(p.users, u.name)
	}
	p.mu.Unlock()
	u.end()
	p.api.scrub.Put("proxy " + u.name)
}

// close expels all.
func (p *proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.users {
		u.end()
	}
	clear(p.users)
}

// user finds who asks by the credential, nil for nobody.
func (p *proxy) user(r *http.Request) *proxyUser {
	name, secret, ok := proxyAuth(r.Header.Get("Proxy-Authorization"))
	p.mu.RLock()
	u := p.users[name]
	p.mu.RUnlock()
	if !ok || u == nil || !same(secret, u.hash) {
		return nil
	}
	return u
}

// proxyAuth reads basic credentials.
func proxyAuth(h string) (name, secret string, ok bool) {
	return (&http.Request{Header: http.Header{"Authorization": {h}}}).BasicAuth()
}

// ServeHTTP takes CONNECT, and requests with a whole http:// address.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u := p.user(r)
	if u == nil {
		w.Header().Set("Proxy-Authenticate", `Basic realm="gastown"`)
		http.Error(w, "the credential is not that of a living run; it is in HTTPS_PROXY", http.StatusProxyAuthRequired)
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r, u)
	case r.URL.Scheme == "http" && r.URL.Host != "" && r.URL.User == nil:
		p.forward(w, r, u)
	default:
		http.Error(w, "this proxy takes CONNECT for everything but http:// addresses", http.StatusBadRequest)
	}
}

// dial asks the server, and tells of a refusal.
func (p *proxy) dial(ctx context.Context, u *proxyUser, addr string) (net.Conn, error) {
	host, err := town.ParseHost(addr)
	if err != nil {
		return nil, err
	}
	if u.ctx.Err() != nil {
		return nil, errs.New(errs.Gone, "the run is over")
	}
	u.mu.Lock()
	header := u.header
	u.mu.Unlock()
	conn, err := p.api.tunnel(ctx, host.String(), header)
	if errs.Is(err, errs.Forbidden) {
		u.refused(host, err)
	}
	return conn, err
}

// refused tells once for each host.
func (u *proxyUser) refused(h town.Host, err error) {
	u.mu.Lock()
	known := u.told[h.String()] || len(u.told) >= maxTold
	u.told[h.String()] = u.told[h.String()] || !known
	tell := u.tell
	u.mu.Unlock()
	if !known {
		tell(clip(err.Error(), 1000))
	}
}

func (p *proxy) connect(w http.ResponseWriter, r *http.Request, u *proxyUser) {
	out, err := p.dial(r.Context(), u, r.RequestURI)
	if err != nil {
		refuseHost(w, err)
		return
	}
	in, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.log.Error("a connection could not be taken over", "err", errors.Join(err, out.Close()))
		return
	}
	both := func() {
		// Both copies meet the end; an error says nothing more.
		_, _ = in.Close(), out.Close()
	}
	defer both()
	defer context.AfterFunc(u.ctx, both)()
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() { passOn(out, buf.Reader, both) })
	ways.Go(func() { passOn(in, out, both) })
	ways.Wait()
}

// passOn copies to the end and says so, or stops everything.
func passOn(dst net.Conn, src io.Reader, stop func()) {
	_, err := io.Copy(dst, src)
	half, ok := dst.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		stop()
	}
}

// forward performs a plain request.
func (p *proxy) forward(w http.ResponseWriter, r *http.Request, u *proxyUser) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(u.ctx, cancel)()
	target := *r.URL
	if target.Port() == "" {
		target.Host = strings.TrimSuffix(target.Host, ":") + ":80"
	}
	rp := &httputil.ReverseProxy{
		FlushInterval: -1, Transport: u.plain, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL, pr.Out.Host = &target, r.Host
			pr.Out.Header.Del("Proxy-Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) { refuseHost(w, err) },
	}
	rp.ServeHTTP(w, r.WithContext(ctx))
}

// refuseHost answers in plain text: who reads it is curl, or an agent.
func refuseHost(w http.ResponseWriter, err error) {
	status := http.StatusBadGateway
	switch errs.KindOf(err) {
	case errs.Forbidden, errs.Gone, errs.Invalid, errs.Overloaded:
		status = errs.HTTPStatus(errs.KindOf(err))
	}
	http.Error(w, clip(err.Error(), 2000), status)
}

// pass makes a user that stands for several runs go on as one of them. They are
// of one rig, so the same is open to all.
func (u *proxyUser) pass(to *proxyUser) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.header, u.tell = to.header, to.tell
}

// env is how programs are told of the proxy. Node obeys it from version 22.21 on
// with NODE_USE_ENV_PROXY, and never without.
func (u *proxyUser) env(base string) []string {
	at := strings.Replace(base, "://", "://"+url.UserPassword(u.name, u.secret).String()+"@", 1)
	env := []string{"NODE_USE_ENV_PROXY=1"}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		env = append(env, name+"="+at)
	}
	return env
}

// needsProxy says whether agents and gates are told of the proxy: when it opens
// something, and where there is no other way out, so that a refusal says what to do.
func (r *Runner) needsProxy(hosts []string) bool { return len(hosts) > 0 || r.cut }

// cutOff reports whether this sandbox has no network but its own loopback: there
// is no way to any address. Nothing is sent.
func cutOff() bool {
	for _, out := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // of documentation, nobody's
		conn, err := net.Dial("udp", out)
		if err != nil {
			continue
		}
		// It was never used.
		_ = conn.Close()
		return false
	}
	return true
}
