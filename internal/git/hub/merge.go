package hub

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// Evidence is what the hub itself knows of an agent's branch.
type Evidence struct {
	Commit           string // the branch's commit, "" if the branch does not exist
	Exists           bool
	DescendsFromBase bool
	Changed          bool // its files differ from the base's
	Files            int  // how many differ
}

// Verify looks at a branch as held by the hub, against the commit base.
func (h *Hub) Verify(ctx context.Context, id ID, branch, base string) (Evidence, error) {
	if err := git.ValidBranch(branch); err != nil {
		return Evidence{}, err
	}
	if err := git.ValidOID(base); err != nil {
		return Evidence{}, err
	}
	dir, err := h.Path(id)
	if err != nil {
		return Evidence{}, err
	}
	commit, err := h.text(ctx, dir, "rev-parse", "--verify", "--quiet", "refs/heads/"+branch+"^{commit}")
	if git.Code(err) == 1 {
		return Evidence{}, nil
	}
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Commit: commit, Exists: true}
	if e.DescendsFromBase, err = h.ancestor(ctx, dir, base, commit); err != nil || !e.DescendsFromBase {
		return e, err
	}
	out, err := h.run(ctx, dir, git.Cmd{Args: []string{"diff-tree", "-r", "-z", "--name-only", "--no-renames", base, commit}})
	if err != nil {
		return Evidence{}, err
	}
	e.Files = bytes.Count(out.Stdout, []byte{0})
	e.Changed = e.Files > 0
	return e, nil
}

// Identity is the author and committer of a candidate.
type Identity struct{ Name, Email string }

// CandidateSpec says what to merge. Equal specs give the same commit.
type CandidateSpec struct {
	Target  string // short name of the target branch; informs messages only
	Tip     string // the target's commit to merge onto
	Commit  string // the bead's commit
	Bead    string
	N       int // counts the bead's candidates, from 1
	Message string
	Author  Identity
	When    time.Time // to the second
}

// Candidate is the outcome of a merge in the hub. Exactly one of Commit != "",
// Conflict and AlreadyIn holds.
type Candidate struct {
	Commit        string // the merge commit
	Tip           string
	Conflict      bool
	ConflictFiles []string
	Detail        string // what git said of the conflict, at most 8 KiB
	AlreadyIn     bool   // the tip contains the commit
}

const maxDetail = 8 << 10

// Candidate merges Commit into Tip without a working copy and publishes the
// result as refs/gastown/merge/<bead>/<n>. A conflict is an outcome, not an error.
func (h *Hub) Candidate(ctx context.Context, id ID, s CandidateSpec) (Candidate, error) {
	if err := s.check(); err != nil {
		return Candidate{}, err
	}
	dir, err := h.Path(id)
	if err != nil {
		return Candidate{}, err
	}
	c := Candidate{Tip: s.Tip}
	if c.AlreadyIn, err = h.yes(ctx, dir, "merge-base", "--is-ancestor", s.Commit, s.Tip); err != nil {
		return Candidate{}, h.whichMissing(ctx, dir, err, s.Tip, s.Commit)
	}
	if c.AlreadyIn {
		return c, nil
	}
	tree, err := h.mergeTree(ctx, dir, s, &c)
	if err != nil || c.Conflict {
		return c, err
	}
	c.Commit, err = h.commitTree(ctx, dir, tree, []string{s.Tip, s.Commit}, s.Author, s.When, s.Message)
	if err != nil {
		return Candidate{}, err
	}
	ref := "refs/gastown/merge/" + s.Bead + "/" + strconv.Itoa(s.N)
	if _, err := h.text(ctx, dir, "update-ref", ref, c.Commit); err != nil {
		return Candidate{}, errs.Wrap(errs.Internal, err, "publishing the merge candidate")
	}
	return c, nil
}

// whichMissing explains a git that failed, if a commit that it needed is not held.
func (h *Hub) whichMissing(ctx context.Context, dir string, err error, commits ...string) error {
	for _, oid := range commits {
		if held, holdsErr := h.holds(ctx, dir, oid); holdsErr == nil && !held {
			return errs.New(errs.NotFound, "the hub does not hold the commit %s", oid)
		}
	}
	return err
}

