package runner

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/agent/scripted"
	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/git/hub"
	"gastown/internal/runner/apart"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// The test binary is also the scripted agent: presets run "{self} agent scripted".
// "{self} runner URL DISK" is a runner in a process of its own, which can be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "agent" && os.Args[2] == "scripted" {
		err := scripted.Main(context.Background(), os.Stdin, os.Stdout, os.Stderr)
		var exit *scripted.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.Code)
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 4 && os.Args[1] == "runner" {
		if err := Main(context.Background(), testConfig(os.Args[2], os.Args[3], os.Args[0])); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Sessions of the scripted agent are kept below it.
	dir, err := os.MkdirTemp("", "scripted-sessions-")
	if err != nil {
		panic(err)
	}
	if err := os.Setenv("XDG_DATA_HOME", dir); err != nil {
		panic(err)
	}
	code := m.Run()
	// A leftover in the temporary directory harms nobody.
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

const (
	patience = 3 * time.Minute
	theBead  = "app-aaaaa"
	theRun   = "app-aaaaa.1"
	branch   = "gt/nux/app-aaaaa"
)

// fakeTown is a server of the wire protocol with a real hub behind it.
type fakeTown struct {
	t    testing.TB
	hub  *hub.Hub
	id   hub.ID
	dir  string // the hub's repository
	work string // a person's clone, to make commits in
	tip  string
	srv  *httptest.Server
	disk string
	gitH http.Handler

	mu          sync.Mutex // guards the fields below
	moved       chan struct{}
	doc         town.Desired
	token       string
	gone        bool
	down        bool
	stream      string
	next        int64
	reports     []town.Report
	calls       []string // "METHOD path" of all requests
	verdicts    []wire.VerdictRequest
	gates       []wire.GatesRequest
	transcripts []wire.TranscriptItem
	exchanged   int
	body        string // of the bead
	attempt     int
	reason      string
	onVerdict   func(wire.VerdictRequest) error
	onReports   func(wire.ReportsRequest) bool // true: take them, but answer nothing usable
	cut         map[string]int                 // answers to cut off, by path: the server acts, nobody hears
	streams     []string                       // of all hellos
	frozen      string
	model       http.Handler
}

func newTown(t testing.TB) *fakeTown {
	t.Helper()
	tmp := t.TempDir()
	f := &fakeTown{t: t, id: hub.ID{Town: "springfield", Rig: "app"}, work: filepath.Join(tmp, "person"),
		disk: filepath.Join(tmp, "disk"), moved: make(chan struct{}), next: 1, token: "token-1", attempt: 1, cut: map[string]int{}}
	up := filepath.Join(tmp, "up.git")
	f.must(tmp, "init", "-q", "--bare", "-b", "main", up)
	f.must(tmp, "init", "-q", "-b", "main", f.work)
	f.write(f.work, "a.txt", "one\n")
	f.write(f.work, ".gitignore", "ignored\n")
	f.must(f.work, "add", "-A")
	f.must(f.work, "commit", "-q", "-m", "first")
	f.must(f.work, "push", "-q", up, "main")
	var err error
	if f.hub, err = hub.Open(filepath.Join(tmp, "hub"), nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if f.tip, err = f.hub.Add(context.Background(), f.id, hub.Remote{URL: up, Target: "main"}, hub.AddOptions{}); err != nil {
		t.Fatal(err)
	}
	if f.dir, err = f.hub.Path(f.id); err != nil {
		t.Fatal(err)
	}
	f.gitH = gateway.NewGit(f.hub, f, nil, gateway.GitLimits{}, nil)
	f.doc = town.Desired{Town: "springfield", Generation: 1, Rev: 1, Heartbeat: 3_600_000,
		Rigs: []town.DesiredRig{{Name: "app", Target: "main", Tip: f.tip, Author: "Nux <nux@example.org>", CheckpointMS: 3_600_000, MaxFileMB: 1}}}
	f.srv = httptest.NewServer(f)
	t.Cleanup(f.srv.Close)
	return f
}

func (f *fakeTown) write(dir, name, text string) {
	f.t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeTown) try(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@x", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@x")
	out, err := cmd.CombinedOutput()
	return strings.TrimSuffix(string(out), "\n"), err
}

func (f *fakeTown) must(dir string, args ...string) string {
	f.t.Helper()
	out, err := f.try(dir, args...)
	if err != nil {
		f.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

// GitAccess implements gateway.GitPolicy.
func (f *fakeTown) GitAccess(r *http.Request, rig string) (gateway.GitGrant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer "+f.token {
		return gateway.GitGrant{}, errs.New(errs.Unauthorized, "no")
	}
	if rig != "app" {
		return gateway.GitGrant{}, errs.New(errs.NotFound, "no rig %q", rig)
	}
	g := gateway.GitGrant{ID: f.id}
	bead, epoch, ok := strings.Cut(r.Header.Get(wire.HeaderRun), ".")
	if ok && epoch == r.Header.Get(wire.HeaderEpoch) {
		g.Push = []gateway.PushRule{{Ref: "refs/heads/gt/nux/" + bead, Force: true, Frozen: f.frozen},
			{Ref: "refs/gastown/wip/" + bead + "/" + epoch, Force: true}}
		g.See = []string{"refs/gastown/wip/" + bead + "/"}
	}
	return g, nil
}

// change edits the state and wakes whoever waits.
func (f *fakeTown) change(edit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit()
	f.movedLocked()
}

func (f *fakeTown) movedLocked() {
	close(f.moved)
	f.moved = make(chan struct{})
}

// publish edits the document and raises its revision.
func (f *fakeTown) publish(edit func(d *town.Desired)) {
	f.change(func() { edit(&f.doc); f.doc.Rev++ })
}

// await returns when cond, which is called under the lock, holds.
func (f *fakeTown) await(what string, cond func() bool) {
	f.t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		f.mu.Lock()
		ok, moved := cond(), f.moved
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-moved:
		case <-end.C:
			f.mu.Lock()
			defer f.mu.Unlock()
			f.t.Fatalf("waited in vain for %s\nreports: %+v\nverdicts: %+v\ntranscript:\n%s", what, f.reports, f.verdicts, f.storyLocked())
		}
	}
}

