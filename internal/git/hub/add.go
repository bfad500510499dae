package hub

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// AddOptions are choices for Add.
type AddOptions struct {
	// InitEmpty gives an empty upstream a first, empty commit on the target.
	InitEmpty bool
}

// Add clones upstream into a new repository of the hub and returns the tip of
// the target. It checks all that would otherwise fail at the first merge: the
// target exists, may be pushed, is not checked out under a person's hands, and
// needs neither LFS nor foreign submodules. On failure nothing is left behind.
func (h *Hub) Add(ctx context.Context, id ID, r Remote, o AddOptions) (tip string, err error) {
	if err := checkTarget(r); err != nil {
		return "", err
	}
	dir, err := h.path(id)
	if err != nil {
		return "", err
	}
	unlock, err := h.lock(ctx, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Lstat(dir); err == nil {
		return "", errs.New(errs.Conflict, "the rig %s has a repository on this server already", id)
	}
	there, err := h.Probe(ctx, r)
	if err != nil {
		return "", err
	}
	if err := checkThere(there, r, o); err != nil {
		return "", err
	}
	if err := h.checkWorktree(ctx, r); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(h.root, ".add-")
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "creating the rig's repository")
	}
	defer func() {
		if rmErr := os.RemoveAll(tmp); rmErr != nil {
			h.log.Warn("leftover of adding a rig", "path", tmp, "err", rmErr)
		}
	}()
	repo := filepath.Join(tmp, "repository")
	if tip, err = h.fill(ctx, repo, r, len(there.Tips) == 0); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", errs.Wrap(errs.Internal, err, "creating the town's directory")
	}
	if err := os.Rename(repo, dir); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return "", errs.New(errs.Conflict, "the rig %s has a repository on this server already", id)
		}
		return "", errs.Wrap(errs.Internal, err, "putting the rig's repository in place")
	}
	return tip, nil
}

func checkThere(there Branches, r Remote, o AddOptions) error {
	if len(there.Tips) == 0 {
		if o.InitEmpty {
			return nil
		}
		return errs.New(errs.Conflict, "the upstream repository is empty").
			WithHint("push a first commit, or let gastown make one with --init-empty")
	}
	if _, ok := there.Tips[r.Target]; !ok {
		return errs.New(errs.NotFound, "upstream has no branch %q", r.Target).WithHint("it has %s", there.some())
	}
	return nil
}

// fill makes the repository at dir from upstream and checks what it got.
func (h *Hub) fill(ctx context.Context, dir string, r Remote, empty bool) (string, error) {
	_, err := h.git.Run(ctx, h.root, "init", "--quiet", "--bare", "--template=", "--initial-branch="+r.Target, "--", dir)
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "creating the rig's repository")
	}
	if empty {
		return h.firstCommit(ctx, dir, r)
	}
	tip, err := h.fetchLocked(ctx, dir, r, cloneTimeout)
	if err != nil {
		return "", err
	}
	if err := h.checkContent(ctx, dir, tip); err != nil {
		return "", err
	}
	return tip, h.mayPush(ctx, dir, r, tip)
}

// firstCommit gives an empty upstream its first commit.
func (h *Hub) firstCommit(ctx context.Context, dir string, r Remote) (string, error) {
	out, err := h.run(ctx, dir, git.Cmd{Args: []string{"hash-object", "-t", "tree", "-w", "--stdin"}})
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "making the first commit")
	}
	who := Identity{Name: "Gastown", Email: "gastown@localhost"}
	tip, err := h.commitTree(ctx, dir, strings.TrimSpace(string(out.Stdout)), nil, who, h.now(), "Initial commit\n")
	if err != nil {
		return "", err
	}
	ref := "refs/heads/" + r.Target
	if _, err = h.talk(ctx, r, dir, talkTimeout, append(pushArgs(r), "--force-with-lease="+ref+":", "--", r.URL, tip+":"+ref)...); err != nil {
		return "", pushError(err, r)
	}
	return tip, h.moveTarget(ctx, dir, r.Target, tip)
}

