package hall

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

// copyOf is a town in memory: the state, and what the store knows of it.
type copyOf struct {
	t    *town.Town
	head store.Head
	rigs map[string]string // the index as stored: rig -> prefix

	settled time.Time // when the rules ran last on this copy; zero: never

	renewals int64 // of the sandbox's token, as far as they were counted
}

// ref names the town for performers.
func (c *copyOf) ref() TownRef { return TownRef{c.head.ID, c.head.Name, c.head.Owner} }

// running reports whether a sandbox may exist: such a town stays in memory.
func (c *copyOf) running() bool { return town.SandboxState(c.head.Sandbox).Running() }

// load reads a town whole, in one snapshot.
func (h *Hall) load(ctx context.Context, id string) (*copyOf, error) {
	ctx, cancel := storeCtx(ctx)
	defer cancel()
	h.metrics.Loads.Add(1)
	head, rows, err := h.cfg.Store.Load(ctx, id, 0)
	if err != nil {
		return nil, err
	}
	plain := make([]town.Row, len(rows))
	for i, r := range rows {
		plain[i] = town.Row{Kind: r.Kind, ID: r.ID, Body: r.Body}
	}
	c := &copyOf{head: head, rigs: map[string]string{}}
	if err := guard(func() (err error) {
		c.t, err = town.Decode(id, plain, h.cfg.Server)
		return err
	}); err != nil {
		return c, &brokenError{err}
	}
	c.renewals = c.t.Sandbox().Renewals
	for _, r := range c.t.Rigs() {
		c.rigs[r.Name] = r.Prefix
	}
	if !h.cfg.Shared {
		c.t.VoidClaims(h.cfg.Boot)
	}
	return c, nil
}

// brokenError is a failure of one town's state or rules: it needs backing off.
type brokenError struct{ error }

func (b *brokenError) Unwrap() error { return b.error }

// active is the town's alarm.active_interval.
func (h *Hall) active(t *town.Town) time.Duration {
	const key = "alarm.active_interval"
	if v, ok := t.Info().Settings[key]; ok && town.CheckSetting(town.LevelTown, key, v) == nil {
		if d, err := time.ParseDuration(v); err == nil {
			return d
		}
	}
	return h.serverDuration(key)
}

// columnsOf says what the store shall know of the town now.
func (h *Hall) columnsOf(t *town.Town, now time.Time) store.Columns {
	c := columns(t.Columns(now))
	at := int64(town.At(now))
	if c.DueAt != 0 && c.DueAt <= at+1 {
		// Overdue although the rules just ran: it waits for an effect under way, and
		// is not done by repeating at once.
		c.DueAt = at + overdueAgain.Milliseconds()
	}
	within := func(d time.Duration) {
		if latest := at + d.Milliseconds(); c.DueAt == 0 || c.DueAt > latest {
			c.DueAt = latest
		}
	}
	if town.SandboxState(c.Sandbox).Running() {
		within(runningLook) // if this process dies, another one sees to it by then
	}
	for _, cl := range t.Claims() {
		if int64(cl.Until) > at {
			within(min(h.active(t), activeLook)) // and to work under way even sooner
			break
		}
	}
	return c
}

func columns(c town.Columns) store.Columns {
	return store.Columns{DueAt: int64(c.DueAt), DesiredRev: c.DesiredRev, Sandbox: string(c.Sandbox), Generation: c.Generation,
		Wanted: c.Wanted, Open: int64(c.Open), Status: string(c.Mode), IdleMS: c.Idle.Milliseconds(),
		WaitsBudget: c.Budget}
}

// slotChange derives what a commit does to the town's slot.
func slotChange(was, is store.Columns) store.SlotChange {
	before, after := town.SandboxState(was.Sandbox), town.SandboxState(is.Sandbox)
	switch {
	case after == town.SandboxAsleep && before != after, before.Running() && !after.Running():
		return store.SlotRelease
	case after == town.SandboxAwake && before == town.SandboxStarting:
		return store.SlotAwake
	}
	return store.SlotKeep
}

// rigChanges compares the rigs with the stored index.
func (c *copyOf) rigChanges(rows []town.Row) (out []store.RigIndex) {
	for _, r := range rows {
		if r.Kind != "rig" {
			continue
		}
		rig, ok := c.t.Rig(r.ID)
		old := c.rigs[r.ID]
		switch {
		case !ok: // it is gone, or could not be read and was dropped
			out = append(out, store.RigIndex{Rig: r.ID, Removed: true})
		case ok && old != rig.Prefix:
			out = append(out, store.RigIndex{Rig: r.ID, Prefix: rig.Prefix})
		}
	}
	return out
}

func (c *copyOf) committed(com store.Commit, version int64) {
	c.head.Version, c.head.CommitID, c.head.Columns = version, com.CommitID, com.Columns
	c.head.LedgerSeq += int64(len(com.Ledger))
	for _, r := range com.Rigs {
		if r.Removed {
			delete(c.rigs, r.Rig)
		} else {
			c.rigs[r.Rig] = r.Prefix
		}
	}
}

// body is how a ledger entry's free part is stored.
type body struct {
	Text string            `json:"text,omitempty"`
	Data map[string]string `json:"data,omitempty"`
}

// encode turns what a town hands out into what the store takes.
func encode(rows []town.Row, entries []town.Entry) ([]store.Row, []store.Entry, error) {
	outRows := make([]store.Row, len(rows))
	for i, r := range rows {
		outRows[i] = store.Row{Kind: r.Kind, ID: r.ID, Body: r.Body}
	}
	outEntries := make([]store.Entry, len(entries))
	for i, e := range entries {
		b, err := json.Marshal(body{e.Text, e.Data})
		if err != nil {
			return nil, nil, errs.Wrap(errs.Internal, err, "encoding a ledger entry")
		}
		outEntries[i] = store.Entry{Seq: e.Seq, At: int64(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor, Body: b}
	}
	return outRows, outEntries, nil
}

// LedgerEntry turns a stored ledger entry back into what the town said.
func LedgerEntry(e store.Entry) (town.Entry, error) {
	var b body
	err := json.Unmarshal(e.Body, &b)
	return town.Entry{Seq: e.Seq, At: town.Time(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor, Text: b.Text, Data: b.Data},
		errs.Wrap(errs.Internal, err, "ledger entry %d can't be read", e.Seq)
}

// digest makes an id from strings.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:16])
}
