package hub

import (
	"context"
	"errors"
	"slices"
	"sort"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
)

func checkRemote(r Remote) error {
	if err := git.ValidRemoteURL(r.URL); err != nil {
		return err
	}
	if r.Try != nil {
		return r.Try.Check(r.URL)
	}
	return nil
}

func checkTarget(r Remote) error {
	if err := checkRemote(r); err != nil {
		return err
	}
	if err := git.ValidBranch(r.Target); err != nil {
		return err
	}
	if r.Target == "gt" || strings.HasPrefix(r.Target, "gt/") {
		return errs.New(errs.Invalid, "the target branch can't be %q: gt/ holds the agents' branches", r.Target).
			WithHint("choose another target branch")
	}
	return nil
}

// talk runs a git command that contacts upstream. gitDir is "" for one that
// needs no repository. Failures come back classified.
func (h *Hub) talk(ctx context.Context, r Remote, gitDir string, d time.Duration, args ...string) (git.Output, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	c := git.Cmd{Dir: gitDir, GitDir: gitDir, Args: args}
	if gitDir == "" {
		c.Dir = h.root // never the server's own working directory, which may be a repository
		c.Env = append(c.Env, "GIT_CEILING_DIRECTORIES="+h.root)
	}
	with, err := h.access(ctx, r, &c)
	if err != nil {
		return git.Output{}, err
	}
	out, err := h.Do(ctx, gitDir, c)
	if err != nil && gitDir != "" && LockedOut(err.Error()) && h.sweep(gitDir) > 0 {
		out, err = h.Do(ctx, gitDir, c)
	}
	var exit *git.ExitError
	if errors.As(err, &exit) {
		exit.Stderr = git.Redact(exit.Stderr, with.hide...)
		exit.Stdout = []byte(git.Redact(string(exit.Stdout), with.hide...))
	}
	return out, h.leave(r, with, err)
}

// Branches is what a remote says about itself.
type Branches struct {
	Head string            // short name of its default branch, "" if it has none
	Tips map[string]string // commit ids by short name; empty for an empty repository
}

// some returns up to five names, sorted.
func (b Branches) some() string {
	names := make([]string, 0, len(b.Tips))
	for n := range b.Tips {
		names = append(names, n)
	}
	sort.Strings(names)
	if len(names) > 5 {
		names = append(names[:5], "…")
	}
	return strings.Join(names, ", ")
}

// Probe asks a remote for its branches; r.Target is not looked at.
func (h *Hub) Probe(ctx context.Context, r Remote) (Branches, error) {
	if err := checkRemote(r); err != nil {
		return Branches{}, err
	}
	return h.lsRemote(ctx, r, "HEAD", "refs/heads/*")
}

func (h *Hub) lsRemote(ctx context.Context, r Remote, patterns ...string) (Branches, error) {
	args := append([]string{"ls-remote", "--symref", "--", r.URL}, patterns...)
	out, err := h.talk(ctx, r, "", talkTimeout, args...)
	if err != nil {
		return Branches{}, classify(err)
	}
	b := Branches{Tips: map[string]string{}}
	for line := range strings.SplitSeq(string(out.Stdout), "\n") {
		value, name, ok := strings.Cut(line, "\t")
		if target, isSym := strings.CutPrefix(value, "ref: refs/heads/"); ok && isSym && name == "HEAD" {
			b.Head = target
		} else if short, isHead := strings.CutPrefix(name, "refs/heads/"); ok && isHead && git.ValidOID(value) == nil {
			b.Tips[short] = value
		}
	}
	return b, nil
}

// classify turns what git said about a failed talk with upstream into a kind.
// The order matters: ssh reports a refused key and a lost connection together.
func classify(err error) error {
	var exit *git.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if e := diskTrouble(err); errs.Is(e, errs.Unavailable) {
		return e
	}
	s := strings.ToLower(exit.Stderr)
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(s, p) {
				return true
			}
		}
		return false
	}
	fail := func(k errs.Kind, msg, hint string) error {
		return &errs.Error{Kind: k, Message: msg, Hint: hint, Err: err}
	}
	switch {
	case has("dubious ownership"):
		return fail(errs.Forbidden, "the upstream repository belongs to another user", "run the server as its owner, or make that user own it")
	case has("host key verification failed"):
		return fail(errs.Forbidden, "the upstream's ssh host key is not the known one", "compare it with what the host's owner says; with an ssh key of the rig: gastown rig set RIG --forget-host-keys, without one: connect once with ssh as the server's user")
	case has("could not read username", "could not read password", "terminal prompts disabled"):
		return fail(errs.Forbidden, "upstream asks for credentials", "give the rig a credential with --credential-file; a private repository may look missing without one")
	case has("authentication failed", "invalid username or password", "permission denied", "access denied",
		"returned error: 401", "returned error: 403", "permission to ", "marked as read only", "write access", "not allowed to push", "not authorized", "unauthorized"):
		return fail(errs.Forbidden, "upstream refused the credentials", "check the token or ssh key and what it may do")
	case has("could not resolve host", "connection refused", "timed out", "connection reset", "failed to connect",
		"couldn't connect", "network is unreachable", "no route to host", "returned error: 5", "returned error: 429",
		"early eof", "unexpected disconnect", "ssl", "tls", "operation too slow", "connection closed", "name or service not known",
		"temporary failure in name resolution", "empty reply from server"):
		return fail(errs.Unavailable, "upstream can't be reached", "check the address, the network, and that the host answers")
	case has("returned error: 30"):
		return fail(errs.Forbidden, "upstream redirects elsewhere, where the rig's credential is not sent", "add the rig with the address that it redirects to")
	case has("couldn't find remote ref"):
		return fail(errs.NotFound, "upstream has no such branch", "check the rig's target branch")
	case has("not found", "does not exist", "does not appear to be a git repository", "returned error: 404",
		"no such file or directory", "not a git repository", "not valid: is this a git repository"):
		return fail(errs.NotFound, "there is no git repository at that address, or the credentials don't show it", "check the URL and the token")
	case has("remote end hung up", "could not read from remote repository"):
		return fail(errs.Unavailable, "upstream ended the connection", "")
	}
	return fail(errs.Unavailable, "talking to upstream failed", "")
}

