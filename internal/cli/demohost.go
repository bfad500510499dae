package cli

import (
	"context"
	_ "embed"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/tools/txtar"

	"gastown/internal/client"
	"gastown/internal/errs"
)

//go:embed sample.txtar
var sampleRepository []byte

//go:embed demobeads.txtar
var sampleWork []byte

// task is a bead of the demo.
type task struct{ name, title, after, body string }

func sampleTasks() []task {
	var out []task
	for _, f := range txtar.Parse(sampleWork).Files {
		title, body, _ := strings.Cut(string(f.Data), "\n")
		after := ""
		if rest, ok := strings.CutPrefix(body, "blocked-by: "); ok {
			after, body, _ = strings.Cut(rest, "\n")
		}
		out = append(out, task{name: f.Name, title: title, after: after, body: strings.TrimSpace(body) + "\n"})
	}
	return out
}

// guestTasks is harmless work for a repository that is not ours: a file of its own.
func guestTasks() []task {
	return []task{{name: "hello", title: "Add a short file GASTOWN-DEMO.md", body: `Add a file GASTOWN-DEMO.md with two or three sentences on what this repository
is about. Change nothing else. Commit it.

` + "```sh" + `
printf 'This file was added by gastown demo. The repository has %s files.\n' "$(git ls-files | wc -l | tr -d ' ')" > GASTOWN-DEMO.md
` + "```" + `
`}}
}

// writeSample makes the bare sample repository.
func writeSample(ctx context.Context, bare string) error {
	if _, err := exec.LookPath("go"); err != nil {
		return errs.New(errs.NotFound, "the demo's gates run go vet and go test, and go is not installed").
			WithHint("install Go, or use a repository of yours: gastown demo --repo URL --target BRANCH")
	}
	work, err := os.MkdirTemp("", "gastown-sample-")
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "making a temporary directory")
	}
	defer os.RemoveAll(work)
	for _, f := range txtar.Parse(sampleRepository).Files {
		path := filepath.Join(work, filepath.FromSlash(f.Name))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, f.Data, 0o644)
		}
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "writing the sample repository")
		}
	}
	for _, args := range [][]string{
		{"init", "-q", "--bare", bare},
		{"--git-dir=" + bare, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"-C", work, "init", "-q"},
		{"-C", work, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"-C", work, "add", "-A"},
		{"-C", work, "commit", "-q", "-m", "textkit: a beginning"},
		{"-C", work, "push", "-q", bare, "main"},
	} {
		if err := git(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// git runs git without the person's own configuration.
func git(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "git", args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GIT_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Gastown demo", "GIT_AUTHOR_EMAIL=demo@localhost", "GIT_COMMITTER_NAME=Gastown demo", "GIT_COMMITTER_EMAIL=demo@localhost")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errs.New(errs.Internal, "git %s: %v: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// child is the server of a demo: gastown serve, in a process of its own.
type child struct {
	cmd        *exec.Cmd
	url, token string
	log        string        // file
	ended      chan struct{} // closed when the process is gone
	err        error         // of the process, after ended
}

// startServer starts it and waits until it is ready. Its own process group
// keeps a Ctrl-C in the terminal from reaching it before the demo says so.
func startServer(ctx context.Context, data string, f demoFlags) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "finding this program")
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "making the data directory")
	}
	c := &child{log: filepath.Join(data, "server.log"), ended: make(chan struct{})}
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "opening the server's log")
	}
	defer out.Close()
	args := []string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--sandbox", f.sandbox, "--isolation", f.isolation, "--image", f.image}
	if f.presets != "" {
		args = append(args, "--presets", f.presets)
	}
	// Not CommandContext: the demo ends it in order, also when ctx has ended.
	c.cmd = exec.Command(self, args...)
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "starting the server")
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	if err := c.ready(ctx, data); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpFor)
		defer cancel()
		return nil, errors.Join(err, c.stop(stop))
	}
	return c, nil
}

func (c *child) ready(ctx context.Context, data string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if url, token, err := readDataDir(data); err == nil {
			c.url, c.token = url, token
			cl, err := client.New(client.Options{URL: url, Token: token})
			if err != nil {
				return err
			}
			if cl.Ready(ctx) == nil {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-c.ended:
			return errs.New(errs.Unavailable, "the server ended: %v\n%s", c.err, c.tail())
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for the server")
		}
	}
}

// stop asks the server to end and waits; when ctx ends first it is killed.
func (c *child) stop(ctx context.Context) error {
	select {
	case <-c.ended:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errs.Wrap(errs.Internal, err, "ending the server")
	}
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
	}
	err := c.cmd.Process.Kill()
	<-c.ended
	return errs.Wrap(errs.Internal, errors.Join(errors.New("it did not end in time"), err), "ending the server")
}

// tail is the end of the server's log.
func (c *child) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
