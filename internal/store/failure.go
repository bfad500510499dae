package store

import (
	"context"
	"errors"

	"modernc.org/sqlite"

	"gastown/internal/errs"
)

// SQLite's primary result codes that need a decision; see sqlite.org/rescode.html.
const (
	codeBusy       = 5
	codeNoMem      = 7
	codeReadOnly   = 8
	codeInterrupt  = 9
	codeIOErr      = 10
	codeCorrupt    = 11
	codeFull       = 13
	codeCantOpen   = 14
	codeProtocol   = 15
	codeConstraint = 19
	codeNotADB     = 26
)

// code returns the primary result code behind err, 0 when SQLite did not fail.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// poisons reports errors after which SQLite may have rolled the whole transaction
// back, so that no job of the batch may be answered with success.
func poisons(err error) bool {
	switch code(err) {
	case codeBusy, codeNoMem, codeReadOnly, codeInterrupt, codeIOErr, codeCorrupt, codeFull, codeCantOpen, codeProtocol, codeNotADB:
		return true
	}
	return false
}

// breaks reports errors after which the files can't be trusted with another write
// by this process: what the disk holds is no longer known.
func breaks(err error) bool {
	switch code(err) {
	case codeIOErr, codeCorrupt, codeNotADB, codeReadOnly, codeCantOpen, codeProtocol:
		return true
	}
	return false
}

// refused turns an error of SQLite into one of ours: nothing was written.
func refused(err error) error {
	switch code(err) {
	case 0:
		return err
	case codeFull:
		return (&errs.Error{Kind: errs.Unavailable, Message: "the store can't write: the disk is full", Err: err}).
			WithHint("free some space; nothing was lost and no restart is needed")
	case codeBusy:
		return (&errs.Error{Kind: errs.Unavailable, Message: "another program holds the database", Err: err}).
			WithHint("close other tools that have gastown.db open")
	case codeConstraint:
		return errs.Wrap(errs.Internal, err, "the store refused a write")
	}
	return errs.Wrap(errs.Unavailable, err, "the store failed")
}

// readOnly answers every write after one that failed in the middle.
func (w *writer) readOnly() error {
	h := w.health.snapshot()
	text := "the store is read-only because a write failed"
	if h.State == Damaged {
		text = "the store is read-only because its file is damaged"
	}
	return (&errs.Error{Kind: errs.Unavailable, Message: text, Err: w.broken}).WithHint("%s", h.Hint)
}

// unknown says that the outcome of a write is not known, and why. It is
// ErrUnknown and its cause at once.
type unknown struct{ cause error }

func (u *unknown) Error() string   { return ErrUnknown.Error() + ": " + u.cause.Error() }
func (u *unknown) Unwrap() []error { return []error{ErrUnknown, u.cause} }

func unknownOutcome(cause error) error { return &unknown{cause} }

// readFailure gives an error of a read its kind.
func readFailure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return errs.Wrap(errs.Unavailable, ctx.Err(), "reading the store")
	}
	if code(err) != 0 {
		return errs.Wrap(errs.Unavailable, err, "reading the store")
	}
	return err
}
