package town

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func findings(fs []Finding, s Severity) []string {
	out := []string{}
	for _, f := range fs {
		if f.Severity == s {
			out = append(out, f.Check+" "+f.Subject)
		}
	}
	return out
}

func TestDoctorFindsNothingInATownThatWorks(t *testing.T) {
	d, _ := atWork(t)
	if got := d.town.Doctor(d.now); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
}

func TestDoctorFindsWhatIsDamaged(t *testing.T) {
	hour := func(d *driver) int64 { return int64(At(d.now.Add(-time.Hour))) }
	for name, c := range map[string]struct {
		rows  func(d *driver) map[string]string
		after time.Duration
		want  string
		fixed bool // by a look of the town
	}{
		"a row of a later version": {func(d *driver) map[string]string {
			return map[string]string{"bead web-bbbbb": d.with("bead web-bbbbb", map[string]any{"schema": 2})}
		}, 0, "row.quarantined bead/web-bbbbb", false},
		"a bead in progress without a run": {func(d *driver) map[string]string {
			return map[string]string{"run web-aaaaa.1": ""}
		}, 0, "row.odd bead/web-aaaaa", true},
		"a run that no sandbox has": {func(d *driver) map[string]string {
			return map[string]string{"run web-aaaaa.1": d.with("run web-aaaaa.1", map[string]any{"generation": 7})}
		}, 0, "row.odd run/web-aaaaa.1", true},
		"a closed bead without a proof": {func(d *driver) map[string]string {
			return map[string]string{"bead web-bbbbb": d.with("bead web-bbbbb", map[string]any{"status": "closed"})}
		}, 0, "bead.state web-bbbbb", false},
		"an open bead with a proof": {func(d *driver) map[string]string {
			return map[string]string{"bead web-bbbbb": d.with("bead web-bbbbb", map[string]any{"proof": map[string]any{"kind": "person", "at": 1}})}
		}, 0, "bead.state web-bbbbb", false},
		"a bead that nobody took": {func(d *driver) map[string]string {
			return map[string]string{"bead web-bbbbb": d.with("bead web-bbbbb", map[string]any{"staged": false, "updated_at": hour(d)}),
				"rig web": d.with("rig web", map[string]any{"fetched_at": hour(d), "write_at": int64(At(d.now.Add(-5 * time.Minute))), "settings": map[string]any{"fetch.interval": "2h"}})}
		}, 0, "bead.left web-bbbbb", true},
		"a run whose lease is long over": {func(d *driver) map[string]string {
			return map[string]string{"run web-aaaaa.1": d.with("run web-aaaaa.1", map[string]any{"lease_until": hour(d)})}
		}, 0, "run.lease web-aaaaa.1", true},
		"a run that should have ended": {func(d *driver) map[string]string {
			return map[string]string{"run web-aaaaa.1": d.with("run web-aaaaa.1", map[string]any{"state": "draining", "stop": "x", "stop_at": hour(d)})}
		}, 0, "run.lease web-aaaaa.1", true},
		"a sandbox that nothing holds": {func(d *driver) map[string]string {
			return map[string]string{"run web-aaaaa.1": "", "bead web-aaaaa": d.with("bead web-aaaaa", map[string]any{"status": "cancelled"}),
				"town tn1": d.with("town tn1", map[string]any{"sandbox.since": hour(d), "sandbox.last_hold": hour(d)})}
		}, 0, "hold.dangling acme", true},
		"a hold of a person for ever": {func(d *driver) map[string]string {
			return map[string]string{"town tn1": d.with("town tn1", map[string]any{"awake_for": int64(At(d.now.Add(90 * day))), "awake_by": "ann"})}
		}, 0, "hold.dangling acme", true},
		"a hold that no sandbox hears of": {func(d *driver) map[string]string {
			return map[string]string{"run web-aaaaa.1": d.with("run web-aaaaa.1", map[string]any{"generation": 0}),
				"town tn1": d.with("town tn1", map[string]any{"sandbox.state": "asleep", "sandbox.since": hour(d)})}
		}, 0, "hold.unheard acme", true},
		"a breaker of nothing": {func(d *driver) map[string]string {
			return map[string]string{"breaker rig/old": `{"subject":"rig/old","fails":7,"until":1,"last":"x","since":1}`}
		}, 0, "breaker.orphan rig/old", true},
		"a claim of a dead server": {func(d *driver) map[string]string {
			return map[string]string{"claim merge/web-aaaaa/1/land": `{"key":"merge/web-aaaaa/1/land","id":1,"attempt":1,"by":"x","until":1}`}
		}, 0, "claim.dead merge/web-aaaaa/1/land", true},
		"an escalation of nothing": {func(d *driver) map[string]string {
			return map[string]string{"escalation esc/9": `{"id":"esc/9","cause":"bead.failed","subject":"web-aaaaa","text":"x","count":1,"first":1,"last":1,"told":1}`}
		}, 0, "escalation.orphan esc/9", true},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := atWork(t)
			d.bead("web-bbbbb", func(c *CreateBead) { c.Staged = true })
			town := d.damaged(c.rows(d))
			got := town.Doctor(d.now)
			if !slices.Contains(findings(got, SeverityProblem), c.want) {
				t.Fatalf("found %+v, want %s", got, c.want)
			}
			for _, f := range got {
				if f.What == "" || f.Means == "" || f.Fix == "" || f.Check+" "+f.Subject == c.want && f.Fixable != c.fixed {
					t.Errorf("%+v", f)
				}
			}
			if len(town.dirty) != 0 || len(town.Entries()) != 0 {
				t.Error("looking changed something")
			}
			if err := town.Handle(d.now, Mend{By: "ann"}); err != nil {
				t.Fatal(err)
			}
			if found := slices.Contains(findings(town.Doctor(d.now), SeverityProblem), c.want); found == c.fixed {
				t.Errorf("after mending: found %v", found)
			}
			survives(t, town, d.now)
		})
	}
}

func TestDoctorTellsWhatAPersonMayWantToKnow(t *testing.T) {
	d, r := atWork(t)
	d.report(Report{Kind: "telepathy"})
	d.breaks("agent/other")
	d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "e", Kind: VerdictEscalate, Text: "which one?"})
	d.town.notices[7] = &Notice{ID: 7, Subject: "x", Tries: 8, Dead: true}
	d.town.claims["rig/web/fetch"] = &Claim{Key: "rig/web/fetch", ID: 1, Attempt: lateRepeats, Until: At(d.now)}
	got := d.town.Doctor(d.now)
	want := []string{"breaker.open agent/other", "claim.repeats rig/web/fetch", "escalation.open esc/1", "escalation.open esc/2",
		"notice.dead notice/7", "report.poisoned acme"}
	if is := findings(got, SeverityInfo); !slices.Equal(is, want) || len(findings(got, SeverityProblem)) != 0 {
		t.Fatalf("found %q", is)
	}
}

func TestDoctorTellsOfABreakerThatPauses(t *testing.T) {
	d, _ := atWork(t)
	d.town.breakers["rig/web"] = &Breaker{Subject: "rig/web", Fails: 1, Until: At(d.now.Add(time.Minute)), Last: "no route"}
	if is := findings(d.town.Doctor(d.now), SeverityInfo); !slices.Equal(is, []string{"breaker.open rig/web"}) {
		t.Fatalf("found %q", is)
	}
	if is := findings(d.town.Doctor(d.now.Add(2*time.Minute)), SeverityInfo); slices.Contains(is, "breaker.open rig/web") {
		t.Fatal("a pause that is over is told of")
	}
}

func TestWhatWasFixedOutsideIsInTheLedger(t *testing.T) {
	d := newDriver(t)
	d.do(Mend{By: "ann", Did: []string{"removed a reference"}})
	if e := d.ledger[len(d.ledger)-1]; e.Kind != "doctor.fixed" || e.Actor != "ann" || !strings.Contains(e.Text, "reference") {
		t.Fatalf("%+v", e)
	}
}

func TestReferencesOfABeadAreWantedUntilItsEndIsCleanedUp(t *testing.T) {
	d, _ := atWork(t)
	d.bead("web-bbbbb", func(c *CreateBead) { c.Staged = true })
	d.bead("web-ccccc", func(c *CreateBead) { c.Staged = true })
	d.do(CancelBead{By: "ann", Bead: "web-ccccc"})
	town := d.damaged(map[string]string{"bead web-bbbbb": d.with("bead web-bbbbb", map[string]any{"schema": 2})})
	for bead, want := range map[string][2]bool{
		"web-aaaaa": {true, true}, "web-bbbbb": {true, true}, "web-ccccc": {true, false}, "web-zzzzz": {false, false},
	} {
		if known, wanted := town.Refs("web", bead); known != want[0] || wanted != want[1] {
			t.Errorf("%s: known %v, wanted %v", bead, known, wanted)
		}
	}
}
