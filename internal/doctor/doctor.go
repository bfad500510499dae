// Package doctor examines a whole server: what is stored against itself, against
// the sandboxes that run and the repositories that exist, and each town against
// its own rules (town.Doctor).
//
// An examination only looks. It reads the columns and the ends of the ledger of
// every town; it loads a town only when its columns say that something is open in
// it or wrong with it, when its repository holds references of beads, or when
// asked to (Options.Town, Options.Deep). What may change while it looks is looked
// at twice.
//
// Fix does what is safe and nothing else: it has towns looked at, drops what
// belongs to nothing, ends sandboxes that no town owns, and deletes quarantined
// rows that were named. Everything done in a town is in its ledger.
//
// One examination runs at a time; another waits for it.
package doctor

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

// Store is what the doctor needs of the store; see store.SQLite.
type Store interface {
	Survey(ctx context.Context, only, after string, limit int) ([]store.Surveyed, error)
	AllRigs(ctx context.Context, town, rig string, limit int) ([]store.RigIndex, error)
	Oldest(ctx context.Context) (idem, transcript int64, err error)
	Strays(ctx context.Context, limit int) ([]string, error)
	Slots(ctx context.Context) ([]store.Slot, error)
	Head(ctx context.Context, id string) (store.Head, error)
	Check(ctx context.Context) error
}

// Hall is what it needs of the hall.
type Hall interface {
	View(ctx context.Context, townID string, fn func(t *town.Town, now time.Time) error) error
	Do(ctx context.Context, townID string, in town.Input) error
	Repair(ctx context.Context, townID string, in town.Input, noSlot bool) error
}

// Hub is what it needs of the repositories.
type Hub interface {
	List() ([]hub.ID, error)
	BeadRefs(ctx context.Context, id hub.ID) ([]hub.BeadRef, error)
	DropBead(ctx context.Context, id hub.ID, bead string, branches ...string) error
}

// Driver is what it needs of the driver of sandboxes.
type Driver interface {
	List(ctx context.Context) ([]sandbox.Status, error)
	Inspect(ctx context.Context, ref sandbox.Ref) (sandbox.Status, error)
	Stop(ctx context.Context, ref sandbox.Ref, grace time.Duration) error
	Remove(ctx context.Context, ref sandbox.Ref) error
}

// Config says what to examine. Fields without a comment on their default are required.
type Config struct {
	Store     Store
	Hall      Hall
	Hub       Hub
	Driver    Driver
	Isolation string              // what agents can reach that they should not; "" for nothing
	Health    func() store.Health // the state of the store; nil: always well

	IdemKeep       time.Duration // how long idempotency records are kept; default 24 h
	TranscriptKeep time.Duration // how long transcripts are kept; 0 is for ever

	Now   func() time.Time                // default time.Now
	Pause func(ctx context.Context) error // between two looks at something that moves; default 2 s
	Log   *slog.Logger                    // default discards
}

// Options say how much to look at.
type Options struct {
	Town string // the id of the only one; "" for the whole server
	Deep bool   // load every town
}

// MaxFindings is how many findings a report lists.
const MaxFindings = 1000

// Doctor examines and fixes. Make it with New.
type Doctor struct {
	cfg  Config
	turn chan struct{} // holds a token while nobody examines

	mu       sync.Mutex // guards progress
	progress api.DoctorProgress
}

