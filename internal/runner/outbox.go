package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"

	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

const (
	maxOutbox = 4096 // reports kept while the server does not answer
	maxBatch  = 100  // reports per call
	// poisonTries is how often a batch may make the server fail before it is sent
	// report by report, and a single report before it is given up.
	poisonTries = 12
)

// outbox delivers reports in order. Numbers belong to a stream, which is new
// at each boot. What was sent once keeps its number and its content; what was
// not may still be replaced by something newer of its kind.
//
// Every report but heartbeats is on disk before it is sent; the file is
// truncated when all is acknowledged. A disk that can't be written is logged
// and costs the copy, never the report; it is tried again with each report.
// A boot reads nothing back, so that half a line harms nobody. At the bound what
// a newer report says again goes first; the end of a run is never dropped.
type outbox struct {
	stream string
	file   *os.File
	log    *slog.Logger
	wake   chan struct{} // holds a token when there may be something to send

	mu       sync.Mutex    // guards the fields below
	first    int64         // number of items[0]
	items    []town.Report // not acknowledged
	sent     int           // how many of items were sent at least once
	broken   bool          // the disk failed; said once until it works again
	onDisk   bool
	emptied  chan struct{} // closed when items gets empty; nil when nobody waits
	unwanted int           // dropped at the bound
}

func newOutbox(path, stream string, log *slog.Logger) (*outbox, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the runner's outbox")
	}
	return &outbox{stream: stream, file: f, log: log, wake: make(chan struct{}, 1), first: 1}, nil
}

// replaces says whether b makes an unsent a superfluous.
func replaces(a, b town.Report) bool {
	if a.Kind != b.Kind {
		return false
	}
	switch b.Kind {
	case town.ReportHeartbeat:
		return true
	case town.ReportCheckpoint, town.ReportUnsaved, town.ReportNudged:
		return a.Run == b.Run && a.Epoch == b.Epoch
	}
	return false
}

// add queues a report and wakes the sender.
func (o *outbox) add(r town.Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := o.sent; i < len(o.items); i++ {
		if replaces(o.items[i], r) {
			o.items = append(o.items[:i], o.items[i+1:]...)
			break
		}
	}
	if len(o.items) >= maxOutbox && !o.evictLocked() && r.Kind != town.ReportEnded && r.Kind != town.ReportDrained {
		o.unwanted++
		o.log.Error("the outbox is full; a report is lost", "kind", r.Kind, "run", r.Run, "lost", o.unwanted)
		return
	}
	o.items = append(o.items, r)
	if r.Kind != town.ReportHeartbeat {
		o.persistLocked(r)
	}
	select {
	case o.wake <- struct{}{}:
	default: // a token is there already
	}
}

// evictLocked makes room at the cost of what matters least.
func (o *outbox) evictLocked() bool {
	for _, kind := range []town.ReportKind{town.ReportHeartbeat, town.ReportNudged, town.ReportUnsaved, town.ReportCheckpoint, town.ReportStarted} {
		for i := o.sent; i < len(o.items); i++ {
			if o.items[i].Kind == kind {
				if kind == town.ReportStarted {
					o.unwanted++
					o.log.Error("the outbox is full; a report is lost", "kind", kind, "run", o.items[i].Run, "lost", o.unwanted)
				}
				o.items = append(o.items[:i], o.items[i+1:]...)
				return true
			}
		}
	}
	return false
}

func (o *outbox) persistLocked(r town.Report) {
	line, err := json.Marshal(r)
	if err == nil {
		_, err = o.file.Write(append(line, '\n'))
	}
	if err == nil {
		err = o.file.Sync()
	}
	o.onDisk = true
	switch {
	case err != nil && !o.broken:
		o.log.Error("the outbox can't be written to disk; reports are kept in memory only", "err", err)
	case err == nil && o.broken:
		o.log.Info("the outbox can be written to disk again")
	}
	o.broken = err != nil
}

// batch returns what to send now; items is empty when there is nothing.
func (o *outbox) batch(limit int) wire.ReportsRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := min(len(o.items), limit)
	o.sent = max(o.sent, n)
	return wire.ReportsRequest{Stream: o.stream, From: o.first, Items: append([]town.Report(nil), o.items[:n]...)}
}