func (f *fakeTown) storyLocked() string {
	var b strings.Builder
	for _, it := range f.transcripts {
		b.WriteString(it.Run + " " + strconv.FormatInt(it.Seq, 10) + " " + it.Kind + " " + string(it.Body) + "\n")
	}
	return b.String()
}

// awaitReport returns the first report of that kind, beyond skip earlier ones.
func (f *fakeTown) awaitReport(kind town.ReportKind, skip int) town.Report {
	f.t.Helper()
	var found town.Report
	f.await("report "+string(kind), func() bool {
		n := 0
		for _, r := range f.reports {
			if r.Kind == kind {
				if n == skip {
					found = r
					return true
				}
				n++
			}
		}
		return false
	})
	return found
}

func (f *fakeTown) awaitStory(part string) {
	f.t.Helper()
	f.await("transcript with "+part, func() bool { return strings.Contains(f.storyLocked(), part) })
}

// addRun wants a run of the one bead.
func (f *fakeTown) addRun(edit func(d *town.DesiredRun)) {
	d := town.DesiredRun{ID: theRun, Bead: theBead, Epoch: 1, Role: town.RolePolecat, Rig: "app", Agent: "nux", Preset: "scripted",
		Branch: branch, Base: f.tip, Start: f.tip, Prompt: "Do your work.", TimeLimitMS: 3_600_000, TurnNudges: 2}
	if edit != nil {
		edit(&d)
	}
	f.publish(func(doc *town.Desired) { doc.Runs = append(append([]town.DesiredRun(nil), doc.Runs...), d) })
}

