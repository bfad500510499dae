package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// blockLab has a run at work under a budget of its town, with a provider whose
// answers use so many tokens each, once gate lets them.
type blockLab struct {
	*lab
	tn     api.Town
	token  string
	run    town.DesiredRun
	asked  atomic.Int64
	inside atomic.Int64
	most   atomic.Int64 // requests at the provider at once
	gate   chan struct{}
}

func newBlockLab(t *testing.T, limit, each int64) *blockLab {
	t.Helper()
	f := &blockLab{}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		f.asked.Add(1)
		n := f.inside.Add(1)
		defer f.inside.Add(-1)
		for old := f.most.Load(); n > old && !f.most.CompareAndSwap(old, n); old = f.most.Load() {
		}
		if f.gate != nil {
			select {
			case <-f.gate:
			case <-r.Context().Done():
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"model":"m","usage":{"prompt_tokens":%d,"completion_tokens":0}}`, each)
	}))
	t.Cleanup(up.Close)
	f.lab = newLab(t)
	f.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: up.URL + "/v1", Key: "sk-real"}).want(201, nil)
	f.tn = f.town("alpha")
	f.call("PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"provider": "house", "model": "m",
		"budget.town.tokens": fmt.Sprint(limit)}}).want(200, nil)
	f.bead("alpha", "work")
	_, f.token = f.box(f.tn)
	var d town.Desired
	f.callAs(f.token, "POST", wire.PathHello, wire.HelloRequest{Stream: "s1"}).want(200, &d)
	f.run = d.Runs[0]
	return f
}

func (f *blockLab) ask() reply {
	return f.callAs(f.token, "POST", wire.PathModel+"house/chat/completions", "{}", wire.HeaderRun, f.run.ID, wire.HeaderEpoch, fmt.Sprint(f.run.Epoch))
}

func (f *blockLab) budget() api.Budget {
	f.t.Helper()
	var u api.Usage
	f.call("GET", "/api/v1/towns/alpha/usage", nil).want(200, &u)
	if len(u.Budgets) != 1 {
		f.t.Fatalf("budgets %+v", u.Budgets)
	}
	return u.Budgets[0]
}

func TestManyRequestsLiveOnOneBlock(t *testing.T) {
	t.Parallel()
	f := newBlockLab(t, 1_000_000, 15)
	commits := f.hall.Metrics().Commits.Load()
	for range 20 {
		f.ask().want(200, nil)
	}
	if n := f.hall.Metrics().Commits.Load() - commits; n > 3 { // the block, and what the town does by itself
		t.Errorf("%d commits for 20 requests", n)
	}
	if b := f.budget(); b.Spent != 0 || b.Granted != 125_000 || b.Left != 875_000 {
		t.Errorf("%+v", b)
	}
	f.callAs(f.token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s1", From: 1, Items: []town.Report{{Kind: town.ReportEnded, Run: f.run.ID, Epoch: f.run.Epoch,
		Outcome: town.OutcomeExited, Class: town.ClassWork, Reason: "over"}}}).want(200, nil)
	if b := f.budget(); b.Spent != 300 || b.Granted != 0 || b.Left != 1_000_000-300 {
		t.Errorf("after the run: %+v", b)
	}
}

func TestRequestsAtOnceDoNotPassTheBudget(t *testing.T) {
	t.Parallel()
	const limit, each = 20_000, 500
	f := newBlockLab(t, limit, each)
	var good atomic.Int64
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			switch r := f.ask(); r.status {
			case 200:
				good.Add(1)
			case 409, 410, 429: // the run is being stopped, or is
			default:
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
	all.Wait()
	f.srv.Settle()
	b := f.budget()
	if b.Spent != good.Load()*each || b.Spent < limit || b.Spent > limit+each || b.Granted != 0 {
		t.Errorf("%d answers of %d tokens: %+v", good.Load(), each, b)
	}
	f.ask().problem(409, "conflict")
}

func TestARequestWaitsForWhatOthersGiveBack(t *testing.T) {
	t.Parallel()
	f := newBlockLab(t, 100, 20)
	f.gate = make(chan struct{})
	answers := make(chan reply, 3)
	for range 3 {
		go func() { answers <- f.ask() }()
	}
	for range 3 {
		select {
		case f.gate <- struct{}{}: // each is alone at the provider
		case <-time.After(time.Minute):
			t.Fatal("no request goes on")
		}
		if r := <-answers; r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	f.srv.Settle()
	if b := f.budget(); b.Spent != 60 || f.most.Load() != 1 {
		t.Errorf("%+v, %d requests at once on a budget for less than one", b, f.most.Load())
	}
}

func TestAServerThatEndsSettles(t *testing.T) {
	t.Parallel()
	f := newBlockLab(t, 1000, 15)
	f.ask().want(200, nil)
	if b := f.budget(); b.Spent != 0 || b.Granted == 0 {
		t.Errorf("%+v", b)
	}
	f.srv.Settle()
	var u api.Usage
	f.call("GET", "/api/v1/towns/alpha/usage", nil).want(200, &u)
	if b := f.budget(); b.Spent != 15 || b.Granted != 0 || u.Days[0].Unpriced != 15 {
		t.Errorf("%+v, %+v", b, u.Days)
	}
	if len(f.srv.blocks.runs) != 0 {
		t.Errorf("%d accounts are left", len(f.srv.blocks.runs))
	}
}

func TestWithoutABudgetEachAnswerIsCountedAtOnce(t *testing.T) {
	t.Parallel()
	f := newBlockLab(t, 0, 15)
	f.ask().want(200, nil)
	var u api.Usage
	f.call("GET", "/api/v1/towns/alpha/usage", nil).want(200, &u)
	if len(u.Days) != 1 || u.Days[0].Tokens != 15 || u.Days[0].Unpriced != 15 || len(f.srv.blocks.runs) != 0 {
		t.Errorf("%+v", u.Days)
	}
}
