package docker

import (
	"bufio"
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/inside"
	"gastown/internal/sandbox/record"
)

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
	old, err := d.settled(ctx, spec.Town)
	if err != nil {
		return sandbox.Ref{}, err
	}
	if old != nil {
		runs, err := d.runs(ctx, old)
		if err != nil {
			return sandbox.Ref{}, err
		}
		if already, err := old.Against(spec, runs); err != nil || already {
			return refOf(*old), err
		}
	}
	if err := d.clearOlder(ctx, spec); err != nil {
		return sandbox.Ref{}, err
	}
	return d.launch(ctx, spec, old)
}

// clearOlder removes the containers of older generations, known or not, and a
// disk that shall be fresh.
func (d *Driver) clearOlder(ctx context.Context, spec sandbox.Spec) error {
	found, err := d.containers(ctx, spec.Town)
	if err != nil {
		return err
	}
	for _, c := range found {
		if c.generation > spec.Generation {
			return errs.New(errs.Conflict, "sandbox: generation %d of town %s exists without a record", c.generation, spec.Town)
		}
		if err := d.removeContainer(ctx, c.id); err != nil {
			return err
		}
	}
	if spec.FreshDisk {
		if err := d.removeVolume(ctx, spec.Town); err != nil {
			return err
		}
	}
	_, err = d.api.VolumeCreate(ctx, client.VolumeCreateOptions{Name: d.volume(spec.Town), Labels: d.labels(spec.Town)})
	return engineError(err, "sandbox: make the disk of town %s", spec.Town)
}

// launch runs both phases of a start. Under the town's lock. What it began it
// finishes or takes back, even when ctx ends.
func (d *Driver) launch(ctx context.Context, spec sandbox.Spec, old *record.Record) (sandbox.Ref, error) {
	image, err := d.image(ctx)
	if err != nil {
		return sandbox.Ref{}, err
	}
	dir := d.book.Dir(spec.Town)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return sandbox.Ref{}, errs.Wrap(errs.Unavailable, err, "sandbox: make the directory of town %s", spec.Town)
	}
	rec := record.Record{Town: spec.Town, Generation: spec.Generation, Phase: record.Starting}
	if err := d.book.Save(rec); err != nil {
		return sandbox.Ref{}, err
	}
	takeBack := func(err error) error {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
		defer cancel()
		gone := d.removeContainer(end, d.name(spec.Town, spec.Generation))
		if gone != nil {
			return errors.Join(err, gone) // the intent stays, and is settled by the next call
		}
		if old == nil {
			return errors.Join(err, d.forget(end, spec.Town))
		}
		return errors.Join(err, d.book.Restore(spec.Town, old))
	}
	created, err := d.api.ContainerCreate(ctx, d.options(spec, image))
	if err != nil {
		return sandbox.Ref{}, takeBack(engineError(err, "sandbox: create the container of town %s", spec.Town))
	}
	if err := d.handOver(ctx, created.ID, spec); err != nil {
		return sandbox.Ref{}, takeBack(err)
	}
	rec.Phase, rec.Container, rec.StartedAt = record.Running, created.ID, time.Now().UTC()
	if err := d.book.Save(rec); err != nil {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTime)
		defer cancel()
		return sandbox.Ref{}, errors.Join(err, d.removeContainer(end, created.ID))
	}
	d.log.Info("sandbox started", "town", spec.Town, "generation", spec.Generation, "container", created.ID[:12], "image", image)
	return refOf(rec), nil
}

// forget undoes the first start of a town, which ran nothing.
func (d *Driver) forget(ctx context.Context, town string) error {
	return errors.Join(d.removeVolume(ctx, town), os.RemoveAll(d.book.Dir(town)))
}

