package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	heartbeat  = 15 * time.Second
	lookAgain  = 2 * time.Second // for what other processes wrote
	streamPage = 200
	// nearBehind is how many ledger entries a follower of one bead reads unfiltered.
	nearBehind = 1000
	// lingering is how long logs of an ended bead wait for its last words.
	lingering = 700 * time.Millisecond
)

func (s *Server) registerStreams() {
	add(s, op{method: "GET", path: "/towns/{town}/events", id: "events", tag: "streams", summary: "Follow the ledger of a town", errors: []int{404},
		detail: "Server-sent events named ledger, whose id is the entry's seq. Last-Event-ID resumes after that entry; " +
			"else the stream begins after the entry given by after, or with what happens next. A comment comes every 15 s.",
		stream: api.LedgerEntry{}}, s.events)
	add(s, op{method: "GET", path: "/beads/{bead}/logs", id: "logs", tag: "streams", summary: "Follow what happens to a bead and what its agents say",
		errors: []int{404},
		detail: "Server-sent events named transcript (a transcript item) and ledger (a ledger entry), from the beginning. " +
			"Their id is a cursor for Last-Event-ID. With until=end the stream ends with an event named end when the bead is terminal.",
		stream: api.TranscriptItem{}}, s.logs)
}

// sse writes server-sent events.
type sse struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func openSSE(ctx huma.Context) *sse {
	_, w := humago.Unwrap(ctx)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	return &sse{w: w, rc: http.NewResponseController(w)}
}

// send writes one event. An error means that the client is gone.
func (e *sse) send(name, id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.write(fmt.Sprintf("event: %s\nid: %s\ndata: %s\n\n", name, id, data))
}

func (e *sse) write(s string) error {
	// Recorders in tests know no deadlines.
	_ = e.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := e.w.Write([]byte(s)); err != nil {
		return err
	}
	return e.rc.Flush()
}

// follow calls look again and again: after commits, new transcript chunks, and
// from time to time for what other processes did; until look is done or fails,
// the client goes, or the server stops.
func (s *Server) follow(ctx context.Context, townID string, out *sse, look func(context.Context) (done bool, err error)) {
	ctx, cancel := s.untilStop(ctx)
	defer cancel()
	changed, unwatch := s.hall.Watch(townID)
	defer func() { unwatch() }()
	heard, unlisten := s.taps.listen(townID)
	defer unlisten()
	beat, again := time.NewTicker(heartbeat), time.NewTicker(lookAgain)
	defer beat.Stop()
	defer again.Stop()
	if out.write(": hello\n\n") != nil {
		return
	}
	for {
		if done, err := look(ctx); done || err != nil {
			return
		}
		for waiting := true; waiting; {
			waiting = false
			select {
			case <-ctx.Done():
				return
			case _, open := <-changed:
				if !open { // signalled by closing: watch anew
					unwatch()
					changed, unwatch = s.hall.Watch(townID)
				}
			case <-heard:
			case <-again.C:
			case <-beat.C:
				if out.write(": heartbeat\n\n") != nil {
					return
				}
				waiting = true
			}
		}
	}
}

type eventsIn struct {
	TownPath
	LastEventID string `header:"Last-Event-ID" doc:"Resume after this entry."`
	After       int64  `query:"after" minimum:"-1" default:"-1" doc:"Begin after this entry; 0 for all there are, -1 for what happens next."`
}

func (s *Server) events(ctx context.Context, in *eventsIn) (*huma.StreamResponse, error) {
	head, err := s.townHead(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	after := head.LedgerSeq
	if in.After >= 0 {
		after = in.After
	}
	if in.LastEventID != "" {
		if after, err = strconv.ParseInt(in.LastEventID, 10, 64); err != nil || after < 0 {
			return nil, errs.New(errs.Invalid, "Last-Event-ID is not the id of an event of this stream")
		}
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		out := openSSE(hc)
		s.follow(hc.Context(), head.ID, out, func(ctx context.Context) (bool, error) {
			now, err := s.store.Head(ctx, head.ID)
			if err != nil || now.LedgerSeq <= after {
				return err != nil, err // a deleted town ends its stream
			}
			after, err = s.sendLedger(ctx, out, head.ID, after, func(api.LedgerEntry) bool { return true },
				func(e api.LedgerEntry) string { return strconv.FormatInt(e.Seq, 10) })
			return false, err
		})
	}}, nil
}

// sendLedger sends the entries after a seq that are wanted, and returns the seq
// of the last one that was looked at.
func (s *Server) sendLedger(ctx context.Context, out *sse, townID string, after int64, want func(api.LedgerEntry) bool,
	id func(api.LedgerEntry) string) (int64, error) {
	for {
		entries, err := s.store.Ledger(ctx, townID, store.LedgerQuery{After: after, Limit: streamPage})
		if err != nil {
			return after, err
		}
		for _, e := range entries {
			after = e.Seq
			if v := entryView(e); want(v) {
				if err := out.send(api.EventLedger, id(v), v); err != nil {
					return after, err
				}
			}
		}
		if len(entries) < streamPage {
			return after, nil
		}
	}
}

