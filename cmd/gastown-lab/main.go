// Command gastown-lab holds tools for developers and operators of Gastown.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"

	"gastown/internal/sim"
)

const usage = `usage: gastown-lab <command> [flags]

commands:
  sim    play days of the control plane on a virtual clock, with faults
  chaos  kill, stop and starve a real server, its runner and its agents, and look at what remains
  load   measure a real server on this machine: idle cost, latency, throughput, memory
  image  build the image of sandboxes in containers from what this machine has
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code: 0, 1 when a check failed, 2 for wrong usage.
func run(args []string, out, errOut io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errOut, usage)
		return 2
	}
	switch args[0] {
	case "sim":
		return runSim(args[1:], out, errOut)
	case "serve": // the server of "load recover"
		return runFakeServer(args[1:], errOut)
	case "runner": // what the server of "load memory" starts in its sandboxes
		return runFakeRunner(errOut)
	case "chaos":
		return runChaos(args[1:], out, errOut)
	case "load":
		return runLoad(args[1:], out, errOut)
	case "image":
		return runImage(args[1:], out, errOut)
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return 0
	}
	fmt.Fprintf(errOut, "gastown-lab: unknown command %q\n%s", args[0], usage)
	return 2
}

func runSim(args []string, out, errOut io.Writer) int {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(errOut)
	hours := fs.Float64("hours", 24, "virtual hours of work and faults; a day of rest follows")
	towns := fs.Int("towns", 20, "number of towns")
	seed := fs.Uint64("seed", 1, "seed; the same seed is the same run")
	seeds := fs.Uint64("seeds", 1, "how many seeds to play, from the first on")
	calm := fs.Bool("calm", false, "no faults")
	pair := fs.Bool("pair", false, "two servers on one store")
	asJSON := fs.Bool("json", false, "print the report as JSON, one object per seed")
	verbose := fs.Bool("v", false, "log what the hall says")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() > 0 || *hours <= 0 || *hours > 24*366 || *towns < 1 || *towns > 10_000 || *seeds < 1 {
		fmt.Fprintln(errOut, "gastown-lab sim: --hours must be above 0, --towns from 1 to 10000, --seeds at least 1")
		return 2
	}
	o := sim.Options{Hours: *hours, Towns: *towns, Calm: *calm, Pair: *pair}
	if *verbose {
		o.Log = slog.New(slog.NewTextHandler(errOut, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	code := 0
	for s := *seed; s < *seed+*seeds; s++ {
		o.Seed = s
		r := sim.Run(o)
		if len(r.Violations) > 0 {
			code = 1
		}
		if err := show(out, r, *asJSON); err != nil {
			fmt.Fprintln(errOut, "gastown-lab:", err)
			return 1
		}
	}
	return code
}

func show(out io.Writer, r sim.Report, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	_, err := fmt.Fprintf(out, "seed %d: %g h, %d towns, %d steps, %d commits, %d crashes, %d sandbox starts, %d beads, %d merged, in %d ms: %d violations\n",
		r.Seed, r.Hours, r.Towns, r.Steps, r.Commits, r.Crashes, r.SandboxStarts, r.Beads, r.Merged, r.ElapsedMS, len(r.Violations))
	for _, v := range r.Violations {
		if _, err := fmt.Fprintln(out, "  "+v); err != nil {
			return err
		}
	}
	return err
}
