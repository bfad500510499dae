package agenttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
)

// deadline bounds each step of the suite; real agents take seconds to start.
const deadline = 90 * time.Second

// Task is what the agent of one case is meant to do. Script is a shell script
// that the scripted agent finds in its bead; an agent with a model needs one
// that makes it run the same, and call the tools prime and (with Done) done.
type Task struct {
	Script string
	Done   bool // call done when the script succeeded
	Dir    string
	Tools  *Tools
}

// Factory returns the spec of an agent that will do the task. The suite sets
// Dir, MCP, Stderr and OnEvent itself.
type Factory func(t *testing.T, task Task) agent.Spec

// Run checks that the agents of a factory behave as Session promises.
func Run(t *testing.T, factory Factory) {
	t.Run("a turn calls the tools of its own endpoint with the bearer header", func(t *testing.T) { testTurn(t, factory) })
	t.Run("a cancelled turn ends and the next one runs", func(t *testing.T) { testCancel(t, factory) })
	t.Run("a prompt whose context ends cancels its turn", func(t *testing.T) { testContext(t, factory) })
	t.Run("a kill in mid-turn is noticed, and leaves nothing running", func(t *testing.T) { testKill(t, factory) })
	t.Run("close in mid-turn leaves nothing running", func(t *testing.T) { testClose(t, factory) })
	t.Run("a second agent resumes the session", func(t *testing.T) { testResume(t, factory) })
	t.Run("a start that may not take any time leaves nothing running", func(t *testing.T) { testNoTime(t, factory) })
}

// rig is one agent under test.
type rig struct {
	t     *testing.T
	task  Task
	spec  agent.Spec
	s     agent.Session
	texts chan string // text of tool and message events

	mu     sync.Mutex // guards events and stderr
	events []agent.Event
	stderr bytes.Buffer
}

