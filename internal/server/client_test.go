package server

import (
	"context"
	"fmt"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// The client and the server agree on paths, parameters and pages.
func TestTheClientSpeaksWithTheServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := client.New(client.Options{URL: l.http.URL, Token: testToken, User: "Ada"})
	if err != nil {
		t.Fatal(err)
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("ready", c.Ready(ctx))
	_, err = c.CreateTown(ctx, api.CreateTown{Name: "alpha"})
	must("create a town", err)
	rig, err := c.AddRig(ctx, "alpha", api.AddRig{Name: "web", URL: "https://git.example/web.git", Gates: []api.Gate{{Name: "test", Command: "true"}}})
	if must("add a rig", err); rig.Tip != tip || len(rig.Gates) != 1 {
		t.Errorf("rig %+v", rig)
	}
	var ids []string
	for i := range 7 {
		b, err := c.CreateBead(ctx, "alpha", api.CreateBead{Rig: "web", Title: fmt.Sprint("bead ", i), Staged: true})
		must("create a bead", err)
		ids = append(ids, b.ID)
	}
	for _, limit := range []int{0, 3} {
		list, err := c.Beads(ctx, "alpha", client.BeadQuery{Rig: "web", Limit: limit})
		if must("list beads", err); limit == 0 && len(list) != 7 || limit > 0 && len(list) != limit {
			t.Errorf("limit %d: %d beads", limit, len(list))
		}
	}
	all, err := c.Ledger(ctx, "alpha", client.LedgerQuery{})
	if must("ledger", err); len(all) < 9 || all[len(all)-1].Actor != "Ada" {
		t.Errorf("ledger %+v", all)
	}
	newest, err := c.Ledger(ctx, "alpha", client.LedgerQuery{Desc: true, Limit: 2})
	if must("ledger", err); len(newest) != 2 || newest[0].Seq != all[len(all)-1].Seq {
		t.Errorf("newest %+v", newest)
	}
	must("close", c.CloseBead(ctx, ids[0], "by hand"))
	n := 0
	must("logs", c.Logs(ctx, ids[0], func(client.LogLine) error { n++; return nil }))
	if n < 2 {
		t.Errorf("%d lines", n)
	}
	b, err := c.Bead(ctx, ids[1])
	must("show", err)
	title := "new"
	_, err = c.EditBead(ctx, ids[1], b.ETag, api.EditBead{Title: &title})
	must("edit", err)
	if _, err = c.EditBead(ctx, ids[1], b.ETag, api.EditBead{Title: &title}); !errs.Is(err, errs.Conflict) {
		t.Errorf("an edit of an old bead: %v", err)
	}
	must("block", c.AddBlocker(ctx, ids[1], ids[2]))
	must("unblock", c.RemoveBlocker(ctx, ids[1], ids[2]))
	must("pause", c.Pause(ctx, "alpha", true))
	must("resume", c.Resume(ctx, "alpha", 0))
	places, err := c.FindRig(ctx, "web")
	if must("find", err); len(places) != 1 {
		t.Errorf("places %+v", places)
	}
	_, err = c.WhyTown(ctx, "alpha")
	must("why", err)
	_, err = c.WhyBead(ctx, ids[1])
	must("why", err)
	for what, call := range map[string]func() error{
		"settings": func() error { _, err := c.TownSettings(ctx, "alpha"); return err },
		"of a rig": func() error { _, err := c.RigSettings(ctx, "alpha", "web"); return err },
		"runs":     func() error { _, err := c.Runs(ctx, "alpha"); return err },
		"agents":   func() error { _, err := c.Agents(ctx, "alpha"); return err },
		"past":     func() error { _, err := c.BeadRuns(ctx, ids[0]); return err },
		"said":     func() error { _, err := c.Transcript(ctx, ids[0], 0, 0); return err },
		"usage":    func() error { _, err := c.Usage(ctx, "alpha"); return err },
		"server":   func() error { _, err := c.Server(ctx); return err },
		"towns":    func() error { _, err := c.Towns(ctx); return err },
	} {
		must(what, call())
	}
	must("remove the rig", c.RemoveRig(ctx, "alpha", "web", true))
	must("delete the town", c.DeleteTown(ctx, "alpha"))
}
