package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pressly/goose/v3"

	"gastown/internal/errs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Names of the files in the data directory.
const (
	fileName = "gastown.db"
	lockName = "gastown.lock"
)

// Options tune a SQLite store. The zero value is right for a server.
type Options struct {
	Readers  int              // reading connections; 0 = 4
	CacheKiB int              // page cache of the writer; 0 = 65536 (64 MiB)
	Batch    int              // writes that share a transaction at most; 0 = 256
	MaxPages int64            // size limit of the file in pages of 4 KiB; 0 = none
	Now      func() time.Time // for the lock file and Health; nil = time.Now
	Lock     *Lock            // of the directory, held by the caller; nil: Open takes it and Close releases it
	Changed  func(Health)     // told of every change of the store's health, one after another; may be nil
}

func (o Options) withDefaults() Options {
	if o.Readers <= 0 {
		o.Readers = 4
	}
	if o.CacheKiB <= 0 {
		o.CacheKiB = 64 << 10
	}
	if o.Batch <= 0 {
		o.Batch = 256
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// SQLite is the Store in one file of a data directory. One process at a time
// holds it; any number of goroutines may use it.
type SQLite struct {
	opts    Options
	path    string
	lock    *Lock      // nil when the caller holds it
	readers chan *link // nil links are dialled on first use
	w       *writer
	health  *health
	unclean bool // the last use of the files did not end with Close

	background sync.WaitGroup // the checker
	checks     chan struct{}  // capacity 1: a check is wanted

	closing  sync.Once
	closed   chan struct{} // closed when Close begins
	closeErr error
}

var _ Store = (*SQLite)(nil)

// Open opens or creates the store in dir, which it creates too. It refuses a
// directory that another process holds (Conflict) and a file that a newer
// Gastown wrote (Conflict).
func Open(ctx context.Context, dir string, opts Options) (*SQLite, error) {
	opts = opts.withDefaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "creating the data directory")
	}
	if opts.Lock != nil {
		return open(ctx, dir, opts)
	}
	lock, err := TakeLock(dir, opts.Now())
	if err != nil {
		return nil, err
	}
	s, err := open(ctx, dir, opts)
	if err != nil {
		return nil, errors.Join(err, lock.Release())
	}
	s.lock = lock
	return s, nil
}

func open(ctx context.Context, dir string, opts Options) (*SQLite, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "data directory")
	}
	s := &SQLite{opts: opts, path: filepath.Join(abs, fileName), closed: make(chan struct{}), checks: make(chan struct{}, 1),
		readers: make(chan *link, opts.Readers)}
	_, err = os.Lstat(s.path)
	fresh := errors.Is(err, fs.ErrNotExist)
	// Created here so that only its owner may read it; SQLite gives its log the same mode.
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "opening the store")
	}
	if err := f.Close(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "opening the store")
	}
	if s.unclean, err = begun(abs, fresh); err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); damages(err) {
		// Not Unavailable: no later try helps.
		return nil, (&errs.Error{Kind: errs.Conflict, Message: s.path + " is damaged, or no database of gastown's", Err: err}).WithHint("%s", restoreHint(dir))
	} else if err != nil {
		return nil, err
	}
	first, err := dial(s.readDSN())
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "opening %s", s.path)
	}
	s.readers <- first
	for range opts.Readers - 1 {
		s.readers <- nil
	}
	s.health = newHealth(abs, opts)
	if s.w, err = startWriter(s.writeDSN(), s.path, opts.Batch, s.health, s.dropReaders, s.recheck); err != nil {
		s.health.stop()
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "opening %s", s.path), first.close())
	}
	if s.unclean {
		s.recheck()
	}
	s.background.Go(s.checker)
	return s, nil
}

// dsn builds a connection string; pragmas run in the driver at each dial.
func (s *SQLite) dsn(pragmas ...string) string {
	q := url.Values{"_pragma": append([]string{"busy_timeout(5000)", "foreign_keys(0)", "temp_store(2)"}, pragmas...)}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(s.path), OmitHost: true, RawQuery: q.Encode()}
	return u.String()
}

func (s *SQLite) readDSN() string {
	return s.dsn("query_only(1)", "cache_size(-8192)")
}

func (s *SQLite) writeDSN() string {
	p := []string{"journal_mode(WAL)", "synchronous(2)", "wal_autocheckpoint(0)", "journal_size_limit(67108864)",
		fmt.Sprintf("cache_size(-%d)", s.opts.CacheKiB)}
	if s.opts.MaxPages > 0 {
		p = append(p, fmt.Sprintf("max_page_count(%d)", s.opts.MaxPages))
	}
	return s.dsn(p...)
}

// migrate brings the schema up to what this binary knows.
func (s *SQLite) migrate(ctx context.Context) (err error) {
	db, err := sql.Open("sqlite", s.dsn("journal_mode(WAL)", "synchronous(2)"))
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "opening %s", s.path)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return errs.Wrap(errs.Internal, err, "reading migrations")
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return errs.Wrap(errs.Internal, err, "reading migrations")
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading the schema version of %s", s.path)
	}
	if have > want {
		return errNewer(s.path, have, want)
	}
	if 0 < have && have < want {
		if err := s.keepBefore(ctx, have); err != nil {
			return err
		}
	}
	if _, err := p.Up(ctx); err != nil {
		return errs.Wrap(errs.Unavailable, err, "migrating %s", s.path)
	}
	return nil
}

// Close waits for queued writes, moves the log into the database file and lets go
// of the data directory. When all of that succeeds it leaves a mark, so that the
// next Open knows that nothing needs to be checked.
func (s *SQLite) Close() error {
	s.closing.Do(func() {
		close(s.closed)
		s.background.Wait()
		all := []error{s.w.stop()}
		for range s.opts.Readers {
			if l := <-s.readers; l != nil {
				all = append(all, l.close())
			}
		}
		h := s.health.snapshot()
		if errors.Join(all...) == nil && h.State == Healthy && h.Check != CheckRunning && h.Check != CheckStopped {
			all = append(all, ended(filepath.Dir(s.path)))
		}
		s.health.stop()
		if s.lock != nil {
			all = append(all, s.lock.Release())
		}
		s.closeErr = errors.Join(all...)
	})
	return s.closeErr
}

// Stats returns counters since Open.
func (s *SQLite) Stats() Stats { return s.w.snapshot() }
