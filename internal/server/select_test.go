package server

import (
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
)

func TestWhatIsSaidOfARoleIsCheckedAndShown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	set := func(key, value string) reply {
		return l.call("PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{key: value}})
	}
	if p := set("role.polecat.agent", "nobody").problem(422, errs.Invalid); !strings.Contains(p.Detail, `no agent preset "nobody"`) {
		t.Errorf("%+v", p)
	}
	set("role.polecat.provider", "nowhere").problem(422, errs.Invalid)
	set("role.mayor.agent", "scripted").problem(422, errs.Invalid)
	if got := set("role.polecat.agent", "scripted"); got.status >= 300 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	// A rig needs no provider where its polecats' agent needs none.
	l.call("POST", "/api/v1/towns/alpha/rigs", api.AddRig{Name: "web", URL: "https://git.example/x.git"}).want(201, nil)
	var b, ended api.Bead
	l.call("POST", "/api/v1/towns/alpha/beads", api.CreateBead{Rig: "web", Title: "x", Staged: true}).want(201, &b)
	want := api.Uses{Agent: api.Choice{Value: "scripted", From: "town", Key: "role.polecat.agent"},
		Provider: api.Choice{From: "default", Key: "provider"}, Model: api.Choice{From: "default", Key: "model"}}
	if b.Uses == nil || *b.Uses != want {
		t.Errorf("the bead says %+v", b.Uses)
	}
	var why api.Reason
	l.call("GET", "/api/v1/beads/"+b.ID+"/why", nil).want(200, &why)
	if why.Uses == nil || *why.Uses != want {
		t.Errorf("why says %+v", why.Uses)
	}
	l.call("POST", "/api/v1/beads/"+b.ID+"/cancel", nil).want(200, &ended)
	if ended.Uses != nil {
		t.Errorf("an ended bead says %+v", ended.Uses)
	}
}
