package process

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// birth is what a start needs until the command runs.
type birth struct {
	cmd    *exec.Cmd
	token  *os.File // our end of the pipe
	theirs []*os.File
	box    *boxBirth // nil without a box
}

func (b *birth) close() {
	for _, f := range append(b.theirs, b.token) {
		if f != nil {
			closeQuietly(f)
		}
	}
	if b.box != nil {
		b.box.close()
	}
}

// pipe makes a pipe one end of which is for the child, as its next descriptor.
func (b *birth) pipe(childReads bool) (ours *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: make a pipe")
	}
	ours, theirs := r, w
	if childReads {
		ours, theirs = w, r
	}
	b.theirs = append(b.theirs, theirs)
	b.cmd.ExtraFiles = append(b.cmd.ExtraFiles, theirs)
	return ours, nil
}

// prepare makes the command of a start with all that it inherits.
func (d *Driver) prepare(spec sandbox.Spec, path string, log *os.File) (b *birth, err error) {
	b = &birth{cmd: exec.Command(path, spec.Command[1:]...)}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.token, err = b.pipe(true); err != nil { // becomes sandbox.TokenFD
		return nil, err
	}
	disk := d.disk(spec.Town)
	b.cmd.Dir = disk
	b.cmd.Env = append(d.environ(spec.Town), spec.Env...)
	b.cmd.Env = append(b.cmd.Env, sandbox.EnvDisk+"="+disk, sandbox.EnvSandbox+"="+d.marker(spec.Town, spec.Generation))
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.box != nil {
		if err := d.enclose(b, spec, path); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// launch runs both phases of a start. Under the town's lock.
func (d *Driver) launch(ctx context.Context, spec sandbox.Spec, old *record.Record) (ref sandbox.Ref, err error) {
	path, err := exec.LookPath(spec.Command[0])
	if err != nil {
		return ref, errs.Wrap(errs.Invalid, err, "sandbox: find the command for town %s", spec.Town)
	}
	ran := false
	if _, err := os.Stat(d.book.Dir(spec.Town)); errors.Is(err, fs.ErrNotExist) {
		defer func() {
			if !ran { // leave nothing
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
	b, err := d.prepare(spec, path, logFile)
	if err != nil {
		return ref, err
	}
	defer b.close()

	rec := record.Record{Town: spec.Town, Generation: spec.Generation, Phase: record.Starting, Boot: d.boot, Box: d.box != nil}
	if d.groups != nil {
		dir, f, err := d.groups.admit(b.cmd.SysProcAttr, spec.Town, spec.Generation)
		if err != nil {
			return ref, errs.Wrap(errs.Unavailable, err, "sandbox: make the cgroup of town %s", spec.Town)
		}
		defer closeQuietly(f)
		rec.Cgroup = dir
		defer func() {
			if !ran {
				leaveCgroup(dir)
			}
		}()
	}
	if err := d.book.Save(rec); err != nil {
		return ref, err
	}
	if err := b.cmd.Start(); err != nil {
		return ref, errors.Join(startError(spec.Town, err), d.book.Restore(spec.Town, old))
	}
	if err := d.recordStarted(&rec, b.cmd.Process.Pid); err != nil {
		ran = true
		return ref, errors.Join(err, d.abandon(b.cmd, rec))
	}
	if err := d.awaitCommand(ctx, b, spec.Town, logFile); err != nil {
		if gone := d.abandon(b.cmd, rec); gone != nil {
			ran = true
			return ref, errors.Join(err, gone)
		}
		return ref, errors.Join(err, d.book.Restore(spec.Town, old))
	}
	ran = true
	d.waitChild(b.cmd, rec)
	if _, err := b.token.Write(spec.Token); err != nil && !errors.Is(err, syscall.EPIPE) {
		// EPIPE is a command that exited at once, which Inspect will tell.
		d.log.Warn("the token did not reach the sandbox", "town", spec.Town, "generation", spec.Generation, "err", err)
	}
	d.log.Info("sandbox started", "town", spec.Town, "generation", spec.Generation, "pid", rec.PID)
	return refOf(rec), nil
}

// awaitCommand waits until the first process of a box says that the command runs.
func (d *Driver) awaitCommand(ctx context.Context, b *birth, town string, log *os.File) error {
	if b.box == nil {
		return nil
	}
	return b.box.await(ctx, b, town, log)
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

// abandon kills a child whose start could not be completed. Unless its record is
// restored, its generation is used up.
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
