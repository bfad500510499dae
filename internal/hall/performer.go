package hall

import (
	"context"
	"errors"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/sandbox"
	"gastown/internal/town"
)

// Driver starts, watches and ends sandboxes; see package sandbox for what its
// methods promise. The hall names a sandbox by its town's id.
type Driver interface {
	Start(ctx context.Context, spec sandbox.Spec) (sandbox.Ref, error)
	Inspect(ctx context.Context, ref sandbox.Ref) (sandbox.Status, error)
	Stop(ctx context.Context, ref sandbox.Ref, grace time.Duration) error
	List(ctx context.Context) ([]sandbox.Status, error)
	Remove(ctx context.Context, ref sandbox.Ref) error
	Exits() <-chan sandbox.Ref
}

// Hub keeps the repositories of rigs and speaks with their upstreams; see
// package hub. Repositories are named by their town's id.
type Hub interface {
	Fetch(ctx context.Context, id hub.ID, r hub.Remote) (tip string, err error)
	MayPush(ctx context.Context, id hub.ID, r hub.Remote) error
	Candidate(ctx context.Context, id hub.ID, s hub.CandidateSpec) (hub.Candidate, error)
	Land(ctx context.Context, id hub.ID, r hub.Remote, tip, candidate string) (hub.LandResult, error)
	PushBranch(ctx context.Context, id hub.ID, r hub.Remote, branch, commit string) error
	Contains(ctx context.Context, id hub.ID, r hub.Remote, commit string) (tip string, in bool, err error)
	DropBead(ctx context.Context, id hub.ID, bead string, branches ...string) error
	Refs(ctx context.Context, id hub.ID, prefix string) (map[string]string, error)
	DropRefs(ctx context.Context, id hub.ID, refs map[string]string) error
	Maintain(ctx context.Context, id hub.ID) error
	RemoveRig(ctx context.Context, id hub.ID) error
	RemoveTown(ctx context.Context, town string) error
	List() ([]hub.ID, error)
}

// Tokens makes what a sandbox proves itself with.
type Tokens interface {
	// Sandbox returns the token of a generation, issued at the given time: the
	// same arguments give the same bytes. It fails when the signing key can't be read.
	Sandbox(ctx context.Context, t TownRef, generation int64, issued town.Time) ([]byte, error)
}

// Vault keeps credentials; see package vault.
type Vault interface {
	Get(name string) ([]byte, error)
	Put(name string, value []byte) error
	Delete(name string) error
	DeletePrefix(prefix string) error
}

// Notifier tells people.
type Notifier interface {
	Notify(ctx context.Context, t TownRef, n town.Notice, url string) error
}

// Outside is the Performer of a real server: it asks drivers, repositories and
// people.
type Outside struct {
	Driver   Driver
	Hub      Hub
	Tokens   Tokens
	Vault    Vault    // nil: nothing to remove there
	Notifier Notifier // nil: notices go nowhere

	// Runner says what runs inside the sandbox of a town: command and environment.
	Runner func(t TownRef, generation int64) (command, env []string)
}

// Perform implements Performer. Every action may be repeated.
func (o *Outside) Perform(ctx context.Context, t TownRef, e town.Effect) (any, error) {
	switch a := e.Action.(type) {
	case town.StartSandbox:
		return o.start(ctx, t, a)
	case town.StopSandbox:
		return nil, o.Driver.Stop(ctx, ref(t, a.Generation, a.Ref), a.Grace)
	case town.InspectSandbox:
		return o.inspect(ctx, ref(t, a.Generation, a.Ref))
	case town.FetchRig:
		return o.fetch(ctx, t, a)
	case town.BuildCandidate:
		return o.candidate(ctx, t, a)
	case town.Land:
		got, err := o.Hub.Land(ctx, hubID(t, a.Rig), remote(a.Rig), a.Tip, a.Candidate)
		return town.Landed{Lost: got.Lost, Tip: got.Tip}, err
	case town.Publish:
		return nil, o.Hub.PushBranch(ctx, hubID(t, a.Rig), remote(a.Rig), a.Branch, a.Commit)
	case town.CheckTarget:
		tip, in, err := o.Hub.Contains(ctx, hubID(t, a.Rig), remote(a.Rig), a.Commit)
		return town.Checked{In: in, Tip: tip}, err
	case town.CleanupBead:
		return nil, o.cleanup(ctx, t, a)
	case town.RemoveRig:
		return nil, o.removeRig(ctx, t, a.Rig)
	case town.RemoveTown:
		return nil, o.removeTown(ctx, t)
	case town.SendNotice:
		if o.Notifier == nil {
			return nil, nil
		}
		return nil, o.Notifier.Notify(ctx, t, a.Notice, a.URL)
	case town.RenewToken:
		// The owner is the town itself or a name that this server does not
		// question; what can fail is the key.
		_, err := o.Tokens.Sandbox(ctx, t, a.Generation, a.At)
		return nil, err
	}
	return nil, errs.New(errs.Internal, "nobody knows how to perform %s", town.ActionName(e.Action))
}

