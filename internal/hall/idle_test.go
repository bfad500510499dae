package hall_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	_ "modernc.org/sqlite"

	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// damage commits columns that the town itself would never commit.
func (f *fixture) damage(id string, change func(*store.Columns)) {
	f.t.Helper()
	h := f.head(id)
	change(&h.Columns)
	_, err := f.store.Commit(f.t.Context(), store.Commit{Town: id, Expect: h.Version, CommitID: fmt.Sprint("damage", h.Version), Columns: h.Columns})
	f.must(err)
}

func wantedWithoutDeadline(c *store.Columns) { c.Wanted, c.DueAt = true, 0 }

func (f *fixture) damaged(ids []string) (n int) {
	for _, id := range ids {
		if f.head(id).Contradicts() {
			n++
		}
	}
	return n
}

func (f *fixture) set(id, key, value string) {
	f.t.Helper()
	f.must(f.h.Do(f.t.Context(), id, town.SetTown{By: "tester", Set: town.Settings{key: value}}))
}

func TestTheServersIdleIntervalSaysWhenDamageIsFound(t *testing.T) {
	t.Parallel()
	for interval, quarter := range map[string]bool{"10m": true, "40m": false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, func(c *hall.Config) { c.Server = town.Settings{"alarm.idle_interval": interval} })
			var ids []string
			for i := range 80 {
				ids = append(ids, f.town(fmt.Sprintf("town%d", i)))
			}
			f.h.Start(t.Context())
			defer f.stop()
			sleep(3 * time.Second)
			for _, id := range ids {
				f.damage(id, wantedWithoutDeadline)
			}
			sleep(5 * time.Minute)
			left := f.damaged(ids)
			if quarter && (left < 20 || left > 60) || !quarter && left < 60 {
				t.Errorf("with %s, %d of 80 are left after 5 minutes", interval, left)
			}
			sleep(5*time.Minute + time.Second)
			if left = f.damaged(ids); quarter != (left == 0) {
				t.Errorf("with %s, %d of 80 are left after 10 minutes", interval, left)
			}
			sleep(30 * time.Minute)
			if left = f.damaged(ids); left != 0 {
				t.Errorf("with %s, %d of 80 are left after 40 minutes", interval, left)
			}
		})
	}
}

func TestARestartEveryMinuteDoesNotPutTheIdleLookOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		var ids []string
		for i := range 80 {
			id := f.town(fmt.Sprintf("town%d", i))
			ids = append(ids, id)
			if i%2 == 0 {
				f.set(id, "alarm.idle_interval", "5m")
			}
		}
		for _, id := range ids {
			f.damage(id, wantedWithoutDeadline)
		}
		for i := range 6 {
			f.restart(fmt.Sprint("boot", i+2))
			f.h.Start(t.Context())
			sleep(time.Minute)
			f.stop()
		}
		if left := f.damaged(ids); left != 0 {
			t.Fatalf("%d of 80 are left after six minutes", left)
		}
	})
}

func TestATownsOwnIdleIntervalSaysWhenItsDamageIsFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Server = town.Settings{"alarm.idle_interval": "1m"} })
		f.h.Start(t.Context())
		defer f.stop()
		slow, plain := f.town("slow"), f.town("plain")
		f.set(slow, "alarm.idle_interval", "30m")
		own := (30 * time.Minute).Milliseconds()
		if got := f.head(slow).IdleMS; got != own {
			t.Fatalf("idle_ms is %d", got)
		}
		beat := func() time.Time { return time.UnixMilli(store.Beat(slow, own, time.Now().UnixMilli())) }
		for time.Until(beat()) < 5*time.Minute {
			sleep(time.Minute)
		}
		f.damage(slow, wantedWithoutDeadline)
		f.damage(plain, wantedWithoutDeadline)
		sleep(time.Minute + 2*time.Second)
		if f.head(plain).Contradicts() {
			t.Fatal("a town without an interval of its own was not found at the server's")
		}
		at := beat()
		sleep(time.Until(at) - time.Second)
		if !f.head(slow).Contradicts() {
			t.Fatal("it was found before its own time")
		}
		sleep(12 * time.Second)
		if f.head(slow).Contradicts() {
			t.Fatal("it was not found at its own time")
		}
	})
}