// New makes a doctor.
func New(cfg Config) *Doctor {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.IdemKeep == 0 {
		cfg.IdemKeep = 24 * time.Hour
	}
	if cfg.Pause == nil {
		cfg.Pause = func(ctx context.Context) error {
			select {
			case <-time.After(2 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Doctor{cfg: cfg, turn: make(chan struct{}, 1)}
	d.turn <- struct{}{}
	return d
}

// Progress says how far the examination is that runs now.
func (d *Doctor) Progress() api.DoctorProgress {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.progress
}

func (d *Doctor) phase(name string, total int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.progress = api.DoctorProgress{Running: name != "", Phase: name, Total: int64(total)}
}

func (d *Doctor) step(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.progress.Done += int64(n)
}

// Examine looks at everything and changes nothing.
func (d *Doctor) Examine(ctx context.Context, o Options) (api.DoctorReport, error) {
	if err := d.begin(ctx); err != nil {
		return api.DoctorReport{}, err
	}
	defer d.end()
	l, err := d.look(ctx, o)
	if err != nil {
		return api.DoctorReport{}, err
	}
	return l.report(), nil
}

func (d *Doctor) begin(ctx context.Context) error {
	select {
	case <-d.turn:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Unavailable, ctx.Err(), "another examination runs")
	}
}

func (d *Doctor) end() {
	d.phase("", 0)
	d.turn <- struct{}{}
}

// known is what the survey keeps of a town.
type known struct {
	name       string
	sandbox    town.SandboxState
	generation int64
}

// look is one examination.
type look struct {
	*Doctor
	o     Options
	began time.Time
	towns map[string]known          // by id
	load  map[string]bool           // ids of towns worth loading
	gaps  map[string]store.Surveyed // towns whose ledgers lack entries, by id
	repos []hub.ID
	found []finding
	rep   api.DoctorReport
}

// finding is one thing that was found, and what Fix does about it.
type finding struct {
	api.Finding
	town   string // id; "" for the server
	mend   bool   // the town mends it when it is looked at
	noSlot bool
	lost   int64                                             // entries of the town's ledger
	fix    func(ctx context.Context) (did string, err error) // outside of the town; nil for none
}

func (d *Doctor) look(ctx context.Context, o Options) (*look, error) {
	l := &look{Doctor: d, o: o, began: d.cfg.Now(), towns: map[string]known{}, load: map[string]bool{}, gaps: map[string]store.Surveyed{}}
	steps := []func(context.Context) error{l.server, l.survey, l.sandboxes, l.slots, l.rigs, l.repositories, l.inside}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	l.rep.TookMS = d.cfg.Now().Sub(l.began).Milliseconds()
	return l, nil
}

func (l *look) add(f finding) {
	if f.town != "" && f.Town == "" {
		f.Town = cmp.Or(l.towns[f.town].name, f.town)
	}
	f.Fixable = f.Fixable || f.mend || f.fix != nil
	l.found = append(l.found, f)
}

func (l *look) problem(townID, check, subject, what, means, fix string) finding {
	return finding{town: townID, Finding: api.Finding{Check: check, Severity: string(town.SeverityProblem), Subject: subject, What: what, Means: means, Fix: fix}}
}

func (l *look) info(check, what, means, fix string) {
	l.add(finding{Finding: api.Finding{Check: check, Severity: string(town.SeverityInfo), What: what, Means: means, Fix: fix}})
}

// report lists problems first, by town.
func (l *look) report() api.DoctorReport {
	slices.SortStableFunc(l.found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Town, b.Town), cmp.Compare(a.Check, b.Check), cmp.Compare(a.Subject, b.Subject))
	})
	out := l.rep
	out.Findings = []api.Finding{}
	for _, f := range l.found {
		if f.Severity == string(town.SeverityProblem) {
			out.Problems++
		} else {
			out.Infos++
		}
		if len(out.Findings) < MaxFindings {
			out.Findings = append(out.Findings, f.Finding)
		}
	}
	return out
}

// server looks at what belongs to no town.
func (l *look) server(ctx context.Context) error {
	if l.o.Town != "" {
		return nil
	}
	l.phase("the store", 0)
	health := store.Health{State: store.Healthy}
	if l.cfg.Health != nil {
		health = l.cfg.Health()
	}
	damaged := func(what string) {
		l.add(l.problem("", "store.damaged", "", what, "what was stored may be lost or wrong", cmp.Or(health.Hint, "restore a backup: gastown restore --force FILE")))
	}
	if health.State == store.Damaged { // whether or not the file can be read now, no write is taken
		damaged(health.Cause)
	} else if err := l.cfg.Store.Check(ctx); err != nil {
		if errs.Is(err, errs.Unavailable) || ctx.Err() != nil {
			return err
		}
		damaged(err.Error())
	} else if !health.Writable() {
		l.add(l.problem("", "store.writes", "", "the store takes no writes ("+string(health.State)+"): "+health.Cause, "nothing is accepted, and towns stand still", health.Hint))
	}
	for line := range strings.Lines(l.cfg.Isolation) {
		l.info("sandbox.isolation", strings.TrimSuffix(line, "\n"), "whatever runs in a sandbox can do this", "work only on what you trust, or isolate more: docs/containers.md")
	}
	idem, transcript, err := l.cfg.Store.Oldest(ctx)
	if err != nil {
		return err
	}
	// Housekeeping comes every hour; a server that was off for long has a day.
	const slack = 25 * time.Hour
	old := func(at int64, keep time.Duration, what string) {
		if keep > 0 && at > 0 && l.began.Sub(time.UnixMilli(at)) > keep+slack {
			l.add(l.problem("", "retention", what, "the oldest is of "+time.UnixMilli(at).UTC().Format(time.RFC3339)+", kept for "+keep.String(),
				"the housekeeping of every hour does not come about", "the server's log says why; restart it"))
		}
	}
	old(idem, l.cfg.IdemKeep, "idempotency records")
	old(transcript, l.cfg.TranscriptKeep, "transcripts")
	strays, err := l.cfg.Store.Strays(ctx, 100)
	for _, id := range strays {
		l.add(l.problem("", "store.stray", id, "there are rows of a town that does not exist", "they take room and are in nobody's way", "a restored backup may know the town; else leave them"))
	}
	return err
}