func start(t *testing.T, factory Factory, script string, done bool, edit func(*agent.Spec)) *rig {
	t.Helper()
	r := newRig(t, factory, script, done)
	if edit != nil {
		edit(&r.spec)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	s, err := agent.Start(ctx, r.spec)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	r.s = s
	t.Cleanup(func() {
		if err := s.Close(time.Second); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return r
}

func newRig(t *testing.T, factory Factory, script string, done bool) *rig {
	t.Helper()
	r := &rig{t: t, texts: make(chan string, 4096)}
	r.task = Task{Script: script, Done: done, Dir: t.TempDir(), Tools: NewTools(t)}
	end := "none"
	if done {
		end = "done"
	}
	r.task.Tools.Prime(Prime{
		Bead:    Bead{ID: "gt-1", Title: "A task of the suite", Body: "```sh end=" + end + "\n" + script + "\n```\n"},
		Attempt: 1,
	})
	r.spec = factory(t, r.task)
	r.spec.Dir, r.spec.MCP = r.task.Dir, []agent.MCPServer{r.task.Tools.MCP()}
	r.spec.Stderr, r.spec.OnEvent = r, r.event
	return r
}

// Write takes the agent's stderr.
func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stderr.Write(p)
}

func (r *rig) event(e agent.Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	if e.Kind == agent.KindToolUpdate || e.Kind == agent.KindMessage {
		select {
		case r.texts <- e.Text:
		default:
		}
	}
}

// waitFile waits for a file that the script writes as its sign that it runs.
func (r *rig) waitFile(name string) string {
	r.t.Helper()
	limit := time.NewTimer(deadline)
	defer limit.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		b, err := os.ReadFile(filepath.Join(r.task.Dir, name))
		if err == nil && strings.HasSuffix(string(b), "\n") {
			return strings.TrimSpace(string(b))
		}
		select {
		case <-look.C:
		case <-r.s.Done():
			r.t.Fatalf("the agent ended before %s was written: %v\n%s", name, r.s.Err(), r.dump())
		case <-limit.C:
			r.t.Fatalf("%s was not written\n%s", name, r.dump())
		}
	}
}

func (r *rig) touch(name string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.task.Dir, name), nil, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) waitPID(name string) int {
	r.t.Helper()
	pid, err := strconv.Atoi(r.waitFile(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

func (r *rig) dump() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, e := range r.events {
		fmt.Fprintf(&b, "%s %s %s %q\n", e.Kind, e.Tool, e.Status, e.Text)
	}
	return b.String() + r.stderr.String()
}

type turnResult struct {
	stop agent.StopReason
	err  error
}

// prompt starts a turn in the background.
func (r *rig) prompt(ctx context.Context) <-chan turnResult {
	out := make(chan turnResult, 1)
	go func() {
		stop, err := r.s.Prompt(ctx, "Call the tool prime and do what it says.")
		out <- turnResult{stop, err}
	}()
	return out
}

func (r *rig) result(c <-chan turnResult) turnResult {
	r.t.Helper()
	select {
	case res := <-c:
		return res
	case <-time.After(deadline):
		r.t.Fatalf("the turn does not end\n%s", r.dump())
		return turnResult{}
	}
}

// gone fails the test if pid is alive (a zombie that nobody reaped is dead).
func (r *rig) gone(what string, pid int) {
	r.t.Helper()
	if alive(pid) {
		r.t.Errorf("%s (pid %d) is still alive", what, pid)
	}
}

func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) || !hasProc()
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func hasProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

// longScript leaves signs of itself, has a child in its own group and one that
// moved to a session of its own where the system has setsid, and waits.
const longScript = `sleep 600 &
echo $! > child.tmp
if command -v setsid >/dev/null; then setsid sh -c 'echo $$ > far.tmp; mv far.tmp far; exec sleep 600' & else cp child.tmp far; fi
mv child.tmp child
wait`

func testTurn(t *testing.T, factory Factory) {
	r := start(t, factory, "echo working; echo hello > greeting.txt", true, nil)
	res := r.result(r.prompt(context.Background()))
	if res.err != nil || res.stop != agent.StopEndTurn {
		t.Fatalf("turn: %q, %v\n%s", res.stop, res.err, r.dump())
	}
	var names []string
	for _, c := range r.task.Tools.Calls() {
		names = append(names, c.Tool)
	}
	if got := strings.Join(names, " "); got != "prime done" {
		t.Errorf("tools called: %q, want prime done\n%s", got, r.dump())
	}
	if n := r.task.Tools.Refused(); n != 0 {
		t.Errorf("%d requests came without the token", n)
	}
	if r.waitFile("greeting.txt") != "hello" {
		t.Error("the work was not done in the session's directory")
	}
	if r.s.PID() <= 0 || r.s.SessionID() == "" || r.s.Spawned().IsZero() || r.s.Err() != nil {
		t.Errorf("pid %d, session %q, spawned %v, err %v", r.s.PID(), r.s.SessionID(), r.s.Spawned(), r.s.Err())
	}
	if !strings.Contains(r.dump(), "working") {
		t.Errorf("the output of the work is not among the events:\n%s", r.dump())
	}
	if strings.Contains(r.dump(), strings.TrimPrefix(r.spec.MCP[0].Headers["Authorization"], "Bearer ")) {
		t.Error("the token of the tool server is among the events")
	}
	pid := r.s.PID()
	for range 2 { // closing twice is harmless
		if err := r.s.Close(5 * time.Second); err != nil {
			t.Error(err)
		}
	}
	r.gone("the agent", pid)
	if err := r.s.Err(); err != nil {
		t.Errorf("err after close: %v", err)
	}
	if _, err := r.s.Prompt(context.Background(), "more"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("prompt after close: %v", err)
	}
}

func testCancel(t *testing.T, factory Factory) {
	r := start(t, factory, longScript, false, nil)
	turn := r.prompt(context.Background())
	child := r.waitPID("child")
	r.waitFile("far") // else its absence below says nothing
	if _, err := r.s.Prompt(context.Background(), "two at once"); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second prompt during a turn: %v, want a conflict", err)
	}
	if err := r.s.Cancel(context.Background()); err != nil {
		t.Fatal(err)
	}
	if res := r.result(turn); res.err != nil || (res.stop != agent.StopCancelled && res.stop != agent.StopEndTurn) {
		t.Fatalf("cancelled turn: %q, %v", res.stop, res.err)
	}
	r.gone("the tool of the cancelled turn", child)
	if err := r.s.Cancel(context.Background()); err != nil {
		t.Errorf("cancel without a turn: %v", err)
	}
	for _, f := range []string{"child", "far"} {
		if err := os.Remove(filepath.Join(r.task.Dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	turn = r.prompt(context.Background())
	r.waitFile("child")
	if err := r.s.Cancel(context.Background()); err != nil {
		t.Fatal(err)
	}
	if res := r.result(turn); res.err != nil {
		t.Fatalf("second cancelled turn: %v", res.err)
	}
}

func testContext(t *testing.T, factory Factory) {
	r := start(t, factory, longScript, false, nil)
	ctx, cancel := context.WithCancel(context.Background())
	turn := r.prompt(ctx)
	r.waitFile("child")
	cancel()
	if res := r.result(turn); res.err != nil || (res.stop != agent.StopCancelled && res.stop != agent.StopEndTurn) {
		t.Fatalf("turn: %q, %v", res.stop, res.err)
	}
	if r.s.Err() != nil {
		t.Errorf("the agent ended with its turn: %v", r.s.Err())
	}
}

func testKill(t *testing.T, factory Factory) {
	r := start(t, factory, longScript, false, nil)
	turn := r.prompt(context.Background())
	child, far := r.waitPID("child"), r.waitPID("far")
	if err := syscall.Kill(r.s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if res := r.result(turn); !errs.Is(res.err, errs.Unavailable) || !strings.Contains(res.err.Error(), "killed") {
		t.Errorf("turn of a killed agent: %q, %v", res.stop, res.err)
	}
	<-r.s.Done()
	if err := r.s.Err(); !errs.Is(err, errs.Unavailable) {
		t.Errorf("err of a killed agent: %v", err)
	}
	if err := r.s.Close(time.Second); err != nil {
		t.Error(err)
	}
	r.gone("the agent", r.s.PID())
	if hasProc() { // elsewhere the children of a dead process can't be found
		r.gone("its child", child)
		r.gone("its child in another session", far)
	}
}

func testClose(t *testing.T, factory Factory) {
	r := start(t, factory, longScript, false, nil)
	turn := r.prompt(context.Background())
	child, far := r.waitPID("child"), r.waitPID("far")
	if err := r.s.Close(2 * time.Second); err != nil {
		t.Error(err)
	}
	select {
	case <-r.s.Done():
	default:
		t.Error("close returned before everything was gone")
	}
	r.result(turn)
	r.gone("the agent", r.s.PID())
	r.gone("its child", child)
	r.gone("its child in another session", far)
}

func testResume(t *testing.T, factory Factory) {
	first := start(t, factory, "echo one", false, nil)
	id := first.s.SessionID()
	if res := first.result(first.prompt(context.Background())); res.err != nil {
		t.Fatalf("turn: %v", res.err)
	}
	if err := first.s.Close(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	second := newRig(t, factory, "echo two > two.txt", true)
	// The same state on disk, and the same directory, as after a restart.
	second.task.Dir = first.task.Dir
	second.spec.Dir, second.spec.Env, second.spec.LoadSession = first.spec.Dir, first.spec.Env, id
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	s, err := agent.Start(ctx, second.spec)
	if err != nil {
		t.Fatalf("resume: %v", err)
	}
	second.s = s
	defer func() {
		if err := s.Close(time.Second); err != nil {
			t.Error(err)
		}
	}()
	if s.SessionID() != id {
		t.Errorf("session %q, want %q\n%s", s.SessionID(), id, second.dump())
	}
	if res := second.result(second.prompt(context.Background())); res.err != nil {
		t.Fatalf("turn after resuming: %v", res.err)
	}
	second.waitFile("two.txt")
}

func testNoTime(t *testing.T, factory Factory) {
	r := newRig(t, factory, "true", false)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := agent.Start(ctx, r.spec); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("start without time: %v", err)
	}
	for _, e := range r.events {
		if pid, err := strconv.Atoi(strings.TrimPrefix(e.Text, "pid ")); e.Status == "spawned" && err == nil {
			r.gone("the agent", pid)
			return
		}
	}
	t.Error("no event says that the agent was spawned")
}
