package town

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

// importPatience is how long an import may pause between two parts. One whose
// server died, and that nobody takes up again, is deleted after it.
const importPatience = 10 * time.Minute

// Import is how far an import is.
type Import struct {
	By    string `json:"by"`
	Next  int    `json:"next"` // number of the next part
	Until Time   `json:"until"`
}

// ImportedTown is what a town that is being imported begins with.
type ImportedTown struct {
	By, Name, Owner string
	CreatedAt       Time
	Settings        Settings
}

// NewImport makes a town that is being imported. It takes parts until
// FinishImport; without one for too long it deletes itself.
func NewImport(id string, in ImportedTown, at time.Time) (*Town, error) {
	now := At(at)
	by, err := person(in.By)
	if err != nil {
		return nil, err
	}
	if err := ValidName("town", in.Name); err != nil {
		return nil, err
	}
	if err := checkSettings(LevelTown, in.Settings, nil); err != nil {
		return nil, err
	}
	t := empty()
	t.info = Info{ID: id, Name: in.Name, Owner: cmp.Or(in.Owner, id), CreatedAt: cmp.Or(min(in.CreatedAt, now), now), Mode: ModeImporting,
		ModeBy: by, ModeAt: now, Settings: Settings(nil).merged(in.Settings, nil), Sandbox: Sandbox{State: SandboxAsleep, Since: now}, DesiredRev: 1,
		Import: &Import{By: by, Until: now.Add(importPatience)}}
	t.mark(kindTown, id)
	return t, nil
}

// whileImporting lets only what an import needs, or what ends the town, pass.
func (t *Town) whileImporting(in Input) error {
	switch in.(type) {
	case ImportPart, FinishImport, DeleteTown, SandboxExited, EffectDone, Unheard, SlotFree, Restored, Tick:
		return nil
	}
	return errs.New(errs.Conflict, "town %s is being imported", t.info.Name).WithHint("try again when that is done; gastown town delete %s --yes gives it up", t.info.Name)
}

// ruleImport gives up an import that nobody goes on with.
func (t *Town) ruleImport(now Time) bool {
	in := t.info.Import
	if t.info.Mode != ModeImporting {
		return false
	}
	if in != nil && now < in.Until && in.Until <= now.Add(importPatience+maxClock) {
		return false
	}
	t.setMode(ModeDeleting, now, "town")
	return true
}

func (t *Town) importing() (*Import, error) {
	if t.info.Mode != ModeImporting || t.info.Import == nil {
		return nil, errs.New(errs.Conflict, "town %s is not being imported", t.info.Name)
	}
	return t.info.Import, nil
}

func (t *Town) importPart(now Time, in ImportPart) error {
	im, err := t.importing()
	if err != nil {
		return err
	}
	switch {
	case in.N < im.Next:
		return nil // a repeat after an answer that was lost
	case in.N > im.Next:
		return errs.New(errs.Conflict, "part %d of the import is next, not %d", im.Next, in.N)
	}
	if err := t.checkPart(in); err != nil {
		return err
	}
	for _, r := range in.Rigs {
		r.State, r.Tip, r.FetchedAt, r.WriteAt, r.Secret = RigMissing, "", 0, 0, ""
		t.rigs[r.Name] = &r
		t.mark(kindRig, r.Name)
	}
	for _, b := range in.Beads {
		t.beads[b.ID] = &b
		if !b.Status.Terminal() {
			t.ix.open++ // the rest of the index follows when all blockers are there
		}
		t.mark(kindBead, b.ID)
	}
	for _, e := range in.Ledger {
		t.info.LedgerSeq++
		e.Seq = t.info.LedgerSeq
		t.entries = append(t.entries, e)
	}
	t.info.Import = &Import{By: im.By, Next: im.Next + 1, Until: now.Add(importPatience)}
	t.mark(kindTown, t.info.ID)
	return nil
}

// checkPart validates a part before anything of it is taken.
func (t *Town) checkPart(in ImportPart) error {
	rigs := map[string]*Rig{}
	for i := range in.Rigs {
		r := &in.Rigs[i]
		if err := t.checkNewRig(*r); err != nil {
			return err
		}
		rigs[r.Name] = r
	}
	if len(rigs) != len(in.Rigs) {
		return errs.New(errs.Invalid, "a rig is named twice")
	}
	if len(t.beads)+len(in.Beads) > MaxBeads {
		return errs.New(errs.Conflict, "a town may have at most %d beads", MaxBeads)
	}
	seen := make(map[string]bool, len(in.Beads))
	for i := range in.Beads {
		b := &in.Beads[i]
		r := t.rigs[b.Rig]
		if r == nil {
			r = rigs[b.Rig]
		}
		if r == nil {
			return noRig(b.Rig)
		}
		if t.beads[b.ID] != nil || seen[b.ID] {
			return errs.New(errs.Conflict, "bead %s exists already", b.ID)
		}
		seen[b.ID] = true
		if err := checkImported(b, r.Prefix); err != nil {
			return err
		}
	}
	for i := range in.Ledger {
		if err := checkEntry(&in.Ledger[i]); err != nil {
			return err
		}
	}
	return nil
}

