package town

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// rowKind names what a row holds.
type rowKind string

const (
	kindTown    rowKind = "town"
	kindRig     rowKind = "rig"
	kindBead    rowKind = "bead"
	kindRun     rowKind = "run"
	kindAgent   rowKind = "agent"
	kindClaim   rowKind = "claim"
	kindBreaker rowKind = "breaker"
	kindNotice  rowKind = "notice"
	kindUsage   rowKind = "usage"
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

// Quarantined is a row that could not be read. It stays in the store, changes
// nothing, and nothing else of the town waits for it.
type Quarantined struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Error string `json:"error"`
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
			t.bad = append(t.bad, Quarantined{r.Kind, r.ID, err.Error()})
			continue
		}
		found = found || rowKind(r.Kind) == kindTown
	}
	if !found {
		return nil, fmt.Errorf("town %s has no row of its own", id)
	}
	t.adopt()
	return t, nil
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
			return fmt.Errorf("unknown sandbox state %q", clip(string(v.Sandbox.State), 60))
		}
		t.info = v
		return nil
	case kindRig:
		return into(t.rigs, r, func(v *Rig) string { return v.Name })
	case kindBead:
		return decodeBead(t.beads, r)
	case kindRun:
		return into(t.runs, r, func(v *Run) string { return v.ID })
	case kindAgent:
		return into(t.agents, r, func(v *Agent) string { return v.ID })
	case kindClaim:
		return into(t.claims, r, func(v *Claim) string { return v.Key })
	case kindBreaker:
		return into(t.breakers, r, func(v *Breaker) string { return v.Subject })
	case kindUsage:
		return into(t.usage, r, func(v *Usage) string { return v.Day })
	case kindNotice:
		var v Notice
		if err := strict(r.Body, &v); err != nil {
			return err
		}
		t.notices[v.ID] = &v
		return nil
	}
	return fmt.Errorf("unknown kind of row %q", clip(r.Kind, 60))
}

func decodeBead(m map[string]*Bead, r Row) error {
	v := new(Bead)
	if err := strict(r.Body, v); err != nil {
		return err
	}
	if v.ID != r.ID {
		return fmt.Errorf("it says it is %q", clip(v.ID, 60))
	}
	if _, ok := beadMoves[v.Status]; !ok {
		return fmt.Errorf("unknown status %q", clip(string(v.Status), 60))
	}
	m[r.ID] = v
	return nil
}

func into[V any](m map[string]*V, r Row, id func(*V) string) error {
	v := new(V)
	if err := strict(r.Body, v); err != nil {
		return err
	}
	if got := id(v); got != r.ID {
		return fmt.Errorf("it says it is %q", clip(got, 60))
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
	if d.More() {
		return fmt.Errorf("text after the object")
	}
	return nil
}

// adopt makes loaded rows consistent: what refers to a row that is missing (a
// quarantined one) is dropped or parked, so that the rest goes on. It marks no
// row: what it drops in memory is written only when a rule changes it.
func (t *Town) adopt() {
	for id, r := range t.runs {
		b := t.beads[r.Bead]
		if b == nil || t.rigs[r.Rig] == nil || b.Epoch != r.Epoch || b.Status != BeadInProgress && r.Verdict == "" && r.Stop == "" {
			t.bad = append(t.bad, Quarantined{string(kindRun), id, "its bead or rig can't be read, or is not at work"})
			delete(t.runs, id)
		}
	}
	for _, a := range t.agents {
		if a.Run != "" && t.runs[a.Run] == nil {
			a.Run, a.Bead = "", ""
		}
	}
	for id, b := range t.beads {
		if t.rigs[b.Rig] == nil {
			t.bad = append(t.bad, Quarantined{string(kindBead), id, "its rig can't be read"})
			delete(t.beads, id)
		}
	}
	slices.SortFunc(t.bad, func(a, b Quarantined) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) })
	t.reindex()
}
