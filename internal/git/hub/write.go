package hub

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// probeTimeout bounds a probe for write access: work waits for it.
const probeTimeout = 30 * time.Second

// MayPush asks upstream whether the rig's credential may write, and changes
// nothing there: it begins a push of what the target has, and does not send it.
// errs.Forbidden when upstream refuses. So it proves that the login is right and
// that upstream takes pushes from it at all; whether a rule protects one branch
// shows only in a push that is meant.
func (h *Hub) MayPush(ctx context.Context, id ID, r Remote) error {
	dir, err := h.ready(id, r)
	if err != nil {
		return err
	}
	tip, err := h.text(ctx, dir, "rev-parse", "--verify", "refs/heads/"+r.Target+"^{commit}")
	if err != nil {
		return err
	}
	return h.mayPush(ctx, dir, r, tip)
}

func (h *Hub) mayPush(ctx context.Context, dir string, r Remote, tip string) error {
	if err := writable(git.LocalPath(r.URL)); err != nil {
		return err
	}
	ref := "refs/heads/" + r.Target
	_, err := h.talk(ctx, r, dir, probeTimeout, append(pushArgs(r), "--dry-run", "--", r.URL, tip+":"+ref)...)
	if err == nil || strings.Contains(stdoutOf(err), "[rejected]") { // a tip that moved meanwhile was offered for writing
		return nil
	}
	err = classify(err)
	if errs.Is(err, errs.Unavailable) {
		return err
	}
	return &errs.Error{Kind: errs.Forbidden, Message: "the server can read the upstream repository, but not push to it",
		Hint: "give a token or key that may write: gastown rig set RIG --credential-file FILE", Err: err}
}

// writable looks whether the repository at a path on this machine may be written:
// a push there that is not meant would not show it.
func writable(path string) error {
	if path == "" {
		return nil
	}
	for _, dir := range []string{path, filepath.Join(path, ".git"), path + ".git"} {
		for _, part := range []string{"objects", "refs"} {
			err := unix.Access(filepath.Join(dir, part), unix.W_OK)
			if err == unix.EACCES || err == unix.EROFS || err == unix.EPERM {
				return errs.New(errs.Forbidden, "the server can read the upstream repository, but not write to it: %s: %v", filepath.Join(dir, part), err).
					WithHint("let the server's user write there")
			}
		}
	}
	return nil
}
