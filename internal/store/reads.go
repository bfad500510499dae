package store

import (
	"context"
	"database/sql/driver"
	"errors"
)

const (
	headColumns = `id, name, owner, version, commit_id, created_at, ledger_seq,
 due_at, desired_rev, sandbox, generation, wanted, open, failing, status, idle_ms, waits_budget`
	selectHead = `SELECT ` + headColumns + ` FROM towns WHERE id = ?`
	// contradicts must be the condition of an index to the letter, or it is not used.
	contradicts = `due_at IS NULL AND (sandbox <> 'asleep' OR wanted <> 0 OR failing <> '' OR status = 'deleting' OR waits <> 0)`
	selectDays  = `SELECT day, runs, awake_ms, tokens, cost, granted_tokens, granted_cost FROM server_days`
	selectSlots = `SELECT town, state, since, seen, at FROM slots`
)

func headOf(v []driver.Value) Head {
	return Head{ID: asText(v[0]), Name: asText(v[1]), Owner: asText(v[2]), Version: asInt(v[3]), CommitID: asText(v[4]),
		CreatedAt: asInt(v[5]), LedgerSeq: asInt(v[6]),
		Columns: Columns{DueAt: asInt(v[7]), DesiredRev: asInt(v[8]), Sandbox: asText(v[9]), Generation: asInt(v[10]),
			Wanted: asInt(v[11]) != 0, Open: asInt(v[12]), Failing: asText(v[13]), Status: asText(v[14]), IdleMS: asInt(v[15]), WaitsBudget: asInt(v[16]) != 0}}
}

func slotOf(v []driver.Value) Slot {
	return Slot{Town: asText(v[0]), State: asText(v[1]), Since: asInt(v[2]), Seen: asInt(v[3]), At: asInt(v[4])}
}

func limitOf(n int) int {
	if n <= 0 {
		return DefaultLimit
	}
	return n
}

// read lends a reading connection to fn.
func (s *SQLite) read(ctx context.Context, fn func(*link) error) error {
	select {
	case <-s.closed:
		return ErrClosed()
	default:
	}
	var l *link
	select {
	case l = <-s.readers:
	case <-s.closed:
		return ErrClosed()
	case <-ctx.Done():
		return readFailure(ctx, ctx.Err())
	}
	if l == nil {
		var err error
		if l, err = dial(s.readDSN()); err != nil {
			s.readers <- nil
			return readFailure(ctx, err)
		}
	}
	err := fn(l)
	if damages(err) {
		s.w.damaged(err)
	}
	if err != nil && (code(err) != 0 || !l.healthy()) {
		// A broken connection is replaced by the next reader; why it broke is in err.
		_ = l.close()
		l = nil
	}
	s.readers <- l
	return readFailure(ctx, err)
}

func (s *SQLite) heads(ctx context.Context, q string, args ...any) (out []Head, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { out = append(out, headOf(v)) }, q, args...)
	})
	return out, err
}

// Find implements Store.
func (s *SQLite) Find(ctx context.Context, nameOrID string) (Head, error) {
	found, err := s.heads(ctx, `SELECT `+headColumns+` FROM towns WHERE id = ? OR name = ? ORDER BY id <> ? LIMIT 1`,
		nameOrID, nameOrID, nameOrID)
	return one(found, err, nameOrID)
}

func one(found []Head, err error, id string) (Head, error) {
	if err != nil {
		return Head{}, err
	}
	if len(found) == 0 {
		return Head{}, ErrNoTown(id)
	}
	return found[0], nil
}

// Heads implements Store.
func (s *SQLite) Heads(ctx context.Context, after string, limit int) ([]Head, error) {
	return s.heads(ctx, `SELECT `+headColumns+` FROM towns WHERE name > ? ORDER BY name LIMIT ?`, after, limitOf(limit))
}

// Head implements Store.
func (s *SQLite) Head(ctx context.Context, id string) (Head, error) {
	found, err := s.heads(ctx, selectHead, id)
	return one(found, err, id)
}

// Load implements Store.
func (s *SQLite) Load(ctx context.Context, id string, since int64) (Head, []Row, error) {
	var head Head
	var rows []Row
	err := s.read(ctx, func(l *link) error {
		if _, err := l.exec(ctx, "BEGIN"); err != nil {
			return err
		}
		err := l.load(ctx, id, since, &head, &rows)
		// Ends a transaction that only read, even when ctx has ended.
		_, end := l.exec(context.WithoutCancel(ctx), "ROLLBACK")
		return errors.Join(err, end)
	})
	if err != nil {
		return Head{}, nil, err
	}
	return head, rows, nil
}

