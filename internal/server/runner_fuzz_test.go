package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/runner/wire"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
	"gastown/internal/vault"
)

// runnerWorld is a server in memory whose towns strangers' sandboxes talk to.
type runnerWorld struct {
	srv    *Server
	hall   *hall.Hall
	store  *storetest.Memory
	signer *Signer
	boxes  chan town.StartSandbox
	n      int
}

func newRunnerWorld(f *testing.F) *runnerWorld {
	f.Helper()
	w := &runnerWorld{store: storetest.NewMemory(), boxes: make(chan town.StartSandbox, 16)}
	v, err := vault.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	if w.signer, err = LoadSigner(v); err != nil {
		f.Fatal(err)
	}
	presets, err := agent.LoadPresets("")
	if err != nil {
		f.Fatal(err)
	}
	w.hall = hall.New(hall.Config{Store: w.store, Perform: &performer{w.boxes}, Boot: "boot", Server: town.Settings{"agent": "scripted"}})
	repos := &fakeHub{verify: func(hub.ID, string, string) (hub.Evidence, error) {
		return hub.Evidence{Commit: tip2, Exists: true, DescendsFromBase: true, Changed: true}, nil
	}}
	w.srv, err = New(Config{Hall: w.hall, Store: w.store, Hub: repos, Secrets: v, Signer: w.signer, Presets: presets, AdminToken: testToken})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		w.srv.Stop()
		w.hall.Stop(ctx)
		if err := v.Close(); err != nil {
			f.Error(err)
		}
	})
	return w
}

// awake makes a town whose sandbox has said hello and works on two beads.
func (w *runnerWorld) awake(t *testing.T) (id, token string) {
	t.Helper()
	w.n++
	name := fmt.Sprintf("t%d", w.n)
	id, err := w.hall.CreateTown(t.Context(), name, "", nil, "ann", nil)
	if err != nil {
		t.Fatal(err)
	}
	do := func(in town.Input) {
		t.Helper()
		if err := w.hall.Do(t.Context(), id, in); err != nil {
			t.Fatalf("%T: %v", in, err)
		}
	}
	do(town.AddRig{By: "ann", Rig: town.Rig{Name: "web", Prefix: "web", URL: "/srv/web.git", Target: "main", Tip: tip, Gates: []town.Gate{{Name: "test", Command: "true"}}}})
	for _, bead := range []string{"web-aaaaa", "web-bbbbb"} {
		do(town.CreateBead{By: "ann", ID: bead, Rig: "web", Title: bead, Priority: 2})
	}
	box := <-w.boxes
	token = w.signer.Token(id, id, box.Generation, box.TokenAt)
	if code, body := w.post(t, token, wire.PathHello, []byte(`{"stream":"s1"}`)); code != 200 {
		t.Fatalf("hello: %d %s", code, body)
	}
	return id, token
}

func (w *runnerWorld) post(t *testing.T, token, path string, body []byte) (int, []byte) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), "POST", path, bytes.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	out := httptest.NewRecorder()
	w.srv.Handler().ServeHTTP(out, r)
	return out.Code, out.Body.Bytes()
}

// whole checks that a town can be loaded from its rows, with nothing in
// quarantine, and goes on.
func (w *runnerWorld) whole(t *testing.T, id string) {
	t.Helper()
	_, stored, err := w.store.Load(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	rows := make([]town.Row, len(stored))
	for i, r := range stored {
		rows[i] = town.Row{Kind: r.Kind, ID: r.ID, Body: r.Body}
	}
	c, err := town.Decode(id, rows, nil)
	if err != nil || len(c.Quarantined()) > 0 {
		t.Fatalf("its rows can't be read: %v %+v", err, c.Quarantined())
	}
	for _, after := range []time.Duration{0, time.Minute, 25 * time.Hour} {
		now := time.Now().Add(after)
		if err := c.Handle(now, town.Tick{}); err != nil {
			t.Fatal(err)
		}
		for _, b := range c.Beads() {
			if _, err := c.Why(now, b.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// FuzzRunnerBodies sends bodies of strangers to what runners call, as they are
// and as the items of reports that are next: never a failure of the server, and
// the town is whole afterwards.
func FuzzRunnerBodies(f *testing.F) {
	paths := []string{wire.PathReports, wire.PathVerdict, wire.PathGates, wire.PathTranscripts, wire.PathHello, wire.PathToken}
	add := func(path string, v any) {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(slices.Index(paths, path)), b)
	}
	const run, bead = "web-aaaaa.1", "web-aaaaa"
	items := []town.Report{{Kind: town.ReportStarted, Run: run, Epoch: 1, PID: 7}, {Kind: town.ReportHeartbeat, Runs: []town.RunLife{{Run: run, Epoch: 1, IdleMS: 1 << 60}}},
		{Kind: town.ReportEnded, Run: run, Epoch: 1, Outcome: town.OutcomeExited, Class: town.ClassWork, Reason: "x\x00\xff"},
		{Kind: town.ReportCheckpoint, Run: run, Epoch: 1, Commit: tip2, Ref: "refs/gastown/wip/web-aaaaa/1"}, {Kind: "telepathy"}}
	add(wire.PathReports, items)
	for i := range items {
		add(wire.PathReports, items[i:i+1])
		add(wire.PathReports, wire.ReportsRequest{Stream: "s1", From: int64(i), Items: items[i:]})
	}
	for _, kind := range []town.VerdictKind{town.VerdictDone, town.VerdictNoChange, town.VerdictEscalate, "x"} {
		add(wire.PathVerdict, wire.VerdictRequest{Run: run, Epoch: 1, CallID: "c", Kind: kind, Text: "because"})
	}
	add(wire.PathGates, wire.GatesRequest{Bead: bead, N: 1, Candidate: tip2, Results: []town.GateRun{{Name: "test", Passed: true, Millis: -1}}})
	add(wire.PathGates, wire.GatesRequest{Bead: bead, Infra: "no disk"})
	add(wire.PathTranscripts, wire.TranscriptsRequest{Items: []wire.TranscriptItem{{Run: run, Epoch: 1, Seq: 1, At: 1 << 62, Kind: "k", Body: json.RawMessage(`{}`)}}})
	add(wire.PathHello, wire.HelloRequest{Stream: "s2"})
	for i := range paths {
		for _, s := range []string{"", "null", "[]", "{}", "{", `{"items":null}`, `[{"kind":"heartbeat","runs":[null]}]`, `[{"pid":1e99}]`, `[null,{}]`} {
			f.Add(uint8(i), []byte(s))
		}
	}
	w := newRunnerWorld(f)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		id, token := w.awake(t)
		defer func() {
			if err := w.store.DeleteTown(context.Background(), id); err != nil && !errs.Is(err, errs.NotFound) {
				t.Error(err)
			}
		}()
		path := paths[int(which)%len(paths)]
		bodies := [][]byte{body}
		if path == wire.PathReports {
			bodies = append(bodies, slices.Concat([]byte(`{"stream":"s1","from":1,"items":`), body, []byte(`}`)))
		}
		for _, b := range bodies {
			code, answer := w.post(t, token, path, b)
			if code >= 500 || len(answer) > 0 && !json.Valid(answer) {
				t.Fatalf("%s answers %d: %s", path, code, answer)
			}
			w.whole(t, id)
		}
	})
}
