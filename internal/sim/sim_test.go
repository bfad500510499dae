package sim_test

import (
	"fmt"
	"testing"

	"gastown/internal/sim"
)

// seeds is how many fixed seeds the tests play. Under the race detector each takes
// ten times as long; tools/test runs these tests once more without it.
func seeds() uint64 {
	if raced {
		return 1
	}
	return 12
}

// notRaced leaves a test to the run without the race detector, see seeds.
func notRaced(t *testing.T) {
	t.Helper()
	if raced {
		t.Skip("tools/test runs it without the race detector")
	}
}

func TestDaysWithAllFaultsPassWithoutAViolation(t *testing.T) {
	t.Parallel()
	for seed := range seeds() {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			o := sim.Options{Seed: seed, Hours: 30, Towns: 2 + int(seed%2)}
			r := sim.Run(t.Context(), o)
			for _, v := range r.Violations {
				t.Error(v)
			}
			if t.Failed() {
				t.Logf("gastown-lab sim --seed %d --hours %g --towns %d", o.Seed, o.Hours, o.Towns)
			}
			if r.Merged == 0 || r.Crashes == 0 || r.SandboxStarts == 0 {
				t.Errorf("too little happened: %+v", r)
			}
		})
	}
}

func TestEveryFaultHappensAndEveryInvariantIsLookedAt(t *testing.T) {
	t.Parallel()
	notRaced(t)
	m := sim.Many{Options: sim.Options{Seed: 3000, Hours: 40, Towns: 2}, Seeds: 8, Jobs: 2}
	s := m.Play(t.Context(), nil)
	names, _ := sim.Kinds()
	for _, k := range names {
		if s.Faults[k] == 0 {
			t.Errorf("%s never happened", k)
		}
	}
	for inv, n := range s.Checked {
		if n == 0 {
			t.Errorf("%q was never looked at", inv)
		}
	}
	for _, f := range s.Failures {
		t.Errorf("seed %d: %v", f.Seed, f.Violations)
	}
}

func TestASeedReplays(t *testing.T) {
	t.Parallel()
	notRaced(t)
	o := sim.Options{Seed: 7, Hours: 12, Towns: 3, Pair: true}
	a, b := sim.Run(t.Context(), o), sim.Run(t.Context(), o)
	if a.Digest != b.Digest || a.Steps != b.Steps {
		t.Fatalf("two runs of one seed differ: %s after %d steps, %s after %d", a.Digest, a.Steps, b.Digest, b.Steps)
	}
	o.Seed = 8
	if c := sim.Run(t.Context(), o); c.Digest == a.Digest {
		t.Fatal("two seeds gave the same run")
	}
}

func TestACalmDayMergesEverything(t *testing.T) {
	t.Parallel()
	r := sim.Run(t.Context(), sim.Options{Seed: 3, Hours: 12, Towns: 3, Faults: []sim.Kind{}})
	for _, v := range r.Violations {
		t.Error(v)
	}
	if r.Merged*2 < r.Beads {
		t.Errorf("only %d of %d beads were merged: %v", r.Merged, r.Beads, r.Ended)
	}
}

func TestOnCalmDaysNothingIsLateWithTwoServers(t *testing.T) {
	t.Parallel()
	notRaced(t)
	calm := max(seeds()/6, 1)
	m := sim.Many{Options: sim.Options{Seed: 40, Hours: 24, Towns: 3, Faults: []sim.Kind{}, Pair: true}, Seeds: calm, Jobs: 2}
	for _, f := range m.Play(t.Context(), nil).Failures {
		t.Errorf("seed %d: %v", f.Seed, f.Violations)
	}
}
