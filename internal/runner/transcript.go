package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/scrub"
)

const (
	maxTranscript      = 8 << 20         // bytes of events that wait for the server
	maxTranscriptBatch = 256 << 10       // bytes per call
	heldFor            = 3 * time.Second // for the rest of a word to come
	maxMerged          = 8 << 10         // bytes up to which pieces of one text become one event
)

// transcripts gathers the events of all runs and delivers them. Memory is
// bounded: past the cap events are dropped and the loss itself is an event.
type transcripts struct {
	log   *slog.Logger
	now   func() time.Time
	wake  chan struct{}
	scrub *scrub.Set // knows what no two pieces of a text may share

	mu    sync.Mutex // guards the fields below
	items []pending  // not acknowledged
	bytes int
	sent  int // how many of items are in a call
	lanes map[lane]*laneState
	idle  chan struct{} // closed when items gets empty; nil when nobody waits
}

type lane struct {
	run   string
	epoch int64
}

type laneState struct {
	seq  int64
	lost int
	said map[agent.Kind]*said // texts that come in pieces
}

// said is a text of which the last word may go on.
type said struct {
	text *scrub.Stream
	tell *time.Timer // tells the rest when nothing follows
	last agent.Event // its newest piece
}

// pending is an event that is encoded only when it is sent, so that the pieces
// of one text can still be joined.
type pending struct {
	lane  lane
	seq   int64
	at    time.Time
	event agent.Event
	size  int
}

func newTranscripts(log *slog.Logger, now func() time.Time) *transcripts {
	return &transcripts{log: log, now: now, scrub: &scrub.Set{}, wake: make(chan struct{}, 1), lanes: map[lane]*laneState{}}
}

// add queues an event of a run.
func (t *transcripts) add(l lane, e agent.Event) {
	switch e.Kind {
	case agent.KindMessage, agent.KindThought, agent.KindUser:
		e.Raw = nil // it says the same once more
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	st := t.lanes[l]
	if st == nil {
		st = &laneState{said: map[agent.Kind]*said{}}
		t.lanes[l] = st
	}
	if e.Kind == agent.KindMessage || e.Kind == agent.KindThought {
		if e, ok := t.piece(l, st, e); ok {
			t.putLocked(l, st, e)
		}
		return
	}
	t.restLocked(l, st)
	t.putLocked(l, st, e)
}

// piece takes a piece of a text and returns what of it can be told, with what was
// held back before.
func (t *transcripts) piece(l lane, st *laneState, e agent.Event) (agent.Event, bool) {
	s := st.said[e.Kind]
	if s == nil {
		s = &said{text: t.scrub.Stream()}
		s.tell = time.AfterFunc(heldFor, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if st.said[e.Kind] == s {
				t.restLocked(l, st)
			}
		})
		st.said[e.Kind] = s
	}
	s.tell.Reset(heldFor)
	s.last = e
	e.Text = s.text.Next(e.Text)
	return e, e.Text != "" || e.Truncated
}

// restLocked tells what is held back: the texts are at their end.
func (t *transcripts) restLocked(l lane, st *laneState) {
	for _, kind := range []agent.Kind{agent.KindThought, agent.KindMessage} {
		s := st.said[kind]
		if s == nil {
			continue
		}
		delete(st.said, kind)
		s.tell.Stop()
		if rest := s.text.Rest(); rest != "" {
			e := s.last
			e.Text, e.Size, e.Truncated = rest, 0, false
			t.putLocked(l, st, e)
		}
	}
}

func (t *transcripts) putLocked(l lane, st *laneState, e agent.Event) {
	if st.lost == 0 && t.mergeLocked(l, e) {
		return
	}
	size := len(e.Text) + len(e.Raw) + len(e.Tool) + 200
	if t.bytes+size > maxTranscript {
		st.lost++
		return
	}
	if st.lost > 0 {
		t.pushLocked(l, st, agent.Event{Kind: agent.KindLifecycle, Status: "lost",
			Text: fmt.Sprintf("%d events were lost because the server did not take them in time", st.lost)}, 300)
		st.lost = 0
	}
	t.pushLocked(l, st, e, size)
}

