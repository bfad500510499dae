package server

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/town"
)

func TestARepeatedCreationGetsTheFirstAnswer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	path := "/api/v1/towns/alpha/beads"
	in := api.CreateBead{Title: "once", Staged: true}
	first := l.call("POST", path, in, api.HeaderIdempotencyKey, "k1").want(201, nil)
	again := l.call("POST", path, in, api.HeaderIdempotencyKey, "k1").want(201, nil)
	if string(first.body) != string(again.body) || again.header.Get(api.HeaderReplayed) != "true" || first.header.Get(api.HeaderReplayed) != "" {
		t.Errorf("first %s, then %s (%v)", first.body, again.body, again.header)
	}
	in.Title = "another"
	l.call("POST", path, in, api.HeaderIdempotencyKey, "k1").problem(409, errs.Conflict)
	l.call("POST", path, in, api.HeaderIdempotencyKey, strings.Repeat("k", 300)).problem(422, errs.Invalid)
	var list api.List[api.Bead]
	l.call("GET", path, nil).want(200, &list)
	if len(list.Items) != 1 {
		t.Errorf("%d beads", len(list.Items))
	}
	town1 := l.call("POST", "/api/v1/towns", api.CreateTown{Name: "beta"}, api.HeaderIdempotencyKey, "k2").want(201, nil)
	town2 := l.call("POST", "/api/v1/towns", api.CreateTown{Name: "beta"}, api.HeaderIdempotencyKey, "k2").want(201, nil)
	if string(town1.body) != string(town2.body) {
		t.Errorf("first %s, then %s", town1.body, town2.body)
	}
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "gamma"}, api.HeaderIdempotencyKey, "k2").problem(409, errs.Conflict)
}

func TestManyClientsCreateBeadsAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 10 {
				l.staged("alpha", fmt.Sprintf("%d %d", i, j))
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	path, cursor := "/api/v1/towns/alpha/beads?limit=23", ""
	for pages := 0; ; pages++ {
		var list api.List[api.Bead]
		l.call("GET", path+cursor, nil).want(200, &list)
		for _, b := range list.Items {
			if seen[b.ID] || town.ValidBeadID(b.ID) != nil || b.Body != "" {
				t.Fatalf("bead %+v twice or odd", b)
			}
			seen[b.ID] = true
		}
		if list.Next == "" {
			if pages != 6 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		cursor = "&cursor=" + list.Next
	}
	if len(seen) != 160 {
		t.Errorf("%d beads", len(seen))
	}
}

func TestAStaleMemoryOfARigMisleadsNobody(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	l.staged("alpha", "remembered")
	p, ok := l.srv.places.get("alpha")
	if !ok || p.rigs["web"] != "web" {
		t.Fatalf("nothing remembered: %+v", p)
	}
	l.srv.places.put("alpha", place{id: "t-gone", rigs: map[string]string{"old": "old"}})
	l.staged("alpha", "after the change")
	if p, _ := l.srv.places.get("alpha"); p.rigs["web"] != "web" {
		t.Errorf("still %+v", p)
	}
}

func TestEditingNeedsTheLatestTag(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	b := l.staged("alpha", "first")
	path := "/api/v1/beads/" + b.ID
	r := l.call("GET", path, nil).want(200, nil)
	if r.header.Get("ETag") != b.ETag || b.ETag == "" {
		t.Fatalf("header %q, body %q", r.header.Get("ETag"), b.ETag)
	}
	title := "second"
	var edited api.Bead
	l.call("PATCH", path, api.EditBead{Title: &title}, "If-Match", b.ETag).want(200, &edited)
	if edited.Title != title || edited.ETag == b.ETag {
		t.Errorf("got %+v", edited)
	}
	title = "third"
	p := l.call("PATCH", path, api.EditBead{Title: &title}, "If-Match", b.ETag).problem(412, errs.Conflict)
	if !strings.Contains(p.Hint, edited.ETag) {
		t.Errorf("hint %q", p.Hint)
	}
	l.call("PATCH", path, api.EditBead{Title: &title}, "If-Match", "*").want(200, nil)
	l.call("PATCH", path, api.EditBead{Title: &title}).want(200, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	var now api.Bead
	l.call("GET", path, nil).want(200, &now)
	for i := range 8 {
		wg.Go(func() {
			title := fmt.Sprintf("racer %d", i)
			r := l.call("PATCH", path, api.EditBead{Title: &title}, "If-Match", now.ETag)
			mu.Lock()
			statuses[r.status]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if statuses[200] != 1 || statuses[412] != 7 {
		t.Errorf("got %v", statuses)
	}
}

func TestABeadGoesThroughItsVerbs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	a, b := l.staged("alpha", "a"), l.staged("alpha", "b")
	var got api.Bead
	l.call("POST", "/api/v1/beads/"+a.ID+"/blockers", api.Blocker{On: b.ID}).want(200, &got)
	if len(got.BlockedBy) != 1 {
		t.Errorf("blockers %v", got.BlockedBy)
	}
	l.call("DELETE", "/api/v1/beads/"+a.ID+"/blockers/"+b.ID, nil).want(200, &got)
	l.call("POST", "/api/v1/beads/"+a.ID+"/close", api.WithReason{Reason: "done by hand"}).want(200, &got)
	if got.Status != "closed" || got.Proof == nil || got.Proof.Kind != "person" || got.ClosedAt.IsZero() || got.Why == nil || got.Why.State != "terminal" {
		t.Errorf("got %+v", got)
	}
	got = api.Bead{}
	l.call("POST", "/api/v1/beads/"+a.ID+"/reopen", nil).want(200, &got)
	if got.Status != "open" {
		t.Errorf("got %+v", got)
	}
	l.call("POST", "/api/v1/beads/"+b.ID+"/cancel", api.WithReason{Reason: "no"}).want(200, nil)
	l.call("POST", "/api/v1/beads/"+b.ID+"/nudge", api.Nudge{Text: "hi"}).problem(409, errs.Conflict)
	l.call("GET", "/api/v1/beads/"+b.ID+"/diff", nil).problem(409, errs.Conflict)
	var why api.Reason
	l.call("GET", "/api/v1/beads/"+b.ID+"/why", nil).want(200, &why)
	if why.State != "terminal" {
		t.Errorf("why %+v", why)
	}
	l.call("GET", "/api/v1/towns/alpha/why/"+b.ID, nil).want(200, &why)
	var wt api.WhyTown
	l.call("GET", "/api/v1/towns/alpha/why", nil).want(200, &wt)
	if wt.Holds == nil || wt.Breakers == nil || wt.Text == "" {
		t.Errorf("why %+v", wt)
	}
	var list api.List[api.Bead]
	l.call("GET", "/api/v1/towns/alpha/beads?status=cancelled", nil).want(200, &list)
	if len(list.Items) != 1 || list.Items[0].ID != b.ID {
		t.Errorf("list %+v", list)
	}
	var use api.Usage
	l.call("GET", "/api/v1/towns/alpha/usage", nil).want(200, &use)
	if use.Cancelled != 1 || use.Open != 1 {
		t.Errorf("usage %+v", use)
	}
}

func TestTownsCanBePausedListedAndDeleted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, n := range []string{"c", "a", "b"} {
		l.call("POST", "/api/v1/towns", api.CreateTown{Name: n}).want(201, nil)
	}
	var page1, page2 api.List[api.TownItem]
	l.call("GET", "/api/v1/towns?limit=2", nil).want(200, &page1)
	l.call("GET", "/api/v1/towns?limit=2&cursor="+page1.Next, nil).want(200, &page2)
	if len(page1.Items) != 2 || len(page2.Items) != 1 || page2.Items[0].Name != "c" || page2.Next != "" {
		t.Errorf("pages %+v %+v", page1, page2)
	}
	var tn api.Town
	l.call("POST", "/api/v1/towns/a/pause", nil).want(200, &tn)
	if tn.Mode != "paused" {
		t.Errorf("mode %s", tn.Mode)
	}
	l.call("POST", "/api/v1/towns/a/resume", api.Resume{}).want(200, &tn)
	if tn.Mode != "active" {
		t.Errorf("mode %s", tn.Mode)
	}
	var set api.List[api.Setting]
	l.call("PATCH", "/api/v1/towns/a/settings", api.SetSettings{Set: map[string]string{"sandbox.grace": "5m"}}).want(200, &set)
	found := false
	for _, v := range set.Items {
		found = found || v.Key == "sandbox.grace" && v.Value == "5m" && v.From == "town" && v.Help != ""
	}
	if !found {
		t.Errorf("settings %+v", set)
	}
	l.call("DELETE", "/api/v1/towns/a", nil).want(202, nil)
	var srv api.Server
	l.call("GET", "/api/v1/server", nil).want(200, &srv)
	if srv.Version != "test" {
		t.Errorf("server %+v", srv)
	}
}

func TestARigIsAddedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	path := "/api/v1/towns/alpha/rigs"
	var removed []hub.ID
	clones := 0
	l.hub.remove = func(id hub.ID) error { removed = append(removed, id); return nil }
	l.hub.add = func(hub.ID, hub.Remote) (string, error) {
		clones++
		return "", errs.New(errs.Invalid, "upstream has no branch main").WithHint("there are: trunk")
	}
	in := api.AddRig{Name: "web", URL: "https://git.example/web.git", GitToken: "s3cr3t-token"}
	p := l.call("POST", path, in).problem(422, errs.Invalid)
	if p.Hint != "there are: trunk" {
		t.Errorf("hint %q", p.Hint)
	}
	if names, err := l.vault.List("git/"); err != nil || len(names) != 0 {
		t.Errorf("credentials %v, %v are left", names, err)
	}
	l.hub.add = func(_ hub.ID, r hub.Remote) (string, error) {
		clones++
		secret, err := l.vault.Get(r.Secret)
		if !strings.Contains(string(secret), "s3cr3t-token") {
			t.Errorf("the clone got credential %q, %v", secret, err)
		}
		return tip, nil
	}
	in.Gates = []api.Gate{{Name: "bad\x01name", Command: "true"}}
	l.call("POST", path, in).problem(422, errs.Invalid)
	if names, err := l.vault.List("git/"); err != nil || len(names) != 0 || len(removed) != 1 {
		t.Errorf("credentials %v, %v are left; removed %v", names, err, removed)
	}
	in.Gates = []api.Gate{{Name: "test", Command: "go test ./...", TimeoutMS: 60000}}
	first := l.call("POST", path, in, api.HeaderIdempotencyKey, "r1").want(201, nil)
	again := l.call("POST", path, in, api.HeaderIdempotencyKey, "r1").want(201, nil)
	if string(first.body) != string(again.body) || clones != 3 {
		t.Errorf("%d clones; first %s then %s", clones, first.body, again.body)
	}
	if strings.Contains(string(first.body), "s3cr3t") {
		t.Error("the answer shows the credential")
	}
	l.call("POST", path, in).problem(409, errs.Conflict)
	l.call("POST", path, api.AddRig{Name: "other", Prefix: "web", URL: "https://git.example/o.git"}).problem(409, errs.Conflict)
	l.call("POST", path, api.AddRig{Name: "other", URL: "https://user:pw@git.example/o.git"}).problem(422, errs.Invalid)
	l.call("POST", path, api.AddRig{Name: "other", URL: "--upload-pack=x"}).problem(422, errs.Invalid)
	l.call("POST", path, api.AddRig{Name: "other", Target: "-x", URL: "https://git.example/o.git"}).problem(422, errs.Invalid)
	if clones != 3 {
		t.Errorf("%d clones", clones)
	}
	var places api.List[api.RigPlace]
	l.call("GET", "/api/v1/rigs?name=web", nil).want(200, &places)
	if len(places.Items) != 1 || places.Items[0].Town != "alpha" {
		t.Errorf("places %+v", places)
	}
	var rig api.Rig
	l.call("PATCH", path+"/web", api.EditRig{Set: map[string]string{"polecats.per_rig": "2"}, Gates: &[]api.Gate{}}).want(200, &rig)
	if len(rig.Gates) != 0 || rig.Settings["polecats.per_rig"] != "2" || !rig.HasCredential {
		t.Errorf("rig %+v", rig)
	}
	if strings.Contains(l.log.String(), "s3cr3t-token") {
		t.Error("the credential is in the log")
	}
}

func TestAnAbandonedRepositoryIsReplaced(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	there := true
	l.hub.add = func(hub.ID, hub.Remote) (string, error) {
		if there {
			return "", errs.New(errs.Conflict, "the rig has a repository already")
		}
		return tip, nil
	}
	l.hub.remove = func(hub.ID) error { there = false; return nil }
	l.call("POST", "/api/v1/towns/alpha/rigs", api.AddRig{Name: "web", URL: "https://git.example/web.git"}).want(201, nil)
}

func TestAnAgentThatNeedsAModelGetsOne(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	path := "/api/v1/towns/alpha/rigs"
	add := func(name string, set map[string]string) reply {
		set["agent"] = "opencode"
		return l.call("POST", path, api.AddRig{Name: name, URL: "https://git.example/x.git", Settings: set})
	}
	p := add("one", map[string]string{}).problem(409, errs.Conflict)
	if !strings.Contains(p.Hint, "gastown provider add openai|anthropic|gemini|openai-compatible") {
		t.Errorf("hint %q", p.Hint)
	}
	l.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: "http://models.example/v1", Key: "k"}).
		problem(422, errs.Invalid)
	const key = "sk-very-secret-key"
	r := l.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: "https://models.example/v1/", Key: key}).want(201, nil)
	odd := l.call("POST", "/api/v1/providers", `{"kind":"openai-compatible","name":"house","base_url":7,"key":["`+key+`"],"x":"`+key+`"}`)
	odd.problem(422, errs.Invalid)
	broken := l.call("POST", "/api/v1/providers", `{"key":"`+key+`"`)
	broken.problem(400, errs.Invalid)
	add("one", map[string]string{}).problem(422, errs.Invalid) // it lists no model
	l.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: "https://models.example/v1", Key: key,
		Models: []string{"m1", "m2"}}).want(201, nil)
	var rig api.Rig
	add("one", map[string]string{}).want(201, &rig)
	if rig.Settings["provider"] != "house" || rig.Settings["model"] != "m1" {
		t.Errorf("settings %v", rig.Settings)
	}
	l.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "other", BaseURL: "http://127.0.0.1:1/v1"}).want(201, nil)
	if p := add("two", map[string]string{}).problem(422, errs.Invalid); !strings.Contains(p.Hint, "house, other") {
		t.Errorf("hint %q", p.Hint)
	}
	add("two", map[string]string{"provider": "other", "model": "m9"}).want(201, nil)
	list := l.call("GET", "/api/v1/providers", nil).want(200, nil)
	for _, text := range []string{string(r.body), string(list.body), string(odd.body), string(broken.body), l.log.String()} {
		if strings.Contains(text, key) {
			t.Errorf("the key shows in %s", text)
		}
	}
	l.call("DELETE", "/api/v1/providers/other", nil).want(204, nil)
	l.call("DELETE", "/api/v1/providers/other", nil).problem(404, errs.NotFound)
}

