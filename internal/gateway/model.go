package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
)

const (
	// MaxModelRequest bounds a request to a model, in bytes: a long context with images.
	MaxModelRequest = 32 << 20
	modelHeaders    = 2 * time.Minute // until the provider begins to answer
	modelBody       = 5 * time.Minute // until the sandbox has sent its request
)

// ModelPolicy decides whether a request may use a provider. Its error's kind
// becomes the status.
type ModelPolicy interface {
	ModelAccess(r *http.Request, provider string) (ModelGrant, error)
}

// ModelGrant says for whom a request is forwarded.
type ModelGrant struct {
	Town, Run string
	Epoch     int64
	Limited   bool // the provider refused the run, or others of its town, lately
	Budgeted  bool // what it spends is limited: it needs a share of a budget first
}

// ModelConfig is what a model gateway is made of. Prefix is required.
type ModelConfig struct {
	Prefix     string            // of the paths: <prefix>{provider}/...
	Limits     ModelLimits       // hears of limits; nil: nobody does
	Meter      ModelMeter        // hears what answers used; nil: nobody does
	Budget     ModelBudget       // gives shares to requests whose grant is Budgeted; nil: nobody needs any
	WaitHeader string            // header that tells of a limit: milliseconds to wait, -1 when not stated; "": none
	AwayHeader string            // header of answers that mean: ask again later, nothing happened; "": none
	Transport  http.RoundTripper // default: one with sane limits
	Log        *slog.Logger      // default: discards
}

// model forwards requests to providers.
type model struct {
	providers *Providers
	policy    ModelPolicy
	cfg       ModelConfig
	proxy     *httputil.ReverseProxy
	log       *slog.Logger
}

// NewModel forwards <prefix>{provider}/... to the provider's base URL, with the
// provider's key in place of whatever the caller sent to identify itself. What
// it answers streams through. Redirects are refused, not followed: they could
// lead the key elsewhere.
func NewModel(p *Providers, policy ModelPolicy, cfg ModelConfig) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Transport == nil {
		cfg.Transport = modelTransport()
	}
	m := &model{providers: p, policy: policy, cfg: cfg, log: cfg.Log}
	m.proxy = &httputil.ReverseProxy{
		Rewrite:        m.rewrite,
		Transport:      cfg.Transport,
		FlushInterval:  -1, // at once: an answer is read as it comes
		ModifyResponse: m.answered,
		ErrorHandler:   m.failed,
		ErrorLog:       slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	return m
}

// modelTransport has no limit on the length of an answer, only on its beginning.
func modelTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: modelHeaders,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   32,
		DisableCompression:    true, // what the agent did not ask for, it does not get
	}
}

// ServeHTTP asks the policy, finds the provider, and forwards.
func (m *model) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, rest, err := m.split(r.URL)
	if err != nil {
		m.fail(w, err)
		return
	}
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		m.fail(w, errs.New(errs.Invalid, "only GET and POST are forwarded"))
		return
	}
	grant, err := m.policy.ModelAccess(r, name)
	if err != nil {
		if errs.Is(err, errs.Unavailable) {
			m.away(w)
		}
		m.fail(w, err)
		return
	}
	paid, err := addressOf(r.Method, rest)
	if err != nil {
		m.fail(w, err)
		return
	}
	target, by, err := m.target(name, rest, r.URL.RawQuery)
	if err != nil {
		if errs.Is(err, errs.NotFound) {
			problem(w, http.StatusFailedDependency, errs.Conflict, "the model provider "+name+" is not configured on the server", AddHint)
			return
		}
		m.fail(w, err)
		return
	}
	var share Share
	if m.cfg.Budget != nil && grant.Budgeted && paid {
		need := estimate(r.ContentLength)
		if share, err = m.cfg.Budget.Reserve(r.Context(), grant, need.Total(), by.priceOf("").Of(need)); err != nil {
			m.fail(w, err)
			return
		}
		defer share.End()
	}
	rc := http.NewResponseController(w)
	// A provider may answer before it has read all: see to it that its answer is
	// not cut. Recorders in tests know no duplex.
	_ = rc.EnableFullDuplex()
	// The read deadline may not outlive the body: at its end the answer may have
	// just begun. Recorders in tests know no deadlines.
	_ = rc.SetReadDeadline(time.Now().Add(modelBody))
	sent := &request{ReadCloser: &endingBody{ReadCloser: http.MaxBytesReader(w, r.Body, MaxModelRequest), end: func() { _ = rc.SetReadDeadline(time.Time{}) }}}
	r.Body = sent
	out := *r.WithContext(context.WithValue(r.Context(), askedKey{}, asked{grant, by, paid, sent, share}))
	out.URL = target
	out.Header = cleanRequest(r.Header)
	by.identify(out.Header)
	if m.cfg.Meter != nil {
		out.Header.Del("Accept-Encoding") // the usage is read on the way
	}
	m.proxy.ServeHTTP(w, &out)
}

