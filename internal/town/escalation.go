package town

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"gastown/internal/errs"
)

// Cause is why a person is needed.
type Cause string

// The causes of escalations. Each ends with its subject.
const (
	CauseFailed    Cause = "bead.failed"    // attempts used up, until the bead is reopened, closed or cancelled
	CauseEscalated Cause = "bead.escalated" // its agent asks a person, until the bead is reopened, closed or cancelled
	CauseStuck     Cause = "bead.stuck"     // no sign of life even after a restart, or no verdict within its time limit, until an agent gives one
	CauseUnsaved   Cause = "bead.unsaved"   // its run is not being saved, or slowly, until that works again or its agent has left
	CauseBreaker   Cause = "breaker.open"   // failed noticeFails times in a row, until it works again or a person resets it
	CauseMany      Cause = "many"           // more escalations than are kept one by one
)

// Escalation says that something needs a person. There is at most one per cause
// and subject that is open; it exists whether or not anybody can be told.
type Escalation struct {
	ID      string `json:"id"` // esc/<n>
	Cause   Cause  `json:"cause"`
	Subject string `json:"subject"` // a bead, the subject of a breaker, or the town
	Text    string `json:"text"`    // of the latest time
	Count   int    `json:"count"`   // how often it came up
	First   Time   `json:"first"`
	Last    Time   `json:"last"`
	Told    Time   `json:"told"` // when people were last told, or would have been
	Closed  Time   `json:"closed,omitempty"`
	How     string `json:"how,omitempty"`     // it was closed
	ByHand  bool   `json:"by_hand,omitempty"` // a person closed it: if it comes up again, that is news
	SeenBy  string `json:"seen_by,omitempty"` // who acknowledged it
	SeenAt  Time   `json:"seen_at,omitempty"`
}

// Open reports whether it still needs a person.
func (e *Escalation) Open() bool { return e.Closed == 0 }

const (
	// sameEscalation is how soon after its end an escalation that comes up again
	// counts as the same one.
	sameEscalation = time.Hour
	// toldAgain is how often at most people are told of one that keeps coming and
	// going by itself.
	toldAgain = day
	// maxOpen and maxClosed bound what is kept one by one.
	maxOpen   = 500
	maxClosed = 100
)

// escalate records that something needs a person, and tells people when that is
// news. It is the only function that opens an escalation. Nothing that it does
// can fail or repeat by itself, so escalations make no escalations.
func (t *Town) escalate(now Time, cause Cause, subject, text string) {
	e := t.latest(cause, subject)
	if e == nil && t.ix.openEscalations >= maxOpen {
		cause, subject, text = CauseMany, t.info.Name, "there are "+strconv.Itoa(maxOpen)+" escalations already; the last that came: "+subject+": "+text
		e = t.latest(cause, subject)
	}
	switch {
	case e == nil || !e.Open() && now.Sub(e.Closed) >= sameEscalation:
		t.info.EscalationSeq++
		e = &Escalation{ID: "esc/" + strconv.FormatInt(t.info.EscalationSeq, 10), Cause: cause, Subject: subject, First: now}
		t.mark(kindTown, t.info.ID)
		t.putEscalation(e)
		t.ix.openEscalations++
		t.log(now, "escalation.opened", e.ID, "", clip(text, 500), "cause", string(cause), "subject", subject)
	case !e.Open():
		quiet := !e.ByHand && now.Sub(e.Told) < toldAgain
		e.Closed, e.How, e.ByHand, e.SeenBy, e.SeenAt = 0, "", false, "", 0
		t.ix.openEscalations++
		t.log(now, "escalation.reopened", e.ID, "", clip(text, 500), "cause", string(cause), "subject", subject)
		if !quiet {
			e.Told = 0
		}
	}
	e.Count++
	e.Last, e.Text = now, clip(text, 1000)
	if e.Told == 0 {
		e.Told = now
		t.notify(now, string(cause), subject, text)
	}
	t.mark(kindEscalation, e.ID)
}

// latest returns the open escalation of a cause and subject, else the one that
// was closed last, else nil.
func (t *Town) latest(cause Cause, subject string) *Escalation {
	var best *Escalation
	for _, id := range t.ix.escalations[subject] {
		e := t.escalations[id]
		if e.Cause == cause && (best == nil || e.Open() || best.Closed != 0 && e.Closed > best.Closed) {
			best = e
		}
	}
	return best
}

