package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/git/hub"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

func TestTheTokenIsTheSameFromEveryServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	other, err := LoadSigner(l.vault)
	if err != nil {
		t.Fatal(err)
	}
	at := town.At(time.Now())
	a, b := l.signer.Token("t1", "o", 3, at), other.Token("t1", "o", 3, at)
	if a != b {
		t.Errorf("%s and %s", a, b)
	}
	c, err := other.verify(a, at.Time(), 0)
	if err != nil || c.Town != "t1" || c.Owner != "o" || c.Generation != 3 {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestForgedAndExpiredTokensAreRefused(t *testing.T) {
	t.Parallel()
	key := make([]byte, keyBytes)
	rand.Read(key)
	s, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := NewSigner(append(key[1:], 0))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	good := s.Token("t1", "o", 3, town.At(now))
	sign := func(m jwt.SigningMethod, k any, c claims) string {
		out, err := jwt.NewWithClaims(m, c).SignedString(k)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	full := func(scope string, exp time.Time) claims {
		return claims{Town: "t1", Owner: "o", Generation: 3, Scope: scope, RegisteredClaims: jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(exp)}}
	}
	later := now.Add(time.Hour)
	for name, token := range map[string]string{
		"nothing":          "",
		"of another key":   stranger.Token("t1", "o", 3, town.At(now)),
		"unsigned":         sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, full("sandbox", later)),
		"another method":   sign(jwt.SigningMethodHS512, key, full("sandbox", later)),
		"another scope":    sign(jwt.SigningMethodHS256, key, full("admin", later)),
		"without an end":   sign(jwt.SigningMethodHS256, key, claims{Town: "t1", Generation: 3, Scope: "sandbox"}),
		"expired":          s.Token("t1", "o", 3, town.At(now.Add(-tokenLife-time.Minute))),
		"with a bit moved": good[:len(good)-2] + map[bool]string{true: "B", false: "A"}[good[len(good)-2] == 'A'] + good[len(good)-1:],
	} {
		if _, err := s.verify(token, now, 0); !errs.Is(err, errs.Unauthorized) {
			t.Errorf("%s: %v", name, err)
		} else if token != "" && strings.Contains(err.Error(), token) {
			t.Errorf("%s: the error repeats the token", name)
		}
	}
	old := s.Token("t1", "o", 3, town.At(now.Add(-tokenLife-23*time.Hour)))
	if _, err := s.verify(old, now, tokenLeeway); err != nil {
		t.Errorf("expired for 23 hours: %v", err)
	}
	old = s.Token("t1", "o", 3, town.At(now.Add(-tokenLife-25*time.Hour)))
	if _, err := s.verify(old, now, tokenLeeway); err == nil {
		t.Error("expired for 25 hours, and accepted")
	}
}

// awake makes a town with a bead whose run wants a sandbox that said hello.
func (l *lab) awake() (tn api.Town, b api.Bead, token string, run town.DesiredRun) {
	l.t.Helper()
	tn = l.town("alpha")
	b = l.bead("alpha", "work")
	_, token = l.box(tn)
	var d town.Desired
	l.callAs(token, "POST", wire.PathHello, wire.HelloRequest{Stream: "s1", Version: "x"}).want(200, &d)
	if len(d.Runs) != 1 || d.Token != token {
		l.t.Fatalf("document %+v", d)
	}
	return tn, b, token, d.Runs[0]
}

