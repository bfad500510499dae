package sim_test

import (
	"fmt"
	"testing"

	"gastown/internal/sim"
)

func TestAFewDaysPassWithoutAViolation(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			o := sim.Options{Seed: seed, Hours: 12, Towns: 5}
			if seed == 3 {
				o.Pair, o.Hours = true, 6
			}
			r := sim.Run(o)
			for _, v := range r.Violations {
				t.Error(v)
			}
			if r.Merged == 0 || r.Crashes == 0 || r.SandboxStarts == 0 {
				t.Errorf("too little happened: %+v", r)
			}
		})
	}
}

func TestASeedReplays(t *testing.T) {
	t.Parallel()
	o := sim.Options{Seed: 7, Hours: 6, Towns: 3}
	a, b := sim.Run(o), sim.Run(o)
	if a.Digest != b.Digest || a.Steps != b.Steps {
		t.Fatalf("two runs of one seed differ: %s after %d steps, %s after %d", a.Digest, a.Steps, b.Digest, b.Steps)
	}
	if c := sim.Run(sim.Options{Seed: 8, Hours: 6, Towns: 3}); c.Digest == a.Digest {
		t.Fatal("two seeds gave the same run")
	}
}

func TestACalmDayMergesEverything(t *testing.T) {
	t.Parallel()
	r := sim.Run(sim.Options{Seed: 3, Hours: 12, Towns: 3, Calm: true})
	for _, v := range r.Violations {
		t.Error(v)
	}
	if r.Merged*2 < r.Beads {
		t.Errorf("only %d of %d beads were merged: %v", r.Merged, r.Beads, r.Ended)
	}
}