func (l *link) load(ctx context.Context, id string, since int64, head *Head, rows *[]Row) error {
	found := false
	err := l.each(ctx, func(v []driver.Value) { *head, found = headOf(v), true }, selectHead, id)
	if err != nil {
		return err
	}
	if !found {
		return ErrNoTown(id)
	}
	if since >= head.Version {
		return nil
	}
	add := func(v []driver.Value) {
		*rows = append(*rows, Row{Kind: asText(v[0]), ID: asText(v[1]), Version: asInt(v[2]), Body: asBytes(v[3])})
	}
	if since > 0 {
		return l.each(ctx, add, `SELECT kind, id, version, body FROM town_rows INDEXED BY town_rows_version
 WHERE town = ? AND version > ? ORDER BY kind, id`, id, since)
	}
	return l.each(ctx, add, `SELECT kind, id, version, body FROM town_rows
 WHERE town = ? AND body IS NOT NULL ORDER BY kind, id`, id)
}

// CommitKnown implements Store.
func (s *SQLite) CommitKnown(ctx context.Context, town, commitID string) (bool, error) {
	h, err := s.Head(ctx, town)
	return err == nil && h.CommitID == commitID, err
}

// NextDue implements Store.
func (s *SQLite) NextDue(ctx context.Context) (due int64, ok bool, err error) {
	err = s.read(ctx, func(l *link) (err error) {
		due, ok, err = l.number(ctx, `SELECT due_at FROM towns WHERE due_at IS NOT NULL ORDER BY due_at, id LIMIT 1`)
		return err
	})
	return due, ok, err
}

// IdleSlice implements Store. Both halves are answered by partial indexes that
// hold no healthy idle town.
func (s *SQLite) IdleSlice(ctx context.Context, slice, slices int, now int64) ([]Head, error) {
	lo, hi, err := SliceBounds(slice, slices)
	if err != nil {
		return nil, err
	}
	return s.heads(ctx, `SELECT `+headColumns+` FROM towns
 WHERE due_at IS NOT NULL AND due_at <= ? AND hash >= ? AND hash < ? AND idle_ms = 0
 UNION ALL SELECT `+headColumns+` FROM towns
 WHERE `+contradicts+`
 AND hash >= ? AND hash < ? AND idle_ms = 0 ORDER BY id`, now, lo, hi, lo, hi)
}

// IdleOwn implements Store. The beats are reckoned in SQL as Beat does it; the
// partial indexes hold few towns, and none that is healthy and idle.
func (s *SQLite) IdleOwn(ctx context.Context, from, to int64) (found []Head, least int64, err error) {
	const beat = ` AND idle_ms > 0 AND (? - hash * idle_ms / 65536 + idle_ms) / idle_ms > (? - hash * idle_ms / 65536 + idle_ms) / idle_ms`
	err = s.read(ctx, func(l *link) error {
		n, ok, err := l.number(ctx, `SELECT idle_ms FROM towns WHERE idle_ms > 0 ORDER BY idle_ms LIMIT 1`)
		if err != nil || !ok {
			return err
		}
		least = n
		return l.each(ctx, func(v []driver.Value) { found = append(found, headOf(v)) }, `SELECT `+headColumns+` FROM towns
 WHERE due_at IS NOT NULL AND due_at <= ?`+beat+`
 UNION ALL SELECT `+headColumns+` FROM towns
 WHERE `+contradicts+beat+`
 ORDER BY id`, to, to, from, to, from)
	})
	if err != nil {
		return nil, 0, err
	}
	return found, least, nil
}

// AwakeTowns implements Store.
func (s *SQLite) AwakeTowns(ctx context.Context) ([]Head, error) {
	return s.heads(ctx, `SELECT `+headColumns+` FROM towns WHERE sandbox <> 'asleep' ORDER BY id`)
}

// BudgetTowns implements Store.
func (s *SQLite) BudgetTowns(ctx context.Context) ([]Head, error) {
	return s.heads(ctx, `SELECT `+headColumns+` FROM towns WHERE waits_budget <> 0 ORDER BY id`)
}

// ServerDays implements Store.
func (s *SQLite) ServerDays(ctx context.Context, from string, limit int) (out []DaySpend, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { out = append(out, dayOf(v)) },
			selectDays+` WHERE day >= ? ORDER BY day LIMIT ?`, from, limitOf(limit))
	})
	return out, err
}

func dayOf(v []driver.Value) DaySpend {
	return DaySpend{Day: asText(v[0]), Runs: asInt(v[1]), AwakeMS: asInt(v[2]), Tokens: asInt(v[3]), Cost: asInt(v[4]),
		GrantedTokens: asInt(v[5]), GrantedCost: asInt(v[6])}
}