const (
	mostCount   = 1_000_000      // of attempts, conflicts and the like
	maxImported = 2 * MaxReason  // bytes of a reason or a summary in a file
	maxEpoch    = int64(1) << 40 // of runs and sandboxes in a file
)

// checkImported validates a bead that comes from a file, in the form in which it
// will be stored. The messages name the field.
func checkImported(b *Bead, prefix string) error {
	if err := ValidBeadID(b.ID); err != nil {
		return err
	}
	if got, _, _ := strings.Cut(b.ID, "-"); got != prefix {
		return errs.New(errs.Invalid, "id %s does not begin with the prefix of its rig, %s-", b.ID, prefix)
	}
	if err := checkFields(b.Title, b.Body, b.Priority, b.Labels); err != nil {
		return err
	}
	if b.Status != BeadOpen && !b.Status.Terminal() {
		return errs.New(errs.Invalid, "status %q is not open, closed, failed or cancelled", clip(string(b.Status), 60))
	}
	if (b.Status == BeadClosed) != (b.Proof != nil) {
		return errs.New(errs.Invalid, "proof: a closed bead has one, no other has")
	}
	if b.Status.Terminal() != (b.ClosedAt != 0) {
		return errs.New(errs.Invalid, "closed_at: a bead that is ended has one, no other has")
	}
	if b.Escalated && b.Status.Terminal() {
		return errs.New(errs.Invalid, "escalated: a bead that is ended waits for nobody")
	}
	if err := checkBlockers(b); err != nil {
		return err
	}
	if err := checkSettings(LevelBead, b.Settings, nil); err != nil {
		return err
	}
	if b.Merge != nil || b.LastCall != nil || b.Refs || b.Branch != "" || b.Start != "" || b.Checkpoint != "" || b.CheckpointRef != "" || b.Session != "" {
		return errs.New(errs.Internal, "bead %s carries what belongs to a repository", b.ID)
	}
	if err := checkNumbers(b); err != nil {
		return err
	}
	return checkHistory(b)
}

func checkBlockers(b *Bead) error {
	if len(b.BlockedBy) > MaxBlocks {
		return errs.New(errs.Invalid, "blocked_by: %d blockers, at most %d", len(b.BlockedBy), MaxBlocks)
	}
	for i, on := range b.BlockedBy {
		if err := ValidBeadID(on); err != nil {
			return errs.Wrap(errs.Invalid, err, "blocked_by")
		}
		if on == b.ID {
			return errs.New(errs.Invalid, "blocked_by: %s blocks itself", on)
		}
		if slices.Contains(b.BlockedBy[:i], on) {
			return errs.New(errs.Invalid, "blocked_by: %s is named twice", on)
		}
	}
	return nil
}

func checkNumbers(b *Bead) error {
	for _, n := range []struct {
		name     string
		n        int64
		min, max int64
	}{
		{"attempt", int64(b.Attempt), 1, mostCount}, {"charged", int64(b.Charged), 0, mostCount}, {"conflicts", int64(b.Conflicts), 0, mostCount},
		{"losses", int64(b.Losses), 0, mostCount}, {"epoch", b.Epoch, 0, maxEpoch},
	} {
		if n.n < n.min || n.n > n.max {
			return errs.New(errs.Invalid, "%s: %d is not from %d to %d", n.name, n.n, n.min, n.max)
		}
	}
	for _, at := range []struct {
		name string
		at   Time
	}{{"created_at", b.CreatedAt}, {"updated_at", b.UpdatedAt}, {"closed_at", b.ClosedAt}, {"not_before", b.NotBefore}, {"fresh_at", b.FreshAt}} {
		if at.at < 0 || at.at > lastTime || at.name == "created_at" && at.at == 0 {
			return errs.New(errs.Invalid, "%s: not a time from 1970 to 2200", at.name)
		}
	}
	return nil
}

