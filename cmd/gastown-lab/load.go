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
	"strings"
	"syscall"
	"time"

	"gastown/internal/lab"
)

const loadUsage = `usage: gastown-lab load <what> [flags]

what:
  idle     what a server with many sleeping towns costs, and how fast it is back after a crash
  wake     from sling to the agent's process, asleep and awake; what follows -- goes to gastown serve, as --sandbox docker
  create   durable bead creations per second over HTTP
  memory   what an awake town with 8 runs costs the server in memory
  streams  the way of a model's answer to an agent: delay of the first byte, many streams at once
  agents   what runs of a real agent cost in one sandbox; its program must be in PATH
  recover  a server with awake towns is killed: how soon the next one has them all again
  doctor   an examination of a server with many sleeping towns
  town     a town of 10,000 beads: load, one change
  all      all of them, as a table with targets

Everything runs on this machine, over loopback, in a temporary directory that is
removed at the end. gastown is built from the source tree, or named by --gastown.
`

// loadFlags are shared by all measurements.
type loadFlags struct {
	set     *flag.FlagSet
	json    *bool
	gastown *string
	quiet   *bool
	keep    *bool
	errOut  io.Writer
}

func newLoadFlags(name string, errOut io.Writer) *loadFlags {
	fs := flag.NewFlagSet("load "+name, flag.ContinueOnError)
	fs.SetOutput(errOut)
	return &loadFlags{set: fs, errOut: errOut,
		json:    fs.Bool("json", false, "print the result as one line of JSON"),
		gastown: fs.String("gastown", "", "the program to measure; default: build it"),
		quiet:   fs.Bool("q", false, "say nothing on the way"),
		keep:    fs.Bool("keep", false, "keep the temporary directory, for a look at logs and store")}
}

// note tells on standard error what goes on.
func (f *loadFlags) note(format string, args ...any) {
	if !*f.quiet {
		fmt.Fprintf(f.errOut, format+"\n", args...)
	}
}

// runLoad returns the exit code.
func runLoad(args []string, out, errOut io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errOut, loadUsage)
		return 2
	}
	measure, ok := map[string]func(*loadFlags) func(context.Context, *lab.Place) (any, error){
		"idle": loadIdle, "wake": loadWake, "create": loadCreate, "memory": loadMemory, "streams": loadStreams, "agents": loadAgents, "recover": loadRecover, "doctor": loadDoctor, "town": loadTown, "all": loadAll,
	}[args[0]]
	if !ok {
		fmt.Fprintf(errOut, "gastown-lab load: unknown measurement %q\n%s", args[0], loadUsage)
		return 2
	}
	f := newLoadFlags(args[0], errOut)
	run := measure(f)
	if err := f.set.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if f.set.NArg() > 0 && args[0] != "wake" {
		fmt.Fprintf(errOut, "gastown-lab load %s: unexpected %q\n", args[0], f.set.Arg(0))
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := inPlace(ctx, f, out, run); err != nil {
		fmt.Fprintln(errOut, "gastown-lab:", err)
		return 1
	}
	return 0
}

// inPlace measures in a directory that is gone afterwards.
func inPlace(ctx context.Context, f *loadFlags, out io.Writer, run func(context.Context, *lab.Place) (any, error)) error {
	place, err := lab.NewPlace(ctx, *f.gastown)
	if err != nil {
		return err
	}
	result, err := run(ctx, place)
	if *f.keep {
		f.note("everything is in %s", place.Dir)
	} else {
		err = errors.Join(err, place.Remove())
	}
	if table, ok := result.(lab.Table); ok && !*f.json {
		_, writeErr := io.WriteString(out, table.String())
		return errors.Join(err, writeErr)
	}
	if err != nil {
		return err
	}
	e := json.NewEncoder(out)
	if !*f.json {
		e.SetIndent("", "  ")
	}
	return e.Encode(result)
}

// within checks the bounds of a number that was given.
func within(name string, v, lo, hi int) error {
	if v < lo || v > hi {
		return fmt.Errorf("--%s must be from %d to %d", name, lo, hi)
	}
	return nil
}

func loadIdle(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	towns := f.set.Int("towns", 100_000, "number of towns")
	beads := f.set.Int("beads", 3, "closed beads of each")
	length := f.set.Duration("for", time.Minute, "how long to watch")
	interval := f.set.Duration("idle-interval", 5*time.Minute, "alarm.idle_interval of the server")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("towns", *towns, 1, 5_000_000), within("beads", *beads, 0, 100),
			within("for", int(length.Seconds()), 1, 86400)); err != nil {
			return nil, err
		}
		return lab.MeasureIdle(ctx, lab.IdleOptions{Place: p, Towns: *towns, Beads: *beads, For: *length, Note: f.note,
			Args: []string{"--set", "alarm.idle_interval=" + interval.String()}})
	}
}

