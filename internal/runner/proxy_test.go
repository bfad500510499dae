package runner

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"gastown/internal/runner/wire"
)

// hosts is a server that opens host.test and refuses all others.
type hosts struct {
	site *httptest.Server
}

func (h *hosts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != wire.PathTunnel || r.Header.Get(wire.HeaderRun) != "app-1.1" || r.Header.Get("Authorization") != "Bearer token-1" {
		http.Error(w, "{}", http.StatusBadRequest)
		return
	}
	if host := r.Header.Get(wire.HeaderHost); !strings.HasPrefix(host, "host.test:") {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"detail":"`+host+` is not open to rig app","hint":"gastown rig set app --allow-host"}`) // read by the runner
		return
	}
	in, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	out, err := net.Dial("tcp", strings.TrimPrefix(h.site.URL, "http://"))
	if err != nil {
		return
	}
	_, _ = io.WriteString(in, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+wire.TunnelProtocol+"\r\n\r\n") // the test sees what is missing
	go func() { _, _ = io.Copy(out, buf.Reader); _ = out.Close() }()
	_, _ = io.Copy(in, out)
	_ = in.Close()
}

// proxied is a loopback server of a runner, with one run that is known to its proxy.
func proxied(t *testing.T, tell func(string)) (*loopback, *proxyUser) {
	t.Helper()
	h := &hosts{site: httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Method+" "+r.Host+r.URL.Path+" "+r.Header.Get("Proxy-Authorization")) // the test reads it
	}))}
	t.Cleanup(h.site.Close)
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	a, err := newAPI(srv.URL, "token-1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLoopback(a, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = l.serve() }() // until it is closed
	t.Cleanup(func() { _ = l.close() })
	return l, l.proxy.admitRun("app-1.1", 1, tell)
}

// ask performs a request through the proxy of an environment.
func ask(t *testing.T, env []string, address string) (*http.Response, string, error) {
	t.Helper()
	var at *url.URL
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "HTTP_PROXY="); ok {
			var err error
			if at, err = url.Parse(v); err != nil {
				t.Fatal(err)
			}
		}
	}
	tr := &http.Transport{Proxy: http.ProxyURL(at), DisableKeepAlives: true}
	res, err := (&http.Client{Transport: tr}).Get(address)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body), res.Body.Close()
}

func TestPlainRequestsGoThroughTheProxy(t *testing.T) {
	t.Parallel()
	var told []string
	l, u := proxied(t, func(s string) { told = append(told, s) })
	res, body, err := ask(t, u.env(l.base), "http://host.test/a/b")
	if err != nil || res.StatusCode != 200 || body != "GET host.test/a/b " {
		t.Fatalf("%v %q %v", res, body, err)
	}
	for range 3 {
		res, body, err = ask(t, u.env(l.base), "http://other.test/")
		if err != nil || res.StatusCode != 403 || !strings.Contains(body, "gastown rig set app --allow-host") {
			t.Fatalf("%v %q %v", res, body, err)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], "other.test:80") {
		t.Errorf("told %q, want one refusal once", told)
	}
	if res, _, err = ask(t, []string{"HTTP_PROXY=" + strings.Replace(l.base, "://", "://app-1.1:wrong@", 1)}, "http://host.test/"); err != nil || res.StatusCode != 407 {
		t.Errorf("a wrong secret: %v, %v", res, err)
	}
	l.proxy.expel(u)
	if res, _, err = ask(t, u.env(l.base), "http://host.test/"); err != nil || res.StatusCode != 407 {
		t.Errorf("after the run: %v, %v", res, err)
	}
}

func TestAConnectionEndsWithItsRun(t *testing.T) {
	t.Parallel()
	l, u := proxied(t, func(string) {})
	conn, err := net.Dial("tcp", l.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := &http.Request{Method: "CONNECT", URL: &url.URL{Opaque: "host.test:443"}, Host: "host.test:443", Header: http.Header{}}
	r0 := &http.Request{Header: http.Header{}}
	r0.SetBasicAuth(u.name, u.secret)
	req.Header.Set("Proxy-Authorization", r0.Header.Get("Authorization"))
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, req)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%v, %v", res, err)
	}
	if _, err := io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if res, err = http.ReadResponse(r, nil); err != nil {
		t.Fatal(err)
	}
	if body := make([]byte, res.ContentLength); true {
		if _, err := io.ReadFull(res.Body, body); err != nil || string(body) != "GET h/x " {
			t.Fatalf("%q, %v", body, err)
		}
	}
	l.proxy.expel(u)
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection outlives its run")
	}
}