// Fix examines, does what is safe, deletes the quarantined rows that are named,
// and examines again.
func (d *Doctor) Fix(ctx context.Context, o Options, by string, rows []string) (api.DoctorFixed, error) {
	out := api.DoctorFixed{Done: []api.Fixed{}}
	if len(rows) > 0 && o.Town == "" {
		return out, errs.New(errs.Invalid, "which town has the row?").WithHint("give --town, too")
	}
	if err := d.begin(ctx); err != nil {
		return out, err
	}
	defer d.end()
	l, err := d.look(ctx, o)
	if err != nil {
		return out, err
	}
	for _, name := range rows {
		if err := d.cfg.Hall.Do(ctx, o.Town, town.DropRow{By: by, Name: name}); err != nil {
			return out, err
		}
		out.Done = append(out.Done, api.Fixed{Check: "row.quarantined", Town: l.towns[o.Town].name, Subject: name, Did: "deleted the row; its bytes are in the ledger"})
	}
	d.phase("fixing", len(l.found))
	out.Done = append(out.Done, l.fixAll(ctx, by)...)
	after, err := d.look(ctx, o)
	if err != nil {
		return out, err
	}
	out.After = after.report()
	return out, nil
}

// fixAll does what is outside of the towns, then has each town mend itself and
// write down what was done for it.
func (l *look) fixAll(ctx context.Context, by string) (done []api.Fixed) {
	said := map[string][]string{}
	noSlot, mend, lost := map[string]bool{}, map[string][]finding{}, map[string]int64{}
	var order []string
	for _, f := range l.found {
		l.step(1)
		if f.town != "" && f.Fixable && mend[f.town] == nil {
			order = append(order, f.town)
			mend[f.town] = []finding{}
		}
		switch {
		case f.fix != nil:
			did, err := f.fix(ctx)
			done = append(done, fixed(f, did, err))
			if err == nil && f.town != "" {
				said[f.town] = append(said[f.town], did)
			}
		case f.mend:
			mend[f.town] = append(mend[f.town], f)
			noSlot[f.town] = noSlot[f.town] || f.noSlot
			lost[f.town] = max(lost[f.town], f.lost)
		}
	}
	for _, id := range order {
		err := l.cfg.Hall.Repair(ctx, id, town.Mend{By: by, Did: said[id], Lost: lost[id]}, noSlot[id])
		if errs.Is(err, errs.NotFound) {
			continue // there is no such town, or no more
		}
		if err != nil {
			l.cfg.Log.Warn("a town could not be mended", "town", id, "err", err)
		}
		for _, f := range mend[id] {
			done = append(done, fixed(f, "had the town mend it", err))
		}
	}
	return done
}

func fixed(f finding, did string, err error) api.Fixed {
	out := api.Fixed{Check: f.Check, Town: f.Town, Subject: f.Subject, Did: did}
	if err != nil {
		out.Error = oneLine(err)
	}
	return out
}

func oneLine(err error) string {
	var e *errs.Error
	if errors.As(err, &e) && e.Err == nil {
		return e.Message
	}
	return err.Error()
}