func TestARunnerDoesABead(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, b, token, run := l.awake()
	var res wire.ReportsResponse
	reports := func(from int64) reply {
		return l.callAs(token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s1", From: from,
			Items: []town.Report{{Kind: town.ReportStarted, Run: run.ID, Epoch: run.Epoch, PID: 7}}})
	}
	reports(1).want(200, &res)
	if res.Next != 2 {
		t.Errorf("next %d", res.Next)
	}
	reports(1).want(409, &res)
	if res.Next != 2 {
		t.Errorf("next %d", res.Next)
	}
	l.callAs(token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s2", From: 1, Items: []town.Report{{}}}).problem(409, errs.Conflict)

	var prime town.Prime
	l.callAs(token, "GET", fmt.Sprintf("%s?run=%s&epoch=%d", wire.PathPrime, run.ID, run.Epoch), nil).want(200, &prime)
	if prime.Bead.ID != b.ID {
		t.Errorf("prime %+v", prime)
	}
	l.callAs(token, "GET", fmt.Sprintf("%s?run=%s&epoch=%d", wire.PathPrime, run.ID, run.Epoch+1), nil).problem(410, errs.Gone)
	var bead wire.BeadResponse
	l.callAs(token, "GET", wire.PathBead+"?id="+b.ID, nil).want(200, &bead)
	if bead.Status != town.BeadInProgress {
		t.Errorf("bead %+v", bead)
	}

	items := []wire.TranscriptItem{{Run: run.ID, Epoch: run.Epoch, Seq: 1, At: 1000, Kind: "message", Body: json.RawMessage(`{"text":"hi"}`)},
		{Run: run.ID, Epoch: run.Epoch, Seq: 2, At: 1 << 60, Kind: "message", Body: json.RawMessage(`{"text":"ho"}`)}}
	logs, stop := l.stream("/api/v1/beads/" + b.ID + "/logs")
	defer stop()
	l.callAs(token, "POST", wire.PathTranscripts, wire.TranscriptsRequest{Items: items}).want(200, nil)
	l.callAs(token, "POST", wire.PathTranscripts, wire.TranscriptsRequest{Items: items}).want(200, nil)
	var last event
	for e := next(t, logs); ; e = next(t, logs) {
		if e.name == api.EventTranscript {
			last = e
			break
		}
	}
	resumed, stop2 := l.stream("/api/v1/beads/"+b.ID+"/logs", "Last-Event-ID", last.id)
	defer stop2()
	if e := next(t, resumed); e.name != api.EventTranscript || !strings.Contains(e.data, `"ho"`) {
		t.Errorf("resumed with %+v", e)
	}
	var page api.List[api.TranscriptItem]
	l.call("GET", "/api/v1/beads/"+b.ID+"/transcript", nil).want(200, &page)
	if len(page.Items) != 2 || string(page.Items[0].Body) != `{"text":"hi"}` {
		t.Errorf("transcript %+v", page)
	}
	if at := page.Items[1].At; at.After(time.Now().Add(time.Hour)) {
		t.Errorf("an event is of %s: its retention would never end", at)
	}
	items[0].Run = "web-zzzzz.1"
	l.callAs(token, "POST", wire.PathTranscripts, wire.TranscriptsRequest{Items: items[:1]}).problem(422, errs.Invalid)
	items[0].Run, items[0].Body = run.ID, json.RawMessage(`"`+strings.Repeat("x", maxTranscript)+`"`)
	l.callAs(token, "POST", wire.PathTranscripts, wire.TranscriptsRequest{Items: items[:1]}).problem(422, errs.Invalid)

	verdict := func(call string) reply {
		return l.callAs(token, "POST", wire.PathVerdict, wire.VerdictRequest{Run: run.ID, Epoch: run.Epoch, CallID: call, Kind: town.VerdictDone, Text: "did it"})
	}
	l.hub.verify = func(id hub.ID, branch, base string) (hub.Evidence, error) {
		if id != (hub.ID{Town: tn.ID, Rig: "web"}) || branch != run.Branch || base != tip {
			t.Errorf("looked at %v %s %s", id, branch, base)
		}
		return hub.Evidence{}, nil
	}
	verdict("c1").problem(409, errs.Conflict)
	l.hub.verify = func(hub.ID, string, string) (hub.Evidence, error) {
		return hub.Evidence{Exists: true, Commit: tip2, DescendsFromBase: true, Changed: true, Files: 1}, nil
	}
	verdict("c2").want(200, nil)
	var got api.Bead
	l.call("GET", "/api/v1/beads/"+b.ID, nil).want(200, &got)
	if got.Status != "in_review" || got.Commit != tip2 || got.Merge == nil {
		t.Errorf("bead %+v", got)
	}
	l.hub.diff = func(base, commit string) ([]byte, bool, error) { return []byte("+\xff" + base + commit), true, nil }
	var diff api.Diff
	l.call("GET", "/api/v1/beads/"+b.ID+"/diff", nil).want(200, &diff)
	if diff.Diff != "+�"+tip+tip2 || !diff.Truncated {
		t.Errorf("diff %+v", diff)
	}
	if strings.Contains(l.log.String(), token) || strings.Contains(l.log.String(), testToken) {
		t.Error("a token is in the log")
	}
}

func TestUsageCountsTheStayThatGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, _, _, _ := l.awake()
	err := l.srv.view(t.Context(), tn.ID, func(tw *town.Town) error {
		now := tw.Sandbox().StartedAt.Add(time.Hour)
		got := usageView(tw, now)
		var days int64
		for _, d := range got.Days {
			days += d.AwakeMS
		}
		// Booked or not, each millisecond counts once.
		if got.AwakeMS != time.Hour.Milliseconds() || days != got.AwakeMS || got.Runs != 1 || got.Starts != 1 {
			t.Errorf("usage %+v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestALongPollWaitsForNews(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, _, token, _ := l.awake()
	var now town.Desired
	l.callAs(token, "GET", wire.PathDesired+"?after=-1", nil).want(200, &now)
	got := make(chan reply, 1)
	go func() { got <- l.callAs(token, "GET", fmt.Sprintf("%s?after=%d", wire.PathDesired, now.Rev), nil) }()
	l.bead("alpha", "more work")
	var d town.Desired
	(<-got).want(200, &d)
	if d.Rev <= now.Rev {
		t.Errorf("revision %d after %d", d.Rev, now.Rev)
	}
	go func() { got <- l.callAs(token, "GET", wire.PathDesired+"?after=1000000", nil) }()
	l.srv.Stop()
	(<-got).want(204, nil)
	l.callAs(token, "GET", wire.PathDesired+"?after=x", nil).problem(422, errs.Invalid)
}

func TestAnOldGenerationIsGone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, b, token, run := l.awake()
	if err := l.hall.Do(t.Context(), tn.ID, town.SandboxExited{Generation: 1, Reason: "killed"}); err != nil {
		t.Fatal(err)
	}
	calls := []reply{
		l.callAs(token, "POST", wire.PathHello, wire.HelloRequest{Stream: "s9"}),
		l.callAs(token, "GET", wire.PathDesired+"?after=0", nil),
		l.callAs(token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s1", From: 1, Items: []town.Report{{Kind: town.ReportHeartbeat}}}),
		l.callAs(token, "POST", wire.PathVerdict, wire.VerdictRequest{Run: run.ID, Epoch: run.Epoch, CallID: "c", Kind: town.VerdictDone}),
		l.callAs(token, "POST", wire.PathGates, wire.GatesRequest{Bead: b.ID, N: 1, Candidate: tip}),
		l.callAs(token, "GET", wire.PathPrime+"?run="+run.ID+"&epoch=1", nil),
		l.callAs(token, "GET", wire.PathBead+"?id="+b.ID, nil),
		l.callAs(token, "POST", wire.PathToken, "{}"),
		l.callAs(token, "POST", wire.PathModel+"house/chat/completions", "{}", wire.HeaderRun, run.ID, wire.HeaderEpoch, "1"),
	}
	for i, r := range calls {
		if r.status != 410 {
			t.Errorf("call %d: status %d: %s", i, r.status, r.body)
		}
	}
	// What was said and spent is still worth keeping.
	l.callAs(token, "POST", wire.PathTranscripts, wire.TranscriptsRequest{Items: []wire.TranscriptItem{
		{Run: run.ID, Epoch: run.Epoch, Seq: 1, At: 1, Kind: "message", Body: json.RawMessage(`{}`)}}}).want(200, nil)
	unknown := l.signer.Token("t-unknown", "t-unknown", 1, town.At(time.Now()))
	l.callAs(unknown, "GET", wire.PathDesired+"?after=0", nil).problem(410, errs.Gone)
}

func TestAnExpiredTokenIsExchangedOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, _, token, _ := l.awake()
	l.advance(tokenLife + time.Minute)
	l.callAs(token, "GET", wire.PathBead+"?id=x", nil).problem(401, errs.Unauthorized)
	var a, b wire.TokenResponse
	l.callAs(token, "POST", wire.PathToken, "{}").want(200, &a)
	l.callAs(token, "POST", wire.PathToken, "{}").want(200, &b)
	if a.Token == "" || a.Token != b.Token {
		t.Errorf("tokens %q and %q", a.Token, b.Token)
	}
	l.advance(tokenLeeway)
	l.callAs(token, "POST", wire.PathToken, "{}").problem(401, errs.Unauthorized)
}

func TestAModelIsReachedOnlyByARunWithItsProvider(t *testing.T) {
	t.Parallel()
	var seen atomic.Pointer[http.Header]
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := r.Header.Clone()
		seen.Store(&h)
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	defer up.Close()
	l := newLab(t)
	l.call("POST", "/api/v1/providers", api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: up.URL + "/v1", Key: "sk-real"}).want(201, nil)
	tn := l.town("alpha")
	l.call("PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"provider": "house", "model": "m"}}).want(200, nil)
	l.bead("alpha", "work")
	_, token := l.box(tn)
	var d town.Desired
	l.callAs(token, "POST", wire.PathHello, wire.HelloRequest{Stream: "s1"}).want(200, &d)
	run := d.Runs[0]
	ask := func(path string, headers ...string) reply {
		return l.callAs(token, "POST", wire.PathModel+path, "{}", headers...)
	}
	r := ask("house/chat/completions", wire.HeaderRun, run.ID, wire.HeaderEpoch, fmt.Sprint(run.Epoch))
	if r.want(200, nil); string(r.body) != "/v1/chat/completions" || seen.Load().Get("Authorization") != "Bearer sk-real" || seen.Load().Get(wire.HeaderRun) != "" {
		t.Errorf("%s, %v", r.body, seen.Load())
	}
	ask("house/chat/completions").problem(422, errs.Invalid)
	ask("house/responses", wire.HeaderRun, run.ID, wire.HeaderEpoch, "99").problem(410, errs.Gone)
	ask("other/responses", wire.HeaderRun, run.ID, wire.HeaderEpoch, fmt.Sprint(run.Epoch)).problem(403, errs.Forbidden)
	l.call("DELETE", "/api/v1/providers/house", nil).want(204, nil)
	if p := ask("house/responses", wire.HeaderRun, run.ID, wire.HeaderEpoch, fmt.Sprint(run.Epoch)).problem(424, errs.Conflict); p.Hint != gateway.AddHint {
		t.Errorf("hint %q", p.Hint)
	}
	if log := l.log.String(); strings.Contains(log, "sk-real") || strings.Contains(log, token) {
		t.Error("a secret is in the log")
	}
}

func TestWhatAModelsAnswerUsedIsCountedBeforeTheAgentSeesItsEnd(t *testing.T) {
	t.Parallel()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"model\":\"m-1\",\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":20}}\n\ndata: [DONE]\n\n")
	}))
	defer up.Close()
	l := newLab(t)
	p := api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: up.URL + "/v1", Prices: map[string]api.Price{"m-1": {Input: "1.25", Output: "much"}}}
	l.call("POST", "/api/v1/providers", p).problem(422, errs.Invalid)
	p.Prices["m-1"] = api.Price{Input: "1.25", Output: "10"}
	var made api.Provider
	l.call("POST", "/api/v1/providers", p).want(201, &made)
	if made.Prices["m-1"] != (api.Price{Input: "1.25", Output: "10.00", CacheRead: "1.25", CacheWrite: "1.25"}) {
		t.Errorf("prices %+v", made.Prices)
	}
	tn := l.town("alpha")
	l.call("PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"provider": "house", "model": "m"}}).want(200, nil)
	id := l.bead("alpha", "work").ID
	_, token := l.box(tn)
	var d town.Desired
	l.callAs(token, "POST", wire.PathHello, wire.HelloRequest{Stream: "s1"}).want(200, &d)
	run := d.Runs[0]
	for range 2 {
		l.callAs(token, "POST", wire.PathModel+"house/chat/completions", "{}", wire.HeaderRun, run.ID, wire.HeaderEpoch, fmt.Sprint(run.Epoch)).want(200, nil)
	}
	var b api.Bead
	l.call("GET", "/api/v1/beads/"+id, nil).want(200, &b)
	if b.Spent.Tokens != 2*1020 || b.Spent.CostMicros != 2*(1250+200) {
		t.Errorf("the bead spent %+v", b.Spent)
	}
}

