package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/runner/apart"
)

// checkpointer saves the work in progress of one run: a commit of all files
// (ignored ones not) on top of the agent's HEAD, made through a private index.
// The agent's branch, index and files are not touched.
type checkpointer struct {
	tree    *worktree
	hub     hubAccess // the run's own
	ref     string    // refs/gastown/wip/<bead>/<epoch>
	start   string    // the commit at which the run began: there is nothing to save on it
	scratch string    // directory of the private index, this checkpointer's alone
	author  string
	maxFile int64 // bytes; larger untracked files are left out

	mu     sync.Mutex // one checkpoint at a time; guards the fields below
	head   string     // of the last checkpoint
	stored string     // its tree
	commit string
	closed bool
}

// close waits for a checkpoint in progress; later ones do nothing.
func (c *checkpointer) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
}

// saved is the outcome of a checkpoint. Commit is "" when nothing is new.
type saved struct {
	Commit string
	Left   []string // paths that were not taken as they are, with the reason
	Took   time.Duration
}

// save makes a checkpoint, and pushes it unless local.
func (c *checkpointer) save(ctx context.Context, local bool) (saved, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return saved{}, nil
	}
	begin := time.Now()
	s, err := c.saveLocked(ctx, local)
	s.Took = time.Since(begin)
	return s, err
}

func (c *checkpointer) saveLocked(ctx context.Context, local bool) (saved, error) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	p, err := c.open()
	if err != nil {
		return saved{}, errs.Wrap(errs.Unavailable, err, "the private index")
	}
	defer func() {
		// What stays is removed by the next checkpoint.
		_ = apart.Remove(c.scratch)
	}()
	left, err := p.fill(ctx, c.maxFile, c.commit)
	if err != nil {
		return saved{Left: left}, err
	}
	out, err := p.git(ctx, nil, "rev-parse", "--verify", "HEAD^{commit}")
	if err != nil {
		return saved{Left: left}, err
	}
	head := strings.TrimSpace(out)
	tree, err := p.git(ctx, nil, "write-tree")
	if err != nil {
		return saved{Left: left}, err
	}
	tree = strings.TrimSpace(tree)
	if head == c.head && tree == c.stored {
		return saved{Left: left}, nil
	}
	if head == c.start && c.commit == "" {
		same, err := p.git(ctx, nil, "rev-parse", "--verify", "HEAD^{tree}")
		if err == nil && strings.TrimSpace(same) == tree {
			return saved{Left: left}, nil
		}
	}
	commit, err := p.commit(ctx, head, tree, c.author)
	if err != nil {
		return saved{Left: left}, err
	}
	if err := c.publish(ctx, commit, local); err != nil {
		return saved{Left: left}, err
	}
	c.head, c.stored, c.commit = head, tree, commit
	return saved{Commit: commit, Left: left}, nil
}

// publish keeps the commit in the worktree's repository too, so that nothing
// collects it, and sends it to the hub or, as what stays on the disk, to the clone.
func (c *checkpointer) publish(ctx context.Context, commit string, local bool) error {
	if _, err := c.tree.run(ctx, "update-ref", c.ref, commit); err != nil {
		return err
	}
	if local {
		return c.tree.clone.adopt(ctx, c.tree, c.start, commit, c.ref)
	}
	return c.tree.push(ctx, c.hub, commit, c.ref)
}

// privateIndex is an index file of our own over the agent's files.
type privateIndex struct {
	tree *worktree
	file string
}

// open makes a fresh private index, seeded with the agent's, so that unchanged
// files need not be read.
func (c *checkpointer) open() (*privateIndex, error) {
	if err := apart.Remove(c.scratch); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.scratch, 0o700); err != nil {
		return nil, err
	}
	p := &privateIndex{tree: c.tree, file: filepath.Join(c.scratch, "index")}
	if err := p.seed(); err != nil {
		return nil, err
	}
	return p, c.tree.cell.Give(c.scratch)
}

// maxIndex is the size of an agent's index, in bytes, above which it is not copied
// (some two million files). The copy is written by the runner, whom no limit of the
// run holds, and a file with holes can have any size.
const maxIndex = 256 << 20