func ref(t TownRef, generation int64, id string) sandbox.Ref {
	return sandbox.Ref{Town: t.ID, Generation: generation, ID: id}
}

func hubID(t TownRef, r town.Rig) hub.ID { return hub.ID{Town: t.ID, Rig: r.Name} }

func remote(r town.Rig) hub.Remote {
	return hub.Remote{URL: r.URL, Target: r.Target, Secret: r.Secret, UpdateWorktree: r.UpdateWorktree}
}

func (o *Outside) start(ctx context.Context, t TownRef, a town.StartSandbox) (any, error) {
	token, err := o.Tokens.Sandbox(ctx, t, a.Generation, a.TokenAt)
	if err != nil {
		return nil, err
	}
	command, env := o.Runner(t, a.Generation)
	got, err := o.Driver.Start(ctx, sandbox.Spec{Town: t.ID, Generation: a.Generation, Command: command, Env: env,
		Token: token, FreshDisk: a.FreshDisk})
	return town.Started{Ref: got.ID}, err
}

// fetch brings the target's tip and, where asked, upstream's word on pushes. That
// upstream can't be asked is a failure of the whole; that it refuses is an answer.
func (o *Outside) fetch(ctx context.Context, t TownRef, a town.FetchRig) (any, error) {
	tip, err := o.Hub.Fetch(ctx, hubID(t, a.Rig), remote(a.Rig))
	if err != nil || !a.Write {
		return town.Fetched{Tip: tip}, err
	}
	err = o.Hub.MayPush(ctx, hubID(t, a.Rig), remote(a.Rig))
	if errs.Is(err, errs.Forbidden) {
		return town.Fetched{Tip: tip, Refused: err.Error()}, nil
	}
	return town.Fetched{Tip: tip, Writable: err == nil}, err
}

func (o *Outside) inspect(ctx context.Context, r sandbox.Ref) (any, error) {
	st, err := o.Driver.Inspect(ctx, r)
	return town.Inspected{State: string(st.State), Reason: st.Reason}, err
}

func (o *Outside) candidate(ctx context.Context, t TownRef, a town.BuildCandidate) (any, error) {
	got, err := o.Hub.Candidate(ctx, hubID(t, a.Rig), hub.CandidateSpec{Target: a.Rig.Target, Tip: a.Tip, Commit: a.Commit,
		Bead: a.Bead, N: a.N, Message: a.Message, Author: hub.Identity{Name: a.Name, Email: a.Address}, When: a.When.Time()})
	return town.Candidate{Commit: got.Commit, Conflict: got.Conflict, Detail: got.Detail, AlreadyIn: got.AlreadyIn}, err
}

func (o *Outside) cleanup(ctx context.Context, t TownRef, a town.CleanupBead) error {
	var branches []string
	if a.Branch != "" {
		branches = append(branches, a.Branch)
	}
	return gone(o.Hub.DropBead(ctx, hubID(t, a.Rig), a.Bead, branches...))
}

func (o *Outside) removeRig(ctx context.Context, t TownRef, r town.Rig) error {
	if err := gone(o.Hub.RemoveRig(ctx, hubID(t, r))); err != nil || o.Vault == nil {
		return err
	}
	if err := gone(o.Vault.DeletePrefix("expose/" + t.ID + "/" + r.Name)); err != nil || r.Secret == "" {
		return err
	}
	return errors.Join(gone(o.Vault.Delete(r.Secret)), gone(o.Vault.Delete(hub.HostsName(r.Secret))))
}

func (o *Outside) removeTown(ctx context.Context, t TownRef) error {
	if err := gone(o.Driver.Remove(ctx, sandbox.Ref{Town: t.ID})); err != nil {
		return err
	}
	if err := gone(o.Hub.RemoveTown(ctx, t.ID)); err != nil || o.Vault == nil {
		return err
	}
	for _, prefix := range []string{"git/" + t.ID, hub.HostsName("git/" + t.ID), "expose/" + t.ID, notifyKey(t)} {
		if err := gone(o.Vault.DeletePrefix(prefix)); err != nil {
			return err
		}
	}
	return nil
}

// gone takes "it does not exist" for success.
func gone(err error) error {
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
