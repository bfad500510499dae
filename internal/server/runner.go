package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/git/hub"
	"gastown/internal/runner/wire"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	longPoll       = 30 * time.Second
	verifyTimeout  = 2 * time.Minute
	reportsBody    = 4 << 20
	transcriptBody = 16 << 20
	maxTranscript  = 1 << 20 // bytes of one event's body
	maxReports     = 1000    // per request
	maxChunks      = 2000    // per request
)

// registerRunner registers what runners call. Nothing here is in the reference:
// runner and server come from one binary.
func (s *Server) registerRunner() {
	handle := func(method, path string, limit int64, most int, long bool, h func(*sandboxCall) error) {
		pattern := method + " " + path
		s.limits[pattern], s.most[pattern] = limit, most
		s.long[pattern] = long
		s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c, err := s.sandbox(w, r)
			if err == nil {
				said := callOf(r.Context())
				said.body = s.cfg.Scrub.JSON(said.body)
				err = h(c)
			}
			if err != nil {
				s.fail(w, err)
			}
		})
	}
	handle("POST", wire.PathHello, normalBody, ofItsOwn, false, s.hello)
	handle("GET", wire.PathDesired, normalBody, ofItsOwn, true, s.desired)
	handle("POST", wire.PathReports, reportsBody, ofItsOwn, false, s.reports)
	handle("POST", wire.PathVerdict, normalBody, ofItsRuns, true, s.verdict)
	handle("POST", wire.PathGates, reportsBody, ofItsRuns, false, s.gatesDone)
	handle("GET", wire.PathPrime, normalBody, ofItsRuns, false, s.prime)
	handle("GET", wire.PathBead, normalBody, ofItsRuns, false, s.beadForAgent)
	handle("POST", wire.PathTranscripts, transcriptBody, ofItsOwn, false, s.transcripts)
	handle("POST", wire.PathToken, normalBody, ofItsOwn, false, s.exchange)
	handle("POST", wire.PathTunnel, normalBody, ofItsTunnels, true, s.tunnel)

	s.limits[wire.PathModel], s.most[wire.PathModel] = -1, ofItsRuns
	s.mux.Handle(wire.PathModel, gateway.NewModel(s.providers, s, gateway.ModelConfig{
		Prefix: wire.PathModel, Limits: s, Meter: s, Budget: s.blocks, WaitHeader: wire.HeaderWait, AwayHeader: wire.HeaderAway, Transport: s.cfg.ModelTransport, Log: s.log}))
	if s.cfg.Git != nil {
		s.limits[wire.PathGit] = -1
		s.mux.Handle(wire.PathGit, s.cfg.Git(s))
	}
}

// sandboxCall is a request of a sandbox whose token was valid.
type sandboxCall struct {
	claims
	w http.ResponseWriter
	r *http.Request
}

// sandbox checks the token of a sandbox. Whether its generation is current is
// for the town to say. Only to be exchanged may it have expired.
func (s *Server) sandbox(w http.ResponseWriter, r *http.Request) (*sandboxCall, error) {
	leeway := time.Duration(0)
	if r.URL.Path == wire.PathToken {
		leeway = tokenLeeway
	}
	c, err := s.cfg.Signer.verify(bearer(r), s.now(), leeway)
	if err != nil {
		return nil, err
	}
	return &sandboxCall{claims: c, w: w, r: r}, nil
}

func (c *sandboxCall) decode(v any) error { return decodeLoose(callOf(c.r.Context()).body, v) }

// decodeLoose reads a message of a runner, which may be of a newer version.
func decodeLoose(data []byte, v any) error {
	if err := unmarshal(data, v); err != nil {
		return errs.New(errs.Invalid, "the message can't be read: %s", jsonProblem(err))
	}
	return nil
}

func (c *sandboxCall) answer(v any) error {
	c.w.Header().Set("Content-Type", "application/json")
	// The runner may be gone; it asks again.
	_ = json.NewEncoder(c.w).Encode(v)
	return nil
}