// acknowledge takes the number that the server expects next. A number outside
// of what is here means that the server knows another history: the rest is
// renumbered to what it expects.
func (o *outbox) acknowledge(next int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := next - o.first
	if n < 0 || n > int64(len(o.items)) {
		o.log.Warn("the server expects another report than any here", "next", next, "first", o.first, "held", len(o.items))
		o.first = next
		return
	}
	o.items = append([]town.Report(nil), o.items[n:]...)
	o.first = next
	o.sent = max(0, o.sent-int(n))
	if len(o.items) > 0 {
		return
	}
	if o.emptied != nil {
		close(o.emptied)
		o.emptied = nil
	}
	if o.onDisk {
		if err := o.file.Truncate(0); err != nil {
			o.log.Error("the outbox can't be truncated", "err", err)
			return
		}
		o.onDisk = false
	}
}

// giveUp puts a small report in the place of the first one, which the server
// does not take as it stands: the loss is on record. If that is refused, too, it
// goes without.
func (o *outbox) giveUp(cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.items) == 0 {
		return
	}
	r := o.items[0]
	if r.Kind != town.ReportLost {
		o.items[0] = town.Report{Kind: town.ReportLost, Reason: fmt.Sprintf("the runner gave up a report of kind %.40s on run %.60s, which the server did not take: %.200s", r.Kind, r.Run, cause)}
		return
	}
	o.items = o.items[1:]
	o.sent = max(0, o.sent-1)
}

// flushed returns a channel that is closed as soon as all is acknowledged.
func (o *outbox) flushed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.items) == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if o.emptied == nil {
		o.emptied = make(chan struct{})
	}
	return o.emptied
}

func (o *outbox) close() error { return o.file.Close() }

// reportSender is the server, as far as the outbox knows it.
type reportSender interface {
	reports(ctx context.Context, req wire.ReportsRequest) (wire.ReportsResponse, error)
}

// reports sends a batch. Status 409 is an answer too.
func (a *api) reports(ctx context.Context, req wire.ReportsRequest) (wire.ReportsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var res wire.ReportsResponse
	body, err := json.Marshal(req)
	if err != nil {
		return res, errs.Wrap(errs.Internal, err, "encoding reports")
	}
	ans, err := a.send(ctx, http.MethodPost, wire.PathReports, nil, body)
	if err != nil {
		return res, err
	}
	if ans.status == http.StatusConflict {
		if err := json.Unmarshal(ans.body, &res); err == nil && res.Next > 0 {
			return res, nil
		}
	}
	if err := ans.err(); err != nil {
		return res, err
	}
	if err := json.Unmarshal(ans.body, &res); err != nil || res.Next < 1 {
		return res, errs.New(errs.Internal, "the server's answer to reports is not usable")
	}
	return res, nil
}

// run sends until ctx ends or the server says that the generation is gone.
func (o *outbox) run(ctx context.Context, to reportSender, t Timing) error {
	tries, limit := 0, maxBatch
	for {
		req := o.batch(limit)
		if len(req.Items) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-o.wake:
			}
			continue
		}
		res, err := to.reports(ctx, req)
		switch {
		case err == nil:
			if res.Next <= req.From && !t.backoff(ctx, tries, nil) {
				return nil // no progress: the numbers differ; not in a hot loop
			}
			o.acknowledge(res.Next)
			tries, limit = 0, maxBatch
		case errors.Is(ctx.Err(), context.Canceled):
			return nil
		case errs.Is(err, errs.Gone):
			return err
		case again(err) && (tries < poisonTries || !errs.Is(err, errs.Internal)):
			if !t.backoff(ctx, tries, err) {
				return nil
			}
			tries++
		case len(req.Items) > 1:
			tries, limit = 0, 1 // find the one that it does not take
		default:
			o.log.Error("the server does not take a report; it is given up", "kind", req.Items[0].Kind, "run", req.Items[0].Run, "err", err)
			o.giveUp(err)
			tries = 0
		}
	}
}
