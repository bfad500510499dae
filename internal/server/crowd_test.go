package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

func TestASandboxCantTakeAllOfTheServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, _, token, run := l.awake()
	var now town.Desired
	l.callAs(token, "GET", wire.PathDesired+"?after=-1", nil).want(200, &now)

	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	answers := make(chan *http.Response, ofItsOwn+1)
	for range ofItsOwn + 1 {
		go func() {
			req, err := http.NewRequestWithContext(ctx, "GET", fmt.Sprintf("%s%s?after=%d", l.http.URL, wire.PathDesired, now.Rev), nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+token)
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				return // hung up
			}
			answers <- res
			_ = res.Body.Close()
		}()
	}
	// All polls wait for news but the one too many.
	if res := <-answers; res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") != "1" {
		t.Fatalf("the first answer has status %d, headers %v", res.StatusCode, res.Header)
	}
	p := l.callAs(token, "GET", wire.PathDesired+"?after=-1", nil).problem(429, errs.Overloaded)
	if !strings.Contains(p.Detail, "in progress") || p.Hint == "" {
		t.Errorf("the refusal says %+v", p)
	}
	// The sandbox's other calls, and other sandboxes, are not concerned.
	l.callAs(token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s1", From: 1,
		Items: []town.Report{{Kind: town.ReportStarted, Run: run.ID, Epoch: run.Epoch, PID: 7}}}).want(200, nil)
	var other api.Town
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "beta"}).want(201, &other)
	l.call("POST", "/api/v1/towns/beta/rigs", api.AddRig{Name: "cellar", URL: "https://git.example/cellar.git"}).want(201, nil)
	l.bead("beta", "work")
	_, theirs := l.box(other)
	l.callAs(theirs, "POST", wire.PathHello, wire.HelloRequest{Stream: "s1"}).want(200, nil)
	l.callAs(theirs, "GET", wire.PathDesired+"?after=-1", nil).want(200, nil)

	// Who hangs up makes room, as soon as the server notices.
	hangUp()
	for status := 429; status == 429; {
		r := l.callAs(token, "GET", wire.PathDesired+"?after=-1", nil)
		if status = r.status; status != 429 {
			r.want(200, nil)
		}
	}
}

func TestEveryRouteOfSandboxesIsBounded(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := 0
	for pattern := range l.srv.limits {
		if !strings.Contains(pattern, "/runner/") || pattern == wire.PathGit { // git has places of its own
			continue
		}
		n++
		if most := l.srv.most[pattern]; most < 1 || most > ofItsRuns && !strings.HasSuffix(pattern, wire.PathTunnel) || most > ofItsTunnels {
			t.Errorf("%s takes %d requests of a sandbox at a time", pattern, most)
		}
	}
	if n < 10 {
		t.Errorf("only %d routes were looked at", n)
	}
	// What can't be counted by sandbox is refused before it costs anything.
	l.callAs("", "GET", wire.PathDesired+"?after=-1", nil).problem(401, errs.Unauthorized)
	if len(l.srv.crowd.inside) != 0 {
		t.Errorf("strangers are counted: %v", l.srv.crowd.inside)
	}
}
