package hub

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/credential"
	"gastown/internal/vault"
)

var rig = ID{Town: "springfield", Rig: "app"}

// sh runs git as a person would, apart from the configuration of the machine.
func sh(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@x", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@x")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// commit writes name=text pairs in dir and commits everything.
func commit(t testing.TB, dir string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		write(t, dir, pairs[i], pairs[i+1])
	}
	sh(t, dir, "add", "-A")
	sh(t, dir, "commit", "-q", "--allow-empty", "-m", "change")
	return sh(t, dir, "rev-parse", "HEAD")
}

// world is an upstream, a person's clone of it and a hub.
type world struct {
	*Hub
	v        *vault.Vault
	upstream string // bare
	clone    string
	remote   Remote
	root     string
}

func emptyWorld(t testing.TB) *world {
	t.Helper()
	tmp := t.TempDir()
	w := &world{upstream: filepath.Join(tmp, "up.git"), clone: filepath.Join(tmp, "clone"), root: filepath.Join(tmp, "hub")}
	sh(t, tmp, "init", "-q", "--bare", "-b", "main", w.upstream)
	sh(t, tmp, "init", "-q", "-b", "main", w.clone)
	sh(t, w.clone, "remote", "add", "origin", w.upstream)
	var err error
	if w.v, err = vault.Open(filepath.Join(tmp, "vault")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.v.Close() })
	if w.Hub, err = Open(w.root, w.v, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	w.remote = Remote{URL: w.upstream, Target: "main"}
	return w
}

// newWorld has one commit at upstream and the rig added. It returns the tip.
func newWorld(t testing.TB) (*world, string) {
	t.Helper()
	w := emptyWorld(t)
	commit(t, w.clone, "a.txt", "one\n", "b.txt", "one\n")
	sh(t, w.clone, "push", "-q", "origin", "main")
	tip, err := w.Add(t.Context(), rig, w.remote, AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return w, tip
}

// agent pushes a commit on base into the hub as branch, as a sandbox would.
func (w *world) agent(t testing.TB, base, branch string, pairs ...string) string {
	t.Helper()
	dir, err := w.Path(rig)
	if err != nil {
		t.Fatal(err)
	}
	sh(t, w.clone, "checkout", "-q", "--detach", base)
	c := commit(t, w.clone, pairs...)
	sh(t, w.clone, "push", "-q", "-f", dir, c+":refs/heads/"+branch)
	return c
}

// person moves upstream's main, from base.
func (w *world) person(t testing.TB, base string, pairs ...string) string {
	t.Helper()
	sh(t, w.clone, "checkout", "-q", "--detach", base)
	c := commit(t, w.clone, pairs...)
	sh(t, w.clone, "push", "-q", "-f", "origin", c+":refs/heads/main")
	return c
}

func spec(tip, commit string) CandidateSpec {
	return CandidateSpec{Target: "main", Tip: tip, Commit: commit, Bead: "b-1", N: 1, Message: "Merge b-1",
		Author: Identity{Name: "Gastown", Email: "g@localhost"}, When: time.Unix(1700000000, 0)}
}

func wantKind(t *testing.T, err error, k errs.Kind, parts ...string) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got %v (%s), want kind %s", err, errs.KindOf(err), k)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error does not mention %q: %v", p, err)
		}
	}
}

// nothingLeft checks that a refused Add left no trace.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(w.root)
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestAddClonesUpstream(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	if want := sh(t, w.upstream, "rev-parse", "main"); tip != want {
		t.Errorf("tip is %s, want %s", tip, want)
	}
	refs, err := w.Refs(t.Context(), rig, "refs/")
	if err != nil || refs["refs/heads/main"] != tip || refs["refs/upstream/heads/main"] != tip {
		t.Errorf("references: %v, %v", refs, err)
	}
	if ids, err := w.List(); err != nil || len(ids) != 1 || ids[0] != rig {
		t.Errorf("List: %v, %v", ids, err)
	}
	_, err = w.Add(t.Context(), rig, w.remote, AddOptions{})
	wantKind(t, err, errs.Conflict, "already")
	out := filepath.Join(t.TempDir(), "c")
	dir, err := w.Path(rig)
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "/", "clone", "-q", dir, out)
	if got := sh(t, out, "symbolic-ref", "HEAD"); got != "refs/heads/main" {
		t.Errorf("a clone of the hub is on %s", got)
	}
}

func TestAddRefusesWhatCannotWorkAndLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("nothing at the address", func(t *testing.T) {
		w := emptyWorld(t)
		_, err := w.Add(ctx, rig, Remote{URL: filepath.Join(w.root, "none"), Target: "main"}, AddOptions{})
		wantKind(t, err, errs.NotFound)
		w.nothingLeft(t)
	})
	t.Run("nobody listens", func(t *testing.T) {
		w := emptyWorld(t)
		_, err := w.Add(ctx, rig, Remote{URL: "http://127.0.0.1:1/x.git", Target: "main"}, AddOptions{})
		wantKind(t, err, errs.Unavailable)
		w.nothingLeft(t)
	})
	t.Run("an empty repository", func(t *testing.T) {
		w := emptyWorld(t)
		_, err := w.Add(ctx, rig, w.remote, AddOptions{})
		wantKind(t, err, errs.Conflict, "empty", "--init-empty")
		w.nothingLeft(t)
	})
	t.Run("an unknown target names some that exist", func(t *testing.T) {
		w := emptyWorld(t)
		commit(t, w.clone, "a", "1")
		for i := range 7 {
			sh(t, w.clone, "push", "-q", "origin", fmt.Sprintf("main:refs/heads/b%d", i))
		}
		_, err := w.Add(ctx, rig, w.remote, AddOptions{})
		wantKind(t, err, errs.NotFound, `"main"`, "b0, b1, b2, b3, b4, …")
		w.nothingLeft(t)
	})
	t.Run("a bundle", func(t *testing.T) {
		w := emptyWorld(t)
		commit(t, w.clone, "a", "1")
		file := filepath.Join(t.TempDir(), "x.bundle")
		sh(t, w.clone, "bundle", "create", "-q", file, "main")
		_, err := w.Add(ctx, rig, Remote{URL: file, Target: "main"}, AddOptions{})
		wantKind(t, err, errs.Invalid, "is a file")
		w.nothingLeft(t)
	})
	t.Run("LFS", func(t *testing.T) {
		w := emptyWorld(t)
		commit(t, w.clone, "deep/er/.gitattributes", "# comment\n*.bin filter=lfs diff=lfs merge=lfs -text\n")
		sh(t, w.clone, "push", "-q", "origin", "main")
		_, err := w.Add(ctx, rig, w.remote, AddOptions{})
		wantKind(t, err, errs.Invalid, "LFS")
		w.nothingLeft(t)
	})
	t.Run("a submodule from outside", func(t *testing.T) {
		w := emptyWorld(t)
		commit(t, w.clone, ".gitmodules", "[submodule \"lib\"]\n\tpath = lib\n\turl = https://example.org/lib\n")
		sh(t, w.clone, "push", "-q", "origin", "main")
		_, err := w.Add(ctx, rig, w.remote, AddOptions{})
		wantKind(t, err, errs.Invalid, `"lib"`)
		w.nothingLeft(t)
	})
	t.Run("arguments", func(t *testing.T) {
		w := emptyWorld(t)
		for _, r := range []Remote{
			{URL: "ext::sh -c x", Target: "main"}, {URL: "--upload-pack=x", Target: "main"}, {URL: "https://u:p@h/x", Target: "main"},
			{URL: w.upstream, Target: "--x"}, {URL: w.upstream, Target: ""}, {URL: w.upstream, Target: "gt/x"}, {URL: w.upstream, Target: "gt"},
			{URL: w.upstream, Target: "main", Try: &credential.Credential{Kind: credential.Token, Secret: "x"}},
		} {
			_, err := w.Add(ctx, rig, r, AddOptions{})
			wantKind(t, err, errs.Invalid)
		}
		for _, id := range []ID{{"", "x"}, {"a", ".."}, {"../a", "x"}, {"a", "x/y"}, {"A", "x"}, {"a", "x.lock"}, {"a", "-x"}} {
			_, err := w.Add(ctx, id, w.remote, AddOptions{})
			wantKind(t, err, errs.Invalid)
		}
		w.nothingLeft(t)
	})
}

