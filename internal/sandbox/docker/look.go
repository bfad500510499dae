package docker

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// runs reports whether a recorded generation runs.
func (d *Driver) runs(ctx context.Context, rec *record.Record) (bool, error) {
	if rec.Phase != record.Running {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	got, err := d.api.ContainerInspect(ctx, rec.Container, client.ContainerInspectOptions{})
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, engineError(err, "sandbox: look at the container of town %s", rec.Town)
	}
	s := got.Container.State
	return s != nil && (s.Running || s.Paused || s.Restarting), nil
}

// look tells how containers are from their records.
func (d *Driver) look() record.Look {
	return record.Look{Book: d.book, Ref: refOf, Settled: d.settled, Runs: d.runs,
		HowItEnded: func(ctx context.Context, rec *record.Record) (int, string) {
			if code, reason, err := d.howItEnded(ctx, rec.Container); err == nil {
				return code, reason
			}
			return -1, "ended just now or while no server watched"
		}}
}

// Inspect implements sandbox.Driver.
func (d *Driver) Inspect(ctx context.Context, ref sandbox.Ref) (sandbox.Status, error) {
	return d.look().Inspect(ctx, ref)
}

// List implements sandbox.Driver. Containers and disks without a record are
// listed too, the latter as generation 0.
func (d *Driver) List(ctx context.Context) ([]sandbox.Status, error) {
	towns, err := d.book.Towns()
	if err != nil {
		return nil, err
	}
	known := map[string]sandbox.Status{}
	for _, town := range towns {
		known[town] = d.look().Town(ctx, town)
	}
	found, err := d.containers(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, c := range found {
		if st, ok := known[c.town]; c.running && (!ok || c.generation > st.Ref.Generation) {
			known[c.town] = sandbox.Status{Ref: sandbox.Ref{Driver: driverName, Town: c.town, Generation: c.generation, ID: c.id},
				State: sandbox.Running, Reason: "runs without a record"}
		}
	}
	disks, err := d.api.VolumeList(ctx, client.VolumeListOptions{Filters: d.filter("")})
	if err != nil {
		return nil, engineError(err, "sandbox: list disks")
	}
	for _, v := range disks.Items {
		town := v.Labels[labelTown]
		if _, ok := known[town]; !ok && sandbox.ValidTown(town) {
			known[town] = sandbox.Status{Ref: sandbox.Ref{Driver: driverName, Town: town}, State: sandbox.Gone, ExitCode: -1, Reason: "a disk without a record"}
		}
	}
	all := make([]sandbox.Status, 0, len(known))
	for _, st := range known {
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b sandbox.Status) int { return strings.Compare(a.Ref.Town, b.Ref.Town) })
	return all, nil
}

// logTail is how many lines of an ended container are kept.
const logTail = "2000"

// keepLog saves the end of what a container said, for people. It is not worth
// failing for.
func (d *Driver) keepLog(ctx context.Context, town, name string) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := func() error {
		logs, err := d.api.ContainerLogs(ctx, name, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: logTail})
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		defer func() {
			// It was only read.
			_ = logs.Close()
		}()
		f, err := os.OpenFile(filepath.Join(d.book.Dir(town), "runner.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = stdcopy.StdCopy(f, f, io.LimitReader(logs, 4<<20))
		return errors.Join(err, f.Close())
	}()
	if err != nil {
		d.log.Warn("what a container said could not be kept", "town", town, "err", err)
	}
}
