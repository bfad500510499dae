package sim

import (
	"context"
	"fmt"
	"testing"
	"time"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// stage is a world without faults in which only what the test plays happens.
type stage struct {
	*world
	dice
	t *testing.T
}

const rigName = "web"

func newStage(t *testing.T) *stage {
	w := newWorld(t.Context(), Options{Seed: 1, Towns: 6, Faults: []Kind{}})
	w.events = nil // nobody lives in it
	w.server = nil // the settings that everybody has
	w.atomic = true
	w.boot()
	t.Cleanup(w.unwind)
	return &stage{world: w, dice: w.dice("stage"), t: t}
}

// restart kills the server with all its memory and starts another one.
func (s *stage) restart() {
	for _, p := range s.procs {
		p.dead = true
	}
	s.procs = nil
	s.boot()
}

func (s *stage) hall() *hall.Hall { return s.procs[0].hall }

func (s *stage) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) wait(d time.Duration) {
	s.t.Helper()
	s.play(s.now.Add(d))
	for _, v := range s.violations {
		s.t.Fatal(v)
	}
}

func (s *stage) ask(id string, in town.Input) {
	s.t.Helper()
	s.must(s.hall().Do(context.Background(), id, in))
}

// town makes a town with a rig.
func (s *stage) town(name string, gates ...town.Gate) string {
	s.t.Helper()
	id, err := s.hall().CreateTown(context.Background(), name, "", nil, person, nil)
	s.must(err)
	st := &simTown{w: s.world, dice: s.world.dice(name), place: len(s.towns) + 1, id: id, name: name, prefix: name, rig: rigName, acked: map[string]bool{}}
	s.towns = append(s.towns, st)
	s.ask(id, town.AddRig{By: person, Rig: town.Rig{Name: rigName, Prefix: name, URL: "/upstream", Target: "main", Gates: gates, Tip: s.hub.add(rigOf(id, rigName)).tip}})
	return id
}

func (s *stage) head(id string) store.Head {
	s.t.Helper()
	h, err := s.mem.Head(context.Background(), id)
	s.must(err)
	return h
}

func (s *stage) ledger(id, kind string) (out []town.Entry) {
	s.t.Helper()
	for after := int64(0); ; {
		page, err := s.mem.Ledger(context.Background(), id, store.LedgerQuery{After: after, Kind: kind, Limit: 1000})
		s.must(err)
		for _, e := range page {
			after = e.Seq
			entry, err := hall.LedgerEntry(e)
			s.must(err)
			out = append(out, entry)
		}
		if len(page) < 1000 {
			return out
		}
	}
}

// TestAnIdleTownCostsNothingHoweverOftenTheServerRestarts is the bug that this
// system was built against: a throttle in memory, forgotten with the memory.
func TestAnIdleTownCostsNothingHoweverOftenTheServerRestarts(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	fresh, slept, waits := s.town("fresh"), s.town("slept"), s.town("waits")
	s.ask(slept, town.Resume{By: person, For: 5 * time.Minute})
	s.ask(waits, town.CreateBead{By: person, ID: "waits-00001", Rig: rigName, Title: "later", Staged: true})
	s.ask(waits, town.CreateBead{By: person, ID: "waits-00002", Rig: rigName, Title: "after it", BlockedBy: []string{"waits-00001"}})
	s.wait(30 * time.Minute)
	for _, id := range []string{fresh, slept, waits} {
		if h := s.head(id); h.Sandbox != store.Asleep || h.DueAt != 0 {
			t.Fatalf("%s is not idle: %+v", h.Name, h)
		}
	}
	if s.boxes.starts != 1 {
		t.Fatalf("%d starts, not the one of a town that was awake once", s.boxes.starts)
	}
	before, tokens := s.mem.Stats(), s.tokens
	loads, reads := int64(0), int64(0)
	for range 48 * 60 {
		s.restart()
		s.wait(time.Minute)
		m := s.hall().Metrics()
		loads += m.Loads.Load()
		reads += m.IdleReads.Load()
	}
	if s.boxes.starts != 1 {
		t.Errorf("%d sandboxes were started", s.boxes.starts-1)
	}
	if s.tokens != tokens {
		t.Errorf("%d tokens were issued", s.tokens-tokens)
	}
	if loads != 0 {
		t.Errorf("%d towns were loaded", loads)
	}
	if got := s.mem.Stats(); got != before {
		t.Errorf("%d rows were written", got.Writes-before.Writes)
	}
	if reads < 48*12*idleSlices {
		t.Errorf("idle towns were hardly looked at: %d reads", reads)
	}
}

const idleSlices = 64 // of which each is read once per 5 minutes

func TestAnAwakeTownRenewsItsTokenOnceAnHourHoweverOftenTheServerRestarts(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	id := s.town("awake")
	const hours = 48
	for minute := range hours * 60 {
		if minute%(20*60) == 0 {
			s.ask(id, town.Resume{By: person, For: 23 * time.Hour})
		}
		s.wait(time.Minute)
		s.restart()
	}
	renewals := s.ledger(id, "token.renewed")
	if n := len(renewals); n > hours || n < hours-2 {
		t.Errorf("%d renewals in %d hours awake", n, hours)
	}
	for i := 1; i < len(renewals); i++ {
		if gap := renewals[i].At.Sub(renewals[i-1].At); gap < time.Hour {
			t.Errorf("renewals %s apart", gap)
		}
	}
	if s.tokens > hours+2 {
		t.Errorf("%d tokens were issued", s.tokens)
	}
	if s.boxes.starts != 1 || s.head(id).Sandbox != "awake" {
		t.Errorf("%d starts, sandbox %s", s.boxes.starts, s.head(id).Sandbox)
	}
}

// TestNewWorkMovesSoonAfterTheProcessDied kills the server right after a commit,
// before anything of it was performed.
func TestNewWorkMovesSoonAfterTheProcessDied(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for i := range 6 {
		id := s.town(fmt.Sprint("town", i))
		s.wait(10 * time.Minute)
		s.ask(id, town.CreateBead{By: person, ID: fmt.Sprintf("town%d-00001", i), Rig: rigName, Title: "now"})
		if in := s.head(id).DueAt - s.now.UnixMilli(); in <= 0 || in > 5000 {
			t.Fatalf("the deadline is in %d ms", in)
		}
		starts := s.boxes.starts
		s.procs[0].dead = true
		s.procs = nil
		s.play(s.now.Add(time.Duration(i) * time.Second)) // nobody runs
		s.boot()
		s.wait(5100 * time.Millisecond)
		if s.boxes.starts != starts+1 {
			t.Errorf("%d s without a server and 5.1 s with one: %d starts", i, s.boxes.starts-starts)
		}
		s.ask(id, town.Pause{By: person, Now: true})
		s.wait(5 * time.Minute)
	}
}
