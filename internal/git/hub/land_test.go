package hub

import (
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gastown/internal/errs"
)

func TestLandingMovesUpstreamAndTheHubsCopy(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	ctx := t.Context()
	m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	got, err := w.Land(ctx, rig, w.remote, tip, m)
	if err != nil || got != (LandResult{Landed: true, Tip: m}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if up := sh(t, w.upstream, "rev-parse", "main"); up != m {
		t.Errorf("upstream is at %s", up)
	}
	if refs, err := w.Refs(ctx, rig, "refs/heads/main"); err != nil || refs["refs/heads/main"] != m {
		t.Errorf("the hub's copy: %v, %v", refs, err)
	}
	if got, err := w.Land(ctx, rig, w.remote, tip, m); err != nil || !got.Landed {
		t.Errorf("a repeat: %+v, %v", got, err)
	}
	if at, in, err := w.Contains(ctx, rig, w.remote, m); err != nil || !in || at != m {
		t.Errorf("Contains: %s, %v, %v", at, in, err)
	}
	if _, in, err := w.Contains(ctx, rig, w.remote, strings.Repeat("1", 40)); err != nil || in {
		t.Errorf("Contains an unknown commit: %v, %v", in, err)
	}
}

func TestALeaseIsLostToWhoeverPushedMeanwhile(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	other := w.person(t, tip, "b.txt", "person\n")
	got, err := w.Land(t.Context(), rig, w.remote, tip, m)
	if err != nil || got != (LandResult{Lost: true, Tip: other}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if up := sh(t, w.upstream, "rev-parse", "main"); up != other {
		t.Errorf("the person's push was overwritten: upstream is at %s", up)
	}
}

func TestAfterACrashAncestryDecides(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	// The push went through, the process died before it knew, and a person built on it.
	dir, _ := w.Path(rig)
	sh(t, dir, "push", "-q", w.upstream, m+":refs/heads/main")
	sh(t, w.clone, "fetch", "-q", "origin", "main")
	later := w.person(t, m, "c.txt", "later\n")
	got, err := w.Land(t.Context(), rig, w.remote, tip, m)
	if err != nil || got != (LandResult{Landed: true, Tip: later}) {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestOnlyADescendantOfTheTipLands(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	sh(t, w.clone, "checkout", "-q", "--orphan", "alone")
	alone := commit(t, w.clone, "a.txt", "alone")
	dir, _ := w.Path(rig)
	sh(t, w.clone, "push", "-q", dir, alone+":refs/heads/gt/nux/b-9")
	_, err := w.Land(t.Context(), rig, w.remote, tip, alone)
	wantKind(t, err, errs.Invalid, "descend")
	_, err = w.Land(t.Context(), rig, w.remote, tip, strings.Repeat("1", 40))
	wantKind(t, err, errs.NotFound)
	_, err = w.Land(t.Context(), rig, w.remote, tip, "main")
	wantKind(t, err, errs.Invalid)
}

func TestAProtectedBranchIsAClearRefusal(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	hook := "#!/bin/sh\necho 'use a pull request; see https://bot:sesame@forge/x' >&2\nexit 1\n"
	write(t, w.upstream, "hooks/pre-receive", hook)
	if err := os.Chmod(filepath.Join(w.upstream, "hooks/pre-receive"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := w.Land(t.Context(), rig, w.remote, tip, m)
	wantKind(t, err, errs.Forbidden, "pre-receive hook declined", "use a pull request", "mode branch or pr")
	if strings.Contains(err.Error(), "sesame") {
		t.Errorf("a secret in the error: %v", err)
	}
}

func TestAnUpstreamThatIsGoneIsUnavailableOrNotFound(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	_, err := w.Land(t.Context(), rig, Remote{URL: "http://127.0.0.1:1/x", Target: "main"}, tip, m)
	wantKind(t, err, errs.Unavailable, "whether it landed")
	if err := os.RemoveAll(w.upstream); err != nil {
		t.Fatal(err)
	}
	_, err = w.Land(t.Context(), rig, w.remote, tip, m)
	wantKind(t, err, errs.NotFound)
}

// workingCopy is a world whose upstream is a person's working copy on main.
func workingCopy(t *testing.T) *world {
	t.Helper()
	w := emptyWorld(t)
	commit(t, w.clone, "a.txt", "one\n", "b.txt", "one\n")
	w.upstream = w.clone
	w.remote.URL = w.clone
	return w
}

func TestACheckedOutTargetIsRefusedWithTheWaysOut(t *testing.T) {
	t.Parallel()
	w := workingCopy(t)
	_, err := w.Add(t.Context(), rig, w.remote, AddOptions{})
	wantKind(t, err, errs.Conflict, w.clone, "--target", "--bare", "--update-worktree")
	w.nothingLeft(t)
	w.remote.URL = "file://" + w.clone
	_, err = w.Add(t.Context(), rig, w.remote, AddOptions{})
	wantKind(t, err, errs.Conflict, "checked out")

	sh(t, w.clone, "branch", "develop")
	if _, err := w.Add(t.Context(), rig, Remote{URL: w.clone, Target: "develop"}, AddOptions{}); err != nil {
		t.Errorf("another target: %v", err)
	}
	tree := filepath.Join(t.TempDir(), "linked")
	sh(t, w.clone, "worktree", "add", "-q", tree, "-b", "release")
	_, err = w.Add(t.Context(), ID{"springfield", "b"}, Remote{URL: w.clone, Target: "release"}, AddOptions{})
	wantKind(t, err, errs.Conflict, "linked")
}

func TestACleanWorkingCopyIsUpdatedWhenAsked(t *testing.T) {
	t.Parallel()
	w := workingCopy(t)
	w.remote.UpdateWorktree = true
	write(t, w.clone, "a.txt", "dirty\n")
	_, err := w.Add(t.Context(), rig, w.remote, AddOptions{})
	wantKind(t, err, errs.Conflict, "1 changed file", "commit or stash")
	sh(t, w.clone, "checkout", "-q", "a.txt")
	config := sh(t, w.clone, "config", "--list", "--local")
	tip, err := w.Add(t.Context(), rig, w.remote, AddOptions{})
	if err != nil {
		t.Fatal(err)
	}

	// An agent works in its own clone of the hub.
	dir, _ := w.Path(rig)
	sandbox := filepath.Join(t.TempDir(), "sandbox")
	sh(t, "/", "clone", "-q", dir, sandbox)
	c := commit(t, sandbox, "a.txt", "agent\n")
	sh(t, sandbox, "push", "-q", "origin", c+":refs/heads/gt/nux/b-1")
	m := w.candidate(t, tip, c)

	write(t, w.clone, "b.txt", "dirty\n")
	_, err = w.Land(t.Context(), rig, w.remote, tip, m)
	wantKind(t, err, errs.Conflict, "commit or stash", w.clone)
	sh(t, w.clone, "checkout", "-q", "b.txt")
	w.remote.UpdateWorktree = false
	_, err = w.Land(t.Context(), rig, w.remote, tip, m)
	wantKind(t, err, errs.Conflict, "--update-worktree")
	w.remote.UpdateWorktree = true
	if got, err := w.Land(t.Context(), rig, w.remote, tip, m); err != nil || !got.Landed {
		t.Fatalf("%+v, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(w.clone, "a.txt")); err != nil || string(b) != "agent\n" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if s := sh(t, w.clone, "status", "--porcelain"); s != "" {
		t.Errorf("the working copy is not clean:\n%s", s)
	}
	if now := sh(t, w.clone, "config", "--list", "--local"); now != config {
		t.Errorf("the person's configuration changed:\n%s", now)
	}
}

func TestABranchIsPushedOverOurOwnWorkOnly(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	ctx := t.Context()
	const branch = "gt/nux/b-1"
	at := func() string { return sh(t, w.upstream, "rev-parse", branch) }
	c1 := w.agent(t, tip, branch, "a.txt", "1\n")
	for range 2 {
		if err := w.PushBranch(ctx, rig, w.remote, branch, c1); err != nil || at() != c1 {
			t.Fatalf("first push: %v", err)
		}
	}
	c2 := w.agent(t, tip, branch, "a.txt", "2\n")
	if err := w.PushBranch(ctx, rig, w.remote, branch, c2); err != nil || at() != c2 {
		t.Fatalf("rewriting our own: %v", err)
	}
	sh(t, w.clone, "checkout", "-q", "--detach", c2)
	theirs := commit(t, w.clone, "a.txt", "theirs\n")
	sh(t, w.clone, "push", "-q", "origin", theirs+":refs/heads/"+branch)
	c3 := w.agent(t, c2, branch, "a.txt", "3\n")
	wantKind(t, w.PushBranch(ctx, rig, w.remote, branch, c3), errs.Conflict, "somebody else")
	if at() != theirs {
		t.Error("somebody's commit was overwritten")
	}
	c4 := w.agent(t, theirs, branch, "a.txt", "4\n")
	if err := w.PushBranch(ctx, rig, w.remote, branch, c4); err != nil || at() != c4 {
		t.Fatalf("on top of theirs: %v", err)
	}
	sh(t, w.upstream, "update-ref", "-d", "refs/heads/"+branch)
	if err := w.PushBranch(ctx, rig, w.remote, branch, c4); err != nil || at() != c4 {
		t.Fatalf("after the branch was deleted: %v", err)
	}
	wantKind(t, w.PushBranch(ctx, rig, w.remote, "main", c4), errs.Invalid)
	wantKind(t, w.PushBranch(ctx, rig, w.remote, "--all", c4), errs.Invalid)
	wantKind(t, w.PushBranch(ctx, rig, w.remote, branch, strings.Repeat("1", 40)), errs.NotFound)
}

func TestManyLandingsAtOnceLoseNothing(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	var commits []string
	for _, b := range []string{"one", "two", "three", "four"} {
		commits = append(commits, w.agent(t, tip, "gt/nux/"+b, b+".txt", b))
	}
	var wg sync.WaitGroup
	for i, c := range commits {
		wg.Go(func() {
			at := tip
			for n := range 20 {
				s := spec(at, c)
				s.Bead, s.N = "b-"+string(rune('a'+i)), n+1
				cand, err := w.Candidate(t.Context(), rig, s)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := w.Land(t.Context(), rig, w.remote, at, cand.Commit)
				if err != nil {
					t.Error(err)
					return
				}
				if got.Landed {
					return
				}
				at = got.Tip
			}
			t.Error("never landed")
		})
	}
	wg.Wait()
	for _, c := range commits {
		sh(t, w.upstream, "merge-base", "--is-ancestor", c, "main")
	}
}

// forge serves repositories over HTTP like a forge does, for one user.
func forge(t *testing.T, root, user, password string) *httptest.Server {
	t.Helper()
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, p, ok := r.BasicAuth()
		if !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func TestTheTokenComesFromTheVault(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, secret, user, password string }{
		{"a bare token", "sesame-42", "x-access-token", "sesame-42"},
		{"user and password", "bot:sesa:me $(id) 'x'\n", "bot", "sesa:me $(id) 'x'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := emptyWorld(t)
			tip := commit(t, w.clone, "a.txt", "1\n")
			sh(t, w.clone, "push", "-q", "origin", "main")
			s := forge(t, filepath.Dir(w.upstream), c.user, c.password)
			r := Remote{URL: s.URL + "/up.git", Target: "main"}

			_, err := w.Add(t.Context(), rig, r, AddOptions{})
			wantKind(t, err, errs.Forbidden, "--credential-file")
			r.Secret = "git/springfield/app"
			_, err = w.Add(t.Context(), rig, r, AddOptions{})
			wantKind(t, err, errs.NotFound, "secret")
			if err := w.v.Put(r.Secret, []byte("wrong-token")); err != nil {
				t.Fatal(err)
			}
			_, err = w.Add(t.Context(), rig, r, AddOptions{})
			wantKind(t, err, errs.Forbidden, "token")
			w.nothingLeft(t)

			if err := w.v.Put(r.Secret, []byte(c.secret)); err != nil {
				t.Fatal(err)
			}
			// Without write access for HTTP pushes the backend answers 403.
			sh(t, w.upstream, "config", "http.receivepack", "false")
			_, err = w.Add(t.Context(), rig, r, AddOptions{})
			wantKind(t, err, errs.Forbidden, "not push")
			w.nothingLeft(t)
			sh(t, w.upstream, "config", "http.receivepack", "true")
			if got, err := w.Add(t.Context(), rig, r, AddOptions{}); err != nil || got != tip {
				t.Fatalf("Add: %s, %v", got, err)
			}
			m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
			if got, err := w.Land(t.Context(), rig, r, tip, m); err != nil || !got.Landed {
				t.Errorf("Land: %+v, %v", got, err)
			}
		})
	}
}

func TestARedirectToAnotherHostGetsNoToken(t *testing.T) {
	t.Parallel()
	t.Run("after the first host saw it", func(t *testing.T) { redirected(t, true) })
	t.Run("at once", func(t *testing.T) { redirected(t, false) })
}

// redirected asks a host that redirects to another, and wants the other to get nothing.
func redirected(t *testing.T, askFirst bool) {
	w := emptyWorld(t)
	var mu sync.Mutex
	asked, got := 0, ""
	ask := func(w http.ResponseWriter) {
		w.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
		w.WriteHeader(http.StatusUnauthorized)
	}
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		got += r.Header.Get("Authorization")
		ask(w)
	}))
	defer thief.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); askFirst && !ok {
			ask(w)
			return
		}
		http.Redirect(w, r, thief.URL+r.URL.RequestURI(), http.StatusFound)
	}))
	defer front.Close()
	if err := w.v.Put("git/a/b", []byte("sesame")); err != nil {
		t.Fatal(err)
	}
	_, err := w.Probe(t.Context(), Remote{URL: front.URL + "/x.git", Secret: "git/a/b"})
	wantKind(t, err, errs.Forbidden)
	mu.Lock()
	defer mu.Unlock()
	if asked != 0 || got != "" {
		t.Errorf("the other host was asked %d times and got %q", asked, got)
	}
}

func TestProbeFindsTheDefaultBranch(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	sh(t, w.upstream, "branch", "dev", "main")
	b, err := w.Probe(t.Context(), Remote{URL: "file://" + strings.ReplaceAll(w.upstream, "up.git", "up%2Egit")})
	if err != nil || b.Head != "main" || len(b.Tips) != 2 || b.Tips["dev"] != tip {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestAnEmptyWorkingCopyGetsItsFirstCommitToo(t *testing.T) {
	t.Parallel()
	w := emptyWorld(t)
	r := Remote{URL: w.clone, Target: "main"}
	_, err := w.Add(t.Context(), rig, r, AddOptions{InitEmpty: true})
	wantKind(t, err, errs.Conflict, "--update-worktree")
	r.UpdateWorktree = true
	tip, err := w.Add(t.Context(), rig, r, AddOptions{InitEmpty: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := sh(t, w.clone, "rev-parse", "HEAD"); got != tip {
		t.Errorf("the working copy is at %s, not %s", got, tip)
	}
}