// split takes the path apart: <prefix>{provider}/<rest>. Rest may not lead out
// of the provider's base path, in whatever spelling.
func (m *model) split(u *url.URL) (provider, rest string, err error) {
	bad := errs.New(errs.Invalid, "this is no address of a model API").WithHint("use %s<provider>/...", m.cfg.Prefix)
	p, ok := strings.CutPrefix(u.EscapedPath(), m.cfg.Prefix)
	if !ok {
		return "", "", bad
	}
	provider, rest, _ = strings.Cut(p, "/")
	if !providerRE.MatchString(provider) {
		return "", "", bad
	}
	if rest == "" {
		return provider, "", nil
	}
	for part := range strings.SplitSeq(rest, "/") {
		plain, err := url.PathUnescape(part)
		if err != nil || plain == "." || plain == ".." || plain == "" ||
			strings.ContainsFunc(plain, func(r rune) bool { return r == '/' || r == '\\' || r < ' ' || r == 0x7f || r == '%' }) {
			return "", "", bad
		}
	}
	return provider, rest, nil
}

// target is where a request goes, and whose key it needs.
func (m *model) target(name, rest, query string) (*url.URL, Provider, error) {
	p, err := m.providers.Get(name)
	if err != nil {
		return nil, p, err
	}
	u, err := parseBase(p.BaseURL, p.AllowHTTP)
	if err != nil {
		return nil, p, err
	}
	raw := strings.TrimRight(u.EscapedPath(), "/")
	if rest != "" {
		raw += "/" + rest
	}
	if u.Path, err = url.PathUnescape(raw); err != nil {
		return nil, p, errs.New(errs.Invalid, "the address can't be read")
	}
	u.RawPath, u.RawQuery = raw, cleanQuery(query)
	return u, p, nil
}

// identify adds the key in the way of the provider's kind.
func (p Provider) identify(h http.Header) {
	kind, _ := kindOf(p.Kind)
	switch {
	case p.Key == "":
	case kind.header != "":
		h.Set(kind.header, p.Key)
	default:
		h.Set("Authorization", "Bearer "+p.Key)
	}
}

// rewrite passes on what ServeHTTP prepared.
func (m *model) rewrite(p *httputil.ProxyRequest) {
	p.Out.Host = p.In.URL.Host
	if p.Out.Header.Get("User-Agent") == "" {
		p.Out.Header.Set("User-Agent", "gastown") // not the library's own
	}
}

// identifies reports whether a request's header says who asks, or belongs to
// this hop alone, or makes another request of it.
func identifies(name string) bool {
	name = strings.ToLower(name)
	for _, prefix := range []string{"gastown-", "x-forwarded", "proxy-", "cf-", "sec-", "x-amz-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	switch name {
	case "authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "cookie2", "forwarded", "x-real-ip", "via", "origin", "referer",
		"openai-organization", "openai-project", "x-auth-token", "x-access-token", "x-goog-user-project",
		"x-goog-fieldmask", // what would leave the usage out of an answer
		"x-http-method-override", "x-http-method", "x-method-override",
		"connection", "upgrade", "te", "trailer", "transfer-encoding", "keep-alive", "expect":
		return true
	}
	return false
}

