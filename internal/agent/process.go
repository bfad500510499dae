package agent

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/acp-go-sdk"

	"gastown/internal/errs"
)

// cookieVar marks the agent's processes, wherever they move to; see sweep.
const cookieVar = "GASTOWN_AGENT_COOKIE"

const (
	// exitGrace is how long an agent may live on after it closed a pipe.
	exitGrace = 2 * time.Second
	// goneTimeout bounds the wait for killed processes to disappear.
	goneTimeout = 2 * time.Second
	stderrTail  = 4 << 10
)

// process is a running agent with its sessions: one, or several of a Host.
type process struct {
	spec    Spec // what to start, and where
	shared  bool // it is a Host's, and may have several sessions
	members *members

	conn    *acp.Connection
	cmd     *exec.Cmd
	pid     int
	cookie  string
	spawned time.Time
	stdin   *os.File
	stdout  *os.File
	stderr  *os.File
	tail    tailBuffer
	readers sync.WaitGroup
	strays  []int // descendants seen by close, where the cookie can't find them

	canLoad, canClose bool          // what the agent said that it can
	tired             atomic.Bool   // it should serve no more sessions
	broken            atomic.Bool   // a write to the agent failed
	asked             chan struct{} // one token per request of the agent that is not answered
	ended             chan struct{} // closed when the process has ended
	done              chan struct{} // closed when everything is gone
	closeOnce         sync.Once

	groupMu sync.Mutex // guards reaped and strays: signals go out only while the pid is ours
	reaped  bool

	mu       sync.Mutex // guards the fields below
	cause    error      // why the agent ended, without close
	closing  bool
	leftover int
}

// startProcess spawns the agent of a spec, and initialises it.
func startProcess(ctx context.Context, spec Spec, first *Agent, shared bool) (*process, error) {
	env, err := spec.environ()
	if err != nil {
		return nil, err
	}
	p := &process{spec: spec, shared: shared, members: newMembers(first),
		asked: make(chan struct{}, maxAsked), ended: make(chan struct{}), done: make(chan struct{})}
	p.members.know(spec.secrets())
	first.process = p
	if err := p.spawn(env); err != nil {
		return nil, err
	}
	p.dial()
	go p.supervise()
	p.tellAll(Event{Kind: KindLifecycle, Status: "spawned", Text: fmt.Sprintf("pid %d", p.pid)})
	if err := p.initialize(ctx); err != nil {
		p.fail(errors.New("it could not be started"))
		<-p.done
		return nil, p.startError("initialize", err)
	}
	return p, nil
}

// tellAll is an event of the process: each of its sessions has it.
func (a *process) tellAll(e Event) {
	all := a.members.all()
	e.Shared = a.shared && len(all) > 1
	for _, m := range all {
		m.emit(e)
	}
}

// spawn starts the process in its own group, with pipes.
func (a *process) spawn(env []string) error {
	p := a.spec.Preset
	path, err := a.spec.commandPath(env)
	if err != nil {
		return err
	}
	a.cookie = rand.Text()
	var pipes []*os.File
	closeAll := func() {
		for _, f := range pipes {
			// Only our own ends of unused pipes: nothing to lose.
			_ = f.Close()
		}
	}
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll()
			return errs.Wrap(errs.Unavailable, err, "pipes for the agent")
		}
		pipes = append(pipes, r, w)
	}
	a.stdin, a.stdout, a.stderr = pipes[1], pipes[2], pipes[4]
	cmd := exec.Command(path, p.Args...)
	cmd.Dir = a.spec.Dir
	cmd.Env = append(env, cookieVar+"="+a.cookie)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = pipes[0], pipes[3], pipes[5]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	a.spawned = time.Now()
	start := (*exec.Cmd).Start
	if a.spec.Start != nil {
		start = func(c *exec.Cmd) error { return a.spec.Start(c) }
	}
	if err := start(cmd); err != nil {
		closeAll()
		if errors.Is(err, fs.ErrNotExist) {
			return errs.Wrap(errs.NotFound, err, "start agent %s", p.Name)
		}
		return errs.Wrap(errs.Unavailable, err, "start agent %s", p.Name)
	}
	for _, f := range []*os.File{pipes[0], pipes[3], pipes[5]} {
		// The child has its copies.
		_ = f.Close()
	}
	a.cmd, a.pid = cmd, cmd.Process.Pid
	return nil
}

// commandPath finds the program in the PATH of the agent's own environment.
func (s Spec) commandPath(env []string) (string, error) {
	p := s.Preset
	missing := func(what string) error {
		e := errs.New(errs.NotFound, "agent %s: %s", p.Name, what)
		if p.InstallHint != "" {
			e = e.WithHint("%s", p.InstallHint)
		}
		return e
	}
	if p.Command == SelfCommand {
		if s.SelfExe == "" {
			return "", errs.New(errs.Invalid, "agent %s: the path of this program is not known", p.Name)
		}
		return s.SelfExe, nil
	}
	if filepath.IsAbs(p.Command) {
		if !executable(p.Command) {
			return "", missing(p.Command + " is not a program")
		}
		return p.Command, nil
	}
	for _, kv := range env {
		if list, ok := strings.CutPrefix(kv, "PATH="); ok {
			if file := lookIn(list, p.Command); file != "" {
				return file, nil
			}
		}
	}
	return "", missing("the program " + p.Command + " is not in PATH")
}

