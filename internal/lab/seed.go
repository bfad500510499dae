package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// seedToken stands in the template's ids and names; each town gets its number
// instead, written in as many digits.
const seedToken = "zzzzzzz"

// seedWriters is how many writes are under way while seeding, so that they
// share transactions.
const seedWriters = 256

// template is a town as the store keeps it, with seedToken where it differs
// from the next.
type template struct {
	columns store.Columns
	rows    []store.Row
	entries []store.Entry
	created int64
}

// SeedName returns the name of a seeded town.
func SeedName(i int) string { return "town-" + seedNumber(i) }

func seedNumber(i int) string { return fmt.Sprintf("%07d", i) }

func seedPrefix(i int) string { return "p" + seedNumber(i) }

// newTemplate makes a town by its own rules: one rig and so many beads that
// were closed a day ago. Nothing is left to do, so that nothing is due.
func newTemplate(beads int, now time.Time) (out *template, err error) {
	at := now.Add(-24 * time.Hour)
	t := town.New("t"+seedToken, "town-"+seedToken, "", town.At(at))
	prefix := "p" + seedToken
	inputs := []town.Input{town.AddRig{By: "lab", Rig: town.Rig{Name: "web", Prefix: prefix, Target: "main",
		URL: "https://git.invalid/" + seedToken + "/web.git", Tip: strings.Repeat("0123456789", 4),
		Gates: []town.Gate{{Name: "test", Command: "go test ./..."}}}}}
	for i := range beads {
		id := fmt.Sprintf("%s-%05d", prefix, i)
		inputs = append(inputs,
			town.CreateBead{By: "lab", ID: id, Rig: "web", Title: fmt.Sprintf("change number %d", i), Priority: 2, Staged: true,
				Body: strings.Repeat("Make the function do what its comment says, and add a test for the edge cases. ", 4)},
			town.CloseBead{By: "lab", Bead: id, Reason: "done by hand"})
	}
	for _, in := range inputs {
		if err := t.Handle(at, in); err != nil {
			return nil, err
		}
	}
	c := t.Columns(now)
	out = &template{created: at.UnixMilli(), columns: store.Columns{DueAt: int64(c.DueAt), DesiredRev: c.DesiredRev, Sandbox: string(c.Sandbox),
		Generation: c.Generation, Wanted: c.Wanted, Open: int64(c.Open), Status: string(c.Mode)}}
	if out.columns.DueAt != 0 || out.columns.Contradicts() || len(t.Effects(now)) > 0 {
		return nil, errs.New(errs.Internal, "the seeded town is not idle: %+v", out.columns)
	}
	out.rows, out.entries, err = stored(t)
	return out, err
}

// stored is a whole town as the store keeps it.
func stored(t *town.Town) (rows []store.Row, entries []store.Entry, err error) {
	for _, r := range t.Rows() {
		rows = append(rows, store.Row{Kind: r.Kind, ID: r.ID, Body: r.Body})
	}
	for _, e := range t.Entries() {
		body, err := json.Marshal(struct {
			Text string            `json:"text,omitempty"`
			Data map[string]string `json:"data,omitempty"`
		}{e.Text, e.Data})
		if err != nil {
			return nil, nil, errs.Wrap(errs.Internal, err, "encoding a ledger entry")
		}
		entries = append(entries, store.Entry{Seq: e.Seq, At: int64(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor, Body: body})
	}
	return rows, entries, nil
}

// write stores the i-th town.
func (t *template) write(ctx context.Context, s store.Store, i int) error {
	number := seedNumber(i)
	text := func(v string) string { return strings.ReplaceAll(v, seedToken, number) }
	raw := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(seedToken), []byte(number)) }
	id := "t" + number
	rows := make([]store.Row, len(t.rows))
	for n, r := range t.rows {
		rows[n] = store.Row{Kind: r.Kind, ID: text(r.ID), Body: raw(r.Body)}
	}
	entries := make([]store.Entry, len(t.entries))
	for n, e := range t.entries {
		e.Subject, e.Body = text(e.Subject), raw(e.Body)
		entries[n] = e
	}
	if err := s.CreateTown(ctx, store.Head{ID: id, Name: SeedName(i), Owner: id, CreatedAt: t.created, Columns: t.columns}, rows, entries); err != nil {
		return err
	}
	_, err := s.Commit(ctx, store.Commit{Town: id, Expect: 1, CommitID: "seed", At: t.created, Columns: t.columns,
		Rigs: []store.RigIndex{{Rig: "web", Prefix: seedPrefix(i)}}})
	return err
}

// Seed fills a data directory with asleep towns: one rig and some closed beads
// each. No server may have it open.
func Seed(ctx context.Context, data string, towns, beads int) (err error) {
	tmpl, err := newTemplate(beads, time.Now())
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, data, store.Options{})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := s.Close(); err == nil {
			err = closeErr
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range seedWriters {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < towns && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := tmpl.write(ctx, s, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return errs.Wrap(errs.Unavailable, context.Cause(ctx), "seeding the store")
	}
	return nil
}
