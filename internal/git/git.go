// Package git is the git binary behind one door.
//
// Every call gets an environment made from nothing: no system or global
// configuration, no hooks, no file system monitor, no prompts, no remote
// helpers (ext::), the C locale, and of the caller's environment only what
// finding programs, ssh, proxies and certificates need. Settings go in by
// GIT_CONFIG_COUNT, never by argv. A call runs in a process group of its own,
// which gets SIGTERM (so that git removes its lock files), then SIGKILL, when
// the context ends.
//
// Output kept in memory is bounded. What git says on standard error comes back
// inside an *ExitError, shortened, with anything that looks like credentials in
// a URL taken out.
//
// The validators (ValidBranch, ValidRef, ValidRemoteURL, ValidOID) are the
// gate for strings from strangers: what passes can't become a flag, another
// transport or a path outside the repository. They return errs.Invalid.
package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

const (
	// DefaultMaxOut bounds the standard output kept by Do, in bytes.
	DefaultMaxOut = 64 << 20
	maxStderr     = 16 << 10
	maxText       = 2 << 10 // of standard error in an error's text
	killDelay     = 3 * time.Second
)

// Git runs one git binary. It is safe for concurrent use.
type Git struct {
	path string
	env  []string
}

// New finds git in PATH.
func New() (*Git, error) {
	p, err := exec.LookPath("git")
	if err != nil {
		return nil, errs.New(errs.Internal, "git was not found in PATH").WithHint("install git 2.38 or newer")
	}
	return &Git{path: p, env: baseEnv(os.Environ())}, nil
}

// kept lists what a git process may see of our own environment. Nothing that
// steers git itself is on it, so a caller's GIT_DIR or GIT_QUARANTINE_PATH (as
// inside a hook) stays outside; ssh's command is the person's own choice.
const kept = " PATH HOME USER LOGNAME TMPDIR SSH_AUTH_SOCK GIT_SSH_COMMAND GIT_SSH GIT_EXEC_PATH" +
	" HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy" +
	" SSL_CERT_FILE SSL_CERT_DIR GIT_SSL_CAINFO GIT_SSL_CAPATH CURL_CA_BUNDLE "

func baseEnv(environ []string) []string {
	env := []string{
		"LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_NO_REPLACE_OBJECTS=1",
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_PAGER=cat",
		"GIT_EDITOR=false",
		"GIT_ALLOW_PROTOCOL=file",
	}
	ssh := "GIT_SSH_COMMAND=ssh -oBatchMode=yes -oConnectTimeout=20"
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if name != "" && strings.Contains(kept, " "+name+" ") {
			env = append(env, kv)
			if name == "GIT_SSH_COMMAND" || name == "GIT_SSH" {
				ssh = ""
			}
		}
	}
	if ssh != "" {
		env = append(env, ssh)
	}
	return env
}

// baseConfig holds for every call; a Cmd's Config comes after it and wins.
func baseConfig() []Setting {
	return []Setting{
		{"core.hooksPath", "/dev/null"},
		{"core.fsmonitor", "false"},
		{"core.attributesFile", "/dev/null"},
		{"core.excludesFile", "/dev/null"},
		{"core.quotePath", "false"},
		{"protocol.ext.allow", "never"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"init.defaultBranch", "main"},
	}
}

// Setting is one line of git configuration.
type Setting struct{ Key, Value string }

// Cmd is one call of git.
type Cmd struct {
	Dir      string    // working directory; "" for the process's own
	GitDir   string    // GIT_DIR: names the repository outright instead of looking for one
	Args     []string  // what follows "git"
	Env      []string  // additions, "NAME=value"
	Config   []Setting // additions to the configuration
	Stdin    io.Reader // nil: empty
	Stdout   io.Writer // nil: kept, up to MaxOut, and returned
	MaxOut   int64     // bytes; 0 means DefaultMaxOut
	Truncate bool      // at MaxOut stop git and return what there is, instead of failing
	// Start starts the process in place of cmd.Start, as another user or in a
	// wrapper; nil for none. The rest of the contract stays Do's.
	Start func(cmd *exec.Cmd) error
}

// Output is what a call printed.
type Output struct {
	Stdout    []byte
	Stderr    string // redacted, at most 16 KiB
	Truncated bool
}

// ExitError is a git that ran and failed.
type ExitError struct {
	Command string // the subcommand
	Code    int    // exit code, -1 when a signal ended it
	Stderr  string // redacted, at most 16 KiB
	Stdout  []byte // what was kept of standard output
}

// Error names the subcommand, its exit code and what git said.
func (e *ExitError) Error() string {
	s := strings.TrimSpace(e.Stderr)
	if len(s) > maxText {
		// git says last what it died of.
		s = "…" + strings.ToValidUTF8(s[len(s)-maxText:], "")
	}
	if s == "" {
		return fmt.Sprintf("git %s failed with exit code %d", e.Command, e.Code)
	}
	return fmt.Sprintf("git %s: %s", e.Command, s)
}

// Code returns the exit code of a git that failed, 0 for nil, -1 for any other error.
func Code(err error) int {
	if err == nil {
		return 0
	}
	var e *ExitError
	if errors.As(err, &e) {
		return e.Code
	}
	return -1
}

