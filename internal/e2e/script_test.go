//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gastown/internal/app"
	"gastown/internal/cli"
)

func TestMain(m *testing.M) {
	// The same on every machine: what is about boxes of bubblewrap asks for them.
	if os.Getenv(envIsolation) == "" {
		if err := os.Setenv(envIsolation, "none"); err != nil {
			panic(err)
		}
	}
	testscript.Main(m, map[string]func(){
		"ask-model": func() { os.Exit(askModel()) },
		"gastown":   func() { os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Process(""))) },
	})
}

// envIsolation names the variable with the default of --isolation.
const envIsolation = "GASTOWN_ISOLATION"

// waitAtMost bounds everything that a script waits for.
const waitAtMost = patience

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"ready":   waitReady,
			"until":   untilPrinted,
			"signal":  signalServer,
			"mkrepo":  makeScriptRepo,
			"json":    checkJSON,
			"hook":    serveHook,
			"refused": wantRefused,
			"titles":  badTitles,
			"files":   townFiles,
			"damage":  damageStore,
		},
	})
}

func setupScript(e *testscript.Env) error {
	for _, k := range []string{"GOCACHE", "GOPATH", "GOMODCACHE"} {
		if v := os.Getenv(k); v != "" {
			e.Setenv(k, v)
		}
	}
	if os.Getenv("GOCACHE") == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		e.Setenv("GOCACHE", filepath.Join(dir, "go-build"))
	}
	e.Setenv("GASTOWN_DATA", filepath.Join(e.WorkDir, "data"))
	e.Setenv("GIT_CONFIG_GLOBAL", os.DevNull)
	e.Setenv(envIsolation, os.Getenv(envIsolation))
	// The demo works below TMPDIR; it must leave nothing else there.
	e.Setenv("TMPDIR", filepath.Join(e.WorkDir, "tmp"))
	e.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitAtMost)
		defer cancel()
		if loc, err := app.ReadLocation(filepath.Join(e.WorkDir, "data")); err == nil && loc.PID > 0 {
			// A server that a failed script left; the script's own processes are killed without a word.
			_ = syscall.Kill(loc.PID, syscall.SIGKILL)
		}
		if _, err := os.Stat(filepath.Join(e.WorkDir, "data", "sandboxes")); err == nil {
			if err := app.StopSandboxes(ctx, app.Config{Data: filepath.Join(e.WorkDir, "data")}, time.Second, false); err != nil {
				e.T().Log("stopping sandboxes: ", err)
			}
		}
	})
	return os.MkdirAll(filepath.Join(e.WorkDir, "tmp"), 0o700)
}

// pollScript calls try every 20 ms until it says true.
func pollScript(ts *testscript.TestScript, what string, try func() bool) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(waitAtMost)
	for !try() {
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("%s did not happen within %s", what, waitAtMost)
		}
	}
}

// waitReady waits until the server of the data directory answers. A server that
// was started later than the last "ready" is told by its pid.
func waitReady(ts *testscript.TestScript, _ bool, _ []string) {
	before := ts.Getenv("SERVER_PID")
	pollScript(ts, "a ready server", func() bool {
		loc, err := app.ReadLocation(ts.MkAbs("data"))
		if err != nil || serverPID(loc) == before {
			return false
		}
		if ts.Exec("gastown", "town", "list", "--json") != nil {
			return false
		}
		ts.Setenv("SERVER_PID", serverPID(loc))
		return true
	})
}

func serverPID(l app.Location) string {
	b, err := json.Marshal(l.PID)
	if err != nil {
		return ""
	}
	return string(b)
}

// untilPrinted runs a command again and again until its output contains a text:
// until TEXT gastown why acme.
func untilPrinted(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND...")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	pollScript(ts, args[0], func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout"))
	})
}

// signalServer sends a signal to the server and waits until it is gone: signal TERM.
func signalServer(ts *testscript.TestScript, _ bool, args []string) {
	sig := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}[args[0]]
	loc, err := app.ReadLocation(ts.MkAbs("data"))
	ts.Check(err)
	ts.Check(syscall.Kill(loc.PID, sig))
	pollScript(ts, "the end of the server", func() bool {
		return errors.Is(syscall.Kill(loc.PID, 0), syscall.ESRCH)
	})
}

// makeScriptRepo makes a bare repository with one commit: mkrepo NAME.
func makeScriptRepo(ts *testscript.TestScript, _ bool, args []string) {
	bare, work := ts.MkAbs(args[0]), ts.MkAbs(args[0]+".work")
	ts.Check(os.MkdirAll(work, 0o755))
	ts.Check(os.WriteFile(filepath.Join(work, "README"), []byte("hello\n"), 0o644))
	for _, a := range [][]string{
		{"init", "-q", "--bare", "-b", "main", bare}, {"-C", work, "init", "-q", "-b", "main"}, {"-C", work, "add", "-A"},
		{"-C", work, "-c", "user.name=T", "-c", "user.email=t@localhost", "commit", "-q", "-m", "first"},
		{"-C", work, "push", "-q", bare, "main"},
	} {
		ts.Check(ts.Exec("git", a...))
	}
}

// checkJSON checks what demo --json printed: json FILE.
func checkJSON(ts *testscript.TestScript, _ bool, args []string) {
	var r struct {
		Town, Repo string
		Beads      []struct {
			ID, Title, Status, Commit string
			Attempts                  int
		}
		Sandbox struct {
			State   string
			Starts  int64
			AwakeMS int64 `json:"awake_ms"`
		}
		Renewed *int64 `json:"tokens_renewed"`
		Elapsed int64  `json:"elapsed_ms"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &r))
	again := 0
	for _, b := range r.Beads {
		if b.Status != "closed" || b.Commit == "" || b.Attempts < 1 {
			ts.Fatalf("bead %+v", b)
		}
		if b.Attempts > 1 {
			again++
		}
		ts.Check(ts.Exec("git", "--git-dir="+r.Repo, "merge-base", "--is-ancestor", b.Commit, "main"))
	}
	if len(r.Beads) < 6 || again < 2 || r.Sandbox.State != "asleep" || r.Sandbox.Starts < 1 || r.Sandbox.AwakeMS <= 0 || r.Renewed == nil || r.Elapsed <= 0 {
		ts.Fatalf("the report says %+v", r)
	}
	left, err := filepath.Glob(ts.MkAbs("tmp") + "/gastown-demo-*")
	if err != nil || len(left) != 1 || left[0] != filepath.Dir(r.Repo) {
		ts.Fatalf("the demo left %v, %v", left, err)
	}
	if _, err := os.Stat(r.Repo); errors.Is(err, fs.ErrNotExist) {
		ts.Fatalf("the repository %s is gone", r.Repo)
	}
}
