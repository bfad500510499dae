package town

import (
	"slices"
	"strconv"
	"strings"

	"gastown/internal/errs"
)

// setStatus is the only function that changes the status of a bead. person is
// the name of who asks, "" for the rules; what is illegal is a programmer's
// error, since callers have validated before.
func (t *Town) setStatus(b *Bead, now Time, to BeadStatus, person, why string) {
	from := b.Status
	if !from.legal(to, person != "") {
		panic("town: bead " + b.ID + ": illegal move " + string(from) + " to " + string(to))
	}
	t.edit(b, now, func() {
		b.Status = to
		b.ClosedAt = 0
		if to.Terminal() {
			b.ClosedAt = now
			b.NotBefore = 0
			b.Escalated = false
		}
	})
	t.log(now, "bead."+string(to), b.ID, person, why, "from", string(from), "agent", b.Agent)
	t.settleBead(b, now, from, person)
	if !to.Terminal() {
		t.info.Busy = true
	}
	if to == BeadOpen {
		if bud, ok := usedUp(t.beadBudgets(b, now, true)); ok {
			t.tellBead(b, bud, now)
		}
	}
}

// settleBead closes what people need no longer look at since a bead has moved.
func (t *Town) settleBead(b *Bead, now Time, from BeadStatus, person string) {
	if b.Status != BeadInProgress {
		t.settled(now, b.ID, "", "its agent has left", CauseUnsaved)
	}
	switch {
	case b.Status == BeadFailed:
		// What it failed for needs a person still.
	case b.Status.Terminal() || from.Terminal():
		t.settled(now, b.ID, person, "the bead is "+string(b.Status))
	case b.Status == BeadInReview:
		t.settled(now, b.ID, "", "an agent gave a verdict", CauseStuck)
	}
	if b.Status.Terminal() {
		t.dropBreaker(now, "merge/"+b.ID, "", "the bead is "+string(b.Status))
	}
}

func (t *Town) findBead(id string) (*Bead, error) {
	if b := t.beads[id]; b != nil {
		return b, nil
	}
	return nil, t.NoBead(id)
}

// asked returns who asks and the bead that is asked about.
func (t *Town) asked(by, id string) (string, *Bead, error) {
	by, err := person(by)
	if err != nil {
		return "", nil, err
	}
	b, err := t.findBead(id)
	return by, b, err
}

func (t *Town) createBead(now Time, in CreateBead) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	r := t.rigs[in.Rig]
	if r == nil {
		return noRig(in.Rig)
	}
	if err := t.checkNewBead(in, r, nil); err != nil {
		return err
	}
	t.putBead(now, in, r, by)
	return nil
}

func (t *Town) putBead(now Time, in CreateBead, r *Rig, by string) {
	b := &Bead{ID: in.ID, Rig: r.Name, Title: strings.TrimSpace(in.Title), Body: in.Body, Priority: in.Priority,
		Labels: slices.Clone(in.Labels), BlockedBy: slices.Clone(in.BlockedBy), Status: BeadOpen, Staged: in.Staged,
		CreatedAt: now, CreatedBy: by, Settings: Settings(nil).merged(in.Settings, nil), Attempt: 1}
	t.beads[b.ID] = b
	t.linkBlockers(b)
	t.shelve(b)
	b.UpdatedAt = now
	t.info.Busy = true
	t.mark(kindBead, b.ID)
	t.log(now, "bead.created", b.ID, by, b.Title)
}

// createBeads makes all beads or none. They may block each other.
func (t *Town) createBeads(now Time, in CreateBeads) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	blocks := make(map[string][]string, len(in.Beads))
	for i, b := range in.Beads {
		if _, twice := blocks[b.ID]; twice {
			return AtLine(i+1, errs.New(errs.Conflict, "bead %s is there twice", clip(b.ID, 60)))
		}
		blocks[b.ID] = b.BlockedBy
	}
	if len(t.beads)+len(in.Beads) > MaxBeads {
		return errs.New(errs.Conflict, "a town may have at most %d beads", MaxBeads)
	}
	for i, b := range in.Beads {
		r := t.rigs[b.Rig]
		if r == nil {
			return AtLine(i+1, noRig(b.Rig))
		}
		if err := t.checkNewBead(b, r, blocks); err != nil {
			return AtLine(i+1, err)
		}
	}
	if id := inCycle(blocks); id != "" {
		at := slices.IndexFunc(in.Beads, func(b CreateBead) bool { return b.ID == id })
		return AtLine(at+1, errs.New(errs.Invalid, "blocked_by: the bead is part of a cycle of blockers"))
	}
	for _, b := range in.Beads {
		t.putBead(now, b, t.rigs[b.Rig], by)
	}
	return nil
}

