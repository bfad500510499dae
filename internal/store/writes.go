package store

import (
	"context"
	"database/sql/driver"

	"gastown/internal/errs"
)

const (
	insertTown = `INSERT INTO towns (id, name, owner, version, commit_id, created_at, ledger_seq, hash,
 due_at, desired_rev, sandbox, generation, wanted, open, failing, status, idle_ms, waits, waits_budget)
 VALUES (?,?,?,1,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`
	// The ledger condition makes a gap miss like a version does.
	updateTown = `UPDATE towns SET version = version + 1, commit_id = ?, ledger_seq = ledger_seq + ?,
 due_at = ?, desired_rev = ?, sandbox = ?, generation = ?, wanted = ?, open = ?, failing = ?, status = ?, idle_ms = ?, waits = ?, waits_budget = ?
 WHERE id = ? AND version = ? AND (? = 0 OR ledger_seq = ?)`
	upsertRow = `INSERT INTO town_rows (town, kind, id, version, body) VALUES (?,?,?,?,?)
 ON CONFLICT (town, kind, id) DO UPDATE SET version = excluded.version, body = excluded.body`
	insertLedger = `INSERT INTO ledger (town, seq, at, kind, subject, actor, body) VALUES (?,?,?,?,?,?,?)`
	insertIdem   = `INSERT INTO idem (town, key, hash, status, body, at) VALUES (?,?,?,?,?,?) ON CONFLICT DO NOTHING`
	selectIdem   = `SELECT key, hash, status, body, at FROM idem WHERE town = ? AND key = ?`
	upsertRig    = `INSERT INTO rigs (town, rig, prefix) VALUES (?,?,?)
 ON CONFLICT (town, rig) DO UPDATE SET prefix = excluded.prefix`
	// The cap is MaxSpend: beyond the range of its integers SQLite would go on in floating point.
	upsertDay = `INSERT INTO server_days (day, runs, awake_ms, tokens, cost, granted_tokens, granted_cost) VALUES (?,?,?,?,?,MAX(?,0),MAX(?,0))
 ON CONFLICT (day) DO UPDATE SET runs = MIN(runs + excluded.runs, 4000000000000000000),
 awake_ms = MIN(awake_ms + excluded.awake_ms, 4000000000000000000), tokens = MIN(tokens + excluded.tokens, 4000000000000000000),
 cost = MIN(cost + excluded.cost, 4000000000000000000),
 granted_tokens = MAX(MIN(granted_tokens + ?, 4000000000000000000), 0), granted_cost = MAX(MIN(granted_cost + ?, 4000000000000000000), 0)`
	slotAwake = `INSERT INTO slots (town, state, since, seen, at) VALUES (?,'awake',?,?,?)
 ON CONFLICT (town) DO UPDATE SET state = 'awake', at = excluded.at`
)

func orNull(ms int64) any {
	if ms == 0 {
		return nil
	}
	return ms
}

func sizeOf(rows []Row, ledger []Entry) (n int) {
	for _, r := range rows {
		n += len(r.Body)
	}
	for _, e := range ledger {
		n += len(e.Body)
	}
	return n
}

// CreateTown implements Store.
func (s *SQLite) CreateTown(ctx context.Context, h Head, rows []Row, ledger []Entry) error {
	if err := CheckCreate(h, rows, ledger); err != nil {
		return err
	}
	return s.w.do(ctx, sizeOf(rows, ledger), func(t *tx) error {
		_, err := t.do(insertTown, h.ID, h.Name, h.Owner, h.CommitID, h.CreatedAt, len(ledger), HashOf(h.ID),
			orNull(h.DueAt), h.DesiredRev, h.Sandbox, h.Generation, h.Wanted, h.Open, h.Failing, h.Status, h.IdleMS, h.DueAt != 0, h.WaitsBudget)
		if code(err) == codeConstraint {
			return ErrNameTaken(h.Name)
		}
		if err != nil {
			return err
		}
		if err := t.putRows(h.ID, 1, rows); err != nil {
			return err
		}
		return t.putLedger(h.ID, ledger)
	})
}

func (t *tx) putRows(town string, version int64, rows []Row) error {
	for _, r := range rows {
		if _, err := t.do(upsertRow, town, r.Kind, r.ID, version, r.Body); err != nil {
			return err
		}
		t.bytes += int64(len(r.Body))
	}
	return nil
}

