package runner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// maxListed is how many paths a refusal names.
const maxListed = 20

// prime implements toolbox.
func (n *run) prime(ctx context.Context) (string, error) {
	n.alive()
	var p town.Prime
	q := url.Values{"run": {n.key.id}, "epoch": {strconv.FormatInt(n.key.epoch, 10)}}
	if err := n.insist(ctx, func(ctx context.Context) error {
		return n.r.api.call(ctx, http.MethodGet, wire.PathPrime, q, nil, &p)
	}); err != nil {
		return "", err
	}
	return indented(p)
}

// insist repeats a call for a tool while the server does not answer, so that a
// restart of it costs agents only time. Then the agent is asked to call again. A
// run that is over for the server ends, whether or not its agent obeys what it reads.
func (n *run) insist(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, n.r.cfg.Timing.Answer)
	defer cancel()
	for try := 0; ; try++ {
		err := call(ctx)
		if err == nil || !again(err) {
			n.unanswered.Store(false)
			if errs.Is(err, errs.Gone) {
				n.ask(stopped("for the server the run is over: " + clip(err.Error(), 500)))
			}
			return err
		}
		n.unanswered.Store(true)
		if !n.r.cfg.Timing.backoff(ctx, try, err) {
			return err
		}
	}
}

// beadShow implements toolbox.
func (n *run) beadShow(ctx context.Context, id string) (string, error) {
	n.alive()
	if id == "" {
		id = n.want.Bead
	}
	if !beadRE.MatchString(id) {
		return "", errs.New(errs.Invalid, "%q is no bead id", clip(id, 60)).WithHint("ids look like web-k3x9a")
	}
	var b wire.BeadResponse
	if err := n.insist(ctx, func(ctx context.Context) error {
		return n.r.api.call(ctx, http.MethodGet, wire.PathBead, url.Values{"id": {id}}, nil, &b)
	}); err != nil {
		return "", err
	}
	return indented(b)
}

func indented(v any) (string, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", errs.Wrap(errs.Internal, err, "encoding the answer")
	}
	return string(b), nil
}

// checkpointNow implements toolbox.
func (n *run) checkpointNow(ctx context.Context) (string, error) {
	n.alive()
	s, err := n.checkpoint(ctx, false)
	if err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "the checkpoint failed")
	}
	text := "Nothing has changed since the last checkpoint."
	if s.Commit != "" {
		text = "Saved as checkpoint " + s.Commit + "."
	}
	if len(s.Left) > 0 {
		text += "\nNot in it:\n  " + strings.Join(s.Left[:min(len(s.Left), maxListed)], "\n  ")
	}
	return text, nil
}

// complete implements toolbox: it checks the worktree, pushes the branch, and asks
// the server for its verdict on what it now holds.
func (n *run) complete(ctx context.Context, summary string) (string, error) {
	n.alive()
	n.verdictMu.Lock()
	defer n.verdictMu.Unlock()
	if text, ok := n.settled(); ok {
		return text, nil
	}
	n.mu.Lock()
	tree := n.tree
	n.mu.Unlock()
	if tree == nil {
		return "", errs.New(errs.Unavailable, "the worktree is not ready yet")
	}
	st, err := tree.state(ctx)
	if err != nil {
		return "", errs.Wrap(errs.Conflict, err, "the worktree can't be read")
	}
	if err := st.ready(n.want.Branch); err != nil {
		return "", err
	}
	// One patience for both: agents give up on a tool after a while.
	ctx, cancel := context.WithTimeout(ctx, n.r.cfg.Timing.Answer)
	defer cancel()
	if err := n.insist(ctx, func(ctx context.Context) error { return n.pushBranch(ctx, tree, st.head) }); err != nil {
		return "", err
	}
	return n.verdict(ctx, town.VerdictDone, st.head, summary)
}