// handOver starts a container, gives it the token, and waits until its first
// process says that the command runs.
func (d *Driver) handOver(ctx context.Context, id string, spec sandbox.Spec) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	io, err := d.api.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true})
	if err != nil {
		return engineError(err, "sandbox: attach to the container of town %s", spec.Town)
	}
	defer io.Close()
	stop := context.AfterFunc(ctx, io.Close)
	defer stop()
	if _, err := d.api.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return engineError(err, "sandbox: start the container of town %s", spec.Town)
	}
	if _, err := io.Conn.Write(spec.Token); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: hand over to the container of town %s", spec.Town)
	}
	if err := io.CloseWrite(); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: hand over to the container of town %s", spec.Town)
	}
	line, err := firstLine(io.Reader)
	if err != nil {
		return errs.Wrap(errs.Unavailable, errors.Join(err, ctx.Err()), "sandbox: the first process of town %s said nothing", spec.Town)
	}
	if reason, failed := strings.CutPrefix(line, inside.Failed); failed {
		return errs.New(errs.Invalid, "sandbox: the command for town %s can't run: %s", spec.Town, strings.TrimSpace(reason))
	}
	if line != inside.Started {
		return errs.New(errs.Invalid, "sandbox: the first process of image %q is not gastown's: it said %.80q", d.cfg.Image, line).
			WithHint("the image must have gastown as its first process")
	}
	return nil
}

// firstLine reads the first line that a container says, without its end.
func firstLine(r *bufio.Reader) (string, error) {
	var out lineWriter
	_, err := stdcopy.StdCopy(&out, &out, r)
	if line, _, ok := strings.Cut(out.String(), "\n"); ok {
		return line, nil
	}
	if err == nil {
		err = errors.New("it ended")
	}
	return "", err
}

// maxLine bounds what is read in search of the first line.
const maxLine = 4096

var errEnough = errors.New("the line is complete")

// lineWriter fails as soon as it has a line, to end a copy.
type lineWriter struct{ strings.Builder }

func (w *lineWriter) Write(p []byte) (int, error) {
	n, err := w.Builder.Write(p[:min(len(p), maxLine)])
	if err == nil && (w.Len() >= maxLine || strings.Contains(w.String(), "\n")) {
		err = errEnough
	}
	return n, err
}

// capabilities are what the first process needs to prepare the disk and to start
// and end the runner as another user, and the runner to do the same with agents.
// Agents have none.
var capabilities = []string{"CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID"}

func (d *Driver) options(spec sandbox.Spec, image string) client.ContainerCreateOptions {
	labels := d.labels(spec.Town)
	labels[labelGeneration], labels[labelImage] = strconv.FormatInt(spec.Generation, 10), image
	env := append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, spec.Env...)
	env = append(env, "HOME="+Disk+"/home", "TMPDIR="+Disk+"/tmp", sandbox.EnvDisk+"="+Disk,
		sandbox.EnvSandbox+"="+d.hash+":"+spec.Town+":"+labels[labelGeneration])
	network := container.NetworkMode("none")
	if d.cfg.Network != "" {
		network = container.NetworkMode(d.cfg.Network)
	}
	mounts := []mount.Mount{{Type: mount.TypeVolume, Source: d.volume(spec.Town), Target: Disk, VolumeOptions: &mount.VolumeOptions{NoCopy: true}}}
	for _, b := range d.cfg.Binds {
		mounts = append(mounts, mount.Mount{Type: mount.TypeBind, Source: b.Outside, Target: b.Inside, ReadOnly: true})
	}
	host := &container.HostConfig{
		NetworkMode:    network,
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		ReadonlyRootfs: true,
		CapDrop:        []string{"ALL"},
		CapAdd:         capabilities,
		SecurityOpt:    []string{"no-new-privileges"},
		Mounts:         mounts,
		Tmpfs:          map[string]string{"/tmp": "size=64m,mode=1777", "/run": "size=8m,mode=755"},
		LogConfig:      container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m", "max-file": "2"}},
		Resources:      container.Resources{NanoCPUs: int64(d.cfg.CPUs * 1e9), Memory: d.cfg.Memory, MemorySwap: d.cfg.Memory},
	}
	if d.cfg.Pids > 0 {
		host.PidsLimit = &d.cfg.Pids
	}
	return client.ContainerCreateOptions{
		Name: d.name(spec.Town, spec.Generation),
		Config: &container.Config{
			Image: image, Hostname: spec.Town, User: "0:0", WorkingDir: Disk, Env: env, Labels: labels,
			Entrypoint: d.cfg.Init, Cmd: append([]string{"--"}, spec.Command...),
			OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		},
		HostConfig: host,
	}
}