func (t *tx) putLedger(town string, ledger []Entry) error {
	for _, e := range ledger {
		if _, err := t.do(insertLedger, town, e.Seq, e.At, e.Kind, e.Subject, e.Actor, e.Body); err != nil {
			return err
		}
		t.bytes += int64(len(e.Body))
	}
	return nil
}

// Commit implements Store.
func (s *SQLite) Commit(ctx context.Context, c Commit) (int64, error) {
	if err := c.Check(); err != nil {
		return 0, err
	}
	err := s.w.do(ctx, sizeOf(c.Rows, c.Ledger), func(t *tx) error { return t.commitTown(&c) })
	if err != nil {
		return 0, err
	}
	return c.Expect + 1, nil
}

func (t *tx) commitTown(c *Commit) error {
	var last int64 // the ledger seq that the first new entry must follow
	if len(c.Ledger) > 0 {
		last = c.Ledger[0].Seq - 1
	}
	k := c.Columns
	n, err := t.do(updateTown, c.CommitID, len(c.Ledger), orNull(k.DueAt), k.DesiredRev, k.Sandbox, k.Generation,
		k.Wanted, k.Open, k.Failing, k.Status, k.IdleMS, k.DueAt != 0, k.WaitsBudget, c.Town, c.Expect, len(c.Ledger), last)
	if err != nil {
		return err
	}
	if n == 0 {
		return t.whyMissed(c, last)
	}
	if err := t.putIdems(c.Town, c.Idem); err != nil {
		return err
	}
	if err := t.putRigs(c.Town, c.Rigs); err != nil {
		return err
	}
	if err := t.putRows(c.Town, c.Expect+1, c.Rows); err != nil {
		return err
	}
	if err := t.putLedger(c.Town, c.Ledger); err != nil {
		return err
	}
	if err := t.putSpend(c.Spend, c.Limits); err != nil {
		return err
	}
	switch c.Slot {
	case SlotAwake:
		_, err = t.do(slotAwake, c.Town, c.At, c.At, c.At)
	case SlotRelease:
		_, err = t.do(`DELETE FROM slots WHERE town = ?`, c.Town)
	}
	return err
}