func cleanRequest(h http.Header) http.Header {
	out := h.Clone()
	// A header that Connection names is of this hop, too.
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for name := range out {
		if identifies(name) {
			delete(out, name)
		}
	}
	return out
}

var errRedirect = errors.New("the provider answered with a redirect")

// cleanResponse lets pass what an agent needs to read the answer and to slow down.
func cleanResponse(resp *http.Response) error {
	if resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
		return errRedirect
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return errors.New("the provider wants another protocol")
	}
	for name := range resp.Header {
		switch lower := strings.ToLower(name); lower {
		case "set-cookie", "set-cookie2", "alt-svc", "strict-transport-security", "server", "via", "www-authenticate", "proxy-authenticate",
			"clear-site-data", "openai-organization", "openai-project", "nel", "report-to", "refresh", "link":
			delete(resp.Header, name)
		default:
			if strings.HasPrefix(lower, "access-control-") || strings.HasPrefix(lower, "cf-") || strings.HasPrefix(lower, "gastown-") {
				delete(resp.Header, name)
			}
		}
	}
	resp.Header.Set("X-Content-Type-Options", "nosniff")
	return nil
}

// failed answers when the provider could not be asked or its answer not used.
func (m *model) failed(w http.ResponseWriter, r *http.Request, err error) {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		problem(w, http.StatusRequestEntityTooLarge, errs.Invalid, "the request to the model is larger than 32 MiB", "")
	case r.Context().Err() != nil:
		m.log.Debug("a request to a model was given up by its sender")
		if a, ok := r.Context().Value(askedKey{}).(asked); ok {
			m.unheard(a)
		}
		// Its sender may be there all the same, when it is the server that ends.
		m.away(w)
		problem(w, http.StatusServiceUnavailable, errs.Unavailable, "the server is stopping", "try again in a moment")
	case errors.Is(err, errRedirect):
		problem(w, http.StatusBadGateway, errs.Unavailable, "the model provider answered with a redirect, which is not followed",
			"correct the provider's base URL on the server")
	default:
		m.log.Warn("a model provider can't be reached", "host", r.URL.Host, "err", err)
		problem(w, http.StatusBadGateway, errs.Unavailable, "the model provider can't be reached", "")
	}
}

// away marks an answer that is to come.
func (m *model) away(w http.ResponseWriter) {
	if m.cfg.AwayHeader != "" {
		w.Header().Set(m.cfg.AwayHeader, "1")
	}
}

func (m *model) fail(w http.ResponseWriter, err error) {
	kind := errs.KindOf(err)
	detail, hint := err.Error(), ""
	var e *errs.Error
	if errors.As(err, &e) && e.Hint != "" {
		hint = e.Hint
		detail = strings.TrimSuffix(detail, " ("+e.Hint+")")
	}
	if kind == errs.Internal {
		m.log.Error("a request to a model failed", "err", err)
		detail = "the server failed; its log says more"
	}
	if e != nil && e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
		if kind == errs.Overloaded && m.cfg.WaitHeader != "" {
			w.Header().Set(m.cfg.WaitHeader, strconv.FormatInt(e.RetryAfter.Milliseconds(), 10))
		}
	}
	problem(w, errs.HTTPStatus(kind), kind, detail, hint)
}

func problem(w http.ResponseWriter, status int, kind errs.Kind, detail, hint string) {
	w.Header().Set("Content-Type", api.ProblemType)
	w.WriteHeader(status)
	// The client may be gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(api.Problem{Title: http.StatusText(status), Status: status, Kind: string(kind), Detail: detail, Hint: hint})
}

// endingBody calls end once when the body was read or closed.
type endingBody struct {
	io.ReadCloser
	end func()
}

// Read passes on, and notes the end.
func (b *endingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}
