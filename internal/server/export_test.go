package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/town"
)

// exportOf makes a town with some beads and returns its export.
func exportOf(t *testing.T, l *lab, name string, beads int) string {
	t.Helper()
	l.town(name)
	var last string
	for i := range beads {
		var b api.Bead
		in := api.CreateBead{Title: fmt.Sprintf("bead %d", i), Staged: true, Body: "do <it> & be done"}
		if last != "" {
			in.BlockedBy = []string{last}
		}
		l.call("POST", "/api/v1/towns/"+name+"/beads", in).want(201, &b)
		last = b.ID
	}
	l.call("POST", "/api/v1/beads/"+last+"/cancel", api.WithReason{Reason: "no need"}).want(200, nil)
	r := l.call("GET", "/api/v1/towns/"+name+"/export", nil).want(200, nil)
	if got := r.header.Get("Content-Type"); got != api.LinesType {
		t.Fatalf("content type %q", got)
	}
	return string(r.body)
}

func (l *lab) towns() []api.TownItem {
	l.t.Helper()
	var out api.List[api.TownItem]
	l.call("GET", "/api/v1/towns", nil).want(200, &out)
	return out.Items
}

func TestAnExportIsImportedOnAnotherServer(t *testing.T) {
	t.Parallel()
	from, to := newLab(t), newLab(t)
	const n = 1300 // some parts
	file := exportOf(t, from, "acme", n)
	var dry, done api.Imported
	to.call("POST", "/api/v1/towns/import?dry_run=true", file).want(200, &dry)
	if !dry.DryRun || dry.TownID != "" || dry.Beads != n || len(dry.Rigs) != 1 || len(to.towns()) != 0 {
		t.Fatalf("a dry run says %+v, and there are %d towns", dry, len(to.towns()))
	}
	to.call("POST", "/api/v1/towns/import", file, "Idempotency-Key", "k1").want(201, &done)
	if done.Town != "acme" || done.Mode != "paused" || done.Beads != n || done.Ledger < n {
		t.Fatalf("got %+v", done)
	}
	again := to.call("POST", "/api/v1/towns/import", file, "Idempotency-Key", "k1").want(201, nil)
	if again.header.Get(api.HeaderReplayed) != "true" || len(to.towns()) != 1 {
		t.Fatalf("a repeat was not answered from the record: %v", again.header)
	}
	var town api.Town
	to.call("GET", "/api/v1/towns/acme", nil).want(200, &town)
	if town.Mode != "paused" || town.Open != n-1 {
		t.Fatalf("got %+v", town)
	}
	to.call("POST", "/api/v1/towns/acme/rigs/web/clone", api.CloneRig{GitToken: "t0ken"}).want(200, nil)
	to.call("POST", "/api/v1/towns/acme/rigs/web/clone", api.CloneRig{}).problem(409, errs.Conflict)
	var rig api.Rig
	to.call("GET", "/api/v1/towns/acme/rigs/web", nil).want(200, &rig)
	if rig.State != "active" || rig.Tip != tip || !rig.HasCredential {
		t.Fatalf("got %+v", rig)
	}
	back := string(to.call("GET", "/api/v1/towns/acme/export", nil).want(200, nil).body)
	if a, b := beadLines(file), beadLines(back); a != b || a == "" {
		t.Fatal("the beads changed on their way")
	}
	var ledger api.List[api.LedgerEntry]
	to.call("GET", "/api/v1/towns/acme/ledger?kind=town.imported", nil).want(200, &ledger)
	if len(ledger.Items) != 1 || ledger.Items[0].Data["from"] != "acme" {
		t.Fatalf("got %+v", ledger.Items)
	}
	to.call("POST", "/api/v1/towns/acme/beads", api.CreateBead{Title: "more", Staged: true}).want(201, nil)
}

