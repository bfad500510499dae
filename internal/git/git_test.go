package git

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func newGit(t testing.TB) *Git {
	t.Helper()
	g, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestOldVersionsAreRefusedClearly(t *testing.T) {
	t.Parallel()
	for v, ok := range map[string]bool{
		"git version 2.38.0": true, "git version 2.39.5 (Apple Git-154)": true, "git version 3.0.1": true,
		"git version 2.37.9": false, "git version 1.99": false, "nonsense": false, "": false,
		"git version 99999999999999999999.1": false,
	} {
		if err := checkVersion(v); (err == nil) != ok {
			t.Errorf("%q: %v", v, err)
		}
	}
	if err := checkVersion("git version 2.30.1"); !strings.Contains(err.Error(), "2.38") {
		t.Errorf("the error does not say what is needed: %v", err)
	}
	if err := newGit(t).CheckVersion(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTheCallersGitEnvironmentStaysOutside(t *testing.T) {
	t.Parallel()
	env := baseEnv([]string{"PATH=/bin", "HOME=/h", "GIT_DIR=/evil", "GIT_QUARANTINE_PATH=/q", "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_PARAMETERS='x'", "SECRET=x", "GIT_TRACE_CURL=1", "GIT_ASKPASS=/x", "=odd", "SSH_ASKPASS=/x"})
	joined := "\n" + strings.Join(env, "\n") + "\n"
	for _, bad := range []string{"/evil", "QUARANTINE", "CONFIG_COUNT", "PARAMETERS", "SECRET", "TRACE", "ASKPASS", "odd"} {
		if strings.Contains(joined, bad) {
			t.Errorf("%s came through:\n%s", bad, joined)
		}
	}
	for _, want := range []string{"PATH=/bin", "HOME=/h", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_GLOBAL=/dev/null", "LC_ALL=C"} {
		if !strings.Contains(joined, "\n"+want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestHooksOfARepositoryDoNotRun(t *testing.T) {
	t.Parallel()
	g, dir := newGit(t), t.TempDir()
	if _, err := g.Run(t.Context(), dir, "init", "-q"); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, "ran")
	hook := filepath.Join(dir, ".git", "hooks", "post-commit")
	if err := os.MkdirAll(filepath.Dir(hook), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hook, []byte("#!/bin/sh\ntouch "+mark+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := g.Do(t.Context(), Cmd{Dir: dir, Args: []string{"commit", "-q", "--allow-empty", "-m", "x"},
		Config: []Setting{{"user.name", "n"}, {"user.email", "e@x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the hook ran")
	}
}

func TestAFailureCarriesCodeAndWhatGitSaid(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	_, err := g.Run(t.Context(), t.TempDir(), "rev-parse", "HEAD")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 128 || exit.Command != "rev-parse" || !strings.Contains(exit.Stderr, "not a git repository") {
		t.Fatalf("got %#v", err)
	}
	if Code(err) != 128 || Code(nil) != 0 || Code(io.EOF) != -1 {
		t.Error("Code does not read the exit code")
	}
}

func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	cmd := Cmd{Dir: t.TempDir(), Args: []string{"help", "-a"}, MaxOut: 100}
	if _, err := g.Do(t.Context(), cmd); !errs.Is(err, errs.Internal) {
		t.Errorf("too much output: %v", err)
	}
	cmd.Truncate = true
	out, err := g.Do(t.Context(), cmd)
	if err != nil || !out.Truncated || len(out.Stdout) != 100 {
		t.Errorf("truncated to %d bytes, %v", len(out.Stdout), err)
	}
}

func TestTheEndOfTheContextEndsTheWholeGroup(t *testing.T) {
	t.Parallel()
	g, dir := newGit(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		// The alias starts a grandchild that ignores SIGTERM and keeps the pipe open.
		_, err := g.Do(ctx, Cmd{Dir: dir, Args: []string{"hang"}, Stdout: pw,
			Config: []Setting{{"alias.hang", "!trap '' TERM; sleep 1000 & echo $!; wait"}}})
		done <- err
	}()
	line := make([]byte, 32)
	n, err := pr.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, pr)
	cancel()
	if err := <-done; !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	pid := strings.TrimSpace(string(line[:n]))
	// The orphan is dead or a zombie that waits for init.
	out, err := exec.Command("ps", "-o", "stat=", "-p", pid).Output()
	if err == nil && !strings.HasPrefix(strings.TrimSpace(string(out)), "Z") {
		t.Errorf("process %s still runs: %q", pid, out)
	}
	expired, cancel2 := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel2()
	if _, err := g.Run(expired, dir, "--version"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a context that is over: %v", err)
	}
}

func TestCredentialsInURLsAreRedacted(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"fatal: https://user:tok@host/x bad":    "fatal: https://***@host/x bad",
		"'http://tok@host/x'":                   "'http://***@host/x'",
		"https://a@b@host/x":                    "https://***@host/x",
		"mail me@x.org":                         "mail me@x.org",
		"https://host/x@y":                      "https://host/x@y",
		"remote: token sesame was not accepted": "remote: token *** was not accepted",
	} {
		if got := Redact(in, "sesame", "x"); got != want {
			t.Errorf("Redact(%q) = %q", in, got)
		}
	}
}

var goodBranches = []string{"main", "gt/nux/b-12", "a", "feature/x.y", "x@y", "été", "a-b", "v1.0"}

var badBranches = []string{"", "-x", "--upload-pack=x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", `a\b`, "a@{1}", "@",
	"/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "a\x00b", "a\nb", "a\x7f", "refs/heads/x", "HEAD",
	"\xff", strings.Repeat("a", 201), strings.Repeat("0", 40)}

func TestBranchNames(t *testing.T) {
	t.Parallel()
	for _, b := range goodBranches {
		if err := ValidBranch(b); err != nil {
			t.Error(err)
		}
	}
	for _, b := range badBranches {
		if err := ValidBranch(b); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func TestReferenceNames(t *testing.T) {
	t.Parallel()
	for ref, ok := range map[string]bool{
		"refs/heads/main": true, "refs/gastown/wip/b/1": true, "refs/tags/v1": true,
		"refs/heads": false, "refs": false, "HEAD": false, "main": false, "refs/heads/": false, "refs//x": false,
		"refs/heads/a b": false, "--upload-pack=x": false, "refs/../x": false,
	} {
		if err := ValidRef(ref); (err == nil) != ok {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

var goodURLs = []string{"https://github.com/a/b.git", "https://host:8443/x", "http://localhost:3000/a", "http://127.0.0.1/x", "http://[::1]:80/x",
	"ssh://git@host/a", "ssh://host:22/a", "git@github.com:a/b.git", "file:///srv/x.git", "/srv/my repo", "https://[2001:db8::1]/x"}

var badURLs = []string{"", "-x", "--upload-pack=touch /tmp/x", "ext::sh -c x", "fd::17", "::x", "git://host/x", "ftp://host/x", "http://host/x",
	"https://user:sesame@host/x", "https://sesame@host/x", "ssh://git:sesame@host/x", "ssh://-oProxyCommand=x/y", "ssh://-x@host/y", "-oProxy@host:x",
	"git@-host:x", "git@host:-x", "relative/path", "./x", "host:x", "C:\\x", "file://host/x", "file:x", "https://host", "https://host/",
	"https:///x", "https://host/x?y=sesame", "https://host/x#y", "https://host/a\nb", "https://host/%0a", "https://ho st/x", "https://host:port/x",
	"http://127.0.0.1.evil.org/x", "http://localhost@evil.org/x", "javascript:x", "a\x00b", "/x\x00", "https://%zz/", "ssh://host/-x",
	"https://[fe80::1%25eth0]/x", "https://host:/x", "HTTPS://host/x", strings.Repeat("/a", 1025)}

func TestRemoteURLs(t *testing.T) {
	t.Parallel()
	for _, u := range goodURLs {
		if err := ValidRemoteURL(u); err != nil {
			t.Errorf("%q: %v", u, err)
		}
	}
	for _, u := range badURLs {
		err := ValidRemoteURL(u)
		if !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", u, err)
		} else if strings.Contains(err.Error(), "sesame") {
			t.Errorf("the error repeats a secret: %v", err)
		}
	}
	if err := ValidRemoteURL("https://a:b@host/x"); !strings.Contains(err.Error(), "--credential-file") {
		t.Errorf("no way out: %v", err)
	}
}

func TestLocalPaths(t *testing.T) {
	t.Parallel()
	for u, want := range map[string]string{"/a b": "/a b", "file:///a%20b": "/a b", "https://h/x": "", "g@h:x": ""} {
		if got := LocalPath(u); got != want {
			t.Errorf("LocalPath(%q) = %q", u, got)
		}
	}
}

// What ValidBranch lets through, git lets through too.
func FuzzValidBranch(f *testing.F) {
	for _, s := range append(append([]string{}, goodBranches...), badBranches...) {
		f.Add(s)
	}
	g := newGit(f)
	f.Fuzz(func(t *testing.T, s string) {
		if ValidBranch(s) != nil {
			return
		}
		if strings.HasPrefix(s, "-") || strings.Contains(s, "..") || strings.ContainsAny(s, "\x00\n :~^") {
			t.Fatalf("accepted %q", s)
		}
		if ValidRef("refs/heads/"+s) != nil && len(s) < maxRefLen-11 {
			t.Fatalf("%q is a branch but no reference", s)
		}
		if _, err := g.Run(t.Context(), "/", "check-ref-format", "refs/heads/"+s); err != nil {
			t.Fatalf("git refuses %q", s)
		}
	})
}

func FuzzValidRemoteURL(f *testing.F) {
	for _, s := range append(append([]string{}, goodURLs...), badURLs...) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if ValidRemoteURL(s) != nil {
			return
		}
		if s == "" || s[0] == '-' || strings.Contains(s, "::") && !strings.ContainsAny(s, "[/:") || strings.ContainsAny(s, "\x00\n\r") {
			t.Fatalf("accepted %q", s)
		}
		known := s[0] == '/' || strings.Contains(s, "@")
		for _, p := range []string{"https://", "http://", "ssh://", "file://"} {
			known = known || strings.HasPrefix(strings.ToLower(s), p)
		}
		if !known {
			t.Fatalf("accepted %q", s)
		}
		if p := LocalPath(s); p != "" && p[0] != '/' {
			t.Fatalf("%q is a relative path %q", s, p)
		}
	})
}