// seed copies the agent's index, if there is one.
func (p *privateIndex) seed() error {
	src, err := p.tree.cell.Open(filepath.Join(p.tree.admin, "index"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(p.file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.Join(err, src.Close())
	}
	st, err := src.Stat()
	var n int64
	if err == nil && st.Size() <= maxIndex {
		n, err = io.Copy(dst, io.LimitReader(src, maxIndex+1))
	}
	if err = errors.Join(err, src.Close(), dst.Close()); err != nil {
		return err
	}
	if st.Size() > maxIndex || n > maxIndex {
		return os.Remove(p.file) // one is made of HEAD
	}
	// git takes entries as new as their index for possibly stale: the copy must
	// not look newer than it is.
	return os.Chtimes(p.file, st.ModTime(), st.ModTime())
}

func (p *privateIndex) git(ctx context.Context, stdin []string, args ...string) (string, error) {
	c := p.tree.cmd(args...)
	c.Env = append(c.Env, "GIT_INDEX_FILE="+p.file)
	if stdin != nil {
		c.Stdin = strings.NewReader(strings.Join(stdin, "\x00") + "\x00")
	}
	out, err := p.tree.do(ctx, c)
	return string(out.Stdout), err
}

// tries is how often git may fail on an index before that is believed. It maps
// files to compare them, also those that a command is not about (entries as new as
// the index), and dies when one is truncated meanwhile.
const tries = 5

// surely runs a command, again when git fails.
func (p *privateIndex) surely(ctx context.Context, stdin []string, args ...string) (out string, err error) {
	for range tries {
		if out, err = p.git(ctx, stdin, args...); err == nil || ctx.Err() != nil {
			break
		}
		p.unlock()
	}
	return out, err
}

// list runs a command that prints paths ending in NUL.
func (p *privateIndex) list(ctx context.Context, args ...string) ([]string, error) {
	out, err := p.surely(ctx, nil, args...)
	if err != nil || out == "" {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(out, "\x00"), "\x00"), nil
}

// fill brings the private index to the state of the files. last is the
// checkpoint before ("" for none): what can't be read now stays as it was there,
// or as in HEAD. It returns what was left out or left behind.
func (p *privateIndex) fill(ctx context.Context, maxFile int64, last string) (left []string, err error) {
	if _, err := os.Stat(p.file); errors.Is(err, os.ErrNotExist) {
		if _, err := p.git(ctx, nil, "read-tree", "HEAD"); err != nil {
			return nil, err
		}
	}
	others, err := p.list(ctx, "ls-files", "-z", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	add, left := sift(p.tree.dir, others, maxFile)
	changed, err := p.list(ctx, "diff-files", "-z", "--name-only", "--ignore-submodules=dirty")
	if err != nil {
		return left, err
	}
	if len(add)+len(changed) == 0 {
		return left, nil
	}
	paths := append(add, changed...)
	before := stampsOf(p.tree.dir, paths)
	bad := p.take(ctx, paths)
	if torn := before.moved(p.tree.dir); len(torn) > 0 {
		// They changed while they were read: one more try, then they stay at
		// their last stored content.
		before = stampsOf(p.tree.dir, torn)
		bad = append(bad, p.take(ctx, torn)...)
		bad = append(bad, before.moved(p.tree.dir)...)
	}
	if ctx.Err() != nil {
		return left, ctx.Err()
	}
	slices.Sort(bad)
	bad = slices.Compact(bad)
	for _, path := range bad {
		left = append(left, path+": it changes while it is read, or can't be read")
	}
	return left, p.restore(ctx, bad, last)
}

// stamps are what the file system says of files at one moment, finer than git
// looks: its own comparison takes whole seconds.
type stamps map[string]string

func stampsOf(dir string, paths []string) stamps {
	s := make(stamps, len(paths))
	for _, p := range paths {
		s[p] = stamp(filepath.Join(dir, filepath.FromSlash(p)))
	}
	return s
}

func stamp(path string) string {
	st, err := os.Lstat(path)
	if err != nil {
		return "gone"
	}
	return fmt.Sprint(st.Mode(), st.Size(), st.ModTime().UnixNano())
}

// moved lists the files that are not as they were.
func (s stamps) moved(dir string) []string {
	var out []string
	for p, was := range s {
		if stamp(filepath.Join(dir, filepath.FromSlash(p))) != was {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// sift keeps back untracked files that are too large and repositories inside
// the worktree.
func sift(dir string, others []string, maxFile int64) (add, left []string) {
	for _, path := range others {
		if strings.HasSuffix(path, "/") {
			left = append(left, path+": a git repository of its own")
			continue
		}
		st, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(path)))
		switch {
		case err != nil:
			// It is gone by now.
		case !st.Mode().IsRegular() && st.Mode().Type() != os.ModeSymlink:
			left = append(left, path+": neither a file nor a link")
		case maxFile > 0 && st.Size() > maxFile:
			left = append(left, path+": untracked and larger than "+strconv.FormatInt(maxFile>>20, 10)+" MiB")
		default:
			add = append(add, path)
		}
	}
	return add, left
}

// take puts paths into the index as they are now, or removes them where they
// are gone. When git fails on a set (a file that can't be read, one that is
// truncated while it is mapped kills git with SIGBUS), the set is halved until
// only the culprits are left; they are tried three times and returned.
func (p *privateIndex) take(ctx context.Context, paths []string) (bad []string) {
	if len(paths) == 0 || ctx.Err() != nil {
		return nil
	}
	for try := 0; ; try++ {
		p.unlock()
		_, err := p.git(ctx, paths, "update-index", "--add", "--remove", "--replace", "-z", "--stdin")
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if len(paths) > 1 {
			break
		}
		if try == 2 {
			p.unlock()
			return paths
		}
	}
	half := len(paths) / 2
	return append(p.take(ctx, paths[:half]), p.take(ctx, paths[half:])...)
}

// unlock removes what a killed git left; nobody else uses this index.
func (p *privateIndex) unlock() {
	// The usual answer is that there is none.
	_ = os.Remove(p.file + ".lock")
}

// restore sets paths to their content in the last checkpoint, else in HEAD,
// else removes them from the index.
func (p *privateIndex) restore(ctx context.Context, paths []string, last string) error {
	if len(paths) == 0 {
		return nil
	}
	if last == "" {
		last = "HEAD"
	}
	var info []string
	const chunk = 200 // argv stays small
	for part := range slices.Chunk(paths, chunk) {
		args := append([]string{"--literal-pathspecs", "ls-tree", "-z", "-r", "--full-tree", last, "--"}, part...)
		entries, err := p.list(ctx, args...)
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for _, e := range entries {
			meta, path, ok := strings.Cut(e, "\t")
			f := strings.Fields(meta)
			if ok && len(f) == 3 && slices.Contains(part, path) {
				known[path] = true
				info = append(info, f[0]+" "+f[2]+" 0\t"+path)
			}
		}
		for _, path := range part {
			if !known[path] {
				info = append(info, "0 "+strings.Repeat("0", 40)+"\t"+path)
			}
		}
	}
	_, err := p.surely(ctx, info, "update-index", "-z", "--index-info")
	return err
}

// commit makes the checkpoint's commit on top of head.
func (p *privateIndex) commit(ctx context.Context, head, tree, author string) (string, error) {
	name, email := splitAuthor(author)
	c := p.tree.cmd("commit-tree", "-p", head, "-m", "Work in progress (checkpoint)", tree)
	c.Env = append(c.Env, "GIT_AUTHOR_NAME="+name, "GIT_AUTHOR_EMAIL="+email,
		"GIT_COMMITTER_NAME="+name, "GIT_COMMITTER_EMAIL="+email)
	c.Config = []git.Setting{{Key: "commit.gpgSign", Value: "false"}}
	out, err := p.tree.do(ctx, c)
	return strings.TrimSpace(string(out.Stdout)), err
}