func (s CandidateSpec) check() error {
	if err := validBead(s.Bead); err != nil {
		return err
	}
	for _, oid := range []string{s.Tip, s.Commit} {
		if err := git.ValidOID(oid); err != nil {
			return err
		}
	}
	if s.N < 1 {
		return errs.New(errs.Invalid, "a merge candidate's number is %d, less than 1", s.N)
	}
	return nil
}

// mergeTree returns the merged tree, or fills in the conflict.
func (h *Hub) mergeTree(ctx context.Context, dir string, s CandidateSpec, c *Candidate) (string, error) {
	out, err := h.run(ctx, dir, git.Cmd{
		Args:   []string{"merge-tree", "--write-tree", "-z", "--name-only", "--messages", s.Tip, s.Commit},
		MaxOut: 32 << 20,
	})
	tree, rest, _ := strings.Cut(string(out.Stdout), "\x00")
	switch git.Code(err) {
	case 0:
		return tree, nil
	case 1:
		c.Conflict = true
		c.ConflictFiles, c.Detail = parseConflict(rest)
		return "", nil
	}
	if strings.Contains(out.Stderr, "unrelated histories") {
		c.Conflict, c.Detail = true, "the commit shares no history with the target branch"
		return "", nil
	}
	return "", err
}

// parseConflict reads what follows the tree in merge-tree -z: paths, an empty
// field, then messages of (count, paths, kind, text).
func parseConflict(s string) (files []string, detail string) {
	fields := strings.Split(s, "\x00")
	i := 0
	for ; i < len(fields) && fields[i] != ""; i++ {
		files = append(files, fields[i])
	}
	var b strings.Builder
	for i++; i < len(fields) && b.Len() < maxDetail; {
		n, err := strconv.Atoi(fields[i])
		if err != nil || n < 0 || n > len(fields)-i-3 {
			break
		}
		if kind := fields[i+1+n]; kind != "Auto-merging" {
			b.WriteString(strings.TrimSpace(fields[i+2+n]) + "\n")
		}
		i += n + 3
	}
	detail = b.String()
	if len(detail) > maxDetail {
		detail = strings.ToValidUTF8(detail[:maxDetail], "") + "…"
	}
	return files, strings.TrimSpace(detail)
}

func (h *Hub) commitTree(ctx context.Context, dir, tree string, parents []string, who Identity, when time.Time, msg string) (string, error) {
	who = who.clean()
	date := fmt.Sprintf("@%d +0000", max(when.Unix(), 0))
	args := []string{"commit-tree", tree}
	for _, p := range parents {
		args = append(args, "-p", p)
	}
	msg = strings.ReplaceAll(strings.ToValidUTF8(msg, "?"), "\x00", "")
	if !strings.HasSuffix(msg, "\n") {
		msg += "\n"
	}
	out, err := h.run(ctx, dir, git.Cmd{
		Args:  append(args, "-F", "-"),
		Stdin: strings.NewReader(msg),
		Env: []string{
			"GIT_AUTHOR_NAME=" + who.Name, "GIT_AUTHOR_EMAIL=" + who.Email, "GIT_AUTHOR_DATE=" + date,
			"GIT_COMMITTER_NAME=" + who.Name, "GIT_COMMITTER_EMAIL=" + who.Email, "GIT_COMMITTER_DATE=" + date,
		},
	})
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "making the merge commit")
	}
	return strings.TrimSpace(string(out.Stdout)), nil
}

// clean leaves what git takes as a name and an address; git dies of an empty one.
func (i Identity) clean() Identity {
	strip := func(s, empty string) string {
		s = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || strings.ContainsRune(`<>`, r) {
				return -1
			}
			return r
		}, strings.ToValidUTF8(s, ""))
		if s = strings.Trim(s, " .,:;\"\\'"); s == "" {
			return empty
		}
		return s
	}
	return Identity{Name: strip(i.Name, "Gastown"), Email: strip(i.Email, "gastown@localhost")}
}