// lookIn finds a program in a list of directories, "" when it is in none.
func lookIn(list, program string) string {
	for _, dir := range filepath.SplitList(list) {
		// A relative entry would let the repository provide the program.
		if file := filepath.Join(dir, program); filepath.IsAbs(dir) && executable(file) {
			return file
		}
	}
	return ""
}

// Find returns where the agent's program is for a process with this PATH. It
// fails with errs.NotFound, and how to install it, when it is nowhere. self is
// this program, for presets that are part of it.
func (p Preset) Find(path, self string) (string, error) {
	if own, ok := p.Env["PATH"]; ok {
		path = own
	}
	return Spec{Preset: p, SelfExe: self}.commandPath([]string{"PATH=" + path})
}

func executable(file string) bool {
	st, err := os.Stat(file)
	return err == nil && !st.IsDir() && st.Mode()&0o111 != 0
}

// supervise waits for the process, then ends everything that it left.
func (a *process) supervise() {
	awaitExit(a.pid) // where possible without freeing the pid, so that the group below is surely ours
	close(a.ended)
	if a.spec.Gone != nil {
		a.spec.Gone()
	}
	a.signal(syscall.SIGKILL)
	werr := a.cmd.Wait()
	a.groupMu.Lock()
	a.reaped = true
	a.groupMu.Unlock()
	left := sweep(a.pid, a.cookie, a.strays, goneTimeout)
	if a.spec.Sweep != nil {
		left += a.spec.Sweep(goneTimeout)
	}

	drained := make(chan struct{})
	go func() { a.readers.Wait(); close(drained) }()
	t := time.NewTimer(goneTimeout)
	select {
	case <-drained:
	case <-t.C: // somebody outside the group holds the pipe
	}
	t.Stop()
	for _, f := range []*os.File{a.stdin, a.stdout, a.stderr} {
		// Nothing is left to read or to tell; Close ends readers that still wait.
		_ = f.Close()
	}
	<-drained
	a.mu.Lock()
	if a.cause == nil && !a.closing {
		a.cause = exitProblem(werr, a.cmd.ProcessState)
	}
	a.tired.Store(true)
	if n := len(a.members.all()); a.cause != nil && n > 1 {
		a.cause = &SharedError{Sessions: n, Err: a.cause}
	}
	a.leftover = left
	a.mu.Unlock()
	a.tellAll(Event{Kind: KindLifecycle, Status: "exited", Text: a.cmd.ProcessState.String()})
	close(a.done)
	a.members.end()
}

func exitProblem(werr error, st *os.ProcessState) error {
	var ee *exec.ExitError
	if werr != nil && !errors.As(werr, &ee) {
		return werr
	}
	if ee != nil {
		return fmt.Errorf("the agent ended by itself: %w", ee)
	}
	return fmt.Errorf("the agent ended by itself: %s", st)
}

// signal sends sig to the whole group, unless its id may belong to others by now.
func (a *process) signal(sig syscall.Signal) {
	a.groupMu.Lock()
	defer a.groupMu.Unlock()
	if !a.reaped {
		// ESRCH: nobody is left, which is what we want.
		_ = syscall.Kill(-a.pid, sig)
	}
}

// fail records why the agent has to end, the first reason only, and kills it.
func (a *process) fail(err error) {
	a.mu.Lock()
	if a.cause == nil && !a.closing {
		a.cause = err
	}
	a.mu.Unlock()
	a.signal(syscall.SIGKILL)
}

// stdoutEnded: an agent that can't be heard any more has to end.
func (a *process) stdoutEnded(err error) {
	if err != nil {
		a.fail(err)
		return
	}
	a.endSoon("the agent closed its output")
}

// endSoon kills an agent that broke its connection, unless it ends by itself
// within the grace; then its own exit is the reason.
func (a *process) endSoon(why string) {
	t := time.AfterFunc(exitGrace, func() { a.fail(errors.New(why)) })
	go func() { <-a.ended; t.Stop() }()
}

// close closes the agent's stdin, sends SIGTERM and, after grace, SIGKILL.
func (a *process) close(grace time.Duration) error {
	a.closeOnce.Do(func() {
		a.mu.Lock()
		a.closing = true
		a.mu.Unlock()
		a.groupMu.Lock()
		if !a.reaped {
			a.strays = descendants(a.pid)
		}
		a.groupMu.Unlock()
		// Closing is the message; supervise closes again, harmlessly.
		_ = a.stdin.Close()
		a.signal(syscall.SIGTERM)
	})
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-a.done:
	case <-t.C:
		a.signal(syscall.SIGKILL)
		<-a.done
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leftover > 0 {
		return errs.New(errs.Internal, "agent %s: %d processes outlived SIGKILL", a.spec.Preset.Name, a.leftover)
	}
	return nil
}

// readStderr copies stderr to the spec's writer, to events and to the tail.
func (a *process) readStderr() {
	br := bufio.NewReaderSize(a.stderr, 64<<10)
	for {
		part, err := br.ReadSlice('\n')
		if len(part) > 0 {
			text := a.members.redactor().text(string(part))
			if a.spec.Stderr != nil {
				// The copy is for people; losing it must not stop the agent.
				_, _ = io.WriteString(a.spec.Stderr, text)
			}
			a.tail.add(text)
			a.tellAll(Event{Kind: KindStderr, Text: strings.TrimRight(text, "\r\n")})
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// tailBuffer keeps the last bytes of stderr. mu guards b.
type tailBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (t *tailBuffer) add(s string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, s...)
	if over := len(t.b) - stderrTail; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(strings.TrimSpace(string(t.b)), "")
}
