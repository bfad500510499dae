package hall_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// What the loop of the system before this one did to its users, beside what its
// rules did (internal/town/predecessor_test.go).
//
//   - effects lost in a crash: TestACrashBetweenCommitAndEffectLosesNothing
//   - state changed under effects under way: TestAnEffectLeavesOnlyAfterTheCommitThatClaimedIt
//   - one alarm that did everything in series, so one hung call stalled a town: here; its
//     neighbours: TestASlowTownDoesNotSlowItsNeighbours
//   - one poison row that stopped a town: here; a town's own row: TestAFailingTownBacksOffAndComesBack
//   - a rule that threw and hid all others: TestAPanicIsolates
//   - deleted towns that came back: here and TestATownIsDeletedWholeWhereverTheServerDies
//   - breakers and throttles in memory, forgotten by each restart: here
//   - tokens renewed after a restart, which woke everyone: here and TestNothingElseWakes
//   - new work that waited for the next poll: TestNewWorkStartsASandboxAtOnce
//   - a tick that read the world although nothing had changed: TestIdleTownsCostNoWriteAndNoLoad
//   - repositories and rows of deleted towns that stayed: TestADeletedTownGoesWithEverything

func TestAHungCallStallsNotItsOwnTown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer f.stop()
		hung := 0
		f.out.do = func(ctx context.Context, _ hall.TownRef, e town.Effect) (any, error, bool) {
			if fetch, ok := e.Action.(town.FetchRig); ok && fetch.Rig.Name == "api" {
				hung++
				<-ctx.Done()
				return nil, ctx.Err(), true
			}
			return nil, nil, false
		}
		id := f.town("house")
		ctx := t.Context()
		f.must(f.h.Do(ctx, id, town.AddRig{By: "tester", Rig: town.Rig{Name: "api", Prefix: "api", URL: "/upstream/api", Target: "main", Tip: oid}}))
		sleep(time.Hour) // what is known of the upstreams is old
		stuck := f.bead(id, "api")
		stuck.Rig = "api"
		f.must(f.h.Do(ctx, id, stuck))
		synctest.Wait()
		begin := time.Now()
		if hung != 1 {
			t.Fatalf("%d fetches hang", hung)
		}
		f.must(f.h.Do(ctx, id, f.bead(id, "house")))
		synctest.Wait()
		f.hello(id)
		if got := f.head(id).Sandbox; got != "awake" || !time.Now().Equal(begin) {
			t.Fatalf("the sandbox is %s after %s", got, time.Since(begin))
		}
		for minute := range 4 { // a runner that lives
			sleep(time.Minute)
			f.must(f.h.Do(ctx, id, town.Reports{Generation: 1, Stream: "s", From: int64(minute + 1), Items: []town.Report{{Kind: town.ReportHeartbeat,
				Runs: []town.RunLife{{Run: fmt.Sprintf("house-%05d.1", f.beads), Epoch: 1}}}}}))
		}
		f.must(f.h.View(ctx, id, func(tn *town.Town, _ time.Time) error {
			// Its end and the end of its claim fall on the same moment: whichever is seen first.
			failed := slices.ContainsFunc(tn.Breakers(), func(b town.Breaker) bool { return b.Subject == "rig/api" })
			again := slices.ContainsFunc(tn.Claims(), func(c town.Claim) bool { return c.Key == "rig/api/fetch" && c.Attempt > 1 })
			if !failed && !again {
				return fmt.Errorf("the hung call never ended: %v", tn.Claims())
			}
			return nil
		}))
	})
}

func TestAPoisonRowStopsOnlyItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		id := f.town("house")
		ctx := t.Context()
		poison := f.bead(id, "house")
		f.must(f.h.Do(ctx, id, poison))
		f.stop()
		h := f.head(id)
		_, err := f.store.Commit(ctx, store.Commit{Town: id, Expect: h.Version, CommitID: "damage", Columns: h.Columns,
			Rows: []store.Row{{Kind: "bead", ID: poison.ID, Body: fmt.Appendf(nil, `{"v":1,"id":%q,"rig":"web","status":"telepathic"}`, poison.ID)}}})
		f.must(err)
		f.restart("boot2")
		f.h.Start(ctx)
		defer f.stop()
		sleep(time.Second)
		good := f.bead(id, "house")
		f.must(f.h.Do(ctx, id, good))
		synctest.Wait()
		f.hello(id)
		f.must(f.h.View(ctx, id, func(tn *town.Town, _ time.Time) error {
			if b, ok := tn.Bead(good.ID); !ok || b.Status != town.BeadInProgress {
				return fmt.Errorf("the other bead is %q", b.Status)
			}
			return nil
		}))
		if n, h := f.h.Metrics().Failures.Load(), f.head(id); n != 0 || h.Failing != "" {
			t.Fatalf("%d failures, failing %q", n, h.Failing)
		}
	})
}

func TestADeletedTownDoesNotComeBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, d := boxes(t)
		f.h.Start(t.Context())
		defer f.stop()
		id := f.awake("house")
		box := d.Running(id)
		f.must(f.h.Do(t.Context(), id, town.DeleteTown{By: "tester"}))
		sleep(5 * time.Minute)
		f.must(f.h.View(t.Context(), f.town("house"), func(*town.Town, time.Time) error { return nil })) // the name is free
		starts := d.Count("start", "")
		for _, late := range []town.Input{
			town.Hello{Generation: box, Stream: "s"}, town.Reports{Generation: box, Stream: "s", From: 1, Items: []town.Report{{Kind: town.ReportHeartbeat}}},
			town.SandboxExited{Generation: box, Reason: "late"}, town.EffectDone{Key: "rig/web/fetch", ID: 1, Result: town.Fetched{Tip: oid}},
			town.Resume{By: "tester", For: time.Hour}, town.Tick{}, town.SlotFree{}, f.bead(id, "house"),
		} {
			if err := f.h.Do(t.Context(), id, late); !errs.Is(err, errs.NotFound) {
				t.Errorf("%s after the end: %v", town.InputName(late), err)
			}
		}
		f.again("boot2")
		sleep(6 * time.Hour) // alarms, idle looks and sweeps
		if _, err := f.h.Resolve(t.Context(), id); !errs.Is(err, errs.NotFound) {
			t.Fatalf("it is back: %v", err)
		}
		if n := d.Count("start", ""); n != starts || d.Running(id) != 0 {
			t.Fatalf("%d sandboxes were started", n-starts)
		}
	})
}

func TestARestartForgetsNoBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, starts := newFixture(t, nil), 0
		f.h.Start(t.Context())
		defer func() { f.stop() }()
		f.out.do = func(_ context.Context, _ hall.TownRef, e town.Effect) (any, error, bool) {
			if _, ok := e.Action.(town.StartSandbox); ok {
				starts++
				return nil, errs.New(errs.Unavailable, "no room"), true
			}
			return nil, nil, false
		}
		id := f.town("house")
		f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
		for i := range 360 { // an hour, with a restart each 10 s
			sleep(10 * time.Second)
			f.stop()
			f.again(fmt.Sprint("boot", i+2))
		}
		if starts < 5 || starts > 9 { // 30 s, 1, 2, 4, 8, 15, 15 min with jitter
			t.Fatalf("%d starts in an hour", starts)
		}
	})
}

func TestARestartRenewsNoToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.h.Start(t.Context())
		defer func() { f.stop() }()
		id, ctx, seq := f.town("house"), t.Context(), int64(0)
		f.must(f.h.Do(ctx, id, town.Resume{By: "tester", For: 4 * time.Hour}))
		synctest.Wait()
		f.hello(id)
		for i := range 210 { // three and a half hours, with a restart each minute
			sleep(30 * time.Second)
			seq++
			f.must(f.h.Do(ctx, id, town.Reports{Generation: 1, Stream: "s", From: seq, Items: []town.Report{{Kind: town.ReportHeartbeat}}}))
			sleep(30 * time.Second)
			f.stop()
			f.again(fmt.Sprint("boot", i+2))
		}
		if n := f.out.count("token.renew"); n != 3 {
			t.Fatalf("%d renewals in three and a half hours: %d restarts", n, 210)
		}
		if got := f.head(id); got.Generation != 1 || f.out.count("sandbox.start") != 1 {
			t.Fatalf("%d starts, %+v", f.out.count("sandbox.start"), got)
		}
	})
}
