package server

import (
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/store"
)

func TestATownThatCannotBeReadStillSaysWhy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "beta"}).want(201, nil)
	h, err := l.store.Find(t.Context(), "beta")
	if err != nil {
		t.Fatal(err)
	}
	h.Failing = "failed 3 times: its row is damaged"
	if _, err := l.store.Commit(t.Context(), store.Commit{Town: h.ID, Expect: h.Version, CommitID: "damage", Columns: h.Columns,
		Rows: []store.Row{{Kind: "town", ID: h.ID, Body: []byte("{damaged")}}}); err != nil {
		t.Fatal(err)
	}
	var why api.WhyTown
	l.call("GET", "/api/v1/towns/beta/why", nil).want(200, &why)
	if why.Failing != h.Failing || why.State != store.Asleep || !strings.Contains(why.Text, "can't be read") {
		t.Errorf("why says %+v", why)
	}
	l.call("GET", "/api/v1/towns/alpha/why", nil).want(200, &why)
	if got := l.scrape()["gastown_towns_failing"]; got != 1 {
		t.Errorf("%v towns fail, not the sleeping one", got)
	}
}