func (t *transcripts) pushLocked(l lane, st *laneState, e agent.Event, size int) {
	st.seq++
	t.items = append(t.items, pending{lane: l, seq: st.seq, at: t.now(), event: e, size: size})
	t.bytes += size
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// mergeLocked joins a piece of text to the one before, if that was not sent.
func (t *transcripts) mergeLocked(l lane, e agent.Event) bool {
	n := len(t.items)
	if n <= t.sent || (e.Kind != agent.KindMessage && e.Kind != agent.KindThought) {
		return false
	}
	p := &t.items[n-1]
	q := &p.event
	if p.lane != l || q.Kind != e.Kind || q.ID != e.ID || q.Truncated || e.Truncated || q.Replayed != e.Replayed ||
		len(q.Text)+len(e.Text) > maxMerged {
		return false
	}
	q.Text += e.Text
	q.Size += e.Size
	p.size += len(e.Text)
	t.bytes += len(e.Text)
	return true
}

func (t *transcripts) batch() []wire.TranscriptItem {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []wire.TranscriptItem
	for size, i := 0, 0; i < len(t.items) && (i == 0 || size+t.items[i].size <= maxTranscriptBatch); i++ {
		p := t.items[i]
		size += p.size
		body, err := json.Marshal(p.event)
		if err != nil {
			// Only Raw can be at fault: an agent sent what is no JSON.
			p.event.Raw = nil
			if body, err = json.Marshal(p.event); err != nil {
				body = []byte("{}")
			}
		}
		out = append(out, wire.TranscriptItem{Run: p.lane.run, Epoch: p.lane.epoch, Seq: p.seq,
			At: p.at.UnixMilli(), Kind: string(p.event.Kind), Body: body})
	}
	t.sent = len(out)
	return out
}

// settle removes the batch from the buffer; refused says that it was not taken.
func (t *transcripts) settle(refused bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.items[:t.sent] {
		t.bytes -= p.size
		if st := t.lanes[p.lane]; refused && st != nil {
			st.lost++
		}
	}
	t.items = append([]pending(nil), t.items[t.sent:]...)
	t.sent = 0
	if len(t.items) == 0 && t.idle != nil {
		close(t.idle)
		t.idle = nil
	}
}

// flushed returns a channel that is closed as soon as all is acknowledged.
func (t *transcripts) flushed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	ch := t.idle
	if len(t.items) == 0 {
		close(ch)
		t.idle = nil
	}
	return ch
}

// transcriptSender is the server, as far as transcripts know it.
type transcriptSender interface {
	transcripts(ctx context.Context, items []wire.TranscriptItem) error
}

func (a *api) transcripts(ctx context.Context, items []wire.TranscriptItem) error {
	return a.call(ctx, http.MethodPost, wire.PathTranscripts, nil, wire.TranscriptsRequest{Items: items}, nil)
}

// run delivers until ctx ends. Events gather for t.Flush before a call.
func (t *transcripts) run(ctx context.Context, to transcriptSender, tm Timing) {
	tries := 0
	for {
		items := t.batch()
		if len(items) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-t.wake:
			}
			gather := time.NewTimer(tm.Flush)
			select {
			case <-ctx.Done():
				gather.Stop()
				return
			case <-gather.C:
			}
			continue
		}
		err := to.transcripts(ctx, items)
		switch {
		case err == nil:
			t.settle(false)
			tries = 0
		case again(err):
			if !tm.backoff(ctx, tries, err) {
				return
			}
			tries++
		default:
			t.log.Warn("the server refuses transcript events; they are dropped", "events", len(items), "err", err)
			t.settle(!errs.Is(err, errs.Gone))
			tries = 0
		}
	}
}
