package town

import (
	"slices"
	"strings"
	"testing"

	"gastown/internal/errs"
)

func TestExposedValuesAreKnownByNameAndOnRecord(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(SetRig{By: "ann", Rig: "web", Expose: []string{"NPM_TOKEN", "A_KEY"}})
	d.do(SetRig{By: "ann", Rig: "web", Expose: []string{"NPM_TOKEN"}}) // another value
	if r, _ := d.town.Rig("web"); !slices.Equal(r.Expose, []string{"A_KEY", "NPM_TOKEN"}) {
		t.Fatalf("exposed are %v", r.Expose)
	}
	d.bead("web-aaaaa")
	d.hello()
	runs := d.town.Desired().Runs
	if len(runs) != 1 || !slices.Equal(runs[0].Expose, []string{"A_KEY", "NPM_TOKEN"}) || !runs[0].OwnProcess || runs[0].Env != nil {
		t.Errorf("the run is %+v", runs)
	}
	d.do(SetRig{By: "ann", Rig: "web", Hide: []string{"A_KEY"}})
	if r, _ := d.town.Rig("web"); !slices.Equal(r.Expose, []string{"NPM_TOKEN"}) {
		t.Errorf("exposed are %v", r.Expose)
	}
	var texts []string
	for _, e := range d.ledger {
		if strings.HasPrefix(e.Kind, "rig.exposed") || strings.HasPrefix(e.Kind, "rig.hidden") {
			texts = append(texts, e.Kind+" "+e.Text)
		}
	}
	if len(texts) != 3 || !strings.Contains(texts[0], "NPM_TOKEN") || !strings.Contains(texts[2], "no longer see A_KEY") {
		t.Errorf("the ledger says %q", texts)
	}
}

func TestNamesThatSteerTheSandboxCannotBeExposed(t *testing.T) {
	d := newDriver(t)
	d.rig()
	gates := []Gate{oneGate}
	for _, name := range []string{"", "PATH", "HOME", "LD_PRELOAD", "GIT_DIR", "GASTOWN_RUN", "a b", "A=B", "1A", "A\n", strings.Repeat("A", 101)} {
		if err := d.try(SetRig{By: "ann", Rig: "web", Expose: []string{"GOOD", name}, Gates: &gates}); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := d.try(SetRig{By: "ann", Rig: "web", Hide: []string{"NOTHING"}}); !errs.Is(err, errs.NotFound) {
		t.Errorf("hiding nothing: %v", err)
	}
	if r, _ := d.town.Rig("web"); len(r.Expose) != 0 || len(r.Gates) != 0 {
		t.Errorf("a refused change did something: %+v", r)
	}
}
