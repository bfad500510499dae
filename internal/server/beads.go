package server

import (
	"context"
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/town"
)

const (
	idLetters     = "abcdefghijklmnopqrstuvwxyz0123456789"
	idLength      = 5
	idTries       = 8
	maxDiff       = 2 << 20
	normalUrgency = 2
)

// BeadPath is the parameter that names a bead. It is exported for
// the framework, which passes over others when they are embedded.
type BeadPath struct {
	Bead string `path:"bead" doc:"A bead's id, such as web-k3x9a."`
}

func (s *Server) registerBeads() {
	const tag = "beads"
	add(s, op{method: "POST", path: "/towns/{town}/beads", id: "create-bead", tag: tag, summary: "Create a bead", status: 201,
		errors: []int{404, 409}, raw: api.CreateBead{}, result: api.Bead{}}, s.createBead)
	add(s, op{method: "GET", path: "/towns/{town}/beads", id: "list-beads", tag: tag, summary: "List beads in the order of their creation; ready ones by urgency",
		errors: []int{404}, detail: "Items leave out body, failures, runs and logs of gates."}, s.listBeads)
	add(s, op{method: "GET", path: "/beads/{bead}", id: "get-bead", tag: tag, summary: "Show a bead", errors: []int{404}}, s.getBead)
	add(s, op{method: "PATCH", path: "/beads/{bead}", id: "edit-bead", tag: tag, summary: "Edit a bead", errors: []int{404, 409, 412}}, s.editBead)
	add(s, op{method: "GET", path: "/beads/{bead}/why", id: "why-bead", tag: tag, summary: "Say why a bead is as it is", errors: []int{404}}, s.whyBead)
	add(s, op{method: "GET", path: "/beads/{bead}/diff", id: "diff-bead", tag: tag, summary: "Show what a bead changed", errors: []int{404, 409}}, s.diffBead)
	act := func(verb, summary string, h func(context.Context, *actIn) (*raw, error)) {
		add(s, op{method: "POST", path: "/beads/{bead}/" + verb, id: verb + "-bead", tag: tag, summary: summary, errors: []int{404, 409},
			optional: true, result: api.Bead{}}, h)
	}
	act("sling", "Release a staged bead", s.act(func(by, b, _ string) town.Input { return town.SlingBead{By: by, Bead: b} }))
	act("close", "Close a bead on the word of a person", s.act(func(by, b, why string) town.Input { return town.CloseBead{By: by, Bead: b, Reason: why} }))
	act("cancel", "Stop a bead for good", s.act(func(by, b, why string) town.Input { return town.CancelBead{By: by, Bead: b, Reason: why} }))
	act("reopen", "Make an ended or escalated bead open again", s.act(func(by, b, why string) town.Input { return town.ReopenBead{By: by, Bead: b, Reason: why} }))
	add(s, op{method: "POST", path: "/beads/{bead}/nudge", id: "nudge-bead", tag: tag, summary: "Send a message to the agent at work",
		errors: []int{404, 409}, result: api.Bead{}}, s.nudgeBead)
	add(s, op{method: "POST", path: "/beads/{bead}/blockers", id: "add-blocker", tag: tag, summary: "Let a bead wait for another",
		errors: []int{404, 409}, result: api.Bead{}}, s.addBlocker)
	add(s, op{method: "DELETE", path: "/beads/{bead}/blockers/{on}", id: "remove-blocker", tag: tag, summary: "No longer let a bead wait for another",
		errors: []int{404, 409}, result: api.Bead{}}, s.removeBlocker)
}

type createBeadIn struct {
	TownPath
	IdemKey
}

// createBead is the busiest creating call: its body is decoded once, and what
// it needs of the town is remembered. A refusal that may come of a stale memory
// is checked against a fresh one.
func (s *Server) createBead(ctx context.Context, in *createBeadIn) (*raw, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	c := callOf(ctx)
	var req api.CreateBead
	if err := decode(c.body, &req); err != nil {
		return nil, err
	}
	if err := s.checkSettings(town.LevelBead, req.Settings); err != nil {
		return nil, err
	}
	p, known := s.places.get(in.Town)
	for {
		if !known {
			var err error
			if p, err = s.findPlace(ctx, in.Town); err != nil {
				return nil, err
			}
		}
		out, err := s.createIn(ctx, p, req, in.IdemKey)
		if err == nil || !known || errs.Is(err, errs.Unavailable) || errs.Is(err, errs.Overloaded) {
			return out, err
		}
		known = false
	}
}

