package store

import (
	"context"

	"gastown/internal/errs"
)

// Sentinels; test for them with errors.Is.
var (
	// ErrVersion refuses a commit because the town has another version than
	// the caller expected: reload and try again. Nothing was changed.
	ErrVersion error = errs.New(errs.Conflict, "the town was changed by someone else").WithHint("reload and try again")
	// ErrUnknown says that a write may or may not have happened. Drop the copy
	// in memory, reload, and look for the commit with CommitKnown or Idem.
	ErrUnknown error = errs.New(errs.Unavailable, "the outcome of the write is not known").
			WithHint("retry with the same idempotency key")
	// ErrReplay refuses a commit because one of its idempotency keys is
	// recorded already with the same hash: answer from the record. Nothing was
	// changed. (A key with another hash is an ordinary errs.Conflict.)
	ErrReplay error = errs.New(errs.Conflict, "this request was answered before")
	// ErrBudget refuses a commit because its runs would pass the server's limit
	// for the runs of a day: reload with that day's totals. Nothing was changed.
	ErrBudget error = errs.New(errs.Conflict, "the server's runs of this day are used up")
)

// Values of Columns that the store itself understands. All others are text.
const (
	Asleep   = "asleep"   // Columns.Sandbox
	Deleting = "deleting" // Columns.Status
)

// MaxRow is the largest body of a row, ledger entry, idempotency record or
// transcript chunk, in bytes.
const MaxRow = 4 << 20

// WaiterTTL is how long, in milliseconds, a waiting town keeps others behind it
// without asking again. It keeps its place in the queue and counts again as soon
// as it asks, so a town that stopped wanting a sandbox blocks nobody for ever.
const WaiterTTL = 90_000

// HashSpace is the number of values of the stable hash that spreads towns over
// the slices of IdleSlice.
const HashSpace = 1 << 16

// Columns are what the store knows of a town without reading its rows.
type Columns struct {
	DueAt      int64  // the exact next deadline; 0 = none (stored as NULL)
	DesiredRev int64  // rises only when the desired document changed
	Sandbox    string // asleep|queued|starting|awake|draining|stopping|wedged
	Generation int64  // of the sandbox
	Wanted     bool   // a hold or a grace wants the sandbox awake and nothing suppresses it
	Open       int64  // non-terminal beads, for lists
	Failing    string // last error of the town's loop, "" when healthy
	Status     string // active|paused|sleeping|deleting
	IdleMS     int64  // the town's own idle interval; 0 = the server's

	WaitsBudget bool // work waits for a budget or for what the server has for agents: one with other limits or offers must look
}

// Contradicts reports columns that no healthy town has: something is left to do
// but no deadline will bring anyone to do it. IdleSlice and IdleOwn return such
// towns, and those whose deadline was wiped by hand.
func (c Columns) Contradicts() bool {
	return c.DueAt == 0 && (c.Sandbox != Asleep || c.Wanted || c.Failing != "" || c.Status == Deleting)
}

// Head is a town without its rows. LedgerSeq is the seq of its last ledger entry.
type Head struct {
	ID, Name, Owner string
	Version         int64 // 1 after creation, +1 with each commit
	CommitID        string
	CreatedAt       int64
	LedgerSeq       int64
	Columns
}

// Row is one JSON document of a town. Version is the town's version that wrote
// it; the store sets it. A nil Body is a tombstone: the row was deleted.
type Row struct {
	Kind, ID string
	Version  int64
	Body     []byte
}

// Entry is one line of a town's ledger. The caller numbers entries from 1,
// without gaps; the store refuses a gap.
type Entry struct {
	Seq, At              int64
	Kind, Subject, Actor string
	Body                 []byte
}

// Idem is the recorded answer to a request with an idempotency key.
type Idem struct {
	Key, Hash string
	Status    int
	Body      []byte
	At        int64
}

// SlotChange says what a commit does to the town's admission slot.
type SlotChange int

// The changes. SlotAwake also works without a granted slot, because a sandbox
// that runs counts whoever let it in. SlotRelease also ends waiting.
const (
	SlotKeep SlotChange = iota
	SlotAwake
	SlotRelease
)

// RigIndex lets a rig's name or a bead's prefix find its town. A prefix is unique
// on the server, a rig's name in its town. Removed takes the entry away. Town is
// set by reads and ignored in a Commit.
type RigIndex struct {
	Town, Rig, Prefix string
	Removed           bool
}

// DaySpend is what was spent on one day in UTC: by a commit, or by the whole
// server so far. Numbers are not negative and never rise above MaxSpend.
type DaySpend struct {
	Day     string // 2006-01-02
	Runs    int64  // started
	AwakeMS int64  // of sandboxes
	Tokens  int64
	Cost    int64 // millionths of a dollar

	// What is granted to runs and not settled; in a commit the change, which may
	// be negative. Totals don't fall below 0.
	GrantedTokens, GrantedCost int64
}

