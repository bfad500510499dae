// Package apart is the only place that decides how a process of a run is
// started: an agent, a gate, or git in a directory that an agent can write. The
// runner asks a Keeper for a Cell per run (or group of runs that share an agent
// process, or job of gates), starts everything of it through the cell, and leaves
// it when the run is over.
//
// The contract of a cell, whatever its kind:
//
//   - Start is cmd.Start with what the kind adds: another user, a wrapper, limits.
//     It may change every field of the command.
//   - What a cell may write are its rooms, which nobody but the runner and the
//     cell reaches, and in them what was given to it.
//   - Sweep ends all that was started in the cell, wherever it moved to. Calls of
//     the runner itself that are under way (Hold) get a moment to end first.
//   - After Leave nothing of the cell runs and its rooms are closed. Only then may
//     another cell be like it.
//
// See DESIGN.md for the kinds.
package apart

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"gastown/internal/errs"
)

// Kind says what stands between the runs of a runner, and between them and it.
type Kind string

// The kinds.
const (
	None  Kind = "none"  // nothing: everything runs as the runner's user
	UID   Kind = "uid"   // each cell has a user of its own; Linux only
	Bwrap Kind = "bwrap" // each command of a cell has a box of bubblewrap; Linux only
)

// CellFlag makes 'gastown sandbox-init' the first process of a box of kind Bwrap.
const CellFlag = "--cell"

// The users of cells, and their groups, which have the same numbers. Nobody else
// in a sandbox has one of them. More cells at once there are not.
const (
	FirstUser = 10001
	LastUser  = 10256
)

// Kinds are all kinds, for messages.
func Kinds() []string { return []string{string(None), string(UID), string(Bwrap)} }

// ParseKind reads the value of the runner's flag; "" is None.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case "":
		return None, nil
	case None, UID, Bwrap:
		return k, nil
	}
	return "", errs.New(errs.Invalid, "there is no kind %.40q of keeping agents apart", s).WithHint("use one of %s", strings.Join(Kinds(), ", "))
}

// Cell is where the processes of one run live. Its methods may be called from
// any goroutine.
type Cell interface {
	// Start starts a command in the cell, in place of cmd.Start.
	Start(cmd *exec.Cmd) error
	// Limit bounds the processes and threads that what is started from now on may
	// have, where the kind can; 0 is no limit. Calls of the runner's own git are free of it.
	Limit(processes int)
	// Mine returns those of all processes that are the cell's. A kind that knows none
	// of them goes by the process root and what descends from it, and by the mark
	// (NAME=value) in their environment.
	Mine(all []Process, root int, mark string) []Process
	// Room makes dir, which is the runner's, a directory that only the runner and
	// the cell reach, until Leave. The cell can't add or rename what is directly in it.
	Room(dir string) error
	// Shut closes a room before Leave does.
	Shut(dir string) error
	// Give hands path, and below it all that has the same owner, to the cell. No
	// process may be able to change it meanwhile.
	Give(path string) error
	// Owns reports whether path, and not what a link there points to, belongs to the cell.
	Owns(path string) bool
	// Open opens a file that the cell can change for reading: a regular one, which
	// belongs to it, and not what a link there points to.
	Open(path string) (*os.File, error)
	// Hold tells that the runner itself uses the cell for a call; release ends it.
	Hold() (release func())
	// Sweep kills what runs in the cell and returns how many are left after timeout.
	Sweep(timeout time.Duration) int
	// Leave sweeps, closes the rooms, and gives the cell back. An error says that
	// something of it still runs; the cell is then never used again.
	Leave() error
}

// Keeper makes cells of one kind. It is safe for concurrent use.
type Keeper struct {
	kind  Kind
	enter func(like []string) (Cell, error)
}

// New returns the keeper of a kind but Bwrap (see NewBoxes), or says what is missing for it. It drops what
// programs started by this process would inherit of its capabilities.
func New(kind Kind) (*Keeper, error) {
	switch kind {
	case None, "":
		return &Keeper{kind: None, enter: func([]string) (Cell, error) { return open{}, nil }}, nil
	case UID:
		users, err := newUsers(FirstUser, LastUser)
		if err != nil {
			return nil, err
		}
		return &Keeper{kind: UID, enter: users.enter}, nil
	}
	return nil, errs.New(errs.Invalid, "there is no kind %.40q of keeping agents apart", string(kind))
}

// Kind is the keeper's kind.
func (k *Keeper) Kind() Kind { return k.kind }

// Private says whether a cell needs a home and a directory for temporary files of
// its own, because it can't use the runner's.
func (k *Keeper) Private() bool { return k.kind != None }

// Enter opens a cell. Where cells have users, it is like the first of the paths
// whose owner is free: then these files need not be given to it.
func (k *Keeper) Enter(like ...string) (Cell, error) { return k.enter(like) }

// open is the cell of kind None: it keeps nothing apart.
type open struct{}

// Open is a cell that keeps nothing apart.
func Open() Cell { return open{} }

func (open) Start(cmd *exec.Cmd) error { return cmd.Start() }
func (open) Limit(int)                 {}
func (open) Room(string) error         { return nil }
func (open) Mine(all []Process, root int, mark string) []Process {
	return descend(all, func(p Process) bool { return p.PID == root || mark != "" && p.UID == os.Getuid() && p.marked(mark) })
}
func (open) Shut(string) error       { return nil }
func (open) Give(string) error       { return nil }
func (open) Owns(string) bool        { return true }
func (open) Hold() func()            { return func() {} }
func (open) Sweep(time.Duration) int { return 0 }
func (open) Leave() error            { return nil }

// Open implements Cell. A pipe in the file's place would be waited for without end.
func (open) Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() {
		return f, nil
	}
	return nil, errors.Join(errs.New(errs.Conflict, "%s is not a file", path), err, f.Close())
}
