package server

import (
	"slices"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/town"
)

func TestExposedValuesReachTheSandboxOfTheirRigAndNobodyElse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	l.call("POST", "/api/v1/towns/alpha/rigs", api.AddRig{Name: "web", URL: "https://git.example/web.git"}).want(201, nil)
	rig := "/api/v1/towns/alpha/rigs/web"
	var shown api.Rig
	got := l.call("PATCH", rig, api.EditRig{Expose: map[string]string{"NPM_TOKEN": "n-s3cr3t", "KEY": "k"}}).want(200, &shown)
	if !slices.Equal(shown.Exposed, []string{"KEY", "NPM_TOKEN"}) {
		t.Errorf("shown as exposed: %v", shown.Exposed)
	}
	ledger := l.call("GET", "/api/v1/towns/alpha/ledger", nil).want(200, nil)
	if strings.Contains(string(got.body)+string(ledger.body)+l.log.String(), "s3cr3t") || !strings.Contains(string(ledger.body), "NPM_TOKEN") {
		t.Errorf("the ledger: %s", ledger.body)
	}
	d := town.Desired{Runs: []town.DesiredRun{{Rig: "web", Expose: []string{"KEY", "NPM_TOKEN"}}, {Rig: "other", Expose: []string{"KEY"}}},
		Gates: []town.GateJob{{Rig: "web", Expose: []string{"NPM_TOKEN"}}}}
	l.srv.giveExposed(shown.TownID, &d)
	if !slices.Equal(d.Runs[0].Env, []string{"KEY=k", "NPM_TOKEN=n-s3cr3t"}) || d.Runs[1].Env != nil || !slices.Equal(d.Gates[0].Env, []string{"NPM_TOKEN=n-s3cr3t"}) {
		t.Errorf("given: %+v", d)
	}
	l.call("PATCH", rig, api.EditRig{Expose: map[string]string{"LD_PRELOAD": "x"}}).problem(422, errs.Invalid)
	l.call("PATCH", rig, api.EditRig{Expose: map[string]string{"K": "a\x00b"}}).problem(422, errs.Invalid)
	l.call("PATCH", rig, api.EditRig{Hide: []string{"NOTHING"}}).problem(404, errs.NotFound)
	l.call("PATCH", rig, api.EditRig{Hide: []string{"NPM_TOKEN"}}).want(200, nil)
	if names, err := l.vault.List("expose"); err != nil || len(names) != 1 || !strings.HasSuffix(names[0], "/web/KEY") {
		t.Errorf("left in the vault: %v, %v", names, err)
	}
}