// putSpend adds to the totals of days. The limit is read in the transaction that
// adds: of many towns that start a run, or ask for a block, at the same moment only
// so many succeed as there is left.
func (t *tx) putSpend(spend []DaySpend, limits DayLimits) error {
	for _, d := range spend {
		if limits != (DayLimits{}) {
			have := DaySpend{Day: d.Day}
			if err := t.each(context.Background(), func(v []driver.Value) { have = dayOf(v) }, selectDays+` WHERE day = ?`, d.Day); err != nil {
				return err
			}
			if limits.Refuse(d, have) {
				return ErrBudget
			}
		}
		if _, err := t.do(upsertDay, d.Day, d.Runs, d.AwakeMS, d.Tokens, d.Cost, d.GrantedTokens, d.GrantedCost, d.GrantedTokens, d.GrantedCost); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) whyMissed(c *Commit, last int64) error {
	version, seq := int64(-1), int64(0)
	err := t.each(context.Background(), func(v []driver.Value) { version, seq = asInt(v[0]), asInt(v[1]) },
		`SELECT version, ledger_seq FROM towns WHERE id = ?`, c.Town)
	switch {
	case err != nil:
		return err
	case version < 0:
		return ErrNoTown(c.Town)
	case version != c.Expect:
		return ErrVersion
	}
	return ErrGap(c.Town, seq+1, last+1)
}

// putIdems refuses keys that are recorded already: the request was carried out.
func (t *tx) putIdems(town string, records []Idem) error {
	for _, r := range records {
		n, err := t.do(insertIdem, town, r.Key, r.Hash, r.Status, r.Body, r.At)
		if err != nil {
			return err
		}
		if n == 0 {
			old, _, err := t.idem(context.Background(), town, r.Key)
			switch {
			case err != nil:
				return err
			case old.Hash == r.Hash:
				return ErrReplay
			}
			return ErrKeyTaken(r.Key)
		}
		t.bytes += int64(len(r.Body))
	}
	return nil
}

// putRigs takes entries away before it adds others, so that a prefix can move.
func (t *tx) putRigs(town string, rigs []RigIndex) error {
	for _, r := range rigs {
		if !r.Removed {
			continue
		}
		if _, err := t.do(`DELETE FROM rigs WHERE town = ? AND rig = ?`, town, r.Rig); err != nil {
			return err
		}
	}
	for _, r := range rigs {
		if r.Removed {
			continue
		}
		_, err := t.do(upsertRig, town, r.Rig, r.Prefix)
		if code(err) == codeConstraint {
			return ErrPrefixTaken(r.Prefix)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ClaimDue implements Store. It writes nothing when no town is due.
func (s *SQLite) ClaimDue(ctx context.Context, now, until int64, limit int) ([]Head, error) {
	if until <= now {
		return nil, errs.New(errs.Invalid, "a claim must end after now")
	}
	if next, ok, err := s.NextDue(ctx); err != nil || !ok || next > now {
		return nil, err
	}
	var claimed []Head
	err := s.w.do(ctx, 0, func(t *tx) error {
		claimed = nil
		err := t.each(context.Background(), func(v []driver.Value) { claimed = append(claimed, headOf(v)) },
			`SELECT `+headColumns+` FROM towns WHERE due_at IS NOT NULL AND due_at <= ? ORDER BY due_at, id LIMIT ?`,
			now, limitOf(limit))
		if err != nil {
			return err
		}
		for i := range claimed {
			if _, err := t.do(`UPDATE towns SET due_at = ? WHERE id = ?`, until, claimed[i].ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}

// PutIdem implements Store.
func (s *SQLite) PutIdem(ctx context.Context, town string, r Idem) error {
	if err := CheckIdem(r); err != nil {
		return err
	}
	return s.w.do(ctx, len(r.Body), func(t *tx) error {
		if town != "" {
			if err := t.mustExist(town); err != nil {
				return err
			}
		}
		err := t.putIdems(town, []Idem{r})
		if err == ErrReplay {
			return nil
		}
		return err
	})
}

// Admit implements Store.
func (s *SQLite) Admit(ctx context.Context, town string, now int64, l Limits) (Admission, error) {
	var a Admission
	err := s.w.do(ctx, 0, func(t *tx) (err error) {
		a, err = t.admit(town, now, l)
		return err
	})
	if err != nil {
		return Admission{}, err
	}
	return a, nil
}

// mustExist keeps late writers from leaving something of a deleted town behind.
func (t *tx) mustExist(town string) error {
	_, ok, err := t.number(context.Background(), `SELECT 1 FROM towns WHERE id = ?`, town)
	if err == nil && !ok {
		err = ErrNoTown(town)
	}
	return err
}

func (t *tx) admit(town string, now int64, l Limits) (Admission, error) {
	ctx := context.Background()
	if err := t.mustExist(town); err != nil {
		return Admission{}, err
	}
	mine := Slot{Town: town, Since: now}
	err := t.each(ctx, func(v []driver.Value) { mine = slotOf(v) }, selectSlots+` WHERE town = ?`, town)
	if err != nil {
		return Admission{}, err
	}
	if mine.State == SlotStarting || mine.State == SlotIsAwake {
		return Admission{Granted: true}, nil
	}
	counts, err := t.slotCounts(ctx)
	if err != nil {
		return Admission{}, err
	}
	ahead, _, err := t.number(ctx, `SELECT COUNT(*) FROM slots WHERE state = 'waiting' AND seen >= ?
 AND (since < ? OR (since = ? AND town < ?))`, now-WaiterTTL, mine.Since, mine.Since, town)
	if err != nil {
		return Admission{}, err
	}
	answer := Decide(counts, int(ahead), l)
	state := SlotWaiting
	if answer.Granted {
		state = SlotStarting
	} else if mine.State == SlotWaiting && now-mine.Seen < WaiterTTL/3 {
		return answer, nil // polling costs no write
	}
	_, err = t.do(`INSERT INTO slots (town, state, since, seen, at) VALUES (?,?,?,?,?)
 ON CONFLICT (town) DO UPDATE SET state = excluded.state, seen = excluded.seen,
 at = CASE WHEN state = excluded.state THEN at ELSE excluded.at END`, town, state, mine.Since, now, now)
	return answer, err
}

// AppendTranscript implements Store.
func (s *SQLite) AppendTranscript(ctx context.Context, chunks []Chunk) error {
	if err := CheckChunks(chunks); err != nil || len(chunks) == 0 {
		return err
	}
	size := 0
	for _, c := range chunks {
		size += len(c.Body)
	}
	return s.w.do(ctx, size, func(t *tx) error {
		var room Room
		for i, c := range chunks {
			if i == 0 || c.Town != chunks[i-1].Town {
				if err := t.mustExist(c.Town); err != nil {
					return err
				}
			}
			c, ok, err := room.Take(c, func() (int64, bool, error) { return t.transcriptSize(c) })
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			n, err := t.do(`INSERT INTO transcripts (town, run, epoch, seq, at, kind, body) VALUES (?,?,?,?,?,?,?)
 ON CONFLICT DO NOTHING`, c.Town, c.Run, c.Epoch, c.Seq, c.At, c.Kind, c.Body)
			if err != nil {
				return err
			}
			t.bytes += n * int64(len(c.Body))
		}
		return nil
	})
}

// transcriptSize adds one epoch of a run up. It is bounded by MaxTranscript, so
// that the sum costs milliseconds at worst.
func (t *tx) transcriptSize(c Chunk) (size int64, full bool, err error) {
	const of = ` FROM transcripts WHERE town = ? AND run = ? AND epoch = ?`
	ctx := context.Background()
	size, _, err = t.number(ctx, `SELECT IFNULL(SUM(LENGTH(body)), 0) + ? * COUNT(*)`+of, ChunkCost, c.Town, c.Run, c.Epoch)
	if err != nil {
		return 0, false, err
	}
	n, _, err := t.number(ctx, `SELECT COUNT(*)`+of+` AND seq = ?`, c.Town, c.Run, c.Epoch, fullSeq)
	return size, n > 0, err
}

// DeleteTown implements Store. A town with a very long ledger holds up other
// writes for as long as the deletion takes.
func (s *SQLite) DeleteTown(ctx context.Context, id string) error {
	if id == "" {
		return ErrNoTown(id) // "" is the server's scope of idempotency records
	}
	return s.w.do(ctx, 0, func(t *tx) error {
		n, err := t.do(`DELETE FROM towns WHERE id = ?`, id)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNoTown(id)
		}
		for _, table := range []string{"town_rows", "ledger", "rigs", "idem", "slots", "transcripts"} {
			if _, err := t.do(`DELETE FROM `+table+` WHERE town = ?`, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetMeta implements Store.
func (s *SQLite) SetMeta(ctx context.Context, key, value string) error {
	return s.w.do(ctx, len(value), func(t *tx) error {
		_, err := t.do(`INSERT INTO meta (key, value) VALUES (?,?)
 ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
		return err
	})
}

// PruneIdem implements Store.
func (s *SQLite) PruneIdem(ctx context.Context, before int64, limit int) (int, error) {
	return s.prune(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM idem WHERE at < ? LIMIT ?)`,
		`DELETE FROM idem WHERE (town, key) IN (SELECT town, key FROM idem WHERE at < ? ORDER BY at LIMIT ?)`, before, limitOf(limit))
}

// PruneTranscripts implements Store.
func (s *SQLite) PruneTranscripts(ctx context.Context, before int64, limit int) (int, error) {
	return s.prune(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM transcripts WHERE at < ? LIMIT ?)`,
		`DELETE FROM transcripts WHERE (town, run, epoch, seq) IN
 (SELECT town, run, epoch, seq FROM transcripts WHERE at < ? ORDER BY at LIMIT ?)`, before, limitOf(limit))
}

// PruneLedger implements Store.
func (s *SQLite) PruneLedger(ctx context.Context, town string, before int64, limit int) (int, error) {
	// Oldest means lowest seq: an entry behind a younger one stays.
	const old = `FROM (SELECT seq, at FROM ledger WHERE town = ? ORDER BY seq LIMIT ?) WHERE seq <
 COALESCE((SELECT seq FROM ledger WHERE town = ? AND at >= ? ORDER BY seq LIMIT 1), 9223372036854775807)`
	return s.prune(ctx, `SELECT COUNT(*) `+old, `DELETE FROM ledger WHERE town = ? AND seq IN (SELECT seq `+old+`)`,
		town, limitOf(limit), town, before)
}

// prune looks before it writes, so that nothing to do writes nothing.
func (s *SQLite) prune(ctx context.Context, look, del string, args ...any) (int, error) {
	var found int64
	err := s.read(ctx, func(l *link) (err error) {
		found, _, err = l.number(ctx, look, args...)
		return err
	})
	if err != nil || found == 0 {
		return 0, err
	}
	if town, ok := args[0].(string); ok { // the ledger's DELETE names the town once more
		args = append([]any{town}, args...)
	}
	var n int64
	err = s.w.do(ctx, 0, func(t *tx) (err error) {
		n, err = t.do(del, args...)
		return err
	})
	if err != nil {
		return 0, err
	}
	return int(n), nil
}
