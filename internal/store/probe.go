package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"
)

const (
	probeFirst = 500 * time.Millisecond // after a failure
	probeMost  = 15 * time.Second       // between two tries, doubling until then
	probeSize  = 64 << 10               // bytes that a probe writes
	probeKey   = "probe"                // of the row in meta
)

// probing is the state of the tries to write again after a failure. It is used by
// the writer's goroutine only.
type probing struct {
	timer  *time.Timer // runs while a next try is due; nil when none is
	wait   time.Duration
	result chan error // of the try under way; nil when none is
	link   *link      // what the try opened; read after result
}

func (p *probing) tick() <-chan time.Time {
	if p.timer == nil {
		return nil
	}
	return p.timer.C
}

// plan sets the next try, unless one is due already.
func (p *probing) plan() {
	if p.timer != nil || p.result != nil {
		return
	}
	if p.wait = min(max(2*p.wait, probeFirst), probeMost); p.wait < probeFirst {
		p.wait = probeFirst
	}
	p.timer = time.NewTimer(p.wait)
}

func (p *probing) reset() {
	if p.timer != nil {
		p.timer.Stop()
	}
	p.timer, p.wait = nil, 0
}

// tryAgain begins a try beside the writer, which goes on refusing. The writer has
// no connection meanwhile.
func (w *writer) tryAgain() {
	p := &w.probe
	p.timer = nil
	if w.health.snapshot().State == Healthy || p.result != nil {
		return
	}
	if w.l != nil {
		w.rollback()
	}
	w.dropReaders()
	result := make(chan error, 1)
	p.result = result
	go func() {
		l, err := reopen(w.dsn)
		p.link = l
		result <- err
	}()
}

// tried takes the result of a try.
func (w *writer) tried(err error) {
	p := &w.probe
	l := p.link
	p.link, p.result = nil, nil
	if err == nil {
		w.l, w.broken = l, nil
		p.reset()
		if w.health.snapshot().State == ReadOnly {
			w.recheck()
		}
		w.health.turned(Healthy, nil)
		return
	}
	w.note(err)
	if w.health.snapshot().State != Damaged {
		p.plan()
	}
}

// reopen opens the files and proves that they take writes.
//
// A write or fsync that failed leaves pages whose content on disk is not known
// although the system calls them clean. Copying the whole log into the database
// file and syncing that writes every page of it once more: when it succeeds, all
// that was ever acknowledged is on disk again, and what was not is either whole in
// the log (an unknown outcome that turned out as done) or gone.
func reopen(dsn string) (_ *link, err error) {
	l, err := dial(dsn)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// The reason to give up is err.
			_ = l.close()
		}
	}()
	ctx := context.Background()
	var busy int64
	if err := l.each(ctx, func(v []driver.Value) { busy = asInt(v[0]) }, "PRAGMA wal_checkpoint(FULL)"); err != nil {
		return nil, err
	}
	if busy != 0 {
		return nil, errors.New("the log could not be copied: others read the database")
	}
	for _, q := range []string{"BEGIN IMMEDIATE", "INSERT OR REPLACE INTO meta (key, value) VALUES ('" + probeKey + "', hex(zeroblob(?)))",
		"COMMIT", "DELETE FROM meta WHERE key = '" + probeKey + "'"} {
		var args []any
		if q[0] == 'I' {
			args = []any{probeSize / 2}
		}
		if _, err := l.exec(ctx, q, args...); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// note turns a failure of SQLite into a state of the store, and plans a try to
// end it.
func (w *writer) note(err error) {
	switch c := code(err); {
	case c == codeFull:
		w.health.turned(Full, err)
	case damages(err):
		w.broken = err
		w.health.turned(Damaged, err)
		return
	case breaks(err):
		w.broken = err
		w.health.turned(ReadOnly, err)
	default:
		if w.health.snapshot().State == Healthy {
			return // busy, out of memory: nothing that lasts
		}
	}
	w.probe.plan()
}

// damaged makes the store read-only for good, on the word of a check.
func (w *writer) damaged(cause error) {
	// The writer's own goroutine sets broken; a store that is being closed needs none.
	select {
	case w.spoilt <- cause:
	case <-w.quit:
	}
	w.health.turned(Damaged, cause)
}
