package scripted

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coder/acp-go-sdk"
)

const (
	// maxScript keeps the script below the system's limit for one argument.
	maxScript = 100 << 10
	// maxStreamed is how much of a script's output a turn passes on.
	maxStreamed = 1 << 20
	// gitTimeout bounds each git command after the script.
	gitTimeout = 2 * time.Minute
	// pipeGrace is how long output may keep coming from what a script left behind.
	pipeGrace = 300 * time.Millisecond
)

var errCrash = errors.New("crash")

// turn is one prompt.
type turn struct {
	a     *agent
	id    acp.SessionId
	s     *session
	nudge int
}

// assignment is what the prime tool says.
type assignment struct {
	Bead struct {
		ID    string `json:"id"`
		Title string `json:"title"`
		Body  string `json:"body"`
	} `json:"bead"`
	Attempt  int      `json:"attempt"`
	Reason   string   `json:"reason"`
	Trailers []string `json:"trailers"` // of each commit
}

// run does the whole turn. An error is for the person who reads the transcript.
func (t *turn) run(ctx context.Context) error {
	tools, err := connect(ctx, t.s.mcp)
	if err != nil {
		return err
	}
	defer tools.close()
	var as assignment
	if err := tools.prime(ctx, &as); err != nil {
		return err
	}
	as.Attempt = max(as.Attempt, 1)
	blocks, err := Blocks(as.Bead.Body)
	if err != nil {
		return fmt.Errorf("the bead's body: %w", err)
	}
	b, ok := Choose(blocks, as.Attempt, t.nudge)
	if !ok {
		return fmt.Errorf("the bead's body has no ```sh block for attempt %d, nudge %d", as.Attempt, t.nudge)
	}
	t.say(fmt.Sprintf("Attempt %d, nudge %d: running the block at line %d.\n", as.Attempt, t.nudge, b.Line))
	if err := t.script(ctx, b, as); err != nil {
		return err
	}
	switch b.End {
	case EndCrash:
		return errCrash
	case EndHang:
		t.say("Waiting until cancelled.\n")
		<-ctx.Done()
		return ctx.Err()
	}
	if err := t.commit(ctx, as); err != nil {
		return err
	}
	return t.end(ctx, tools, b, as)
}

func (t *turn) end(ctx context.Context, tools *tools, b Block, as assignment) error {
	note := "ran the block at line " + strconv.Itoa(b.Line)
	args := map[string]any{"reason": note}
	switch b.End {
	case EndNone:
		t.say("The turn ends without a verdict, as the block asks.\n")
		return nil
	case EndDone:
		args = map[string]any{"summary": title(as) + ": " + note}
	}
	text, err := tools.call(ctx, b.End, args)
	if err != nil {
		return err
	}
	t.say(b.End + ": " + text + "\n")
	return nil
}

// title is one line for a commit; never empty.
func title(as assignment) string {
	s := strings.Join(strings.Fields(as.Bead.Title), " ")
	if s == "" {
		s = "work on " + as.Bead.ID
	}
	return s
}

// script runs the block in its own process group and streams its output.
func (t *turn) script(ctx context.Context, b Block, as assignment) error {
	if len(b.Script) > maxScript {
		return fmt.Errorf("the block at line %d has more than %d bytes", b.Line, maxScript)
	}
	call := acp.ToolCallId(fmt.Sprintf("sh-%d", t.nudge))
	t.update(acp.StartToolCall(call, fmt.Sprintf("sh (line %d)", b.Line),
		acp.WithStartKind(acp.ToolKindExecute), acp.WithStartStatus(acp.ToolCallStatusInProgress),
		acp.WithStartContent([]acp.ToolCallContent{acp.ToolContent(acp.TextBlock(b.Script))})))
	out := &stream{t: t, call: call}
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", b.Script)
	cmd.Dir = t.s.cwd
	cmd.Env = append(os.Environ(),
		"GASTOWN_BEAD="+noNUL(as.Bead.ID), "GASTOWN_ATTEMPT="+strconv.Itoa(as.Attempt),
		"GASTOWN_REASON="+noNUL(as.Reason), "GASTOWN_NUDGE="+strconv.Itoa(t.nudge),
		"GASTOWN_RESUMED="+strconv.Itoa(t.s.before))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeGrace
	err := cmd.Run()
	if cmd.Process != nil {
		// What the script left in the background must not outlive the turn; ESRCH says that there is nothing.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // the script itself succeeded
	}
	status := acp.ToolCallStatusCompleted
	if err != nil {
		status = acp.ToolCallStatusFailed
	}
	t.update(acp.UpdateToolCall(call, acp.WithUpdateStatus(status)))
	if err != nil {
		return fmt.Errorf("the script failed: %w", err)
	}
	return nil
}

// noNUL makes a stranger's text fit for the environment.
func noNUL(s string) string {
	s = strings.ReplaceAll(s, "\x00", "")
	return s[:min(len(s), 16<<10)]
}

// commit commits whatever the script left, if the directory is a worktree.
func (t *turn) commit(ctx context.Context, as assignment) error {
	if _, err := t.git(ctx, "rev-parse", "--is-inside-work-tree"); err != nil {
		t.say("Not a git worktree: nothing to commit.\n")
		return ctx.Err()
	}
	if _, err := t.git(ctx, "add", "-A"); err != nil {
		return err
	}
	_, err := t.git(ctx, "diff", "--cached", "--quiet")
	if err == nil {
		t.say("Nothing to commit.\n")
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return err
	}
	args := []string{"commit", "-q", "-m", title(as)}
	for _, tr := range as.Trailers {
		args = append(args, "--trailer="+tr)
	}
	if _, err := t.git(ctx, args...); err != nil {
		return err
	}
	t.say("Committed.\n")
	return nil
}

func (t *turn) git(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = t.s.cwd
	cmd.WaitDelay = pipeGrace
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, short(strings.TrimSpace(string(out))))
	}
	return string(out), nil
}

// say streams a message.
func (t *turn) say(text string) {
	t.s.note(t.a.log, t.id, func(m *memory) { m.Said += text })
	t.update(acp.UpdateAgentMessageText(text))
}

// update sends one update. It can fail only when the client is gone, and then
// the connection's end stops the turn.
func (t *turn) update(u acp.SessionUpdate) {
	err := t.a.conn.SessionUpdate(context.Background(), acp.SessionNotification{SessionId: t.id, Update: u})
	if err != nil {
		t.a.log.Debug("update", "err", err)
	}
}

// stream passes a script's output on as updates of its tool call.
type stream struct {
	t    *turn
	call acp.ToolCallId
	n    int
}

// Write implements io.Writer; it never fails, so that the script is not stopped.
func (s *stream) Write(p []byte) (int, error) {
	before := s.n
	s.n += len(p)
	text := strings.ToValidUTF8(string(p), "�")
	if s.n > maxStreamed {
		if before > maxStreamed {
			return len(p), nil
		}
		text = fmt.Sprintf("[the script printed more than %d bytes; the rest is not shown]\n", maxStreamed)
	}
	s.t.update(acp.UpdateToolCall(s.call, acp.WithUpdateStatus(acp.ToolCallStatusInProgress),
		acp.WithUpdateContent([]acp.ToolCallContent{acp.ToolContent(acp.TextBlock(text))})))
	return len(p), nil
}

// decode reads a tool's structured result.
func decode(v any, to any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}
