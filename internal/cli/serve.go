package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"gastown/internal/app"
	"gastown/internal/errs"
	"gastown/internal/runner"
	"gastown/internal/runner/apart"
	"gastown/internal/runner/wire"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/inside"
	"gastown/internal/town"
)

// serveFlags are the flags of serve as given.
type serveFlags struct {
	listen, config, notify, presets string
	cert, key, sandbox              string
	logLevel, logFormat             string
	maxAwake                        int
	containers                      app.Containers
	memoryMB                        int64
	insecure, notifyPrivate         bool
	set, show                       []string
	isolation, network              string
}

func (a *invocation) serveCmd() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the server",
		Long: `Run the server over one data directory, until SIGTERM or SIGINT.

SIGTERM leaves sandboxes running: the next server finds them. SIGINT at a
terminal lets them save their work and puts them to sleep first; a second SIGINT
leaves them at once.`,
		Args: arguments(nil),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:7070", "address to listen on; port 0 takes a free one")
	fl.StringVar(&f.config, "config", "", "TOML file with the server's defaults for settings")
	fl.StringArrayVar(&f.set, "set", nil, "a server's default for a setting, as key=value; may be repeated")
	fl.IntVar(&f.maxAwake, "max-awake", 0, "sandboxes that may be awake at once (the setting max_awake)")
	fl.StringVar(&f.sandbox, "sandbox", "process", "where agents run: process or docker")
	fl.StringVar(&f.containers.Image, "image", "gastown:local", "docker: image of sandboxes, by name, digest or id; 'make image' builds one")
	fl.StringVar(&f.isolation, "isolation", a.isolation(), "process: auto takes bubblewrap (bwrap) where it works, bwrap insists on it, none is without")
	fl.StringVar(&f.network, "sandbox-network", "none", "network of sandboxes: none, and agents reach the server and nothing else; process: or host; docker: or one of the engine's")
	fl.StringArrayVar(&f.show, "sandbox-show", nil, "process with bubblewrap: file or directory of this machine that sandboxes see, read-only; may be repeated")
	fl.Float64Var(&f.containers.CPUs, "sandbox-cpus", 0, "processors that a sandbox may use; 0 is no limit; process: where a cgroup is delegated to the server")
	fl.Int64Var(&f.memoryMB, "sandbox-memory", 4096, "megabytes of memory that a sandbox may use; 0 is no limit")
	fl.Int64Var(&f.containers.Pids, "sandbox-pids", 2048, "processes and threads that a sandbox may have; 0 is no limit")
	fl.StringVar(&f.presets, "presets", "", "directory with more agent presets (*.toml)")
	fl.StringVar(&f.notify, "notify-command", "", "program that gets what a person should know, as JSON on its stdin")
	fl.BoolVar(&f.notifyPrivate, "notify-private", false, "webhooks may go to private addresses")
	a.keyFileFlag(cmd)
	fl.StringVar(&f.cert, "tls-cert", "", "file with the certificate")
	fl.StringVar(&f.key, "tls-key", "", "file with its key")
	fl.BoolVar(&f.insecure, "insecure-listen", false, "listen beyond this machine without TLS")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&f.logFormat, "log-format", "text", "text or json")
	return cmd
}

// isolation is the default of --isolation.
func (a *invocation) isolation() string {
	if v := a.env.Getenv("GASTOWN_ISOLATION"); v != "" {
		return v
	}
	return "auto"
}

func (a *invocation) serve(ctx context.Context, f serveFlags) error {
	log, err := newLogger(a.env.Err, f.logLevel, f.logFormat)
	if err != nil {
		return err
	}
	settings, err := a.serverSettings(f)
	if err != nil {
		return err
	}
	f.containers.Memory = f.memoryMB << 20
	srv, err := app.Open(ctx, app.Config{
		Data: a.dataDir(), KeyFile: a.keyFile(), Listen: f.listen, Settings: settings, Sandbox: f.sandbox, Containers: f.containers, PresetDir: f.presets,
		Isolation: f.isolation, Network: f.network, Show: f.show,
		NotifyCommand: f.notify, NotifyPrivate: f.notifyPrivate,
		TLSCert: f.cert, TLSKey: f.key, InsecureListen: f.insecure, Version: a.version(), Log: log,
	})
	if err != nil {
		return err
	}
	return errors.Join(a.serveUntilSignal(ctx, srv), srv.Close())
}

// serveUntilSignal says where the server is, and ends it as the signals say.
func (a *invocation) serveUntilSignal(ctx context.Context, srv *app.App) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx) }()

	path, created := srv.TokenPath()
	verb := "is in"
	if created {
		verb = "was written to"
	}
	if err := a.say("gastown %s serves on %s\nthe admin token %s %s", a.version(), srv.URL(), verb, path); err != nil {
		return err
	}
	for line := range strings.Lines(srv.Isolation()) {
		fmt.Fprintln(a.env.Err, "warning: "+strings.TrimSuffix(line, "\n"))
	}
	select {
	case err := <-done:
		return err
	case sig := <-signals:
		if sig == os.Interrupt && a.env.Attended {
			a.drain(ctx, srv, signals)
		}
	}
	cancel()
	return <-done
}

