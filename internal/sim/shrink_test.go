package sim

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAFailingSeedPrintsASmallReplayThatFailsByItself breaks the server: it finds
// no record of an earlier answer, which does harm only when an answer was lost.
func TestAFailingSeedPrintsASmallReplayThatFailsByItself(t *testing.T) {
	t.Parallel()
	m := Many{Options: Options{Seed: 5, Hours: 24, Towns: 2, forgetful: true}, Seeds: 1, Shrink: time.Minute}
	var replay *Replay
	s := m.Play(t.Context(), func(_ Report, r *Replay) { replay = r })
	if s.Violations == 0 || replay == nil {
		t.Fatal("the broken server was not found out")
	}
	first := s.Failures[0].Violations[0]
	if first.Invariant == "" || len(first.Inputs) == 0 || first.Step == 0 || first.Town == "" {
		t.Errorf("the violation says too little: %+v", first)
	}
	if !replay.Again || len(replay.Faults) == 0 || len(replay.Faults) > 10 || replay.Of < 100 {
		t.Fatalf("%d of %d faults are enough (%v), again: %t", len(replay.Faults), replay.Of, replay.Faults, replay.Again)
	}
	_, list, _ := strings.Cut(replay.Command, "--only-faults ")
	only, err := ParseInjections(list)
	if err != nil || !slices.Equal(only, replay.Faults) {
		t.Fatalf("%q was read as %v, %v", replay.Command, only, err)
	}
	o := m.Options
	o.Only = only
	again := Run(t.Context(), o)
	if !slices.ContainsFunc(again.Violations, func(v Violation) bool { return v.Invariant == first.Invariant }) {
		t.Errorf("the replay broke %v", again.Violations)
	}
	if len(again.Injected) > len(only) {
		t.Errorf("%d faults happened in a replay of %d", len(again.Injected), len(only))
	}
	o.forgetful = false
	if sound := Run(t.Context(), o); len(sound.Violations) > 0 {
		t.Errorf("a sound server fails in the replay: %v", sound.Violations)
	}
}

func TestAReplayOfAllFaultsIsTheSameRun(t *testing.T) {
	t.Parallel()
	o := Options{Seed: 3, Hours: 20, Towns: 2}
	r := Run(t.Context(), o)
	o.Only = r.Injected
	again := Run(t.Context(), o)
	if again.Digest != r.Digest || again.Steps != r.Steps || len(again.Injected) != len(r.Injected) {
		t.Errorf("%d steps and %d faults became %d and %d", r.Steps, len(r.Injected), again.Steps, len(again.Injected))
	}
}

func TestOnlyTheFaultsThatWereAskedForHappen(t *testing.T) {
	t.Parallel()
	r := Run(t.Context(), Options{Seed: 2, Hours: 20, Towns: 2, Faults: []Kind{"crash", "message-lost"}})
	if len(r.Faults) != 2 || r.Faults["crash"] == 0 || r.Faults["message-lost"] == 0 {
		t.Errorf("these happened: %v", r.Faults)
	}
	for _, v := range r.Violations {
		t.Error(v)
	}
}

func TestFaultsAreReadFromTheCommandLine(t *testing.T) {
	t.Parallel()
	all, err := ParseKinds("all")
	if err != nil || len(all) != len(kinds) {
		t.Errorf("all: %d of %d, %v", len(all), len(kinds), err)
	}
	if none, err := ParseKinds("none"); err != nil || none == nil || len(none) != 0 {
		t.Errorf("none: %v, %v", none, err)
	}
	if two, err := ParseKinds("crash, git-down"); err != nil || !slices.Equal(two, []Kind{"crash", "git-down"}) {
		t.Errorf("two: %v, %v", two, err)
	}
	if _, err := ParseKinds("crash,flood"); err == nil || !strings.Contains(err.Error(), "flood") {
		t.Errorf("an unknown one: %v", err)
	}
}

func TestInjectionsSurviveBeingWritten(t *testing.T) {
	t.Parallel()
	for _, i := range []Injection{{"crash", 0, 0, 1}, {"sandbox-dies", 3, 90 * time.Minute, 1}, {"commit-lost", 1, 1234 * time.Millisecond, 12}} {
		got, err := ParseInjections(i.String())
		if err != nil || len(got) != 1 || got[0] != i {
			t.Errorf("%s was read as %v, %v", i, got, err)
		}
	}
}

func FuzzInjections(f *testing.F) {
	for _, s := range []string{"crash@12", "sandbox-dies:2@5400000.3,crash@1", "crash", "@", "crash:0@1", "crash@-1", "crash@1.0", "flood@1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseInjections(s)
		if err != nil {
			return
		}
		for _, i := range list {
			again, err := ParseInjections(i.String())
			if err != nil || len(again) != 1 || again[0] != i {
				t.Fatalf("%q was read as %v, which is read as %v, %v", s, i, again, err)
			}
		}
	})
}

func TestAnInterruptedSeriesSaysWhatWasDone(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	m := Many{Options: Options{Seed: 1, Hours: 6, Towns: 1}, Seeds: 1000, Jobs: 1}
	s := m.Play(ctx, func(r Report, _ *Replay) {
		if r.Seed == 2 {
			cancel()
		}
	})
	if !s.Stopped || s.Done < 2 || s.Done > 3 || s.Simulated != float64(s.Done)*6 || s.Commits == 0 {
		t.Errorf("after the second seed: %+v", s)
	}
	text, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(text), `"each bead is merged at most once"`) {
		t.Errorf("%s, %v", text, err)
	}
}
