package lab

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// bigTownID is the id and the name of the large town.
const bigTownID = "big"

// TownOptions say how to measure one large town.
type TownOptions struct {
	Place *Place
	Beads int // open ones
	Times int // how often each figure is taken
}

// Town is what a large town costs. All are medians, in milliseconds.
type Town struct {
	Beads    int     `json:"beads"`
	LoadMS   float64 `json:"load_ms"`   // from the store into memory
	ReloadMS float64 `json:"reload_ms"` // what an input takes longer when the copy was stale
	ChangeMS float64 `json:"change_ms"` // one durable input to the town in memory
	SettleMS float64 `json:"settle_ms"` // the rules alone: input, effects, next wake, changed rows
}

// MeasureTown loads and changes a town with many open beads, in this process,
// through the hall and the store.
func MeasureTown(ctx context.Context, o TownOptions) (out Town, err error) {
	out.Beads = o.Beads
	s, err := store.Open(ctx, filepath.Join(o.Place.Dir, "town"), store.Options{})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b, err := NewBigTown(ctx, s, o.Beads)
	if err != nil {
		return out, err
	}
	for _, f := range []struct {
		to   *float64
		once func(i int) (time.Duration, error)
	}{
		{&out.LoadMS, func(int) (time.Duration, error) { return took(func() error { return b.Load(ctx) }) }},
		{&out.ChangeMS, func(i int) (time.Duration, error) { return took(func() error { return b.Change(ctx, 0, i) }) }},
		{&out.ReloadMS, func(i int) (time.Duration, error) {
			if err := b.Change(ctx, 1, i); err != nil { // makes the first one's copy stale
				return 0, err
			}
			return took(func() error { return b.Change(ctx, 0, i) })
		}},
		{&out.SettleMS, func(i int) (time.Duration, error) { return took(func() error { return b.Settle(i) }) }},
	} {
		if *f.to, err = median(o.Times, f.once); err != nil {
			return out, err
		}
	}
	out.ReloadMS = max(0, out.ReloadMS-out.ChangeMS)
	return out, nil
}

// BigTown is a town with many open beads in a store, and two halls that share it.
type BigTown struct {
	store store.Store
	halls [2]*hall.Hall
	beads int
	t     *town.Town // of the same size, in memory, with runs
	now   time.Time
}

// NewBigTown writes the town. It is paused, so that nothing is started.
func NewBigTown(ctx context.Context, s store.Store, beads int) (*BigTown, error) {
	b := &BigTown{store: s, beads: beads, now: time.Now()}
	paused, err := b.make(true)
	if err != nil {
		return nil, err
	}
	if b.t, err = b.make(false); err != nil {
		return nil, err
	}
	c := paused.Columns(b.now)
	columns := store.Columns{DesiredRev: c.DesiredRev, Sandbox: string(c.Sandbox), Open: int64(c.Open), Status: string(c.Mode)}
	rows, entries, err := stored(paused)
	if err != nil {
		return nil, err
	}
	if err := s.CreateTown(ctx, store.Head{ID: bigTownID, Name: bigTownID, Owner: bigTownID, Columns: columns}, rows[:1], entries); err != nil {
		return nil, err
	}
	version := int64(1)
	for part := range slices.Chunk(rows[1:], 100) { // written bit by bit, as life does
		if version, err = s.Commit(ctx, store.Commit{Town: bigTownID, Expect: version, CommitID: "seed", Columns: columns, Rows: part}); err != nil {
			return nil, err
		}
	}
	for i := range b.halls {
		b.halls[i] = b.hall(fmt.Sprintf("boot%d", i))
	}
	return b, nil
}

func (b *BigTown) hall(boot string) *hall.Hall {
	return hall.New(hall.Config{Store: b.store, Perform: nobody{}, Boot: boot, Shared: true, Server: town.Settings{"agent": "scripted"},
		KeepIdle: time.Hour})
}

// make returns a town in memory.
func (b *BigTown) make(paused bool) (*town.Town, error) {
	t := town.New(bigTownID, bigTownID, "", town.At(b.now))
	inputs := []town.Input{town.AddRig{By: "lab", Rig: town.Rig{Name: "web", Prefix: "web", Target: "main", URL: "https://git.invalid/web.git",
		Tip: strings.Repeat("0123456789", 4)}}}
	if paused {
		inputs = append(inputs, town.Pause{By: "lab"})
	}
	for i := range b.beads {
		inputs = append(inputs, town.CreateBead{By: "lab", ID: bigBead(i), Rig: "web", Title: fmt.Sprintf("change number %d", i), Priority: i % 5,
			Body: strings.Repeat("Make the function do what its comment says, and add a test for the edge cases. ", 4)})
	}
	for _, in := range inputs {
		if err := t.Handle(b.now, in); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func bigBead(i int) string { return fmt.Sprintf("web-%05d", i) }

// Load brings the town from the store into the memory of a new hall.
func (b *BigTown) Load(ctx context.Context) error {
	return b.hall("load").View(ctx, bigTownID, func(t *town.Town, _ time.Time) error {
		if _, ok := t.Bead(bigBead(b.beads - 1)); !ok {
			return errs.New(errs.Internal, "the town was not loaded whole")
		}
		return nil
	})
}

// Change edits a bead through one of the two halls; i makes each edit another.
func (b *BigTown) Change(ctx context.Context, which, i int) error {
	title := fmt.Sprintf("edited by %d for the %dth time", which, i)
	return b.halls[which].Do(ctx, bigTownID, town.EditBead{By: "lab", Bead: bigBead(i % b.beads), Title: &title})
}

// Settle does what a commit needs of the rules, after one edit.
func (b *BigTown) Settle(i int) error {
	title := fmt.Sprintf("edited for the %dth time", i)
	if err := b.t.Handle(b.now, town.EditBead{By: "lab", Bead: bigBead(i % b.beads), Title: &title}); err != nil {
		return err
	}
	b.t.Claim(b.now, "boot")
	b.t.Columns(b.now)
	b.t.Changes()
	b.t.Entries()
	return nil
}

// nobody performs nothing.
type nobody struct{}

// Perform implements hall.Performer.
func (nobody) Perform(context.Context, hall.TownRef, town.Effect) (any, error) {
	return nil, errs.New(errs.Unavailable, "nothing is performed here")
}

func took(f func() error) (time.Duration, error) {
	begin := time.Now()
	err := f()
	return time.Since(begin), err
}

// median takes a figure n times.
func median(n int, once func(i int) (time.Duration, error)) (float64, error) {
	all := make([]time.Duration, n)
	for i := range all {
		d, err := once(i)
		if err != nil {
			return 0, err
		}
		all[i] = d
	}
	return quantiles(all).P50, nil
}