// MaxSpend is where totals stop rising, so that two of them can be added.
const MaxSpend = 4e18

// Add returns the sum of two totals of a day.
func (d DaySpend) Add(o DaySpend) DaySpend {
	sum := func(a, b int64) int64 { return min(a+b, MaxSpend) }
	return DaySpend{d.Day, sum(d.Runs, o.Runs), sum(d.AwakeMS, o.AwakeMS), sum(d.Tokens, o.Tokens), sum(d.Cost, o.Cost),
		max(sum(d.GrantedTokens, o.GrantedTokens), 0), max(sum(d.GrantedCost, o.GrantedCost), 0)}
}

// DayLimits are what all towns together may spend on a day; 0 = no limit. Runs
// are refused, with ErrBudget, beyond theirs; tokens and cost can't be, but to
// grant more of them than are left is.
type DayLimits struct{ Runs, Tokens, Cost int64 }

// Refuse reports whether d can't be added to the total of its day.
func (l DayLimits) Refuse(d, total DaySpend) bool {
	over := func(limit, granted, have int64) bool { return limit > 0 && granted > 0 && have > limit-granted }
	return over(l.Runs, d.Runs, total.Runs) || over(l.Tokens, d.GrantedTokens, total.Tokens+total.GrantedTokens) ||
		over(l.Cost, d.GrantedCost, total.Cost+total.GrantedCost)
}

// Commit is one transaction on one town. Columns replace the old ones whole.
type Commit struct {
	Town     string
	Expect   int64  // the version that the caller read
	CommitID string // unique; CommitKnown finds it while it is the last one
	At       int64
	Columns  Columns
	Rows     []Row
	Ledger   []Entry
	Idem     []Idem
	Slot     SlotChange
	Rigs     []RigIndex
	Spend    []DaySpend // added to the totals of the server's days, each day at most once
	Limits   DayLimits  // of the days of Spend
}

// LedgerQuery selects entries with After < Seq < Before (0 = no bound), oldest
// first unless Desc. Empty Subject and Kind match all. Limit 0 means 100.
type LedgerQuery struct {
	After, Before int64
	Limit         int
	Subject, Kind string
	Desc          bool
}

// Limits bound the sandboxes of one server. 0 or less means no limit.
type Limits struct {
	MaxAwake    int // starting and awake together
	MaxStarting int
}

// Admission is the answer to Admit. Position counts from 1 (next in line) and is
// 0 when granted.
type Admission struct {
	Granted  bool
	Position int
}

// States of a Slot.
const (
	SlotWaiting  = "waiting"
	SlotStarting = "starting"
	SlotIsAwake  = "awake"
)

// Slot is one town's row in the admission table. Since is when it began to wait,
// Seen when it last asked, At when it got its present state.
type Slot struct {
	Town, State     string
	Since, Seen, At int64
}

// SlotCounts are the numbers of slots in each state.
type SlotCounts struct{ Waiting, Starting, Awake int }

// Chunk is a piece of a run's transcript. (Town, Run, Epoch, Seq) is its key.
type Chunk struct {
	Town, Run      string
	Epoch, Seq, At int64
	Kind           string
	Body           []byte
}

// Stats counts what a store wrote since it was opened.
type Stats struct {
	Writes  int64 // rows written, of all tables
	Bytes   int64 // bytes of bodies in them
	Jobs    int64 // calls that wrote
	Batches int64 // durable transactions; Jobs share them
}