// findPlace reads what creating beads in a town needs to know.
func (s *Server) findPlace(ctx context.Context, nameOrID string) (place, error) {
	id, err := s.townID(ctx, nameOrID)
	if err != nil {
		s.places.drop(nameOrID)
		return place{}, err
	}
	p := place{id: id, rigs: map[string]string{}}
	err = s.view(ctx, id, func(t *town.Town) error {
		for _, r := range t.Rigs() {
			p.rigs[r.Name] = r.Prefix
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	s.places.put(nameOrID, p)
	return p, nil
}

func (s *Server) createIn(ctx context.Context, p place, req api.CreateBead, k IdemKey) (*raw, error) {
	cmd := town.CreateBead{By: callOf(ctx).who, ID: req.ID, Rig: req.Rig, Title: req.Title, Body: req.Body, Priority: normalUrgency,
		Labels: req.Labels, BlockedBy: req.BlockedBy, Staged: req.Staged, Settings: req.Settings}
	if req.Priority != nil {
		cmd.Priority = *req.Priority
	}
	var prefix string
	var err error
	if cmd.Rig, prefix, err = p.rig(req.Rig); err != nil {
		return nil, err
	}
	hash := digest(ctx, "create-bead", p.id)
	for try := 1; ; try++ {
		if req.ID == "" {
			cmd.ID = newBeadID(prefix)
		}
		out, err := s.commit(ctx, p.id, cmd, k, hash, http.StatusCreated, func(t *town.Town) any {
			b, _ := t.Bead(cmd.ID) // the input put it there
			return beadView(t, s.now(), b, inFull)
		})
		if req.ID == "" && try < idTries && errs.Is(err, errs.Conflict) && s.taken(ctx, p.id, cmd.ID) {
			continue
		}
		return out, err
	}
}

// taken reports whether a bead of this id exists, so that a fresh one is worth a try.
func (s *Server) taken(ctx context.Context, townID, bead string) bool {
	err := s.view(ctx, townID, func(t *town.Town) error { _, err := getBead(t, bead); return err })
	return err == nil
}

// newBeadID makes a random id. 60 million per prefix: a meeting is rare and is tried again.
func newBeadID(prefix string) string {
	var raw [16]byte
	var id [idLength]byte
	for n := 0; n < idLength; {
		rand.Read(raw[:]) // never fails
		for _, b := range raw {
			// 252 is the largest multiple of 36 in a byte: no letter is likelier than another.
			if n < idLength && b < 252 {
				id[n] = idLetters[b%36]
				n++
			}
		}
	}
	return prefix + "-" + string(id[:])
}

type listBeadsIn struct {
	TownPath
	PageIn
	Status string `query:"status" enum:"open,in_progress,in_review,closed,failed,cancelled" doc:"Only those of this status."`
	Rig    string `query:"rig"`
	Label  string `query:"label"`
	Ready  bool   `query:"ready" doc:"Only those that could be worked on now."`
}

func (s *Server) listBeads(ctx context.Context, in *listBeadsIn) (*body[api.List[api.Bead]], error) {
	after, err := readCursor(in.Cursor)
	if err != nil {
		return nil, err
	}
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.Bead]]{}
	return out, s.hall.View(ctx, id, func(t *town.Town, now time.Time) error {
		all, key := t.Beads(), beadCursor
		if in.Ready {
			all, key = t.Ready(), urgencyCursor
			slices.SortFunc(all, func(a, b town.Bead) int { return strings.Compare(key(a), key(b)) })
		}
		if in.Rig != "" {
			if _, err := getRig(t, in.Rig); err != nil {
				return err
			}
		}
		items, next := page(keepBeads(all, in), after, in.Limit, key)
		out.Body.Next = writeCursor(next)
		out.Body.Items = mapped(items, func(b town.Bead) api.Bead { return beadView(t, now, b, inList) })
		return nil
	})
}

func keepBeads(all []town.Bead, in *listBeadsIn) []town.Bead {
	kept := make([]town.Bead, 0, min(len(all), 1024))
	for _, b := range all {
		if (in.Status == "" || string(b.Status) == in.Status) && (in.Rig == "" || b.Rig == in.Rig) && (in.Label == "" || has(b.Labels, in.Label)) {
			kept = append(kept, b)
		}
	}
	return kept
}

type beadOut struct {
	ETag string `header:"ETag"`
	Body api.Bead
}

func (s *Server) getBead(ctx context.Context, in *BeadPath) (*beadOut, error) {
	out := &beadOut{}
	return out, s.viewBead(ctx, in.Bead, func(t *town.Town, now time.Time, b town.Bead) error {
		out.Body = beadView(t, now, b, inFull)
		out.ETag = out.Body.ETag
		return nil
	})
}

type editBeadIn struct {
	BeadPath
	IfMatch string `header:"If-Match" doc:"The etag that was read: the edit is refused with 412 when someone else edited meanwhile."`
	Body    api.EditBead
}

func (s *Server) editBead(ctx context.Context, in *editBeadIn) (*beadOut, error) {
	if err := s.checkSettings(town.LevelBead, in.Body.Set); err != nil {
		return nil, err
	}
	if in.IfMatch != "" {
		unlock, err := s.edits.lock(ctx, in.Bead)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	var id string
	err := s.viewBead(ctx, in.Bead, func(t *town.Town, _ time.Time, b town.Bead) error {
		id = t.Info().ID
		if tag := etag(b); in.IfMatch != "" && !matches(in.IfMatch, tag) {
			p := newProblem(http.StatusPreconditionFailed, errs.Conflict, "the bead was edited by someone else meanwhile")
			p.Hint = "read it again; its etag is now " + tag
			return p
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.hall.Do(ctx, id, town.EditBead{By: callOf(ctx).who, Bead: in.Bead, Title: in.Body.Title, Body: in.Body.Body,
		Priority: in.Body.Priority, Labels: in.Body.Labels, Set: in.Body.Set, Unset: in.Body.Unset})
	if err != nil {
		return nil, err
	}
	return s.getBead(ctx, &in.BeadPath)
}

func (s *Server) whyBead(ctx context.Context, in *BeadPath) (*body[api.Reason], error) {
	id, err := s.townOfBead(ctx, in.Bead)
	if err != nil {
		return nil, err
	}
	return s.whyID(ctx, id, in.Bead)
}

type actIn struct {
	BeadPath
	IdemKey
	Body *api.WithReason
}

// act makes the handler of a verb on a bead.
func (s *Server) act(input func(by, bead, reason string) town.Input) func(context.Context, *actIn) (*raw, error) {
	return func(ctx context.Context, in *actIn) (*raw, error) {
		reason := ""
		if in.Body != nil {
			reason = in.Body.Reason
		}
		return s.commitBead(ctx, in.Bead, in.IdemKey, input(callOf(ctx).who, in.Bead, reason))
	}
}

// commitBead hands an input to the town of a bead and shows the bead.
func (s *Server) commitBead(ctx context.Context, bead string, k IdemKey, in town.Input) (*raw, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	id, err := s.townOfBead(ctx, bead)
	if err != nil {
		return nil, err
	}
	return s.commit(ctx, id, in, k, digest(ctx, town.InputName(in), bead), http.StatusOK, func(t *town.Town) any {
		b, _ := t.Bead(bead) // the input found it
		return beadView(t, s.now(), b, inFull)
	})
}

type nudgeIn struct {
	BeadPath
	IdemKey
	Body api.Nudge
}

func (s *Server) nudgeBead(ctx context.Context, in *nudgeIn) (*raw, error) {
	return s.commitBead(ctx, in.Bead, in.IdemKey, town.NudgeBead{By: callOf(ctx).who, Bead: in.Bead, Text: in.Body.Text, Interrupt: in.Body.Interrupt})
}

type addBlockerIn struct {
	BeadPath
	IdemKey
	Body api.Blocker
}

func (s *Server) addBlocker(ctx context.Context, in *addBlockerIn) (*raw, error) {
	return s.commitBead(ctx, in.Bead, in.IdemKey, town.DependBead{By: callOf(ctx).who, Bead: in.Bead, On: in.Body.On})
}

type removeBlockerIn struct {
	BeadPath
	On string `path:"on" doc:"The bead that is waited for."`
}

func (s *Server) removeBlocker(ctx context.Context, in *removeBlockerIn) (*raw, error) {
	return s.commitBead(ctx, in.Bead, IdemKey{}, town.DependBead{By: callOf(ctx).who, Bead: in.Bead, On: in.On, Remove: true})
}

func (s *Server) diffBead(ctx context.Context, in *BeadPath) (*body[api.Diff], error) {
	out := &body[api.Diff]{}
	var repo hub.ID
	err := s.viewBead(ctx, in.Bead, func(t *town.Town, _ time.Time, b town.Bead) error {
		repo = hub.ID{Town: t.Info().ID, Rig: b.Rig}
		out.Body = api.Diff{Bead: b.ID, Base: b.Base, Commit: b.Commit}
		if b.Commit == "" {
			out.Body.Commit = b.Checkpoint
		}
		if b.Base == "" || out.Body.Commit == "" {
			return errs.New(errs.Conflict, "bead %s has no commit and no checkpoint yet", b.ID).WithHint("gastown why %s", b.ID)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	patch, cut, err := s.cfg.Hub.Diff(ctx, repo, out.Body.Base, out.Body.Commit, maxDiff)
	out.Body.Diff, out.Body.Truncated = printableDiff(patch), cut
	return out, err
}