// checkNewBead validates a bead to be. with are beads that will exist as well.
func (t *Town) checkNewBead(in CreateBead, r *Rig, with map[string][]string) error {
	if r.State == RigRemoving {
		return errs.New(errs.Conflict, "rig %s is being removed", r.Name)
	}
	if err := ValidBeadID(in.ID); err != nil {
		return err
	}
	if prefix, _, _ := strings.Cut(in.ID, "-"); prefix != r.Prefix {
		return errs.New(errs.Invalid, "bead id %s does not begin with the rig's prefix %s-", in.ID, r.Prefix)
	}
	if t.beads[in.ID] != nil {
		return errs.New(errs.Conflict, "bead %s exists already", in.ID).WithHint("leave the id out to get a free one")
	}
	if t.unreadable(kindBead, in.ID) {
		return errs.New(errs.Conflict, "bead %s exists already and can't be read", in.ID).WithHint("gastown doctor --town %s says why", t.info.Name)
	}
	if len(t.beads) >= MaxBeads {
		return errs.New(errs.Conflict, "town %s has %d beads, the most it may have", t.info.Name, MaxBeads)
	}
	if err := checkFields(in.Title, in.Body, in.Priority, in.Labels); err != nil {
		return err
	}
	if len(in.BlockedBy) > MaxBlocks {
		return errs.New(errs.Invalid, "too many blockers: %d, at most %d", len(in.BlockedBy), MaxBlocks)
	}
	for i, on := range in.BlockedBy {
		if _, coming := with[on]; !coming && t.beads[on] == nil {
			return t.NoBead(on)
		}
		if slices.Contains(in.BlockedBy[:i], on) {
			return errs.New(errs.Invalid, "blocker %s is named twice", on)
		}
	}
	return checkSettings(LevelBead, in.Settings, nil)
}

func checkFields(title, body string, priority int, labels []string) error {
	if err := cleanLine("title", title, MaxTitle); err != nil {
		return err
	}
	if err := cleanText("body", body, MaxBody); err != nil {
		return err
	}
	if priority < 0 || priority > 4 {
		return errs.New(errs.Invalid, "priority %d is not from 0 (most urgent) to 4", priority)
	}
	if len(labels) > MaxLabels {
		return errs.New(errs.Invalid, "too many labels: %d, at most %d", len(labels), MaxLabels)
	}
	for _, l := range labels {
		if !labelRE.MatchString(l) {
			return errs.New(errs.Invalid, "%q is no label", clip(l, 60)).WithHint("use up to 63 letters, digits and . _ : / -")
		}
	}
	return nil
}

func (t *Town) slingBead(now Time, in SlingBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	if b.Status.Terminal() {
		return errStatus(b, "slung")
	}
	if !b.Staged {
		return nil
	}
	t.edit(b, now, func() { b.Staged = false })
	t.log(now, "bead.slung", b.ID, by, "")
	return nil
}

func (t *Town) editBead(now Time, in EditBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	if b.Status.Terminal() {
		return errStatus(b, "edited")
	}
	c := *b
	if in.Title != nil {
		c.Title = strings.TrimSpace(*in.Title)
	}
	if in.Body != nil {
		c.Body = *in.Body
	}
	if in.Priority != nil {
		c.Priority = *in.Priority
	}
	if in.Labels != nil {
		c.Labels = slices.Clone(*in.Labels)
	}
	if err := checkFields(c.Title, c.Body, c.Priority, c.Labels); err != nil {
		return err
	}
	if err := checkSettings(LevelBead, in.Set, in.Unset); err != nil {
		return err
	}
	c.Settings = b.Settings.merged(in.Set, in.Unset)
	t.edit(b, now, func() { *b = c })
	t.log(now, "bead.edited", b.ID, by, "")
	return nil
}

