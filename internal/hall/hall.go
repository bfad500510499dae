package hall

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// Performer asks the outside world for what a town wants. Perform is called
// only after the commit that claimed the effect, with the effect's Timeout as
// deadline. The result is one of the outcome types of package town, or nil. An
// error's text ends up in the town's state: it may not contain a secret.
// town.Admit never reaches a Performer.
type Performer interface {
	Perform(ctx context.Context, t TownRef, e town.Effect) (result any, err error)
}

// TownRef names a town.
type TownRef struct{ ID, Name, Owner string }

// Config is what a hall is made of. Fields without a comment on their default
// are required.
type Config struct {
	Store   store.Store
	Perform Performer
	Boot    string   // random id of this process; names its claims
	Clock   Clock    // default RealClock
	Exec    Executor // default Goroutines
	Server  town.Settings
	Offers  func() *town.Offers // what the server has for agents, at this moment; nil: nothing is known. See Reoffer
	Limits  store.Limits
	Driver  Driver        // for exits and the sweep of orphans; nil: neither
	Hub     Hub           // for the sweep of orphans; nil: none
	NewID   func() string // of towns and commits; default random
	Log     *slog.Logger  // default discards

	Shared    bool          // other processes use the same store: their claims are respected, long polls re-check
	QueueLen  int           // inputs that may wait per town; default 256
	MaxTicks  int           // alarms handled at once; default 8
	KeepIdle  time.Duration // how long the copy of an asleep town stays; default 2 s
	KeepCount int           // how many such copies stay at most; default 128
	SweepEach time.Duration // how often orphans are looked for; default 3 min
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = RealClock{}
	}
	if c.Exec == nil {
		c.Exec = Goroutines{}
	}
	if c.NewID == nil {
		c.NewID = func() string { return strings.ToLower(rand.Text()[:16]) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	def := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	def(&c.QueueLen, 256)
	def(&c.MaxTicks, 8)
	def(&c.KeepCount, 128)
	if c.KeepIdle <= 0 {
		c.KeepIdle = 2 * time.Second
	}
	if c.SweepEach <= 0 {
		c.SweepEach = 3 * time.Minute
	}
	return c
}

const (
	storeTimeout = 15 * time.Second       // of one call of the store
	maxBatch     = 64                     // inputs that share one commit
	maxTries     = 16                     // of one batch against newer versions
	claimFor     = 30 * time.Second       // how long a due town is left to who claimed it
	activeLook   = 5 * time.Second        // default of alarm.active_interval, and when work is taken up whose process died
	runningLook  = 30 * time.Second       // a running town's stored deadline is never further away
	maxBackoff   = 15 * time.Minute       // of a failing town
	minBackoff   = 2 * time.Second        // of a failing town
	overdueAgain = time.Second            // between looks at what is overdue but can't be done now
	feedPause    = 500 * time.Millisecond // before an effect's outcome is delivered again
)

// Hall runs the towns of one store. Make it with New.
type Hall struct {
	cfg        Config
	metrics    Metrics
	background context.Context // of effects; cancelled at the end of Stop
	cancel     context.CancelFunc

	mu       sync.Mutex        // guards all below, and the marked fields of every entry
	entries  map[string]*entry // towns that something happens to, and copies kept
	idle     []*entry          // entries whose copy is kept only for a while, the oldest first
	trimming bool              // a timer to drop idle copies is armed
	heard    map[string]int64  // running towns that were told of the latest silence: its number
	silence  int64             // how many silences there were; the first is before boot
	metered  map[string]int64  // running towns: their awake time as far as it was counted
	watchers map[string]map[chan struct{}]struct{}
	flying   int           // effects and other background work
	landed   chan struct{} // closed when flying falls to 0 while stopping; nil otherwise
	state    runState

	alarm alarm
	day   serverDay
}

type runState int

const (
	hallOpen     runState = iota
	hallStopping          // no new effects
	hallClosed            // nothing
)

// New makes a hall. Nothing runs before Start.
func New(cfg Config) *Hall {
	h := &Hall{cfg: cfg.withDefaults(), entries: map[string]*entry{}, heard: map[string]int64{}, metered: map[string]int64{}, silence: 1,
		watchers: map[string]map[chan struct{}]struct{}{}}
	h.background, h.cancel = context.WithCancel(context.Background())
	h.alarm.init(h)
	h.day.limit = town.ServerBudget(h.cfg.Server)
	return h
}

// Metrics returns the counters.
func (h *Hall) Metrics() *Metrics { return &h.metrics }

// Boot returns the id of this process.
func (h *Hall) Boot() string { return h.cfg.Boot }

func (h *Hall) now() time.Time { return h.cfg.Clock.Now() }

// storeCtx bounds one call of the store. A caller that goes away must not turn
// a write into one of unknown outcome.
func storeCtx(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
}

// Do hands an input to a town and returns after the commit. Errors: those of
// the rules; NotFound; Overloaded when the town's queue is full; Unavailable
// when the store can't answer, or when ctx ended or the commit's outcome is not
// known (the input may or may not have taken effect).
func (h *Hall) Do(ctx context.Context, townID string, in town.Input) error {
	return h.submit(ctx, townID, &request{in: in})
}

// Idem is an idempotency key and the hash of the request that carries it.
type Idem struct{ Key, Hash string }

// DoIdem is Do with an idempotency record that commits with the input. Respond
// makes the answer from the town as the input left it. The same key with the
// same hash gets the recorded answer and changes nothing (replayed); with another
// hash it is a Conflict. Refusals are not recorded.
func (h *Hall) DoIdem(ctx context.Context, townID string, in town.Input, key, hash string,
	respond func(*town.Town) (status int, body []byte)) (status int, body []byte, replayed bool, err error) {
	if rec, ok, err := h.recorded(ctx, townID, key, hash); err != nil || ok {
		return rec.Status, rec.Body, ok, err
	}
	r := &request{in: in, idem: &Idem{key, hash}, respond: respond}
	if err := h.submit(ctx, townID, r); err != nil {
		return 0, nil, false, err
	}
	return r.status, r.body, r.replayed, nil
}

// recorded looks an idempotency key up.
func (h *Hall) recorded(ctx context.Context, townID, key, hash string) (store.Idem, bool, error) {
	c, cancel := storeCtx(ctx)
	defer cancel()
	rec, ok, err := h.cfg.Store.Idem(c, townID, key)
	if err != nil || !ok {
		return store.Idem{}, false, err
	}
	if rec.Hash != hash {
		return store.Idem{}, false, store.ErrKeyTaken(key)
	}
	return rec, true, nil
}

// View calls fn with the town as it was committed at some time after the call
// began. fn may not keep or change the town, nor call the hall.
func (h *Hall) View(ctx context.Context, townID string, fn func(t *town.Town, now time.Time) error) error {
	return h.submit(ctx, townID, &request{view: fn})
}

// Resolve finds a town by id or name.
func (h *Hall) Resolve(ctx context.Context, nameOrID string) (store.Head, error) {
	c, cancel := storeCtx(ctx)
	defer cancel()
	return h.cfg.Store.Find(c, nameOrID)
}

// CreateTown makes a town and returns its id. An empty owner means the town
// itself. With idem, a repeat returns the same id; idem may be nil.
func (h *Hall) CreateTown(ctx context.Context, name, owner string, settings town.Settings, by string, idem *Idem) (string, error) {
	if err := town.ValidName("town", name); err != nil {
		return "", err
	}
	id := "t" + h.cfg.NewID()
	if idem != nil {
		rec, ok, err := h.recorded(ctx, "", idem.Key, idem.Hash)
		if err != nil || ok {
			return string(rec.Body), err
		}
		id = "t" + digest(idem.Key, idem.Hash)
	}
	if err := h.create(ctx, id, name, owner, settings, by, idem != nil); err != nil {
		return "", err
	}
	if idem != nil {
		c, cancel := storeCtx(ctx)
		defer cancel()
		rec := store.Idem{Key: idem.Key, Hash: idem.Hash, Status: 201, Body: []byte(id), At: int64(town.At(h.now()))}
		if err := h.cfg.Store.PutIdem(c, "", rec); err != nil {
			return "", err
		}
	}
	return id, nil
}

func (h *Hall) create(ctx context.Context, id, name, owner string, settings town.Settings, by string, again bool) error {
	now := h.now()
	t := town.New(id, name, owner, town.At(now))
	t.SetServer(h.cfg.Server)
	if len(settings) > 0 {
		if err := t.Handle(now, town.SetTown{By: by, Set: settings}); err != nil {
			return err
		}
	}
	return h.put(ctx, t, now, again)
}

// put stores a new town. again says that its id follows from a request, so that
// finding it means that an earlier try made it.
func (h *Hall) put(ctx context.Context, t *town.Town, now time.Time, again bool) error {
	rows, entries, err := encode(t.Rows(), t.Entries())
	if err != nil {
		return err
	}
	info := t.Info()
	head := store.Head{ID: info.ID, Name: info.Name, Owner: info.Owner, CreatedAt: int64(info.CreatedAt), CommitID: h.cfg.NewID(),
		Columns: columns(t.Columns(now))}
	c, cancel := storeCtx(ctx)
	defer cancel()
	err = h.cfg.Store.CreateTown(c, head, rows, entries)
	if !again || !errs.Is(err, errs.Conflict) && !errors.Is(err, store.ErrUnknown) {
		return err
	}
	if _, found := h.cfg.Store.Head(c, info.ID); found == nil {
		return nil
	}
	return err
}

// StartImport makes a town that is being imported: it takes town.ImportPart
// inputs until town.FinishImport. request identifies the import: an earlier one
// of the same request is found again, wherever it stands. "" is always a new one.
// A taken name is a Conflict.
func (h *Hall) StartImport(ctx context.Context, in town.ImportedTown, request string) (id string, err error) {
	now := h.now()
	if id = "t" + h.cfg.NewID(); request != "" {
		id = ImportID(request)
	}
	t, err := town.NewImport(id, in, now)
	if err != nil {
		return "", err
	}
	t.SetServer(h.cfg.Server)
	if err := h.put(ctx, t, now, request != ""); err != nil {
		return "", err
	}
	if due, ok := t.NextWake(now); ok {
		h.alarm.poke(due)
	}
	return id, nil
}

// ImportID is the id of the town that a request imports.
func ImportID(request string) string { return "t" + digest("import", request) }
