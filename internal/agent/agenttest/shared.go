package agenttest

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/agent"
)

// RunShared checks that several sessions of a factory's agent get on in one process.
func RunShared(t *testing.T, factory Factory) {
	t.Run("each session works with its own tools, model and directory", func(t *testing.T) { testTogether(t, factory) })
	t.Run("one that is closed in mid-turn leaves the others alone, and nothing running", func(t *testing.T) { testLeave(t, factory) })
	t.Run("the death of the process ends all of them, and they resume in another", func(t *testing.T) { testAllDie(t, factory) })
}

// gather makes rigs for the scripts and opens all of them in one host.
func gather(t *testing.T, factory Factory, done bool, scripts ...string) (*agent.Host, []*rig) {
	t.Helper()
	var rigs []*rig
	var slots []agent.Model
	for _, s := range scripts {
		r := newRig(t, factory, s, done)
		if m := r.spec.Model; m != nil {
			slots = append(slots, *m)
		}
		rigs = append(rigs, r)
	}
	base := rigs[0].spec
	base.Preset.SharedSessions = true
	base.Dir, base.MCP, base.OnEvent = t.TempDir(), nil, nil
	h, err := agent.NewHost(base, slots)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rigs {
		r.open(h, i)
	}
	return h, rigs
}

func (r *rig) open(h *agent.Host, slot int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	s, err := h.Open(ctx, r.spec, slot)
	if err != nil {
		r.t.Fatalf("session %d: %v", slot, err)
	}
	r.s = s
	r.t.Cleanup(func() {
		if err := s.Close(time.Second); err != nil {
			r.t.Errorf("close: %v", err)
		}
	})
}

func testTogether(t *testing.T, factory Factory) {
	var scripts []string
	for i := range 4 {
		scripts = append(scripts, "echo this is number "+strconv.Itoa(i)+"; echo "+strconv.Itoa(i)+" > mine.txt")
	}
	h, rigs := gather(t, factory, true, scripts...)
	var turns []<-chan turnResult
	for _, r := range rigs {
		turns = append(turns, r.prompt(context.Background()))
	}
	for i, r := range rigs {
		if res := r.result(turns[i]); res.err != nil {
			t.Fatalf("turn %d: %v\n%s", i, res.err, r.dump())
		}
		if got := r.waitFile("mine.txt"); got != strconv.Itoa(i) {
			t.Errorf("session %d wrote %q", i, got)
		}
		if n, refused := len(r.task.Tools.Calls()), r.task.Tools.Refused(); n != 2 || refused != 0 {
			t.Errorf("session %d: %d calls of its tools, %d refused", i, n, refused)
		}
		if r.s.PID() != rigs[0].s.PID() {
			t.Errorf("session %d has a process of its own", i)
		}
		for j := range rigs {
			// The number alone would do in the text of a path.
			if has := strings.Contains(r.dump(), "this is number "+strconv.Itoa(j)); has != (i == j) {
				t.Errorf("session %d has the output of %d: %v", i, j, has)
			}
		}
	}
	pid := rigs[0].s.PID()
	for i, r := range rigs {
		if !alive(pid) {
			t.Errorf("the process is gone, and session %d is open", i)
		}
		for range 2 {
			if err := r.s.Close(5 * time.Second); err != nil {
				t.Error(err)
			}
		}
		<-r.s.Done()
		if err := r.s.Err(); err != nil {
			t.Errorf("err after close: %v", err)
		}
		if _, err := r.s.Prompt(context.Background(), "more"); err == nil {
			t.Error("a closed session takes a prompt")
		}
	}
	rigs[0].gone("the process after its last session", pid)
	if !h.Tired() {
		t.Error("a host whose process ended would be used again")
	}
}

func testLeave(t *testing.T, factory Factory) {
	_, rigs := gather(t, factory, true, longScript, "while [ ! -e go ]; do sleep 0.05; done; echo done > end")
	stays, turn := rigs[1], rigs[1].prompt(context.Background())
	cut := rigs[0].prompt(context.Background())
	child, far := rigs[0].waitPID("child"), rigs[0].waitPID("far")
	if err := rigs[0].s.Close(10 * time.Second); err != nil {
		t.Error(err)
	}
	rigs[0].result(cut)
	rigs[0].gone("the tool of the session that was closed", child)
	if hasProc() { // elsewhere it ends with the process
		rigs[0].gone("what moved to another session of processes", far)
	}
	stays.touch("go")
	if res := stays.result(turn); res.err != nil || stays.waitFile("end") != "done" {
		t.Errorf("the other session's turn: %v\n%s", res.err, stays.dump())
	}
}

func testAllDie(t *testing.T, factory Factory) {
	h, rigs := gather(t, factory, false, longScript, longScript)
	turns := []<-chan turnResult{rigs[0].prompt(context.Background()), rigs[1].prompt(context.Background())}
	far := []int{rigs[0].waitPID("far"), rigs[1].waitPID("far")}
	if err := syscall.Kill(rigs[0].s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i, r := range rigs {
		r.result(turns[i])
		<-r.s.Done()
		var shared *agent.SharedError
		if err := r.s.Err(); !errors.As(err, &shared) || shared.Sessions != 2 || !strings.Contains(err.Error(), "killed") {
			t.Errorf("session %d: %v", i, err)
		}
		if hasProc() {
			r.gone("its child", far[i])
		}
	}
	if !h.Tired() {
		t.Error("a host whose process died would be used again")
	}
	next := newRig(t, factory, "echo back > back", true)
	next.task.Dir, next.spec.Dir, next.spec.LoadSession = rigs[1].task.Dir, rigs[1].spec.Dir, rigs[1].s.SessionID()
	next.open(h, 1) // another slot's model has the old script, which is not asked for again
	if next.s.SessionID() != rigs[1].s.SessionID() {
		t.Errorf("a new session was opened\n%s", next.dump())
	}
}
