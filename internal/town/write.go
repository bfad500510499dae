package town

import "time"

// writeAgain is how long an answer to whether the server may push to a rig counts.
// It is asked for only where work waits for it: nobody asks for an idle town.
const writeAgain = 10 * time.Minute

// writeDue reports whether upstream has to be asked, before more work is given out
// on a rig, whether the server may push to it: an agent's work that can't go
// anywhere is money burnt. After a refusal the breaker write/<rig> says when.
func (t *Town) writeDue(r *Rig, now Time) bool {
	return t.breakers["write/"+r.Name] != nil || now.Sub(r.WriteAt) > writeAgain || r.WriteAt > now.Add(maxClock)
}

// writeProbed takes upstream's answer.
func (t *Town) writeProbed(r *Rig, now Time, f Fetched) {
	switch {
	case f.Refused != "":
		r.WriteAt = 0
		t.failed(now, "write/"+r.Name, f.Refused)
	case f.Writable:
		r.WriteAt = now
		t.proved(now, "write/"+r.Name)
	}
}

// pushed notes that upstream took a push: no question tells more.
func (t *Town) pushed(r *Rig, now Time) {
	t.proved(now, "push/"+r.Name)
	t.writeProbed(r, now, Fetched{Writable: true})
	t.mark(kindRig, r.Name)
}

// pushing is the bead of a rig whose push is still to come, "" if there is none.
func (t *Town) pushing(r *Rig) string {
	if b := t.beads[t.ix.merging[r.Name]]; b != nil && b.Merge.State == MergeLanding {
		return b.ID
	}
	first := ""
	for id := range t.ix.waiting {
		if b := t.beads[id]; b.Rig == r.Name && !b.Merge.Pushed && (first == "" || id < first) {
			first = id
		}
	}
	return first
}