func (f *fakeTown) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.calls = append(f.calls, r.Method+" "+r.URL.Path)
	f.movedLocked()
	gone, down, token, model := f.gone, f.down, f.token, f.model
	f.mu.Unlock()
	switch {
	case down:
		http.Error(w, "down", http.StatusServiceUnavailable)
	case r.URL.Path == wire.PathToken:
		f.change(func() { f.exchanged++ })
		f.answer(w, wire.TokenResponse{Token: token}, nil)
	case strings.HasPrefix(r.URL.Path, wire.PathGit):
		f.gitH.ServeHTTP(w, r)
	case r.Header.Get("Authorization") != "Bearer "+token:
		f.answer(w, nil, errs.New(errs.Unauthorized, "expired"))
	case gone:
		f.answer(w, nil, errs.New(errs.Gone, "generation 1 is over"))
	case strings.HasPrefix(r.URL.Path, wire.PathModel) && model != nil:
		model.ServeHTTP(w, r)
	case f.cutsOff(r.URL.Path):
		f.serveWire(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	default:
		f.serveWire(w, r)
	}
}

func (f *fakeTown) cutsOff(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut[path]--
	return f.cut[path] >= 0
}

func (f *fakeTown) answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(errs.HTTPStatus(errs.KindOf(err)))
		v = map[string]string{"detail": err.Error()}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Logf("answering: %v", err)
	}
}

func (f *fakeTown) serveWire(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case wire.PathHello:
		var q wire.HelloRequest
		f.read(r, &q)
		f.change(func() { f.stream, f.next, f.streams = q.Stream, 1, append(f.streams, q.Stream) })
		f.answer(w, f.document(), nil)
	case wire.PathDesired:
		f.poll(w, r)
	case wire.PathReports:
		f.takeReports(w, r)
	case wire.PathVerdict:
		f.takeVerdict(w, r)
	case wire.PathGates:
		var q wire.GatesRequest
		f.read(r, &q)
		f.change(func() { f.gates = append(f.gates, q) })
		f.answer(w, struct{}{}, nil)
	case wire.PathTranscripts:
		var q wire.TranscriptsRequest
		f.read(r, &q)
		f.change(func() { f.transcripts = append(f.transcripts, q.Items...) })
		f.answer(w, struct{}{}, nil)
	case wire.PathPrime:
		f.mu.Lock()
		id, _, _ := strings.Cut(r.URL.Query().Get("run"), ".")
		p := town.Prime{Bead: town.PrimeBead{ID: id, Title: "A title", Body: f.body}, Run: r.URL.Query().Get("run"),
			Attempt: f.attempt, Reason: f.reason, Branch: branch, Base: f.tip, Target: "main"}
		f.mu.Unlock()
		f.answer(w, p, nil)
	case wire.PathBead:
		f.answer(w, wire.BeadResponse{PrimeBead: town.PrimeBead{ID: r.URL.Query().Get("id")}, Status: town.BeadOpen}, nil)
	default:
		http.NotFound(w, r)
	}
}

func (f *fakeTown) read(r *http.Request, v any) {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		f.t.Errorf("%s: %v", r.URL.Path, err)
	}
}

func (f *fakeTown) document() town.Desired {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doc
}

