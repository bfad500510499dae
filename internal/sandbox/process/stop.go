package process

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// look tells how sandboxes are from their records.
func (d *Driver) look() record.Look {
	return record.Look{
		Book: d.book, Ref: refOf,
		Settled: func(_ context.Context, town string) (*record.Record, error) { return d.settled(town) },
		Runs:    func(_ context.Context, rec *record.Record) (bool, error) { return d.runs(rec) },
		HowItEnded: func(_ context.Context, rec *record.Record) (int, string) {
			if rec.Boot != d.boot {
				return -1, "the machine was restarted"
			}
			return -1, "ended just now or while no server watched"
		},
	}
}

// Inspect implements sandbox.Driver.
func (d *Driver) Inspect(ctx context.Context, ref sandbox.Ref) (sandbox.Status, error) {
	return d.look().Inspect(ctx, ref)
}

// Stop implements sandbox.Driver. SIGTERM goes to the command only, which shuts
// down its agents itself.
func (d *Driver) Stop(ctx context.Context, ref sandbox.Ref, grace time.Duration) error {
	if err := ref.Validate(false); err != nil {
		return err
	}
	rec, err := d.look().OfGeneration(ctx, ref)
	if err != nil {
		return err
	}
	if rec == nil { // not the recorded one: only leftovers can exist
		return d.kill(ctx, claim{town: ref.Town, from: ref.Generation, upTo: ref.Generation})
	}
	runs, err := d.runs(rec)
	if err != nil {
		return err
	}
	if runs && grace > 0 {
		err := d.ask(rec)
		if err != nil {
			d.log.Warn("a sandbox can't be asked to end", "town", rec.Town, "generation", rec.Generation, "err", err)
		} else if err := d.awaitGone(ctx, rec, grace); err != nil {
			return err
		}
	}
	if err := d.kill(ctx, claim{town: rec.Town, from: rec.Generation, upTo: rec.Generation, rec: rec}); err != nil {
		return err
	}
	if l := d.watched(keyOf(*rec)); l != nil && l.own {
		select { // its waiter knows the exit code and records it
		case <-l.done:
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, ctx.Err(), "sandbox: stop town %s", rec.Town)
		}
	}
	return d.recordEnd(ctx, keyOf(*rec), -1, "stopped")
}

// ask sends SIGTERM to the command, or to the first process of its box, which
// passes it on.
func (d *Driver) ask(rec *record.Record) error {
	outer := proc{pid: rec.PID, start: rec.Start}
	if !rec.Box {
		return send(outer, syscall.SIGTERM)
	}
	procs, err := processes()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.ppid == outer.pid {
			err = errors.Join(err, send(p, syscall.SIGTERM))
		}
	}
	return err
}

// awaitGone waits until the command has ended, at most for grace. Only the end
// of ctx is an error.
func (d *Driver) awaitGone(ctx context.Context, rec *record.Record, grace time.Duration) error {
	var done <-chan struct{} // nil: nobody closes it
	if l := d.watched(keyOf(*rec)); l != nil {
		done = l.done
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, ctx.Err(), "sandbox: stop town %s", rec.Town)
		case <-timer.C:
			return nil
		case <-done:
			done = nil // the next look tells whether it is dead or merely unwatched
		case <-tick.C:
			if runs, err := d.runs(rec); err == nil && !runs {
				return nil
			}
		}
	}
}

// List implements sandbox.Driver. A record that can't be read shows as Unknown,
// a directory without a record as generation 0.
func (d *Driver) List(ctx context.Context) ([]sandbox.Status, error) {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: list sandboxes")
	}
	var all []sandbox.Status
	recorded := map[string]bool{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "sandbox: list sandboxes")
		}
		if e.IsDir() && sandbox.ValidTown(e.Name()) {
			st := d.look().Town(ctx, e.Name())
			recorded[e.Name()] = st.Ref.Generation > 0
			all = append(all, st)
		}
	}
	procs, err := d.marked()
	if err != nil {
		return nil, err
	}
	newest := map[string]int64{}
	for _, p := range procs {
		if !recorded[p.town] && p.generation > newest[p.town] {
			newest[p.town] = p.generation
		}
	}
	for town, generation := range newest {
		all = slices.DeleteFunc(all, func(st sandbox.Status) bool { return st.Ref.Town == town })
		all = append(all, sandbox.Status{Ref: sandbox.Ref{Driver: driverName, Town: town, Generation: generation},
			State: sandbox.Running, Reason: "runs without a record"})
	}
	slices.SortFunc(all, func(a, b sandbox.Status) int { return strings.Compare(a.Ref.Town, b.Ref.Town) })
	return all, nil
}

// Remove implements sandbox.Driver.
func (d *Driver) Remove(ctx context.Context, ref sandbox.Ref) error {
	if err := ref.Validate(true); err != nil {
		return err
	}
	// Stop waits for the end to be recorded, which needs the lock that is taken below.
	if rec, err := d.book.Load(ref.Town); err == nil && rec != nil && (ref.Generation == 0 || rec.Generation <= ref.Generation) {
		if err := d.Stop(ctx, refOf(*rec), 0); err != nil {
			return err
		}
	}
	unlock, err := d.book.Lock(ctx, ref.Town)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := d.settled(ref.Town)
	if err != nil && ref.Generation != 0 {
		return err // Generation 0 also removes a damaged record
	}
	if rec != nil && ref.Generation != 0 && rec.Generation > ref.Generation {
		return errs.New(errs.Conflict, "sandbox: town %s is at generation %d already", ref.Town, rec.Generation)
	}
	if err := d.kill(ctx, claim{town: ref.Town, rec: rec}); err != nil {
		return err
	}
	trash, err := d.toTrash(d.book.Dir(ref.Town))
	if err != nil {
		return err
	}
	if err := d.book.DropLock(ref.Town); err != nil {
		return err
	}
	if trash == "" {
		return nil
	}
	return errs.Wrap(errs.Unavailable, deleteTree(trash), "sandbox: delete the disk of town %s", ref.Town)
}