func checkHistory(b *Bead) error {
	for _, s := range []struct {
		name, s string
		max     int
	}{{"created_by", b.CreatedBy, 300}, {"agent", b.Agent, 100}, {"reason", b.Reason, maxImported}, {"summary", b.Summary, maxImported}} {
		if err := cleanText(s.name, s.s, s.max); err != nil {
			return err
		}
	}
	for _, c := range []struct{ name, s string }{{"base", b.Base}, {"commit", b.Commit}} {
		if c.s != "" && !commitRE.MatchString(c.s) {
			return errs.New(errs.Invalid, "%s: %q is no commit", c.name, clip(c.s, 60))
		}
	}
	if err := checkProof(b.Proof); err != nil {
		return err
	}
	if len(b.Runs) > maxRunRecords || len(b.Failures) > maxFailures {
		return errs.New(errs.Invalid, "runs and failures: at most %d of each are kept", maxRunRecords)
	}
	if !b.Spent.possible() || !b.Past.possible() {
		return errs.New(errs.Invalid, "spent or past: a number is impossible")
	}
	last := int64(0)
	for i, r := range b.Runs {
		if err := checkRunRecord(r); err != nil {
			return errs.Wrap(errs.Invalid, err, "runs[%d]", i)
		}
		if r.Epoch <= last || r.Epoch > b.Epoch {
			return errs.New(errs.Invalid, "runs[%d]: epoch %d does not follow %d, or is past the bead's %d", i, r.Epoch, last, b.Epoch)
		}
		last = r.Epoch
	}
	for i, f := range b.Failures {
		if !f.Class.known() {
			return errs.New(errs.Invalid, "failures[%d]: unknown class %q", i, clip(string(f.Class), 60))
		}
		if f.Epoch < 0 || f.Epoch > b.Epoch || f.At < 0 || f.At > lastTime {
			return errs.New(errs.Invalid, "failures[%d]: epoch or time is impossible", i)
		}
		if err := cleanText("reason", f.Reason, maxImported); err != nil {
			return errs.Wrap(errs.Invalid, err, "failures[%d]", i)
		}
	}
	return nil
}

func (c Class) known() bool { return c == ClassWork || c == ClassInfra || c == ClassLimit }

// possible reports whether a file may say that this was spent.
func (s Spend) possible() bool {
	const most = int64(1) << 50
	for _, n := range []int64{s.Runs, s.AwakeMS, s.Tokens, s.Cost} {
		if n < 0 || n > most {
			return false
		}
	}
	return true
}

func checkProof(p *Proof) error {
	if p == nil {
		return nil
	}
	if !slices.Contains([]ProofKind{ProofMerged, ProofNoChange, ProofPerson}, p.Kind) {
		return errs.New(errs.Invalid, "proof: unknown kind %q", clip(string(p.Kind), 60))
	}
	if p.Commit != "" && !commitRE.MatchString(p.Commit) || p.Kind == ProofMerged && p.Commit == "" {
		return errs.New(errs.Invalid, "proof: %q is no commit", clip(p.Commit, 60))
	}
	if p.At < 0 || p.At > lastTime {
		return errs.New(errs.Invalid, "proof: not a time from 1970 to 2200")
	}
	if err := cleanText("proof by", p.By, 300); err != nil {
		return err
	}
	return cleanText("proof reason", p.Reason, maxImported)
}

func checkRunRecord(r RunRecord) error {
	if !slices.Contains([]Outcome{OutcomeDone, OutcomeNoChange, OutcomeStopped, OutcomeExited, OutcomeFailed, OutcomeLost, Outcome(VerdictEscalate)}, r.Outcome) {
		return unknown("outcome", r.Outcome)
	}
	if r.Class != "" && !r.Class.known() {
		return unknown("class", r.Class)
	}
	for _, at := range []Time{r.StartedAt, r.SpawnedAt, r.EndedAt} {
		if at < 0 || at > lastTime {
			return fmt.Errorf("not a time from 1970 to 2200")
		}
	}
	if !r.Spent.possible() {
		return fmt.Errorf("spent: a number is impossible")
	}
	if r.Generation < 0 || r.Generation > maxEpoch {
		return fmt.Errorf("generation %d is impossible", r.Generation)
	}
	for _, s := range []struct {
		name, s string
		max     int
	}{{"agent", r.Agent, 100}, {"preset", r.Preset, 100}, {"reason", r.Reason, maxImported}} {
		if err := cleanText(s.name, s.s, s.max); err != nil {
			return err
		}
	}
	return nil
}

const (
	maxData  = 32 // facts of a ledger entry
	maxDatum = 16 << 10
)

func checkEntry(e *Entry) error {
	if err := cleanLine("kind", e.Kind, 100); err != nil {
		return err
	}
	if e.At <= 0 || e.At > lastTime {
		return errs.New(errs.Invalid, "at: not a time from 1970 to 2200")
	}
	for _, s := range []struct {
		name, s string
		max     int
	}{{"subject", e.Subject, 300}, {"actor", e.Actor, 300}, {"text", e.Text, MaxBody + 8}} {
		if err := cleanText(s.name, s.s, s.max); err != nil {
			return err
		}
	}
	if len(e.Data) > maxData {
		return errs.New(errs.Invalid, "data: %d facts, at most %d", len(e.Data), maxData)
	}
	for k, v := range e.Data { // which one is named first does not matter
		if err := cleanLine("key in data", k, 100); err != nil {
			return err
		}
		if err := cleanText("data", v, maxDatum); err != nil {
			return err
		}
	}
	return nil
}

