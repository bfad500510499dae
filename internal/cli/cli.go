// Package cli is the command line: each command parses its arguments, calls the
// client, and prints.
//
// What every command keeps to:
//
//   - Results go to stdout, everything else to stderr. A command that fails
//     prints "error: ..." and, where there is advice, "hint: ..." on stderr and
//     exits by the kind of the error (errs.ExitCode): 2 for a wrong command line
//     or request, 3 not found, 4 conflict, 5 no access, 6 gone, 7 try again
//     later, 1 anything else. An interrupted command exits with 130.
//   - With --json a reading command prints what the API answered (types of
//     package api): a list as an array, one thing as an object, a stream as one
//     object per line. Field names are stable.
//   - Text of strangers is printed without control characters, so that a title
//     or an agent can't command the terminal.
//   - Colour only on a terminal and without NO_COLOR.
//
// The server is found through --data DIR (on the same machine, see Connection),
// else GASTOWN_URL and GASTOWN_TOKEN, else GASTOWN_DATA, else the default data
// directory.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"gastown/internal/errs"
)

// Env is everything a command takes from its process.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Now      func() time.Time
	Terminal bool   // Out is a terminal
	Attended bool   // somebody sits at a terminal, whatever Out is
	Version  string // of this build; "" takes it from the build's information
}

// Process returns the environment of this process.
func Process(version string) Env {
	return Env{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Now: time.Now,
		Terminal: isTerminal(os.Stdout), Attended: isTerminal(os.Stdin) || isTerminal(os.Stderr), Version: version}
}

// exitError ends the program with a code and without another word.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit with code %d", e.code) }

// invocation is one run of the program.
type invocation struct {
	env  Env
	data string // --data
	json bool   // --json
	key  string // --key-file
}

// Main runs the command line and returns the exit code of the process.
func Main(ctx context.Context, args []string, env Env) int {
	a := &invocation{env: env}
	root := a.root()
	root.SetArgs(args)
	err := readable(args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	return a.report(err)
}

// readable refuses arguments that JSON would carry as replacement characters
// without a word.
func readable(args []string) error {
	for i, arg := range args {
		if !utf8.ValidString(arg) {
			return errs.New(errs.Invalid, "argument %d is not valid UTF-8", i+1)
		}
	}
	return nil
}

// report prints an error and returns its exit code.
func (a *invocation) report(err error) int {
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	if errors.Is(err, context.Canceled) {
		return 130
	}
	if errors.Is(err, syscall.EPIPE) {
		return 0 // the reader of our output has seen enough
	}
	text, hint := err.Error(), hintOf(err)
	if hint != "" {
		text = strings.TrimSpace(strings.Replace(text, " ("+hint+")", "", 1))
	}
	fmt.Fprintln(a.env.Err, "error: "+clean(text))
	if hint != "" {
		fmt.Fprintln(a.env.Err, "hint: "+clean(hint))
	}
	return errs.ExitCode(errs.KindOf(err))
}

// hintOf returns the first advice in a tree of errors.
func hintOf(err error) string {
	if e, ok := err.(*errs.Error); ok && e.Hint != "" {
		return e.Hint
	}
	switch x := err.(type) {
	case interface{ Unwrap() error }:
		if inner := x.Unwrap(); inner != nil {
			return hintOf(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range x.Unwrap() {
			if h := hintOf(inner); h != "" {
				return h
			}
		}
	}
	return ""
}

func (a *invocation) root() *cobra.Command {
	root := a.group("gastown", "Host towns of coding agents",
		`Gastown hosts towns of coding agents: give a town work, and it wakes, does the
work in its one sandbox, checks and merges it, and goes back to sleep.

The server is found through --data DIR (its data directory, on the same machine),
else GASTOWN_URL and GASTOWN_TOKEN, else GASTOWN_DATA, else the default directory.`)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentFlags().StringVar(&a.data, "data", "", "data directory of the server on this machine")
	root.SetIn(a.env.In)
	root.SetOut(a.env.Out)
	root.SetErr(a.env.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return errs.New(errs.Invalid, "%s", err).WithHint("see: %s --help", cmd.CommandPath())
	})
	root.AddCommand(
		a.serveCmd(), a.backupCmd(), a.restoreCmd(), a.vaultCmd(), a.demoCmd(), a.versionCmd(), a.runnerCmd(), a.sandboxInitCmd(), a.agentCmd(),
		a.agentsCmd(), a.providerCmd(),
		a.townCmd(), a.pauseCmd("sleep", true), a.wakeCmd(), a.usageCmd(), a.ledgerCmd(), a.sandboxCmd(),
		a.rigCmd(),
		a.slingCmd(), a.beadCmd(), a.readyCmd(), a.whyCmd(), a.runsCmd(), a.logsCmd(), a.diffCmd(), a.nudgeCmd(), a.retryCmd(), a.escalationsCmd(), a.doctorCmd(),
	)
	return root
}

// group is a command that only has others below it.
func (a *invocation) group(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			e := errs.New(errs.Invalid, "unknown command %q for %q", short40(args[0]), cmd.CommandPath())
			cmd.SuggestionsMinimumDistance = 2
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return e.WithHint("did you mean %s?", strings.Join(near, " or "))
			}
			return e.WithHint("see: %s --help", cmd.CommandPath())
		},
	}
}

// command is a command with exactly the named arguments; one in brackets may be
// left out. Its context ends with SIGINT or SIGTERM.
func (a *invocation) command(use, short string, run func(ctx context.Context, args []string) error) *cobra.Command {
	words := strings.Fields(use)
	return &cobra.Command{
		Use: use, Short: short,
		DisableFlagsInUseLine: true,
		Args:                  arguments(words[1:]),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			err := run(ctx, args)
			if err != nil && ctx.Err() != nil && cmd.Context().Err() == nil {
				return ctx.Err()
			}
			return err
		},
	}
}

// arguments checks the number of arguments and says which one is missing.
func arguments(names []string) cobra.PositionalArgs {
	least := 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			least++
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return errs.New(errs.Invalid, "%s is missing", names[len(args)]).WithHint("usage: %s", cmd.UseLine())
		case len(args) > len(names):
			return errs.New(errs.Invalid, "unexpected argument %q", short40(args[len(names)])).WithHint("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// withJSON adds --json.
func (a *invocation) withJSON(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON, as the API answers it")
	return cmd
}

func (a *invocation) versionCmd() *cobra.Command {
	return a.withJSON(a.command("version", "Print the version", func(context.Context, []string) error {
		if a.json {
			return a.printJSON(map[string]string{"version": a.version()})
		}
		_, err := fmt.Fprintln(a.env.Out, "gastown "+a.version())
		return err
	}))
}

// version returns the version given at link time, else what the build knows.
func (a *invocation) version() string {
	if a.env.Version != "" {
		return a.env.Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v, revision, dirty := info.Main.Version, "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if v == "" || v == "(devel)" {
		v = "devel"
		if revision != "" {
			v += "-" + revision + dirty
		}
	}
	return v
}

// short40 shortens what somebody typed, for messages.
func short40(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}
