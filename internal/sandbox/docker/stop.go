package docker

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// Stop implements sandbox.Driver. SIGTERM goes to the first process, which
// passes it on to the runner.
func (d *Driver) Stop(ctx context.Context, ref sandbox.Ref, grace time.Duration) error {
	if err := ref.Validate(false); err != nil {
		return err
	}
	rec, err := d.look().OfGeneration(ctx, ref)
	if err != nil {
		return err
	}
	name := d.name(ref.Town, ref.Generation)
	if grace > 0 {
		if err := d.signal(ctx, name, "SIGTERM"); err != nil {
			return err
		}
		if err := d.awaitEnd(ctx, name, grace); err != nil {
			return err
		}
	}
	if err := d.signal(ctx, name, "SIGKILL"); err != nil {
		return err
	}
	if err := d.awaitEnd(ctx, name, callTime); err != nil {
		return err
	}
	if rec == nil {
		return d.removeContainer(ctx, name)
	}
	return d.finish(ctx, *rec)
}

// signal sends a signal to a container; one that does not run needs none.
func (d *Driver) signal(ctx context.Context, name, signal string) error {
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	_, err := d.api.ContainerKill(call, name, client.ContainerKillOptions{Signal: signal})
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return nil
	}
	return engineError(err, "sandbox: send %s to container %s", signal, name)
}

// awaitEnd waits until a container does not run, at most for a while. Only the
// end of ctx and an engine that can't tell are errors.
func (d *Driver) awaitEnd(ctx context.Context, name string, most time.Duration) error {
	wait, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	w := d.api.ContainerWait(wait, name, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case <-w.Result:
		return nil
	case err := <-w.Error:
		switch {
		case ctx.Err() != nil:
			return errs.Wrap(errs.Unavailable, ctx.Err(), "sandbox: stop container %s", name)
		case wait.Err() != nil, cerrdefs.IsNotFound(err):
			return nil
		}
		return engineError(err, "sandbox: wait for container %s", name)
	}
}

func (d *Driver) removeContainer(ctx context.Context, id string) error {
	_, err := d.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true})
	// Conflict: somebody else removes it already.
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return nil
	}
	return engineError(err, "sandbox: remove container %s", id)
}

func (d *Driver) removeVolume(ctx context.Context, town string) error {
	_, err := d.api.VolumeRemove(ctx, d.volume(town), client.VolumeRemoveOptions{})
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	return engineError(err, "sandbox: remove the disk of town %s", town)
}

// Remove implements sandbox.Driver.
func (d *Driver) Remove(ctx context.Context, ref sandbox.Ref) error {
	if err := ref.Validate(true); err != nil {
		return err
	}
	unlock, err := d.book.Lock(ctx, ref.Town)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := d.book.Load(ref.Town)
	if err != nil && ref.Generation != 0 {
		return err // generation 0 also removes a damaged record
	}
	if rec != nil && ref.Generation != 0 && rec.Generation > ref.Generation {
		return errs.New(errs.Conflict, "sandbox: town %s is at generation %d already", ref.Town, rec.Generation)
	}
	found, err := d.containers(ctx, ref.Town)
	if err != nil {
		return err
	}
	for _, c := range found {
		if ref.Generation != 0 && c.generation > ref.Generation {
			return errs.New(errs.Conflict, "sandbox: town %s is at generation %d already", ref.Town, c.generation)
		}
		if err := d.removeContainer(ctx, c.id); err != nil {
			return err
		}
	}
	if err := d.removeVolume(ctx, ref.Town); err != nil {
		return err
	}
	if err := os.RemoveAll(d.book.Dir(ref.Town)); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: remove the record of town %s", ref.Town)
	}
	return d.book.DropLock(ref.Town)
}

// found is a container of this root.
type found struct {
	id, town   string
	generation int64
	running    bool
}

// containers lists the containers of a town, of all towns for "".
func (d *Driver) containers(ctx context.Context, town string) ([]found, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	list, err := d.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: d.filter(town)})
	if err != nil {
		return nil, engineError(err, "sandbox: list containers")
	}
	var out []found
	for _, c := range list.Items {
		generation, err := strconv.ParseInt(c.Labels[labelGeneration], 10, 64)
		if err != nil || !sandbox.ValidTown(c.Labels[labelTown]) {
			continue // somebody else's, with our label
		}
		out = append(out, found{id: c.ID, town: c.Labels[labelTown], generation: generation, running: c.State == container.StateRunning || c.State == container.StatePaused})
	}
	return out, nil
}

// finish records how a generation ended, keeps the end of what it said, and
// removes its container. It tells Exits when it is the first to record it.
func (d *Driver) finish(ctx context.Context, rec record.Record) error {
	unlock, err := d.book.Lock(ctx, rec.Town)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := d.book.Load(rec.Town)
	if err != nil || now == nil || now.Generation != rec.Generation {
		return err
	}
	name := d.name(rec.Town, rec.Generation)
	if now.Phase != record.Ended {
		code, reason, err := d.howItEnded(ctx, name)
		if err != nil {
			return err
		}
		d.keepLog(ctx, rec.Town, name)
		now.End(code, reason)
		if err := d.book.Save(*now); err != nil {
			return err
		}
		d.log.Info("sandbox ended", "town", rec.Town, "generation", rec.Generation, "code", code, "reason", reason)
		select {
		case d.exits <- refOf(*now):
		default: // nobody receives; Exits is only a hint
		}
	}
	return d.removeContainer(ctx, name)
}

// howItEnded reads the exit of a container that does not run.
func (d *Driver) howItEnded(ctx context.Context, name string) (code int, reason string, err error) {
	got, err := d.api.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	switch {
	case cerrdefs.IsNotFound(err):
		return -1, "its container was removed by somebody else", nil
	case err != nil:
		return 0, "", engineError(err, "sandbox: look at container %s", name)
	}
	s := got.Container.State
	switch {
	case s == nil:
		return -1, "its container has no state", nil
	case s.Running || s.Paused:
		return 0, "", errs.New(errs.Unavailable, "sandbox: container %s runs still", name)
	case s.OOMKilled:
		return -1, "it ran out of memory (limit " + strconv.FormatInt(d.cfg.Memory>>20, 10) + " MiB)", nil
	case s.ExitCode > 128:
		return -1, "ended by signal " + strconv.Itoa(s.ExitCode-128), nil
	}
	return s.ExitCode, "exited", nil
}

// settled loads a record and resolves an intent that its driver did not live to
// complete. Under the town's lock.
func (d *Driver) settled(ctx context.Context, town string) (*record.Record, error) {
	rec, err := d.book.Load(town)
	if err != nil || rec == nil || rec.Phase != record.Starting {
		return rec, err
	}
	name := d.name(town, rec.Generation)
	got, err := d.api.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
	if err != nil && !cerrdefs.IsNotFound(err) {
		return nil, engineError(err, "sandbox: look at container %s", name)
	}
	if err == nil && got.Container.State != nil && got.Container.State.Running {
		rec.Phase, rec.Container, rec.StartedAt = record.Running, got.Container.ID, time.Now().UTC()
		return rec, d.book.Save(*rec)
	}
	rec.End(-1, "the server ended while it started this generation")
	return rec, errors.Join(d.book.Save(*rec), d.removeContainer(ctx, name))
}
