package sandboxtest

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
)

// Call is one recorded call of a Fake.
type Call struct {
	Op         string // start, inspect, stop, list or remove
	Town       string
	Generation int64
	Spec       sandbox.Spec  // for start
	Grace      time.Duration // for stop
	Err        error         // what the call answered
}

// Fake is a driver in memory for tests of the driver's users. It keeps the whole
// contract of package sandbox, starts no goroutine and reads no clock: everything
// happens inside the calls. Make it with NewFake.
type Fake struct {
	// Now supplies StartedAt and ExitedAt. nil leaves them zero. Set it before use.
	Now func() time.Time

	mu     sync.Mutex // guards everything below
	towns  map[string]*fakeTown
	calls  []Call
	faults []*fault
	exits  chan sandbox.Ref
}

type fakeTown struct {
	status sandbox.Status
	spec   sandbox.Spec
	disks  int // how many fresh disks the town got, the first included
}

// Fault says how a Fake's call goes wrong.
type Fault int

// The faults.
const (
	Fail  Fault = iota // the call changes nothing and returns an error
	Lose               // the call does its work, but returns an error
	Hang               // the call changes nothing and returns when its context ends
	Blind              // Inspect and List report State Unknown; other calls return Unavailable
)

type fault struct {
	op, town string
	kind     Fault
	err      error
	left     int // calls that it still hits; below 0 without end
}

// NewFake returns a driver without sandboxes.
func NewFake() *Fake {
	return &Fake{towns: map[string]*fakeTown{}, exits: make(chan sandbox.Ref, 1024)}
}

// Break makes the next n calls of op ("start", "inspect", "stop", "list" or
// "remove"; "" for all) for a town ("" for all) go wrong. n below 0 is without
// end, 0 does nothing. A nil err becomes a plain Unavailable error. Earlier faults strike first.
func (f *Fake) Break(op, town string, n int, kind Fault, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n == 0 {
		return
	}
	if err == nil {
		err = errs.New(errs.Unavailable, "sandbox: the fake was told to fail")
	}
	f.faults = append(f.faults, &fault{op: op, town: town, kind: kind, err: err, left: n})
}

// FailStarts makes the next n starts of any town fail with err.
func (f *Fake) FailStarts(n int, err error) { f.Break("start", "", n, Fail, err) }

// Heal takes all faults back.
func (f *Fake) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Kill lets a town's sandbox die by itself with an exit code, and tells Exits. It
// reports whether one ran.
func (f *Fake) Kill(town string, code int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.towns[town]
	if t == nil || t.status.State != sandbox.Running {
		return false
	}
	f.endLocked(t, code, "died")
	return true
}

// Calls returns the calls so far, oldest first.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count returns how many calls of op there were for a town ("" for all).
func (f *Fake) Count(op, town string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c.Op == op && (town == "" || c.Town == town) {
			n++
		}
	}
	return n
}

// ForgetCalls empties the record of calls.
func (f *Fake) ForgetCalls() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// Running returns the generation that runs of a town, 0 for none.
func (f *Fake) Running(town string) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.towns[town]; t != nil && t.status.State == sandbox.Running {
		return t.status.Ref.Generation
	}
	return 0
}

