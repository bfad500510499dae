package runner

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gastown/internal/git"
)

// bench is a worktree at the town's tip with a checkpointer, without a server.
type workbench struct {
	*fakeTown
	clone *rigClone
	w     *worktree
	c     *checkpointer
}

func newWorkbench(t testing.TB) *workbench {
	t.Helper()
	f := newTown(t)
	g, err := git.New()
	if err != nil {
		t.Fatal(err)
	}
	rs := newRigs(filepath.Join(f.disk, "rigs"), g, hubAccess{base: "http://127.0.0.1:1/git/-", secret: "x"})
	b := &workbench{fakeTown: f}
	if b.clone, err = rs.get("app"); err != nil {
		t.Fatal(err)
	}
	f.must(b.clone.dir, "fetch", "-q", f.work, "+HEAD:refs/gastown/have/x")
	f.write(f.disk, "trash/.keep", "")
	b.w = b.prepare("")
	b.c = &checkpointer{tree: b.w, ref: "refs/gastown/wip/app-aaaaa/1", start: f.tip,
		scratch: filepath.Join(f.disk, "tmp"), author: "A <a@x>", maxFile: 1 << 20}
	return b
}

func (b *workbench) prepare(resume string) *worktree {
	b.t.Helper()
	w, err := b.clone.prepare(context.Background(), filepath.Join(b.disk, "work", theBead), filepath.Join(b.disk, "trash"),
		treeSpec{bead: theBead, branch: branch, start: b.tip, resume: resume, config: agentConfig("http://127.0.0.1:1/x.git", "secret", "A \"B\" <a@x>")})
	if err != nil {
		b.t.Fatal(err)
	}
	return w
}

func (b *workbench) save() saved {
	b.t.Helper()
	s, err := b.c.save(context.Background(), true)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *workbench) files(commit string) []string {
	b.t.Helper()
	return strings.Split(b.must(b.clone.dir, "ls-tree", "-r", "--name-only", commit), "\n")
}

func TestAnIndexWithoutEndIsNotCopied(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.write(b.w.dir, "a.txt", "changed")
	if err := os.Truncate(filepath.Join(b.w.admin, "index"), maxIndex+1); err != nil { // a hole
		t.Fatal(err)
	}
	if got := b.must(b.clone.dir, "show", b.save().Commit+":a.txt"); got != "changed" {
		t.Errorf("the checkpoint holds %q", got)
	}
}

func TestACheckpointLeavesTheAgentsStateAlone(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.write(b.w.dir, "staged.txt", "staged")
	b.must(b.w.dir, "add", "staged.txt")
	b.write(b.w.dir, "a.txt", "changed")
	b.write(b.w.dir, "new/un tracked\té", "new")
	b.write(b.w.dir, "ignored", "no")
	before := b.must(b.w.dir, "status", "--porcelain=v2", "--branch")
	index, err := os.ReadFile(filepath.Join(b.w.admin, "index"))
	if err != nil {
		t.Fatal(err)
	}
	s := b.save()
	if want := []string{".gitignore", "a.txt", `"new/un tracked\t\303\251"`, "staged.txt"}; !slices.Equal(b.files(s.Commit), want) {
		t.Errorf("the checkpoint holds %q", b.files(s.Commit))
	}
	if after, err := os.ReadFile(filepath.Join(b.w.admin, "index")); err != nil || string(after) != string(index) {
		t.Errorf("the agent's index changed (%v)", err)
	}
	if after := b.must(b.w.dir, "status", "--porcelain=v2", "--branch"); after != before {
		t.Errorf("the state was\n%s\nand is\n%s", before, after)
	}
	if parent := b.must(b.clone.dir, "rev-parse", s.Commit+"^"); parent != b.tip {
		t.Errorf("the parent is %s", parent)
	}
	if s := b.save(); s.Commit != "" {
		t.Errorf("nothing changed, and yet %s was made", s.Commit)
	}
	if err := os.Remove(filepath.Join(b.w.dir, "a.txt")); err != nil {
		t.Fatal(err)
	}
	if s := b.save(); slices.Contains(b.files(s.Commit), "a.txt") {
		t.Error("a removed file is in the checkpoint")
	}
}

