package sim

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// shadow is what was committed, read from the commits themselves.
type shadow struct {
	w     *world
	towns map[string]*shadowTown
	beads int // ever made
}

type shadowTown struct {
	id      string
	name    string
	place   int
	info    town.Info
	beads   map[string]*town.Bead
	runs    map[string]*town.Run
	rigs    map[string]*town.Rig
	money   spending
	byHand  map[string]bool // beads that a person gave a command about
	undone  map[string]bool // beads that a person reopened
	columns store.Columns
	version int64
	at      time.Time        // of the last commit
	by      time.Time        // the same, by the clock of who committed
	claims  map[string]int64 // present claims: key to id
	ever    map[int64]*claim // ever committed, by id

	said   map[string]map[string]int // ledger entries by actor and kind
	titles map[string]string         // what edits by an actor make of a title
	title  map[string]string         // bead to the title that it must have
	units  map[string]int            // bead to the work that was checkpointed and acknowledged
	inputs []input                   // the last ones
	lately int

	renewed    int64     // when the token of this sandbox was, by the town's clock; 0 for never
	renewedAt  time.Time // the same, by the world's
	tokenAsked bool      // a person asked for a renewal since
	wake       *overdue
}

// input is what was handed to a town.
type input struct {
	at time.Duration
	in town.Input
}

const lastInputs = 12

type claim struct {
	town.Claim
	town      *shadowTown
	at        time.Time
	performed bool
	excused   bool // who made it died
}

func newShadow(w *world) *shadow { return &shadow{w: w, towns: map[string]*shadowTown{}} }

func (s *shadow) created(h store.Head) {
	s.towns[h.ID] = &shadowTown{id: h.ID, name: h.Name, place: placeOf(h.Name), beads: map[string]*town.Bead{}, runs: map[string]*town.Run{}, rigs: map[string]*town.Rig{},
		money: newSpending(), byHand: map[string]bool{}, undone: map[string]bool{}, claims: map[string]int64{}, ever: map[int64]*claim{}, columns: h.Columns, version: 1, at: s.w.now,
		said: map[string]map[string]int{}, titles: map[string]string{}, title: map[string]string{}, units: map[string]int{}}
}

func (s *shadow) deleted(id string) {
	t := s.towns[id]
	s.w.holds(invRemoved, t == nil || t.columns.Status == store.Deleting, t, "town %s was removed, and nobody asked for it", id)
	delete(s.towns, id)
	delete(s.w.boxes.lived, id)
}

// input notes what is handed to a town.
func (s *shadow) input(id string, in town.Input) {
	if t := s.towns[id]; t != nil {
		if len(t.inputs) < lastInputs {
			t.inputs = append(t.inputs, input{})
		}
		t.inputs[t.lately%lastInputs] = input{s.w.now.Sub(s.w.start), in}
		t.lately++
	}
}

func (t *shadowTown) lastInputs() (out []string) {
	for i := range t.inputs {
		in := t.inputs[(t.lately+i)%len(t.inputs)]
		text := fmt.Sprintf("%s %s %+v", in.at, town.InputName(in.in), in.in)
		out = append(out, text[:min(len(text), 300)])
	}
	return out
}