// current refuses what is not of the town's running sandbox. A token whose town
// is gone belongs to a sandbox that must stop.
func (c *sandboxCall) current(t *town.Town) error {
	box := t.Sandbox()
	if box.Generation != c.Generation || !box.State.Running() {
		return errs.New(errs.Gone, "generation %d of the sandbox is over", c.Generation).WithHint("stop everything and exit")
	}
	if t.Info().Owner != c.Owner {
		return errs.New(errs.Gone, "the town has another owner now").WithHint("stop everything and exit")
	}
	return nil
}

func gone(err error) error {
	if errs.Is(err, errs.NotFound) {
		return errs.New(errs.Gone, "the town of this sandbox is gone").WithHint("stop everything and exit")
	}
	return err
}

// currentTown calls fn with the town of a sandbox that may still act.
func (s *Server) currentTown(c *sandboxCall, fn func(t *town.Town) error) error {
	var inner error
	err := s.view(c.r.Context(), c.Town, func(t *town.Town) error {
		if inner = c.current(t); inner == nil {
			inner = fn(t)
		}
		return inner
	})
	if inner != nil {
		return inner
	}
	return gone(err)
}

func (s *Server) hello(c *sandboxCall) error {
	var in wire.HelloRequest
	if err := c.decode(&in); err != nil {
		return err
	}
	if err := s.currentTown(c, func(*town.Town) error { return nil }); err != nil {
		return err
	}
	if err := s.hall.Do(c.r.Context(), c.Town, town.Hello{Generation: c.Generation, Stream: in.Stream}); err != nil {
		return gone(err)
	}
	return s.document(c, -1, longPoll)
}

