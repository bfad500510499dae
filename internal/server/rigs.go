package server

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/hub"
	"gastown/internal/town"
)

const (
	undoTimeout = 30 * time.Second
)

// RigPath are the parameters that name a rig. It is exported for
// the framework, which passes over others when they are embedded.
type RigPath struct {
	TownPath
	Rig string `path:"rig"`
}

func (s *Server) registerRigs() {
	const tag = "rigs"
	add(s, op{method: "POST", path: "/towns/{town}/rigs", id: "add-rig", tag: tag, summary: "Add a git repository", status: 201, long: true,
		errors: []int{404, 409}, detail: "The server clones the repository before it answers, which may take minutes.", result: api.Rig{}}, s.addRig)
	add(s, op{method: "GET", path: "/towns/{town}/rigs", id: "list-rigs", tag: tag, summary: "List the rigs of a town", errors: []int{404}}, s.listRigs)
	add(s, op{method: "GET", path: "/towns/{town}/rigs/{rig}", id: "get-rig", tag: tag, summary: "Show a rig", errors: []int{404}}, s.getRig)
	add(s, op{method: "PATCH", path: "/towns/{town}/rigs/{rig}", id: "edit-rig", tag: tag, summary: "Change settings or gates of a rig",
		errors: []int{404, 409}}, s.editRig)
	add(s, op{method: "DELETE", path: "/towns/{town}/rigs/{rig}", id: "drop-rig", tag: tag, summary: "Remove a rig", status: 202, errors: []int{404, 409},
		detail: "Refused while it has beads that are not terminal, unless force cancels them. The repository upstream is not touched."}, s.dropRig)
	add(s, op{method: "GET", path: "/rigs", id: "find-rigs", tag: tag, summary: "Find the towns that have a rig of a name"}, s.findRigs)
}

type addRigIn struct {
	TownPath
	IdemKey
	Body api.AddRig
}

// newRig checks a request as far as that is possible without the town.
func (s *Server) newRig(in api.AddRig) (town.Rig, error) {
	r := town.Rig{Name: in.Name, URL: in.URL, Prefix: cmp.Or(in.Prefix, prefixFor(in.Name)), Target: cmp.Or(in.Target, "main"),
		Gates: gates(in.Gates), Settings: in.Settings, UpdateWorktree: in.UpdateWorktree}
	if err := town.ValidName("rig", r.Name); err != nil {
		return r, err
	}
	if err := town.ValidPrefix(r.Prefix); err != nil {
		return r, err
	}
	if err := git.ValidRemoteURL(r.URL); err != nil {
		return r, err
	}
	if err := git.ValidBranch(r.Target); err != nil {
		return r, err
	}
	return r, s.checkSettings(town.LevelRig, in.Settings)
}

// prefixFor makes the prefix of bead ids from a rig's name.
func prefixFor(name string) string {
	p := strings.TrimLeft(strings.ReplaceAll(name, "-", ""), "0123456789")
	return cmp.Or(p[:min(len(p), 12)], "b")
}

func gates(in []api.Gate) []town.Gate {
	return mapped(in, func(g api.Gate) town.Gate {
		return town.Gate{Name: g.Name, Command: g.Command, Timeout: time.Duration(g.TimeoutMS) * time.Millisecond}
	})
}

