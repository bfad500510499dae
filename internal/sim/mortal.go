package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

// died is what a call of a dead process gets: nobody sees it.
func died() error { return errs.New(errs.Unavailable, "the process is dead") }

// before is run before a call to the outside of the process, after follows it:
// the process may die at either.
func (p *process) before() bool {
	if !p.dead && p.w.fault("death before a call", 0.0003) {
		p.dead = true
	}
	return !p.dead
}

func (p *process) after() bool {
	if !p.dead && p.w.fault("death after a call", 0.0003) {
		p.dead = true
	}
	return !p.dead
}

// mortalStore is the store as one life of the server sees it.
type mortalStore struct {
	store.Store
	p *process
}

func (s *mortalStore) Commit(ctx context.Context, c store.Commit) (int64, error) {
	w := s.p.w
	if !s.p.before() {
		return 0, died()
	}
	if w.fault("commit refused", 0.002) {
		return 0, errs.New(errs.Unavailable, "the disk is full")
	}
	if w.fault("commit lost", 0.002) {
		return 0, store.ErrUnknown
	}
	v, err := s.Store.Commit(ctx, c)
	if err == nil {
		w.commits++
		w.shadow.commit(c)
	}
	if !s.p.after() {
		return 0, died()
	}
	if err == nil && w.fault("commit seems lost", 0.002) {
		return 0, store.ErrUnknown
	}
	return v, err
}

func (s *mortalStore) Load(ctx context.Context, id string, since int64) (store.Head, []store.Row, error) {
	if !s.p.before() {
		return store.Head{}, nil, died()
	}
	if s.p.w.fault("load failed", 0.001) {
		return store.Head{}, nil, errs.New(errs.Unavailable, "the disk does not answer")
	}
	return s.Store.Load(ctx, id, since)
}

func (s *mortalStore) Head(ctx context.Context, id string) (store.Head, error) {
	if !s.p.before() {
		return store.Head{}, died()
	}
	return s.Store.Head(ctx, id)
}

func (s *mortalStore) CommitKnown(ctx context.Context, id, commit string) (bool, error) {
	if !s.p.before() {
		return false, died()
	}
	if s.p.w.fault("look-up failed", 0.2) {
		return false, errs.New(errs.Unavailable, "the disk does not answer")
	}
	return s.Store.CommitKnown(ctx, id, commit)
}

func (s *mortalStore) ClaimDue(ctx context.Context, now, until int64, limit int) ([]store.Head, error) {
	if !s.p.before() {
		return nil, died()
	}
	heads, err := s.Store.ClaimDue(ctx, now, until, limit)
	if !s.p.after() {
		return nil, died()
	}
	return heads, err
}

func (s *mortalStore) Admit(ctx context.Context, id string, now int64, l store.Limits) (store.Admission, error) {
	if !s.p.before() {
		return store.Admission{}, died()
	}
	a, err := s.Store.Admit(ctx, id, now, l)
	if !s.p.after() {
		return store.Admission{}, died()
	}
	return a, err
}

func (s *mortalStore) CreateTown(ctx context.Context, h store.Head, rows []store.Row, ledger []store.Entry) error {
	if !s.p.before() {
		return died()
	}
	err := s.Store.CreateTown(ctx, h, rows, ledger)
	if err == nil {
		s.p.w.shadow.created(h)
	}
	if !s.p.after() {
		return died()
	}
	return err
}

func (s *mortalStore) DeleteTown(ctx context.Context, id string) error {
	if !s.p.before() {
		return died()
	}
	err := s.Store.DeleteTown(ctx, id)
	if err == nil {
		s.p.w.shadow.deleted(id)
	}
	if !s.p.after() {
		return died()
	}
	return err
}

// outer runs a call to the world, in which the process may die before or after,
// and which may fail without or with its effect.
func outer[T any](p *process, name string, call func() (T, error)) (T, error) {
	var none T
	if !p.before() {
		return none, died()
	}
	if p.w.fault(name+" failed", 0.01) {
		return none, errs.New(errs.Unavailable, "%s: no answer", name)
	}
	v, err := call()
	if !p.after() {
		return none, died()
	}
	if p.w.fault(name+" seems to have failed", 0.005) {
		return none, errs.New(errs.Unavailable, "%s: connection lost", name)
	}
	return v, err
}

