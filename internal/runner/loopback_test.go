package runner

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// get performs a request on loopback with a credential of the caller's choice.
func get(t *testing.T, url string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }() // read below
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestTheModelProxyReplacesTheSecret(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	got := make(chan http.Header, 10)
	paths := make(chan string, 10)
	f.model = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Clone()
		paths <- r.URL.Path
		_, _ = io.WriteString(w, "answer")
	})
	h := f.play(func(d *town.DesiredRun) { d.Provider, d.Model = "acme", "m1" })
	m := h.session.Spec.Model
	if m == nil || m.Name != "m1" {
		t.Fatalf("model: %+v", m)
	}
	for _, cred := range [][]string{{"Authorization", "Bearer " + m.Key}, {"X-Api-Key", m.Key}} {
		status, body := get(t, m.BaseURL+"/chat/completions", append(cred, wire.HeaderRun, "forged", "Cookie", "c=1")...)
		if status != 200 || body != "answer" {
			t.Fatalf("%d %s", status, body)
		}
		head := <-got
		if head.Get("Authorization") != "Bearer token-1" || head.Get("X-Api-Key") != "" || head.Get("Cookie") != "" {
			t.Errorf("headers: %v", head)
		}
		if head.Get(wire.HeaderRun) != theRun || head.Get(wire.HeaderEpoch) != "1" {
			t.Errorf("headers: %v", head)
		}
		for k, v := range head {
			if strings.Contains(strings.Join(v, " "), m.Key) {
				t.Errorf("the run's secret went on in %s", k)
			}
		}
		if p := <-paths; p != wire.PathModel+"acme/chat/completions" {
			t.Errorf("path %s", p)
		}
	}
	close(h.release)
}

func TestLoopbackRefusesStrangersAndOddPaths(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.model = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a refused request went on") })
	h := f.play(func(d *town.DesiredRun) { d.Provider = "acme" })
	m := h.session.Spec.Model
	base := strings.TrimSuffix(m.BaseURL, "/model/"+theRun)
	key := []string{"Authorization", "Bearer " + m.Key}
	for _, c := range []struct {
		path   string
		header []string
		want   int
	}{
		{"/model/" + theRun + "/x", nil, 401},
		{"/model/" + theRun + "/x", []string{"Authorization", "Bearer wrong"}, 401},
		{"/model/" + theRun + "/x", []string{"Authorization", "Basic " + m.Key}, 401},
		{"/model/app-zzzzz.1/x", key, 401},
		{"/mcp/" + theRun, []string{"X-Api-Key", m.Key}, 401},
		{"/git/-/app.git/info/refs", key, 401},
		{"/git/-/app.git/info/refs", nil, 401},
		{"/", key, 401},
		{"/model/" + theRun + "/%2e%2e/%2e%2e/token", key, 404},
		{"/model/" + theRun + "/a/..%2f..%2ftoken", key, 404},
		{"/git/" + theRun + "/%2e%2e/token", key, 404},
		{"/other/" + theRun + "/x", key, 404},
	} {
		if status, body := get(t, base+c.path, c.header...); status != c.want {
			t.Errorf("%s %v: %d %s, want %d", c.path, c.header, status, body, c.want)
		}
	}
	close(h.release)
}

func TestModelAnswersStreamAndAreASignOfLife(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	next := make(chan struct{})
	f.model = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-next:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "second\n")
	})
	h := f.play(func(d *town.DesiredRun) { d.Provider = "acme" })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.session.Spec.Model.BaseURL+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.session.Spec.Model.Key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(res.Body, buf); err != nil || string(buf) != "first\n" {
		t.Fatalf("%q, %v", buf, err)
	}
	close(next)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "second\n" {
		t.Errorf("%q, %v", rest, err)
	}
	_ = res.Body.Close()
	// The agent then dies in mid-turn: the model had spoken, so it is the work's.
	h.session.Exit(io.ErrUnexpectedEOF)
	if e := f.awaitReport(town.ReportEnded, 0); e.Class != town.ClassWork {
		t.Errorf("ended: %+v", e)
	}
}

func TestAnAgentThatDiesBeforeTheModelSpokeIsInfrastructure(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(func(d *town.DesiredRun) { d.Provider = "acme" })
	h.session.Emit(agent.Event{Kind: agent.KindMessage, Text: "I can't find my licence"})
	h.session.Exit(io.ErrUnexpectedEOF)
	if e := f.awaitReport(town.ReportEnded, 0); e.Class != town.ClassInfra || e.Subject != "agent/scripted" {
		t.Errorf("ended: %+v", e)
	}
}

