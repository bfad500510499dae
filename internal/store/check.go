package store

import (
	"hash/fnv"
	"slices"
	"time"

	"gastown/internal/errs"
)

// DefaultLimit is used where a query's limit is 0.
const DefaultLimit = 100

// HashOf spreads town ids over HashSpace values. It is stored at creation and
// must never change.
func HashOf(id string) int64 {
	h := fnv.New32a()
	h.Write([]byte(id)) // never fails
	s := h.Sum32()
	return int64((s >> 16) ^ (s & 0xffff))
}

// Beat returns the first moment after a time at which a town with an idle
// interval of its own is looked at. The beat of a town is a function of its id,
// so a restart moves none, and towns with the same interval are spread.
func Beat(id string, idle, after int64) int64 {
	phase := HashOf(id) * idle / HashSpace
	return (after-phase+idle)/idle*idle + phase
}

// SliceBounds returns the half-open range of hashes that belong to a slice.
func SliceBounds(slice, slices int) (lo, hi int64, err error) {
	if slices < 1 || slice < 0 || slice >= slices {
		return 0, 0, errs.New(errs.Invalid, "slice %d of %d does not exist", slice, slices)
	}
	return int64(slice) * HashSpace / int64(slices), int64(slice+1) * HashSpace / int64(slices), nil
}

// Check refuses a commit that no store may apply: missing ids, bodies over MaxRow,
// ledger entries out of order. Every implementation calls it first.
func (c *Commit) Check() error {
	if c.Town == "" || c.CommitID == "" {
		return errs.New(errs.Invalid, "a commit needs a town and a commit id")
	}
	if c.Columns.DueAt < 0 || c.Columns.IdleMS < 0 {
		return errs.New(errs.Invalid, "a deadline or an interval can't be negative")
	}
	if c.Slot < SlotKeep || c.Slot > SlotRelease {
		return errs.New(errs.Invalid, "unknown slot change %d", c.Slot)
	}
	if err := CheckSpend(c.Spend); err != nil {
		return err
	}
	for _, r := range c.Idem {
		if err := r.check(); err != nil {
			return err
		}
	}
	for _, r := range c.Rigs {
		if r.Rig == "" || (r.Prefix == "" && !r.Removed) {
			return errs.New(errs.Invalid, "a rig needs a name and a prefix")
		}
	}
	if err := CheckRows(c.Rows); err != nil {
		return err
	}
	return CheckLedger(c.Ledger)
}

// CheckSpend refuses numbers that no one can have spent.
func CheckSpend(spend []DaySpend) error {
	for i, s := range spend {
		if _, err := time.Parse(time.DateOnly, s.Day); err != nil || len(s.Day) != len(time.DateOnly) {
			return errs.New(errs.Invalid, "%.20q is no day", s.Day)
		}
		for _, n := range []int64{s.Runs, s.AwakeMS, s.Tokens, s.Cost} {
			if n < 0 || n > MaxSpend {
				return errs.New(errs.Invalid, "nobody can spend %d on a day", n)
			}
		}
		for _, n := range []int64{s.GrantedTokens, s.GrantedCost} {
			if n < -MaxSpend || n > MaxSpend {
				return errs.New(errs.Invalid, "nobody can be granted %d on a day", n)
			}
		}
		if slices.ContainsFunc(spend[:i], func(o DaySpend) bool { return o.Day == s.Day }) {
			return errs.New(errs.Invalid, "day %s is named twice", s.Day)
		}
	}
	return nil
}

// CheckCreate refuses a town that can't be created. First ledger seq is 1.
func CheckCreate(h Head, rows []Row, ledger []Entry) error {
	if h.ID == "" || h.Name == "" {
		return errs.New(errs.Invalid, "a town needs an id and a name")
	}
	if h.DueAt < 0 || h.IdleMS < 0 {
		return errs.New(errs.Invalid, "a deadline or an interval can't be negative")
	}
	if len(ledger) > 0 && ledger[0].Seq != 1 {
		return ErrGap(h.ID, 1, ledger[0].Seq)
	}
	if err := CheckRows(rows); err != nil {
		return err
	}
	return CheckLedger(ledger)
}

// ErrGap is the error for a ledger entry that does not follow the last one.
func ErrGap(town string, want, got int64) error {
	return errs.New(errs.Invalid, "ledger of town %s: the next entry is %d, not %d", town, want, got)
}

// CheckRows refuses rows without kind or id and rows that are too large.
func CheckRows(rows []Row) error {
	for _, r := range rows {
		if r.Kind == "" || r.ID == "" {
			return errs.New(errs.Invalid, "a row needs a kind and an id")
		}
		if r.Body != nil && len(r.Body) == 0 {
			return errs.New(errs.Invalid, "row %s/%s is empty; a deleted row has a nil body", r.Kind, r.ID)
		}
		if err := checkSize("row "+r.Kind+"/"+r.ID, r.Body); err != nil {
			return err
		}
	}
	return nil
}

// CheckLedger refuses entries that don't follow each other or are too large.
func CheckLedger(ledger []Entry) error {
	for i, e := range ledger {
		if e.Seq < 1 || (i > 0 && e.Seq != ledger[i-1].Seq+1) {
			return errs.New(errs.Invalid, "ledger entries must be numbered from 1 without gaps")
		}
		if err := checkSize("ledger entry "+e.Kind, e.Body); err != nil {
			return err
		}
	}
	return nil
}

// CheckIdem refuses a record without a key or with a body that is too large.
func CheckIdem(r Idem) error { return r.check() }

func (i Idem) check() error {
	if i.Key == "" {
		return errs.New(errs.Invalid, "an idempotency record needs a key")
	}
	return checkSize("answer to "+i.Key, i.Body)
}

// CheckChunks refuses chunks without a key or with a body that is too large.
func CheckChunks(chunks []Chunk) error {
	for _, c := range chunks {
		if c.Town == "" || c.Run == "" {
			return errs.New(errs.Invalid, "a transcript chunk needs a town and a run")
		}
		if err := checkSize("transcript of "+c.Run, c.Body); err != nil {
			return err
		}
	}
	return nil
}

func checkSize(what string, body []byte) error {
	if len(body) > MaxRow {
		return errs.New(errs.Invalid, "%s has %d bytes; the limit is %d", what, len(body), MaxRow)
	}
	return nil
}

// ErrNoTown is the error for a town that does not exist.
func ErrNoTown(id string) error { return errs.New(errs.NotFound, "no town %q", id) }

// ErrNameTaken is the error for a second town of one name or id.
func ErrNameTaken(name string) error {
	return errs.New(errs.Conflict, "a town named %q exists already", name).WithHint("choose another name, or use that one")
}

// ErrPrefixTaken is the error for a second rig with one bead prefix.
func ErrPrefixTaken(prefix string) error {
	return errs.New(errs.Conflict, "the bead prefix %q is taken", prefix).WithHint("choose another prefix")
}

// ErrKeyTaken is the error for an idempotency key that was used for another
// request.
func ErrKeyTaken(key string) error {
	return errs.New(errs.Conflict, "the idempotency key %q was used for a different request", key)
}

// ErrClosed is the error of every call on a closed store.
func ErrClosed() error { return errs.New(errs.Unavailable, "the store is closed") }
