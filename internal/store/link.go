package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"modernc.org/sqlite"
)

// link is one connection with its compiled statements. It speaks to the driver
// directly: database/sql costs more than SQLite itself for rows as small as ours.
// A link is used by one goroutine at a time.
type link struct {
	conn  driver.Conn
	stmts map[string]driver.Stmt
}

func dial(dsn string) (*link, error) {
	conn, err := (&sqlite.Driver{}).Open(dsn)
	if err != nil {
		return nil, err
	}
	return &link{conn: conn, stmts: make(map[string]driver.Stmt)}, nil
}

// healthy reports whether the connection may be used again.
func (l *link) healthy() bool {
	v, ok := l.conn.(driver.Validator)
	return !ok || v.IsValid()
}

func (l *link) close() error {
	var all []error
	for _, s := range l.stmts {
		all = append(all, s.Close())
	}
	l.stmts = nil
	return errors.Join(append(all, l.conn.Close())...)
}

func (l *link) prepared(q string) (driver.Stmt, error) {
	if s, ok := l.stmts[q]; ok {
		return s, nil
	}
	s, err := l.conn.Prepare(q)
	if err != nil {
		return nil, fmt.Errorf("%w in %q", err, q)
	}
	l.stmts[q] = s
	return s, nil
}

// exec runs a statement and returns the number of rows it changed.
func (l *link) exec(ctx context.Context, q string, args ...any) (int64, error) {
	s, err := l.prepared(q)
	if err != nil {
		return 0, err
	}
	res, err := s.(driver.StmtExecContext).ExecContext(ctx, bind(args))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// each runs a query and calls fn for every row. The slice is reused between rows;
// strings and byte slices in it are the caller's.
func (l *link) each(ctx context.Context, fn func([]driver.Value), q string, args ...any) (err error) {
	s, err := l.prepared(q)
	if err != nil {
		return err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(ctx, bind(args))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	vals := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(vals); err {
		case nil:
			fn(vals)
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

// number runs a query for one integer; ok is false when there is no row or the
// value is NULL.
func (l *link) number(ctx context.Context, q string, args ...any) (n int64, ok bool, err error) {
	err = l.each(ctx, func(v []driver.Value) { n, ok = v[0].(int64) }, q, args...)
	return n, ok, err
}

func bind(args []any) []driver.NamedValue {
	out := make([]driver.NamedValue, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case int:
			a = int64(v)
		case bool:
			a = int64(0)
			if v {
				a = int64(1)
			}
		case []byte:
			if v == nil {
				a = nil
			}
		}
		out[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return out
}

func asInt(v driver.Value) int64    { n, _ := v.(int64); return n }  // NULL reads as 0
func asText(v driver.Value) string  { s, _ := v.(string); return s } // no text column is NULL
func asBytes(v driver.Value) []byte { b, _ := v.([]byte); return b } // NULL reads as nil
