// Package process is the sandbox driver that needs no engine: a sandbox is a
// process session on this machine, in a directory of its own. Where bubblewrap
// works it is a box, too: namespaces of its own in which nothing of this machine
// is writable but the sandbox's disk, and nothing of the server, of the user or of
// other towns can be seen (see box.go).
//
// Layout below the root, which belongs to one control plane:
//
//	<town>/gen.json     the record: generation, pid, start time of the process, boot id
//	<town>/disk/        the disk; working directory, HOME is home/, TMPDIR is tmp/
//	<town>/runner.log   stdout and stderr of the command, runner.log.1 the older part
//	<town>/etc/         what a box has for the files of the same name in /etc
//	.locks/<town>       locked (flock) while a record is being changed
//	.trash/             renamed-away disks, deleted in the background and at the next New
//
// A start has two phases, so that the death of the control plane between any two
// instructions leaves no process that is unknown: the intent is on disk before the
// fork, the pid before the token is written into the pipe. A command that finds no
// token on its pipe has no server any more and must exit.
//
// A process is known by pid, start time and boot id together, never by a pid alone,
// so that a reused pid cannot get a stranger killed. What belongs to a sandbox:
// processes with its marker in their environment (EnvSandbox), those in its session,
// and all descendants of either. That finds agents and tools which changed their
// session or process group. Without a box it misses a process that did all of: leave
// the session, wipe its environment and outlive its parent. In a box nothing outlives
// the first process.
//
// Sandboxes survive the driver and its process. A new driver finds them by their
// records and looks at them twice a second; own children are waited for.
package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

const driverName = "process"

// Isolation says what keeps sandboxes apart from this machine.
type Isolation string

// The kinds of isolation.
const (
	Auto  Isolation = "auto"  // bubblewrap where it works, else nothing
	Bwrap Isolation = "bwrap" // bubblewrap, or New fails
	None  Isolation = "none"  // nothing
)

// Bind shows a directory of this machine in a box, read-only for what it is but
// sockets and named pipes in it work.
type Bind struct{ Outside, Inside string }

// Config says how to run sandboxes. Root is required; the fields after Init are
// for boxes only.
type Config struct {
	Root      string    // directory, for one control plane
	Isolation Isolation // "" is None
	Init      []string  // first process of a box, which starts the command after "--"; without it there are none
	Binds     []Bind    // at least the directory with the server's socket
	Show      []string  // files and directories of this machine that boxes see, read-only
	Hide      []string  // directories and files that they don't see even where they lie in one that is shown
	Network   bool      // boxes use this machine's network; else they have none
	CPUs      float64   // this and the next two are limits where a cgroup is delegated to us; 0 is none
	Memory    int64     // bytes
	Pids      int64     // processes and threads
	Log       *slog.Logger
}

// Driver runs sandboxes as processes. Make it with New.
type Driver struct {
	box   *box   // nil without bubblewrap
	noBox string // why there is none, "" if none was asked for

	network bool // boxes have this machine's

	groups   *cgroups // nil: sandboxes are not bounded
	noGroups string   // why
	root     string   // absolute, without symbolic links
	book     *record.Book
	hash     string // of root, part of every marker
	boot     string // id of the machine's current boot
	log      *slog.Logger
	exits    chan sandbox.Ref

	closed chan struct{}

	mu    sync.Mutex     // guards lives, the closing of closed, and additions to tasks
	lives map[key]*life  // what this driver waits for or polls
	tasks sync.WaitGroup // pollers and deletions; not the waits for own children
}

var _ sandbox.Driver = (*Driver)(nil)

// New returns the driver of a root, which it creates. Sandboxes left running by an
// earlier driver, whatever its isolation, are found and watched again. Call Close
// when done.
func New(ctx context.Context, cfg Config) (*Driver, error) {
	root, log := cfg.Root, cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{root, filepath.Join(root, trashDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, errs.Wrap(errs.Internal, err, "sandbox: create the root directory")
		}
	}
	root, err := filepath.Abs(root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "sandbox: resolve the root directory")
	}
	boot, err := bootID()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "sandbox: read the boot id of this machine")
	}
	sum := sha256.Sum256([]byte(root))
	book, err := record.Open(root, log)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		root:   root,
		book:   book,
		hash:   hex.EncodeToString(sum[:8]),
		boot:   boot,
		log:    log,
		exits:  make(chan sandbox.Ref, 256),
		closed: make(chan struct{}),
		lives:  map[key]*life{},

		network: cfg.Network,
	}
	if err := d.openBox(ctx, cfg); err != nil {
		return nil, err
	}
	if d.groups, err = bound(d.hash, cfg); err != nil {
		d.noGroups = err.Error()
	} else {
		d.groups.sweep()
	}
	d.spawn(d.adopt)
	d.spawn(d.emptyTrash)
	return d, nil
}

// Close ends the watching and waits for the deletion in progress. Sandboxes go on.
// It may be called twice.
func (d *Driver) Close() error {
	d.mu.Lock()
	if !d.isClosed() {
		close(d.closed)
	}
	d.mu.Unlock()
	d.tasks.Wait()
	return nil
}

func (d *Driver) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// spawn runs a task that Close waits for, unless the driver is closed.
func (d *Driver) spawn(task func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isClosed() {
		d.tasks.Go(task)
	}
}

// Exits implements sandbox.Driver.
func (d *Driver) Exits() <-chan sandbox.Ref { return d.exits }

// Start implements sandbox.Driver.
func (d *Driver) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Ref, error) {
	if err := spec.Validate(); err != nil {
		return sandbox.Ref{}, err
	}
	unlock, err := d.book.Lock(ctx, spec.Town)
	if err != nil {
		return sandbox.Ref{}, err
	}
	defer unlock()
	old, err := d.settled(spec.Town)
	if err != nil {
		return sandbox.Ref{}, err
	}
	if old != nil {
		if ref, done, err := d.against(old, spec); done || err != nil {
			return ref, err
		}
	}
	if err := d.clearOlder(ctx, spec, old); err != nil {
		return sandbox.Ref{}, err
	}
	if err := ctx.Err(); err != nil {
		return sandbox.Ref{}, errs.Wrap(errs.Unavailable, err, "sandbox: start of town %s", spec.Town)
	}
	return d.launch(ctx, spec, old)
}

// against holds a start against the record of an earlier one.
func (d *Driver) against(old *record.Record, spec sandbox.Spec) (ref sandbox.Ref, done bool, err error) {
	runs, err := d.runs(old)
	if err != nil {
		return ref, false, err
	}
	already, err := old.Against(spec, runs)
	if err != nil || !already {
		return ref, false, err
	}
	d.poll(*old)
	return refOf(*old), true, nil
}

// clearOlder kills what earlier generations left running, known or not.
func (d *Driver) clearOlder(ctx context.Context, spec sandbox.Spec, old *record.Record) error {
	procs, err := d.marked()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.town == spec.Town && p.generation > spec.Generation {
			return errs.New(errs.Conflict, "sandbox: generation %d of town %s runs without a record", p.generation, spec.Town)
		}
	}
	return d.kill(ctx, claim{town: spec.Town, upTo: spec.Generation, rec: old})
}

func (d *Driver) marker(town string, generation int64) string {
	return d.hash + ":" + town + ":" + strconv.FormatInt(generation, 10)
}

func closeQuietly(f *os.File) {
	// Nothing was written through f that closing could lose, or it was closed before.
	_ = f.Close()
}
