package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/vault"
)

const modelPrefix = "/runner/v1/model/"

type policyFunc func(r *http.Request, provider string) error

func (f policyFunc) ModelAccess(r *http.Request, provider string) (ModelGrant, error) {
	return ModelGrant{Town: "t1", Run: "web-aaaaa.1", Epoch: 1, Limited: true}, f(r, provider)
}

func anyone(*http.Request, string) error { return nil }

// newModelLab serves the gateway in front of an upstream that calls answer.
func newModelLab(t *testing.T, answer http.HandlerFunc) (base string, log *lockedBuffer) {
	t.Helper()
	return newLimitLab(t, answer, nil)
}

func newLimitLab(t *testing.T, answer http.HandlerFunc, limits ModelLimits) (base string, log *lockedBuffer) {
	t.Helper()
	up := httptest.NewServer(answer)
	t.Cleanup(up.Close)
	v, err := vault.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := NewProviders(v)
	if err := p.Put(Provider{Kind: KindOpenAICompatible, Name: "house", BaseURL: up.URL + "/base/v1", Key: "sk-real"}); err != nil {
		t.Fatal(err)
	}
	log = &lockedBuffer{}
	srv := httptest.NewServer(NewModel(p, policyFunc(anyone), ModelConfig{Prefix: modelPrefix, Limits: limits, WaitHeader: "Gastown-Wait-Ms",
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}))
	t.Cleanup(srv.Close)
	return srv.URL + modelPrefix, log
}

// lockedBuffer collects what several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func post(t *testing.T, address string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func TestTheProviderSeesTheKeyAndNobodysIdentity(t *testing.T) {
	t.Parallel()
	var asked atomic.Pointer[http.Request]
	base, log := newModelLab(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Clone(r.Context()))
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Retry-After", "7")
		w.Header().Set("X-Request-Id", "r1")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	res := post(t, base+"house/chat/completions?beta=1&key=run-token&%24Fields=candidates&x=y", strings.NewReader(`{}`), "Authorization", "Bearer sandbox-token", "X-Api-Key", "run-token",
		"Cookie", "c=d", "Gastown-Run", "web-aaaaa.1", "Gastown-Epoch", "1", "Proxy-Authorization", "Basic eA==", "Forwarded", "for=x",
		"X-Forwarded-For", "10.0.0.1", "X-Goog-FieldMask", "candidates", "X-HTTP-Method-Override", "DELETE", "Connection", "X-Secret-Hop", "X-Secret-Hop", "1", "Openai-Organization", "org", "Content-Type", "application/json", "X-Stainless-Lang", "js")
	seen := asked.Load()
	if res.StatusCode != 429 || res.Header.Get("Retry-After") != "7" || res.Header.Get("X-Request-Id") != "r1" || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("answer %d %v", res.StatusCode, res.Header)
	}
	if seen.URL.Path != "/base/v1/chat/completions" || seen.URL.RawQuery != "beta=1&x=y" || seen.Host == "" || strings.Contains(base, seen.Host) {
		t.Errorf("asked %s at %s", seen.URL, seen.Host)
	}
	if got := seen.Header.Get("Authorization"); got != "Bearer sk-real" {
		t.Errorf("authorization %q", got)
	}
	if seen.Header.Get("Content-Type") != "application/json" || seen.Header.Get("X-Stainless-Lang") != "js" {
		t.Errorf("lost what the API needs: %v", seen.Header)
	}
	for _, name := range []string{"X-Api-Key", "Cookie", "Gastown-Run", "Gastown-Epoch", "Proxy-Authorization", "Forwarded", "X-Forwarded-For", "X-Secret-Hop", "Openai-Organization", "X-Goog-FieldMask", "X-HTTP-Method-Override"} {
		if v := seen.Header.Get(name); v != "" {
			t.Errorf("%s: %q went through", name, v)
		}
	}
	if strings.Contains(log.String(), "sk-real") || strings.Contains(log.String(), "sandbox-token") {
		t.Error("a secret is in the log")
	}
}

func TestAnAnswerStreamsWhileItIsMade(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	base, _ := newModelLab(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: one\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-goOn
		_, _ = io.WriteString(w, "data: two\n\n")
	})
	res := post(t, base+"house/chat/completions", strings.NewReader(`{"stream":true}`))
	lines := bufio.NewReader(res.Body)
	first, err := lines.ReadString('\n') // before the provider has finished
	if err != nil || first != "data: one\n" {
		t.Fatalf("%q, %v", first, err)
	}
	close(goOn)
	rest, err := io.ReadAll(lines)
	if err != nil || !strings.Contains(string(rest), "two") {
		t.Errorf("%q, %v", rest, err)
	}
}

func wantProblem(t *testing.T, res *http.Response, status int, detail string) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.NewDecoder(res.Body).Decode(&p); err != nil || res.StatusCode != status || p.Status != status || !strings.Contains(p.Detail, detail) {
		t.Errorf("status %d, %+v, %v; want %d with %q", res.StatusCode, p, err, status, detail)
	}
	return p
}

func TestARedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	base, _ := newModelLab(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.example/", http.StatusTemporaryRedirect)
	})
	res := post(t, base+"house/responses", nil)
	if wantProblem(t, res, http.StatusBadGateway, "redirect"); res.Header.Get("Location") != "" {
		t.Errorf("location %q", res.Header.Get("Location"))
	}
}