// document answers with the desired document as soon as its revision is above
// after, or with 204.
func (s *Server) document(c *sandboxCall, after int64, wait time.Duration) error {
	ctx, cancel := s.untilStop(c.r.Context())
	defer cancel()
	ctx, cancelWait := context.WithTimeout(ctx, wait)
	defer cancelWait()
	d, ok, err := s.hall.Desired(ctx, c.Town, c.Generation, after)
	if err != nil {
		return gone(err)
	}
	if !ok {
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	d.Token = s.cfg.Signer.Token(c.Town, c.Owner, c.Generation, d.TokenAt)
	s.giveExposed(c.Town, &d)
	return c.answer(d)
}

func (s *Server) desired(c *sandboxCall) error {
	after, err := strconv.ParseInt(c.r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		return errs.New(errs.Invalid, "after must be a number")
	}
	return s.document(c, after, longPoll)
}

// reports hands on the next messages. Another number than the expected one is
// answered with the one that is.
func (s *Server) reports(c *sandboxCall) error {
	in, err := readReports(callOf(c.r.Context()).body)
	if err != nil {
		return err
	}
	if len(in.Items) == 0 || len(in.Items) > maxReports {
		return errs.New(errs.Invalid, "a request carries 1 to %d reports", maxReports)
	}
	s.blocks.settleEnded(c.Town, in)
	err = s.hall.Do(c.r.Context(), c.Town, town.Reports{Generation: c.Generation, Stream: in.Stream, From: in.From, Items: in.Items})
	if err == nil {
		return c.answer(wire.ReportsResponse{Next: in.From + int64(len(in.Items))})
	}
	if !errs.Is(err, errs.Conflict) {
		return gone(err)
	}
	var box town.Sandbox
	if err := s.currentTown(c, func(t *town.Town) error { box = t.Sandbox(); return nil }); err != nil {
		return err
	}
	if box.Stream != in.Stream || box.State == town.SandboxStarting {
		return err // no number helps before hello
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusConflict)
	// The runner may be gone; it asks again.
	_ = json.NewEncoder(c.w).Encode(wire.ReportsResponse{Next: box.Seq + 1})
	return nil
}

// verdict looks itself at what an agent calls done, then lets the town decide.
func (s *Server) verdict(c *sandboxCall) error {
	var in wire.VerdictRequest
	if err := c.decode(&in); err != nil {
		return err
	}
	v := town.Verdict{Generation: c.Generation, Run: in.Run, Epoch: in.Epoch, CallID: in.CallID, Kind: in.Kind, Text: in.Text}
	if in.Kind == town.VerdictDone {
		var err error
		if v.Evidence, err = s.evidence(c, in); err != nil {
			return err
		}
	}
	err := s.hall.Do(c.r.Context(), c.Town, v)
	if in.Kind == town.VerdictDone && errs.Is(err, errs.Conflict) {
		s.countRefusal(c, v, err)
	}
	if err != nil {
		return gone(err)
	}
	return c.answer(struct{}{})
}

// countRefusal has the town count a refused done, so that an agent can't go on
// with it for ever. The agent's answer is the refusal either way.
func (s *Server) countRefusal(c *sandboxCall, v town.Verdict, cause error) {
	err := s.hall.Do(c.r.Context(), c.Town, town.Refused{Generation: v.Generation, Run: v.Run, Epoch: v.Epoch, Why: cause.Error()})
	if err != nil && !errs.Is(err, errs.Gone) {
		s.log.Warn("a refused done could not be counted", "town", c.Town, "run", printable(v.Run, 60), "err", err)
	}
}

// evidence is what the hub holds of a run's branch. A run that is not current
// gets none: the town knows whether the call is a repeat of an answered one.
func (s *Server) evidence(c *sandboxCall, in wire.VerdictRequest) (town.Evidence, error) {
	var run town.Run
	var ok bool
	err := s.currentTown(c, func(t *town.Town) error {
		run, ok = t.Run(in.Run)
		return nil
	})
	if err != nil || !ok || run.Epoch != in.Epoch {
		return town.Evidence{}, err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), verifyTimeout)
	defer cancel()
	e, err := s.cfg.Hub.Verify(ctx, hub.ID{Town: c.Town, Rig: run.Rig}, run.Branch, run.Base)
	return town.Evidence{Commit: e.Commit, Exists: e.Exists, Descends: e.DescendsFromBase, Changed: e.Changed}, err
}

func (s *Server) gatesDone(c *sandboxCall) error {
	var in wire.GatesRequest
	if err := c.decode(&in); err != nil {
		return err
	}
	err := s.hall.Do(c.r.Context(), c.Town, town.GatesDone{Generation: c.Generation, Bead: in.Bead, N: in.N, Candidate: in.Candidate,
		Results: in.Results, Infra: in.Infra})
	if err != nil {
		return gone(err)
	}
	return c.answer(struct{}{})
}

// runOf reads the run and epoch that a request names.
func runOf(run, epoch string) (string, int64, error) {
	n, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || run == "" || len(run) > 128 {
		return "", 0, errs.New(errs.Invalid, "the request must name a run and its epoch")
	}
	return run, n, nil
}

func (s *Server) prime(c *sandboxCall) error {
	q := c.r.URL.Query()
	run, epoch, err := runOf(q.Get("run"), q.Get("epoch"))
	if err != nil {
		return err
	}
	var out town.Prime
	err = s.currentTown(c, func(t *town.Town) error {
		var err error
		out, err = t.Prime(run, epoch)
		return err
	})
	if err != nil {
		return err
	}
	return c.answer(out)
}

func (s *Server) beadForAgent(c *sandboxCall) error {
	id := c.r.URL.Query().Get("id")
	var out wire.BeadResponse
	err := s.currentTown(c, func(t *town.Town) error {
		b, err := getBead(t, id)
		if err != nil {
			return err
		}
		out.PrimeBead = town.PrimeBead{ID: b.ID, Title: b.Title, Body: b.Body, Priority: b.Priority, Labels: b.Labels}
		out.Status, out.BlockedBy = b.Status, b.BlockedBy
		return nil
	})
	if err != nil {
		return err
	}
	return c.answer(out)
}