func TestAShortIdleIntervalOfOneTownHoldsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *hall.Config) { c.Server = town.Settings{"alarm.idle_interval": "1h"} })
		f.h.Start(t.Context())
		defer f.stop()
		quick, plain := f.town("quick"), f.town("plain")
		sleep(3 * time.Second)
		f.set(quick, "alarm.idle_interval", "2s")
		sleep(3 * time.Second) // until its copy left memory
		f.damage(quick, wantedWithoutDeadline)
		f.damage(plain, wantedWithoutDeadline)
		sleep(2200 * time.Millisecond)
		if f.head(quick).Contradicts() {
			t.Error("it was not found within its own interval")
		}
		if !f.head(plain).Contradicts() {
			t.Error("its neighbour was found far before the server's interval")
		}
	})
}

func TestActiveIntervalsSayHowOftenAnAwakeTownIsLookedAt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		server, own string
		perMinute   int64
	}{{"", "", 12}, {"1s", "", 60}, {"20s", "", 3}, {"1s", "10s", 6}, {"", "2s", 30}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, func(cfg *hall.Config) {
				cfg.Server = town.Settings{"lease": "1h"}
				if c.server != "" {
					cfg.Server["alarm.active_interval"] = c.server
				}
			})
			f.h.Start(t.Context())
			defer f.stop()
			id := f.awake("house")
			if c.own != "" {
				f.set(id, "alarm.active_interval", c.own)
			}
			sleep(20 * time.Second)
			looks, version := f.h.Metrics().Looks.Load(), f.head(id).Version
			sleep(time.Minute)
			got := f.h.Metrics().Looks.Load() - looks
			// A claim every 30 s begins the count anew.
			if got > c.perMinute+1 || got < c.perMinute*4/5-1 {
				t.Errorf("server %q, town %q: %d looks in a minute, not %d", c.server, c.own, got, c.perMinute)
			}
			if n := f.head(id).Version - version; n != 0 {
				t.Errorf("%d commits by looks", n)
			}
		})
	}
}

// sqlite makes a fixture on a real store, and a second connection to its file.
func onSQLite(t *testing.T, mod func(*hall.Config)) (*fixture, func(q string, args ...any)) {
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, func(c *hall.Config) {
		c.Store = st
		if mod != nil {
			mod(c)
		}
	})
	hand := func(q string, args ...any) {
		t.Helper()
		db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "gastown.db")+"?_pragma=busy_timeout(5000)")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(q, args...); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return f, hand
}

// damages are all the ways in which the columns of a town that sleeps with
// nothing to do can contradict each other.
var damages = map[string]string{
	"wanted":   "wanted = 1",
	"failing":  "failing = 'failed 3 times: x'",
	"deleting": "status = 'deleting'",
	"queued":   "sandbox = 'queued'", "starting": "sandbox = 'starting'", "awake": "sandbox = 'awake'", "awakened": "sandbox = 'awake', wanted = 1",
	"draining": "sandbox = 'draining'", "stopping": "sandbox = 'stopping'", "wedged": "sandbox = 'wedged'",
}

