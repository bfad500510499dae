package store

import (
	"context"
	"database/sql/driver"
	"sync/atomic"
)

// checkpointer copies the log into the database file beside the writer, so that
// no caller waits for it. It works only when poked: an idle store writes nothing.
type checkpointer struct {
	dsn   string
	pokes chan struct{}
	quit  chan struct{}
	ended chan struct{}
	long  atomic.Bool // the log is long: the writer should reset it
	err   error       // of the closing connection; read after ended
}

func startCheckpointer(dsn string) *checkpointer {
	c := &checkpointer{dsn: dsn, pokes: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
	go c.loop()
	return c
}

func (c *checkpointer) poke() {
	select {
	case c.pokes <- struct{}{}:
	default: // one is due already
	}
}

func (c *checkpointer) stop() error {
	close(c.quit)
	<-c.ended
	return c.err
}

func (c *checkpointer) loop() {
	defer close(c.ended)
	var l *link
	for {
		select {
		case <-c.quit:
			if l != nil {
				c.err = l.close()
			}
			return
		case <-c.pokes:
		}
		if l == nil {
			var err error
			if l, err = dial(c.dsn); err != nil {
				l = nil // the next poke tries again; the writer will meet the same trouble and report it
				continue
			}
		}
		var length int64
		err := l.each(context.Background(), func(v []driver.Value) { length = asInt(v[1]) }, "PRAGMA wal_checkpoint(PASSIVE)")
		if err == nil && length > walPages {
			c.long.Store(true)
		}
	}
}

func ignoreRow([]driver.Value) {}
