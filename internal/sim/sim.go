package sim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

// Options choose a run.
type Options struct {
	Seed  uint64
	Hours float64      // of virtual time with work and faults; about a day of rest follows
	Towns int          // at least 1
	Calm  bool         // no faults
	Pair  bool         // two servers on one store
	Log   *slog.Logger // of the hall; nil discards
}

// Report is the outcome of a run.
type Report struct {
	Seed          uint64           `json:"seed"`
	Hours         float64          `json:"hours"`
	Towns         int              `json:"towns"`
	Steps         int64            `json:"steps"`
	Commits       int64            `json:"commits"`
	Crashes       int64            `json:"crashes"`
	Faults        map[string]int64 `json:"faults"`
	Beads         int              `json:"beads"`
	Merged        int              `json:"merged"`
	Ended         map[string]int   `json:"ended"` // beads by status at the end
	SandboxStarts int64            `json:"sandbox_starts"`
	Renewals      int64            `json:"token_renewals"`
	Invariants    []string         `json:"invariants"`
	Violations    []string         `json:"violations"`
	Digest        string           `json:"digest"` // of every commit: equal for equal Options
	ElapsedMS     int64            `json:"elapsed_ms"`
}

const (
	maxViolations = 20
	maxAwakeShare = 3              // a third of the towns may be awake at once
	rest          = 30 * time.Hour // without faults and new work, until everything must have ended, and what is kept for a day is gone
	quiet         = time.Hour      // of which nothing may be written
)

// World is one run.
type world struct {
	opt    Options
	rng    *rand.Rand
	now    time.Time
	end    time.Time // of work and faults
	events events
	seq    int64

	mem    *storetest.Memory
	shadow *shadow
	boxes  *boxes
	hub    *hubs
	procs  []*process // the servers that run now
	boots  int
	limits store.Limits
	towns  []*simTown

	violations []string
	seen       map[string]bool
	faults     map[string]int64
	digest     hash.Hash
	steps      int64
	commits    int64
	crashes    int64
	renewals   int64
	tokens     int64 // issued
	restless   bool  // faults and people are active
}

// Run plays one run to its end.
func Run(o Options) Report {
	begin := time.Now()
	w := newWorld(o)
	w.boot()
	if o.Pair {
		w.boot()
	}
	w.play(w.end)
	w.restless = false
	for _, t := range w.towns {
		if t.id != "" {
			t.ask(town.Resume{By: person}, func(error) {})
		}
	}
	w.play(w.end.Add(rest))
	w.checkRest()
	r := w.report()
	r.ElapsedMS = time.Since(begin).Milliseconds()
	return r
}

func newWorld(o Options) *world {
	o.Towns = max(o.Towns, 1)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	start := time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)
	w := &world{opt: o, rng: rand.New(rand.NewPCG(o.Seed, 0x6761)), now: start, restless: true,
		end: start.Add(time.Duration(o.Hours * float64(time.Hour))), mem: storetest.NewMemory(), digest: sha256.New(),
		seen: map[string]bool{}, faults: map[string]int64{}}
	w.limits = store.Limits{MaxAwake: o.Towns/maxAwakeShare + 1, MaxStarting: 2}
	w.shadow = newShadow(w)
	w.boxes = newBoxes(w)
	w.hub = newHubs(w)
	w.at(0, w.populate)
	return w
}

