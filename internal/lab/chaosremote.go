package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
)

// gitFor bounds one git command of the tool.
const gitFor = 30 * time.Second

// remote is the repository that work lands in, served over smart HTTP by git's
// own program, so that it can be down as a forge can.
type remote struct {
	dir  string // of everything
	bare string
	addr string
	// landing is a file that is written anew when a push of the server has landed
	// and is not answered yet.
	landing string

	mu  sync.Mutex // guards srv
	srv *http.Server
}

// slowHook makes the remote slow to answer once a push has landed, as forges
// are: the moment in which it is easiest to do something twice.
const slowHook = `#!/bin/sh
[ -n "$GIT_HTTP_EXPORT_ALL" ] || exit 0
echo > '%s'
sleep 0.3
`

// landed waits until the server has pushed something and has no answer yet, at
// most for limit.
func (r *remote) landed(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	for wait(ctx, 5*time.Millisecond) == nil {
		if st, err := os.Stat(r.landing); err == nil && st.ModTime().After(begin) {
			return
		}
	}
}

// newRemote makes a repository with one commit and serves it.
func newRemote(ctx context.Context, dir string) (*remote, error) {
	r := &remote{dir: dir, bare: filepath.Join(dir, "web.git")}
	seed := filepath.Join(dir, "seed")
	if err := errors.Join(os.MkdirAll(filepath.Join(seed, "beads"), 0o755), touch(filepath.Join(seed, "list.txt"), "first\n"),
		touch(filepath.Join(seed, "beads", "README"), "What the beads wrote.\n")); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"init", "-q", "--bare", r.bare}, {"--git-dir=" + r.bare, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"--git-dir=" + r.bare, "config", "http.receivepack", "true"},
		{"-C", seed, "init", "-q"}, {"-C", seed, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"-C", seed, "add", "-A"}, {"-C", seed, "commit", "-q", "-m", "a beginning"}, {"-C", seed, "push", "-q", r.bare, "main"},
		{"clone", "-q", r.bare, filepath.Join(dir, "other")},
	} {
		if _, err := r.git(ctx, args...); err != nil {
			return nil, err
		}
	}
	r.landing = filepath.Join(dir, "landing")
	if err := os.WriteFile(filepath.Join(r.bare, "hooks", "post-receive"), []byte(fmt.Sprintf(slowHook, r.landing)), 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "writing a hook")
	}
	// An address of its own keeps the port free for us while nobody listens there.
	r.addr = fmt.Sprintf("127.%d.%d.%d:0", 1+rand.IntN(250), rand.IntN(256), 1+rand.IntN(250))
	return r, r.up()
}

func (r *remote) url() string { return "http://" + r.addr + "/web.git" }

// up begins to answer.
func (r *remote) up() error {
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "serving the remote repository")
	}
	programs, err := r.git(context.Background(), "--exec-path")
	if err != nil {
		return errors.Join(err, l.Close())
	}
	quiet := log.New(io.Discard, "", 0) // clients that go away are what this is about
	h := &cgi.Handler{Path: filepath.Join(programs, "git-http-backend"), Dir: r.dir, Root: "/", Logger: quiet, Stderr: io.Discard,
		Env: append(gitEnv(), "GIT_PROJECT_ROOT="+r.dir, "GIT_HTTP_EXPORT_ALL=1")}
	srv := &http.Server{Handler: h, ErrorLog: quiet, ReadHeaderTimeout: gitFor}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addr, r.srv = l.Addr().String(), srv
	go func() {
		_ = srv.Serve(l) // it ends when down or stop closes it
	}()
	return nil
}

// down refuses connections and breaks those that are. What git's program is
// doing goes on, so that a push may land whose answer is lost.
func (r *remote) down() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.srv == nil {
		return nil
	}
	err := r.srv.Close()
	r.srv = nil
	return errs.Wrap(errs.Internal, err, "taking the remote repository down")
}

func (r *remote) stop() error { return r.down() }

// push lands a commit of somebody else on the target and returns it, "" if
// others were faster too often.
func (r *remote) push(ctx context.Context, n int) (string, error) {
	work := filepath.Join(r.dir, "other")
	for range 5 {
		for _, args := range [][]string{{"fetch", "-q", "origin"}, {"reset", "-q", "--hard", "origin/main"}} {
			if _, err := r.git(ctx, append([]string{"-C", work}, args...)...); err != nil {
				return "", err
			}
		}
		if err := touch(filepath.Join(work, fmt.Sprintf("other-%d.txt", n)), "by somebody else\n"); err != nil {
			return "", err
		}
		for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", fmt.Sprintf("other %d", n)}} {
			if _, err := r.git(ctx, append([]string{"-C", work}, args...)...); err != nil {
				return "", err
			}
		}
		if _, err := r.git(ctx, "-C", work, "push", "-q", "origin", "HEAD:main"); err == nil {
			return r.git(ctx, "-C", work, "rev-parse", "HEAD")
		}
	}
	return "", nil
}

// git runs a command with an environment of its own.
func (r *remote) git(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, gitFor)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = append(os.Environ(), gitEnv()...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", errs.New(errs.Internal, "git %s: %v: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), errs.Wrap(errs.Unavailable, err, "running git")
}

// gitEnv leaves nothing to the configuration of who runs the tool.
func gitEnv() []string {
	return []string{"GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=lab", "GIT_AUTHOR_EMAIL=lab@localhost",
		"GIT_COMMITTER_NAME=lab", "GIT_COMMITTER_EMAIL=lab@localhost"}
}
