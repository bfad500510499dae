package hall_test

import (
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/hall"
	"gastown/internal/town"
)

// TestHealthyRunsOutliveEverySilenceAndDeadOnesAreFound puts times in which
// nobody listened between two heartbeats of a run.
func TestHealthyRunsOutliveEverySilenceAndDeadOnesAreFound(t *testing.T) {
	t.Parallel()
	step := func(by time.Duration) func(*fixture, *jumpy) {
		return func(_ *fixture, c *jumpy) { c.by.Add(int64(by)) }
	}
	for name, silence := range map[string]func(*fixture, *jumpy){
		"the server was down for 10 minutes": func(f *fixture, _ *jumpy) {
			f.stop()
			time.Sleep(10 * time.Minute)
			f.restart("boot2")
			f.h.Start(f.t.Context())
		},
		"the laptop slept for 8 hours":         step(8 * time.Hour),
		"the clock was put forward by an hour": step(time.Hour),
		"the clock was put back by an hour":    step(-time.Hour),
		"the clock was put back by 8 hours":    step(-8 * time.Hour),
	} {
		for _, healthy := range []bool{true, false} {
			verb := map[bool]string{true: " and the run goes on", false: " and the run is dead"}[healthy]
			t.Run(name+verb, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { outlive(t, silence, healthy) })
			})
		}
	}
}

func outlive(t *testing.T, silence func(*fixture, *jumpy), healthy bool) {
	clock := &jumpy{}
	f := newFixture(t, func(c *hall.Config) { c.Clock = clock })
	f.h.Start(t.Context())
	defer func() { f.stop() }()
	id := f.awake("house")
	var run town.Run
	see := func(fn func(*town.Town)) {
		f.must(f.h.View(t.Context(), id, func(tn *town.Town, _ time.Time) error { fn(tn); return nil }))
	}
	see(func(tn *town.Town) { run = tn.Runs()[0] })
	seq := int64(0)
	report := func(r town.Report) {
		seq++
		f.must(f.h.Do(t.Context(), id, town.Reports{Generation: 1, Stream: "s", From: seq, Items: []town.Report{r}}))
	}
	life := []town.RunLife{{Run: run.ID, Epoch: run.Epoch}}
	report(town.Report{Kind: town.ReportStarted, Run: run.ID, Epoch: run.Epoch})
	report(town.Report{Kind: town.ReportHeartbeat, Runs: life})
	silence(f, clock)
	for range 40 { // ten minutes
		sleep(15 * time.Second)
		if healthy {
			report(town.Report{Kind: town.ReportHeartbeat, Runs: life})
		}
	}
	see(func(tn *town.Town) {
		runs, s := tn.Runs(), tn.Sandbox()
		same := len(runs) == 1 && runs[0].ID == run.ID
		if healthy && (!same || s.State != town.SandboxAwake || s.Generation != 1) {
			t.Errorf("a healthy run was given up: %+v, sandbox %s of generation %d", tn.Beads()[0].Failures, s.State, s.Generation)
		}
		if !healthy && same && s.State == town.SandboxAwake && s.Generation == 1 {
			t.Errorf("nobody noticed that the sandbox is silent, last seen %s", s.LastSeen)
		}
	})
}
