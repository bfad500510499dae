package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
)

var rig = hub.ID{Town: "springfield", Rig: "app"}

// policy grants what the test says to whoever sends the right header.
type policy struct {
	mu    sync.Mutex
	grant GitGrant
}

func (p *policy) set(rules ...PushRule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.grant.Push = rules
}

func (p *policy) GitAccess(r *http.Request, rig string) (GitGrant, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer sandbox":
		return GitGrant{}, errs.New(errs.Unauthorized, "who are you?")
	case rig == "secret":
		return GitGrant{}, errs.New(errs.Forbidden, "that rig is not yours")
	case rig != "app":
		return GitGrant{}, errs.New(errs.NotFound, "there is no rig %q", rig)
	}
	return p.grant, nil
}

type freshener func(ctx context.Context, id hub.ID) error

func (f freshener) Fresh(ctx context.Context, id hub.ID) error { return f(ctx, id) }

// recorded is what the server saw of one request.
type recorded struct{ path, encoding, protocol string }

// house is a hub with one rig behind a gateway, and a sandbox's clone of it.
type house struct {
	t      testing.TB
	hub    *hub.Hub
	policy *policy
	url    string
	dir    string // the hub's repository
	clone  string
	tip    string

	mu   sync.Mutex
	seen []recorded
}

const own = "refs/heads/gt/nux/b-1"