// drain puts sandboxes to sleep until there is none or another signal comes.
func (a *invocation) drain(ctx context.Context, srv *app.App, signals <-chan os.Signal) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan error, 1)
	go func() {
		over <- srv.Drain(ctx, func(left int) {
			if left > 0 {
				fmt.Fprintf(a.env.Err, "putting %d sandboxes to sleep; press Ctrl-C again to leave them running\n", left)
			}
		})
	}()
	select {
	case err := <-over:
		if err != nil {
			fmt.Fprintln(a.env.Err, "warning: "+err.Error())
		}
	case <-signals:
		fmt.Fprintln(a.env.Err, "leaving the sandboxes running; the next server finds them")
		cancel()
		<-over
	}
}

func newLogger(out io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, errs.New(errs.Invalid, "--log-level %q is none of debug, info, warn, error", short40(level))
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, o)), nil
	}
	return nil, errs.New(errs.Invalid, "--log-format %q is neither text nor json", short40(format))
}

// serverSettings joins the file and the flags; flags win.
func (a *invocation) serverSettings(f serveFlags) (town.Settings, error) {
	out := town.Settings{}
	if f.config != "" {
		text, err := a.textFile("configuration", f.config, 1<<20)
		if err != nil {
			return nil, err
		}
		if out, err = parseConfig(f.config, []byte(text)); err != nil {
			return nil, err
		}
	}
	set, err := assignments("--set", f.set)
	if err != nil {
		return nil, err
	}
	for k, v := range set {
		out[k] = v
	}
	if f.maxAwake < 0 {
		return nil, errs.New(errs.Invalid, "--max-awake %d is negative", f.maxAwake)
	}
	if f.maxAwake > 0 {
		out["max_awake"] = strconv.Itoa(f.maxAwake)
	}
	for k, v := range out {
		if err := town.CheckSetting(town.LevelServer, k, v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// parseConfig reads settings from TOML. A key with a dot may be written as a
// table: [sandbox] grace = "2m" is sandbox.grace.
func parseConfig(file string, data []byte) (town.Settings, error) {
	var doc map[string]any
	if err := toml.NewDecoder(bytes.NewReader(data)).Decode(&doc); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			return nil, errs.New(errs.Invalid, "%s, line %d, column %d: %s", file, row, col, strings.TrimPrefix(de.Error(), "toml: "))
		}
		return nil, errs.New(errs.Invalid, "%s: %s", file, err)
	}
	out := town.Settings{}
	if err := flatten(out, "", doc); err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "%s", file)
	}
	return out, nil
}

func flatten(out town.Settings, prefix string, doc map[string]any) error {
	for k, v := range doc {
		key := prefix + k
		if sub, ok := v.(map[string]any); ok {
			if err := flatten(out, key+".", sub); err != nil {
				return err
			}
			continue
		}
		if _, err := town.Lookup(key); err != nil {
			return err
		}
		text, ok := scalar(v)
		if !ok {
			return errs.New(errs.Invalid, "setting %s is not a text, number or true/false", key)
		}
		if err := town.CheckSetting(town.LevelServer, key, text); err != nil {
			return err
		}
		out[key] = text
	}
	return nil
}

// scalar writes a TOML value as a setting; a list of texts is joined by commas.
func scalar(v any) (string, bool) {
	switch x := v.(type) {
	case string:
		return x, true
	case int64:
		return strconv.FormatInt(x, 10), true
	case bool:
		return strconv.FormatBool(x), true
	case []any:
		var parts []string
		for _, e := range x {
			s, ok := e.(string)
			if !ok {
				return "", false
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), true
	}
	return "", false
}

// sandboxInitCmd is the first process of a container; it is not meant for people.
func (a *invocation) sandboxInitCmd() *cobra.Command {
	return &cobra.Command{
		Use: "sandbox-init", Short: "First process of a sandbox that is a container", Hidden: true, DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) { os.Exit(inside.Main(args, os.Stdout)) },
	}
}

// runnerCmd is what runs inside a sandbox; it is not meant for people.
func (a *invocation) runnerCmd() *cobra.Command {
	var separation string
	cmd := a.command("runner", "Run agents inside a sandbox; started by the server", func(ctx context.Context, _ []string) error {
		kind, err := apart.ParseKind(separation)
		if err != nil {
			return err
		}
		log, err := newLogger(runner.CapLog(a.env.Err), "info", "text")
		if err != nil {
			return err
		}
		if a.env.Getenv(wire.EnvServer) == "" || a.env.Getenv(wire.EnvDisk) == "" {
			return errs.New(errs.Invalid, "%s and %s are not set", wire.EnvServer, wire.EnvDisk).
				WithHint("the server starts the runner; you don't have to")
		}
		token, err := runner.ReadToken(sandbox.TokenFD)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return errs.Wrap(errs.Internal, err, "finding this program")
		}
		return runner.Main(ctx, runner.Config{Server: a.env.Getenv(wire.EnvServer), Disk: a.env.Getenv(wire.EnvDisk), Token: token,
			SelfExe: self, Version: a.version(), PresetDir: a.env.Getenv(app.EnvPresets), Apart: kind, Log: log})
	})
	cmd.Flags().StringVar(&separation, "apart", string(apart.None), "what keeps agents apart from each other and the runner: "+strings.Join(apart.Kinds(), ", "))
	cmd.Hidden = true
	return cmd
}
