package town

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// rowKind names what a row holds.
type rowKind string

const (
	kindTown       rowKind = "town"
	kindRig        rowKind = "rig"
	kindBead       rowKind = "bead"
	kindRun        rowKind = "run"
	kindAgent      rowKind = "agent"
	kindClaim      rowKind = "claim"
	kindBreaker    rowKind = "breaker"
	kindNotice     rowKind = "notice"
	kindUsage      rowKind = "usage"
	kindEscalation rowKind = "escalation"
	// kindQuarantine holds the bytes of rows that could not be read and were written anew.
	kindQuarantine rowKind = "quarantine"
)

type rowKey struct {
	kind rowKind
	id   string
}

// Row is one persisted piece of a town. A nil Body means that it is gone.
type Row struct {
	Kind, ID string
	Body     []byte
}

// mark notes that a row changed and has to be written.
func (t *Town) mark(k rowKind, id string) { t.dirty[rowKey{k, id}] = struct{}{} }

// Changes returns the rows that changed since the last call, in a fixed order.
func (t *Town) Changes() []Row {
	keys := make([]rowKey, 0, len(t.dirty))
	for k := range t.dirty {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b rowKey) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id)) })
	out := make([]Row, 0, len(keys))
	for _, k := range keys {
		if t.unreadable(k.kind, k.id) {
			out = append(out, t.setAside(k))
		}
		out = append(out, Row{Kind: string(k.kind), ID: k.id, Body: t.encode(k)})
	}
	clear(t.dirty)
	return out
}

// Entries returns the ledger entries since the last call.
func (t *Town) Entries() []Entry {
	out := t.entries
	t.entries = nil
	return out
}

// Rows returns every row of the town, as a first save or an export needs them.
func (t *Town) Rows() []Row {
	for id := range t.rigs {
		t.mark(kindRig, id)
	}
	for id := range t.beads {
		t.mark(kindBead, id)
	}
	for id := range t.runs {
		t.mark(kindRun, id)
	}
	for id := range t.agents {
		t.mark(kindAgent, id)
	}
	for id := range t.claims {
		t.mark(kindClaim, id)
	}
	for id := range t.breakers {
		t.mark(kindBreaker, id)
	}
	for id := range t.notices {
		t.mark(kindNotice, strconv.FormatInt(id, 10))
	}
	for day := range t.usage {
		t.mark(kindUsage, day)
	}
	for id := range t.escalations {
		t.mark(kindEscalation, id)
	}
	t.mark(kindTown, t.info.ID)
	return t.Changes()
}

func (t *Town) encode(k rowKey) []byte {
	var v any
	switch k.kind {
	case kindTown:
		v = &t.info
	case kindRig:
		v = orNil(t.rigs, k.id)
	case kindBead:
		v = orNil(t.beads, k.id)
	case kindRun:
		v = orNil(t.runs, k.id)
	case kindAgent:
		v = orNil(t.agents, k.id)
	case kindClaim:
		v = orNil(t.claims, k.id)
	case kindBreaker:
		v = orNil(t.breakers, k.id)
	case kindUsage:
		v = orNil(t.usage, k.id)
	case kindEscalation:
		v = orNil(t.escalations, k.id)
	case kindNotice:
		if id, err := strconv.ParseInt(k.id, 10, 64); err == nil {
			v = orNil(t.notices, id)
		}
	}
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("town: encode %s %s: %v", k.kind, k.id, err)) // our own structs always encode
	}
	return b
}

func orNil[K comparable, V any](m map[K]*V, id K) any {
	if v, ok := m[id]; ok {
		return v
	}
	return nil
}

// Decode builds a town from all its rows. Rows that can't be read are
// quarantined; without a readable town row there is no town and an error.
func Decode(id string, rows []Row, server Settings) (*Town, error) {
	t := empty()
	t.server = server
	t.info.ID = id
	found := false
	for _, r := range rows {
		if r.Body == nil {
			continue
		}
		if err := t.decode(r); err != nil {
			if rowKind(r.Kind) == kindTown {
				return nil, fmt.Errorf("the town's own row can't be read: %w", err)
			}
			t.quarantine(rowKey{rowKind(r.Kind), r.ID}, r.Body, err.Error())
			continue
		}
		found = found || rowKind(r.Kind) == kindTown
	}
	if !found {
		return nil, fmt.Errorf("town %s has no row of its own", id)
	}
	n := len(t.bad)
	t.adopt()
	if n < len(t.bad) {
		t.keepRaw(rows)
	}
	return t, nil
}

// keepRaw remembers the bytes of rows that adopt took out.
func (t *Town) keepRaw(rows []Row) {
	missing := map[rowKey]bool{}
	for _, q := range t.bad {
		if k := (rowKey{rowKind(q.Kind), q.ID}); t.raw[k] == nil {
			missing[k] = true
		}
	}
	for _, r := range rows {
		if k := (rowKey{rowKind(r.Kind), r.ID}); missing[k] {
			t.raw[k] = r.Body
		}
	}
}