// transcripts stores events of runs that the town has or had. An old generation
// may still deliver them.
func (s *Server) transcripts(c *sandboxCall) error {
	var in wire.TranscriptsRequest
	if err := c.decode(&in); err != nil {
		return err
	}
	if len(in.Items) > maxChunks {
		return errs.New(errs.Invalid, "a request carries at most %d events", maxChunks)
	}
	chunks := make([]store.Chunk, 0, len(in.Items))
	runs := map[string]int64{}    // to the epoch that was named with it
	latest := s.now().UnixMilli() // what claims to be of the future would outlive its retention
	for _, i := range in.Items {
		if i.Seq < 1 || len(i.Kind) > 64 || len(i.Body) > maxTranscript {
			return errs.New(errs.Invalid, "event %d of run %s is out of bounds", i.Seq, printable(i.Run, 60)).
				WithHint("a body has at most %s", size(maxTranscript))
		}
		if other, seen := runs[i.Run]; seen && other != i.Epoch {
			return errs.New(errs.Invalid, "run %s has one epoch only", printable(i.Run, 60))
		}
		runs[i.Run] = i.Epoch
		chunks = append(chunks, store.Chunk{Town: c.Town, Run: i.Run, Epoch: i.Epoch, Seq: i.Seq, At: min(i.At, latest), Kind: printable(i.Kind, 64), Body: i.Body})
	}
	if err := s.haveRuns(c, runs); err != nil {
		return err
	}
	if len(chunks) > 0 {
		if err := s.store.AppendTranscript(c.r.Context(), chunks); err != nil {
			return err
		}
		s.taps.tell(c.Town)
	}
	return c.answer(struct{}{})
}

// haveRuns refuses runs that the town never had.
func (s *Server) haveRuns(c *sandboxCall, runs map[string]int64) error {
	err := s.view(c.r.Context(), c.Town, func(t *town.Town) error {
		if t.Sandbox().Generation < c.Generation {
			return errs.New(errs.Gone, "this generation never was")
		}
		if c.Generation <= t.Sandbox().Floor {
			return errs.New(errs.Gone, "what this generation did was undone by a restore") // its runs' names are used again
		}
		for run, epoch := range runs {
			bead, ok := beadOfRun(run, epoch)
			b, exists := t.Bead(bead)
			if !ok || !exists || epoch < 1 || epoch > b.Epoch {
				return errs.New(errs.Invalid, "the town never had run %s, epoch %d", printable(run, 60), epoch)
			}
		}
		return nil
	})
	return gone(err)
}

// beadOfRun takes <bead>.<epoch> apart.
func beadOfRun(run string, epoch int64) (bead string, ok bool) {
	suffix := "." + strconv.FormatInt(epoch, 10)
	if len(run) <= len(suffix) || run[len(run)-len(suffix):] != suffix {
		return "", false
	}
	return run[:len(run)-len(suffix)], true
}

// exchange gives a runner whose token expired a new one, while its generation
// is current.
func (s *Server) exchange(c *sandboxCall) error {
	if err := s.currentTown(c, func(*town.Town) error { return nil }); err != nil {
		return err
	}
	if err := s.hall.Do(c.r.Context(), c.Town, town.Exchange{Generation: c.Generation}); err != nil {
		return gone(err)
	}
	var at town.Time
	if err := s.currentTown(c, func(t *town.Town) error { at = t.Sandbox().TokenAt; return nil }); err != nil {
		return err
	}
	return c.answer(wire.TokenResponse{Token: s.cfg.Signer.Token(c.Town, c.Owner, c.Generation, at)})
}

// SandboxToken returns the token with which a sandbox is started.
func (s *Server) SandboxToken(townID, owner string, generation int64, at town.Time) string {
	return s.cfg.Signer.Token(townID, owner, generation, at)
}
