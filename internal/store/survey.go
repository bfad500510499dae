package store

import (
	"context"
	"database/sql/driver"
)

// Surveyed is what an examination reads of a town without loading it.
type Surveyed struct {
	Head
	First, Last, Entries int64 // the numbers of its first and last ledger entry, and how many there are
	Missed               bool  // its last commit set a deadline, and the row has none: it was wiped
}

// Lost is how many entries the ledger lacks of those from the first that it still
// holds to the last that was given.
func (s Surveyed) Lost() int64 {
	if s.Entries == 0 {
		return 0
	}
	return s.LedgerSeq - s.First + 1 - s.Entries
}

// Survey reads the towns after an id, by id, with the ends of their ledgers; or
// only one town. It reads columns and keys alone, in one snapshot per call.
func (s *SQLite) Survey(ctx context.Context, only, after string, limit int) (out []Surveyed, err error) {
	where, arg := `id > ?`, after
	if only != "" {
		where, arg = `id = ?`, only
	}
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) {
			n := len(v)
			out = append(out, Surveyed{Head: headOf(v), First: asInt(v[n-4]), Last: asInt(v[n-3]), Entries: asInt(v[n-2]), Missed: asInt(v[n-1]) != 0})
		}, `SELECT `+headColumns+`,
 IFNULL((SELECT MIN(seq) FROM ledger WHERE town = towns.id), 0),
 IFNULL((SELECT MAX(seq) FROM ledger WHERE town = towns.id), 0),
 (SELECT COUNT(*) FROM ledger INDEXED BY ledger_subject WHERE town = towns.id),
 due_at IS NULL AND waits <> 0
 FROM towns WHERE `+where+` ORDER BY id LIMIT ?`, arg, limitOf(limit))
	})
	return out, err
}

// AllRigs lists the rigs of all towns after a town and rig, in that order.
func (s *SQLite) AllRigs(ctx context.Context, town, rig string, limit int) (out []RigIndex, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) {
			out = append(out, RigIndex{Town: asText(v[0]), Rig: asText(v[1]), Prefix: asText(v[2])})
		}, `SELECT town, rig, prefix FROM rigs WHERE (town, rig) > (?, ?) ORDER BY town, rig LIMIT ?`, town, rig, limitOf(limit))
	})
	return out, err
}

// Oldest returns when the oldest idempotency record and the oldest chunk of a
// transcript were written; 0 for none.
func (s *SQLite) Oldest(ctx context.Context) (idem, transcript int64, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { idem, transcript = asInt(v[0]), asInt(v[1]) },
			`SELECT IFNULL((SELECT MIN(at) FROM idem), 0), IFNULL((SELECT MIN(at) FROM transcripts), 0)`)
	})
	return idem, transcript, err
}

// Strays lists ids that rows, ledgers, rigs or slots name and that are no town's,
// at most limit of them.
func (s *SQLite) Strays(ctx context.Context, limit int) (out []string, err error) {
	err = s.read(ctx, func(l *link) error {
		return l.each(ctx, func(v []driver.Value) { out = append(out, asText(v[0])) },
			`SELECT town FROM (SELECT DISTINCT town FROM town_rows UNION SELECT town FROM rigs UNION SELECT town FROM slots)
 WHERE town NOT IN (SELECT id FROM towns) ORDER BY town LIMIT ?`, limitOf(limit))
	})
	return out, err
}
