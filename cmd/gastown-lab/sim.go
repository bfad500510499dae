package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sim"
)

// runSim plays seeds of the simulator. Interrupted, it prints what was done.
func runSim(args []string, out, errOut io.Writer) int {
	m, asJSON, code := simFlags(args, errOut)
	if code >= 0 {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	done := uint64(0)
	s := m.Play(ctx, func(r sim.Report, replay *sim.Replay) {
		done++
		fmt.Fprintf(errOut, "%d of %d: seed %d: %d steps, %d commits, %d crashes, %d faults, %d beads, %d merged, %.1f s: %d violations\n", done, m.Seeds,
			r.Seed, r.Steps, r.Commits, r.Crashes, len(r.Injected), r.Beads, r.Merged, float64(r.ElapsedMS)/1000, len(r.Violations))
		if !asJSON {
			showFailure(out, r, replay)
		}
	})
	if err := showSummary(out, s, asJSON); err != nil {
		fmt.Fprintln(errOut, "gastown-lab:", err)
		return 1
	}
	switch {
	case s.Violations > 0:
		return 1
	case s.Stopped:
		fmt.Fprintf(errOut, "gastown-lab sim: interrupted after %d of %d seeds\n", s.Done, s.Seeds)
		return 130
	}
	return 0
}

// simFlags reads the command line; code is -1 when there is something to play.
func simFlags(args []string, errOut io.Writer) (m sim.Many, asJSON bool, code int) {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(errOut)
	hours := fs.Float64("hours", 24, "virtual hours of work and faults per seed; a day of rest follows")
	towns := fs.Int("towns", 3, "number of towns")
	seed := fs.Uint64("seed", 1, "first seed; the same seed is the same run")
	seeds := fs.Uint64("seeds", 1, "how many seeds to play, from the first on")
	faults := fs.String("faults", "all", "faults that may happen: all, none, or names separated by commas; list shows them")
	only := fs.String("only-faults", "", "replay: exactly these faults happen, as a failing run prints them; none for none")
	calm := fs.Bool("calm", false, "the same as --faults none")
	pair := fs.Bool("pair", false, "two servers on one store in every seed, not only in some")
	jobs := fs.Int("jobs", runtime.NumCPU(), "seeds to play at once")
	shrink := fs.Duration("shrink", 2*time.Minute, "how long to look for the smallest replay of a seed that fails; 0 for not at all")
	js := fs.Bool("json", false, "print one summary as JSON")
	verbose := fs.Bool("v", false, "log what the hall says")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return m, false, 0
		}
		return m, false, 2
	}
	if fs.NArg() > 0 || !(*hours > 0) || *hours > 24*3660 || *towns < 1 || *towns > 10_000 || *seeds < 1 || *seeds-1 > math.MaxUint64-*seed || *jobs < 1 || *shrink < 0 {
		fmt.Fprintln(errOut, "gastown-lab sim: --hours must be above 0, --towns from 1 to 10000, --seeds and --jobs at least 1; it takes no arguments")
		return m, false, 2
	}
	if *faults == "list" {
		names, help := sim.Kinds()
		for _, n := range names {
			fmt.Fprintf(errOut, "%-20s %s\n", n, help[n])
		}
		return m, false, 0
	}
	if *calm {
		*faults = "none"
	}
	kinds, err := sim.ParseKinds(*faults)
	var chosen []sim.Injection
	if err == nil && *only != "" {
		chosen, err = replayed(*only)
	}
	if err != nil {
		fmt.Fprintln(errOut, "gastown-lab sim:", err)
		if e := new(errs.Error); errors.As(err, &e) && e.Hint != "" {
			fmt.Fprintln(errOut, e.Hint)
		}
		return m, false, 2
	}
	m = sim.Many{Seeds: *seeds, Jobs: *jobs, Shrink: *shrink,
		Options: sim.Options{Seed: *seed, Hours: *hours, Towns: *towns, Faults: kinds, Only: chosen, Pair: *pair}}
	if *verbose {
		m.Log = slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return m, *js, -1
}

// replayed reads --only-faults.
func replayed(s string) ([]sim.Injection, error) {
	if s == "none" {
		return []sim.Injection{}, nil
	}
	return sim.ParseInjections(s)
}

// showFailure prints what a run broke, what led to it, and how to see it again.
func showFailure(out io.Writer, r sim.Report, replay *sim.Replay) {
	for i, v := range r.Violations {
		fmt.Fprintf(out, "seed %d: %s\n", r.Seed, v)
		if i > 0 || len(v.Inputs) == 0 {
			continue
		}
		fmt.Fprintf(out, "  the last inputs to %s:\n", v.Town)
		for _, in := range v.Inputs {
			fmt.Fprintln(out, "    "+in)
		}
	}
	if replay == nil {
		return
	}
	fmt.Fprintf(out, "  %d of %d faults are enough, found in %d runs:\n    %s\n", len(replay.Faults), replay.Of, replay.Runs, replay.Command)
	if !replay.Again {
		fmt.Fprintln(out, "  the replay did not fail again: use the whole seed")
	}
}

func showSummary(out io.Writer, s sim.Summary, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	faults := int64(0)
	for _, n := range s.Faults {
		faults += n
	}
	_, err := fmt.Fprintf(out, "%d of %d seeds, %g h each (%.0f h per second): %d commits, %d crashes, %d faults, %d beads, %d merged: %d violations\n",
		s.Done, s.Seeds, s.Hours, s.PerSecond, s.Commits, s.Crashes, faults, s.Beads, s.Merged, s.Violations)
	return err
}