func TestALargeRequestIsRefused(t *testing.T) {
	t.Parallel()
	base, _ := newModelLab(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	// A length that is announced is refused by what is read, not by what is said.
	res := post(t, base+"house/messages", io.LimitReader(zeros{}, MaxModelRequest+1))
	wantProblem(t, res, http.StatusRequestEntityTooLarge, "32 MiB")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAMissingProviderNamesTheCommand(t *testing.T) {
	t.Parallel()
	base, _ := newModelLab(t, nil)
	if p := wantProblem(t, post(t, base+"other/messages", nil), http.StatusFailedDependency, "other"); p.Hint != AddHint {
		t.Errorf("hint %q", p.Hint)
	}
}

func TestNoPathLeadsOutOfTheBase(t *testing.T) {
	t.Parallel()
	m := &model{cfg: ModelConfig{Prefix: modelPrefix}}
	for _, path := range []string{"", "house/../x", "house/%2e%2e/x", "house/%2E./x", "house/a%2fb", "house/a%2Fb", "house/a%5cb", "house//x", "house/a/", "house/%00",
		"house/%252e%252e/x", "HOUSE/x", "../x", "house/a%0d%0ab", "-x/y"} {
		u, err := url.Parse("http://gateway" + modelPrefix + path)
		if err != nil {
			continue
		}
		if provider, rest, err := m.split(u); err == nil {
			t.Errorf("%s: provider %q, rest %q", path, provider, rest)
		}
	}
}

func FuzzModelPath(f *testing.F) {
	for _, seed := range []string{"house/chat/completions", "house/../x", "house/%2e%2e/%2e%2e", "house/a%2fb", "house/%252e", "house/m:generate"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.Parse("http://gateway" + modelPrefix + path)
		if err != nil {
			return
		}
		m := &model{cfg: ModelConfig{Prefix: modelPrefix}}
		provider, rest, err := m.split(u)
		if err != nil {
			return
		}
		joined, err := url.Parse("http://up.example/base/v1/" + rest)
		if err != nil {
			t.Fatalf("%q does not parse", rest)
		}
		clean := joined.JoinPath().Path
		if !strings.HasPrefix(clean, "/base/v1") || strings.ContainsAny(joined.Path, "\r\n\\") || strings.ContainsAny(provider, "/.%") {
			t.Errorf("%q leads to %q", path, clean)
		}
	})
}

func TestProvidersAreCheckedAndKeepTheirKeys(t *testing.T) {
	t.Parallel()
	v, err := vault.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := NewProviders(v)
	good := Provider{Kind: KindOpenAICompatible, Name: "house", BaseURL: "https://models.example/v1/", Key: " sk-x\n", Models: []string{"org/m-1:free"}}
	if err := p.Put(good); err != nil {
		t.Fatal(err)
	}
	got, err := p.Get("house")
	if err != nil || got.Key != "sk-x" || got.BaseURL != "https://models.example/v1" {
		t.Errorf("got %+v, %v", got, err)
	}
	if text := got.String() + slog.AnyValue(got).Resolve().String(); strings.Contains(text, "sk-x") {
		t.Errorf("the key is in %q", text)
	}
	list, err := p.List()
	if err != nil || len(list) != 1 || list[0].Key != "" {
		t.Errorf("list %+v, %v", list, err)
	}
	for name, change := range map[string]func(*Provider){
		"another kind":           func(v *Provider) { v.Kind = "magic" },
		"a name with a slash":    func(v *Provider) { v.Name = "a/../b" },
		"http to elsewhere":      func(v *Provider) { v.BaseURL = "http://models.example/v1" },
		"another scheme":         func(v *Provider) { v.BaseURL = "file:///etc/passwd" },
		"no host":                func(v *Provider) { v.BaseURL = "https:///v1" },
		"credentials in it":      func(v *Provider) { v.BaseURL = "https://a:sk-leak@models.example/v1" },
		"a query":                func(v *Provider) { v.BaseURL = "https://models.example/v1?key=sk-leak" },
		"dots in its path":       func(v *Provider) { v.BaseURL = "https://models.example/v1/../.." },
		"a key of two lines":     func(v *Provider) { v.Key = "a\nb: sk-leak" },
		"a model with spaces":    func(v *Provider) { v.Models = []string{"a b"} },
		"a model like an option": func(v *Provider) { v.Models = []string{"--x"} },
	} {
		bad := good
		change(&bad)
		if err := p.Put(bad); !errs.Is(err, errs.Invalid) || strings.Contains(err.Error(), "sk-leak") {
			t.Errorf("%s: %v", name, err)
		}
	}
	good.Name, good.BaseURL, good.AllowHTTP = "lan", "http://10.0.0.5/v1", true
	if err := p.Put(good); err != nil {
		t.Errorf("http that was asked for: %v", err)
	}
	good.Name, good.BaseURL, good.AllowHTTP = "local", "http://[::1]:8080/v1", false
	if err := p.Put(good); err != nil {
		t.Errorf("http to this machine: %v", err)
	}
	if err := p.Delete("house"); err != nil {
		t.Error(err)
	}
	if _, err := p.Get("house"); !errs.Is(err, errs.NotFound) {
		t.Errorf("after deletion: %v", err)
	}
}