// Store is durable state. See the package comment for what all methods promise.
type Store interface {
	// CreateTown stores a new town at version 1. A taken name or id is a
	// Conflict. Version and LedgerSeq of the head are ignored.
	CreateTown(ctx context.Context, h Head, rows []Row, ledger []Entry) error
	// Find looks an id up, then a name.
	Find(ctx context.Context, nameOrID string) (Head, error)
	// Heads lists towns by name, those after the given name.
	Heads(ctx context.Context, after string, limit int) ([]Head, error)
	// Head reads one town's head, as committed after the call began.
	Head(ctx context.Context, id string) (Head, error)
	// Load reads the head, then rows with Version > since, in one snapshot,
	// ordered by kind and id. Tombstones are included only when since > 0, which
	// must be a version that this store gave out since it was opened.
	Load(ctx context.Context, id string, since int64) (Head, []Row, error)
	// Commit applies c if the town is at version c.Expect and returns the new
	// version. Errors: ErrVersion, ErrReplay, ErrUnknown, Conflict for a taken
	// prefix or an idempotency key with another hash, ErrBudget, NotFound,
	// Invalid, Unavailable.
	Commit(ctx context.Context, c Commit) (int64, error)
	// CommitKnown reports whether commitID is the town's last commit. False
	// does not prove that the commit was lost: a later one may have followed.
	CommitKnown(ctx context.Context, town, commitID string) (bool, error)

	// ClaimDue moves the deadline of up to limit towns that are due at now to
	// until, and returns them, oldest first, with the old deadline in DueAt.
	// The version stays: a claim changes nothing that a copy in memory shows,
	// and the holder's next commit sets the deadline anyway.
	ClaimDue(ctx context.Context, now, until int64, limit int) ([]Head, error)
	// NextDue returns the earliest deadline of all towns.
	NextDue(ctx context.Context) (int64, bool, error)
	// IdleSlice reads the towns of one slice (0 <= slice < slices) that are due
	// at now or whose columns contradict each other, by id, but for towns with an
	// idle interval of their own. It writes nothing.
	IdleSlice(ctx context.Context, slice, slices int, now int64) ([]Head, error)
	// IdleOwn reads the towns with an idle interval of their own that have a beat
	// (see Beat) in (from, to] and are due at to or contradict themselves, by id,
	// and the least such interval of all towns, 0 when none has one. It writes
	// nothing and remembers nothing.
	IdleOwn(ctx context.Context, from, to int64) (found []Head, least int64, err error)
	// AwakeTowns lists towns whose sandbox is not asleep, by id.
	AwakeTowns(ctx context.Context) ([]Head, error)
	// BudgetTowns lists towns in which work waits for a budget, by id.
	BudgetTowns(ctx context.Context) ([]Head, error)
	// ServerDays lists the totals of the server's days from a day on, in order.
	// Days on which nothing was spent are left out. Limit 0 means 100.
	ServerDays(ctx context.Context, from string, limit int) ([]DaySpend, error)
	// FindRig lists the towns that have a rig of this name, by town.
	FindRig(ctx context.Context, rig string) ([]RigIndex, error)
	// FindPrefix finds the rig with this bead prefix: none or one.
	FindPrefix(ctx context.Context, prefix string) ([]RigIndex, error)

	// Ledger reads a town's ledger.
	Ledger(ctx context.Context, town string, q LedgerQuery) ([]Entry, error)
	// PruneLedger deletes up to limit of a town's oldest entries, as far as
	// they are older than before, and says how many. Seq goes on counting.
	PruneLedger(ctx context.Context, town string, before int64, limit int) (int, error)

	// Idem reads an idempotency record; town "" is the server's own scope.
	Idem(ctx context.Context, town, key string) (Idem, bool, error)
	// PutIdem records an answer outside a commit. The same key with the same
	// hash changes nothing; with another hash it is a Conflict. town is "" for
	// the server's own scope.
	PutIdem(ctx context.Context, town string, r Idem) error
	// PruneIdem deletes up to limit records older than before, of all towns.
	PruneIdem(ctx context.Context, before int64, limit int) (int, error)

	// Admit asks for a slot: the town gets one (state starting) when the limits
	// leave it a place that no longer waiting town could take; else it waits.
	// Asking again after a grant is granted again and changes nothing.
	Admit(ctx context.Context, town string, now int64, l Limits) (Admission, error)
	// Waiting lists waiting towns, the first in line first.
	Waiting(ctx context.Context, limit int) ([]string, error)
	// SlotCounts counts slots by state.
	SlotCounts(ctx context.Context) (SlotCounts, error)
	// Slots lists all slots by town.
	Slots(ctx context.Context) ([]Slot, error)

	// AppendTranscript stores chunks; those whose key exists are ignored, and
	// those beyond MaxTranscript are dropped behind one mark (TranscriptEnd). A town
	// that does not exist is NotFound, and none is stored.
	AppendTranscript(ctx context.Context, chunks []Chunk) error
	// Transcript reads chunks of one epoch of a run with Seq > after, in order.
	// Limit 0 means 100.
	Transcript(ctx context.Context, town, run string, epoch, after int64, limit int) ([]Chunk, error)
	// PruneTranscripts deletes up to limit chunks older than before.
	PruneTranscripts(ctx context.Context, before int64, limit int) (int, error)

	// DeleteTown removes everything of a town in one transaction. A town that
	// does not exist is NotFound.
	DeleteTown(ctx context.Context, id string) error
	// Meta reads a fact about the server; "" and false when it is not set.
	Meta(ctx context.Context, key string) (string, bool, error)
	// SetMeta writes a fact about the server.
	SetMeta(ctx context.Context, key, value string) error

	// Stats returns counters since the store was opened.
	Stats() Stats
	// Close waits for writes under way and ends the store. Calls after it fail
	// with Unavailable. Closing twice is harmless.
	Close() error
}
