// Package errs is the small set of error kinds that every part of Gastown
// uses. A kind decides the HTTP status and the exit code of the command line;
// nobody matches on the text of an error.
//
// An error carries a message that says what is wrong and, where there is one, a
// hint that says what to do next. Neither may contain a secret.
package errs

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Kind classifies an error for the caller.
type Kind string

// The kinds. One table (see HTTPStatus and ExitCode) maps them outwards.
const (
	Invalid      Kind = "invalid"      // the request can never succeed as it stands
	NotFound     Kind = "not_found"    // the named thing does not exist
	Conflict     Kind = "conflict"     // the thing exists already, or its state forbids this now
	Unauthorized Kind = "unauthorized" // no or wrong credentials
	Forbidden    Kind = "forbidden"    // known caller, not allowed
	Gone         Kind = "gone"         // an old generation or epoch: stop
	Overloaded   Kind = "overloaded"   // queue full: retry after RetryAfter
	Unavailable  Kind = "unavailable"  // a dependency or the store can't answer now: retry
	Internal     Kind = "internal"     // a bug or an unexpected failure
)

// Error is an error with a kind. The zero RetryAfter means "no advice".
type Error struct {
	Kind       Kind
	Message    string
	Hint       string
	RetryAfter time.Duration
	Err        error
}

// Error returns the message, then the cause, then the hint.
func (e *Error) Error() string {
	s := e.Message
	if e.Err != nil {
		if s != "" {
			s += ": "
		}
		s += e.Err.Error()
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of a kind.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// Wrap gives err a kind and a message in front. A nil err gives nil.
func Wrap(k Kind, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...), Err: err}
}

// WithHint returns e with advice on what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf returns the kind of err: Internal where it has none, Unavailable for
// an ended context, "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return KindOf(err) == k }

type outward struct{ http, exit int }

func table(k Kind) outward {
	switch k {
	case Invalid:
		return outward{422, 2}
	case NotFound:
		return outward{404, 3}
	case Conflict:
		return outward{409, 4}
	case Unauthorized:
		return outward{401, 5}
	case Forbidden:
		return outward{403, 5}
	case Gone:
		return outward{410, 6}
	case Overloaded:
		return outward{429, 7}
	case Unavailable:
		return outward{503, 7}
	}
	return outward{500, 1}
}

// HTTPStatus returns the HTTP status of a kind (500 for an unknown one).
func HTTPStatus(k Kind) int { return table(k).http }

// ExitCode returns the process exit code of a kind (1 for an unknown one).
func ExitCode(k Kind) int { return table(k).exit }

// KindOfStatus is the inverse of HTTPStatus, for clients.
func KindOfStatus(status int) Kind {
	for _, k := range []Kind{Invalid, NotFound, Conflict, Unauthorized, Forbidden, Gone, Overloaded, Unavailable} {
		if HTTPStatus(k) == status {
			return k
		}
	}
	if status == 400 {
		return Invalid
	}
	return Internal
}