func TestGitRulesFollowTheRun(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, _, token, run := l.awake()
	ask := func(token, rig, run string, epoch int64) (gateway.GitGrant, error) {
		r := httptest.NewRequest("GET", wire.PathGit+rig+".git/info/refs", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		if run != "" {
			r.Header.Set(wire.HeaderRun, run)
			r.Header.Set(wire.HeaderEpoch, fmt.Sprint(epoch))
		}
		return l.srv.GitAccess(r, rig)
	}
	g, err := ask(token, "web", run.ID, run.Epoch)
	if err != nil || g.ID != (hub.ID{Town: tn.ID, Rig: "web"}) || len(g.Push) != 2 || g.Push[0].Ref != "refs/heads/"+run.Branch || g.Push[0].Frozen != "" {
		t.Errorf("grant %+v, %v", g, err)
	}
	if want := "refs/gastown/wip/" + run.Bead + "/"; len(g.See) != 1 || g.See[0] != want {
		t.Errorf("sees %v", g.See)
	}
	if g, err = ask(token, "web", "", 0); err != nil || len(g.Push) != 0 {
		t.Errorf("without a run: %+v, %v", g, err)
	}
	if _, err = ask(token, "other", run.ID, run.Epoch); !errs.Is(err, errs.NotFound) {
		t.Errorf("another rig: %v", err)
	}
	if _, err = ask(token, "web", run.ID, run.Epoch+1); !errs.Is(err, errs.Gone) {
		t.Errorf("another epoch: %v", err)
	}
	if _, err = ask(testToken, "web", run.ID, run.Epoch); !errs.Is(err, errs.Unauthorized) {
		t.Errorf("the admin token: %v", err)
	}
}

func TestServingEndsInOrder(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	own, err := newLoopback() // the lab's own server goes on
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.srv.Serve(ctx, own) }()
	l.http.URL = "http://" + own.Addr().String()
	live, stop := l.stream("/api/v1/towns/alpha/events?after=0")
	defer stop()
	next(t, live)
	cancel()
	for range live { // until it is closed
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTheAdminTokenIsMadeOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, created, err := LoadOrCreateAdminToken(dir)
	if err != nil || !created || len(first) != 64 {
		t.Fatalf("%q %v %v", first, created, err)
	}
	again, created, err := LoadOrCreateAdminToken(dir)
	if err != nil || created || again != first {
		t.Fatalf("%q %v %v", again, created, err)
	}
	checkPrivate(t, dir)
}

func TestAPoisonedReportCostsOnlyItself(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, _, token, run := l.awake()
	body := fmt.Sprintf(`{"stream":"s1","from":1,"items":[{"kind":"run_started","pid":"seven"},{"kind":"heartbeat","reason":"%s"},[],null,{"kind":"run_started","run":%q,"epoch":%d,"pid":7}]}`,
		strings.Repeat("x", town.MaxReport), run.ID, run.Epoch)
	var res wire.ReportsResponse
	l.callAs(token, "POST", wire.PathReports, json.RawMessage(body)).want(200, &res)
	if res.Next != 6 {
		t.Errorf("next %d", res.Next)
	}
	err := l.hall.View(t.Context(), tn.ID, func(tw *town.Town, _ time.Time) error {
		list, n := tw.Poisoned()
		if n != 4 || list[0].N != 1 || !strings.Contains(list[1].What, "bytes") {
			t.Errorf("%d poisoned: %+v", n, list)
		}
		if r, ok := tw.Run(run.ID); !ok || r.State != town.RunRunning || r.PID != 7 {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestARefusedDoneIsCounted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, _, token, run := l.awake()
	l.callAs(token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s1", From: 1,
		Items: []town.Report{{Kind: town.ReportStarted, Run: run.ID, Epoch: run.Epoch, PID: 7}}}).want(200, nil)
	l.hub.verify = func(hub.ID, string, string) (hub.Evidence, error) { return hub.Evidence{}, nil }
	for i := range 3 {
		l.callAs(token, "POST", wire.PathVerdict, wire.VerdictRequest{Run: run.ID, Epoch: run.Epoch, CallID: fmt.Sprint(i), Kind: town.VerdictDone, Text: "did it"}).problem(409, errs.Conflict)
	}
	err := l.hall.View(t.Context(), tn.ID, func(tw *town.Town, _ time.Time) error {
		if r, ok := tw.Run(run.ID); !ok || r.Refused != 3 {
			t.Errorf("%+v", r)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEscalationsOverTheAPI(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, b, token, run := l.awake()
	l.callAs(token, "POST", wire.PathVerdict, wire.VerdictRequest{Run: run.ID, Epoch: run.Epoch, CallID: "e", Kind: town.VerdictEscalate, Text: "which one?"}).want(200, nil)
	var page api.List[api.Escalation]
	l.call("GET", "/api/v1/towns/alpha/escalations", nil).want(200, &page)
	if len(page.Items) != 1 || page.Items[0].Cause != "bead.escalated" || page.Items[0].Subject != b.ID || !page.Items[0].Open {
		t.Fatalf("%+v", page.Items)
	}
	l.call("POST", "/api/v1/towns/alpha/escalations/seen", api.Seen{ID: page.Items[0].ID}).want(204, nil)
	l.call("POST", "/api/v1/towns/alpha/escalations/seen", api.Seen{ID: "esc/7"}).problem(404, errs.NotFound)
	var why api.WhyTown
	l.call("GET", "/api/v1/towns/alpha/why", nil).want(200, &why)
	if len(why.Escalations) != 1 || why.Escalations[0].SeenBy == "" {
		t.Errorf("%+v", why.Escalations)
	}
	l.call("POST", "/api/v1/towns/alpha/retry", api.Retry{ID: page.Items[0].ID}).want(200, nil)
	l.call("GET", "/api/v1/towns/alpha/escalations", nil).want(200, &page)
	if len(page.Items) != 0 {
		t.Errorf("%+v", page.Items)
	}
	l.call("GET", "/api/v1/towns/alpha/escalations?all=true", nil).want(200, &page)
	if len(page.Items) != 1 || page.Items[0].How == "" {
		t.Errorf("%+v", page.Items)
	}
}

func FuzzReports(f *testing.F) {
	for _, seed := range []string{`{"stream":"s1","from":1,"items":[{"kind":"heartbeat","runs":[{"run":"web-aaaaa.1","epoch":1}]}]}`,
		`{"items":[null,[],"x",1,{"pid":"x"},{"kind":7}]}`, `{"items":{}}`, `{"from":1e99,"items":[]}`, "{\"items\":[\"\xff\"]}", `[`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := readReports(data)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		tw := town.New("t1", "alpha", "", 1)
		// Refused or taken: nothing may panic, and a stranger's words stay short.
		_ = tw.Handle(time.UnixMilli(2), town.Reports{Generation: 0, Stream: in.Stream, From: in.From, Items: in.Items})
		for _, r := range in.Items {
			if r.Kind == town.ReportLost && r.Run == "" && len(r.Reason) > town.MaxReport {
				t.Fatalf("a note of %d bytes", len(r.Reason))
			}
		}
	})
}

func TestAnAdminTokenThatOthersMayReadIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, _, err := LoadOrCreateAdminToken(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, adminTokenFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadOrCreateAdminToken(dir); !errs.Is(err, errs.Forbidden) {
		t.Errorf("a token that everybody reads was taken: %v", err)
	}
}
