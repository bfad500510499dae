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
	"gastown/internal/runner/apart"
)

// worktree is where one agent works: its files and a repository of its own, which
// finds the objects of the rig in the runner's clone. An agent can change all of
// it. So git is told where the repository is, instead of finding it by the .git
// file, and runs in the run's cell, with the rights of the agent: what an agent
// writes into the configuration gives it nothing that it has not.
type worktree struct {
	room   string // the run's directory
	dir    string // the files: <room>/tree
	admin  string // the repository: <room>/git
	branch string
	clone  *rigClone
	cell   apart.Cell
	env    []string // of git in it: the cell's home, once it has one
}

// What is in a room besides a home, which outlives the worktree.
const (
	roomTree  = "tree"
	roomGit   = "git"
	roomTmp   = "tmp"   // the agent's temporary files
	roomIndex = "index" // the private index of a checkpoint
	roomHome  = "home"
)

// treeSpec says what a worktree must be: a pure function of these.
type treeSpec struct {
	bead   string
	branch string // "" for a detached one
	start  string
	resume string     // a checkpoint: its first parent is checked out, its files are left uncommitted
	config string     // further configuration, for this worktree alone
	spare  *spare     // a worktree that is taken and changed; nil for none
	cell   apart.Cell // nil: one that keeps nothing apart. That of the spare, if there is one
}

// prepare makes the worktree in a room from nothing; what stood there, but the
// home, is moved to trash. All names must be valid.
func (c *rigClone) prepare(ctx context.Context, room, trash string, s treeSpec) (*worktree, error) {
	w := &worktree{room: room, dir: filepath.Join(room, roomTree), admin: filepath.Join(room, roomGit), branch: s.branch, clone: c, cell: s.cell}
	if w.cell == nil {
		w.cell = apart.Open()
	}
	if err := w.clear(trash); err != nil {
		return nil, err
	}
	if s.spare != nil && !s.spare.moveTo(w) {
		if err := w.clear(trash); err != nil { // half a spare
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

// layout writes a repository that borrows the clone's objects, without a process.
// HEAD names a branch that is not born: the commit may not be here yet.
func (w *worktree) layout(s treeSpec) error {
	if err := w.makeRoom(); err != nil {
		return err
	}
	for _, d := range []string{w.dir, w.admin, filepath.Join(w.admin, "objects", "info"), filepath.Join(w.admin, "objects", "pack"), filepath.Join(w.admin, "refs", "heads")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	head := "ref: refs/gastown/unborn\n"
	if w.branch != "" {
		head = "ref: refs/heads/" + w.branch + "\n"
	}
	files := []struct{ path, text string }{
		{filepath.Join(w.dir, ".git"), "gitdir: " + w.admin + "\n"},
		{filepath.Join(w.admin, "HEAD"), head},
		{filepath.Join(w.admin, "config"), gitConfig() + s.config},
		{filepath.Join(w.admin, "objects", "info", "alternates"), filepath.Join(w.clone.dir, "objects") + "\n"},
	}
	for _, f := range files {
		if err := os.WriteFile(f.path, []byte(f.text), 0o600); err != nil {
			return err
		}
	}
	err := errors.Join(w.cell.Give(w.admin), w.cell.Give(w.dir))
	for _, f := range files {
		err = errors.Join(err, w.cell.Give(f.path)) // those in a spare
	}
	return err
}

// makeRoom makes the room, closed to other runs.
func (w *worktree) makeRoom() error {
	return errors.Join(os.MkdirAll(w.room, 0o755), w.cell.Room(w.room))
}

// clear moves what is in the room, but the home, out of the way; trash is emptied
// in the background.
func (w *worktree) clear(trash string) error {
	for _, name := range []string{roomTree, roomGit, roomTmp, roomIndex} {
		if err := discard(filepath.Join(w.room, name), trash); err != nil {
			return errs.Wrap(errs.Unavailable, err, "moving an old worktree away")
		}
	}
	return nil
}

// remove clears the room, and removes it if no home is in it.
func (w *worktree) remove(trash string) error {
	if err := w.clear(trash); err != nil {
		return err
	}
	if err := os.Remove(w.room); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return errs.Wrap(errs.Unavailable, err, "removing the room of an old worktree")
	}
	return nil
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

// do makes a call in the run's cell.
func (w *worktree) do(ctx context.Context, c git.Cmd) (git.Output, error) {
	defer w.cell.Hold()()
	c.Start = w.cell.Start
	c.Env = append(c.Env, w.env...) // for what the agent's configuration starts
	return w.clone.of.git.Do(ctx, c)
}

func (w *worktree) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	out, err := w.do(ctx, w.cmd(args...))
	return strings.TrimSuffix(string(out.Stdout), "\n"), err
}

// push sends a commit to a reference of the hub, as the run itself.
func (w *worktree) push(ctx context.Context, hub hubAccess, commit, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, hubTimeout)
	defer cancel()
	_, err := w.do(ctx, hub.command(w.admin, "", 0, "push", "--quiet", "--no-verify",
		"--recurse-submodules=no", "--", hub.url(w.clone.name), "+"+commit+":"+ref))
	return err
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
	// Of the runner's address only: what else git is sent to must not learn the secret, and
	// is found through the proxy.
	base, _, _ := strings.Cut(url, "/git/")
	set(`http "`+base+`/"`, "extraHeader", "Authorization: Bearer "+secret)
	set(`http "`+base+`/"`, "proxy", "")
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
