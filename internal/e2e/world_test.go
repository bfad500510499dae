//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/app"
	"gastown/internal/client"
)

// TestServersComeAndGo has real servers, runners, agents and repositories
// stopped, killed and frozen in the middle of everything, and looks at what
// remains. A failing random case is repeated with GASTOWN_E2E_SEED.
func TestServersComeAndGo(t *testing.T) {
	program := builtProgram(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, string)
	}{
		{"killed servers finish every bead once", testKilledServers},
		{"restarts leave a sleeping town alone", testRestartsAsleep},
		{"restarts find an awake town's sandbox again", testRestartsAwake},
		{"a model request is held over a restart of the server", testHeldRequests},
		{"SIGTERM leaves sandboxes to the next server", testTerminated},
		{"SIGINT at a terminal drains sandboxes", testInterrupted},
		{"a second SIGINT leaves at once", testInterruptedTwice},
		{"a second server on a data directory is refused", testTwoServers},
		{"a full disk refuses writes and loses nothing", testFullDisk},
		{"new work moves at once from a town that nobody had in memory", testRearm},
		{"a killed runner costs no attempt and little work", testKilledRunner},
		{"a killed agent goes on from its checkpoint", testKilledAgent},
		{"an interrupted bead loses at most the newest of its files", testNumbers},
		{"a tool that prints is left alone, one that is silent is started again", testStuck},
		{"a frozen server does not hold its own silence against a run", testFrozenServer},
		{"a frozen runner is replaced", testFrozenRunner},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, program)
		})
	}
}

// world is a data directory and what surrounds it: a repository, agents, and
// servers that come and go. All its processes carry root in their environment.
type world struct {
	t          *testing.T
	program    string
	root, data string
	upstream   string   // the bare repository that work lands in
	private    *private // how the server reaches it; nil: by its path
	args, env  []string
	server     *life // the newest
	api        *client.Client
	town       string // id
	release    string // the file that held beads wait for
}

// life is one process of a server.
type life struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
	url   string
}

// newWorld makes everything but a server; settings are those of all its servers.
func newWorld(t *testing.T, program string, settings ...string) *world {
	t.Helper()
	// Not t.TempDir: with the test's name in it, the path of a socket gets too long.
	root, err := os.MkdirTemp("", "gastown-e2e-")
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, program: program, root: root, data: filepath.Join(root, "data"), upstream: filepath.Join(root, "upstream.git"),
		release: filepath.Join(root, "release")}
	w.env = []string{"HOME=" + root, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1",
		envIsolation + "=" + os.Getenv(envIsolation), // in a box processes have numbers of their own
		"GIT_AUTHOR_NAME=T", "GIT_AUTHOR_EMAIL=t@localhost", "GIT_COMMITTER_NAME=T", "GIT_COMMITTER_EMAIL=t@localhost"}
	set := map[string]string{"alarm.idle_interval": "1s", "alarm.active_interval": "200ms", "sandbox.grace": "1s", "sandbox.stop_grace": "2s",
		"work.backoff": "10ms", "infra.backoff_min": "10ms", "infra.backoff_max": "200ms"}
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		set[key] = value
	}
	for key, value := range set {
		w.args = append(w.args, "--set", key+"="+value)
	}
	t.Cleanup(w.end)
	work := filepath.Join(root, "seed")
	w.git("init", "-q", "--bare", "-b", "main", w.upstream)
	w.git("init", "-q", "-b", "main", work)
	w.write(filepath.Join(work, "list.txt"), "first\n")
	w.git("-C", work, "add", "-A")
	w.git("-C", work, "commit", "-q", "-m", "first")
	w.git("-C", work, "push", "-q", w.upstream, "main")
	return w
}

func (w *world) write(path, text string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) git(args ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = w.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// end kills whatever is left and tells what helps when the test failed.
func (w *world) end() {
	if w.server != nil {
		w.kill()
	}
	deadline := time.Now().Add(patience)
	for left := processesOf(w.root); len(left) > 0; left = processesOf(w.root) {
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
		}
		if time.Now().After(deadline) {
			w.t.Errorf("processes are left: %v", left)
			break
		}
	}
	defer func() {
		if err := os.RemoveAll(w.root); err != nil {
			w.t.Error(err)
		}
	}()
	if !w.t.Failed() {
		return
	}
	for _, pattern := range []string{filepath.Join(w.root, "server.log"), filepath.Join(w.data, "sandboxes", "*", "runner.log")} {
		files, _ := filepath.Glob(pattern) // the pattern is good
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				w.t.Logf("%s ends with:\n%s", filepath.Base(f), b[max(0, len(b)-6000):])
			}
		}
	}
}

