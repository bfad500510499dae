package scripted_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/agent/agenttest"
	"gastown/internal/agent/scripted"
)

// TestMain makes the test program serve as the agent too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "agent" && os.Args[2] == "scripted" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		var exit *scripted.ExitError
		if err := scripted.Main(ctx, os.Stdin, os.Stdout, os.Stderr); errors.As(err, &exit) {
			os.Exit(exit.Code)
		}
		return
	}
	os.Exit(m.Run())
}

// bench is a scripted agent in a fresh repository.
type bench struct {
	t     *testing.T
	dir   string
	tools *agenttest.Tools
	s     *agent.Agent

	mu   sync.Mutex // guards text
	text strings.Builder
}

func newBench(t *testing.T, p agenttest.Prime) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), tools: agenttest.NewTools(t)}
	b.git("init", "-q", "-b", "main")
	b.git("commit", "-q", "--allow-empty", "-m", "base")
	p.Bead.ID, p.Bead.Title = "gt-7", "-m looks like\na flag"
	b.tools.Prime(p)
	presets, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b.s, err = agent.Start(ctx, agent.Spec{
		Preset: presets["scripted"], SelfExe: self, Dir: b.dir, MCP: []agent.MCPServer{b.tools.MCP()},
		Env: gitEnv(),
		OnEvent: func(e agent.Event) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if e.Kind != agent.KindToolCall {
				b.text.WriteString(e.Text)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.s.Close(5 * time.Second); err != nil {
			t.Error(err)
		}
	})
	return b
}

func gitEnv() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.com", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.com",
	}
}

func (b *bench) git(args ...string) string {
	b.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = b.dir, gitEnv()
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (b *bench) turn() string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stop, err := b.s.Prompt(ctx, "go")
	if err != nil || stop != agent.StopEndTurn {
		b.t.Fatalf("turn: %q, %v", stop, err)
	}
	return b.said()
}

func (b *bench) said() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *bench) calls() string {
	var names []string
	for _, c := range b.tools.Calls() {
		names = append(names, c.Tool)
	}
	return strings.Join(names, " ")
}

func body(s string) agenttest.Prime {
	return agenttest.Prime{Attempt: 1, Bead: agenttest.Bead{Body: s}}
}

func TestWorkIsCommittedAndDoneIsCalled(t *testing.T) {
	t.Parallel()
	b := newBench(t, body("```sh\necho hi > a.txt; echo \"$GASTOWN_BEAD $GASTOWN_ATTEMPT $GASTOWN_NUDGE\"\n```\n"))
	if said := b.turn(); !strings.Contains(said, "gt-7 1 0") || !strings.Contains(said, "Committed.") {
		t.Errorf("said: %s", said)
	}
	if b.calls() != "prime done" {
		t.Errorf("calls: %s", b.calls())
	}
	if s, ok := b.tools.Calls()[1].Args["summary"].(string); !ok || !strings.Contains(s, "looks like a flag") {
		t.Errorf("summary: %v", b.tools.Calls()[1].Args)
	}
	if got := b.git("log", "-1", "--format=%s", "--name-only"); !strings.Contains(got, "-m looks like a flag") || !strings.Contains(got, "a.txt") {
		t.Errorf("commit: %s", got)
	}
	if got := b.git("status", "--porcelain"); got != "" {
		t.Errorf("left: %s", got)
	}
}

func TestEachEndCallsItsTool(t *testing.T) {
	t.Parallel()
	for end, want := range map[string]string{"no_change": "prime no_change", "escalate": "prime escalate", "none": "prime"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, body("```sh end="+end+"\ntrue\n```\n"))
			b.turn()
			if b.calls() != want {
				t.Errorf("calls: %s", b.calls())
			}
			if b.git("log", "--format=%s") != "base" {
				t.Error("something was committed")
			}
		})
	}
}

func TestARefusedDoneIsSaidAndANudgeRunsAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, agenttest.Prime{Attempt: 2, Reason: "red gate", Bead: agenttest.Bead{Body: "```sh\nexit 9\n```\n```sh attempt=2\necho first \"$GASTOWN_REASON\"\n```\n```sh nudge=1\necho \"nudge $GASTOWN_NUDGE\"\n```\n"}})
	b.tools.Answer("done", func(agenttest.Call) agenttest.Answer {
		return agenttest.Answer{Refuse: "the branch has no new commit"}
	})
	if said := b.turn(); !strings.Contains(said, "first red gate") || !strings.Contains(said, "done was refused: the branch has no new commit") {
		t.Errorf("said: %s", said)
	}
	if said := b.turn(); !strings.Contains(said, "nudge 1\n") {
		t.Errorf("said: %s", said)
	}
	if b.calls() != "prime done prime done" {
		t.Errorf("calls: %s", b.calls())
	}
}

func TestWhatCannotRunEndsTheTurnWithoutAVerdict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, want string }{
		"a script that fails": {"```sh\nfalse; echo not here\n```\n", "the script failed: exit status 1"},
		"an unset variable":   {"```sh\necho $NOT_SET_AT_ALL\n```\n", "the script failed"},
		"no block":            {"just words", "no ```sh block for attempt 1"},
		"an endless block":    {"```sh\ntrue\n", "never ends"},
		"a script too large":  {"```sh\n" + strings.Repeat("# x\n", 30<<10) + "```\n", "more than 102400 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, body(c.body))
			if said := b.turn(); !strings.Contains(said, c.want) {
				t.Errorf("said: %s", said)
			}
			if b.calls() != "prime" {
				t.Errorf("calls: %s", b.calls())
			}
		})
	}
}

func TestACrashExitsWithThreeAndCommitsNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, body("```sh end=crash\necho half > a.txt\n```\n"))
	_, err := b.s.Prompt(context.Background(), "go")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	if got := b.git("status", "--porcelain"); got != "?? a.txt" {
		t.Errorf("status: %s", got)
	}
}

func TestAHangingTurnEndsWhenCancelled(t *testing.T) {
	t.Parallel()
	b := newBench(t, body("```sh end=hang\ntrue\n```\n"))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-b.tools.Called()
		cancel()
	}()
	if stop, err := b.s.Prompt(ctx, "go"); err != nil || stop != agent.StopCancelled {
		t.Errorf("%q, %v", stop, err)
	}
}

func TestTooMuchOutputIsCutAndTheScriptGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t, body("```sh\nhead -c 3000000 /dev/zero | tr '\\0' x; echo end > end.txt\n```\n"))
	if said := b.turn(); len(said) > 2<<20 || !strings.Contains(said, "the rest is not shown") {
		t.Errorf("%d bytes said", len(said))
	}
	if _, err := os.Stat(filepath.Join(b.dir, "end.txt")); err != nil {
		t.Error(err)
	}
}

func TestWhatAScriptLeavesRunningEndsWithTheTurn(t *testing.T) {
	t.Parallel()
	b := newBench(t, body("```sh end=none\nsleep 600 &\necho $! > pid\n```\n"))
	b.turn()
	data, err := os.ReadFile(filepath.Join(b.dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ps", "-o", "stat=", "-p", strings.TrimSpace(string(data))).Output(); err == nil && !strings.HasPrefix(string(out), "Z") {
		t.Errorf("still alive: %s", out)
	}
}