// moveTarget records that upstream's target is at tip.
func (h *Hub) moveTarget(ctx context.Context, dir, target, tip string) error {
	_, err := h.run(ctx, dir, git.Cmd{Args: []string{"update-ref", "--stdin"}, Stdin: strings.NewReader(
		"update refs/upstream/heads/" + target + " " + tip + "\nupdate refs/heads/" + target + " " + tip + "\n")})
	return errs.Wrap(errs.Internal, err, "recording the target's tip")
}

// checkContent refuses what a sandbox could not check out: it reaches the hub only.
func (h *Hub) checkContent(ctx context.Context, dir, tip string) error {
	lfs, err := h.yes(ctx, dir, "grep", "--quiet", "-E", "-e", `^[^#]*[[:space:]]filter=lfs`, tip, "--", ":(glob)**/.gitattributes")
	if err != nil {
		return errs.Wrap(errs.Internal, err, "looking for LFS in the repository")
	}
	if lfs {
		return errs.New(errs.Invalid, "the repository uses git LFS, which gastown does not serve").
			WithHint("use a repository without LFS, or a branch that stores these files in git")
	}
	if has, err := h.holdsPath(ctx, dir, tip+":.gitmodules"); err != nil || !has {
		return err
	}
	out, err := h.run(ctx, dir, git.Cmd{Args: []string{"config", "--no-includes", "--blob", tip + ":.gitmodules", "-z", "--get-regexp", `^submodule\..*\.url$`}})
	if err != nil && git.Code(err) != 1 {
		return errs.Wrap(errs.Invalid, err, "the repository's .gitmodules does not parse")
	}
	for entry := range strings.SplitSeq(string(out.Stdout), "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		if key == "" || strings.HasPrefix(value, "./") || strings.HasPrefix(value, "../") {
			continue
		}
		name := strings.TrimSuffix(strings.TrimPrefix(key, "submodule."), ".url")
		return errs.New(errs.Invalid, "the repository has the submodule %.80q from outside, which a sandbox can't reach", name).
			WithHint("vendor it, or use a branch without submodules")
	}
	return nil
}

func (h *Hub) holdsPath(ctx context.Context, dir, object string) (bool, error) {
	_, err := h.run(ctx, dir, git.Cmd{Args: []string{"cat-file", "-e", object}})
	switch git.Code(err) {
	case 0:
		return true, nil
	case 1, 128:
		return false, nil
	}
	return false, err
}

// checkWorktree refuses a target that is checked out in a working copy on this
// machine, unless the remote is to update it and it is clean.
func (h *Hub) checkWorktree(ctx context.Context, r Remote) error {
	path := git.LocalPath(r.URL)
	if path == "" {
		return nil
	}
	tree, err := h.checkedOut(ctx, path, r.Target)
	if err != nil || tree == "" {
		return err
	}
	if !r.UpdateWorktree {
		return errCheckedOut(tree, r)
	}
	dirty, err := h.git.Run(ctx, tree, "status", "--porcelain", "--untracked-files=no")
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "looking at the working copy %s", tree)
	}
	if dirty != "" {
		n := strings.Count(dirty, "\n") + 1
		return errs.New(errs.Conflict, "the working copy %s has %s changed files", tree, strconv.Itoa(n)).
			WithHint("commit or stash them first")
	}
	return nil
}

func errCheckedOut(tree string, r Remote) error {
	return errs.New(errs.Conflict, "the branch %q is checked out in the working copy %s, and git refuses pushes to it", r.Target, tree).
		WithHint("choose another --target, or a bare clone (git clone --bare %s), or --update-worktree to have its files updated while it is clean", tree)
}

// checkedOut returns the working copy of the repository at path that has branch
// checked out, "" if none has.
func (h *Hub) checkedOut(ctx context.Context, path, branch string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	if st, err := os.Stat(path); err != nil {
		path += ".git" // git looks there, too
	} else if !st.IsDir() {
		return "", errs.New(errs.Invalid, "%s is a file, not a repository that can be pushed to", path)
	}
	list, err := h.git.Run(ctx, path, "worktree", "list", "--porcelain", "-z")
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "looking at the repository %s", path)
	}
	tree := ""
	for line := range strings.SplitSeq(list, "\x00") {
		if p, ok := strings.CutPrefix(line, "worktree "); ok {
			tree = p
		} else if line == "branch refs/heads/"+branch {
			return tree, nil
		}
	}
	return "", nil
}
