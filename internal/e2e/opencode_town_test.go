//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
)

const (
	// patience is how long anything may take on a busy machine. It is longer than
	// whatever the product waits for before it helps itself.
	patience = 5 * time.Minute
	// realKey is the key that only the model's server may ever see.
	realKey = "sk-house-4f1c9a7733e05b62-not-for-sandboxes"
)

// realTown is a server in a process of its own, and one town with one rig whose
// repository is a bare one beside it.
type realTown struct {
	t                   *testing.T
	name                string // of the town
	id                  string // of the town, where it is one of many
	program, root       string
	data, log, upstream string // upstream: the bare repository that work lands in
	env                 []string
	cmd                 *exec.Cmd
	ended               chan struct{} // closed when the server's process is gone
	client              *client.Client
	model               *Model
	modelKey            string // as the model's server gets it
	base                string // first commit of the repository
}

// startTown starts a server whose agents find programs in path, and creates the
// town. Everything ends with the test, which fails if a process is left.
func startTown(t *testing.T, program, path string, model *Model, serveArgs ...string) *realTown {
	t.Helper()
	root := t.TempDir()
	h := &realTown{t: t, name: "works", program: program, root: root, data: filepath.Join(root, "data"), log: filepath.Join(root, "server.log"),
		upstream: filepath.Join(root, "upstream.git"), model: model, modelKey: "Bearer " + realKey, ended: make(chan struct{})}
	h.env = []string{"HOME=" + filepath.Join(root, "home"), "PATH=" + path, "LANG=C.UTF-8", "TMPDIR=" + os.TempDir(),
		"GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1", envIsolation + "=" + os.Getenv(envIsolation),
		"GIT_AUTHOR_NAME=Somebody", "GIT_AUTHOR_EMAIL=somebody@localhost", "GIT_COMMITTER_NAME=Somebody", "GIT_COMMITTER_EMAIL=somebody@localhost"}
	h.makeRepository()
	t.Cleanup(func() {
		if t.Failed() {
			h.tell()
		}
	})
	h.serve(serveArgs)
	h.run("town", "create", h.name)
	return h
}