func act(p *process, name string, call func() error) error {
	_, err := outer(p, name, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// performer checks what the hall performs against what was committed, and ends
// calls whose time is over, as the context of a real one would.
type performer struct {
	hall.Outside
	p *process
}

func (f *performer) Perform(ctx context.Context, t hall.TownRef, e town.Effect) (any, error) {
	if !f.p.before() {
		return nil, died()
	}
	w := f.p.w
	if until := w.shadow.perform(t.ID, f.p.boot, e); f.p.Now().After(until) {
		return nil, context.DeadlineExceeded
	}
	return f.Outside.Perform(ctx, t, e)
}

// mortalDriver is the driver as one life of the server sees it.
type mortalDriver struct{ p *process }

func (d *mortalDriver) Start(_ context.Context, s sandbox.Spec) (sandbox.Ref, error) {
	return outer(d.p, "sandbox start", func() (sandbox.Ref, error) { return d.p.w.boxes.start(s) })
}

func (d *mortalDriver) Inspect(_ context.Context, r sandbox.Ref) (sandbox.Status, error) {
	return outer(d.p, "sandbox inspect", func() (sandbox.Status, error) { return d.p.w.boxes.inspect(r), nil })
}

func (d *mortalDriver) Stop(_ context.Context, r sandbox.Ref, _ time.Duration) error {
	return act(d.p, "sandbox stop", func() error { d.p.w.boxes.stop(r); return nil })
}

func (d *mortalDriver) List(context.Context) ([]sandbox.Status, error) {
	return outer(d.p, "sandbox list", func() ([]sandbox.Status, error) { return d.p.w.boxes.list(), nil })
}

func (d *mortalDriver) Remove(_ context.Context, r sandbox.Ref) error {
	return act(d.p, "sandbox remove", func() error { d.p.w.boxes.remove(r); return nil })
}

func (d *mortalDriver) Exits() <-chan sandbox.Ref { return nil }

type mortalTokens struct{ p *process }

func (t *mortalTokens) Sandbox(_ context.Context, ref hall.TownRef, gen int64, at town.Time) ([]byte, error) {
	return outer(t.p, "token", func() ([]byte, error) { t.p.w.tokens++; return fmt.Appendf(nil, "%s.%d.%d", ref.ID, gen, at), nil })
}

// mortalHub is the hub as one life of the server sees it.
type mortalHub struct{ p *process }

func (h *mortalHub) Fetch(_ context.Context, id hub.ID, _ hub.Remote) (string, error) {
	return outer(h.p, "fetch", func() (string, error) { return h.p.w.hub.rig(id).tip, nil })
}

func (h *mortalHub) Candidate(_ context.Context, id hub.ID, s hub.CandidateSpec) (hub.Candidate, error) {
	return outer(h.p, "candidate", func() (hub.Candidate, error) { return h.p.w.hub.candidate(id, s), nil })
}

func (h *mortalHub) Land(_ context.Context, id hub.ID, _ hub.Remote, tip, candidate string) (hub.LandResult, error) {
	return outer(h.p, "push", func() (hub.LandResult, error) { return h.p.w.hub.land(id, tip, candidate), nil })
}

func (h *mortalHub) PushBranch(_ context.Context, id hub.ID, _ hub.Remote, _, commit string) error {
	return act(h.p, "push", func() error { h.p.w.hub.publish(id, commit); return nil })
}

func (h *mortalHub) Contains(_ context.Context, id hub.ID, _ hub.Remote, commit string) (string, bool, error) {
	type answer struct {
		tip string
		in  bool
	}
	a, err := outer(h.p, "fetch", func() (answer, error) {
		r := h.p.w.hub.rig(id)
		return answer{r.tip, r.in[commit]}, nil
	})
	return a.tip, a.in, err
}

func (h *mortalHub) DropBead(context.Context, hub.ID, string, ...string) error {
	return act(h.p, "cleanup", func() error { return nil })
}

func (h *mortalHub) Refs(context.Context, hub.ID, string) (map[string]string, error) {
	return nil, act(h.p, "list refs", func() error { return nil })
}

func (h *mortalHub) DropRefs(context.Context, hub.ID, map[string]string) error {
	return act(h.p, "drop refs", func() error { return nil })
}

func (h *mortalHub) Maintain(context.Context, hub.ID) error {
	return act(h.p, "maintain", func() error { return nil })
}

func (h *mortalHub) RemoveRig(_ context.Context, id hub.ID) error {
	return act(h.p, "remove rig", func() error { h.p.w.hub.removed(id); return nil })
}

func (h *mortalHub) RemoveTown(_ context.Context, id string) error {
	return act(h.p, "remove town", func() error { h.p.w.hub.removedTown(id); return nil })
}

func (h *mortalHub) List() ([]hub.ID, error) { return h.p.w.hub.list(), nil }

// hashCommit adds a commit to the digest of the run.
func (w *world) hashCommit(c store.Commit) {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // a store.Commit always encodes
	}
	w.digest.Write(b) // never fails
}
