package runner

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// worktree is where one agent works. git finds the repository by the two paths
// here, never by the .git file, which an agent can change.
type worktree struct {
	dir    string // the files
	admin  string // <clone>/worktrees/<bead>
	branch string
	clone  *rigClone
}

// treeSpec says what a worktree must be: a pure function of these.
type treeSpec struct {
	bead   string
	branch string // "" for a detached one
	start  string
	resume string  // a checkpoint: its first parent is checked out, its files are left uncommitted
	config string  // further configuration, for this worktree alone
	spares *spares // where a spare worktree may be taken from; nil for none
}

// prepare makes the worktree at dir from nothing; what stood there is moved to
// trash. All names must be valid.
func (c *rigClone) prepare(ctx context.Context, dir, id, trash string, s treeSpec) (*worktree, error) {
	w := &worktree{dir: dir, admin: filepath.Join(c.dir, "worktrees", id), branch: s.branch, clone: c}
	if err := w.remove(trash); err != nil {
		return nil, err
	}
	if s.spares != nil && !s.spares.take(w) {
		if err := w.remove(trash); err != nil { // half a spare
			return nil, err
		}
	}
	if err := w.layout(s); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "making the worktree")
	}
	at := s.start
	if s.resume != "" {
		at = s.resume
	}
	err := w.checkout(ctx, at)
	if err != nil && ctx.Err() == nil {
		// Only now is it worth asking: the usual case saves a process. When the commit is
		// here by now, another run has fetched it meanwhile.
		if err = c.ensure(ctx, at, s.bead); err == nil {
			err = w.checkout(ctx, at)
		}
	}
	if err == nil && s.resume != "" {
		_, err = w.run(ctx, "reset", "--quiet", "--mixed", s.resume+"^1", "--")
	}
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "preparing the worktree")
	}
	return w, nil
}

// checkout writes the files of a commit. -B makes or moves the branch.
func (w *worktree) checkout(ctx context.Context, commit string) error {
	args := []string{"checkout", "--quiet", "--force", "--no-track", "-B", w.branch, commit, "--"}
	if w.branch == "" {
		args = []string{"checkout", "--quiet", "--force", "--detach", commit, "--"}
	}
	_, err := w.run(ctx, args...)
	return err
}

// layout writes what `git worktree add` would, without a process.
func (w *worktree) layout(s treeSpec) error {
	for _, d := range []string{w.dir, w.admin} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	// Not the commit itself, which may not be here yet: every other fetch into this
	// clone would fail at a worktree whose HEAD names what is missing.
	head := "ref: refs/gastown/unborn\n"
	if w.branch != "" {
		head = "ref: refs/heads/" + w.branch + "\n"
		// A git that was killed may have left the branch locked; nobody else works on it.
		lock := filepath.Join(w.clone.dir, "refs", "heads", filepath.FromSlash(w.branch)+".lock")
		if err := os.Remove(lock); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	files := []struct{ path, text string }{
		{filepath.Join(w.dir, ".git"), "gitdir: " + w.admin + "\n"},
		{filepath.Join(w.admin, "gitdir"), filepath.Join(w.dir, ".git") + "\n"},
		{filepath.Join(w.admin, "commondir"), "../..\n"},
		{filepath.Join(w.admin, "HEAD"), head},
		{filepath.Join(w.admin, "config.worktree"), s.config},
	}
	for _, f := range files {
		if err := os.WriteFile(f.path, []byte(f.text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// remove moves the worktree out of the way; trash is emptied in the background.
func (w *worktree) remove(trash string) error {
	for _, p := range []string{w.dir, w.admin} {
		if err := discard(p, trash); err != nil {
			return errs.Wrap(errs.Unavailable, err, "moving an old worktree away")
		}
	}
	return os.MkdirAll(filepath.Dir(w.dir), 0o755)
}

// discard moves a path to trash; that it does not exist is fine.
func discard(path, trash string) error {
	err := os.Rename(path, filepath.Join(trash, rand.Text()))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// cmd is a git call in the worktree.
func (w *worktree) cmd(args ...string) git.Cmd {
	return git.Cmd{Dir: w.dir, GitDir: w.admin, Args: args, Env: []string{"GIT_WORK_TREE=" + w.dir}}
}

func (w *worktree) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	out, err := w.clone.of.git.Do(ctx, w.cmd(args...))
	return strings.TrimSuffix(string(out.Stdout), "\n"), err
}

// treeState is what `done` must know of a worktree.
type treeState struct {
	head   string   // the commit
	branch string   // "" when detached
	dirty  []string // changed, staged and untracked paths
}

// state asks git once. Submodules count only by the commit they stand at.
func (w *worktree) state(ctx context.Context) (treeState, error) {
	out, err := w.run(ctx, "status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all",
		"--ignore-submodules=dirty", "--no-renames")
	if err != nil {
		return treeState{}, err
	}
	return parseStatus(out), nil
}

// parseStatus reads git status --porcelain=v2 --branch -z.
func parseStatus(out string) treeState {
	var s treeState
	records := strings.Split(out, "\x00")
	for i := 0; i < len(records); i++ {
		r := records[i]
		kind, rest, _ := strings.Cut(r, " ")
		skip := map[string]int{"1": 7, "2": 8, "u": 9, "?": 0}
		switch {
		case strings.HasPrefix(r, "# branch.oid "):
			s.head = strings.TrimPrefix(r, "# branch.oid ")
		case strings.HasPrefix(r, "# branch.head "):
			if b := strings.TrimPrefix(r, "# branch.head "); b != "(detached)" {
				s.branch = b
			}
		case kind == "1" || kind == "2" || kind == "u" || kind == "?":
			if f := strings.SplitN(rest, " ", skip[kind]+1); len(f) == skip[kind]+1 {
				s.dirty = append(s.dirty, f[skip[kind]])
			}
			if kind == "2" {
				i++ // the old name of a rename
			}
		}
	}
	return s
}

// agentConfig is the configuration of one run's worktree: who commits, and a
// remote on loopback with the run's own secret.
func agentConfig(url, secret, author string) string {
	name, email := splitAuthor(author)
	var b strings.Builder
	set := func(section, key, value string) {
		b.WriteString("[" + section + "]\n\t" + key + " = " + quoteConfig(value) + "\n")
	}
	set("user", "name", name)
	set("user", "email", email)
	set(`remote "origin"`, "url", url)
	set(`remote "origin"`, "fetch", "+refs/heads/*:refs/remotes/origin/*")
	set("http", "extraHeader", "Authorization: Bearer "+secret)
	set("http", "proxy", "")
	set("push", "default", "current")
	set("commit", "gpgSign", "false")
	return b.String()
}

// splitAuthor takes "Name <mail>" apart.
func splitAuthor(s string) (name, email string) {
	name, email = "Gastown", "gastown@localhost"
	i := strings.LastIndexByte(s, '<')
	if i < 0 || !strings.HasSuffix(strings.TrimSpace(s), ">") {
		return name, email
	}
	if n := strings.TrimSpace(s[:i]); n != "" {
		name = n
	}
	if e := strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(s[i+1:]), ">")); e != "" {
		email = e
	}
	return name, email
}

// quoteConfig quotes a value for a git configuration file; control characters are dropped.
func quoteConfig(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
