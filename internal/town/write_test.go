package town

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// asks counts the questions to upstream that are due now, and returns the last.
func (d *driver) asks() (n int, write bool) {
	d.t.Helper()
	for _, e := range d.town.Effects(d.now) {
		if f, ok := e.Action.(FetchRig); ok {
			n, write = n+1, f.Write
		}
	}
	return n, write
}

func TestARigThatCannotBePushedReceivesNoWorkAndSaysSo(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.perform = false
	d.later(writeAgain + time.Second)
	d.bead("web-aaaaa")
	if n, write := d.asks(); n != 1 || !write {
		t.Fatalf("%d questions, for write %v, before work begins", n, write)
	}
	d.wantWhy("web-aaaaa", Waiting, waitFetch)
	d.answer("rig/web/fetch", Fetched{Tip: commitName(0), Refused: "the server can read, but not push (give a token that may write)"})
	why := d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	if why.Subject != "write/web" || why.Until <= At(d.now) || !strings.Contains(why.Text, "may write") || !strings.Contains(why.Text, "gastown retry write/web") {
		t.Errorf("why: %+v", why)
	}
	d.wantSandbox(SandboxAsleep)
	if got := findings(d.town.Doctor(d.now), SeverityInfo); !slices.Contains(got, "breaker.open write/web") || len(findings(d.town.Doctor(d.now), SeverityProblem)) != 0 {
		t.Errorf("an examination says %v", got)
	}
	if n, _ := d.asks(); n != 0 {
		t.Error("upstream is asked again at once")
	}
	if next, ok := d.town.NextWake(d.now); !ok || At(next) != why.Until {
		t.Errorf("it is looked at next at %v, want %v", next, why.Until)
	}
	d.later(why.Until.Time().Sub(d.now))
	d.wantSandbox(SandboxAsleep)
	d.answer("rig/web/fetch", Fetched{Tip: commitName(0), Refused: "still not"})
	again := d.wantWhy("web-aaaaa", Waiting, waitBreaker)
	if again.Until.Sub(At(d.now)) < why.Until.Sub(At(epoch0.Add(writeAgain+time.Second))) {
		t.Error("the second pause is not longer than the first")
	}
	d.do(Retry{By: "ann", ID: "write/web"})
	d.answer("rig/web/fetch", Fetched{Tip: commitName(0), Writable: true})
	d.wantBead("web-aaaaa", BeadInProgress)
	if len(d.town.Breakers()) != 0 {
		t.Errorf("breakers are left: %+v", d.town.Breakers())
	}
}

func TestNobodyAsksUpstreamForATownThatHasNothingToDo(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
	d.perform = false
	d.do(SetRig{By: "ann", Rig: "web", Access: "credential replaced (token)"})
	for range 50 {
		d.later(time.Hour)
		if n, _ := d.asks(); n != 0 {
			t.Fatal("upstream is asked")
		}
		if next, ok := d.town.NextWake(d.now); ok {
			t.Fatalf("an idle town is looked at again at %v", next)
		}
	}
	d.wantSandbox(SandboxAsleep)
}

func TestAnotherCredentialIsTriedAtOnceAndAnAnswerForTheOldOneDoesNotCount(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.perform = false
	d.later(writeAgain + time.Second)
	d.bead("web-aaaaa")
	d.answer("rig/web/fetch", Fetched{Tip: commitName(0), Refused: "no"})
	name := "git/tn1/web"
	d.do(SetRig{By: "ann", Rig: "web", Access: "credential replaced (token)", Secret: &name})
	if r, _ := d.town.Rig("web"); r.Secret != name || len(d.town.Breakers()) != 0 {
		t.Errorf("secret %q, breakers %+v", r.Secret, d.town.Breakers())
	}
	old := d.claim("rig/web/fetch")
	d.do(SetRig{By: "ann", Rig: "web", Access: "credential replaced (ssh-key)", Secret: &name})
	d.do(EffectDone{Key: old.Key, ID: old.ID, Result: Fetched{Tip: commitName(0), Writable: true}})
	d.wantWhy("web-aaaaa", Waiting, waitFetch)
	d.answer("rig/web/fetch", Fetched{Tip: commitName(0), Writable: true})
	d.wantBead("web-aaaaa", BeadInProgress)
	texts := []string{}
	for _, e := range d.ledger {
		if e.Kind == "rig.set" {
			texts = append(texts, e.Text)
		}
	}
	if !slices.Contains(texts, "credential replaced (ssh-key)") {
		t.Errorf("the ledger says %q", texts)
	}
}

func TestAPushThatIsRefusedKeepsMoreWorkFromStarting(t *testing.T) {
	d := reviewed(t, nil)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	land := d.claim("merge/web-aaaaa/1/land")
	d.do(EffectDone{Key: land.Key, ID: land.ID, Err: "upstream refused the push: protected branch"})
	d.bead("web-bbbbb")
	why := d.wantWhy("web-bbbbb", Waiting, waitBreaker)
	if why.Subject != "push/web" {
		t.Errorf("it waits for %s", why.Subject)
	}
	d.later(why.Until.Time().Sub(d.now))
	d.wantBead("web-bbbbb", BeadOpen) // the push that failed is tried first
	d.answer("merge/web-aaaaa/1/land", Landed{Tip: commitName(8)})
	d.wantBead("web-aaaaa", BeadClosed)
	if n, _ := d.asks(); n != 0 {
		t.Error("upstream is asked although it just took a push")
	}
	d.wantBead("web-bbbbb", BeadInProgress)
}