func (s *Server) addRig(ctx context.Context, in *addRigIn) (*raw, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	rig, err := s.newRig(in.Body)
	if err != nil {
		return nil, err
	}
	l, err := newLogin(in.Body.Credential, in.Body.GitToken, rig.URL)
	if err != nil {
		return nil, err
	}
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	unlock, err := s.adding.lock(ctx, id+"/"+rig.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	hash := digest(ctx, "add-rig", id)
	if done, err := s.recorded(ctx, id, in.IdemKey, hash); done != nil || err != nil {
		return done, err
	}
	if rig.Settings, err = s.fitRig(ctx, id, rig); err != nil {
		return nil, err
	}
	repo := hub.ID{Town: id, Rig: rig.Name}
	if l.Credential != nil {
		rig.Secret = secretName(id, rig.Name)
		if err := s.keep(rig.Secret, l); err != nil {
			return nil, err
		}
	}
	if rig.Tip, err = s.clone(ctx, repo, rig, in.Body.InitEmpty); err != nil {
		return nil, s.undoRig(ctx, repo, rig.Secret, false, err)
	}
	s.places.drop(in.Town)
	out, err := s.commit(ctx, id, town.AddRig{By: callOf(ctx).who, Rig: rig}, in.IdemKey, hash, 201, func(t *town.Town) any {
		added, _ := t.Rig(rig.Name) // the input put it there
		return rigView(t, added)
	})
	if err != nil && s.rigMissing(ctx, id, rig.Name) {
		err = s.undoRig(ctx, repo, rig.Secret, true, err)
	}
	return out, err
}

// fitRig checks a new rig against the town, before the long work begins, and
// completes its settings.
func (s *Server) fitRig(ctx context.Context, townID string, rig town.Rig) (town.Settings, error) {
	owners, err := s.store.FindPrefix(ctx, rig.Prefix)
	if err != nil {
		return nil, err
	}
	inherited := map[string]string{}
	err = s.view(ctx, townID, func(t *town.Town) error {
		if old, ok := t.Rig(rig.Name); ok {
			if old.State == town.RigRemoving {
				return errs.New(errs.Conflict, "a rig %s is being removed from the town", rig.Name).WithHint("try again in a moment")
			}
			return errs.New(errs.Conflict, "the town has a rig %s already", rig.Name).WithHint("choose another name")
		}
		if t.Info().Mode == town.ModeDeleting {
			return errs.New(errs.Conflict, "the town is being deleted")
		}
		values, err := t.ShowSettings("")
		for _, v := range values {
			inherited[v.Key] = v.Value
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(owners) > 0 {
		return nil, errs.New(errs.Conflict, "the prefix %s belongs to the rig %s already", rig.Prefix, owners[0].Rig).
			WithHint("choose another with --prefix")
	}
	return s.chooseModel(rig.Settings, inherited)
}

func remote(r town.Rig) hub.Remote {
	return hub.Remote{URL: r.URL, Target: r.Target, Secret: r.Secret, UpdateWorktree: r.UpdateWorktree}
}

// clone brings the repository into the hub. What an attempt left behind that
// died before its rig was recorded is removed first: no rig owns it.
func (s *Server) clone(ctx context.Context, repo hub.ID, rig town.Rig, initEmpty bool) (string, error) {
	o := hub.AddOptions{InitEmpty: initEmpty}
	tip, err := s.cfg.Hub.Add(ctx, repo, remote(rig), o)
	if !errs.Is(err, errs.Conflict) || !s.rigMissing(ctx, repo.Town, repo.Rig) {
		return tip, err
	}
	if rmErr := s.cfg.Hub.RemoveRig(ctx, repo); rmErr != nil {
		return "", errors.Join(err, rmErr)
	}
	return s.cfg.Hub.Add(ctx, repo, remote(rig), o)
}

// rigMissing reports whether the town certainly has no such rig.
func (s *Server) rigMissing(ctx context.Context, townID, rig string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := s.view(ctx, townID, func(t *town.Town) error {
		_, err := getRig(t, rig)
		return err
	})
	return errs.Is(err, errs.NotFound)
}

// undoRig takes back what a rig that was not added has left, and returns why
// it was not added.
func (s *Server) undoRig(ctx context.Context, repo hub.ID, secret string, cloned bool, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if cloned {
		if err := s.cfg.Hub.RemoveRig(ctx, repo); err != nil {
			s.log.Warn("leftover repository of a rig that was not added", "rig", repo.String(), "err", err)
		}
	}
	if secret != "" {
		if err := s.forget(secret); err != nil {
			s.log.Warn("leftover credential of a rig that was not added", "rig", repo.String(), "err", err)
		}
	}
	return why
}

func (s *Server) listRigs(ctx context.Context, in *TownPath) (*body[api.List[api.Rig]], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.Rig]]{}
	return out, s.view(ctx, id, func(t *town.Town) error {
		out.Body.Items = mapped(t.Rigs(), func(r town.Rig) api.Rig { return rigView(t, r) })
		return nil
	})
}

func (s *Server) getRig(ctx context.Context, in *RigPath) (*body[api.Rig], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	return s.showRig(ctx, id, in.Rig)
}

func (s *Server) showRig(ctx context.Context, townID, rig string) (*body[api.Rig], error) {
	out := &body[api.Rig]{}
	secret := ""
	err := s.view(ctx, townID, func(t *town.Town) error {
		r, err := getRig(t, rig)
		out.Body, secret = rigView(t, r), r.Secret
		return err
	})
	if err == nil {
		out.Body.Credential, err = s.info(secret)
	}
	return out, err
}

type editRigIn struct {
	RigPath
	Body api.EditRig
}

func (s *Server) editRig(ctx context.Context, in *editRigIn) (*body[api.Rig], error) {
	if err := s.checkSettings(town.LevelRig, in.Body.Set); err != nil {
		return nil, err
	}
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	values, err := s.fitSettings(ctx, id, in.Rig, in.Body.Set)
	if err != nil {
		return nil, err
	}
	unlock, err := s.adding.lock(ctx, id+"/"+in.Rig)
	if err != nil {
		return nil, err
	}
	defer unlock()
	set := town.SetRig{By: callOf(ctx).who, Rig: in.Rig, Set: values, Unset: in.Body.Unset, Allow: in.Body.Allow, Deny: in.Body.Deny}
	set.Hide = in.Body.Hide
	if set.Expose, err = s.keepExposed(id, in.Rig, in.Body); err != nil {
		return nil, err
	}
	if set.Access, set.Secret, err = s.editAccess(ctx, id, in); err != nil {
		return nil, err
	}
	if in.Body.Gates != nil {
		g := gates(*in.Body.Gates)
		set.Gates = &g
	}
	if err := s.hall.Do(ctx, id, set); err != nil {
		return nil, err
	}
	if set.Secret != nil && *set.Secret == "" {
		if err := s.forget(secretName(id, in.Rig)); err != nil {
			return nil, err
		}
	}
	if err := s.dropExposed(id, in.Rig, in.Body.Hide); err != nil {
		return nil, err
	}
	return s.showRig(ctx, id, in.Rig)
}

type dropRigIn struct {
	RigPath
	Force bool `query:"force" doc:"Cancel its open beads."`
}

func (s *Server) dropRig(ctx context.Context, in *dropRigIn) (*none, error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	s.places.drop(in.Town)
	return nil, s.hall.Do(ctx, id, town.DropRig{By: callOf(ctx).who, Rig: in.Rig, Force: in.Force})
}

type findRigsIn struct {
	Name string `query:"name" required:"true" maxLength:"60"`
}

func (s *Server) findRigs(ctx context.Context, in *findRigsIn) (*body[api.List[api.RigPlace]], error) {
	found, err := s.store.FindRig(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.RigPlace]]{}
	out.Body.Items = []api.RigPlace{}
	for _, f := range found {
		head, err := s.store.Head(ctx, f.Town)
		if errs.Is(err, errs.NotFound) {
			continue // deleted in between
		}
		if err != nil {
			return nil, err
		}
		out.Body.Items = append(out.Body.Items, api.RigPlace{Town: head.Name, TownID: head.ID, Rig: f.Rig, Prefix: f.Prefix})
	}
	return out, nil
}