func TestAFreshWorktreeNeedsNoCheckpoint(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	if s := b.save(); s.Commit != "" {
		t.Errorf("%+v", s)
	}
	b.must(b.w.dir, "commit", "-q", "--allow-empty", "-m", "only a commit")
	if s := b.save(); s.Commit == "" {
		t.Error("a commit that is nowhere else was not saved")
	}
}

func TestAChangeOfTheSameSizeInTheSameInstantIsSeen(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	// The file is as new as the index: git then looks at the content.
	then := time.Now().Add(-time.Hour)
	date := func(path string) {
		if err := os.Chtimes(path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(b.w.dir, "a.txt")
	b.write(b.w.dir, "a.txt", "old!")
	date(file)
	b.must(b.w.dir, "add", "a.txt")
	date(filepath.Join(b.w.admin, "index"))
	b.write(b.w.dir, "a.txt", "new!")
	date(file)
	if got := b.must(b.clone.dir, "show", b.save().Commit+":a.txt"); got != "new!" {
		t.Fatalf("the checkpoint holds %q", got)
	}
}

func TestLargeUntrackedFilesAndInnerRepositoriesAreNamed(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.write(b.w.dir, "big.bin", strings.Repeat("x", 2<<20))
	b.write(b.w.dir, "small.txt", "small")
	b.must(b.w.dir, "init", "-q", "inner")
	b.must(filepath.Join(b.w.dir, "inner"), "commit", "-q", "--allow-empty", "-m", "x")
	s := b.save()
	if files := b.files(s.Commit); slices.Contains(files, "big.bin") || slices.Contains(files, "inner") || !slices.Contains(files, "small.txt") {
		t.Errorf("the checkpoint holds %q", files)
	}
	if text := strings.Join(s.Left, "\n"); !strings.Contains(text, "big.bin: untracked and larger than 1 MiB") || !strings.Contains(text, "inner/: a git repository") {
		t.Errorf("left: %s", text)
	}
}

func TestAnUnreadableFileCostsOnlyItself(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Skip("root reads everything")
	}
	b := newWorkbench(t)
	b.write(b.w.dir, "secret", "x")
	b.write(b.w.dir, "open", "x")
	if err := os.Chmod(filepath.Join(b.w.dir, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	s := b.save()
	if files := b.files(s.Commit); slices.Contains(files, "secret") || !slices.Contains(files, "open") || len(s.Left) != 1 {
		t.Errorf("the checkpoint holds %q, left %q", files, s.Left)
	}
}

func TestAFileThatIsRewrittenAllTheTimeCostsOnlyItself(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	torn := filepath.Join(b.w.dir, "a.txt")
	whole := strings.Repeat("0123456789abcdef", 4096)
	if err := os.WriteFile(torn, []byte(whole), 0o644); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			// Truncated, then written in pieces, as tools do.
			f, err := os.OpenFile(torn, os.O_TRUNC|os.O_WRONLY, 0o644)
			if err != nil {
				t.Error(err)
				return
			}
			for i := 0; i < len(whole) && err == nil; i += 4096 {
				_, err = f.WriteString(whole[i : i+4096])
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	for i := range 10 {
		name := "good" + string(rune('a'+i))
		b.write(b.w.dir, name, name)
		s := b.save()
		if got := b.must(b.clone.dir, "show", s.Commit+":"+name); got != name {
			t.Errorf("%s holds %q", name, got)
		}
	}
	close(stop)
	<-stopped
	if s := b.save(); b.must(b.clone.dir, "show", s.Commit+":a.txt") != whole {
		t.Error("the quiet file was not stored")
	}
}

func TestAFileThatMovedMeanwhileIsLeftAtItsLastContent(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.write(b.w.dir, "a.txt", "first")
	b.write(b.w.dir, "gone", "x")
	before := stampsOf(b.w.dir, []string{"a.txt", "gone", ".gitignore"})
	b.write(b.w.dir, "a.txt", "other")
	if err := os.Remove(filepath.Join(b.w.dir, "gone")); err != nil {
		t.Fatal(err)
	}
	if got := before.moved(b.w.dir); !slices.Equal(got, []string{"a.txt", "gone"}) {
		t.Errorf("moved: %q", got)
	}
	p, err := b.c.open()
	if err != nil {
		t.Fatal(err)
	}
	b.write(b.w.dir, "new", "x")
	if bad := p.take(t.Context(), []string{"a.txt", "new"}); len(bad) != 0 {
		t.Fatalf("bad: %q", bad)
	}
	if err := p.restore(t.Context(), []string{"a.txt", "new"}, ""); err != nil {
		t.Fatal(err)
	}
	tree, err := p.git(t.Context(), nil, "write-tree")
	if err != nil {
		t.Fatal(err)
	}
	if got := b.files(strings.TrimSpace(tree)); slices.Contains(got, "new") {
		t.Errorf("the tree holds %q", got)
	}
	if got := b.must(b.clone.dir, "show", strings.TrimSpace(tree)+":a.txt"); got != "one" {
		t.Errorf("a.txt holds %q", got)
	}
}

func TestLeftLocksAndOddThingsDontStopACheckpoint(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.write(b.c.scratch, "index.lock", "")
	b.write(b.c.scratch, "index", "garbage")
	b.write(b.w.admin, "index.lock", "")
	b.write(b.w.dir, "x.txt", "x")
	if err := os.Symlink("/nowhere", filepath.Join(b.w.dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	s := b.save()
	if files := b.files(s.Commit); !slices.Contains(files, "x.txt") || !slices.Contains(files, "dangling") {
		t.Errorf("the checkpoint holds %q", files)
	}
	// A file where a directory was, and the other way round.
	if err := os.Remove(filepath.Join(b.w.dir, "x.txt")); err != nil {
		t.Fatal(err)
	}
	b.write(b.w.dir, "x.txt/inside", "y")
	if files := b.files(b.save().Commit); !slices.Contains(files, "x.txt/inside") {
		t.Errorf("the checkpoint holds %q", files)
	}
}

func TestAConflictInProgressIsSaved(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.must(b.w.dir, "checkout", "-q", "-b", "other")
	b.write(b.w.dir, "a.txt", "theirs\n")
	b.must(b.w.dir, "commit", "-qam", "theirs")
	b.must(b.w.dir, "checkout", "-q", branch)
	b.write(b.w.dir, "a.txt", "ours\n")
	b.must(b.w.dir, "commit", "-qam", "ours")
	if _, err := b.try(b.w.dir, "merge", "other"); err == nil {
		t.Fatal("no conflict")
	}
	if got := b.must(b.clone.dir, "show", b.save().Commit+":a.txt"); !strings.Contains(got, "<<<<<<<") {
		t.Errorf("a.txt holds %q", got)
	}
}

func TestPreparingIsAPureFunctionOfItsSpec(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	want := b.must(b.w.dir, "status", "--porcelain=v2", "--branch", "--ignored")
	b.write(b.w.dir, "a.txt", "changed")
	b.write(b.w.dir, "ignored", "stays?")
	b.must(b.w.dir, "update-index", "--assume-unchanged", "a.txt")
	b.must(b.w.dir, "commit", "-q", "--allow-empty", "-m", "x")
	b.must(b.w.dir, "config", "core.bare", "true")
	b.write(b.w.admin, "index.lock", "")
	b.write(b.w.admin, "refs/heads/"+branch+".lock", "")
	b.w = b.prepare("")
	if got := b.must(b.w.dir, "status", "--porcelain=v2", "--branch", "--ignored"); got != want {
		t.Errorf("the state is\n%s\nnot\n%s", got, want)
	}
	if got, err := os.ReadFile(filepath.Join(b.w.dir, "a.txt")); err != nil || string(got) != "one\n" {
		t.Errorf("a.txt is %q, %v", got, err)
	}
	if got := b.must(b.w.dir, "config", "user.name"); got != `A "B"` {
		t.Errorf("user.name is %q", got)
	}
}

func TestASpareWorktreeBecomesTheRunsWithNothingLeftOfIt(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	b.write(b.work, "a.txt", "two\n")
	b.write(b.work, "only-here/x", "x")
	b.must(b.work, "rm", "-q", ".gitignore")
	b.must(b.work, "add", "-A")
	b.must(b.work, "commit", "-q", "-m", "other")
	other := b.must(b.work, "rev-parse", "HEAD")
	b.must(b.clone.dir, "fetch", "-q", b.work, "+HEAD:refs/gastown/have/y")
	sp := newSpares(filepath.Join(b.disk, "spare"))
	trash := filepath.Join(b.disk, "trash")
	for range 2 {
		if err := sp.fill(t.Context(), none(t), b.clone, trash, other); err != nil {
			t.Fatal(err)
		}
	}
	dir, admin := filepath.Join(b.disk, "spare", "app", "tree"), filepath.Join(b.disk, "spare", "app", "git")
	if got, err := os.ReadFile(filepath.Join(dir, "a.txt")); err != nil || string(got) != "two\n" {
		t.Fatalf("the spare's a.txt is %q, %v", got, err)
	}
	b.must(b.w.dir, "worktree", "prune")
	want := b.must(b.w.dir, "status", "--porcelain=v2", "--branch", "--ignored")
	w, err := b.clone.prepare(t.Context(), b.w.room, trash, treeSpec{bead: theBead, branch: branch, start: b.tip, spare: sp.take("app")})
	if err != nil {
		t.Fatal(err)
	}
	if got := b.must(w.dir, "status", "--porcelain=v2", "--branch", "--ignored"); got != want {
		t.Errorf("the state is\n%s\nnot\n%s", got, want)
	}
	if got, err := os.ReadFile(filepath.Join(w.dir, "a.txt")); err != nil || string(got) != "one\n" {
		t.Errorf("a.txt is %q, %v", got, err)
	}
	for _, p := range []string{dir, admin, filepath.Join(w.dir, "only-here")} {
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is still there (%v)", p, err)
		}
	}
	if _, err := b.clone.prepare(t.Context(), b.w.room, trash, treeSpec{bead: theBead, branch: branch, start: b.tip, spare: sp.take("app")}); err != nil {
		t.Errorf("without a spare: %v", err)
	}
}

func TestAWorktreesRemoteIsItsOwn(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	other, err := b.clone.prepare(t.Context(), filepath.Join(b.disk, "work", "app-bbbbb"), filepath.Join(b.disk, "trash"),
		treeSpec{bead: "app-bbbbb", branch: "gt/x/app-bbbbb", start: b.tip, config: agentConfig("http://127.0.0.1:1/other.git", "o", "")})
	if err != nil {
		t.Fatal(err)
	}
	if a, o := b.must(b.w.dir, "remote", "get-url", "origin"), b.must(other.dir, "remote", "get-url", "origin"); a == o || !strings.HasSuffix(o, "other.git") {
		t.Errorf("origin is %s and %s", a, o)
	}
	b.must(b.w.dir, "worktree", "list")
}

func FuzzStatus(f *testing.F) {
	f.Add("# branch.oid abc\x00# branch.head main\x001 .M N... 100644 100644 100644 a b f ile\x00? new\x00")
	f.Add("2 R. N... 1 2 3 a b R100 new\x00old\x00u UU N... 1 2 3 4 a b c conflict\x00")
	f.Add("1 \x002\x00?\x00")
	f.Fuzz(func(t *testing.T, out string) {
		s := parseStatus(out)
		if len(s.dirty) > strings.Count(out, "\x00")+1 {
			t.Errorf("%d paths from %q", len(s.dirty), out)
		}
	})
}

func TestStatusIsReadWithOddNames(t *testing.T) {
	t.Parallel()
	s := parseStatus("# branch.oid abc\x00# branch.head gt/x\x001 .M N... 100644 100644 100644 a b with space\x00" +
		"2 R. N... 1 2 3 a b R100 new name\x00old\x00u UU N... 1 2 3 4 a b c conflict\x00? un tracked\x00")
	if s.head != "abc" || s.branch != "gt/x" || !slices.Equal(s.dirty, []string{"with space", "new name", "conflict", "un tracked"}) {
		t.Errorf("%+v", s)
	}
}
