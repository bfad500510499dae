package hub

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/credential"
	"gastown/internal/vault"
)

// Deadlines of a single git process.
const (
	localTimeout = 2 * time.Minute
	cloneTimeout = 30 * time.Minute
	talkTimeout  = 5 * time.Minute
	// staleLock is the age at which a reference's lock file must belong to a
	// process that died, if no git of ours is at work that is older: then only one
	// that a killed server left could hold it, and git does for milliseconds.
	staleLock = 10 * time.Second
	// staleTemp is the age at which a half-added or half-deleted repository must
	// be a dead process's: longer than any Add may take.
	staleTemp = 3 * time.Hour
)

// ID names a rig's repository. Both parts are slugs.
type ID struct{ Town, Rig string }

// String returns town/rig.
func (id ID) String() string { return id.Town + "/" + id.Rig }

// Remote is a rig's upstream.
type Remote struct {
	URL    string // see git.ValidRemoteURL
	Target string // the branch that merges land on
	Secret string // vault entry with the credential, "" for none
	// Try is used instead of the one that Secret names, to see whether it works.
	Try *credential.Credential
	// UpdateWorktree lets Land push to a branch that is checked out in a clean
	// working copy on this machine, and updates its files too.
	UpdateWorktree bool
}

// Hub is the set of repositories under one root.
type Hub struct {
	root   string
	git    *git.Git
	vault  *vault.Vault
	log    *slog.Logger
	now    func() time.Time
	logins *credential.Logins

	mu    sync.Mutex             // guards what follows
	sizes map[string]sized       // of towns, measured within sizeFresh
	locks map[string]*repoLock   // by path, only those in use
	begun map[string][]time.Time // when the gits began that are at work on a repository, by path
}

type repoLock struct {
	held  chan struct{} // capacity 1: full while held
	users int           // holders and waiters; guarded by Hub.mu
}

// Open opens the hub under root, creating the directory. It fails when git is
// missing or older than 2.38. v may be nil if no remote names a secret.
func Open(root string, v *vault.Vault, log *slog.Logger) (*Hub, error) {
	g, err := git.New()
	if err != nil {
		return nil, err
	}
	if err := g.CheckVersion(context.Background()); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "opening the hub")
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "creating the hub's directory")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{root: abs, git: g, vault: v, log: log, now: time.Now, logins: credential.NewLogins(time.Now), locks: map[string]*repoLock{}, sizes: map[string]sized{},
		begun: map[string][]time.Time{}}
	return h, h.sweepTemp()
}

// sweepTemp deletes what calls of a dead process left in the making.
func (h *Hub) sweepTemp() error {
	entries, err := os.ReadDir(h.root)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "listing the hub")
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".add-") && !strings.HasPrefix(e.Name(), ".trash-") {
			continue
		}
		if st, err := e.Info(); err != nil || h.now().Sub(st.ModTime()) < staleTemp {
			continue // gone already, or another process is at work
		}
		if err := os.RemoveAll(filepath.Join(h.root, e.Name())); err != nil {
			h.log.Warn("leftover in the hub", "name", e.Name(), "err", err)
		}
	}
	return nil
}

// Git returns the git that the hub runs, for serving its repositories.
func (h *Hub) Git() *git.Git { return h.git }

// Path returns the directory of a rig's repository, errs.NotFound when there is none.
func (h *Hub) Path(id ID) (string, error) {
	p, err := h.path(id)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(p, "HEAD")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", errs.New(errs.NotFound, "the rig %s has no repository on this server", id)
		}
		return "", errs.Wrap(errs.Internal, err, "looking for the repository of %s", id)
	}
	return p, nil
}

var slugRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

func (h *Hub) path(id ID) (string, error) {
	for _, s := range []string{id.Town, id.Rig} {
		if !validSlug(s) {
			return "", errs.New(errs.Invalid, "%.120q is not the name of a town or rig", s)
		}
	}
	return filepath.Join(h.root, id.Town, id.Rig+".git"), nil
}

func validSlug(s string) bool {
	return slugRE.MatchString(s) && !strings.Contains(s, "..") && !strings.HasSuffix(s, ".git") &&
		!strings.HasSuffix(s, ".lock") && !strings.HasSuffix(s, ".")
}

// validBead accepts ids that are one component of a reference name.
func validBead(bead string) error {
	if !slugRE.MatchString(strings.ToLower(bead)) || !validSlug(strings.ToLower(bead)) {
		return errs.New(errs.Invalid, "%.120q is not the id of a bead", bead)
	}
	return nil
}

// lock takes the repository's lock, or fails with errs.Unavailable when ctx
// ends first. The caller calls unlock.
func (h *Hub) lock(ctx context.Context, path string) (unlock func(), err error) {
	h.mu.Lock()
	l := h.locks[path]
	if l == nil {
		l = &repoLock{held: make(chan struct{}, 1)}
		h.locks[path] = l
	}
	l.users++
	h.mu.Unlock()

	leave := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(h.locks, path)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for the repository")
	}
}