func TestACommentAboutLFSAndARelativeSubmoduleAreFine(t *testing.T) {
	t.Parallel()
	w := emptyWorld(t)
	commit(t, w.clone, ".gitattributes", "# no filter=lfs here\n*.txt text\n",
		".gitmodules", "[submodule \"lib\"]\n\tpath = lib\n\turl = ../lib.git\n")
	sh(t, w.clone, "push", "-q", "origin", "main")
	if _, err := w.Add(t.Context(), rig, w.remote, AddOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestAnEmptyRepositoryGetsAFirstCommitWhenAsked(t *testing.T) {
	t.Parallel()
	w := emptyWorld(t)
	tip, err := w.Add(t.Context(), rig, w.remote, AddOptions{InitEmpty: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := sh(t, w.upstream, "rev-parse", "main"); got != tip {
		t.Errorf("upstream is at %s, not %s", got, tip)
	}
	if got, err := w.Fetch(t.Context(), rig, w.remote); err != nil || got != tip {
		t.Errorf("Fetch: %s, %v", got, err)
	}
}

func TestAddFindsARepositoryWithoutItsSuffix(t *testing.T) {
	t.Parallel()
	w := emptyWorld(t)
	commit(t, w.clone, "a", "1")
	sh(t, w.clone, "push", "-q", "origin", "main")
	if _, err := w.Add(t.Context(), rig, Remote{URL: strings.TrimSuffix(w.upstream, ".git"), Target: "main"}, AddOptions{}); err != nil {
		t.Error(err)
	}
}

func TestFetchFollowsUpstreamEvenWhenItIsRewritten(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	next := w.person(t, tip, "a.txt", "two\n")
	sh(t, w.clone, "push", "-q", "origin", next+":refs/tags/v1")
	if got, err := w.Fetch(t.Context(), rig, w.remote); err != nil || got != next {
		t.Fatalf("Fetch: %s, %v", got, err)
	}
	refs, err := w.Refs(t.Context(), rig, "refs/")
	if err != nil || refs["refs/heads/main"] != next || refs["refs/tags/v1"] != next {
		t.Errorf("references: %v, %v", refs, err)
	}
	other := w.person(t, tip, "a.txt", "three\n")
	if got, err := w.Fetch(t.Context(), rig, w.remote); err != nil || got != other {
		t.Fatalf("after a rewrite: %s, %v", got, err)
	}
	_, err = w.Fetch(t.Context(), rig, Remote{URL: w.upstream, Target: "gone"})
	wantKind(t, err, errs.NotFound, "target branch")
	_, err = w.Fetch(t.Context(), ID{"springfield", "none"}, w.remote)
	wantKind(t, err, errs.NotFound)
}

func TestTagsThatCollideDoNotStopTheTarget(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	sh(t, w.clone, "push", "-q", "origin", tip+":refs/tags/v")
	if _, err := w.Fetch(t.Context(), rig, w.remote); err != nil {
		t.Fatal(err)
	}
	sh(t, w.upstream, "tag", "-d", "v")
	next := w.person(t, tip, "a.txt", "two\n")
	sh(t, w.clone, "push", "-q", "origin", next+":refs/tags/v/1")
	if got, err := w.Fetch(t.Context(), rig, w.remote); err != nil || got != next {
		t.Fatalf("Fetch: %s, %v", got, err)
	}
}

func TestDiffAndDropBead(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	ctx := t.Context()
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", strings.Repeat("x\n", 1000))
	patch, cut, err := w.Diff(ctx, rig, tip, c, 1<<20)
	if err != nil || cut || !strings.Contains(string(patch), "+x\n") {
		t.Errorf("diff: %d bytes, %v, %v", len(patch), cut, err)
	}
	if patch, cut, err = w.Diff(ctx, rig, tip, c, 100); err != nil || !cut || len(patch) != 100 {
		t.Errorf("short diff: %d bytes, %v, %v", len(patch), cut, err)
	}
	_, _, err = w.Diff(ctx, rig, tip, strings.Repeat("1", 40), 100)
	wantKind(t, err, errs.NotFound)

	w.candidate(t, tip, c)
	dir, _ := w.Path(rig)
	for _, ref := range []string{"refs/gastown/wip/b-1/1", "refs/gastown/wip/b-1/2", "refs/gastown/wip/b-10/1", "refs/heads/gt/nux/b-10"} {
		sh(t, w.clone, "push", "-q", dir, c+":"+ref)
	}
	for range 2 { // a repeat is harmless
		if err := w.DropBead(ctx, rig, "b-1", "gt/nux/b-1", "gt/nux/never"); err != nil {
			t.Fatal(err)
		}
	}
	refs, err := w.Refs(ctx, rig, "refs/")
	if err != nil || len(refs) != 4 || refs["refs/gastown/wip/b-10/1"] == "" || refs["refs/heads/gt/nux/b-10"] == "" {
		t.Errorf("left: %v, %v", refs, err)
	}
	wantKind(t, w.DropBead(ctx, rig, "b-1", "main"), errs.Invalid)

	const stray = "refs/gastown/wip/b-10/1"
	wantKind(t, w.DropRefs(ctx, rig, map[string]string{stray: tip}), errs.Conflict) // it has another value
	wantKind(t, w.DropRefs(ctx, rig, map[string]string{"refs/heads/main": tip}), errs.Invalid)
	for range 2 {
		if err := w.DropRefs(ctx, rig, map[string]string{stray: c, "refs/gastown/wip/b-11/1": c}); err != nil {
			t.Fatal(err)
		}
	}
	if refs, err := w.Refs(ctx, rig, "refs/gastown/"); err != nil || len(refs) != 0 {
		t.Errorf("left: %v, %v", refs, err)
	}
	wantKind(t, w.DropBead(ctx, rig, "../x"), errs.Invalid)
	if _, err := w.Refs(ctx, rig, "--format=x"); !errs.Is(err, errs.Invalid) {
		t.Errorf("a prefix as an option: %v", err)
	}
	if err := w.Maintain(ctx, rig); err != nil {
		t.Error(err)
	}
}

func TestRemovedRigsAndTownsAreGone(t *testing.T) {
	t.Parallel()
	w, _ := newWorld(t)
	ctx := t.Context()
	other := ID{Town: rig.Town, Rig: "other"}
	if _, err := w.Add(ctx, other, w.remote, AddOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.RemoveRig(ctx, rig); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := w.List(); err != nil || len(ids) != 1 || ids[0] != other {
		t.Errorf("List: %v, %v", ids, err)
	}
	if _, err := w.Add(ctx, rig, w.remote, AddOptions{}); err != nil {
		t.Errorf("adding it again: %v", err)
	}
	for range 2 {
		if err := w.RemoveTown(ctx, rig.Town); err != nil {
			t.Fatal(err)
		}
	}
	w.nothingLeft(t)
	wantKind(t, w.RemoveTown(ctx, ".."), errs.Invalid)
}

func TestALockOfADeadProcessIsSwept(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n")
	dir, _ := w.Path(rig)
	lock := filepath.Join(dir, "refs/gastown/merge/b-1/1.lock")
	write(t, dir, "refs/gastown/merge/b-1/1.lock", "")
	if _, err := w.Candidate(t.Context(), rig, spec(tip, c)); err == nil {
		t.Fatal("a fresh lock was not respected")
	}
	old := time.Now().Add(-4 * time.Hour)
	if err := os.Chtimes(lock, old, old); err != nil {
		t.Fatal(err)
	}
	w.candidate(t, tip, c)
}

func TestALockOfADeadProcessDoesNotKeepABeadsReferences(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	dir, _ := w.Path(rig)
	lock := filepath.Join(dir, "refs/gastown/merge/b-1/1.lock")
	write(t, dir, "refs/gastown/merge/b-1/1.lock", "")
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(lock, old, old); err != nil {
		t.Fatal(err)
	}
	if err := w.DropBead(t.Context(), rig, "b-1"); err != nil {
		t.Fatal(err)
	}
	if refs, err := w.Refs(t.Context(), rig, "refs/gastown/merge/b-1"); err != nil || len(refs) > 0 {
		t.Errorf("left: %v, %v", refs, err)
	}
}

func TestALockThatAGitAtWorkMayHoldStays(t *testing.T) {
	t.Parallel()
	w, _ := newWorld(t)
	dir, _ := w.Path(rig)
	lock := filepath.Join(dir, "refs/heads/main.lock")
	write(t, dir, "refs/heads/main.lock", "")
	in, feed := io.Pipe()
	atWork := make(chan error, 1)
	now := time.Now()
	w.Hub.now = func() time.Time { return now.Add(-time.Hour) } // when it began
	go func() {
		_, err := w.Do(t.Context(), dir, git.Cmd{Dir: dir, GitDir: dir, Args: []string{"update-ref", "--stdin"}, Stdin: in})
		atWork <- err
	}()
	if _, err := feed.Write([]byte("\n")); err != nil { // it reads: it has begun
		t.Fatal(err)
	}
	w.Hub.now = func() time.Time { return now.Add(time.Hour) }
	if n := w.sweep(dir); n != 0 {
		t.Errorf("%d locks were taken from a git at work", n)
	}
	if err := feed.Close(); err != nil {
		t.Fatal(err)
	}
	<-atWork // an empty line is no command: it fails
	if n := w.sweep(dir); n != 1 {
		t.Errorf("%d locks were swept after its end, want 1", n)
	}
	if _, err := os.Stat(lock); err == nil {
		t.Error("the lock is still there")
	}
}

func TestLeftoversOfADeadProcessAreSweptAtOpen(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	old := time.Now().Add(-4 * time.Hour)
	for _, name := range []string{".add-old", ".trash-old", ".add-new"} {
		write(t, root, name+"/repository/HEAD", "x")
		if strings.HasSuffix(name, "old") {
			if err := os.Chtimes(filepath.Join(root, name), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Open(root, nil, nil); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 || entries[0].Name() != ".add-new" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestATargetMayTakeTheNameOfAFormerOne(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	for i, name := range []string{"release", "release/1", "release/1/x", "release"} {
		if i > 0 {
			for _, ref := range strings.Fields(sh(t, w.upstream, "for-each-ref", "--format=%(refname)", "refs/heads/release")) {
				sh(t, w.upstream, "update-ref", "-d", ref)
			}
		}
		sh(t, w.upstream, "branch", name, "main")
		got, err := w.Fetch(t.Context(), rig, Remote{URL: w.upstream, Target: name})
		if err != nil || got != tip {
			t.Fatalf("%s: %s, %v", name, got, err)
		}
	}
}
