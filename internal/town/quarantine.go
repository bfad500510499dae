package town

import (
	"fmt"
	"strconv"
	"strings"

	"gastown/internal/errs"
)

// Quarantined is a row that could not be read. It stays in the store byte for
// byte, changes nothing, and nothing else of the town waits for it. It is read
// again at each load, so that a newer version may understand it. A row that a
// rule has to write anew (a breaker, an agent, usage) moves aside first, to kind
// "quarantine".
type Quarantined struct {
	Kind  string `json:"kind"`
	ID    string `json:"id"`
	Error string `json:"error"`
}

// Name is how a quarantined row is named by a person: kind/id.
func (q Quarantined) Name() string { return q.Kind + "/" + q.ID }

// quarantine keeps a row out of the way. body is what the store has.
func (t *Town) quarantine(k rowKey, body []byte, why string) {
	t.bad = append(t.bad, Quarantined{string(k.kind), k.id, why})
	t.raw[k] = body
}

// unreadable reports whether the store has a row of this name that can't be read.
func (t *Town) unreadable(k rowKind, id string) bool {
	_, ok := t.raw[rowKey{k, id}]
	return ok
}

// setAside returns the row that keeps the bytes of one that is about to be
// written anew, under a name of its own.
func (t *Town) setAside(k rowKey) Row {
	body := t.raw[k]
	delete(t.raw, k)
	name := rowKey{kindQuarantine, string(k.kind) + "/" + k.id}
	for n := 2; t.raw[name] != nil; n++ {
		name.id = string(k.kind) + "/" + k.id + "/" + strconv.Itoa(n)
	}
	for i, q := range t.bad {
		if q.Kind == string(k.kind) && q.ID == k.id {
			t.bad[i] = Quarantined{string(name.kind), name.id, asideText}
		}
	}
	t.raw[name] = body
	return Row{Kind: string(name.kind), ID: name.id, Body: body}
}

const asideText = "it could not be read and was moved aside when the town needed a new one"

// dropRow deletes a quarantined row for good. Its bytes go to the ledger, as far
// as an entry has room for them.
func (t *Town) dropRow(now Time, in DropRow) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	for i, q := range t.bad {
		if q.Name() != in.Name {
			continue
		}
		k := rowKey{rowKind(q.Kind), q.ID}
		t.log(now, "row.dropped", in.Name, by, q.Error, "body", plain(string(t.raw[k]), 64<<10))
		delete(t.raw, k)
		t.bad = append(append([]Quarantined(nil), t.bad[:i]...), t.bad[i+1:]...)
		t.mark(k.kind, k.id)
		return nil
	}
	return errs.New(errs.NotFound, "no quarantined row %s", clip(in.Name, 100)).WithHint("gastown doctor --town %s shows those that exist", t.info.Name)
}

// unreadableBeads counts the quarantined beads of a rig, told by their prefix.
func (t *Town) unreadableBeads(r *Rig) int {
	n := 0
	for k := range t.raw {
		if k.kind == kindBead && strings.HasPrefix(k.id, r.Prefix+"-") {
			n++
		}
	}
	return n
}

// lastTime is the end of the times that a row may name: 2200-01-01. Later ones,
// and those before 1970, were never written by a clock.
const lastTime Time = 7_258_118_400_000

// maxCount bounds what counts up in a row, so that it can go on.
const maxCount = 1 << 53

// sane refuses times that no clock has shown.
func sane(times ...Time) error {
	for _, at := range times {
		if at < 0 || at > lastTime {
			return fmt.Errorf("it names the time %d, which no clock has shown", int64(at))
		}
	}
	return nil
}

// sober takes away times that no clock has shown, where nothing depends on them.
func sober(times ...*Time) {
	for _, at := range times {
		if sane(*at) != nil {
			*at = 0
		}
	}
}

func counts(what string, n int64) error {
	if n < 0 || n > maxCount {
		return fmt.Errorf("its %s is %d", what, n)
	}
	return nil
}

// times are all times of a bead.
func (b *Bead) times() []Time {
	out := []Time{b.CreatedAt, b.UpdatedAt, b.ClosedAt, b.NotBefore}
	if m := b.Merge; m != nil {
		out = append(out, m.Since, m.Deadline, m.CheckedAt)
	}
	if b.Proof != nil {
		out = append(out, b.Proof.At)
	}
	for i := range b.Runs {
		out = append(out, b.Runs[i].StartedAt, b.Runs[i].SpawnedAt, b.Runs[i].EndedAt)
	}
	for i := range b.Failures {
		out = append(out, b.Failures[i].At)
	}
	return out
}
