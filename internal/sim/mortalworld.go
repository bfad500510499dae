package sim

import (
	"context"
	"hash"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/sandbox"
	"gastown/internal/store"
)

// mortalDriver is the driver as one life of the server sees it.
type mortalDriver struct{ p *process }

func (d *mortalDriver) Start(_ context.Context, s sandbox.Spec) (sandbox.Ref, error) {
	return outer(d.p, s.Town, "sandbox start", func() (sandbox.Ref, error) { return d.p.w.boxes.start(s) })
}

func (d *mortalDriver) Inspect(_ context.Context, r sandbox.Ref) (sandbox.Status, error) {
	return outer(d.p, r.Town, "sandbox inspect", func() (sandbox.Status, error) { return d.p.w.boxes.inspect(r), nil })
}

func (d *mortalDriver) Stop(_ context.Context, r sandbox.Ref, _ time.Duration) error {
	return act(d.p, r.Town, "sandbox stop", func() error { d.p.w.boxes.stop(r); return nil })
}

func (d *mortalDriver) List(context.Context) ([]sandbox.Status, error) {
	return outer(d.p, "", "sandbox list", func() ([]sandbox.Status, error) { return d.p.w.boxes.list(), nil })
}

func (d *mortalDriver) Remove(_ context.Context, r sandbox.Ref) error {
	return act(d.p, r.Town, "sandbox remove", func() error { d.p.w.boxes.remove(r); return nil })
}

func (d *mortalDriver) Exits() <-chan sandbox.Ref { return nil }

// mortalHub is the hub as one life of the server sees it.
type mortalHub struct{ p *process }

// remote runs a call that needs the remote.
func remote[T any](h *mortalHub, id hub.ID, name string, call func(*upstream) T) (T, error) {
	return outer(h.p, id.Town, name, func() (T, error) {
		u := h.p.w.hub.rig(id)
		if h.p.w.now.Before(u.down) && h.p.w.restless {
			var none T
			return none, errs.New(errs.Unavailable, "the remote can't be reached")
		}
		return call(u), nil
	})
}

func (h *mortalHub) Fetch(_ context.Context, id hub.ID, _ hub.Remote) (string, error) {
	return remote(h, id, "fetch", func(u *upstream) string { return u.tip })
}

// MayPush implements hall.Hub.
func (h *mortalHub) MayPush(_ context.Context, id hub.ID, _ hub.Remote) error {
	_, err := remote(h, id, "ask to push", func(*upstream) struct{} { return struct{}{} })
	return err
}

func (h *mortalHub) Candidate(_ context.Context, id hub.ID, s hub.CandidateSpec) (hub.Candidate, error) {
	return outer(h.p, id.Town, "candidate", func() (hub.Candidate, error) { return h.p.w.hub.candidate(id, s), nil })
}

func (h *mortalHub) Land(_ context.Context, id hub.ID, _ hub.Remote, tip, candidate string) (hub.LandResult, error) {
	return remote(h, id, "push", func(u *upstream) hub.LandResult {
		if h.p.w.fault("target-moved", h.p.w.place(id.Town)) {
			h.p.w.hub.others(u)
		}
		return h.p.w.hub.land(id, tip, candidate)
	})
}

func (h *mortalHub) PushBranch(_ context.Context, id hub.ID, _ hub.Remote, _, commit string) error {
	_, err := remote(h, id, "push", func(*upstream) struct{} { h.p.w.hub.publish(id, commit); return struct{}{} })
	return err
}

func (h *mortalHub) Contains(_ context.Context, id hub.ID, _ hub.Remote, commit string) (string, bool, error) {
	var in bool
	tip, err := remote(h, id, "fetch", func(u *upstream) string {
		in = h.p.w.hub.contains(u.tip, commit)
		return u.tip
	})
	return tip, in, err
}

func (h *mortalHub) DropBead(_ context.Context, id hub.ID, bead string, _ ...string) error {
	return act(h.p, id.Town, "cleanup", func() error { h.p.w.hub.drop(id, bead); return nil })
}

func (h *mortalHub) Refs(_ context.Context, id hub.ID, prefix string) (map[string]string, error) {
	return outer(h.p, id.Town, "list refs", func() (map[string]string, error) { return h.p.w.hub.refs(id, prefix), nil })
}

func (h *mortalHub) DropRefs(_ context.Context, id hub.ID, refs map[string]string) error {
	return act(h.p, id.Town, "drop refs", func() error { h.p.w.hub.dropRefs(id, refs); return nil })
}

func (h *mortalHub) Maintain(_ context.Context, id hub.ID) error {
	return act(h.p, id.Town, "maintain", func() error { return nil })
}

func (h *mortalHub) RemoveRig(_ context.Context, id hub.ID) error {
	return act(h.p, id.Town, "remove rig", func() error { h.p.w.hub.removed(id); return nil })
}

func (h *mortalHub) RemoveTown(_ context.Context, id string) error {
	return act(h.p, id, "remove town", func() error { h.p.w.hub.removedTown(id); return nil })
}

func (h *mortalHub) List() ([]hub.ID, error) { return h.p.w.hub.list(), nil }

// hashCommit adds a commit to the digest of the run.
func (w *world) hashCommit(c store.Commit) {
	put(w.digest, c.Town, c.CommitID)
	for _, r := range c.Rows {
		put(w.digest, r.Kind, r.ID, string(r.Body))
	}
	for _, e := range c.Ledger {
		put(w.digest, e.Kind, e.Subject, e.Actor, string(e.Body))
	}
}

// put writes texts into a hash, which never fails.
func put(h hash.Hash, texts ...string) {
	for _, s := range texts {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
}
