package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"log/slog"
	"time"

	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

// Options choose a run.
type Options struct {
	Seed   uint64
	Hours  float64      // of virtual time with work and faults; about a day of rest follows
	Towns  int          // at least 1
	Faults []Kind       // that may happen; nil: all
	Only   []Injection  // not nil: a replay in which exactly these happen
	Pair   bool         // two servers on one store, whatever the fault two-servers says
	Log    *slog.Logger // of the hall; nil discards

	first     bool          // the first violation ends the run
	until     time.Duration // the run ends here, without a rest; 0: it does not
	forgetful bool          // a bug for a test, see process
}

// most is how many violations end a run.
func (o *Options) most() int {
	if o.first {
		return 1
	}
	return maxViolations
}

// Violation is a broken invariant.
type Violation struct {
	Invariant string        `json:"invariant"`
	Text      string        `json:"text"`
	Step      int64         `json:"step"`
	At        time.Duration `json:"-"` // virtual time since the begin
	Time      string        `json:"time"`
	Town      string        `json:"town,omitempty"`
	Inputs    []string      `json:"last_inputs,omitempty"` // to that town, the newest last
}

func (v Violation) String() string {
	return fmt.Sprintf("step %d, %s: %s (%s)", v.Step, v.Time, v.Text, v.Invariant)
}

// Report is the outcome of a run.
type Report struct {
	Seed          uint64           `json:"seed"`
	Hours         float64          `json:"hours"`
	Towns         int              `json:"towns"`
	Servers       int              `json:"servers"`
	Steps         int64            `json:"steps"`
	Commits       int64            `json:"commits"`
	Crashes       int64            `json:"crashes"`
	Faults        map[Kind]int64   `json:"faults"`
	Injected      []Injection      `json:"-"`
	Beads         int              `json:"beads"`
	Merged        int              `json:"merged"`
	Ended         map[string]int   `json:"ended"` // beads by status at the end
	Commands      int64            `json:"commands"`
	SandboxStarts int64            `json:"sandbox_starts"`
	Renewals      int64            `json:"token_renewals"`
	Checked       map[string]int64 `json:"checked"` // invariants and how often each was looked at
	Busiest       map[string]int   `json:"busiest"` // the most of each kind of work in one hour
	Violations    []Violation      `json:"violations"`
	Stopped       bool             `json:"stopped,omitempty"` // before its end
	Digest        string           `json:"digest"`            // of every commit: equal for equal Options
	ElapsedMS     int64            `json:"elapsed_ms"`
}

const (
	maxViolations = 20
	maxAwakeShare = 2              // half of the towns may be awake at once, and one
	rest          = 30 * time.Hour // without faults and new work, until everything must have ended, and what is kept for a day is gone
	quiet         = time.Hour      // of which nothing may be written
)

// World is one run.
type world struct {
	opt    Options
	ctx    context.Context
	order  dice // which of the things that could happen next does
	storm  *storm
	start  time.Time
	now    time.Time
	end    time.Time // of work and faults
	events events
	seq    int64

	current *strand // that runs
	still   []*strand
	spare   []*strand
	choices []choice
	calm    bool // no fault may happen
	atomic  bool // calls to the outside are never interrupted

	mem       *storetest.Memory
	shadow    *shadow
	boxes     *boxes
	hub       *hubs
	bounds    *bounds
	procs     []*process // the servers that run now
	pair      bool
	skewed    time.Duration // how wrong all clocks are
	boots     int
	limits    store.Limits
	server    town.Settings        // of servers that start now
	lastSkew  time.Duration        // of the clock of the latest one
	totals    totals               // what all towns spent
	providers map[string]*provider // by town
	loans     map[string]*loan     // blocks of budgets, by name
	blocks    int                  // ever asked for
	towns     []*simTown           // by place; who was deleted is replaced
	gone      []*simTown           // deleted
	typed     []*simTown           // whose people type before anything else happens
	claimed   []*claim             // not performed yet
	disturbed time.Time            // when a server last came, went or had its clock set, or the store did not work
	setAt     time.Time            // when a clock was last set
	fullUntil time.Time            // the store's disk is full
	mute      time.Time            // until then nobody takes notices

	violations []Violation
	seen       map[string]bool
	checked    [invariantCount]int64
	digest     hash.Hash
	steps      int64
	commits    int64
	crashes    int64
	commands   int64
	renewals   int64
	tokens     int64 // issued
	merged     int
	restless   bool // faults and people are active
	stopped    bool
	tell       func(what string) // hears of every write, once the world is quiet
	inQuiet    []string
}