// event is one server-sent event.
type event struct{ name, id, data string }

// stream reads events of a path until the test ends.
func (l *lab) stream(path string, headers ...string) (events <-chan event, stop func()) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", l.http.URL+path, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		l.t.Fatalf("status %d, %v", res.StatusCode, res.Header)
	}
	out := make(chan event, 1000)
	go func() {
		defer close(out)
		defer res.Body.Close()
		var e event
		for lines := bufio.NewScanner(res.Body); lines.Scan(); {
			k, v, _ := strings.Cut(lines.Text(), ": ")
			switch k {
			case "event":
				e.name = v
			case "id":
				e.id = v
			case "data":
				e.data = v
			case "":
				if e.name != "" {
					out <- e
				}
				e = event{}
			}
		}
	}()
	return out, cancel
}

func next(t *testing.T, events <-chan event) event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatal("the stream ended")
		}
		return e
	case <-time.After(2 * time.Minute):
		t.Fatal("no event")
	}
	panic("unreachable")
}

func TestEventsResumeAfterTheLastOneSeen(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	live, stop := l.stream("/api/v1/towns/alpha/events")
	l.staged("alpha", "one")
	l.staged("alpha", "two")
	first, second := next(t, live), next(t, live)
	if first.name != api.EventLedger || !strings.Contains(first.data, "bead.created") || first.id >= second.id && len(first.id) >= len(second.id) {
		t.Errorf("got %+v, %+v", first, second)
	}
	stop()
	l.staged("alpha", "three")
	resumed, stop := l.stream("/api/v1/towns/alpha/events", "Last-Event-ID", first.id)
	if again := next(t, resumed); again != second {
		t.Errorf("got %+v, want %+v", again, second)
	}
	third := next(t, resumed)
	if third.id == second.id {
		t.Errorf("%+v twice", third)
	}
	stop()
	all, stop := l.stream("/api/v1/towns/alpha/events?after=0")
	defer stop()
	if e := next(t, all); e.id != "1" {
		t.Errorf("got %+v", e)
	}
	l.call("GET", "/api/v1/towns/alpha/events", nil, "Last-Event-ID", "x").problem(422, errs.Invalid)
}

func TestStreamsEndWithTheServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	live, stop := l.stream("/api/v1/towns/alpha/events")
	defer stop()
	l.staged("alpha", "one")
	next(t, live)
	l.srv.Stop()
	l.srv.Stop()
	for range live { // until it is closed
	}
}

func TestLogsEndWithTheBead(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	b, other := l.staged("alpha", "one"), l.staged("alpha", "other")
	live, stop := l.stream("/api/v1/beads/" + b.ID + "/logs?until=end")
	defer stop()
	if e := next(t, live); !strings.Contains(e.data, b.ID) || e.name != api.EventLedger {
		t.Errorf("got %+v", e)
	}
	l.call("POST", "/api/v1/beads/"+other.ID+"/close", nil).want(200, nil)
	l.call("POST", "/api/v1/beads/"+b.ID+"/close", nil).want(200, nil)
	var got []event
	for e := range live {
		got = append(got, e)
		if strings.Contains(e.data, other.ID) {
			t.Errorf("an event of another bead: %+v", e)
		}
	}
	if n := len(got); n < 2 || got[n-1].name != api.EventEnd || !strings.Contains(got[n-1].data, `"closed"`) {
		t.Errorf("got %+v", got)
	}
}