func (t *Town) dependBead(now Time, in DependBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	at := slices.Index(b.BlockedBy, in.On)
	if in.Remove {
		if at < 0 {
			return errs.New(errs.NotFound, "bead %s is not blocked by %s", b.ID, clip(in.On, 60))
		}
		t.edit(b, now, func() { b.BlockedBy = slices.Delete(slices.Clone(b.BlockedBy), at, at+1) })
		delete(t.ix.dependents[in.On], b.ID)
		t.log(now, "bead.unblocked", b.ID, by, "no longer blocked by "+in.On)
		return nil
	}
	on, err := t.findBead(in.On)
	if err != nil {
		return err
	}
	switch {
	case at >= 0:
		return nil
	case b.Status != BeadOpen:
		return errStatus(b, "blocked")
	case len(b.BlockedBy) >= MaxBlocks:
		return errs.New(errs.Invalid, "bead %s has %d blockers, the most it may have", b.ID, MaxBlocks)
	}
	if chain := t.dependsOn(on, b.ID); chain != nil {
		return errs.New(errs.Conflict, "that would be a cycle: %s is blocked by %s", b.ID, strings.Join(chain, " is blocked by ")).
			WithHint("remove one of these first: gastown bead dep BEAD --remove BLOCKER")
	}
	t.edit(b, now, func() { b.BlockedBy = append(slices.Clone(b.BlockedBy), on.ID) })
	t.linkBlockers(b)
	t.log(now, "bead.blocked", b.ID, by, "blocked by "+on.ID)
	return nil
}

// dependsOn returns the chain of blockers that leads from b to target, both
// included, or nil when there is none.
func (t *Town) dependsOn(b *Bead, target string) []string {
	blocks := map[string]string{b.ID: ""} // bead -> whom it blocks on the way from b
	todo := []string{b.ID}
	for len(todo) > 0 {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if id == target {
			var chain []string
			for at := id; at != ""; at = blocks[at] {
				chain = append(chain, at)
			}
			slices.Reverse(chain)
			return chain
		}
		if d := t.beads[id]; d != nil {
			for _, next := range d.BlockedBy {
				if _, ok := blocks[next]; !ok {
					blocks[next] = id
					todo = append(todo, next)
				}
			}
		}
	}
	return nil
}

// landing refuses what can't be decided while the server pushes a bead's work.
func landing(b *Bead) error {
	if b.Merge != nil && b.Merge.State == MergeLanding {
		return errs.New(errs.Conflict, "bead %s is being pushed to the target right now", b.ID).WithHint("try again in a moment")
	}
	return nil
}

func (t *Town) closeByPerson(now Time, in CloseBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	if err := landing(b); err != nil {
		return err
	}
	if b.Status == BeadClosed || b.Status == BeadCancelled {
		return errStatus(b, "closed")
	}
	if err := cleanText("reason", in.Reason, MaxReason); err != nil {
		return err
	}
	t.closeBead(b, now, Proof{Kind: ProofPerson, By: by, Reason: in.Reason, At: now}, by)
	return nil
}

// closeBead closes a bead with its proof and ends what still works on it.
func (t *Town) closeBead(b *Bead, now Time, p Proof, by string) {
	t.edit(b, now, func() {
		b.Proof = &p
		b.Merge = nil
		b.Losses = 0
	})
	t.setStatus(b, now, BeadClosed, by, closeText(p))
	t.stopRunOf(b, now, "the bead was closed")
	if a := t.agents[b.Rig+"/"+b.Agent]; a != nil && p.Kind != ProofPerson {
		a.Closed++
		t.mark(kindAgent, a.ID)
	}
}

func closeText(p Proof) string {
	switch p.Kind {
	case ProofMerged:
		return "the target contains " + short(p.Commit)
	case ProofNoChange:
		return "nothing had to change: " + p.Reason
	case ProofPerson:
		if p.Reason != "" {
			return "closed by " + p.By + ": " + p.Reason
		}
		return "closed by " + p.By
	}
	return string(p.Kind)
}

func short(commit string) string { return commit[:min(len(commit), 10)] }

func (t *Town) cancelBead(now Time, in CancelBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	if err := landing(b); err != nil {
		return err
	}
	if b.Status == BeadClosed || b.Status == BeadCancelled {
		return errStatus(b, "cancelled")
	}
	if err := cleanText("reason", in.Reason, MaxReason); err != nil {
		return err
	}
	t.dropBead(b, now, by, in.Reason)
	return nil
}

func (t *Town) dropBead(b *Bead, now Time, by, reason string) {
	t.edit(b, now, func() { b.Merge = nil })
	t.setStatus(b, now, BeadCancelled, by, reason)
	t.stopRunOf(b, now, "the bead was cancelled")
}