// Run plays one run to its end, or until ctx ends.
func Run(ctx context.Context, o Options) Report {
	begin := time.Now()
	w := newWorld(ctx, o)
	defer w.unwind()
	w.boot()
	if w.pair {
		w.boot()
	}
	if o.until > 0 {
		w.play(earlier(w.end, w.start.Add(o.until)))
		w.stopped = w.now.Before(w.end)
	} else {
		w.play(w.end)
	}
	w.restless = false
	w.fullUntil, w.mute = time.Time{}, time.Time{}
	w.liftServer()
	for _, t := range w.towns {
		if t.id != "" {
			w.run(func() { t.lift(); t.ask(command{in: town.Resume{}, quiet: true}) })
		}
	}
	w.play(w.end.Add(rest))
	if !w.over() {
		w.checkRest()
	}
	r := w.report()
	r.ElapsedMS = time.Since(begin).Milliseconds()
	return r
}

func newWorld(ctx context.Context, o Options) *world {
	o.Towns = max(o.Towns, 1)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	start := time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)
	w := &world{opt: o, ctx: ctx, start: start, now: start, restless: true, pair: o.Pair, disturbed: start,
		end: start.Add(time.Duration(o.Hours * float64(time.Hour)).Truncate(time.Millisecond)), mem: storetest.NewMemory(), digest: sha256.New(),
		seen: map[string]bool{}, server: town.Settings{"ledger.retention": "336h", "notify.command": "true", "provider": providerName}, providers: map[string]*provider{}, loans: map[string]*loan{}, totals: newTotals()}
	w.calm = o.Faults != nil && len(o.Faults) == 0 && o.Only == nil
	w.order = w.dice("order")
	w.storm = newStorm(w, o)
	if w.fault("two-servers", 0) {
		w.pair = true
	}
	w.limits = store.Limits{MaxAwake: o.Towns/maxAwakeShare + 1, MaxStarting: 2}
	w.shadow = newShadow(w)
	w.boxes = newBoxes(w)
	w.hub = newHubs(w)
	w.bounds = newBounds(w)
	w.at(0, w.populate)
	return w
}

// violate records that an invariant is broken; t is the town that it is about, or nil.
func (w *world) violate(inv invariant, t *shadowTown, format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if w.seen[s] || len(w.violations) >= w.opt.most() {
		return
	}
	w.seen[s] = true
	v := Violation{Invariant: inv.String(), Text: s, Step: w.steps, At: w.now.Sub(w.start), Time: w.now.Format("2006-01-02 15:04:05.000")}
	if t != nil {
		v.Town, v.Inputs = t.name, t.lastInputs()
	}
	w.violations = append(w.violations, v)
}

// holds counts a look at an invariant, and records when it does not hold.
func (w *world) holds(inv invariant, ok bool, t *shadowTown, format string, args ...any) {
	w.checked[inv]++
	if !ok {
		w.violate(inv, t, format, args...)
	}
}

func (w *world) report() Report {
	r := Report{Seed: w.opt.Seed, Hours: w.opt.Hours, Towns: w.opt.Towns, Servers: 1, Steps: w.steps, Commits: w.commits, Crashes: w.crashes,
		Faults: w.storm.count, Injected: w.storm.done, Commands: w.commands, SandboxStarts: w.boxes.starts, Renewals: w.renewals, Checked: map[string]int64{},
		Busiest: w.bounds.most, Violations: w.violations, Stopped: w.stopped, Digest: hex.EncodeToString(w.digest.Sum(nil)[:16]), Merged: w.merged, Ended: map[string]int{}}
	if w.pair {
		r.Servers = 2
	}
	if r.Violations == nil {
		r.Violations = []Violation{}
	}
	for inv := range invariantCount {
		r.Checked[inv.String()] = w.checked[inv]
	}
	for _, t := range w.shadow.towns {
		for _, b := range t.beads {
			r.Ended[string(b.Status)]++
		}
	}
	r.Beads = w.shadow.beads
	return r
}
