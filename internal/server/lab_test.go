package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
	"gastown/internal/vault"
)

const (
	testToken = "test-admin-token-0123456789"
	tip       = "1111111111111111111111111111111111111111"
	tip2      = "2222222222222222222222222222222222222222"
)

// fakeHub is a hub of function fields.
type fakeHub struct {
	add    func(id hub.ID, r hub.Remote) (string, error)
	remove func(id hub.ID) error
	push   func(r hub.Remote) error
	verify func(id hub.ID, branch, base string) (hub.Evidence, error)
	diff   func(base, commit string) ([]byte, bool, error)
}

func (h *fakeHub) Add(_ context.Context, id hub.ID, r hub.Remote, _ hub.AddOptions) (string, error) {
	if h.add == nil {
		return tip, nil
	}
	return h.add(id, r)
}

func (h *fakeHub) MayPush(_ context.Context, _ hub.ID, r hub.Remote) error {
	if h.push == nil {
		return nil
	}
	return h.push(r)
}

func (h *fakeHub) RemoveRig(_ context.Context, id hub.ID) error {
	if h.remove == nil {
		return nil
	}
	return h.remove(id)
}

func (h *fakeHub) Verify(_ context.Context, id hub.ID, branch, base string) (hub.Evidence, error) {
	return h.verify(id, branch, base)
}

func (h *fakeHub) Diff(_ context.Context, _ hub.ID, base, commit string, _ int64) ([]byte, bool, error) {
	return h.diff(base, commit)
}

// performer answers effects as if all went well, and tells of started sandboxes.
type performer struct{ started chan town.StartSandbox }

func (p *performer) Perform(_ context.Context, _ hall.TownRef, e town.Effect) (any, error) {
	switch a := e.Action.(type) {
	case town.StartSandbox:
		p.started <- a
		return town.Started{Ref: "box"}, nil
	case town.InspectSandbox:
		return town.Inspected{State: "running"}, nil
	case town.FetchRig:
		return town.Fetched{Tip: tip, Writable: true}, nil
	case town.RemoveRig, town.CleanupBead, town.StopSandbox:
		return nil, nil
	}
	return nil, errs.New(errs.Unavailable, "not in this test")
}

// logBuffer collects log lines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// lab is a server over the real hall and a real store.
type lab struct {
	t      *testing.T
	srv    *Server
	http   *httptest.Server
	hub    *fakeHub
	vault  *vault.Vault
	hall   *hall.Hall
	store  *store.SQLite
	boxes  chan town.StartSandbox
	log    *logBuffer
	signer *Signer
	mu     sync.Mutex
	shift  time.Duration // of the server's clock, guarded by mu
}

func (l *lab) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.shift)
}

func (l *lab) advance(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shift += d
}

func newLab(t *testing.T, change ...func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, hub: &fakeHub{}, boxes: make(chan town.StartSandbox, 16), log: &logBuffer{}}
	var err error
	if l.vault, err = vault.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if l.signer, err = LoadSigner(l.vault); err != nil {
		t.Fatal(err)
	}
	if l.store, err = store.Open(t.Context(), t.TempDir(), store.Options{}); err != nil {
		t.Fatal(err)
	}
	presets, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l.hall = hall.New(hall.Config{Store: l.store, Perform: &performer{l.boxes}, Boot: "boot", Log: log,
		Server: town.Settings{"agent": "scripted"}, Limits: store.Limits{MaxAwake: 5, MaxStarting: 5}})
	cfg := Config{Hall: l.hall, Store: l.store, Hub: l.hub, Secrets: l.vault, Signer: l.signer, Presets: presets,
		Info: Info{Version: "test", Boot: "boot", StartedAt: time.Now(), Driver: "fake"}, AdminToken: testToken, Metrics: l.hall.Metrics(),
		Log: log, Now: l.now}
	for _, f := range change {
		f(&cfg)
	}
	if l.srv, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	l.http = httptest.NewServer(l.srv.Handler())
	t.Cleanup(func() {
		l.srv.Stop()
		l.http.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		l.hall.Stop(ctx)
		if err := l.store.Close(); err != nil {
			t.Error(err)
		}
		if err := l.vault.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// reply is what a request got.
type reply struct {
	t      *testing.T
	status int
	header http.Header
	body   []byte
}

// call sends a request as admin. headers are pairs.
func (l *lab) call(method, path string, in any, headers ...string) reply {
	l.t.Helper()
	return l.callAs(testToken, method, path, in, headers...)
}

func (l *lab) callAs(token, method, path string, in any, headers ...string) reply {
	l.t.Helper()
	var body io.Reader
	switch v := in.(type) {
	case nil:
	case string:
		body = strings.NewReader(v)
	default:
		b, err := json.Marshal(v)
		if err != nil {
			l.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(l.t.Context(), method, l.http.URL+path, body)
	if err != nil {
		l.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		l.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		l.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{l.t, res.StatusCode, res.Header, b}
}

// want checks the status and decodes the body into out, which may be nil.
func (r reply) want(status int, out any) reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if out != nil {
		if err := json.Unmarshal(r.body, out); err != nil {
			r.t.Fatalf("%v in %s", err, r.body)
		}
	}
	return r
}

// problem checks that the reply is a problem of a status and kind.
func (r reply) problem(status int, kind errs.Kind) api.Problem {
	r.t.Helper()
	var p api.Problem
	r.want(status, &p)
	if got := r.header.Get("Content-Type"); got != api.ProblemType {
		r.t.Fatalf("content type %q", got)
	}
	if p.Status != status || p.Kind != string(kind) || p.Detail == "" || p.Title == "" {
		r.t.Fatalf("got %+v, want status %d and kind %s", p, status, kind)
	}
	return p
}

// town makes a town with a rig web.
func (l *lab) town(name string) api.Town {
	l.t.Helper()
	var out api.Town
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: name}).want(201, &out)
	l.call("POST", "/api/v1/towns/"+name+"/rigs", api.AddRig{Name: "web", URL: "https://git.example/web.git"}).want(201, nil)
	return out
}

func (l *lab) bead(townName, title string) api.Bead {
	l.t.Helper()
	var out api.Bead
	l.call("POST", "/api/v1/towns/"+townName+"/beads", api.CreateBead{Title: title}).want(201, &out)
	return out
}

// staged makes a bead that wakes nobody.
func (l *lab) staged(townName, title string) api.Bead {
	l.t.Helper()
	var out api.Bead
	l.call("POST", "/api/v1/towns/"+townName+"/beads", api.CreateBead{Title: title, Staged: true}).want(201, &out)
	return out
}

// box waits for the start of a sandbox and returns its token.
func (l *lab) box(tn api.Town) (town.StartSandbox, string) {
	l.t.Helper()
	select {
	case b := <-l.boxes:
		return b, l.signer.Token(tn.ID, tn.Owner, b.Generation, b.TokenAt)
	case <-time.After(2 * time.Minute):
		l.t.Fatal("no sandbox was started")
	}
	panic("unreachable")
}