func (t *Town) reopenBead(now Time, in ReopenBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	if !b.Status.Terminal() && !b.Escalated {
		return errs.New(errs.Conflict, "bead %s is %s: there is nothing to reopen", b.ID, b.Status)
	}
	if b.Status.Terminal() && t.runs[b.currentRun()] != nil {
		return errs.New(errs.Conflict, "the last run of bead %s is still ending", b.ID).WithHint("try again in a moment")
	}
	if err := cleanText("reason", in.Reason, MaxReason); err != nil {
		return err
	}
	t.freshen(b, now)
	t.edit(b, now, func() {
		b.Charged, b.Conflicts, b.Losses, b.NotBefore = 0, 0, 0, 0
		b.Escalated, b.Restarted = false, false
		b.Proof, b.Merge = nil, nil
		b.Reason, b.Interrupted = plain(in.Reason, MaxReason), ""
		if b.Status.Terminal() {
			// Its refs may be gone already: begin anew.
			b.Base, b.Start, b.Commit, b.Checkpoint, b.CheckpointRef, b.Session = "", "", "", "", "", ""
			b.Attempt++
		}
	})
	if b.Status.Terminal() {
		t.setStatus(b, now, BeadOpen, by, in.Reason)
	} else {
		t.log(now, "bead.resumed", b.ID, by, in.Reason)
		t.settled(now, b.ID, by, "resumed by "+by)
	}
	return nil
}

func (t *Town) nudgeBead(now Time, in NudgeBead) error {
	by, b, err := t.asked(in.By, in.Bead)
	if err != nil {
		return err
	}
	if err := cleanText("text", in.Text, MaxReason); err != nil {
		return err
	}
	if strings.TrimSpace(in.Text) == "" {
		return errs.New(errs.Invalid, "the text is empty")
	}
	r := t.runs[b.currentRun()]
	if r == nil || r.State == RunDraining || r.Verdict != "" {
		return errs.New(errs.Conflict, "no agent works on bead %s now, which is %s", b.ID, b.Status).
			WithHint("what the next one shall know belongs into the bead: gastown bead edit %s --body-file FILE; gastown why %s says what it waits for", b.ID, b.ID)
	}
	if len(r.Nudges) >= maxNudges {
		return errs.New(errs.Overloaded, "%d messages wait for the agent on bead %s already", maxNudges, b.ID).
			WithHint("it reads them when its turn ends; --interrupt ends the turn")
	}
	n := t.nudge(r, now, by, in.Text, in.Interrupt)
	t.edit(b, now, func() {
		b.NudgeN = n
		b.Nudges = append(slices.Clone(b.Nudges), SentNudge{N: n, From: by, Text: in.Text, Interrupt: in.Interrupt, At: now})
		b.Nudges = b.Nudges[max(0, len(b.Nudges)-maxNudges):]
	})
	return nil
}

func (t *Town) nudge(r *Run, now Time, from, text string, interrupt bool) int {
	r.NudgeN++
	r.Nudges = append(slices.Clone(r.Nudges), Nudge{N: r.NudgeN, Text: text, From: from, Interrupt: interrupt})
	t.mark(kindRun, r.ID)
	t.log(now, "run.nudged", r.ID, from, text, "bead", r.Bead, "n", strconv.Itoa(r.NudgeN))
	return r.NudgeN
}

// nudged takes the word of the runner that messages up to n were delivered.
func (t *Town) nudged(r *Run, now Time, n int) {
	for len(r.Nudges) > 0 && r.Nudges[0].N <= n {
		got := r.Nudges[0]
		r.Nudges = r.Nudges[1:]
		t.mark(kindRun, r.ID)
		b := t.beads[r.Bead]
		if b == nil {
			continue
		}
		i := slices.IndexFunc(b.Nudges, func(s SentNudge) bool { return s.N == got.N })
		if i < 0 {
			continue // the town's own
		}
		t.edit(b, now, func() {
			b.Nudges = slices.Clone(b.Nudges)
			b.Nudges[i].DeliveredAt, b.Nudges[i].Epoch = now, r.Epoch
		})
		t.log(now, "run.nudge_read", r.ID, "", "", "bead", r.Bead, "n", strconv.Itoa(got.N))
	}
}

// unread are the messages of people that no agent of the bead read before its run
// ended. The next one reads them at its begin: there is no turn to interrupt.
func (b *Bead) unread() []Nudge {
	var out []Nudge
	for _, s := range b.Nudges {
		if s.DeliveredAt == 0 {
			out = append(out, Nudge{N: s.N, Text: s.Text, From: s.From})
		}
	}
	return out
}

// currentRun is the id of the bead's latest run.
func (b *Bead) currentRun() string { return runID(b.ID, b.Epoch) }
