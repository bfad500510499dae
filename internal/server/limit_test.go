package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// limitLab has a run at work with a provider that answers with what reply holds:
// a status and the value of Retry-After.
func limitLab(t *testing.T) (l *lab, tn api.Town, token string, run town.DesiredRun, answer *atomic.Pointer[[2]string]) {
	t.Helper()
	answer = &atomic.Pointer[[2]string]{}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := answer.Load()
		status := http.StatusOK
		if _, err := fmt.Sscan(a[0], &status); err != nil {
			t.Error(err)
		}
		if a[1] != "" {
			w.Header().Set("Retry-After", a[1])
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(up.Close)
	l = newLab(t)
	l.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: up.URL + "/v1", Key: "sk-real"}).want(201, nil)
	tn = l.town("alpha")
	l.call("PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"provider": "house", "model": "m"}}).want(200, nil)
	l.bead("alpha", "work")
	_, token = l.box(tn)
	var d town.Desired
	l.callAs(token, "POST", wire.PathHello, wire.HelloRequest{Stream: "s1"}).want(200, &d)
	return l, tn, token, d.Runs[0], answer
}

// await waits until the town is as wanted.
func (l *lab) await(id string, ok func(*town.Town, town.Time) bool) {
	l.t.Helper()
	changed, cancel := l.hall.Watch(id)
	defer cancel()
	ctx, end := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer end()
	notYet := errors.New("not yet")
	for {
		err := l.hall.View(ctx, id, func(t *town.Town, now time.Time) error {
			if ok(t, town.At(now)) {
				return nil
			}
			return notYet
		})
		if err == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			l.t.Fatalf("the town never became as wanted: %v", err)
		}
	}
}

func limitOn(t *town.Town) (town.Breaker, bool) {
	for _, b := range t.Breakers() {
		if b.Subject == "provider/house" {
			return b, true
		}
	}
	return town.Breaker{}, false
}

func TestALimitOfAModelProviderReachesTheTown(t *testing.T) {
	t.Parallel()
	l, tn, token, run, answer := limitLab(t)
	ask := func(status, after string) reply {
		answer.Store(&[2]string{status, after})
		return l.callAs(token, "POST", wire.PathModel+"house/chat/completions", "{}", wire.HeaderRun, run.ID, wire.HeaderEpoch, fmt.Sprint(run.Epoch))
	}
	// A short one: the agent is told, and waits.
	if r := ask("429", "30").want(429, nil); r.header.Get("Retry-After") != "30" || r.header.Get(wire.HeaderWait) != "30000" {
		t.Errorf("headers %v", r.header)
	}
	l.await(tn.ID, func(t *town.Town, now town.Time) bool {
		b, ok := limitOn(t)
		r, _ := t.Run(run.ID)
		return ok && b.Limit && b.Until > now && b.Until <= now.Add(31*time.Second) && r.WaitUntil == b.Until && r.Stop == ""
	})
	if why := l.whyOf(tn.Name, run.Bead); !strings.Contains(why.Text, "provider/house limits its use") || why.Until.IsZero() {
		t.Errorf("why: %+v", why)
	}
	// A long one as a date: the run is stopped.
	ask("429", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)).want(429, nil)
	l.await(tn.ID, func(t *town.Town, now town.Time) bool {
		r, _ := t.Run(run.ID)
		b, _ := limitOn(t)
		return r.Stop != "" && b.Until.Sub(now) > 58*time.Minute && b.Until.Sub(now) <= time.Hour+time.Second
	})
	// A run that is being stopped, as over its budget, spends no more.
	ask("200", "").problem(409, errs.Conflict)
}

func TestAProviderThatAnswersAgainIsNoLongerLimited(t *testing.T) {
	t.Parallel()
	l, tn, token, run, answer := limitLab(t)
	ask := func(status, after string) {
		t.Helper()
		answer.Store(&[2]string{status, after})
		l.callAs(token, "POST", wire.PathModel+"house/chat/completions", "{}", wire.HeaderRun, run.ID, wire.HeaderEpoch, fmt.Sprint(run.Epoch))
	}
	ask("429", "0")
	l.await(tn.ID, func(t *town.Town, _ town.Time) bool { _, ok := limitOn(t); return ok })
	ask("200", "")
	l.await(tn.ID, func(t *town.Town, _ town.Time) bool { _, ok := limitOn(t); return !ok })
}

func (l *lab) whyOf(townName, bead string) api.Reason {
	l.t.Helper()
	var r api.Reason
	l.call("GET", "/api/v1/towns/"+townName+"/why/"+bead, nil).want(200, &r)
	return r
}

func TestSpendingAndBudgetsAreShown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, b, _, run := l.awake()
	if err := l.hall.Do(t.Context(), tn.ID, town.Metered{Run: run.ID, Epoch: 1, Meter: "gw", Seq: 1, Tokens: 40, Cost: 1_500_000}); err != nil {
		t.Fatal(err)
	}
	set := func(path string, kv map[string]string) {
		t.Helper()
		l.call("PATCH", path, api.SetSettings{Set: kv}).want(200, nil)
	}
	set("/api/v1/towns/"+tn.Name+"/settings", map[string]string{"budget.town.cost": "2", "budget.bead.tokens": "40"})
	var u api.Usage
	l.call("GET", "/api/v1/towns/"+tn.Name+"/usage", nil).want(200, &u)
	if len(u.Budgets) != 1 || u.Budgets[0].Setting != "budget.town.cost" || u.Budgets[0].Left != 500_000 || u.Budgets[0].Until.IsZero() ||
		len(u.Beads) != 1 || u.Beads[0].Bead != b.ID || u.Beads[0].Spent.CostMicros != 1_500_000 || len(u.Days) != 1 || u.Days[0].Tokens != 40 || u.Days[0].Runs != 1 {
		t.Errorf("usage %+v", u)
	}
	var got api.Bead
	l.call("GET", "/api/v1/beads/"+b.ID, nil).want(200, &got)
	if got.Spent.Tokens != 40 || len(got.Budgets) != 1 || got.Budgets[0].Left != 0 || len(got.Runs) != 1 || got.Runs[0].Spent.Tokens != 40 || got.Runs[0].Stop == "" {
		t.Errorf("bead %+v, budgets %+v, runs %+v", got.Spent, got.Budgets, got.Runs)
	}
	l.call("PATCH", "/api/v1/towns/"+tn.Name+"/settings", api.SetSettings{Set: map[string]string{"budget.town.cost": "1e9"}}).problem(422, "invalid")
}