func (t *Town) decode(r Row) error {
	switch rowKind(r.Kind) {
	case kindTown:
		var v Info
		if err := strict(r.Body, &v); err != nil {
			return err
		}
		if v.ID != t.info.ID {
			return fmt.Errorf("it says it is town %q", clip(v.ID, 60))
		}
		if _, ok := sandboxMoves[v.Sandbox.State]; !ok {
			return unknown("sandbox state", v.Sandbox.State)
		}
		if !slices.Contains([]Mode{ModeActive, ModePaused, ModeSleeping, ModeDeleting, ModeImporting}, v.Mode) {
			return unknown("mode", v.Mode)
		}
		sober(&v.CreatedAt, &v.ModeAt, &v.AwakeFrom, &v.AwakeFor, &v.Sandbox.Since, &v.Meter.Since)
		t.info = v
		return nil
	case kindRig:
		return into(t.rigs, r, func(v *Rig) (string, error) {
			if !slices.Contains([]RigState{RigActive, RigMissing, RigRemoving}, v.State) {
				return v.Name, unknown("state", v.State)
			}
			sober(&v.CreatedAt, &v.FetchedAt, &v.WriteAt)
			return v.Name, nil
		})
	case kindBead:
		return into(t.beads, r, checkBeadRow)
	case kindRun:
		return into(t.runs, r, func(v *Run) (string, error) {
			if !slices.Contains([]RunState{RunStarting, RunRunning, RunDraining}, v.State) {
				return v.ID, unknown("state", v.State)
			}
			if v.Role != RolePolecat {
				return v.ID, unknown("role", v.Role)
			}
			return v.ID, cmp.Or(counts("epoch", v.Epoch), sane(v.CreatedAt, v.SpawnedAt, v.LifeAt, v.LeaseUntil, v.SavedAt, v.StopAt))
		})
	case kindAgent:
		return into(t.agents, r, func(v *Agent) (string, error) {
			if v.ID != v.Rig+"/"+v.Name {
				return v.ID, fmt.Errorf("it says it is %q of rig %q", clip(v.Name, 60), clip(v.Rig, 60))
			}
			sober(&v.Since)
			return v.ID, nil
		})
	case kindClaim:
		return into(t.claims, r, func(v *Claim) (string, error) { return v.Key, sane(v.Until) })
	case kindBreaker:
		return into(t.breakers, r, func(v *Breaker) (string, error) { return v.Subject, sane(v.Until, v.Since) })
	case kindUsage:
		return into(t.usage, r, func(v *Usage) (string, error) { return v.Day, nil })
	case kindEscalation:
		return into(t.escalations, r, func(v *Escalation) (string, error) {
			if !slices.Contains([]Cause{CauseFailed, CauseEscalated, CauseStuck, CauseUnsaved, CauseBreaker, CauseMany}, v.Cause) {
				return v.ID, unknown("cause", v.Cause)
			}
			return v.ID, sane(v.First, v.Last, v.Told, v.Closed, v.SeenAt)
		})
	case kindNotice:
		var v Notice
		if err := strict(r.Body, &v); err != nil {
			return err
		}
		if strconv.FormatInt(v.ID, 10) != r.ID {
			return fmt.Errorf("it says it is %d", v.ID)
		}
		if err := sane(v.At, v.Next); err != nil {
			return err
		}
		t.notices[v.ID] = &v
		return nil
	}
	if rowKind(r.Kind) == kindQuarantine {
		return errors.New(asideText)
	}
	return fmt.Errorf("unknown kind of row %q", clip(r.Kind, 60))
}

func unknown[S ~string](what string, v S) error {
	return fmt.Errorf("unknown %s %q", what, clip(string(v), 60))
}

func checkBeadRow(v *Bead) (string, error) {
	if _, ok := beadMoves[v.Status]; !ok {
		return v.ID, unknown("status", v.Status)
	}
	if v.Merge != nil && !slices.Contains([]MergeState{MergeQueued, MergeBuilding, MergeGating, MergeLanding, MergeWaiting}, v.Merge.State) {
		return v.ID, unknown("state of its merge", v.Merge.State)
	}
	if v.Proof != nil && !slices.Contains([]ProofKind{ProofMerged, ProofNoChange, ProofPerson}, v.Proof.Kind) {
		return v.ID, unknown("proof", v.Proof.Kind)
	}
	return v.ID, cmp.Or(counts("epoch", v.Epoch), sane(v.times()...))
}

// into decodes a row into m; check returns the id that it says it has.
func into[V any](m map[string]*V, r Row, check func(*V) (string, error)) error {
	v := new(V)
	if err := strict(r.Body, v); err != nil {
		return err
	}
	got, err := check(v)
	if got != r.ID {
		return fmt.Errorf("it says it is %q", clip(got, 60))
	}
	if err != nil {
		return err
	}
	m[r.ID] = v
	return nil
}

