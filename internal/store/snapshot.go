package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pressly/goose/v3"

	"gastown/internal/errs"
)

// FileName is the name of the database in the data directory.
const FileName = fileName

// Files are the names of everything that a store keeps in its directory, but for
// the lock.
func Files() []string { return []string{fileName, fileName + "-wal", fileName + "-shm", cleanName} }

// Contents describes a snapshot.
type Contents struct {
	Schema int64 // version of the schema
	Towns  int
	Rigs   int
}

// Snapshot writes all that is committed now into a new file: one consistent state,
// while writes go on. It reads every page, so a damaged file gives an error and no
// snapshot.
func (s *SQLite) Snapshot(ctx context.Context, path string) (Contents, error) {
	select {
	case <-s.closed:
		return Contents{}, ErrClosed()
	default:
	}
	return s.snapshot(ctx, path)
}

// SnapshotOf is Snapshot for a directory that no server uses: the caller holds its
// lock. It does not bring the schema up to date.
func SnapshotOf(ctx context.Context, dir, path string) (Contents, error) {
	s := &SQLite{opts: Options{}.withDefaults(), path: filepath.Join(dir, fileName)}
	if _, err := os.Stat(s.path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Contents{}, errs.New(errs.NotFound, "%s has no database", dir).WithHint("give the data directory of a server with --data DIR")
		}
		return Contents{}, errs.Wrap(errs.Unavailable, err, "looking for the database")
	}
	return s.snapshot(ctx, path)
}

func (s *SQLite) snapshot(ctx context.Context, path string) (Contents, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close() // VACUUM INTO takes an empty file, and keeps its mode
	}
	if err != nil {
		return Contents{}, errs.Wrap(errs.Unavailable, err, "making the snapshot of the database")
	}
	// Not query_only: that forbids the new file, too. Nothing else is asked of it.
	l, err := dial(s.dsn("cache_size(-8192)"))
	if err != nil {
		return Contents{}, refused(err)
	}
	_, err = l.exec(ctx, "VACUUM INTO ?", path)
	if err = errors.Join(err, l.close()); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Contents{}, snapshotFailed(err)
	}
	return Describe(ctx, path)
}

func snapshotFailed(err error) error {
	if damages(err) {
		return errs.Wrap(errs.Internal, err, "the database is damaged: no snapshot was made")
	}
	if code(err) != 0 {
		return (&errs.Error{Kind: errs.Unavailable, Message: "the snapshot of the database could not be written", Err: err}).
			WithHint("the data directory needs free space for a second copy of the database")
	}
	return errs.Wrap(errs.Unavailable, err, "making the snapshot of the database")
}

// Describe reads what a database file that nobody uses holds, without changing it.
// A file that is no database of Gastown's is Invalid.
func Describe(ctx context.Context, path string) (c Contents, err error) {
	s := &SQLite{path: path}
	l, err := dial(s.dsn("query_only(1)"))
	if err != nil {
		return c, errs.Wrap(errs.Unavailable, err, "opening %s", path)
	}
	defer func() { err = errors.Join(err, l.close()) }()
	var ok bool
	if c.Schema, ok, err = l.number(ctx, `SELECT MAX(version_id) FROM goose_db_version WHERE is_applied <> 0`); err != nil || !ok || c.Schema == 0 {
		return c, errs.New(errs.Invalid, "%s is no database of gastown's: %v", filepath.Base(path), err)
	}
	for q, n := range map[string]*int{`SELECT COUNT(*) FROM towns`: &c.Towns, `SELECT COUNT(*) FROM rigs`: &c.Rigs} {
		v, _, err := l.number(ctx, q)
		if err != nil {
			return c, errs.Wrap(errs.Unavailable, err, "reading %s", path)
		}
		*n = int(v)
	}
	return c, nil
}

// Schema returns the version of the schema that this program writes.
func Schema() (int64, error) {
	names, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return 0, errs.Wrap(errs.Internal, err, "reading migrations")
	}
	var latest int64
	for _, n := range names {
		v, err := goose.NumericComponent(n)
		if err != nil {
			return 0, errs.Wrap(errs.Internal, err, "reading migrations")
		}
		latest = max(latest, v)
	}
	return latest, nil
}

// Verify reads a database file that nobody uses as a whole, without changing it:
// damage is Invalid, a schema that this program does not know a Conflict.
func Verify(ctx context.Context, path string) (Contents, error) {
	c, err := Describe(ctx, path)
	if err != nil {
		return c, err
	}
	known, err := Schema()
	if err != nil {
		return c, err
	}
	if c.Schema > known {
		return c, errNewer(filepath.Base(path), c.Schema, known)
	}
	s := &SQLite{path: path}
	l, err := dial(s.dsn("query_only(1)"))
	if err != nil {
		return c, errs.Wrap(errs.Unavailable, err, "opening %s", path)
	}
	err = errors.Join(l.quickCheck(ctx, filepath.Base(path)), l.close())
	if damages(err) {
		return c, errs.Wrap(errs.Invalid, err, "the database is not whole")
	}
	return c, errs.Wrap(errs.Unavailable, err, "reading %s", path)
}

func errNewer(path string, have, want int64) error {
	return errs.New(errs.Conflict, "%s has schema %d, but this gastown knows only %d", path, have, want).
		WithHint("run the newer gastown that wrote it")
}

// DropSlots frees every admission slot and empties the queue: after a restore no
// sandbox runs that anybody counts on.
func (s *SQLite) DropSlots(ctx context.Context) error {
	return s.w.do(ctx, 0, func(t *tx) error {
		_, err := t.do(`DELETE FROM slots`)
		return err
	})
}

// keepBefore copies the database before its schema is changed, once per version.
// Older such copies go. Without the copy nothing is changed.
func (s *SQLite) keepBefore(ctx context.Context, have int64) error {
	name := fmt.Sprintf("%s.schema-%d", s.path, have)
	if _, err := os.Stat(name); err == nil {
		return nil // an earlier try to upgrade made it
	}
	tmp := name + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.Wrap(errs.Unavailable, err, "keeping a copy before the upgrade")
	}
	if _, err := s.snapshot(ctx, tmp); err != nil {
		return errs.Wrap(errs.KindOf(err), err, "keeping a copy before the upgrade from schema %d", have)
	}
	f, err := os.Open(tmp)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), os.Rename(tmp, name), syncDir(filepath.Dir(name)))
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "keeping a copy before the upgrade")
	}
	old, err := filepath.Glob(filepath.Join(filepath.Dir(s.path), fileName+".schema-*"))
	if err != nil {
		return nil // the directory's own name is a pattern: old copies stay
	}
	for _, p := range slices.DeleteFunc(old, func(p string) bool { return p == name }) {
		if err := os.Remove(p); err != nil {
			return errs.Wrap(errs.Unavailable, err, "removing the copy of an earlier upgrade")
		}
	}
	return nil
}

// Generations reads the latest generation of each town's sandbox in a directory
// that no server uses; the caller holds its lock. It changes nothing and knows
// every schema.
func Generations(ctx context.Context, dir string) (out map[string]int64, err error) {
	s := &SQLite{path: filepath.Join(dir, fileName)}
	l, err := dial(s.dsn("query_only(1)"))
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "opening %s", s.path)
	}
	defer func() { err = errors.Join(err, l.close()) }()
	out = map[string]int64{}
	err = l.each(ctx, func(v []driver.Value) { out[asText(v[0])] = asInt(v[1]) }, `SELECT id, generation FROM towns`)
	return out, readFailure(ctx, err)
}