func TestRowsDamagedByHandAreRepairedWithinOneIdleInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, hand := onSQLite(t, nil)
		defer func() { f.must(f.store.Close()) }()
		f.h.Start(t.Context())
		defer f.stop()
		bad, was := map[string]string{}, map[string]store.Columns{}
		for name := range damages {
			bad[name] = f.town(name)
		}
		for i := range 30 {
			bad[fmt.Sprint("healthy", i)] = f.town(fmt.Sprint("healthy", i))
		}
		for name, id := range bad {
			was[name] = f.head(id).Columns
		}
		sleep(5 * time.Second)
		for name, change := range damages {
			hand(`UPDATE towns SET due_at = NULL, `+change+` WHERE id = ?`, bad[name])
		}
		loads, writes := f.h.Metrics().Loads.Load(), f.store.Stats()
		sleep(5*time.Minute + time.Second)
		for name, id := range bad {
			if got := f.head(id).Columns; got != was[name] {
				t.Errorf("%s: the columns are %+v, not %+v", name, got, was[name])
			}
		}
		if n := f.h.Metrics().Loads.Load() - loads; n != int64(len(damages)) {
			t.Errorf("%d towns were loaded for %d that were damaged", n, len(damages))
		}
		if n := f.store.Stats().Jobs - writes.Jobs; n != int64(len(damages)) {
			t.Errorf("%d writes for %d towns that were damaged", n, len(damages))
		}
		if got := f.out.list(); len(got) != 0 {
			t.Errorf("repairing columns performed %v", got)
		}
		writes, loads = f.store.Stats(), f.h.Metrics().Loads.Load()
		sleep(11 * time.Minute)
		if f.store.Stats() != writes || f.h.Metrics().Loads.Load() != loads {
			t.Error("what was repaired is looked at again")
		}
	})
}

func TestAWipedDeadlineIsFoundWhileWorkWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, hand := onSQLite(t, func(c *hall.Config) { c.Server = town.Settings{"lease": "1h"} })
		defer func() { f.must(f.store.Close()) }()
		f.h.Start(t.Context())
		defer f.stop()
		awake := f.awake("awake") // in memory, so its copy does not know of the damage
		waits := f.town("waits")
		f.out.do = fetchFails
		f.must(f.h.Do(t.Context(), waits, town.SetRig{By: "tester", Rig: "web", Set: town.Settings{"fetch.interval": "0s"}}))
		sleep(time.Second)
		f.must(f.h.Do(t.Context(), waits, f.bead(waits, "waits")))
		sleep(10 * time.Minute)
		if h := f.head(waits); h.Sandbox != store.Asleep || h.Open != 1 || h.DueAt == 0 {
			t.Fatalf("it does not wait: %+v", h)
		}
		hand(`UPDATE towns SET due_at = NULL WHERE id = ?`, waits)
		hand(`UPDATE towns SET due_at = NULL, wanted = 0 WHERE id = ?`, awake)
		sleep(5*time.Minute + time.Second)
		for _, id := range []string{waits, awake} {
			if h := f.head(id); h.DueAt == 0 {
				t.Errorf("the deadline of %s is still missing: %+v", h.Name, h)
			}
		}
	})
}

func TestSlotsDamagedByHandAreRepairedWithinOneIdleInterval(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, hand := onSQLite(t, func(c *hall.Config) { c.Server = town.Settings{"lease": "1h"} })
		defer func() { f.must(f.store.Close()) }()
		f.h.Start(t.Context())
		defer f.stop()
		lost, wrong, asleep := f.awake("lost"), f.awake("wrong"), f.town("asleep")
		for name, id := range map[string]string{"x": lost, "y": wrong} {
			if h := f.head(id); h.Sandbox != "awake" {
				t.Fatalf("%s: %+v", name, h)
			}
		}
		hand(`DELETE FROM slots WHERE town = ?`, lost)
		hand(`UPDATE slots SET state = 'waiting' WHERE town = ?`, wrong)
		hand(`INSERT INTO slots (town, state, since, seen, at) VALUES (?, 'awake', 1, 1, 1)`, asleep)
		sleep(5 * time.Minute)
		got, err := f.store.Slots(t.Context())
		f.must(err)
		have := map[string]string{}
		for _, s := range got {
			have[s.Town] = s.State
		}
		if len(have) != 2 || have[lost] != store.SlotIsAwake || have[wrong] != store.SlotIsAwake {
			t.Fatalf("slots are %+v", got)
		}
	})
}
