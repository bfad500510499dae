package hub

import (
	"errors"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// diskTrouble gives a failure of git a kind and advice when it was the disk of the
// repositories: nothing was changed, and a later try may succeed.
func diskTrouble(err error) error {
	var exit *git.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	for _, c := range []struct{ sign, message, hint string }{
		{"no space left on device", "the disk with the repositories is full", "free space on the disk of the data directory; it is tried again"},
		{"disk quota exceeded", "the quota of the disk with the repositories is used up", "free space on the disk of the data directory; it is tried again"},
		{"file too large", "the disk with the repositories refuses larger files", "free space on the disk of the data directory; it is tried again"},
		{"read-only file system", "the disk with the repositories is read-only", "make the disk of the data directory writable; it is tried again"},
		{"insufficient permission for adding an object", "the server may not write into a repository", "check owner and permissions below hub/ of the data directory; it is tried again"},
		{"input/output error", "the disk with the repositories fails", "check the disk of the data directory"},
	} {
		if strings.Contains(strings.ToLower(exit.Stderr), c.sign) {
			return &errs.Error{Kind: errs.Unavailable, Message: c.message, Hint: c.hint, Err: err}
		}
	}
	return err
}