// Run calls git in dir and returns its standard output without the last newline.
func (g *Git) Run(ctx context.Context, dir string, args ...string) (string, error) {
	out, err := g.Do(ctx, Cmd{Dir: dir, Args: args})
	return strings.TrimSuffix(string(out.Stdout), "\n"), err
}

// RunBare is Run on the bare repository gitDir.
func (g *Git) RunBare(ctx context.Context, gitDir string, args ...string) (string, error) {
	out, err := g.Do(ctx, Cmd{Dir: gitDir, GitDir: gitDir, Args: args})
	return strings.TrimSuffix(string(out.Stdout), "\n"), err
}

// Do calls git. It fails with an *ExitError when git did, and with
// errs.Unavailable when ctx ended first.
func (g *Git) Do(ctx context.Context, c Cmd) (Output, error) {
	name := subcommand(c.Args)
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(run, g.path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = g.environ(c)
	cmd.Stdin = c.Stdin
	cmd.WaitDelay = killDelay
	ownGroup(cmd)

	limit := c.MaxOut
	if limit <= 0 {
		limit = DefaultMaxOut
	}
	stdout := &limited{max: limit, full: cancel}
	stderr := &limited{max: maxStderr, full: func() {}}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	start := c.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		if ctx.Err() != nil {
			return Output{}, errs.Wrap(errs.Unavailable, ctx.Err(), "git %s was stopped", name)
		}
		return Output{}, errs.Wrap(errs.Internal, err, "starting git %s", name)
	}
	err := cmd.Wait()
	if run.Err() != nil {
		endGroup(cmd)
	}
	out := Output{Stdout: stdout.buf.Bytes(), Stderr: Redact(stderr.buf.String()), Truncated: stdout.over}
	return out, outcome(ctx, c, name, out, err)
}

func outcome(ctx context.Context, c Cmd, name string, out Output, err error) error {
	var exit *exec.ExitError
	switch {
	case out.Truncated && c.Truncate:
		return nil
	case out.Truncated:
		return errs.New(errs.Internal, "git %s printed more than expected", name)
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errs.Wrap(errs.Unavailable, ctx.Err(), "git %s was stopped", name)
	case errors.As(err, &exit):
		return &ExitError{Command: name, Code: exit.ExitCode(), Stderr: out.Stderr, Stdout: out.Stdout}
	}
	return errs.Wrap(errs.Unavailable, err, "git %s was cut off", name)
}

func (g *Git) environ(c Cmd) []string {
	env := append([]string(nil), g.env...)
	if c.GitDir != "" {
		env = append(env, "GIT_DIR="+c.GitDir)
	}
	all := append(baseConfig(), c.Config...)
	env = append(env, "GIT_CONFIG_COUNT="+strconv.Itoa(len(all)))
	for i, s := range all {
		n := strconv.Itoa(i)
		env = append(env, "GIT_CONFIG_KEY_"+n+"="+s.Key, "GIT_CONFIG_VALUE_"+n+"="+s.Value)
	}
	return append(env, c.Env...)
}

func subcommand(args []string) string {
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			return a
		}
	}
	return "?"
}

// limited keeps the first max bytes, then calls full once and drops the rest.
// exec writes to it from one goroutine.
type limited struct {
	buf  bytes.Buffer
	max  int64
	over bool
	full func()
}

func (l *limited) Write(p []byte) (int, error) {
	room := l.max - int64(l.buf.Len())
	if int64(len(p)) <= room {
		return l.buf.Write(p)
	}
	l.buf.Write(p[:room]) // a bytes.Buffer does not fail
	if !l.over {
		l.over = true
		l.full()
	}
	return len(p), nil
}

var userinfoRE = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'"]*(@[^/\s@'"]*)*@`)

// Redact takes credentials in URLs out of s, and each of the secrets.
func Redact(s string, secrets ...string) string {
	s = userinfoRE.ReplaceAllString(s, "${1}***@")
	for _, x := range secrets {
		if len(x) >= 4 {
			s = strings.ReplaceAll(s, x, "***")
		}
	}
	return s
}

var versionRE = regexp.MustCompile(`^git version (\d+)\.(\d+)`)

// CheckVersion fails when git is older than 2.38, the first with
// merge-tree --write-tree.
func (g *Git) CheckVersion(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v, err := g.Run(ctx, "", "--version")
	if err != nil {
		return errs.Wrap(errs.Internal, err, "asking git for its version")
	}
	return checkVersion(v)
}

func checkVersion(v string) error {
	m := versionRE.FindStringSubmatch(v)
	if m == nil {
		return errs.New(errs.Internal, "git's version can't be read from %s", quote(v))
	}
	major, err1 := strconv.Atoi(m[1])
	minor, err2 := strconv.Atoi(m[2])
	if err1 != nil || err2 != nil || major < 2 || major == 2 && minor < 38 {
		return errs.New(errs.Invalid, "git %s.%s is too old", m[1], m[2]).WithHint("install git 2.38 or newer")
	}
	return nil
}

// quote shortens what a stranger sent.
func quote(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%.80q…", s)
	}
	return fmt.Sprintf("%q", s)
}
