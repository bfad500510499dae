// Package process is the sandbox driver that needs nothing: a sandbox is a
// process session on this machine, in a directory of its own.
//
// Layout below the root, which belongs to one control plane:
//
//	<town>/gen.json     the record: generation, pid, start time of the process, boot id
//	<town>/disk/        the disk; working directory, HOME is home/, TMPDIR is tmp/
//	<town>/runner.log   stdout and stderr of the command, runner.log.1 the older part
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
// session or process group. It misses a process that did all of: leave the session,
// wipe its environment and outlive its parent.
//
// Sandboxes survive the driver and its process. A new driver finds them by their
// records and looks at them twice a second; own children are waited for.
//
// There is no isolation: agents run as the user of the server (see Isolation).
package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

const driverName = "process"

// Driver runs sandboxes as plain processes. Make it with New.
type Driver struct {
	root  string // absolute, without symbolic links
	book  *record.Book
	hash  string // of root, part of every marker
	boot  string // id of the machine's current boot
	log   *slog.Logger
	exits chan sandbox.Ref

	closed chan struct{}

	mu    sync.Mutex     // guards lives, the closing of closed, and additions to tasks
	lives map[key]*life  // what this driver waits for or polls
	tasks sync.WaitGroup // pollers and deletions; not the waits for own children
}

var _ sandbox.Driver = (*Driver)(nil)

// New returns the driver of root, which it creates. Sandboxes left running by an
// earlier driver are found and watched again. Call Close when done.
func New(root string, log *slog.Logger) (*Driver, error) {
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

// Isolation implements sandbox.Driver.
func (d *Driver) Isolation() string {
	return "agents run as your own user and are not isolated: they can read and change your files, use your network, " +
		"and see this server's processes and each other's"
}

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
	return d.launch(spec, old)
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

// launch runs both phases of a start. Under the town's lock.
func (d *Driver) launch(spec sandbox.Spec, old *record.Record) (ref sandbox.Ref, err error) {
	cmd := exec.Command(spec.Command[0], spec.Command[1:]...)
	if cmd.Err != nil {
		return ref, errs.Wrap(errs.Invalid, cmd.Err, "sandbox: find the command for town %s", spec.Town)
	}
	if _, err := os.Stat(d.book.Dir(spec.Town)); errors.Is(err, fs.ErrNotExist) {
		defer func() {
			if cmd.Process == nil { // nothing ran: leave nothing
				err = errors.Join(err, d.discard(d.book.Dir(spec.Town)))
			}
		}()
	}
	if err := d.makeDisk(spec.Town, spec.FreshDisk); err != nil {
		return ref, err
	}
	logFile, err := d.openLog(spec.Town)
	if err != nil {
		return ref, err
	}
	defer closeQuietly(logFile)
	tokenR, tokenW, err := os.Pipe()
	if err != nil {
		return ref, errs.Wrap(errs.Unavailable, err, "sandbox: make the token's pipe")
	}
	defer closeQuietly(tokenR)
	defer closeQuietly(tokenW)

	rec := record.Record{Town: spec.Town, Generation: spec.Generation, Phase: record.Starting, Boot: d.boot}
	if err := d.book.Save(rec); err != nil {
		return ref, err
	}
	cmd.Dir = d.disk(spec.Town)
	cmd.Env = append(d.environ(spec.Town), spec.Env...)
	cmd.Env = append(cmd.Env, sandbox.EnvDisk+"="+cmd.Dir, sandbox.EnvSandbox+"="+d.marker(spec.Town, spec.Generation))
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{tokenR} // becomes sandbox.TokenFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return ref, errors.Join(startError(spec.Town, err), d.book.Restore(spec.Town, old))
	}
	if err := d.recordStarted(&rec, cmd.Process.Pid); err != nil {
		return ref, errors.Join(err, d.abandon(cmd, rec))
	}
	d.waitChild(cmd, rec)
	if _, err := tokenW.Write(spec.Token); err != nil && !errors.Is(err, syscall.EPIPE) {
		// EPIPE is a command that exited at once, which Inspect will tell.
		d.log.Warn("the token did not reach the sandbox", "town", spec.Town, "generation", spec.Generation, "err", err)
	}
	d.log.Info("sandbox started", "town", spec.Town, "generation", spec.Generation, "pid", rec.PID)
	return refOf(rec), nil
}

// recordStarted completes the intent with the identity of the process.
func (d *Driver) recordStarted(rec *record.Record, pid int) error {
	p, found, err := lookup(pid)
	if err != nil || !found {
		return errs.New(errs.Internal, "sandbox: can't identify process %d just started for town %s: %v", pid, rec.Town, err)
	}
	rec.Phase, rec.PID, rec.Start, rec.StartedAt = record.Running, pid, p.start, time.Now().UTC()
	return d.book.Save(*rec)
}

// abandon kills a child whose record could not be completed. Its generation is
// used up: the intent stays and settles as ended.
func (d *Driver) abandon(cmd *exec.Cmd, rec record.Record) error {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	err := cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	// The exit status of a child killed on purpose says nothing.
	_ = cmd.Wait()
	return errors.Join(err, d.kill(ctx, claim{town: rec.Town, from: rec.Generation, upTo: rec.Generation}))
}

func startError(town string, err error) error {
	kind := errs.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.E2BIG):
		kind = errs.Invalid
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		kind = errs.Unavailable
	}
	return errs.Wrap(kind, err, "sandbox: start the command for town %s", town)
}

func (d *Driver) marker(town string, generation int64) string {
	return d.hash + ":" + town + ":" + strconv.FormatInt(generation, 10)
}

func closeQuietly(f *os.File) {
	// Nothing was written through f that closing could lose, or it was closed before.
	_ = f.Close()
}