// begin starts a server and does not wait for it. It joins the environment of
// the world; stdin may be nil.
func (w *world) begin(stdin *os.File) {
	w.t.Helper()
	log, err := os.OpenFile(filepath.Join(w.root, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	l := &life{ended: make(chan struct{})}
	l.cmd = exec.Command(w.program, append([]string{"--data", w.data, "serve", "--listen", "127.0.0.1:0"}, w.args...)...)
	l.cmd.Env, l.cmd.Dir, l.cmd.Stdout, l.cmd.Stderr = w.env, w.root, log, log
	if stdin != nil {
		l.cmd.Stdin = stdin
	}
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := l.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		_ = l.cmd.Wait() // who asks looks at ProcessState
		close(l.ended)
	}()
	w.server, w.api = l, nil
}

// start starts a server and waits until it is ready.
func (w *world) start() {
	w.t.Helper()
	w.begin(nil)
	w.ready()
}

// ready waits until the newest server is ready.
func (w *world) ready() {
	w.t.Helper()
	w.until("a ready server", func(ctx context.Context) error {
		select {
		case <-w.server.ended:
			w.t.Fatalf("the server ended: %v", w.server.cmd.ProcessState)
		default:
		}
		loc, err := app.ReadLocation(w.data)
		if err != nil {
			return err
		}
		if loc.PID != w.server.cmd.Process.Pid {
			return errors.New("only the address of an older server is known")
		}
		c, err := client.New(client.Options{URL: loc.URL, Token: w.token()})
		if err == nil {
			err = c.Ready(ctx)
		}
		w.api, w.server.url = c, loc.URL
		return err
	})
}

// token is the admin token, "" before there is one.
func (w *world) token() string {
	b, err := os.ReadFile(filepath.Join(w.data, app.TokenFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (w *world) signal(s syscall.Signal) {
	w.t.Helper()
	if err := w.server.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		w.t.Fatal(err)
	}
}

// kill ends the server as a crash does.
func (w *world) kill() {
	w.t.Helper()
	w.signal(syscall.SIGKILL)
	w.over()
}

// over waits until the server's process is gone.
func (w *world) over() {
	w.t.Helper()
	select {
	case <-w.server.ended:
	case <-time.After(patience):
		w.t.Fatalf("the server did not end within %s", patience)
	}
}

// until calls try every 25 ms until it returns no error.
func (w *world) until(what string, try func(context.Context) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("waiting for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// pass lets real time pass, where the passing of time is what is tested.
func pass(d time.Duration) { <-time.After(d) }

// settle makes the town acme with the rig web.
func (w *world) settle(gates ...api.Gate) {
	w.t.Helper()
	w.addRig(api.AddRig{URL: w.upstream, Gates: gates})
}

func (w *world) addRig(rig api.AddRig) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	town, err := w.api.CreateTown(ctx, api.CreateTown{Name: "acme"})
	if err == nil {
		w.town = town.ID
		rig.Name, rig.Prefix, rig.Settings = "web", "web", map[string]string{"agent": "scripted"}
		_, err = w.api.AddRig(ctx, "acme", rig)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// sling gives the town a bead whose body is blocks of shell, and returns its id.
func (w *world) sling(title string, blocks ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, err := w.api.CreateBead(ctx, "acme", api.CreateBead{Rig: "web", Title: title, Body: body(blocks...)})
	if err != nil {
		w.t.Fatal(err)
	}
	return b.ID
}

// body makes a bead's body: blocks of shell, of which one may begin with
// "attempt=N" on a line of its own.
func body(blocks ...string) string {
	var s strings.Builder
	for _, b := range blocks {
		info := "sh"
		if first, rest, ok := strings.Cut(b, "\n"); ok && strings.HasPrefix(first, "attempt=") {
			info, b = "sh "+first, rest
		}
		fmt.Fprintf(&s, "```%s\n%s\n```\n", info, b)
	}
	return s.String()
}

// held is a script that works until the world's file "release" exists.
func (w *world) held() string {
	return "while [ ! -e '" + w.release + "' ]; do sleep 0.05; done\necho done > \"$GASTOWN_BEAD.txt\""
}

// closed waits until a bead is closed, and fails when it can't be any more.
func (w *world) closed(id string) (b api.Bead) {
	w.t.Helper()
	w.until(id+" to be closed", func(ctx context.Context) (err error) {
		if b, err = w.api.Bead(ctx, id); err != nil {
			return err
		}
		switch b.Status {
		case "closed":
			return nil
		case "failed", "cancelled":
			w.t.Fatalf("%s is %s: %+v", id, b.Status, b.Failures)
		}
		return fmt.Errorf("it is %s: %+v", b.Status, b.Why)
	})
	return b
}

// spawned waits until a bead's agent is at work in a later run than one of epoch after.
func (w *world) spawned(id string, after int64) (run api.Run) {
	w.t.Helper()
	w.until("an agent on "+id, func(ctx context.Context) error {
		b, err := w.api.Bead(ctx, id)
		if err != nil {
			return err
		}
		for _, r := range b.Runs {
			if r.Epoch > after && r.State == "running" && r.PID > 0 {
				run = r
				return nil
			}
		}
		return fmt.Errorf("it is %s: %+v; %+v", b.Status, b.Why, b.Failures)
	})
	return run
}

func (w *world) sandbox() api.Sandbox {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	t, err := w.api.Town(ctx, "acme")
	if err != nil {
		w.t.Fatal(err)
	}
	return t.Sandbox
}

// asleep waits until the town is asleep and has nothing to do ever.
func (w *world) asleep() {
	w.t.Helper()
	w.until("a sleeping town", func(ctx context.Context) error {
		towns, err := w.api.Towns(ctx)
		if err == nil && (len(towns) != 1 || towns[0].Sandbox != "asleep" || !towns[0].DueAt.IsZero()) {
			err = fmt.Errorf("it is %+v", towns)
		}
		return err
	})
}

// heard waits until the server heard from the sandbox after a time. A time in
// the future is no word but forgiveness: the server did not listen for a while.
func (w *world) heard(after time.Time) {
	w.t.Helper()
	w.until("a word from the sandbox", func(ctx context.Context) error {
		t, err := w.api.Town(ctx, "acme")
		if err == nil && (!t.Sandbox.LastSeen.After(after) || t.Sandbox.LastSeen.After(time.Now())) {
			err = fmt.Errorf("the last was at %s, not after %s", t.Sandbox.LastSeen, after)
		}
		return err
	})
}

// ledger returns the entries of some kinds, or all.
func (w *world) ledger(kinds ...string) (out []api.LedgerEntry) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	all, err := w.api.Ledger(ctx, "acme", client.LedgerQuery{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range all {
		if len(kinds) == 0 || slices.Contains(kinds, e.Kind) {
			out = append(out, e)
		}
	}
	return out
}

// metrics are the samples of /metrics.
type metrics map[string]float64

func (w *world) metrics(ctx context.Context) (metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.server.url+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+w.token())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(res.Body); err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d, %w", res.StatusCode, err)
	}
	m := metrics{}
	for line := range strings.Lines(text.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			name, _, _ = strings.Cut(name, "{")
			m[name] += v
		}
	}
	return m, nil
}

// record is what the process driver wrote about the town's sandbox.
type record struct {
	Generation int64  `json:"generation"`
	PID        int    `json:"pid"`
	Start      string `json:"start"` // of the process
	Phase      string `json:"phase"`
}

func (w *world) record() (r record) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.data, "sandboxes", w.town, "gen.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// alive reports whether a process of the world runs; a zombie does not.
func (w *world) alive(pid int) bool {
	if processesAreVisible() {
		_, ok := processesOf(w.root)[pid]
		return ok
	}
	return syscall.Kill(pid, 0) == nil
}

// quiet puts the last server away and checks that nothing of the world runs.
func (w *world) quiet() {
	w.t.Helper()
	w.asleep()
	w.signal(syscall.SIGTERM)
	w.over()
	if !w.server.cmd.ProcessState.Success() {
		w.t.Errorf("the server ended with %s", w.server.cmd.ProcessState)
	}
	if left := processesOf(w.root); len(left) > 0 {
		w.t.Errorf("processes are left: %v", left)
	}
}