func (s *SQLite) rigs(ctx context.Context, q, arg string) (out []RigIndex, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) {
			out = append(out, RigIndex{Town: asText(v[0]), Rig: asText(v[1]), Prefix: asText(v[2])})
		}, q, arg)
	})
	return out, err
}

// FindRig implements Store.
func (s *SQLite) FindRig(ctx context.Context, rig string) ([]RigIndex, error) {
	return s.rigs(ctx, `SELECT town, rig, prefix FROM rigs WHERE rig = ? ORDER BY town`, rig)
}

// FindPrefix implements Store.
func (s *SQLite) FindPrefix(ctx context.Context, prefix string) ([]RigIndex, error) {
	return s.rigs(ctx, `SELECT town, rig, prefix FROM rigs WHERE prefix = ?`, prefix)
}

// Ledger implements Store.
func (s *SQLite) Ledger(ctx context.Context, town string, q LedgerQuery) (out []Entry, err error) {
	text := `SELECT seq, at, kind, subject, actor, body FROM ledger WHERE town = ? AND seq > ?`
	args := []any{town, q.After}
	if q.Before > 0 {
		text += ` AND seq < ?`
		args = append(args, q.Before)
	}
	if q.Subject != "" {
		text += ` AND subject = ?`
		args = append(args, q.Subject)
	}
	if q.Kind != "" {
		text += ` AND kind = ?`
		args = append(args, q.Kind)
	}
	text += ` ORDER BY seq`
	if q.Desc {
		text += ` DESC`
	}
	text += ` LIMIT ?`
	args = append(args, limitOf(q.Limit))
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) {
			out = append(out, Entry{Seq: asInt(v[0]), At: asInt(v[1]), Kind: asText(v[2]), Subject: asText(v[3]),
				Actor: asText(v[4]), Body: asBytes(v[5])})
		}, text, args...)
	})
	return out, err
}

// Idem implements Store.
func (s *SQLite) Idem(ctx context.Context, town, key string) (r Idem, ok bool, err error) {
	err = s.read(ctx, func(l *link) (err error) {
		r, ok, err = l.idem(ctx, town, key)
		return err
	})
	return r, ok, err
}

func (l *link) idem(ctx context.Context, town, key string) (r Idem, ok bool, err error) {
	err = l.each(ctx, func(v []driver.Value) {
		r = Idem{Key: asText(v[0]), Hash: asText(v[1]), Status: int(asInt(v[2])), Body: asBytes(v[3]), At: asInt(v[4])}
		ok = true
	}, selectIdem, town, key)
	return r, ok, err
}

// Waiting implements Store.
func (s *SQLite) Waiting(ctx context.Context, limit int) (out []string, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { out = append(out, asText(v[0])) },
			`SELECT town FROM slots WHERE state = 'waiting' ORDER BY since, town LIMIT ?`, limitOf(limit))
	})
	return out, err
}

// SlotCounts implements Store.
func (s *SQLite) SlotCounts(ctx context.Context) (c SlotCounts, err error) {
	err = s.read(ctx, func(l *link) (err error) {
		c, err = l.slotCounts(ctx)
		return err
	})
	return c, err
}

func (l *link) slotCounts(ctx context.Context) (c SlotCounts, err error) {
	err = l.each(ctx, func(v []driver.Value) {
		switch n := int(asInt(v[1])); asText(v[0]) {
		case SlotWaiting:
			c.Waiting = n
		case SlotStarting:
			c.Starting = n
		case SlotIsAwake:
			c.Awake = n
		}
	}, `SELECT state, COUNT(*) FROM slots GROUP BY state`)
	return c, err
}

// Slots implements Store.
func (s *SQLite) Slots(ctx context.Context) (out []Slot, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { out = append(out, slotOf(v)) }, selectSlots+` ORDER BY town`)
	})
	return out, err
}

// Transcript implements Store.
func (s *SQLite) Transcript(ctx context.Context, town, run string, epoch, after int64, limit int) (out []Chunk, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) {
			out = append(out, Chunk{Town: town, Run: run, Epoch: epoch, Seq: asInt(v[0]), At: asInt(v[1]),
				Kind: asText(v[2]), Body: asBytes(v[3])})
		}, `SELECT seq, at, kind, body FROM transcripts WHERE town = ? AND run = ? AND epoch = ? AND seq > ?
 ORDER BY seq LIMIT ?`, town, run, epoch, after, limitOf(limit))
	})
	return out, err
}

// Meta implements Store.
func (s *SQLite) Meta(ctx context.Context, key string) (value string, ok bool, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { value, ok = asText(v[0]), true }, `SELECT value FROM meta WHERE key = ?`, key)
	})
	return value, ok, err
}