func TestATurnWithoutAGatewayIsInfrastructure(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.model = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	h := f.play(func(d *town.DesiredRun) { d.Provider = "acme" })
	if status, _ := get(t, h.session.Spec.Model.BaseURL+"/x", "X-Api-Key", h.session.Spec.Model.Key); status != 502 {
		t.Errorf("status %d", status)
	}
	close(h.release)
	if e := f.awaitReport(town.ReportEnded, 0); e.Class != town.ClassInfra || !strings.Contains(e.Reason, "model could not be reached") {
		t.Errorf("ended: %+v", e)
	}
}

func TestATurnThatEndsOverALimitWaitsForItAndCostsNothing(t *testing.T) {
	t.Parallel()
	for header, wait := range map[string][2]int64{"3600000": {3_500_000, 3_600_000}, "-1": {0, 0}} {
		for _, dies := range []bool{false, true} {
			f := newTown(t)
			f.model = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(wire.HeaderWait, header)
				w.WriteHeader(http.StatusTooManyRequests)
			})
			h := f.play(func(d *town.DesiredRun) { d.Provider = "acme" })
			if status, _ := get(t, h.session.Spec.Model.BaseURL+"/x", "X-Api-Key", h.session.Spec.Model.Key); status != 429 {
				t.Errorf("status %d", status)
			}
			if dies {
				h.session.Exit(io.ErrUnexpectedEOF)
			} else {
				close(h.release)
			}
			e := f.awaitReport(town.ReportEnded, 0)
			if e.Class != town.ClassLimit || e.Outcome != town.OutcomeStopped || !strings.Contains(e.Reason, "acme") || e.WaitMS < wait[0] || e.WaitMS > wait[1] {
				t.Errorf("header %s, dies %v: ended %+v", header, dies, e)
			}
		}
	}
}

func TestTheServerIsReachedThroughAUnixSocket(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	dir, err := os.MkdirTemp("", "gt") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go func() { _ = srv.Serve(ln) }() // ends with the test
	t.Cleanup(func() { _ = srv.Close() })
	f.body = script("echo hello > greeting.txt")
	f.addRun(nil)
	f.begin(func(c *Config) { c.Server = "unix://" + socket })
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestUnusableConfigurationsAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Config{
		"no token":      {Server: "http://127.0.0.1:1", Disk: t.TempDir()},
		"relative disk": {Server: "http://127.0.0.1:1", Disk: "disk", Token: "x"},
		"odd scheme":    {Server: "ftp://127.0.0.1", Disk: t.TempDir(), Token: "x"},
		"credentials":   {Server: "http://a:b@127.0.0.1", Disk: t.TempDir(), Token: "x"},
	} {
		if err := Main(context.Background(), c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestTheTokenIsReadFromADescriptor(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"token\n": "token", "": "", "two words": "", "a\nb": ""} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		fd := dupFD(t, r)
		if got, err := ReadToken(fd); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func TestAnAnswerThatBeginsBeforeItsRequestEndsIsNotCut(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.model = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "begun ")
		if err := rc.Flush(); err != nil {
			t.Error(err)
		}
		question, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("the request was cut: %v", err)
		}
		_, _ = w.Write(question)
	})
	h := f.play(func(d *town.DesiredRun) { d.Provider, d.Model = "acme", "m1" })
	body, pen := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = pen.CloseWithError(ctx.Err()) })() // an answer that was cut leaves the writer waiting
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.session.Spec.Model.BaseURL+"/chat", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.session.Spec.Model.Key)
	asked := make(chan error, 1)
	go func() {
		_, err := io.WriteString(pen, "first half, ")
		asked <- err
	}()
	res, err := http.DefaultClient.Do(req) // returns once the answer has begun
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }() // read below
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := io.WriteString(pen, "second half")
		if err == nil {
			err = pen.Close()
		}
		asked <- err
	}()
	answer, err := io.ReadAll(res.Body)
	if err := <-asked; err != nil {
		t.Errorf("the request could not be finished: %v", err)
	}
	if err != nil || string(answer) != "begun first half, second half" {
		t.Fatalf("%q, %v", answer, err)
	}
}