func newHouse(t testing.TB, limits GitLimits, fresh Freshener) *house {
	t.Helper()
	tmp := t.TempDir()
	h := &house{t: t, clone: filepath.Join(tmp, "sandbox"), policy: &policy{}}
	up, work := filepath.Join(tmp, "up.git"), filepath.Join(tmp, "work")
	h.must(tmp, "init", "-q", "--bare", "-b", "main", up)
	h.must(tmp, "init", "-q", "-b", "main", work)
	if err := os.WriteFile(filepath.Join(work, "a.txt"), []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.must(work, "add", "-A")
	h.must(work, "commit", "-q", "-m", "first")
	h.must(work, "push", "-q", up, "main")
	var err error
	if h.hub, err = hub.Open(filepath.Join(tmp, "hub"), nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if h.tip, err = h.hub.Add(t.Context(), rig, hub.Remote{URL: up, Target: "main"}, hub.AddOptions{}); err != nil {
		t.Fatal(err)
	}
	if h.dir, err = h.hub.Path(rig); err != nil {
		t.Fatal(err)
	}
	h.policy.grant = GitGrant{ID: rig, Refusal: "the target branch is merged by gastown after done",
		Push: []PushRule{{Ref: own, Force: true}, {Ref: "refs/gastown/wip/b-1/", Force: true}}}

	handler := NewGit(h.hub, h.policy, fresh, limits, nil)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.seen = append(h.seen, recorded{r.URL.Path, r.Header.Get("Content-Encoding"), r.Header.Get("Git-Protocol")})
		h.mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	h.url = s.URL + "/runner/v1/git/app.git"
	h.must(tmp, "-c", "http.extraHeader=Authorization: Bearer sandbox", "clone", "-q", h.url, h.clone)
	h.must(h.clone, "config", "http.extraHeader", "Authorization: Bearer sandbox")
	return h
}

func (h *house) git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@x", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@x")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (h *house) must(dir string, args ...string) string {
	h.t.Helper()
	out, err := h.git(dir, args...)
	if err != nil {
		h.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

func (h *house) commit(file, text string) string {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.clone, file), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	h.must(h.clone, "add", "-A")
	h.must(h.clone, "commit", "-q", "-m", "change")
	return h.must(h.clone, "rev-parse", "HEAD")
}

func (h *house) refs() map[string]string {
	h.t.Helper()
	refs, err := h.hub.Refs(h.t.Context(), rig, "refs/")
	if err != nil {
		h.t.Fatal(err)
	}
	return refs
}

// refused pushes, and wants a refusal that says all of parts and changes nothing.
func (h *house) refused(refspecs []string, parts ...string) {
	h.t.Helper()
	before := fmt.Sprint(h.refs())
	out, err := h.git(h.clone, append([]string{"push", "-f", "origin"}, refspecs...)...)
	if err == nil {
		h.t.Errorf("push %v was accepted:\n%s", refspecs, out)
	}
	for _, p := range parts {
		if !strings.Contains(out, p) {
			h.t.Errorf("push %v does not say %q:\n%s", refspecs, p, out)
		}
	}
	if after := fmt.Sprint(h.refs()); after != before {
		h.t.Errorf("a refused push changed references:\n%s\n%s", before, after)
	}
}

func TestARunPushesItsOwnBranchAndCheckpoints(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	c := h.commit("b.txt", "x")
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own, "HEAD:refs/gastown/wip/b-1/3")
	if refs := h.refs(); refs[own] != c || refs["refs/gastown/wip/b-1/3"] != c {
		t.Errorf("references: %v", refs)
	}
	h.must(h.clone, "reset", "-q", "--hard", h.tip)
	c = h.commit("b.txt", "rewritten")
	h.must(h.clone, "push", "-q", "-f", "origin", "HEAD:"+own)
	if refs := h.refs(); refs[own] != c {
		t.Errorf("history was not rewritten: %v", refs)
	}
}

func TestRefusedPushesSayWhyAndChangeNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	c := h.commit("b.txt", "x")
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own)
	h.refused([]string{"HEAD:refs/heads/main"}, "remote: gastown refused this push", "[remote rejected]", "not yours to push",
		"remote: the target branch is merged by gastown after done", "You may push: gt/nux/b-1")
	h.refused([]string{":" + own}, "[remote rejected]", "deleting references is not allowed")
	h.refused([]string{"HEAD:refs/heads/gt/nux/b-2"}, "not yours to push")
	h.refused([]string{"HEAD:refs/heads/gt/nux/b-1x"}, "not yours to push")
	h.refused([]string{"HEAD:refs/gastown/wip/b-2/1"}, "not yours to push")
	h.refused([]string{"HEAD:refs/gastown/merge/b-1/1"}, "not yours to push")
	h.refused([]string{"HEAD:refs/tags/v1"}, "refs/tags/v1", "not yours to push")
	h.refused([]string{"HEAD~1:" + own, "HEAD:refs/heads/main"}, "refused with the rest of this push", "not yours to push")

	h.policy.set(PushRule{Ref: own, Frozen: "b-1 is in review"})
	h.refused([]string{"HEAD~1:" + own}, "b-1 is in review")
	h.policy.set(PushRule{Ref: own})
	h.refused([]string{"HEAD~1:" + own}, "[remote rejected]", "non-fast-forward")
	h.commit("b.txt", "y")
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own)
	if refs := h.refs(); refs[own] == c {
		t.Error("a fast-forward was refused")
	}
}

func TestABrokenObjectIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	blob := h.must(h.clone, "hash-object", "-w", "a.txt")
	tree := filepath.Join(t.TempDir(), "tree")
	if err := os.WriteFile(tree, []byte("100644 blob "+blob+"\t.git\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command("git", "mktree")
	cmd.Dir, cmd.Stdin = h.clone, in
	id, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	c := h.must(h.clone, "commit-tree", strings.TrimSpace(string(id)), "-p", h.tip, "-m", "evil")
	h.refused([]string{c + ":" + own}, "hasDotgit")
}

func TestFetchSpeaksVersionTwoAndFindsCommitsByID(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	h.mu.Lock()
	protocol := h.seen[0].protocol
	h.mu.Unlock()
	if protocol != "version=2" {
		t.Fatalf("the client sent %q", protocol)
	}
	trace := h.must(h.clone, "-c", "protocol.version=2", "ls-remote", "origin")
	if !strings.Contains(trace, "refs/heads/main") {
		t.Errorf("ls-remote:\n%s", trace)
	}
	c := h.commit("b.txt", "x")
	inner := c // not the tip of anything
	c = h.commit("b.txt", "y")
	h.must(h.clone, "push", "-q", "origin", "HEAD:refs/gastown/wip/b-1/1")
	h.must(h.dir, "update-ref", "refs/gastown/wip/b-2/1", c)
	h.must(h.dir, "update-ref", "refs/gastown/merge/b-2/1", c)
	for _, v := range []string{"0", "2"} {
		list := h.must(h.clone, "-c", "protocol.version="+v, "ls-remote", "origin")
		for ref, want := range map[string]bool{"refs/gastown/wip/b-1/1": true, "refs/gastown/merge/b-2/1": true,
			"refs/gastown/wip/b-2/1": false, "refs/upstream/": false} {
			if strings.Contains(list, ref) != want {
				t.Errorf("version %s shows %s: %v\n%s", v, ref, !want, list)
			}
		}
		other := filepath.Join(t.TempDir(), "other")
		h.must("/", "-c", "protocol.version="+v, "-c", "http.extraHeader=Authorization: Bearer sandbox", "clone", "-q", h.url, other)
		h.must(other, "config", "http.extraHeader", "Authorization: Bearer sandbox")
		h.must(other, "-c", "protocol.version="+v, "fetch", "-q", "origin", inner)
		h.must(other, "cat-file", "-e", inner)
		h.must(other, "-c", "protocol.version="+v, "fetch", "-q", "--depth=1", "origin", "refs/gastown/merge/b-2/1")
	}
	h.policy.mu.Lock()
	h.policy.grant.See = []string{"refs/gastown/wip/b-2/"}
	h.policy.mu.Unlock()
	if list := h.must(h.clone, "ls-remote", "origin"); !strings.Contains(list, "refs/gastown/wip/b-2/1") {
		t.Errorf("See shows nothing:\n%s", list)
	}
}

func TestAFetchIsServedFreshIfItCanBe(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	calls := 0
	h := newHouse(t, GitLimits{}, freshener(func(ctx context.Context, id hub.ID) error {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if id != rig {
			t.Errorf("asked for %v", id)
		}
		return errors.New("upstream is down")
	}))
	h.must(h.clone, "fetch", "-q", "origin")
	h.commit("b.txt", "x")
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own)
	mu.Lock()
	defer mu.Unlock()
	if calls != 2 { // the clone and the fetch, not the push
		t.Errorf("asked %d times", calls)
	}
}

func TestABigPushComesInChunks(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	noise := make([]byte, 3<<20)
	rng := rand.NewChaCha8([32]byte{1})
	if _, err := rng.Read(noise); err != nil {
		t.Fatal(err)
	}
	c := h.commit("noise.bin", string(noise))
	h.mu.Lock()
	h.seen = nil
	h.mu.Unlock()
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own)
	if refs := h.refs(); refs[own] != c {
		t.Errorf("references: %v", refs)
	}
	h.mu.Lock()
	posts := 0
	for _, s := range h.seen {
		if strings.HasSuffix(s.path, receivePack) {
			posts++
		}
	}
	h.mu.Unlock()
	if posts != 2 { // the probe and the push
		t.Errorf("%d posts", posts)
	}
	// A refusal reaches a client that is still sending, too.
	h.commit("noise2.bin", string(noise)+"x")
	h.refused([]string{"HEAD:refs/heads/main"}, "not yours to push")
}

func TestAPackBeyondTheLimitIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{PackBytes: 64 << 10}, nil)
	noise := make([]byte, 300<<10)
	rng := rand.NewChaCha8([32]byte{2})
	if _, err := rng.Read(noise); err != nil {
		t.Fatal(err)
	}
	h.commit("noise.bin", string(noise))
	h.refused([]string{"HEAD:" + own}, "remote rejected", "maximum allowed size")
}

func TestTooManyReferencesAreRefusedWithAMessage(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{Commands: 5}, nil)
	var specs []string
	for i := range 7 {
		specs = append(specs, fmt.Sprintf("HEAD:refs/gastown/wip/b-1/%d", i))
	}
	h.refused(specs, "more than 5 references")
}

