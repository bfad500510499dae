package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner"
	"gastown/internal/runner/wire"
	"gastown/internal/sandbox"
	"gastown/internal/town"
)

// pollFor bounds one long poll, above the server's 30 s.
const pollFor = 45 * time.Second

// retryMin and retryMax are the real runner's pauses between tries.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// fakeRunner speaks the runner's side of the protocol and runs nothing: each
// run that it is given lives until it is told to end.
type fakeRunner struct {
	base   string
	token  string
	http   *http.Client
	stream string
	sent   int64 // reports that the server took
	epochs map[string]int64
	tries  int // calls in a row that failed
}

// FakeRunner is what runs inside a sandbox in place of `gastown runner`. It
// ends with ctx, when its generation is over, or when it was drained; a server
// that goes away is waited for.
func FakeRunner(ctx context.Context) error {
	token, err := runner.ReadToken(sandbox.TokenFD)
	if err != nil {
		return err
	}
	socket, ok := strings.CutPrefix(os.Getenv(wire.EnvServer), "unix://")
	if !ok {
		return errs.New(errs.Invalid, "%s names no socket; the server starts this program, you don't have to", wire.EnvServer)
	}
	r := &fakeRunner{base: "http://gastown", token: token, stream: rand.Text(), epochs: map[string]int64{},
		http: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}}
	var doc town.Desired
	if _, err := r.call(ctx, http.MethodPost, wire.PathHello, wire.HelloRequest{Stream: r.stream, Version: "lab"}, &doc); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if over, err := r.step(ctx, &doc); over || err != nil && !again(err) {
			return err
		} else if err == nil {
			r.tries = 0
			continue
		}
		r.tries++
		// The pauses of the real runner.
		pause := min(retryMin<<min(r.tries, 10), retryMax)
		if wait(ctx, pause/2+mathrand.N(pause/2)) != nil {
			return nil
		}
	}
	return nil
}

// step does what a document says and waits for the next. A server that went
// away is told first of all that the runs live.
func (r *fakeRunner) step(ctx context.Context, doc *town.Desired) (over bool, err error) {
	if r.tries > 0 {
		if err := r.report(ctx, r.beat()); err != nil {
			return false, err
		}
	}
	if err := r.follow(ctx, *doc); err != nil || doc.Drain {
		return err == nil, err
	}
	// A heartbeat falls due while the long poll waits: at most pollFor late, well within a lease.
	status, err := r.call(ctx, http.MethodGet, wire.PathDesired+"?after="+strconv.FormatInt(doc.Rev, 10), nil, doc)
	if err == nil && status == http.StatusNoContent {
		err = r.report(ctx, r.beat())
	}
	return false, err
}

// again reports whether a server that failed may answer later.
func again(err error) bool {
	kind := errs.KindOf(err)
	return kind == errs.Unavailable || kind == errs.Overloaded
}

// follow reports what a document changed: runs begin and end at once.
func (r *fakeRunner) follow(ctx context.Context, doc town.Desired) error {
	var out []town.Report
	wanted := map[string]bool{}
	for _, d := range doc.Runs {
		over := d.Stop != "" || doc.Drain
		wanted[d.ID] = !over
		_, known := r.epochs[d.ID]
		switch {
		case over:
			out = append(out, town.Report{Kind: town.ReportEnded, Run: d.ID, Epoch: d.Epoch, Outcome: town.OutcomeStopped, Reason: "told to"})
		case !known:
			r.epochs[d.ID] = d.Epoch
			out = append(out, town.Report{Kind: town.ReportStarted, Run: d.ID, Epoch: d.Epoch, PID: os.Getpid(), Session: "lab"})
		}
	}
	for id := range r.epochs {
		if !wanted[id] {
			delete(r.epochs, id)
		}
	}
	if doc.Drain {
		out = append(out, town.Report{Kind: town.ReportDrained})
	}
	if len(out) == 0 {
		return nil
	}
	return r.report(ctx, out...)
}

func (r *fakeRunner) beat() town.Report {
	lives := []town.RunLife{}
	for id, epoch := range r.epochs {
		lives = append(lives, town.RunLife{Run: id, Epoch: epoch})
	}
	return town.Report{Kind: town.ReportHeartbeat, Runs: lives}
}

func (r *fakeRunner) report(ctx context.Context, items ...town.Report) error {
	_, err := r.call(ctx, http.MethodPost, wire.PathReports, wire.ReportsRequest{Stream: r.stream, From: r.sent + 1, Items: items}, nil)
	if err == nil {
		r.sent += int64(len(items))
	}
	return err
}

// call performs one request; out is filled from an answer with a body.
func (r *fakeRunner) call(ctx context.Context, method, path string, in, out any) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, pollFor)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return 0, errs.Wrap(errs.Internal, err, "encoding a message")
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, body)
	if err != nil {
		return 0, errs.Wrap(errs.Internal, err, "calling the server")
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Content-Type", "application/json")
	res, err := r.http.Do(req)
	if err != nil {
		return 0, errs.Wrap(errs.Unavailable, err, "calling the server")
	}
	defer func() {
		_ = res.Body.Close() // read to its end
	}()
	text, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return res.StatusCode, errs.Wrap(errs.Unavailable, err, "reading the server's answer")
	case res.StatusCode >= 300:
		return res.StatusCode, errs.New(errs.KindOfStatus(res.StatusCode), "%s: %.300s", path, text)
	case out != nil && len(text) > 0:
		err = json.Unmarshal(text, out)
	}
	return res.StatusCode, errs.Wrap(errs.Internal, err, "reading the server's answer")
}