func (h *realTown) makeRepository() {
	work := filepath.Join(h.root, "seed")
	for name, text := range map[string]string{"README.md": "A small repository.\n", "greeting.txt": "hello\n"} {
		if err := os.MkdirAll(work, 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
	h.git("init", "-q", "--bare", "-b", "main", h.upstream)
	h.git("init", "-q", "-b", "main", work)
	h.git("-C", work, "add", "-A")
	h.git("-C", work, "commit", "-q", "-m", "A beginning")
	h.git("-C", work, "push", "-q", h.upstream, "main")
	h.base = h.tip()
}

// git runs git and returns what it says.
func (h *realTown) git(args ...string) string {
	h.t.Helper()
	out, stderr, err := h.exec("git", args...)
	if err != nil {
		h.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return strings.TrimSpace(out)
}

// tip is the commit of the target in the upstream repository.
func (h *realTown) tip() string {
	return h.git("--git-dir", h.upstream, "rev-parse", "refs/heads/main")
}

// file is a file of the target in the upstream repository.
func (h *realTown) file(name string) string {
	return h.git("--git-dir", h.upstream, "show", "refs/heads/main:"+name)
}

func (h *realTown) exec(name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = h.env, h.root
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

// try runs a gastown command.
func (h *realTown) try(args ...string) (stdout, stderr string, err error) {
	return h.exec(h.program, append([]string{"--data", h.data}, args...)...)
}

// run runs a gastown command that must succeed.
func (h *realTown) run(args ...string) string {
	h.t.Helper()
	out, stderr, err := h.try(args...)
	if err != nil {
		h.t.Fatalf("gastown %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return strings.TrimSpace(out)
}

// read runs a gastown command that prints JSON.
func (h *realTown) read(to any, args ...string) {
	h.t.Helper()
	out := h.run(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		h.t.Fatalf("gastown %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// serve starts the server and waits until it says where it is.
func (h *realTown) serve(args []string) {
	h.t.Helper()
	logFile, err := os.Create(h.log)
	if err != nil {
		h.t.Fatal(err)
	}
	defer logFile.Close()
	out, in, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd = exec.Command(h.program, append([]string{"--data", h.data, "serve", "--listen", "127.0.0.1:0", "--log-level", "debug",
		"--set", "sandbox.grace=1s", "--set", "alarm.active_interval=500ms"}, args...)...)
	h.cmd.Env, h.cmd.Dir = h.env, h.root
	h.cmd.Stdout, h.cmd.Stderr = in, logFile
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = h.cmd.Start()
	in.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	go func() {
		h.cmd.Wait() // stop looks at how it ended
		close(h.ended)
	}()
	h.t.Cleanup(h.stop)
	if err := out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		h.t.Fatal(err)
	}
	var said [2]string // "... serves on URL", "... is in FILE"
	lines := bufio.NewScanner(out)
	for i := range said {
		if !lines.Scan() {
			h.t.Fatalf("the server did not start: %v", lines.Err())
		}
		said[i] = lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:]
	}
	out.SetReadDeadline(time.Time{})
	go io.Copy(io.Discard, out)
	token, err := os.ReadFile(said[1])
	if err != nil {
		h.t.Fatal(err)
	}
	if h.client, err = client.New(client.Options{URL: said[0], Token: strings.TrimSpace(string(token))}); err != nil {
		h.t.Fatal(err)
	}
}

// stop puts the town to sleep and ends the server.
func (h *realTown) stop() {
	defer h.end() // also when the town does not fall asleep
	if h.client != nil {
		h.run("sleep", h.name)
		h.asleep()
	}
}

// end ends the server and looks for what is left.
func (h *realTown) end() {
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Errorf("ending the server: %v", err)
	}
	select {
	case <-h.ended:
		if !h.cmd.ProcessState.Success() {
			h.t.Errorf("the server ended with %s", h.cmd.ProcessState)
		}
	case <-time.After(patience):
		h.t.Errorf("the server did not end; it is killed")
		h.cmd.Process.Kill() // it may have ended just now
		<-h.ended
	}
	for pid, command := range processesOf(h.root) {
		h.t.Errorf("process %d is left: %s", pid, command)
		syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
	}
}

// wait returns when ok holds, looking again whenever something happens in the town.
func (h *realTown) wait(what string, ok func(context.Context) (bool, error)) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.happens(ctx, ok); err != nil {
		h.t.Fatalf("waiting until %s: %v", what, err)
	}
}

// happens returns nil when ok holds.
func (h *realTown) happens(ctx context.Context, ok func(context.Context) (bool, error)) error {
	err := h.client.Events(ctx, h.name, 0, func(api.LedgerEntry) error {
		yes, err := ok(ctx)
		if err == nil && yes {
			err = client.ErrStop
		}
		return err
	})
	if errors.Is(err, client.ErrStop) {
		return nil
	}
	return err
}

// awaitBead waits for a bead to be as wanted.
func (h *realTown) awaitBead(id, what string, as func(api.Bead) bool) api.Bead {
	h.t.Helper()
	var b api.Bead
	h.wait(id+" "+what, func(ctx context.Context) (yes bool, err error) {
		b, err = h.client.Bead(ctx, id)
		return err == nil && as(b), err
	})
	return b
}

// closed waits until a bead is closed.
func (h *realTown) closed(id string) api.Bead {
	h.t.Helper()
	b := h.awaitBead(id, "is terminal", func(b api.Bead) bool { return !b.ClosedAt.IsZero() || b.Status == "failed" })
	if b.Status != "closed" {
		h.t.Fatalf("%s is %s: %s", id, b.Status, b.Reason)
	}
	return b
}

// asleep waits until the town's sandbox is asleep.
func (h *realTown) asleep() {
	h.t.Helper()
	h.wait("the sandbox is asleep", func(ctx context.Context) (bool, error) {
		w, err := h.client.Town(ctx, h.name)
		return w.Sandbox.State == "asleep", err
	})
}

// addProvider configures the model as the one provider.
func (h *realTown) addProvider() {
	h.t.Helper()
	key := filepath.Join(h.root, "house.key")
	if err := os.WriteFile(key, []byte(realKey+"\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.run("provider", "add", "openai-compatible", "house", "--base-url", h.model.URL(), "--key-file", key, "--model", "house/model-1")
}

// addRig adds the repository, with a gate that the task satisfies.
func (h *realTown) addRig() {
	h.t.Helper()
	h.run("rig", "add", "greeter", h.upstream, "--agent", "opencode", "--prefix", "gr", "--gate", "greets=grep -q Gastown greeting.txt")
}

// sling gives the town its task.
func (h *realTown) sling() string {
	h.t.Helper()
	var b api.Bead
	h.read(&b, "sling", "Greet Gastown", "--rig", "greeter", "--body", "The greeting in greeting.txt shall name Gastown.")
	return b.ID
}

// tell writes down what helps to understand a failure.
func (h *realTown) tell() {
	logs, _ := filepath.Glob(filepath.Join(h.data, "sandboxes", cmp.Or(h.id, "*"), "runner.log")) // the pattern is good
	for _, path := range append(logs, h.log) {
		text, err := os.ReadFile(path)
		if err != nil {
			h.t.Log(err)
		}
		var lines []string
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "GET /api/v1/") { // this test's own looking
				lines = append(lines, line)
			}
		}
		h.t.Logf("%s ends with:\n%s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-100):], ""))
	}
	if h.model == nil {
		return
	}
	for i, q := range h.model.Requests() {
		h.t.Logf("request %d at %s: %d messages, %d tools; the last: %.300q", i, q.At.Format(time.StampMilli), len(q.Messages), len(q.Tools),
			q.Messages[max(0, len(q.Messages)-1):])
	}
}

// processesAreVisible says whether processesOf can see anything here.
func processesAreVisible() bool { return runtime.GOOS == "linux" }

// processesOf returns the processes that carry text in their environment or
// command line, with their command lines.
func processesOf(text string) map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good; elsewhere there is none
	for _, dir := range dirs {
		// A process that has ended meanwhile, or is somebody else's, is none of ours.
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if err == nil && pid != os.Getpid() && bytes.Contains(append(env, command...), []byte(text)) {
			found[pid] = strings.ReplaceAll(string(command), "\x00", " ")
		}
	}
	return found
}
