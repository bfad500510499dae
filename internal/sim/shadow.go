package sim

import (
	"encoding/json"
	"fmt"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// shadow is what was committed, read from the commits themselves.
type shadow struct {
	w     *world
	towns map[string]*shadowTown
}

type shadowTown struct {
	id      string
	name    string
	info    town.Info
	beads   map[string]*town.Bead
	runs    map[string]*town.Run
	rigs    map[string]*town.Rig
	byHand  map[string]bool // beads that a person gave a command about
	undone  map[string]bool // beads that a person reopened
	columns store.Columns
	claims  map[int64]*claim // ever committed, by id
}

type claim struct {
	town.Claim
	performed bool
}

func newShadow(w *world) *shadow { return &shadow{w: w, towns: map[string]*shadowTown{}} }

func (s *shadow) created(h store.Head) {
	s.towns[h.ID] = &shadowTown{id: h.ID, name: h.Name, beads: map[string]*town.Bead{}, runs: map[string]*town.Run{}, rigs: map[string]*town.Rig{},
		byHand: map[string]bool{}, undone: map[string]bool{}, claims: map[int64]*claim{}}
}

func (s *shadow) deleted(id string) { delete(s.towns, id) }

func (s *shadow) commit(c store.Commit) {
	s.w.hashCommit(c)
	t := s.towns[c.Town]
	for _, r := range c.Rows {
		switch r.Kind {
		case "bead":
			s.bead(t, r)
		case "run":
			decode(t.runs, r)
		case "rig":
			decode(t.rigs, r)
		case "claim":
			s.claim(t, r)
		case "town":
			if err := json.Unmarshal(r.Body, &t.info); err != nil {
				s.w.violate("the row of town %s can't be read: %v", t.name, err)
			}
		}
	}
	was := t.columns
	t.columns = c.Columns
	s.checkCommit(t, c)
	s.checkMove(t, c, was)
	if x := s.w.boxes.by[c.Town]; x != nil && x.running && x.gen == c.Columns.Generation {
		x.runner.wanted(c.Columns.DesiredRev)
	}
}

func decode[V any](m map[string]*V, r store.Row) {
	if r.Body == nil {
		delete(m, r.ID)
		return
	}
	v := new(V)
	if err := json.Unmarshal(r.Body, v); err != nil {
		panic(err) // the town encoded it a moment ago
	}
	m[r.ID] = v
}

func (s *shadow) bead(t *shadowTown, r store.Row) {
	old := t.beads[r.ID]
	decode(t.beads, r)
	b := t.beads[r.ID]
	switch {
	case b == nil:
		s.w.violate("bead %s was forgotten", r.ID)
		return
	case old != nil && old.Status.Terminal() && b.Status != old.Status && !t.byHand[r.ID] && !t.undone[r.ID]:
		s.w.violate("bead %s went from %s to %s, and no person asked for it", r.ID, old.Status, b.Status)
	case b.Status == town.BeadClosed && b.Proof == nil:
		s.w.violate("bead %s is closed without a proof", r.ID)
	case old != nil && len(b.Runs) > 0 && len(b.Runs) != len(old.Runs) && s.lostWell(t, b):
		s.w.violate("a run of bead %s was given up as lost although it is well: %s", r.ID, b.Runs[len(b.Runs)-1].Reason)
	case old != nil && b.Epoch < old.Epoch:
		s.w.violate("the epoch of bead %s fell from %d to %d", r.ID, old.Epoch, b.Epoch)
	}
	if b.Status == town.BeadClosed && b.Proof != nil && b.Proof.Kind == town.ProofMerged && (old == nil || old.Proof == nil) {
		if !s.w.hub.rig(s.w.rigID(t.info.ID)).in[b.Proof.Commit] {
			s.w.violate("bead %s is closed as merged, and the target does not contain %s", r.ID, b.Proof.Commit)
		}
	}
}

// lostWell reports that the newest run of a bead counts as lost and lives.
func (s *shadow) lostWell(t *shadowTown, b *town.Bead) bool {
	last := b.Runs[len(b.Runs)-1]
	if last.Outcome != town.OutcomeLost || !s.w.boxes.healthy(t.id, last.Generation) {
		return false
	}
	for _, a := range s.w.boxes.by[t.id].runner.runs {
		if a.d.Bead == b.ID && a.d.Epoch == last.Epoch && !a.stopped {
			return true
		}
	}
	return false
}

// checkCommit looks at a town as one commit left it.
func (s *shadow) checkCommit(t *shadowTown, c store.Commit) {
	perRig := map[string]int{}
	for _, r := range t.runs {
		perRig[r.Rig]++
	}
	for rig, n := range perRig {
		if n > 4 {
			s.w.violate("%d runs on rig %s of %s", n, rig, t.name)
		}
	}
	if len(t.runs) > 16 {
		s.w.violate("%d runs in %s", len(t.runs), t.name)
	}
	if c.Columns.Sandbox == "awake" && !c.Columns.Wanted {
		s.w.violate("the sandbox of %s was left awake without a hold or a grace", t.name)
	}
	if c.Columns.Contradicts() {
		s.w.violate("the columns of %s contradict each other: %+v", t.name, c.Columns)
	}
	if c.Columns.Failing != "" {
		s.w.violate("town %s is failing: %s", t.name, c.Columns.Failing)
	}
}

// checkMove looks at what became of the sandbox in one commit.
func (s *shadow) checkMove(t *shadowTown, c store.Commit, was store.Columns) {
	if was.Sandbox != "" && was.Sandbox != store.Asleep && c.Columns.Sandbox == store.Asleep && c.Slot != store.SlotRelease {
		s.w.violate("the sandbox of %s is asleep and its slot was not freed", t.name)
	}
	spoke := was.Sandbox == "awake" || was.Sandbox == "draining"
	if spoke && c.Columns.Sandbox == "wedged" && s.w.boxes.healthy(c.Town, was.Generation) {
		s.w.violate("the sandbox of %s was given up although it is well: %s", t.name, t.info.Sandbox.StopReason)
	}
}

// claim remembers who may perform an effect.
func (s *shadow) claim(t *shadowTown, r store.Row) {
	if r.Body == nil {
		return
	}
	c := new(claim)
	if err := json.Unmarshal(r.Body, &c.Claim); err != nil {
		panic(err) // the town encoded it a moment ago
	}
	if t.claims[c.ID] == nil {
		t.claims[c.ID] = c
	}
}

// perform checks that an effect was claimed by a commit of who performs it, once,
// and says until when.
func (s *shadow) perform(id, boot string, e town.Effect) time.Time {
	t := s.towns[id]
	if t == nil {
		return time.Time{}
	}
	c := t.claims[e.ID]
	switch {
	case c == nil || c.Key != e.Key || c.By != boot:
		s.w.violate("%s %d of %s is performed without a committed claim", e.Key, e.ID, t.name)
		return time.Time{}
	case c.performed:
		s.w.violate("%s %d of %s is performed twice under one claim", e.Key, e.ID, t.name)
	}
	c.performed = true
	return c.Until.Time()
}

// landed checks that a merge was the committed wish of the town.
func (s *shadow) landed(id, bead string) {
	t := s.towns[id]
	if t == nil {
		return
	}
	if b := t.beads[bead]; b == nil || b.Merge == nil {
		s.w.violate("bead %s was merged without a merge in its town", bead)
	}
}

func (s *shadow) hasRig(id, rig string) bool {
	t := s.towns[id]
	return t != nil && t.rigs[rig] != nil && t.rigs[rig].State == town.RigActive
}

func (s *shadow) person(id, bead string)        { s.towns[id].byHand[bead] = true }
func (s *shadow) reopen(id, bead string)        { s.towns[id].undone[bead] = true }
func (s *shadow) reopened(id, bead string) bool { return s.towns[id].undone[bead] }

func (s *shadow) status(id, bead string) town.BeadStatus {
	if b := s.towns[id].beads[bead]; b != nil {
		return b.Status
	}
	return ""
}

// epochOf is a bead's epoch and status, to see whether it changed.
func (s *shadow) epochOf(id, bead string) string {
	if t := s.towns[id]; t != nil && t.beads[bead] != nil {
		return fmt.Sprint(t.beads[bead].Epoch, t.beads[bead].Status)
	}
	return ""
}

func (s *shadow) escalated(id, bead string) bool {
	b := s.towns[id].beads[bead]
	return b != nil && b.Escalated
}

// wants reports whether anything committed needs the sandbox of a town.
func (t *shadowTown) wants(now time.Time) bool {
	if t == nil {
		return false
	}
	if len(t.runs) > 0 || t.info.AwakeFor.Time().After(now) {
		return true
	}
	for _, b := range t.beads {
		if b.Merge != nil && b.Merge.State == town.MergeGating && !b.Status.Terminal() {
			return true
		}
	}
	return false
}

func errText(err error) string {
	if err == nil {
		return "no error"
	}
	return string(errs.KindOf(err)) + ": " + err.Error()
}