func (s *shadow) commit(c store.Commit, by *process) {
	w := s.w
	w.hashCommit(c)
	t := s.towns[c.Town]
	w.bounds.count(c.Town, "commits")
	if t == nil {
		return
	}
	before := s.beforeMoney(t, c)
	for _, e := range c.Ledger {
		s.entry(t, e)
	}
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
		case "usage":
			decode(t.money.usage, r)
		case "breaker":
			s.breaker(t, c, r)
		case "escalation":
			decode(t.money.escalations, r)
		case "town":
			t.info = town.Info{}
			if err := json.Unmarshal(r.Body, &t.info); err != nil {
				w.violate(invColumns, t, "the row of town %s can't be read: %v", t.name, err)
			}
		}
	}
	was := t.columns
	t.columns, t.version, t.at, t.by, t.wake = c.Columns, c.Expect+1, w.now, town.Time(c.At).Time(), nil
	s.checkCommit(t, c, was)
	s.checkMove(t, c, was)
	s.checkMoney(t, c, by, before)
	s.checkBlocks(t, c, by, before)
	s.checkEscalations(t)
	if x := w.boxes.by[c.Town]; x != nil && x.running && x.gen == c.Columns.Generation {
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

// repeatable are kinds of entries of which one command may make several.
var repeatable = []string{"bead.cancelled", "escalation.closed", "escalation.opened"}

// entry looks at a line of the ledger.
func (s *shadow) entry(t *shadowTown, e store.Entry) {
	s.w.bounds.count(t.id, "ledger entries")
	switch e.Kind {
	case "run.started":
		s.w.bounds.count(t.id, "runs")
	case "token.asked":
		t.tokenAsked = true
	case "sandbox.starting":
		t.renewed = 0
	case "token.renewed":
		apart := time.Duration(e.At-t.renewed) * time.Millisecond
		s.w.holds(invRenewals, t.renewed == 0 || t.tokenAsked || apart >= time.Hour || s.w.setAt.After(t.renewedAt.Add(-time.Minute)), t, "the token of %s was renewed twice within %s", t.name, apart)
		t.renewed, t.renewedAt, t.tokenAsked = e.At, s.w.now, false
		s.w.renewals++
	case "breaker.open":
		s.w.bounds.count(t.id, "failures")
	case "breaker.reset":
		t.money.resets[e.Subject]++
	case "provider.limited":
		s.w.bounds.count(t.id, "limits")
	case "merge.conflict", "bead.in_review":
		delete(t.units, e.Subject)
	case "bead.open", "bead.retried", "bead.edited":
		if e.Actor != "" && e.Kind == "bead.open" {
			delete(t.units, e.Subject)
		}
		if title, ok := t.titles[e.Actor]; ok && e.Kind == "bead.edited" {
			t.title[e.Subject] = title
			delete(t.titles, e.Actor)
		}
	}
	if e.Actor == "" {
		return
	}
	if t.said[e.Actor] == nil {
		t.said[e.Actor] = map[string]int{}
	}
	t.said[e.Actor][e.Kind]++
	n := t.said[e.Actor][e.Kind]
	if _, by := signedBy(e.Actor); by && !slices.Contains(repeatable, e.Kind) {
		s.w.holds(invIdem, n == 1, t, "%s by %s happened %d times", e.Kind, e.Actor, n)
	}
}

// signedBy reports whether an actor is the name of one command.
func signedBy(actor string) (n int, ok bool) {
	var name string
	_, err := fmt.Sscanf(actor, person+" %s %d", &name, &n)
	return n, err == nil
}

func (s *shadow) bead(t *shadowTown, r store.Row) {
	w, old := s.w, t.beads[r.ID]
	decode(t.beads, r)
	b := t.beads[r.ID]
	if b == nil {
		rig := t.rigs[old.Rig]
		w.holds(invAcked, rig == nil || rig.State == town.RigRemoving, t, "bead %s was forgotten", r.ID)
		delete(t.units, r.ID)
		delete(t.title, r.ID)
		return
	}
	if old == nil {
		s.beads++
	} else {
		w.holds(invTerminal, !old.Status.Terminal() || b.Status == old.Status || t.byHand[r.ID] || t.undone[r.ID], t,
			"bead %s went from %s to %s, and no person asked for it", r.ID, old.Status, b.Status)
		w.holds(invEpoch, b.Epoch >= old.Epoch, t, "the epoch of bead %s fell from %d to %d", r.ID, old.Epoch, b.Epoch)
		if len(b.Runs) > 0 && (len(b.Runs) != len(old.Runs) || b.Runs[len(b.Runs)-1].Epoch != old.Runs[len(old.Runs)-1].Epoch) {
			w.holds(invWell, !s.lostWell(t, b), t, "a run of bead %s was given up as lost although it is well: %s", r.ID, b.Runs[len(b.Runs)-1].Reason)
		}
	}
	w.holds(invProof, b.Status != town.BeadClosed || b.Proof != nil, t, "bead %s is closed without a proof", r.ID)
	if title, ok := t.title[r.ID]; ok {
		w.holds(invAcked, b.Title == title, t, "the title of bead %s is %q, and was set to %q", r.ID, b.Title, title)
	}
	if b.Status == town.BeadClosed && b.Proof != nil && b.Proof.Kind == town.ProofMerged && (old == nil || old.Proof == nil) {
		w.holds(invProof, w.hub.rig(rigOf(t.id, b.Rig)).ever[b.Proof.Commit], t, "bead %s is closed as merged, and the target never contained %s", r.ID, b.Proof.Commit)
	}
	w.holds(invAttempts, b.Charged <= 5 && b.Conflicts <= 20, t, "bead %s was charged %d times, with %d conflicts", r.ID, b.Charged, b.Conflicts)
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
func (s *shadow) checkCommit(t *shadowTown, c store.Commit, was store.Columns) {
	perRig := map[string]int{}
	for _, r := range t.runs {
		perRig[r.Rig]++
	}
	for rig, n := range perRig {
		s.w.holds(invRuns, n <= 4, t, "%d runs on rig %s of %s", n, rig, t.name)
	}
	s.w.holds(invRuns, len(t.runs) <= 16, t, "%d runs in %s", len(t.runs), t.name)
	s.w.holds(invHeld, c.Columns.Sandbox != "awake" || c.Columns.Wanted, t, "the sandbox of %s was left awake without a hold or a grace", t.name)
	s.w.holds(invColumns, !c.Columns.Contradicts() || t.info.Removed, t, "the columns of %s contradict each other: %+v", t.name, c.Columns)
	s.w.holds(invColumns, c.Columns.Failing == "", t, "town %s is failing: %s", t.name, c.Columns.Failing)
	s.w.holds(invStale, c.Columns.Generation >= was.Generation && c.Columns.DesiredRev >= was.DesiredRev, t, "generation or revision of %s fell: %+v after %+v", t.name, c.Columns, was)
}

// checkMove looks at what became of the sandbox in one commit.
func (s *shadow) checkMove(t *shadowTown, c store.Commit, was store.Columns) {
	if was.Sandbox != "" && was.Sandbox != store.Asleep && c.Columns.Sandbox == store.Asleep {
		s.w.holds(invSlots, c.Slot == store.SlotRelease, t, "the sandbox of %s is asleep and its slot was not freed", t.name)
	}
	if spoke := was.Sandbox == "awake" || was.Sandbox == "draining"; spoke && c.Columns.Sandbox == "wedged" {
		s.w.holds(invWell, !s.w.boxes.healthy(c.Town, was.Generation), t, "the sandbox of %s was given up although it is well: %s", t.name, t.info.Sandbox.StopReason)
	}
}

// claim remembers who may perform an effect.
func (s *shadow) claim(t *shadowTown, r store.Row) {
	if r.Body == nil {
		delete(t.claims, r.ID)
		return
	}
	c := &claim{town: t, at: s.w.now}
	if err := json.Unmarshal(r.Body, &c.Claim); err != nil {
		panic(err) // the town encoded it a moment ago
	}
	t.claims[r.ID] = c.ID
	if t.ever[c.ID] == nil {
		t.ever[c.ID] = c
		s.w.claimed = append(s.w.claimed, c)
	}
}

// admits notes that a slot is asked for.
func (s *shadow) admits(id, boot string) {
	if t := s.towns[id]; t != nil {
		s.w.bounds.count(id, "asks for a slot")
		for _, c := range s.w.claimed {
			if c.town == t && c.Key == "sandbox/admit" && c.By == boot {
				c.performed = true
			}
		}
	}
}

// perform checks that an effect was claimed by a commit of who performs it, once,
// and says until when.
func (s *shadow) perform(id, boot string, e town.Effect) time.Time {
	t := s.towns[id]
	if t == nil {
		return time.Time{}
	}
	s.w.bounds.count(id, town.ActionName(e.Action))
	c := t.ever[e.ID]
	ok := c != nil && c.Key == e.Key && c.By == boot
	s.w.holds(invClaims, ok, t, "%s %d of %s is performed without a committed claim", e.Key, e.ID, t.name)
	if !ok {
		return time.Time{}
	}
	s.w.holds(invClaims, !c.performed, t, "%s %d of %s is performed twice under one claim", e.Key, e.ID, t.name)
	c.performed = true
	return c.Until.Time()
}

// landed checks that a merge was the committed wish of the town.
func (s *shadow) landed(id, bead string) {
	if t := s.towns[id]; t != nil {
		b := t.beads[bead]
		s.w.holds(invDecided, b != nil && b.MergeN > 0, t, "bead %s was merged without a merge in its town", bead)
	}
}

// dropped checks that the refs of a bead that still needs them stay.
func (s *shadow) dropped(id, bead string) {
	if t := s.towns[id]; t != nil && t.beads[bead] != nil {
		b := t.beads[bead]
		s.w.holds(invSaved, b.Status.Terminal() || t.undone[bead] || t.byHand[bead], t, "the refs of bead %s were removed, and it is %s", bead, b.Status)
	}
}

// saved notes that the server acknowledged a checkpoint.
func (s *shadow) saved(id string, d town.DesiredRun, units int) {
	if t := s.towns[id]; t != nil {
		if r := t.runs[d.ID]; r != nil && r.Epoch == d.Epoch && r.Verdict == "" {
			t.units[d.Bead] = units
		}
	}
}

// resumed checks that a new run begins with all work that was acknowledged.
func (s *shadow) resumed(id string, a *agent) {
	t := s.towns[id]
	if t == nil || t.runs[a.d.ID] == nil {
		return
	}
	s.w.holds(invSaved, a.units >= t.units[a.d.Bead], t, "run %s begins with %d units of work, and %d were checkpointed", a.d.ID, a.units, t.units[a.d.Bead])
}

func (s *shadow) hasRig(id, rig string) bool {
	t := s.towns[id]
	return t != nil && t.columns.Status != store.Deleting && t.rigs[rig] != nil && t.rigs[rig].State == town.RigActive
}

func (s *shadow) person(id, bead string) {
	if t := s.towns[id]; t != nil {
		t.byHand[bead] = true
	}
}

func (s *shadow) reopen(id, bead string) {
	if t := s.towns[id]; t != nil {
		t.undone[bead] = true
	}
}

// epochOf is a bead's epoch and status, to see whether it changed.
func (s *shadow) epochOf(id, bead string) string {
	if t := s.towns[id]; t != nil && t.beads[bead] != nil {
		return fmt.Sprint(t.beads[bead].Epoch, t.beads[bead].Status)
	}
	return ""
}

// repeated reports whether a verdict is one that was accepted.
func (s *shadow) repeated(id string, v town.Verdict) bool {
	t := s.towns[id]
	if t == nil {
		return false
	}
	for _, b := range t.beads {
		if b.LastCall != nil && b.LastCall.Epoch == v.Epoch && fmt.Sprint(b.ID, ".", v.Epoch) == v.Run {
			return true
		}
	}
	return false
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