// Fetch brings the target of r into the hub, with tags on its history, and
// returns its tip.
func (h *Hub) Fetch(ctx context.Context, id ID, r Remote) (tip string, err error) {
	dir, err := h.ready(id, r)
	if err != nil {
		return "", err
	}
	unlock, err := h.lock(ctx, dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	return h.fetchLocked(ctx, dir, r, talkTimeout)
}

func (h *Hub) ready(id ID, r Remote) (string, error) {
	if err := checkTarget(r); err != nil {
		return "", err
	}
	return h.Path(id)
}

func (h *Hub) fetchLocked(ctx context.Context, dir string, r Remote, d time.Duration) (string, error) {
	args := func(tags string) []string {
		return []string{"fetch", "--quiet", "--no-write-fetch-head", "--no-auto-maintenance", "--no-recurse-submodules",
			tags, "--", r.URL,
			"+refs/heads/" + r.Target + ":refs/upstream/heads/" + r.Target,
			"+refs/heads/" + r.Target + ":refs/heads/" + r.Target}
	}
	_, err := h.talk(ctx, r, dir, d, args("--no-prune-tags")...)
	if err != nil && strings.Contains(err.Error(), "refs/tags/") {
		// Tags that can't stand side by side (v1 and v1/x) must not keep the target from moving.
		_, err = h.talk(ctx, r, dir, d, args("--no-tags")...)
	}
	if err != nil && strings.Contains(err.Error(), "cannot lock ref") && h.makeRoom(ctx, dir, r.Target) {
		_, err = h.talk(ctx, r, dir, d, args("--no-tags")...)
	}
	if err != nil {
		return "", classify(err)
	}
	return h.text(ctx, dir, "rev-parse", "--verify", "refs/upstream/heads/"+r.Target+"^{commit}")
}

// makeRoom deletes copies of former targets whose names can't stand beside
// target ("release" and "release/1"). It reports whether there were any.
func (h *Hub) makeRoom(ctx context.Context, dir, target string) bool {
	var patterns []string
	for _, space := range []string{"refs/heads/", "refs/upstream/heads/"} {
		patterns = append(patterns, space+target+"/")
		for i, c := range target {
			if c == '/' {
				patterns = append(patterns, space+target[:i])
			}
		}
	}
	refs, err := h.refs(ctx, dir, patterns...)
	if err != nil || len(refs) == 0 {
		return false
	}
	var b strings.Builder
	for name := range refs {
		// A pattern for "release" also finds "release/2", which does not stand in the way.
		if strings.HasPrefix(name, patterns[0]) || strings.HasPrefix(name, patterns[len(patterns)/2]) || slices.Contains(patterns, name) {
			b.WriteString("delete " + name + "\n")
		}
	}
	_, err = h.run(ctx, dir, git.Cmd{Args: []string{"update-ref", "--stdin"}, Stdin: strings.NewReader(b.String())})
	return err == nil && b.Len() > 0
}

// Contains fetches the target and reports whether it contains commit. A commit
// that the hub does not hold is not contained.
func (h *Hub) Contains(ctx context.Context, id ID, r Remote, commit string) (tip string, in bool, err error) {
	if err := git.ValidOID(commit); err != nil {
		return "", false, err
	}
	tip, err = h.Fetch(ctx, id, r)
	if err != nil {
		return "", false, err
	}
	dir, err := h.Path(id)
	if err != nil {
		return "", false, err
	}
	in, err = h.ancestor(ctx, dir, commit, tip)
	return tip, in, err
}

// ancestor reports whether a is b or one of its ancestors; false if a is not held.
func (h *Hub) ancestor(ctx context.Context, dir, a, b string) (bool, error) {
	yes, err := h.yes(ctx, dir, "merge-base", "--is-ancestor", a, b)
	if git.Code(err) == 128 {
		// Looked at only now: nearly always both are held.
		if held, holdsErr := h.holds(ctx, dir, a); holdsErr == nil && !held {
			return false, nil
		}
	}
	return yes, err
}

// holds reports whether the repository has the commit.
func (h *Hub) holds(ctx context.Context, dir, commit string) (bool, error) {
	_, err := h.run(ctx, dir, git.Cmd{Args: []string{"cat-file", "-e", commit + "^{commit}"}})
	switch git.Code(err) {
	case 0:
		return true, nil
	case 1, 128:
		return false, nil
	}
	return false, err
}