// settled closes the escalations of a subject: all, or those of the given
// causes. by names the person who did it, "" for the rules.
func (t *Town) settled(now Time, subject, by, how string, causes ...Cause) {
	for _, id := range slices.Clone(t.ix.escalations[subject]) {
		if e := t.escalations[id]; e.Open() && (len(causes) == 0 || slices.Contains(causes, e.Cause)) {
			t.closeEscalation(e, now, by, how)
		}
	}
}

func (t *Town) closeEscalation(e *Escalation, now Time, by, how string) {
	e.Closed, e.How, e.ByHand = now, clip(how, 300), by != ""
	t.ix.openEscalations--
	t.mark(kindEscalation, e.ID)
	t.log(now, "escalation.closed", e.ID, by, e.How, "cause", string(e.Cause), "subject", e.Subject)
	t.forgetEscalations()
	if e.Cause != CauseMany && t.ix.openEscalations == maxOpen/2 {
		t.settled(now, t.info.Name, "", "there are fewer again", CauseMany)
	}
}

// forgetEscalations keeps the number of closed ones bounded: the oldest go.
func (t *Town) forgetEscalations() {
	if len(t.escalations)-t.ix.openEscalations <= maxClosed {
		return
	}
	var oldest *Escalation
	for _, e := range t.escalations {
		if !e.Open() && (oldest == nil || cmp.Or(cmp.Compare(e.Closed, oldest.Closed), cmp.Compare(e.First, oldest.First), cmp.Compare(e.ID, oldest.ID)) < 0) {
			oldest = e
		}
	}
	delete(t.escalations, oldest.ID)
	t.mark(kindEscalation, oldest.ID)
	ids := t.ix.escalations[oldest.Subject]
	ids = slices.DeleteFunc(ids, func(id string) bool { return id == oldest.ID })
	if t.ix.escalations[oldest.Subject] = ids; len(ids) == 0 {
		delete(t.ix.escalations, oldest.Subject)
	}
}

func (t *Town) putEscalation(e *Escalation) {
	t.escalations[e.ID] = e
	t.ix.escalations[e.Subject] = append(t.ix.escalations[e.Subject], e.ID)
}

// Escalations returns copies of what needs a person, the newest first; closed
// ones, too, when all is set.
func (t *Town) Escalations(all bool) []Escalation {
	out := sortedCopies(t.escalations, func(a, b Escalation) int {
		return cmp.Or(cmp.Compare(b.Last, a.Last), cmp.Compare(a.ID, b.ID))
	})
	if all {
		return out
	}
	return slices.DeleteFunc(out, func(e Escalation) bool { return !e.Open() })
}

// acknowledge notes that a person saw an escalation. It stays open until its
// subject is settled.
func (t *Town) acknowledge(now Time, in Acknowledge) error {
	by, err := person(in.By)
	if err != nil {
		return err
	}
	e := t.escalations[in.ID]
	if e == nil {
		return noEscalation(in.ID)
	}
	if !e.Open() || e.SeenAt != 0 {
		return nil
	}
	e.SeenBy, e.SeenAt = by, now
	t.mark(kindEscalation, e.ID)
	t.log(now, "escalation.seen", e.ID, by, "")
	return nil
}

func noEscalation(id string) error {
	return errs.New(errs.NotFound, "no escalation %s", clip(id, 60)).WithHint("gastown escalations shows those that exist")
}

// retryEscalation resets the subject of an escalation, which closes it.
func (t *Town) retryEscalation(now Time, by string, e *Escalation) error {
	if !e.Open() {
		return errs.New(errs.Conflict, "escalation %s is closed: %s", e.ID, e.How)
	}
	if e.Cause != CauseMany && (t.breakers[e.Subject] != nil || t.beads[e.Subject] != nil) {
		if err := t.retry(now, Retry{By: by, ID: e.Subject}); err != nil {
			return err
		}
	}
	if e.Open() { // its subject is gone, or was only pausing
		t.closeEscalation(e, now, by, "closed by "+by)
	}
	return nil
}