func (t *Town) finishImport(now Time, in FinishImport) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	if _, err := t.importing(); err != nil {
		return err
	}
	if in.Counts.Rigs != len(t.rigs) || in.Counts.Beads != len(t.beads) || in.Counts.Ledger != t.info.LedgerSeq {
		return errs.New(errs.Conflict, "the import of town %s is not whole: %d rigs, %d beads and %d ledger entries arrived, not %d, %d and %d",
			t.info.Name, len(t.rigs), len(t.beads), t.info.LedgerSeq, in.Counts.Rigs, in.Counts.Beads, in.Counts.Ledger)
	}
	blocks := make(map[string][]string, len(t.beads))
	for id, b := range t.beads {
		blocks[id] = b.BlockedBy
	}
	if id := inCycle(blocks); id != "" {
		return errs.New(errs.Invalid, "bead %s is part of a cycle of blockers", id)
	}
	var asking []*Bead
	for _, b := range t.beads {
		if b.Escalated {
			asking = append(asking, b)
		}
	}
	slices.SortFunc(asking, func(a, b *Bead) int { return strings.Compare(a.ID, b.ID) })
	mode := ModePaused
	if in.Start {
		mode = ModeActive
	}
	t.info.Mode, t.info.ModeBy, t.info.ModeAt, t.info.Import = mode, by, now, nil
	for id, b := range t.beads {
		if b.NotBefore != 0 && b.NotBefore <= now {
			b.NotBefore = 0 // over before it came here: no change of the bead
			t.mark(kindBead, id)
		}
	}
	t.reindex()
	t.info.Busy = t.ix.open > 0
	t.log(now, "town.imported", t.info.Name, by, "from town "+plain(in.From, 60)+" as of "+in.ExportedAt.String()+"; "+string(mode),
		"from", plain(in.From, 60), "exported_at", in.ExportedAt.String(), "rigs", strconv.Itoa(in.Counts.Rigs), "beads", strconv.Itoa(in.Counts.Beads),
		"reopened", strconv.Itoa(in.Reopened), "ledger", strconv.FormatInt(in.Counts.Ledger, 10))
	for _, b := range asking {
		t.escalate(now, CauseEscalated, b.ID, b.Title+": "+b.Reason)
	}
	return nil
}

// inCycle returns the first bead, by id, that waits for itself, or "".
func inCycle(blockers map[string][]string) string {
	waits := make(map[string]int, len(blockers)) // blockers that are not known to be free
	dependents := map[string][]string{}
	var free []string
	for id, on := range blockers {
		for _, o := range on {
			if _, ok := blockers[o]; ok {
				waits[id]++
				dependents[o] = append(dependents[o], id)
			}
		}
		if waits[id] == 0 {
			free = append(free, id)
		}
	}
	left := len(blockers)
	for len(free) > 0 {
		id := free[len(free)-1]
		free = free[:len(free)-1]
		left--
		for _, d := range dependents[id] {
			if waits[d]--; waits[d] == 0 {
				free = append(free, d)
			}
		}
	}
	if left == 0 {
		return ""
	}
	return onCycle(blockers, waits)
}

// onCycle walks from the first bead that never became free to one that it meets again.
func onCycle(blockers map[string][]string, waits map[string]int) string {
	first := ""
	for id, n := range waits {
		if n > 0 && (first == "" || id < first) {
			first = id
		}
	}
	met := map[string]bool{}
	for at := first; ; {
		if met[at] {
			return at
		}
		met[at] = true
		for _, o := range blockers[at] {
			if waits[o] > 0 {
				at = o
				break
			}
		}
	}
}

func (t *Town) cloneRig(now Time, in CloneRig) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	r := t.rigs[in.Rig]
	if r == nil {
		return noRig(in.Rig)
	}
	if r.State != RigMissing {
		return errs.New(errs.Conflict, "rig %s has its repository already", r.Name)
	}
	if err := cleanLine("URL", in.URL, 2000); err != nil {
		return err
	}
	if !commitRE.MatchString(in.Tip) {
		return errs.New(errs.Invalid, "%q is no commit", clip(in.Tip, 60))
	}
	r.State, r.URL, r.Tip, r.Secret, r.FetchedAt, r.WriteAt = RigActive, in.URL, in.Tip, in.Secret, now, now
	t.mark(kindRig, r.Name)
	t.log(now, "rig.cloned", r.Name, by, "target "+r.Target+" at "+short(r.Tip))
	return nil
}
