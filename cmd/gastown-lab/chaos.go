package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"gastown/internal/lab"
)

// runChaos returns the exit code: 1 for a violation, too.
func runChaos(args []string, out, errOut io.Writer) int {
	fs := flag.NewFlagSet("chaos", flag.ContinueOnError)
	fs.SetOutput(errOut)
	beads := fs.Int("beads", 40, "number of beads")
	minutes := fs.Float64("minutes", 3, "how long everything goes wrong; as long again, or five minutes, may pass until all is quiet")
	seed := fs.Uint64("seed", 1, "seed of all choices; the moments are those of the real clock")
	asJSON := fs.Bool("json", false, "print the result as one line of JSON")
	gastown := fs.String("gastown", "", "the program to test; default: build it")
	quiet := fs.Bool("q", false, "say nothing on the way")
	keep := fs.Bool("keep", false, "keep the temporary directory, for a look at logs and store")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() > 0 || *beads < 1 || *beads > 1000 || *minutes < 0.5 || *minutes > 24*60 {
		fmt.Fprintln(errOut, "gastown-lab chaos: --beads must be from 1 to 1000, --minutes from 0.5 to 1440")
		return 2
	}
	note := func(format string, args ...any) {
		if !*quiet {
			fmt.Fprintf(errOut, format+"\n", args...)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	place, err := lab.NewPlace(ctx, *gastown)
	if err != nil {
		fmt.Fprintln(errOut, "gastown-lab:", err)
		return 1
	}
	length := time.Duration(*minutes * float64(time.Minute))
	r, err := lab.RunChaos(ctx, lab.ChaosOptions{Place: place, Beads: *beads, For: length, Seed: *seed, Note: note})
	if *keep {
		fmt.Fprintf(errOut, "everything is in %s\n", place.Dir)
	} else {
		err = errors.Join(err, place.Remove())
	}
	err = errors.Join(err, showChaos(out, r, *asJSON))
	if err != nil {
		fmt.Fprintln(errOut, "gastown-lab:", err)
	}
	if err != nil || len(r.Violations) > 0 {
		return 1
	}
	return 0
}

func showChaos(out io.Writer, r lab.Chaos, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	_, err := fmt.Fprintf(out, "seed %d: %d of %d beads merged, %d of them twice; %d commits and %d acknowledged commands lost\n"+
		"killed: %d servers, %d runners, %d agents; %d stalls, %d disks deleted, %d outboxes filled, the remote down %d times, %d commits by others\n"+
		"%d sandbox starts, %.1f s: %d violations\n",
		r.Seed, r.Merged, r.Beads, r.MergedTwice, r.LostCommits, r.LostAcks, r.ServerKills, r.RunnerKills, r.AgentKills, r.Stalls, r.DisksDeleted,
		r.OutboxFills, r.RemoteOutages, r.ForeignCommits, r.SandboxStarts, float64(r.ElapsedMS)/1000, len(r.Violations))
	for _, v := range r.Violations {
		if _, err := fmt.Fprintln(out, "  "+v); err != nil {
			return err
		}
	}
	return err
}
