// Package sandbox declares the driver of sandboxes: the one place where agents
// run. There is at most one sandbox per town, and each start of it is a
// generation, numbered upwards by the town.
//
// The contract that every driver keeps, and that package sandboxtest checks:
//
//   - A generation runs at most once in its life. Start is idempotent while it
//     runs and refuses it for ever after it ended.
//   - Two generations of a town never run at the same time. Start refuses while
//     an older one runs, and refuses when a newer one is known.
//   - Nothing but Start starts anything. Inspect and List only look, and no
//     method speaks with what runs inside.
//   - All calls may be repeated, by this process or by the one after it: a
//     driver keeps its knowledge outside of its own memory. A call that failed
//     or was cut off is finished by calling it again.
//   - The disk of a town outlives its generations. It is a cache: whoever needs
//     what is on it must be able to do without.
//   - The token reaches the inside on file descriptor 3 and nowhere else: not in
//     arguments, environment, files or logs.
//
// Errors: Invalid for a bad Spec or Ref, Conflict when another generation is in
// the way, Gone when the generation already ended, Unavailable when the host can't
// answer now. A failed Start leaves nothing behind that runs; it may use its
// generation up only if something of it ran.
//
// Drivers are safe for concurrent use. One host has one control plane per root.
package sandbox

import (
	"context"
	"strings"
	"time"

	"gastown/internal/errs"
)

// TokenFD is the file descriptor on which the command reads its token until
// end of file. It is closed at once when the Spec has no token.
const TokenFD = 3

// Environment that every driver gives to the command, besides Spec.Env.
const (
	EnvDisk    = "GASTOWN_DISK"    // absolute path of the town's disk as the inside sees it; also the working directory
	EnvSandbox = "GASTOWN_SANDBOX" // marks everything that belongs to a sandbox; opaque
)

// Door is a directory in containers that only the runner can enter. The server's
// socket is mounted below it.
const Door = "/run/gastown"

// MaxToken is the largest token in bytes. It fits into the buffer of a pipe on
// every system, so that handing it over never blocks.
const MaxToken = 4096

// Spec says what to start.
type Spec struct {
	Town       string   // a slug, see ValidTown
	Generation int64    // at least 1
	Command    []string // program and arguments to run inside: the runner
	Env        []string // additional environment as KEY=value; no secrets
	Token      []byte   // handed over on TokenFD, at most MaxToken bytes
	FreshDisk  bool     // throw the old disk away first
}

// Ref names one generation of a town's sandbox.
type Ref struct {
	Driver     string `json:"driver"`
	Town       string `json:"town"`
	Generation int64  `json:"generation"`
	ID         string `json:"id"` // the driver's own name for it, for people; callers may leave it empty
}

// State says whether a generation runs.
type State string

// The states.
const (
	Running State = "running"
	Gone    State = "gone"    // the command ended or never existed; what it left running is killed by Stop, Start or the driver
	Unknown State = "unknown" // the host can't say; nothing may be concluded
)

// Status is what a driver sees from the outside.
type Status struct {
	Ref       Ref
	State     State
	StartedAt time.Time // zero when it never started
	ExitedAt  time.Time // zero while it runs; an upper bound when nobody watched
	ExitCode  int       // -1 when unknown or ended by a signal; meaningful only when Gone
	Reason    string    // one line for people
}

// Driver starts, watches and ends sandboxes. See the package comment for what
// all drivers promise.
type Driver interface {
	// Start starts a generation, or returns the Ref of it if it runs already.
	Start(ctx context.Context, spec Spec) (Ref, error)

	// Inspect reports on one generation. A generation that never existed is Gone.
	// An error means that the question could not be asked; State Unknown that it
	// was asked and has no answer.
	Inspect(ctx context.Context, ref Ref) (Status, error)

	// Stop ends one generation, and no other: it asks the command to end, waits at
	// most grace, then kills everything that belongs to the sandbox. It returns nil
	// when nothing of that generation runs any more. If ctx ends first, call it again.
	Stop(ctx context.Context, ref Ref, grace time.Duration) error

	// List reports the newest generation of every sandbox and disk under this
	// driver's root, running or not, ordered by town.
	List(ctx context.Context) ([]Status, error)

	// Remove kills what runs of that generation or an older one and deletes the
	// disk and everything known of the town. It refuses (Conflict) when a newer
	// generation is known. Generation 0 stands for whichever there is. Removing
	// what does not exist is no error.
	Remove(ctx context.Context, ref Ref) error

	// Exits delivers generations that ended, each within about a second. It is a
	// hint: a delivery may be repeated or, if nobody receives, lost. There is one
	// channel per driver, for one receiver; it is never closed.
	Exits() <-chan Ref

	// Isolation says what agents inside can reach that they should not, in one line
	// for each such thing, for the start log and doctor; "" when there is nothing to
	// warn of.
	Isolation() string
}

// ValidTown reports whether a town's name may be used in paths and labels:
// 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit.
func ValidTown(name string) bool {
	if name == "" || len(name) > 63 {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == '-' || c == '_') && i > 0:
		default:
			return false
		}
	}
	return true
}

// Validate checks a Spec before anything is touched.
func (s Spec) Validate() error {
	if !ValidTown(s.Town) {
		return errs.New(errs.Invalid, "sandbox: %q is not a valid town name", s.Town)
	}
	if s.Generation < 1 {
		return errs.New(errs.Invalid, "sandbox: generation %d of town %s is below 1", s.Generation, s.Town)
	}
	if len(s.Command) == 0 || s.Command[0] == "" {
		return errs.New(errs.Invalid, "sandbox: no command for town %s", s.Town)
	}
	if len(s.Token) > MaxToken {
		return errs.New(errs.Invalid, "sandbox: token of town %s has more than %d bytes", s.Town, MaxToken)
	}
	for _, arg := range s.Command {
		if hasNUL(arg) {
			return errs.New(errs.Invalid, "sandbox: an argument for town %s contains a zero byte", s.Town)
		}
	}
	for _, kv := range s.Env {
		if !validEnv(kv) {
			return errs.New(errs.Invalid, "sandbox: an environment entry for town %s is not KEY=value", s.Town)
		}
		switch key, _, _ := strings.Cut(kv, "="); key {
		case EnvSandbox, EnvDisk, "GASTOWN_TOKEN":
			return errs.New(errs.Invalid, "sandbox: the environment for town %s may not set %s", s.Town, key)
		}
	}
	return nil
}

// Validate checks a Ref; wholeTown allows Generation 0.
func (r Ref) Validate(wholeTown bool) error {
	if !ValidTown(r.Town) {
		return errs.New(errs.Invalid, "sandbox: %q is not a valid town name", r.Town)
	}
	if r.Generation < 1 && !(wholeTown && r.Generation == 0) {
		return errs.New(errs.Invalid, "sandbox: generation %d of town %s is below 1", r.Generation, r.Town)
	}
	return nil
}

func validEnv(kv string) bool {
	return !hasNUL(kv) && strings.IndexByte(kv, '=') > 0
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }
