package town

import (
	"slices"
	"strings"
	"testing"

	"gastown/internal/errs"
)

// poisoned has one row of each kind that a working town depends on least.
func poisoned(t *testing.T) *driver {
	d, _ := atWork(t)
	d.bead("web-bbbbb")
	d.spawn("web-bbbbb")
	d.do(CancelBead{By: "ann", Bead: "web-bbbbb"})
	d.breaks("agent/other")
	return d
}

func (d *driver) wantBad(town *Town, name, why string) {
	d.t.Helper()
	if !slices.ContainsFunc(town.Quarantined(), func(q Quarantined) bool { return q.Name() == name && strings.Contains(q.Error, why) }) {
		d.t.Fatalf("quarantined %v, want %s because of %q", town.Quarantined(), name, why)
	}
}

func TestPoisonOfEveryKindIsQuarantinedAndTheRestGoesOn(t *testing.T) {
	const tooLate, long = 253_402_300_799_000, 1 << 60 // the end of 9999
	for name, c := range map[string]struct {
		row    string
		fields map[string]any
		why    string
	}{
		"a bead of the year 9999":           {"bead web-bbbbb", map[string]any{"created_at": tooLate}, "no clock"},
		"a bead closed before 1970":         {"bead web-bbbbb", map[string]any{"closed_at": -1}, "no clock"},
		"a failure at the end of time":      {"bead web-bbbbb", map[string]any{"failures": []any{map[string]any{"at": long, "class": "work", "charged": true, "reason": "x"}}}, "no clock"},
		"a bead of a later version":         {"bead web-bbbbb", map[string]any{"schema": 2}, "unknown field"},
		"a bead with an unknown proof":      {"bead web-bbbbb", map[string]any{"proof": map[string]any{"kind": "magic", "at": 1}}, "unknown proof"},
		"a bead that can't count on":        {"bead web-bbbbb", map[string]any{"epoch": long}, "epoch"},
		"a run with an unknown role":        {"run web-bbbbb.1", map[string]any{"role": "king"}, "unknown role"},
		"a run of the year 9999":            {"run web-bbbbb.1", map[string]any{"lease_until": tooLate}, "no clock"},
		"a breaker of the year 9999":        {"breaker agent/other", map[string]any{"until": tooLate}, "no clock"},
		"a breaker of a later version":      {"breaker agent/other", map[string]any{"mood": "bad"}, "unknown field"},
		"an escalation of an unknown cause": {"escalation esc/1", map[string]any{"cause": "boredom"}, "unknown cause"},
		"an escalation of the year 9999":    {"escalation esc/1", map[string]any{"first": tooLate}, "no clock"},
		"an agent with text for a number":   {"agent web/basalt", map[string]any{"closed": "many"}, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			d := poisoned(t)
			town := d.damaged(map[string]string{c.row: d.with(c.row, c.fields)})
			kind, id, _ := strings.Cut(c.row, " ")
			d.wantBad(town, kind+"/"+id, c.why)
			if b, ok := town.Bead("web-aaaaa"); !ok || b.Status != BeadInProgress {
				t.Fatalf("another bead suffers: %+v", b)
			}
			survives(t, town, d.now)
		})
	}
}

func TestTheBytesOfAPoisonedRowAreKeptWhateverHappens(t *testing.T) {
	d := poisoned(t)
	d.set(Settings{"infra.backoff_min": "1ms"})
	body := d.with("breaker agent/other", map[string]any{"mood": "bad"})
	agent := d.with("agent web/basalt", map[string]any{"mood": "good"})
	town := d.damaged(map[string]string{"breaker agent/other": body, "agent web/basalt": agent})
	for range 3 {
		town.failed(At(d.now), "agent/other", "broke anew")
	}
	if err := town.Handle(d.now, CreateBead{By: "ann", ID: "web-ccccc", Rig: "web", Title: "x"}); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range town.Changes() {
		got[r.Kind+" "+r.ID] = string(r.Body)
	}
	if got["quarantine breaker/agent/other"] != body {
		t.Errorf("the bytes are %q, want %q", got["quarantine breaker/agent/other"], body)
	}
	if !strings.Contains(got["breaker agent/other"], "broke anew") {
		t.Errorf("the new row is %q", got["breaker agent/other"])
	}
	if got["quarantine agent/web/basalt"] != agent {
		t.Errorf("the bytes of the agent are %q", got["quarantine agent/web/basalt"])
	}
	rows := map[string]string{}
	for k, v := range got {
		rows[k] = v
	}
	// Poisoned once more: the first bytes stay.
	second := strings.Replace(body, "bad", "worse", 1)
	rows["breaker agent/other"] = second
	town = d.damaged(rows)
	town.failed(At(d.now), "agent/other", "broke again")
	for _, r := range town.Changes() {
		if r.ID == "breaker/agent/other" {
			t.Errorf("the first bytes were overwritten with %q", r.Body)
		}
		got[r.Kind+" "+r.ID] = string(r.Body)
	}
	if got["quarantine breaker/agent/other/2"] != second {
		t.Errorf("the second bytes are %q", got["quarantine breaker/agent/other/2"])
	}
}

func TestWhatCantBeReadIsNotReplacedByAPerson(t *testing.T) {
	d := poisoned(t)
	town := d.damaged(map[string]string{"bead web-bbbbb": d.with("bead web-bbbbb", map[string]any{"schema": 2})})
	if err := town.Handle(d.now, CreateBead{By: "ann", ID: "web-bbbbb", Rig: "web", Title: "x"}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second bead of that id: %v", err)
	}
	if err := town.Handle(d.now, CancelBead{By: "ann", Bead: "web-aaaaa"}); err != nil {
		t.Fatal(err)
	}
	for bead, want := range map[string]string{"web-bbbbb": "quarantined", "web-ccccc": "no bead"} {
		if err := town.Handle(d.now, CancelBead{By: "ann", Bead: bead}); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", bead, err)
		}
	}
	if err := town.Handle(d.now, DropRig{By: "ann", Rig: "web"}); !errs.Is(err, errs.Conflict) {
		t.Errorf("the rig of an unreadable bead was removed: %v", err)
	}
	town = d.damaged(map[string]string{"rig web": d.with("rig web", map[string]any{"schema": 2})})
	if err := town.Handle(d.now, AddRig{By: "ann", Rig: Rig{Name: "web", Prefix: "api", URL: "/x", Target: "main"}}); !errs.Is(err, errs.Conflict) {
		t.Errorf("a second rig of that name: %v", err)
	}
}

func TestAQuarantinedRowIsDeletedOnlyByName(t *testing.T) {
	d := poisoned(t)
	body := d.with("bead web-bbbbb", map[string]any{"schema": 2})
	town := d.damaged(map[string]string{"bead web-bbbbb": body})
	for _, name := range []string{"bead/web-aaaaa", "web-bbbbb", "", "bead/"} {
		if err := town.Handle(d.now, DropRow{By: "ann", Name: name}); !errs.Is(err, errs.NotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
	town.Changes()
	town.Entries()
	if err := town.Handle(d.now, DropRow{By: "ann", Name: "bead/web-bbbbb"}); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(town.Changes(), func(r Row) bool { return r.Kind == "bead" && r.ID == "web-bbbbb" && r.Body == nil }) {
		t.Error("the row is still there")
	}
	if slices.ContainsFunc(town.Quarantined(), func(q Quarantined) bool { return q.Kind == "bead" }) {
		t.Errorf("%v", town.Quarantined())
	}
	if e := town.Entries(); len(e) == 0 || e[0].Data["body"] != body || e[0].Actor != "ann" {
		t.Errorf("the ledger says %+v", e)
	}
}

func TestTimesThatNoClockHasShownDontHideATown(t *testing.T) {
	d := poisoned(t)
	const long = 1 << 62
	town := d.damaged(map[string]string{
		"town tn1": d.with("town tn1", map[string]any{"created_at": long, "mode_at": -long, "sandbox.since": long, "awake_for": long}),
		"rig web":  d.with("rig web", map[string]any{"created_at": long, "fetched_at": -5}),
	})
	if len(town.Quarantined()) != 0 || town.Info().CreatedAt != 0 || town.Sandbox().Since != 0 {
		t.Fatalf("%v %+v", town.Quarantined(), town.Info())
	}
	survives(t, town, d.now)
}
