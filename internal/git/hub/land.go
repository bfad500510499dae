package hub

import (
	"context"
	"errors"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// LandResult says what became of a push to the target. Exactly one of Landed
// and Lost holds.
type LandResult struct {
	Landed bool   // the target contains the candidate
	Lost   bool   // the target moved away from the tip: make a new candidate on Tip
	Tip    string // the target's commit now, as last seen
}

// Land pushes candidate to upstream's target, if that is still at tip. Whatever
// the push says, ancestry decides: so a repeat after a crash, or after a
// connection that broke at the wrong moment, finds that the candidate landed.
// An error means that it did not land, or (errs.Unavailable) that upstream could
// not be asked: repeat the call.
func (h *Hub) Land(ctx context.Context, id ID, r Remote, tip, candidate string) (LandResult, error) {
	for _, oid := range []string{tip, candidate} {
		if err := git.ValidOID(oid); err != nil {
			return LandResult{}, err
		}
	}
	dir, err := h.ready(id, r)
	if err != nil {
		return LandResult{}, err
	}
	unlock, err := h.lock(ctx, dir)
	if err != nil {
		return LandResult{}, err
	}
	defer unlock()
	if ok, err := h.ancestor(ctx, dir, tip, candidate); err != nil {
		return LandResult{}, h.whichMissing(ctx, dir, err, candidate)
	} else if !ok {
		return LandResult{}, errs.New(errs.Invalid, "the candidate %s does not descend from the tip %s", candidate, tip)
	}
	ref := "refs/heads/" + r.Target
	_, pushErr := h.talk(ctx, r, dir, talkTimeout,
		append(pushArgs(r), "--force-with-lease="+ref+":"+tip, "--", r.URL, candidate+":"+ref)...)
	if pushErr == nil {
		if err := h.moveTarget(ctx, dir, r.Target, candidate); err != nil {
			// The next fetch does the same; the landing stands.
			h.log.Warn("the hub's copy of the target was not moved", "rig", id.String(), "err", err)
		}
		return LandResult{Landed: true, Tip: candidate}, nil
	}
	now, err := h.fetchLocked(ctx, dir, r, talkTimeout)
	if err != nil {
		return LandResult{}, errs.Wrap(errs.KindOf(err), err, "the push to the target failed, and whether it landed could not be seen")
	}
	switch in, err := h.ancestor(ctx, dir, candidate, now); {
	case err != nil:
		return LandResult{}, err
	case in:
		return LandResult{Landed: true, Tip: now}, nil
	case now != tip:
		return LandResult{Lost: true, Tip: now}, nil
	}
	return LandResult{}, pushError(pushErr, r)
}

// PushBranch pushes a bead's branch upstream. It overwrites only what it pushed
// itself before, or what commit contains; anything else there is somebody's
// work: errs.Conflict.
func (h *Hub) PushBranch(ctx context.Context, id ID, r Remote, branch, commit string) error {
	if err := errors.Join(git.ValidBranch(branch), git.ValidOID(commit)); err != nil {
		return errs.Wrap(errs.Invalid, err, "pushing a branch")
	}
	if branch == r.Target {
		return errs.New(errs.Invalid, "the branch to push is the target itself")
	}
	dir, err := h.ready(id, r)
	if err != nil {
		return err
	}
	unlock, err := h.lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	if held, err := h.holds(ctx, dir, commit); err != nil {
		return err
	} else if !held {
		return errs.New(errs.NotFound, "the hub does not hold the commit %s", commit)
	}
	there, err := h.lsRemote(ctx, r, "refs/heads/"+branch)
	if err != nil {
		return err
	}
	was := there.Tips[branch]
	if was != commit {
		if err := h.mayReplace(ctx, dir, branch, was, commit); err != nil {
			return err
		}
		ref := "refs/heads/" + branch
		_, err = h.talk(ctx, r, dir, talkTimeout, append(pushArgs(r), "--force-with-lease="+ref+":"+was, "--", r.URL, commit+":"+ref)...)
		if err != nil {
			return pushError(err, r)
		}
	}
	_, err = h.text(ctx, dir, "update-ref", "refs/upstream/heads/"+branch, commit)
	return errs.Wrap(errs.Internal, err, "recording the pushed branch")
}

// mayReplace fails when upstream's branch holds commits that are not ours.
func (h *Hub) mayReplace(ctx context.Context, dir, branch, was, commit string) error {
	if was == "" {
		return nil
	}
	ours, err := h.text(ctx, dir, "rev-parse", "--verify", "--quiet", "refs/upstream/heads/"+branch)
	if err != nil && git.Code(err) != 1 {
		return err
	}
	if ours == was {
		return nil
	}
	if in, err := h.ancestor(ctx, dir, was, commit); err != nil || in {
		return err
	}
	return errs.New(errs.Conflict, "somebody else moved the branch %q at upstream", branch).
		WithHint("merge or rename that branch at upstream, then retry")
}

// pushArgs begins a push. A remote that updates a working copy gets the setting
// for this one push; the person's own configuration stays as it is.
func pushArgs(r Remote) []string {
	args := []string{"push", "--porcelain", "--no-verify", "--no-follow-tags", "--no-signed", "--recurse-submodules=no"}
	if r.UpdateWorktree && git.LocalPath(r.URL) != "" {
		args = append(args, "--receive-pack=git -c receive.denyCurrentBranch=updateInstead receive-pack")
	}
	return args
}

func stdoutOf(err error) string {
	var exit *git.ExitError
	if errors.As(err, &exit) {
		return string(exit.Stdout)
	}
	return ""
}

// pushError explains a failed push by what --porcelain printed for its one reference.
func pushError(err error, r Remote) error {
	said := stdoutOf(err)
	_, reason, rejected := strings.Cut(said, "[remote rejected] ")
	if !rejected {
		if strings.Contains(said, "[rejected]") {
			return &errs.Error{Kind: errs.Conflict, Message: "the branch moved at upstream meanwhile", Err: err}
		}
		return classify(err)
	}
	reason, _, _ = strings.Cut(reason, "\n")
	reason = strings.Trim(reason, "() ")
	has := func(s string) bool { return strings.Contains(reason, s) }
	switch {
	case has("currently checked out"):
		return errCheckedOut(git.LocalPath(r.URL), r)
	case has("orking directory has"), has("ould not update working tree"), has("staged changes"):
		return errs.New(errs.Conflict, "the working copy %s can't be updated: %s", git.LocalPath(r.URL), reason).
			WithHint("commit or stash its changes, or move untracked files away")
	case has("lock"), has("failed to update ref"), has("unpacker error"), has("internal"), has("timeout"):
		return &errs.Error{Kind: errs.Unavailable, Message: "upstream could not take the push", Err: err}
	}
	return &errs.Error{Kind: errs.Forbidden, Message: "upstream refused the push: " + reason,
		Hint: "let the server's credential push to it, or use merge mode branch or pr", Err: err}
}