func (f *fakeTown) poll(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		f.t.Errorf("after: %v", err)
	}
	for {
		f.mu.Lock()
		doc, moved, gone := f.doc, f.moved, f.gone
		f.mu.Unlock()
		if gone {
			f.answer(w, nil, errs.New(errs.Gone, "generation 1 is over"))
			return
		}
		if doc.Rev > after {
			f.answer(w, doc, nil)
			return
		}
		select {
		case <-moved:
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeTown) takeReports(w http.ResponseWriter, r *http.Request) {
	var q wire.ReportsRequest
	f.read(r, &q)
	f.mu.Lock()
	hook := f.onReports
	if q.Stream != f.stream || q.From != f.next {
		next := f.next
		f.mu.Unlock()
		w.WriteHeader(http.StatusConflict)
		f.answer(w, wire.ReportsResponse{Next: next}, nil)
		return
	}
	f.reports = append(f.reports, q.Items...)
	f.next += int64(len(q.Items))
	next := f.next
	f.movedLocked()
	f.mu.Unlock()
	if hook != nil && hook(q) {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	f.answer(w, wire.ReportsResponse{Next: next}, nil)
}

func (f *fakeTown) takeVerdict(w http.ResponseWriter, r *http.Request) {
	var q wire.VerdictRequest
	f.read(r, &q)
	f.mu.Lock()
	hook := f.onVerdict
	f.mu.Unlock()
	err := f.judge(q)
	if err == nil && hook != nil {
		err = hook(q)
	}
	f.change(func() {
		f.verdicts = append(f.verdicts, q)
		for i := range f.doc.Runs {
			if err == nil && f.doc.Runs[i].ID == q.Run && q.Kind != town.VerdictEscalate {
				f.doc.Runs = append([]town.DesiredRun(nil), f.doc.Runs...)
				f.doc.Runs[i].Verdict = town.Outcome(q.Kind)
				f.doc.Rev++
			}
		}
	})
	f.answer(w, struct{}{}, err)
}

func (f *fakeTown) judge(q wire.VerdictRequest) error {
	if q.Kind != town.VerdictDone {
		return nil
	}
	bead, _, _ := strings.Cut(q.Run, ".")
	e, err := f.hub.Verify(context.Background(), f.id, "gt/nux/"+bead, f.tip)
	switch {
	case err != nil:
		return err
	case !e.Exists || !e.DescendsFromBase:
		return errs.New(errs.Conflict, "the hub has no usable commit")
	case !e.Changed:
		return errs.New(errs.Conflict, "the commit changes nothing")
	}
	return nil
}

// testRunner is a runner in this process.
type testRunner struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// begin starts a runner for the town; edit may change its configuration.
func (f *fakeTown) begin(edit func(*Config)) *testRunner {
	f.t.Helper()
	self, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	cfg := testConfig(f.srv.URL, f.disk, self)
	cfg.Log = testLog(f.t)
	if edit != nil {
		edit(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &testRunner{t: f.t, stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = Main(ctx, cfg)
	}()
	f.t.Cleanup(func() { cancel(); <-r.done })
	return r
}

func testConfig(server, disk, self string) Config {
	return Config{Server: server, Disk: disk, Token: "token-1", SelfExe: self, Version: "test",
		Timing: Timing{BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond, Flush: time.Millisecond, StopGrace: 500 * time.Millisecond,
			VerdictGrace: 500 * time.Millisecond}}
}

// beginProcess starts a runner in a process group of its own, and returns how
// to kill it with everything in it, as the loss of a sandbox does.
func (f *fakeTown) beginProcess() (kill func()) {
	f.t.Helper()
	self, err := os.Executable()
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(self, "runner", f.srv.URL, f.disk)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
				f.t.Error(err)
			}
			// It was killed: that is its result.
			_ = cmd.Wait()
		})
	}
	f.t.Cleanup(kill)
	return kill
}

// wait returns how the runner ended.
func (r *testRunner) wait() error {
	r.t.Helper()
	select {
	case <-r.done:
		return r.err
	case <-time.After(patience):
		r.t.Fatal("the runner did not end")
		return nil
	}
}

// testLog sends the log to the test's, which shows it when the test fails.
func testLog(t testing.TB) *slog.Logger {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		sc := bufio.NewScanner(pr)
		for sc.Scan() {
			t.Log(sc.Text())
		}
	}()
	t.Cleanup(func() { _ = pw.Close(); <-done }) // a pipe's close can't fail
	return slog.New(slog.NewTextHandler(pw, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// none is the keeper that keeps nothing apart.
func none(t testing.TB) *apart.Keeper {
	t.Helper()
	k, err := apart.New(apart.None)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// commandPreset is a preset that runs a shell command as its agent.
func commandPreset(name, script string) agent.Preset {
	return agent.Preset{Name: name, Command: "/bin/sh", Args: []string{"-c", script}, Model: agent.ModelConfig{Kind: agent.ModelNone},
		InitTimeout: 5 * time.Second, SessionTimeout: 5 * time.Second, CancelTimeout: time.Second}
}