// pushBranch brings the branch to the hub. That somebody has it locked is worth
// another try; all else that the hub refuses is for the agent to read.
func (n *run) pushBranch(ctx context.Context, tree *worktree, head string) error {
	err := tree.push(ctx, n.hub(), head, "refs/heads/"+n.want.Branch)
	switch {
	case err == nil:
		return nil
	case git.Code(err) > 0 && strings.Contains(err.Error(), "remote rejected") && !strings.Contains(err.Error(), ".lock': File exists"):
		return errs.Wrap(errs.Conflict, err, "the server did not take the branch %s", n.want.Branch)
	}
	return errs.Wrap(errs.Unavailable, err, "pushing %s", n.want.Branch)
}

// ready refuses a worktree whose work is not all on the run's branch.
func (s treeState) ready(branch string) error {
	if s.branch != branch {
		where := "on the branch " + clip(s.branch, 100)
		if s.branch == "" {
			where = "detached (a rebase or bisect in progress, or a checked-out commit)"
		}
		return errs.New(errs.Conflict, "HEAD is %s, but the work must be on %s", where, branch).
			WithHint("finish or abort what is in progress, bring your commits onto %s, check it out, and call done again", branch)
	}
	if git.ValidOID(s.head) != nil {
		return errs.New(errs.Conflict, "the branch %s has no commit", branch).WithHint("commit your work and call done again")
	}
	if len(s.dirty) == 0 {
		return nil
	}
	var b strings.Builder
	for i, p := range s.dirty {
		if i == maxListed {
			fmt.Fprintf(&b, "\n  … and %d more", len(s.dirty)-maxListed)
			break
		}
		b.WriteString("\n  " + strconv.Quote(clip(p, 200)))
	}
	return errs.New(errs.Conflict, "these paths have uncommitted changes, so the work is not complete on the branch:%s\n"+
		"Commit what belongs to the work, delete the rest (or list it in .gitignore), and call done again.", b.String())
}

// say implements toolbox for the verdicts that need no commit.
func (n *run) say(ctx context.Context, kind town.VerdictKind, reason string) (string, error) {
	n.alive()
	n.verdictMu.Lock()
	defer n.verdictMu.Unlock()
	if text, ok := n.settled(); ok {
		return text, nil
	}
	return n.verdict(ctx, kind, "", reason)
}

// settled answers a further verdict after an accepted one.
func (n *run) settled() (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.accepted == "" {
		return "", false
	}
	return "Your " + string(n.accepted) + " was accepted already. Stop working and end your turn now.", true
}

// verdict makes the synchronous call, with n.verdictMu held. A repeat of a call
// that got no answer has the same id; after a refusal the id is another.
func (n *run) verdict(ctx context.Context, kind town.VerdictKind, head, text string) (string, error) {
	req := wire.VerdictRequest{Run: n.key.id, Epoch: n.key.epoch, Kind: kind, Text: text,
		CallID: callID(n.key, kind, head, text, n.calls)}
	err := n.insist(ctx, func(ctx context.Context) error {
		return n.r.api.call(ctx, http.MethodPost, wire.PathVerdict, nil, req, nil)
	})
	switch {
	case err == nil:
		n.mu.Lock()
		n.accepted = kind
		n.mu.Unlock()
		n.story("verdict", string(kind)+" was accepted")
		n.signal()
		return "Accepted: " + string(kind) + ". Your work is recorded. Stop working and end your turn now.", nil
	case !again(err):
		n.calls++
		n.story("verdict_refused", clip(string(kind)+": "+err.Error(), 2000))
	}
	return "", err
}

// callID derives the id of a call from what it says.
func callID(k runKey, kind town.VerdictKind, head, text string, counter int) string {
	h := sha256.New()
	for _, s := range []string{k.id, strconv.FormatInt(k.epoch, 10), string(kind), head, text, strconv.Itoa(counter)} {
		// A hash takes every write.
		_, _ = fmt.Fprintf(h, "%d:%s,", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