func loadDoctor(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	towns := f.set.Int("towns", 100_000, "number of sleeping towns")
	beads := f.set.Int("beads", 3, "closed beads of each")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("towns", *towns, 1, 5_000_000), within("beads", *beads, 0, 100)); err != nil {
			return nil, err
		}
		return lab.MeasureDoctor(ctx, lab.DoctorOptions{Place: p, Towns: *towns, Beads: *beads, Note: f.note})
	}
}

func loadWake(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	towns := f.set.Int("towns", 1000, "number of towns, each slung three times")
	concurrent := f.set.Int("concurrent", 1, "towns worked on at once; more than 1 measures the load, not the delay")
	files := f.set.Int("files", 100, "files in the repository")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("towns", *towns, 1, 100_000), within("concurrent", *concurrent, 1, 100), within("files", *files, 1, 100_000)); err != nil {
			return nil, err
		}
		return lab.MeasureWake(ctx, lab.WakeOptions{Place: p, Towns: *towns, Concurrent: *concurrent, Files: *files,
			Args: f.set.Args(), Note: f.note})
	}
}

func loadCreate(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	clients := f.set.Int("clients", 64, "clients, each with one request under way")
	towns := f.set.Int("towns", 1, "towns that get the beads by turns")
	length := f.set.Duration("for", 10*time.Second, "how long")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("clients", *clients, 1, 1000), within("towns", *towns, 1, 100_000), within("for", int(length.Seconds()), 1, 600)); err != nil {
			return nil, err
		}
		return lab.MeasureCreate(ctx, lab.CreateOptions{Place: p, Clients: *clients, Towns: *towns, For: *length})
	}
}

func loadMemory(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	towns := f.set.Int("towns", 20, "awake towns")
	runs := f.set.Int("runs", 8, "runs of each")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("towns", *towns, 1, 1000), within("runs", *runs, 1, 100)); err != nil {
			return nil, err
		}
		return lab.MeasureMemory(ctx, lab.MemoryOptions{Place: p, Towns: *towns, Runs: *runs, Note: f.note})
	}
}

func loadAgents(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	agent := f.set.String("agent", "opencode", "preset; one that speaks the format of OpenAI's chat completions")
	runs := f.set.Int("runs", 8, "beads, worked on at once")
	own := f.set.Bool("process-per-run", false, "a process for each run, although the agent could share")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := within("runs", *runs, 1, 100); err != nil {
			return nil, err
		}
		return lab.MeasureAgents(ctx, lab.AgentsOptions{Place: p, Agent: *agent, Runs: *runs, Own: *own, Note: f.note})
	}
}

func loadRecover(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	towns := f.set.Int("towns", 1000, "awake towns; each is a process of some MB")
	down := f.set.Duration("down", time.Second, "how long no server runs")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("towns", *towns, 1, 10_000), within("down", int(down.Seconds()), 0, 60)); err != nil {
			return nil, err
		}
		return lab.MeasureRecovery(ctx, lab.RecoveryOptions{Place: p, Towns: *towns, Down: *down, Note: f.note})
	}
}

// runFakeServer is what "load recover" starts as its server.
func runFakeServer(args []string, errOut io.Writer) int {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	fs.SetOutput(errOut)
	data := fs.String("data", "", "the data directory")
	listen := fs.String("listen", "127.0.0.1:0", "where to listen")
	settings := map[string]string{}
	fs.Func("set", "a setting", func(s string) error {
		key, value, _ := strings.Cut(s, "=")
		settings[key] = value
		return nil
	})
	if fs.Parse(args) != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := lab.ServeFake(ctx, *data, *listen, settings); err != nil {
		fmt.Fprintln(errOut, "gastown-lab serve:", err)
		return 1
	}
	return 0
}

func runFakeRunner(errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := lab.FakeRunner(ctx); err != nil {
		fmt.Fprintln(errOut, "gastown-lab runner:", err)
		return 1
	}
	return 0
}

func loadTown(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	beads := f.set.Int("beads", 10_000, "open beads")
	times := f.set.Int("times", 21, "how often each figure is taken; the median is told")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("beads", *beads, 1, 99_999), within("times", *times, 1, 10_000)); err != nil {
			return nil, err
		}
		return lab.MeasureTown(ctx, lab.TownOptions{Place: p, Beads: *beads, Times: *times})
	}
}