// run calls git on the repository at dir, with the deadline of local work. A
// call that met a lock left by a dead process removes it and tries once more,
// if its input can be read again.
func (h *Hub) run(ctx context.Context, dir string, c git.Cmd) (git.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	c.Dir, c.GitDir = dir, dir
	out, err := h.Do(ctx, dir, c)
	if err == nil || !LockedOut(err.Error()) || !rewound(c.Stdin) || h.sweep(dir) == 0 {
		return out, diskTrouble(err)
	}
	out, err = h.Do(ctx, dir, c)
	return out, diskTrouble(err)
}

func rewound(in io.Reader) bool {
	if in == nil {
		return true
	}
	s, ok := in.(io.Seeker)
	if !ok {
		return false
	}
	_, err := s.Seek(0, io.SeekStart)
	return err == nil
}

// Do calls a git that works on the repository at dir. Every git that may write
// there goes through it: while one is at work, no lock is swept that it may hold.
func (h *Hub) Do(ctx context.Context, dir string, c git.Cmd) (git.Output, error) {
	now := h.now()
	h.mu.Lock()
	h.begun[dir] = append(h.begun[dir], now)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		all := h.begun[dir]
		i := slices.Index(all, now)
		if all = slices.Delete(all, i, i+1); len(all) == 0 {
			delete(h.begun, dir)
		} else {
			h.begun[dir] = all
		}
	}()
	return h.git.Do(ctx, c)
}

// text is run for a call whose standard output is one short text.
func (h *Hub) text(ctx context.Context, dir string, args ...string) (string, error) {
	out, err := h.run(ctx, dir, git.Cmd{Args: args})
	return strings.TrimSuffix(string(out.Stdout), "\n"), err
}

// yes is run for a call that answers with exit code 0 or 1.
func (h *Hub) yes(ctx context.Context, dir string, args ...string) (bool, error) {
	_, err := h.run(ctx, dir, git.Cmd{Args: args})
	switch git.Code(err) {
	case 0:
		return true, nil
	case 1:
		return false, nil
	}
	return false, err
}

// LockedOut reports whether git complained about somebody else's lock file.
func LockedOut(stderr string) bool {
	return strings.Contains(stderr, ".lock': File exists")
}

// SweepLocks removes lock files of references that a dead process left behind:
// those older than ten seconds and than every git that is at work there.
func (h *Hub) SweepLocks(id ID) error {
	dir, err := h.Path(id)
	if err != nil {
		return err
	}
	h.sweep(dir)
	return nil
}

func (h *Hub) sweep(dir string) int {
	n, before := 0, h.now().Add(-staleLock)
	h.mu.Lock()
	for _, begun := range h.begun[dir] {
		if begun.Before(before) {
			before = begun
		}
	}
	h.mu.Unlock()
	// Errors are skipped: files come and go under our eyes, and the caller's next git call tells.
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() && d.Name() == "objects" {
			return fs.SkipDir
		}
		if st, err := d.Info(); err == nil && st.Mode().IsRegular() && strings.HasSuffix(p, ".lock") &&
			st.ModTime().Before(before) && os.Remove(p) == nil {
			h.log.Warn("removed a stale lock from a hub repository", "path", p)
			n++
		}
		return nil
	})
	return n
}

// RemoveRig deletes a rig's repository. One that is not there is no error.
func (h *Hub) RemoveRig(ctx context.Context, id ID) error {
	p, err := h.path(id)
	if err != nil {
		return err
	}
	unlock, err := h.lock(ctx, p)
	if err != nil {
		return err
	}
	defer unlock()
	return h.discard(p)
}

// RemoveTown deletes all repositories of a town.
func (h *Hub) RemoveTown(_ context.Context, town string) error {
	if !validSlug(town) {
		return errs.New(errs.Invalid, "%.120q is not the name of a town", town)
	}
	return h.discard(filepath.Join(h.root, town))
}

// discard renames before it deletes: a repository is there whole or not at all.
func (h *Hub) discard(p string) error {
	trash, err := os.MkdirTemp(h.root, ".trash-")
	if err != nil {
		return errs.Wrap(errs.Internal, err, "deleting a repository")
	}
	err = os.Rename(p, filepath.Join(trash, "repository"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, os.RemoveAll(trash)); err != nil {
		return errs.Wrap(errs.Internal, err, "deleting a repository")
	}
	return nil
}

// List returns all rigs that have a repository, sorted by town and rig.
func (h *Hub) List() ([]ID, error) {
	towns, err := os.ReadDir(h.root)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "listing the hub")
	}
	var ids []ID
	for _, t := range towns {
		if !t.IsDir() || !validSlug(t.Name()) {
			continue
		}
		rigs, err := os.ReadDir(filepath.Join(h.root, t.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed while we list
		}
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "listing the hub")
		}
		for _, r := range rigs {
			if name, ok := strings.CutSuffix(r.Name(), ".git"); ok && r.IsDir() && validSlug(name) {
				ids = append(ids, ID{Town: t.Name(), Rig: name})
			}
		}
	}
	return ids, nil
}
