package docker

import (
	"context"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// Between two tries to hear from an engine that does not answer.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 5 * time.Second
)

// watch follows the engine's events until the driver is closed. After every
// break it looks at all generations that should run.
func (d *Driver) watch() {
	pause := retryFirst
	for d.base.Err() == nil {
		ctx, cancel := context.WithCancel(d.base)
		f := d.filter("").Add("type", string(events.ContainerEventType)).Add("event", string(events.ActionDie))
		stream := d.api.Events(ctx, client.EventsListOptions{Filters: f})
		if d.sweep(ctx) {
			pause = retryFirst
			d.follow(stream)
		}
		cancel()
		select {
		case <-d.base.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
}

// follow handles deaths until the stream ends.
func (d *Driver) follow(stream client.EventsResult) {
	for {
		select {
		case m := <-stream.Messages:
			town := m.Actor.Attributes[labelTown]
			generation, err := strconv.ParseInt(m.Actor.Attributes[labelGeneration], 10, 64)
			if err == nil && sandbox.ValidTown(town) {
				d.ended(record.Record{Town: town, Generation: generation})
			}
		case err := <-stream.Err:
			if d.base.Err() == nil {
				d.log.Warn("the container engine's events ended; listening again", "err", err)
			}
			return
		}
	}
}

// ended finishes a generation whose container died.
func (d *Driver) ended(rec record.Record) {
	ctx, cancel := context.WithTimeout(d.base, callTime)
	defer cancel()
	if err := d.finish(ctx, rec); err != nil && d.base.Err() == nil {
		// Inspect still sees that it is gone.
		d.log.Warn("the end of a sandbox was not recorded", "town", rec.Town, "generation", rec.Generation, "err", err)
	}
}

// sweep finishes all generations that ended while nobody listened. False when
// the engine does not answer.
func (d *Driver) sweep(ctx context.Context) bool {
	towns, err := d.book.Towns()
	if err != nil {
		d.log.Warn("the records of sandboxes can't be listed", "err", err)
		return false
	}
	for _, town := range towns {
		rec, err := d.book.Load(town)
		if err != nil || rec == nil || rec.Phase != record.Running {
			continue // a damaged record is told by List
		}
		runs, err := d.runs(ctx, rec)
		if err != nil {
			return false
		}
		if !runs {
			d.ended(*rec)
		}
	}
	return true
}