// strict decodes one JSON object; fields that are not known belong to a newer
// version and are an error, so that a write of the row can't lose them.
func strict(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("text after the object")
	}
	return nil
}

// adopt makes loaded rows consistent: what refers to a row that is missing (a
// quarantined one) is dropped or parked, so that the rest goes on. It marks no
// row: what contradicts itself is noted in odd, for ruleMend to write.
func (t *Town) adopt() {
	for id, b := range t.beads {
		if t.rigs[b.Rig] == nil {
			t.bad = append(t.bad, Quarantined{string(kindBead), id, "its rig can't be read"})
			delete(t.beads, id)
		}
	}
	s := &t.info.Sandbox
	for id, r := range t.runs {
		b := t.beads[r.Bead]
		if b == nil || b.Rig != r.Rig || b.currentRun() != id || b.Epoch != r.Epoch || b.Status != BeadInProgress && r.Verdict == "" && r.Stop == "" {
			t.bad = append(t.bad, Quarantined{string(kindRun), id, "its bead or rig can't be read, or is not at work"})
			delete(t.runs, id)
			continue
		}
		if r.Generation != s.Generation && (r.Generation != 0 || s.State == SandboxAwake) || r.Generation != 0 && !s.State.Running() {
			t.odd[rowKey{kindRun, id}] = "no sandbox has it"
		}
	}
	for _, a := range t.agents {
		if r := t.runs[a.Run]; a.Run != "" && (r == nil || r.Rig != a.Rig || r.Agent != a.Name) {
			a.Run, a.Bead = "", ""
		}
	}
	var merging []*Bead
	for id, b := range t.beads {
		if why := t.mend(b); why != "" {
			t.odd[rowKey{kindBead, id}] = why
		}
		if shelf, _ := t.place(b); shelf == shelfMerging {
			merging = append(merging, b)
		}
	}
	t.oneAtATime(merging)
	slices.SortFunc(t.bad, func(a, b Quarantined) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) })
	t.reindex()
}

// mend makes the merge of a loaded bead fit its status, and says what was wrong.
func (t *Town) mend(b *Bead) string {
	b.Charged, b.Conflicts, b.Losses = max(b.Charged, 0), max(b.Conflicts, 0), max(b.Losses, 0)
	switch m := b.Merge; {
	case b.Status == BeadInProgress && t.runs[b.currentRun()] == nil:
		b.Merge = nil
		return "it was in progress without a run"
	case b.Status == BeadInReview && (m == nil || b.Commit == ""):
		b.Merge = nil
		return "it was in review with nothing to merge"
	case b.Status != BeadInReview && m != nil:
		b.Merge = nil
		return "it had a merge and was " + string(b.Status)
	case m != nil && m.State != MergeWaiting && m.State != MergeQueued && (m.Tip == "" || m.State != MergeBuilding && m.Candidate == ""):
		m.State = MergeQueued
		return "it was being merged without a candidate"
	}
	return ""
}

// oneAtATime leaves each rig the candidate that is furthest on its way.
func (t *Town) oneAtATime(merging []*Bead) {
	way := map[MergeState]int{MergeLanding: 0, MergeGating: 1, MergeBuilding: 2}
	slices.SortFunc(merging, func(a, b *Bead) int {
		return cmp.Or(cmp.Compare(a.Rig, b.Rig), cmp.Compare(way[a.Merge.State], way[b.Merge.State]), cmp.Compare(a.ID, b.ID))
	})
	for i, b := range merging {
		if i > 0 && merging[i-1].Rig == b.Rig {
			b.Merge.State = MergeQueued
			t.odd[rowKey{kindBead, b.ID}] = "it was being merged together with another"
		}
	}
}

// ruleMend writes what adopt found, once: a bead that lost its run or its merge
// goes back to open, a run that no sandbox has ends.
func (t *Town) ruleMend(now Time) bool {
	if len(t.odd) == 0 {
		return false
	}
	keys := slices.SortedFunc(maps.Keys(t.odd), func(a, b rowKey) int { return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id)) })
	for _, k := range keys {
		why := t.odd[k]
		if r := t.runs[k.id]; k.kind == kindRun && r != nil {
			t.log(now, "run.mended", r.ID, "", why)
			t.endRun(r, now, OutcomeLost, ClassInfra, why)
		}
		b := t.beads[k.id]
		if k.kind != kindBead || b == nil {
			continue
		}
		t.log(now, "bead.mended", b.ID, "", why)
		t.edit(b, now, func() {})
		if b.Status == BeadInProgress && t.runs[b.currentRun()] == nil || b.Status == BeadInReview && b.Merge == nil {
			t.setStatus(b, now, BeadOpen, "", why)
		}
	}
	clear(t.odd)
	return true
}