// chance is true with probability p, and never when faults are off and p is one
// of a fault; name counts it.
func (w *world) fault(name string, p float64) bool {
	if w.opt.Calm || !w.restless || w.rng.Float64() >= p {
		return false
	}
	w.faults[name]++
	return true
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

// between is a random duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

func (w *world) violate(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if w.seen[s] || len(w.violations) >= maxViolations {
		return
	}
	w.seen[s] = true
	w.violations = append(w.violations, fmt.Sprintf("step %d, %s: %s", w.steps, w.now.Format("2006-01-02 15:04:05.000"), s))
}

func (w *world) report() Report {
	r := Report{Seed: w.opt.Seed, Hours: w.opt.Hours, Towns: w.opt.Towns, Steps: w.steps, Commits: w.commits, Crashes: w.crashes,
		Faults: w.faults, SandboxStarts: w.boxes.starts, Renewals: w.renewals, Invariants: invariants(), Violations: w.violations,
		Digest: hex.EncodeToString(w.digest.Sum(nil)[:16]), Ended: map[string]int{}}
	if r.Violations == nil {
		r.Violations = []string{}
	}
	for _, t := range w.shadow.towns {
		for _, b := range t.beads {
			r.Beads++
			r.Ended[string(b.Status)]++
			if b.Proof != nil && b.Proof.Kind == town.ProofMerged {
				r.Merged++
			}
		}
	}
	return r
}

// process is one life of the server.
type process struct {
	w      *world
	boot   string
	hall   *hall.Hall
	dead   bool
	skew   time.Duration // of its clock
	tasks  []task
	timers []*timer
}

// task is something that the hall wants done beside the rest.
type task struct {
	at time.Time // not before
	f  func()
}

type timer struct {
	at      time.Time
	f       func()
	stopped bool
}

// Go implements hall.Executor: the simulator runs f when it chooses to.
func (p *process) Go(f func()) {
	if p.dead {
		return
	}
	t := task{p.w.now, f}
	if p.w.fault("slow task", 0.02) {
		t.at = p.w.now.Add(p.w.between(0, 4*time.Minute))
	}
	p.tasks = append(p.tasks, t)
}

// Now implements hall.Clock.
func (p *process) Now() time.Time { return p.w.now.Add(p.skew) }

// AfterFunc implements hall.Clock.
func (p *process) AfterFunc(d time.Duration, f func()) func() {
	t := &timer{at: p.w.now.Add(max(d, 0)), f: f}
	p.timers = append(p.timers, t)
	return func() { t.stopped = true }
}

// boot starts a server on what the last one left in the store.
func (w *world) boot() {
	w.boots++
	p := &process{w: w, boot: fmt.Sprintf("boot%d", w.boots)}
	if w.fault("wrong clock at boot", 0.1) {
		p.skew = w.skew()
	}
	n, boot := 0, w.boots
	drv, hub := &mortalDriver{p}, &mortalHub{p}
	p.hall = hall.New(hall.Config{
		Store: &mortalStore{Store: w.mem, p: p}, Boot: p.boot, Shared: w.opt.Pair, Clock: p, Exec: p, Limits: w.limits, Driver: drv, Hub: hub, Log: w.opt.Log,
		Perform: &performer{p: p, Outside: hall.Outside{Driver: drv, Hub: hub, Tokens: &mortalTokens{p},
			Runner: func(hall.TownRef, int64) ([]string, []string) { return []string{"runner"}, nil }}},
		NewID: func() string { n++; return fmt.Sprintf("%d-%d", boot, n) },
	})
	w.procs = append(w.procs, p)
}

// skew is how wrong a clock is: of several servers each keeps close to the others.
func (w *world) skew() time.Duration {
	most := 5 * time.Minute
	if w.opt.Pair {
		most = time.Second
	}
	return w.between(-most, most)
}

// crash ends a process where it stands.
func (w *world) crash(p *process) {
	w.crashes++
	p.dead = true
	w.procs = slices.DeleteFunc(w.procs, func(o *process) bool { return o == p })
	w.at(w.between(0, 3*time.Minute), w.boot)
}

// server is the one that a call reaches, nil while none runs.
func (w *world) server() *process {
	switch len(w.procs) {
	case 0:
		return nil
	case 1:
		return w.procs[0]
	}
	return w.procs[w.rng.IntN(len(w.procs))]
}

// do hands an input to a server, if one runs. lost says that no answer came: the
// input may have taken effect.
func (w *world) do(id string, in town.Input) (err error, lost bool) {
	p := w.server()
	if p == nil {
		return nil, true
	}
	err = p.hall.Do(context.Background(), id, in)
	return err, p.dead
}