func TestStrangersGetAStatusAndAReason(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	out, err := h.git(h.clone, "-c", "http.extraHeader=", "ls-remote", h.url)
	if err == nil || !strings.Contains(out, "Username") { // 401 makes git look for a credential
		t.Errorf("without a header:\n%s", out)
	}
	out, err = h.git(h.clone, "ls-remote", strings.Replace(h.url, "app.git", "secret.git", 1))
	if err == nil || !strings.Contains(out, "remote: that rig is not yours") || !strings.Contains(out, "403") {
		t.Errorf("another rig:\n%s", out)
	}
	base := strings.TrimSuffix(h.url, "/app.git")
	for _, c := range []struct {
		method, path, contentType string
		want                      int
	}{
		{"GET", "/nothing.git/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/app.git/info/refs", "", 404},
		{"GET", "/app.git/info/refs?service=git-upload-archive", "", 404},
		{"GET", "/app.git/info/refs?service=--upload-pack", "", 404},
		{"GET", "/app.git/HEAD", "", 404},
		{"GET", "/app/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/.git/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/app.git/..%2f..%2fx.git/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/app.git/git-receive-pack", "", 422},
		{"POST", "/app.git/info/refs?service=git-upload-pack", "", 422},
		{"POST", "/app.git/git-upload-pack", "text/plain", 422},
		{"POST", "/app.git/git-upload-pack", "application/x-git-upload-pack-request", 422},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, base+c.path, strings.NewReader("garbage"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer sandbox")
		req.Header.Set("Content-Type", c.contentType)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, res.StatusCode, c.want)
		}
	}
}

func TestAShallowSandboxCanPush(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	h.commit("b.txt", "x")
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own)
	h.clone = filepath.Join(t.TempDir(), "shallow")
	h.must("/", "-c", "http.extraHeader=Authorization: Bearer sandbox", "clone", "-q", "--depth=1", "-b", "gt/nux/b-1", h.url, h.clone)
	h.must(h.clone, "config", "http.extraHeader", "Authorization: Bearer sandbox")
	c := h.commit("c.txt", "x")
	h.must(h.clone, "push", "-q", "origin", "HEAD:"+own)
	if refs := h.refs(); refs[own] != c {
		t.Errorf("references: %v", refs)
	}
}

func TestATownCannotTakeAllTheSlots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(GitLimits{Concurrent: 4, Wait: time.Second}.withDefaults())
		var leaves []func()
		for range 2 {
			leave, err := s.enter(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		if _, err := s.enter(t.Context(), "a"); !errs.Is(err, errs.Overloaded) {
			t.Errorf("a third of the same town: %v", err)
		}
		leave, err := s.enter(t.Context(), "b")
		if err != nil {
			t.Errorf("another town: %v", err)
		}
		waited := make(chan error)
		go func() {
			l, err := s.enter(t.Context(), "a")
			if err == nil {
				l()
			}
			waited <- err
		}()
		synctest.Wait()
		leaves[0]()
		if err := <-waited; err != nil {
			t.Errorf("a turn that came free: %v", err)
		}
		leaves[1]()
		leave()
		if len(s.towns) != 0 || len(s.all) != 0 {
			t.Errorf("kept: %d towns, %d turns", len(s.towns), len(s.all))
		}
	})
}

func TestMoreRequestsThanAllowedAreTurnedAway(t *testing.T) {
	t.Parallel()
	inside, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	armed := make(chan struct{})
	h := newHouse(t, GitLimits{Concurrent: 1, Wait: time.Millisecond}, freshener(func(context.Context, hub.ID) error {
		select {
		case <-armed:
			once.Do(func() { close(inside); <-leave })
		default:
		}
		return nil
	}))
	close(armed)
	done := make(chan error, 1)
	go func() {
		_, err := h.git(h.clone, "ls-remote", "origin")
		done <- err
	}()
	<-inside
	if status, body := h.raw([]byte(flushPkt), ""); status != 429 || !strings.Contains(body, "too many") {
		t.Errorf("%d %q", status, body)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
