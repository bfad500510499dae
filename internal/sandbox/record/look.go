package record

import (
	"context"
	"errors"
	"time"

	"gastown/internal/sandbox"
)

// Look tells how the sandboxes of a driver are, from their records and from what
// really runs.
type Look struct {
	Book *Book
	// Ref names the sandbox of a record.
	Ref func(Record) sandbox.Ref
	// Settled loads a town's record after finding out what became of an intent.
	// The caller holds the town's lock.
	Settled func(ctx context.Context, town string) (*Record, error)
	// Runs reports whether a recorded generation runs.
	Runs func(context.Context, *Record) (bool, error)
	// HowItEnded says so of one that its record takes for running, with exit code
	// -1 where nobody knows.
	HowItEnded func(context.Context, *Record) (code int, reason string)
}

// Inspect is the Inspect of a sandbox.Driver.
func (l Look) Inspect(ctx context.Context, ref sandbox.Ref) (sandbox.Status, error) {
	if err := errors.Join(ref.Validate(false), ctx.Err()); err != nil {
		return sandbox.Status{}, err
	}
	rec, err := l.Book.Load(ref.Town)
	if err != nil {
		return sandbox.Status{}, err
	}
	if rec == nil || rec.Generation != ref.Generation {
		ref.Driver = l.Ref(Record{}).Driver
		return sandbox.Status{Ref: ref, State: sandbox.Gone, ExitCode: -1, Reason: "not known here"}, nil
	}
	return l.status(ctx, rec)
}

// status turns a record into what can be said of it now.
func (l Look) status(ctx context.Context, rec *Record) (sandbox.Status, error) {
	if rec.Phase == Starting {
		unlock, ok, err := l.Book.TryLock(rec.Town)
		if err != nil {
			return sandbox.Status{}, err
		}
		if !ok {
			return sandbox.Status{Ref: l.Ref(*rec), State: sandbox.Unknown, ExitCode: -1, Reason: "is being started"}, nil
		}
		defer unlock()
		now, err := l.Settled(ctx, rec.Town)
		if err != nil {
			return sandbox.Status{}, err
		}
		if now != nil && now.Generation == rec.Generation {
			rec = now
		}
	}
	st := sandbox.Status{Ref: l.Ref(*rec), State: sandbox.Gone, StartedAt: rec.StartedAt, ExitedAt: rec.ExitedAt,
		ExitCode: rec.ExitCode, Reason: rec.Reason}
	if rec.Phase == Ended {
		return st, nil
	}
	switch runs, err := l.Runs(ctx, rec); {
	case err != nil:
		st.State, st.ExitCode, st.Reason = sandbox.Unknown, -1, err.Error()
	case runs:
		st.State, st.Reason = sandbox.Running, "running"
	default:
		st.ExitedAt = time.Now().UTC()
		st.ExitCode, st.Reason = l.HowItEnded(ctx, rec)
	}
	return st, nil
}

// Town is one line of a driver's List: a record that can't be read shows as
// Unknown, a directory without one as generation 0.
func (l Look) Town(ctx context.Context, town string) sandbox.Status {
	st := sandbox.Status{Ref: l.Ref(Record{Town: town}), State: sandbox.Gone, ExitCode: -1, Reason: "a disk without a record"}
	rec, err := l.Book.Load(town)
	if err == nil && rec == nil {
		return st
	}
	if err == nil {
		var known sandbox.Status
		if known, err = l.status(ctx, rec); err == nil {
			return known
		}
	}
	st.State, st.Reason = sandbox.Unknown, err.Error()
	return st
}

// OfGeneration loads the settled record if it is about this generation, else nil.
func (l Look) OfGeneration(ctx context.Context, ref sandbox.Ref) (*Record, error) {
	rec, err := l.Book.Load(ref.Town)
	if err == nil && rec != nil && rec.Phase == Starting {
		var unlock func()
		if unlock, err = l.Book.Lock(ctx, ref.Town); err != nil {
			return nil, err
		}
		defer unlock()
		rec, err = l.Settled(ctx, ref.Town)
	}
	if err != nil || rec == nil || rec.Generation != ref.Generation {
		return nil, err
	}
	return rec, nil
}
