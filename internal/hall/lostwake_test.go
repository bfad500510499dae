package hall_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/town"
)

// TestARefusalAfterADeadlineDoesNotLoseIt refuses an input, or looks, just after the breaker
// of a sandbox ended and before the alarm came: with the next commit the deadline would be
// gone, the town asleep, wanted and without anybody who comes back.
func TestARefusalAfterADeadlineDoesNotLoseIt(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(f *fixture, id string){
		"a refused input": func(f *fixture, id string) {
			if err := f.h.Do(f.t.Context(), id, town.NudgeBead{By: "tester", Bead: "house-nosuch", Text: "hi"}); !errs.Is(err, errs.NotFound) {
				f.t.Fatalf("it was not refused: %v", err)
			}
		},
		"a view": func(f *fixture, id string) {
			f.must(f.h.View(f.t.Context(), id, func(tn *town.Town, _ time.Time) error { tn.Beads(); return nil }))
		},
		"word of a place": func(f *fixture, id string) { f.must(f.h.Do(f.t.Context(), id, town.SlotFree{})) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				broken := true
				f.out.do = func(_ context.Context, _ hall.TownRef, e town.Effect) (any, error, bool) {
					if _, ok := e.Action.(town.StartSandbox); ok && broken {
						return nil, errs.New(errs.Unavailable, "no room"), true
					}
					return nil, nil, false
				}
				id := f.town("house")
				f.must(f.h.Do(t.Context(), id, f.bead(id, "house")))
				synctest.Wait()
				broken = false
				h := f.head(id)
				if h.Sandbox != "asleep" || h.DueAt == 0 {
					t.Fatalf("the breaker is not open: %+v", h.Columns)
				}
				time.Sleep(time.Until(town.Time(h.DueAt).Time()) + time.Millisecond)
				ask(f, id)
				synctest.Wait()
				if h := f.head(id); h.Contradicts() || h.DueAt == 0 {
					t.Fatalf("nobody comes back to it: %+v", h.Columns)
				}
				f.h.Start(t.Context())
				defer f.stop()
				sleep(time.Second)
				if n := f.out.count("sandbox.start"); n != 2 {
					t.Fatalf("%d starts: %v", n, f.out.list())
				}
			})
		})
	}
}