func beadLines(file string) string {
	var out strings.Builder
	for line := range strings.Lines(file) {
		if strings.HasPrefix(line, `{"type":"bead"`) {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestAnImportMeetsWhatIsThereAlready(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	file := exportOf(t, l, "acme", 2)
	p := l.call("POST", "/api/v1/towns/import", file).problem(409, errs.Conflict)
	if !strings.Contains(p.Hint, "--name") {
		t.Fatalf("got %+v", p)
	}
	p = l.call("POST", "/api/v1/towns/import?name=copy", file).problem(409, errs.Conflict)
	if !strings.Contains(p.Hint, "--rename-prefix web=") {
		t.Fatalf("got %+v", p)
	}
	l.call("POST", "/api/v1/towns/import?name=copy&rename_prefix=web", file).problem(422, errs.Invalid)
	l.call("POST", "/api/v1/towns/import?name=copy&rename_prefix=shop=x", file).problem(422, errs.Invalid)
	var done api.Imported
	l.call("POST", "/api/v1/towns/import?name=copy&rename_prefix=web=shop", file).want(201, &done)
	if done.Town != "copy" || done.Rigs[0].Prefix != "shop" {
		t.Fatalf("got %+v", done)
	}
	var beads api.List[api.Bead]
	l.call("GET", "/api/v1/towns/copy/beads", nil).want(200, &beads)
	if len(beads.Items) == 2 && len(beads.Items[0].BlockedBy) > 0 { // made within one millisecond
		slices.Reverse(beads.Items)
	}
	if len(beads.Items) != 2 || !strings.HasPrefix(beads.Items[0].ID, "shop-") || !slices.Equal(beads.Items[1].BlockedBy, []string{beads.Items[0].ID}) {
		t.Fatalf("got %+v", beads.Items)
	}
}

func TestABadImportChangesNothing(t *testing.T) {
	t.Parallel()
	from, to := newLab(t), newLab(t)
	file := exportOf(t, from, "acme", 3)
	for name, c := range map[string]struct{ file, wants string }{
		"a truncated file":   {file[:len(file)/2], "line "},
		"nothing":            {"", "empty"},
		"an unknown agent":   {strings.Replace(file, `"staged":true`, `"staged":true,"settings":{"agent":"nobody"}`, 1), "line 4"},
		"a URL with a token": {strings.Replace(file, "https://git.example", "https://a:s3cret@git.example", 1), "line 3"},
		"an endless line":    {file + strings.Repeat("x", maxImportLine+1), "longer than"},
		"not UTF-8":          {strings.Replace(file, "bead 0", "bead \xff", 1), "line "},
	} {
		p := to.call("POST", "/api/v1/towns/import", c.file).problem(422, errs.Invalid)
		if !strings.Contains(p.Detail, c.wants) || strings.Contains(p.Detail, "s3cret") {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if got := to.towns(); len(got) != 0 {
		t.Fatalf("there are towns %+v", got)
	}
	to.callAs("", "POST", "/api/v1/towns/import", file).problem(401, errs.Unauthorized)
	to.callAs("wrong-token-wrong-token", "POST", "/api/v1/towns/import", file).problem(401, errs.Unauthorized)
	to.call("GET", "/api/v1/towns/nobody/export", nil).problem(404, errs.NotFound)
}

// failingHall fails some inputs before they reach the hall.
type failingHall struct {
	*hall.Hall
	fail func(in town.Input) error
}

func (h *failingHall) Do(ctx context.Context, id string, in town.Input) error {
	if err := h.fail(in); err != nil {
		return err
	}
	return h.Hall.Do(ctx, id, in)
}

func TestAnImportThatIsInterruptedIsTakenUpByARepeat(t *testing.T) {
	t.Parallel()
	from := newLab(t)
	file := exportOf(t, from, "acme", 1200)
	var left atomic.Int64
	left.Store(2)
	to := newLab(t, func(c *Config) {
		c.Hall = &failingHall{c.Hall.(*hall.Hall), func(in town.Input) error {
			if _, part := in.(town.ImportPart); part && left.Add(-1) < 0 {
				return errs.New(errs.Unavailable, "the outcome is not known")
			}
			return nil
		}}
	})
	to.call("POST", "/api/v1/towns/import", file, "Idempotency-Key", "k").problem(503, errs.Unavailable)
	if got := to.towns(); len(got) != 1 || got[0].Status != "importing" {
		t.Fatalf("after the interruption there is %+v", got)
	}
	to.call("POST", "/api/v1/towns/acme/beads", api.CreateBead{Title: "x", Rig: "web"}).problem(409, errs.Conflict)
	p := to.call("POST", "/api/v1/towns/import", file, "Idempotency-Key", "another").problem(409, errs.Conflict)
	if !strings.Contains(p.Detail, "exists") {
		t.Fatalf("got %+v", p)
	}
	left.Store(1000)
	to.call("POST", "/api/v1/towns/import", file, "Idempotency-Key", "k").want(201, nil)
	back := string(to.call("GET", "/api/v1/towns/acme/export", nil).want(200, nil).body)
	if beadLines(file) != beadLines(back) {
		t.Fatal("the beads changed on their way")
	}
}

func TestAnImportThatFailsLeavesNoTown(t *testing.T) {
	t.Parallel()
	from := newLab(t)
	file := exportOf(t, from, "acme", 1200)
	var parts atomic.Int64
	to := newLab(t, func(c *Config) {
		c.Hall = &failingHall{c.Hall.(*hall.Hall), func(in town.Input) error {
			if _, part := in.(town.ImportPart); part && parts.Add(1) == 3 {
				return errs.New(errs.Conflict, "a prefix was taken meanwhile")
			}
			return nil
		}}
	})
	to.call("POST", "/api/v1/towns/import", file, "Idempotency-Key", "k").problem(409, errs.Conflict)
	if got := to.towns(); len(got) != 1 || got[0].Status != "deleting" {
		t.Fatalf("after the failure there is %+v", got)
	}
}

func TestARigThatCantBeClonedWaitsForAPerson(t *testing.T) {
	t.Parallel()
	from, to := newLab(t), newLab(t)
	file := exportOf(t, from, "acme", 1)
	var removed atomic.Int64
	there := true // an earlier try died after it had cloned
	to.hub.add = func(_ hub.ID, r hub.Remote) (string, error) {
		switch {
		case r.Secret == "":
			return "", errs.New(errs.Forbidden, "the upstream refuses")
		case there:
			return "", errs.New(errs.Conflict, "there is a repository already")
		}
		return tip2, nil
	}
	to.hub.remove = func(hub.ID) error { removed.Add(1); there = false; return nil }
	to.call("POST", "/api/v1/towns/import?start=true", file).want(201, nil)
	to.call("POST", "/api/v1/towns/acme/rigs/web/clone", api.CloneRig{}).problem(403, errs.Forbidden)
	var b api.Bead
	to.call("POST", "/api/v1/towns/acme/beads", api.CreateBead{Title: "waits"}).want(201, &b)
	if b.Why.Kind != "repository" || !strings.Contains(b.Why.Text, "gastown rig clone web --town acme") {
		t.Fatalf("it waits for %+v", b.Why)
	}
	to.call("POST", "/api/v1/towns/acme/rigs/web/clone", api.CloneRig{URL: "ftp://x", GitToken: "t"}).problem(422, errs.Invalid)
	to.call("POST", "/api/v1/towns/acme/rigs/web/clone", api.CloneRig{GitToken: "t"}).want(200, nil)
	if removed.Load() != 1 {
		t.Fatalf("%d leftovers were removed", removed.Load())
	}
	to.call("GET", "/api/v1/beads/"+b.ID, nil).want(200, &b)
	if b.Status != "in_progress" {
		t.Fatalf("it is %s: %+v", b.Status, b.Why)
	}
}