type logsIn struct {
	BeadPath
	Until       string `query:"until" enum:"end" doc:"end: finish when the bead is terminal."`
	LastEventID string `header:"Last-Event-ID" doc:"Resume after this event."`
}

// logPos is how far a follower of a bead has read.
type logPos struct{ ledger, epoch, seq int64 }

func (p logPos) String() string { return fmt.Sprintf("%d.%d.%d", p.ledger, p.epoch, p.seq) }

func parseLogPos(s string) (logPos, error) {
	var p logPos
	parts := strings.Split(s, ".")
	for i, to := range []*int64{&p.ledger, &p.epoch, &p.seq} {
		var err error
		if len(parts) == 3 {
			*to, err = strconv.ParseInt(parts[i], 10, 64)
		}
		if len(parts) != 3 || err != nil || *to < 0 {
			return p, errs.New(errs.Invalid, "Last-Event-ID is not the id of an event of this stream")
		}
	}
	return p, nil
}

// logFollower sends what is new of one bead.
type logFollower struct {
	s       *Server
	out     *sse
	town    string
	bead    string
	until   bool
	pos     logPos
	quiet   time.Time // since when nothing came of a terminal bead
	version int64     // of the town when status and latest were read
	status  town.BeadStatus
	latest  int64 // epoch of the latest run
}

func (s *Server) logs(ctx context.Context, in *logsIn) (*huma.StreamResponse, error) {
	f := &logFollower{s: s, bead: in.Bead, until: in.Until == "end"}
	if in.LastEventID != "" {
		var err error
		if f.pos, err = parseLogPos(in.LastEventID); err != nil {
			return nil, err
		}
	}
	err := s.viewBead(ctx, in.Bead, func(t *town.Town, _ time.Time, _ town.Bead) error {
		f.town = t.Info().ID
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		f.out = openSSE(hc)
		s.follow(hc.Context(), f.town, f.out, f.look)
	}}, nil
}

// look sends ledger entries first, then transcripts: the start of a run comes
// before what it says.
func (f *logFollower) look(ctx context.Context) (bool, error) {
	was := f.pos
	head, err := f.s.store.Head(ctx, f.town)
	if err != nil {
		return true, err
	}
	if head.Version != f.version { // else nobody needs the town in memory
		err := f.s.view(ctx, f.town, func(t *town.Town) error {
			b, err := getBead(t, f.bead)
			f.status, f.latest = b.Status, b.Epoch
			return err
		})
		if err != nil {
			return true, err
		}
		f.version = head.Version
	}
	if err := f.ledger(ctx, head.LedgerSeq); err != nil {
		return true, err
	}
	if err := f.transcripts(ctx, f.latest); err != nil {
		return true, err
	}
	if !f.until || !f.status.Terminal() {
		return false, nil
	}
	now := time.Now()
	if f.quiet.IsZero() || f.pos != was {
		f.quiet = now
	}
	if left := lingering - now.Sub(f.quiet); left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-timer.C:
			return f.look(ctx)
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
	return true, f.out.send(api.EventEnd, f.pos.String(), api.End{Bead: f.bead, Status: string(f.status)})
}

// ours reports whether an entry is about the bead or one of its runs.
func (f *logFollower) ours(e api.LedgerEntry) bool {
	return e.Subject == f.bead || strings.HasPrefix(e.Subject, f.bead+".") || e.Data["bead"] == f.bead
}

// ledger sends new entries. Far behind, it first skips to the bead's own first
// entry that is new, so that a long history of others costs nothing.
func (f *logFollower) ledger(ctx context.Context, end int64) error {
	if end <= f.pos.ledger {
		return nil
	}
	if end-f.pos.ledger > nearBehind {
		first, err := f.s.store.Ledger(ctx, f.town, store.LedgerQuery{After: f.pos.ledger, Subject: f.bead, Limit: 1})
		if err != nil {
			return err
		}
		to := end - nearBehind
		if len(first) > 0 {
			to = first[0].Seq - 1
		}
		f.pos.ledger = max(f.pos.ledger, to)
	}
	_, err := f.s.sendLedger(ctx, f.out, f.town, f.pos.ledger,
		func(e api.LedgerEntry) bool { f.pos.ledger = e.Seq; return f.ours(e) },
		func(api.LedgerEntry) string { return f.pos.String() })
	return err
}

// transcripts sends what the runs said, one epoch after the other.
func (f *logFollower) transcripts(ctx context.Context, latest int64) error {
	f.pos.epoch = max(f.pos.epoch, min(1, latest))
	for f.pos.epoch > 0 && f.pos.epoch <= latest {
		chunks, err := f.s.store.Transcript(ctx, f.town, runID(f.bead, f.pos.epoch), f.pos.epoch, f.pos.seq, streamPage)
		if err != nil {
			return err
		}
		for _, c := range chunks {
			f.pos.seq = c.Seq
			if err := f.out.send(api.EventTranscript, f.pos.String(), chunkView(c)); err != nil {
				return err
			}
		}
		if len(chunks) == streamPage {
			continue
		}
		if f.pos.epoch == latest {
			return nil
		}
		f.pos.epoch, f.pos.seq = f.pos.epoch+1, 0
	}
	return nil
}