// Awake returns the names of all towns with a running sandbox, sorted.
func (f *Fake) Awake() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for name, t := range f.towns {
		if t.status.State == sandbox.Running {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Spec returns what the newest generation of a town was started with, the token
// included, and how many disks the town has had.
func (f *Fake) Spec(town string) (spec sandbox.Spec, disks int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.towns[town]
	if t == nil {
		return sandbox.Spec{}, 0, false
	}
	return t.spec, t.disks, true
}

// Start implements sandbox.Driver.
func (f *Fake) Start(ctx context.Context, spec sandbox.Spec) (ref sandbox.Ref, err error) {
	c := Call{Op: "start", Town: spec.Town, Generation: spec.Generation, Spec: cloneSpec(spec)}
	err = f.do(ctx, c, func() error {
		ref, err = f.startLocked(spec)
		return err
	})
	if err != nil {
		return sandbox.Ref{}, err
	}
	return ref, nil
}

func (f *Fake) startLocked(spec sandbox.Spec) (sandbox.Ref, error) {
	if err := spec.Validate(); err != nil {
		return sandbox.Ref{}, err
	}
	t := f.towns[spec.Town]
	if t == nil {
		t = &fakeTown{disks: 1}
	} else {
		known := t.status.Ref.Generation
		running := t.status.State == sandbox.Running
		switch {
		case known == spec.Generation && running:
			return t.status.Ref, nil
		case known == spec.Generation:
			return sandbox.Ref{}, errs.New(errs.Gone, "sandbox: generation %d of town %s has ended", known, spec.Town)
		case known > spec.Generation:
			return sandbox.Ref{}, errs.New(errs.Conflict, "sandbox: town %s is at generation %d already", spec.Town, known)
		case running:
			return sandbox.Ref{}, errs.New(errs.Conflict, "sandbox: generation %d of town %s still runs", known, spec.Town)
		}
		if spec.FreshDisk {
			t.disks++
		}
	}
	t.spec = cloneSpec(spec)
	t.status = sandbox.Status{
		Ref:       sandbox.Ref{Driver: "fake", Town: spec.Town, Generation: spec.Generation, ID: "fake-" + spec.Town},
		State:     sandbox.Running,
		StartedAt: f.now(),
		Reason:    "running",
	}
	f.towns[spec.Town] = t
	return t.status.Ref, nil
}

// Inspect implements sandbox.Driver.
func (f *Fake) Inspect(ctx context.Context, ref sandbox.Ref) (st sandbox.Status, err error) {
	c := Call{Op: "inspect", Town: ref.Town, Generation: ref.Generation}
	err = f.do(ctx, c, func() error {
		if err := ref.Validate(false); err != nil {
			return err
		}
		st = sandbox.Status{Ref: ref, State: sandbox.Gone, ExitCode: -1, Reason: "never started here"}
		st.Ref.Driver = "fake"
		if t := f.towns[ref.Town]; t != nil && t.status.Ref.Generation == ref.Generation {
			st = t.status
		}
		return nil
	})
	if blind(err) {
		return sandbox.Status{Ref: ref, State: sandbox.Unknown, ExitCode: -1, Reason: "the fake was told to be blind"}, nil
	}
	if err != nil {
		return sandbox.Status{}, err
	}
	return st, nil
}

// Stop implements sandbox.Driver. A fake sandbox ends at once with exit code 0.
func (f *Fake) Stop(ctx context.Context, ref sandbox.Ref, grace time.Duration) error {
	c := Call{Op: "stop", Town: ref.Town, Generation: ref.Generation, Grace: grace}
	return f.do(ctx, c, func() error {
		if err := ref.Validate(false); err != nil {
			return err
		}
		t := f.towns[ref.Town]
		if t != nil && t.status.Ref.Generation == ref.Generation && t.status.State == sandbox.Running {
			f.endLocked(t, 0, "stopped")
		}
		return nil
	})
}

// List implements sandbox.Driver.
func (f *Fake) List(ctx context.Context) (all []sandbox.Status, err error) {
	snapshot := func() {
		all = nil
		for _, t := range f.towns {
			all = append(all, t.status)
		}
		slices.SortFunc(all, func(a, b sandbox.Status) int { return strings.Compare(a.Ref.Town, b.Ref.Town) })
	}
	err = f.do(ctx, Call{Op: "list"}, func() error { snapshot(); return nil })
	if blind(err) {
		f.mu.Lock()
		defer f.mu.Unlock()
		snapshot()
		for i := range all {
			all[i].State = sandbox.Unknown
		}
		return all, nil
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Remove implements sandbox.Driver.
func (f *Fake) Remove(ctx context.Context, ref sandbox.Ref) error {
	c := Call{Op: "remove", Town: ref.Town, Generation: ref.Generation}
	return f.do(ctx, c, func() error {
		if err := ref.Validate(true); err != nil {
			return err
		}
		t := f.towns[ref.Town]
		if t == nil {
			return nil
		}
		if known := t.status.Ref.Generation; ref.Generation != 0 && known > ref.Generation {
			return errs.New(errs.Conflict, "sandbox: town %s is at generation %d already", ref.Town, known)
		}
		if t.status.State == sandbox.Running {
			f.endLocked(t, -1, "removed")
		}
		delete(f.towns, ref.Town)
		return nil
	})
}

// Exits implements sandbox.Driver. The channel holds 1024 deaths; more are lost.
func (f *Fake) Exits() <-chan sandbox.Ref { return f.exits }

// Isolation implements sandbox.Driver.
func (f *Fake) Isolation() string { return "" }

// do runs one call under the lock, with the fault that is due, and records it.
func (f *Fake) do(ctx context.Context, c Call, work func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	flt, hit := f.takeLocked(c.Op, c.Town)
	switch {
	case hit && flt.kind == Hang:
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		c.Err = ctx.Err()
	case ctx.Err() != nil:
		c.Err = ctx.Err()
	case hit && flt.kind == Fail:
		c.Err = flt.err
	case hit && flt.kind == Blind:
		c.Err = &blindError{flt.err}
	default:
		c.Err = work()
		if hit && c.Err == nil {
			c.Err = flt.err
		}
	}
	f.calls = append(f.calls, c)
	return c.Err
}

func (f *Fake) takeLocked(op, town string) (fault, bool) {
	for i, flt := range f.faults {
		if (flt.op != "" && flt.op != op) || (flt.town != "" && flt.town != town) {
			continue
		}
		if flt.left > 0 {
			flt.left--
		}
		if flt.left == 0 {
			f.faults = slices.Delete(f.faults, i, i+1)
		}
		return *flt, true
	}
	return fault{}, false
}

func (f *Fake) endLocked(t *fakeTown, code int, reason string) {
	t.status.State = sandbox.Gone
	t.status.ExitCode = code
	t.status.ExitedAt = f.now()
	t.status.Reason = reason
	select {
	case f.exits <- t.status.Ref:
	default: // nobody receives; Exits is only a hint
	}
}

func (f *Fake) now() time.Time {
	if f.Now == nil {
		return time.Time{}
	}
	return f.Now()
}

// blindError marks the answer of a Blind fault, which Inspect and List turn into
// State Unknown.
type blindError struct{ error }

func (b *blindError) Unwrap() error { return b.error }

func blind(err error) bool {
	_, ok := err.(*blindError)
	return ok
}

func cloneSpec(s sandbox.Spec) sandbox.Spec {
	s.Command = slices.Clone(s.Command)
	s.Env = slices.Clone(s.Env)
	s.Token = slices.Clone(s.Token)
	return s
}
