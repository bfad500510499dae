package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/agent"
	"gastown/internal/errs"
)

// versionFor is how long a program may take to say its version.
const versionFor = 30 * time.Second

func (a *invocation) agentsCmd() *cobra.Command {
	g := a.group("agents", "Kinds of coding agents (presets): list, check", "")
	g.AddCommand(a.agentsListCmd(), a.agentsCheckCmd())
	return g
}

// presetItem is a preset as "agents list --json" shows it.
type presetItem struct {
	Name           string   `json:"name"`
	Summary        string   `json:"summary"`
	Command        string   `json:"command"`
	Args           []string `json:"args"`
	NeedsProvider  bool     `json:"needs_provider"`
	Wire           string   `json:"wire,omitempty"` // of its model
	Found          bool     `json:"found"`          // the program is installed here
	Path           string   `json:"path,omitempty"` // where
	Version        string   `json:"version,omitempty"`
	VersionError   string   `json:"version_error,omitempty"` // why the version is not known
	InstallHint    string   `json:"install_hint,omitempty"`  // of one that is not installed
	Resume         string   `json:"resume"`
	Usage          string   `json:"usage"`
	SharedSessions bool     `json:"shared_sessions"` // runs share a process
	Note           string   `json:"note,omitempty"`  // of one that shares
}

// presets looks at every kind of agent, or at one. Their programs are asked for
// their versions, all at once.
func (a *invocation) presets(ctx context.Context, dir, only string) ([]presetItem, agent.Presets, error) {
	all, err := agent.LoadPresets(dir)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, errs.Wrap(errs.Internal, err, "finding this program")
	}
	var out []presetItem
	for _, name := range all.Names() {
		if only != "" && name != only {
			continue
		}
		p := all[name]
		item := presetItem{Name: p.Name, Summary: p.Summary, Command: p.Command, Args: p.Args, NeedsProvider: p.Model.NeedsProvider,
			Resume: p.Resume, Usage: p.Usage, SharedSessions: p.Shares()}
		if p.Model.NeedsProvider {
			item.Wire = p.Model.Wire
		}
		if item.SharedSessions {
			item.Note = agent.ShareNote
		}
		path, err := p.Find(os.Getenv("PATH"), self)
		if item.Found = err == nil; item.Found {
			item.Path = path
		} else {
			item.InstallHint = p.InstallHint
		}
		out = append(out, item)
	}
	var asked sync.WaitGroup
	for i := range out {
		if out[i].Found {
			asked.Go(func() { a.askVersion(ctx, all[out[i].Name], &out[i]) })
		}
	}
	asked.Wait()
	return out, all, nil
}

// askVersion asks a program for its version.
func (a *invocation) askVersion(ctx context.Context, p agent.Preset, item *presetItem) {
	switch {
	case p.Command == agent.SelfCommand:
		item.Version = a.version()
		return
	case len(p.VersionArgs) == 0:
		item.VersionError = "the preset has no version_args"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, versionFor)
	defer cancel()
	cmd := exec.CommandContext(ctx, item.Path, p.VersionArgs...)
	cmd.WaitDelay = time.Second // what it left running may hold the pipe
	b, err := cmd.Output()
	text := strings.TrimSpace(clean(string(b)))
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		text = strings.TrimSpace(text[i+1:])
	}
	switch {
	case ctx.Err() != nil:
		item.VersionError = fmt.Sprintf("%s %s did not end within %s", p.Command, strings.Join(p.VersionArgs, " "), versionFor)
	case err != nil:
		item.VersionError = fmt.Sprintf("%s %s: %v", p.Command, strings.Join(p.VersionArgs, " "), err)
	default:
		item.Version = clip(text, 60)
	}
}

func (p presetItem) version() string {
	if p.VersionError != "" {
		return "unknown: " + clip(p.VersionError, 80)
	}
	return p.Version
}

func (a *invocation) agentsListCmd() *cobra.Command {
	var dir string
	cmd := a.withJSON(a.command("list", "List the kinds of agents, and which are installed on this machine", func(ctx context.Context, _ []string) error {
		items, _, err := a.presets(ctx, dir, "")
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(items)
		}
		var rows [][]string
		shares := false
		for _, p := range items {
			where, process := p.Path, "one per run"
			if !p.Found {
				where = "not installed: " + p.InstallHint
			}
			if p.SharedSessions {
				process, shares = "shared by runs", true
			}
			rows = append(rows, []string{p.Name, p.Summary, p.version(), p.Resume, process, where})
		}
		if err := a.table("no presets", []string{"PRESET", "WHAT", "VERSION", "RESUMES BY", "PROCESS", "WHERE"}, rows); err != nil || !shares {
			return err
		}
		return a.say("\n%s", agent.ShareNote)
	}))
	cmd.Flags().StringVar(&dir, "presets", "", "directory with more presets (*.toml)")
	return cmd
}

func (a *invocation) agentsCheckCmd() *cobra.Command {
	var dir string
	var f liveFlags
	cmd := a.withJSON(a.command("check [PRESET]", "Start an agent and see whether it speaks the protocol; --live has it do a tiny task", func(ctx context.Context, args []string) error {
		only := ""
		if len(args) == 1 {
			only = args[0]
		}
		if f.live {
			if only == "" {
				return errs.New(errs.Invalid, "--live checks one kind of agent").WithHint("for example: gastown agents check opencode --live")
			}
			return a.checkLive(ctx, only, f)
		}
		if f.provider != "" || f.model != "" {
			return errs.New(errs.Invalid, "--provider and --model are for --live: without it no model is asked")
		}
		items, all, err := a.presets(ctx, dir, only)
		if err != nil {
			return err
		}
		if only != "" {
			if _, err := all.Get(only); err != nil {
				return err
			}
		}
		return a.checkAgents(ctx, items, all, only != "")
	}))
	fl := cmd.Flags()
	fl.StringVar(&dir, "presets", "", "directory with more presets (*.toml)")
	fl.BoolVar(&f.live, "live", false, "let it do a tiny task in a town made for that, on the server, with a real model")
	fl.StringVar(&f.provider, "provider", "", "with --live: the model provider (default: the only one that fits)")
	fl.StringVar(&f.model, "model", "", "with --live: the model (default: the provider's first)")
	fl.DurationVar(&f.limit, "limit", 5*time.Minute, "with --live: when to give up")
	cmd.MarkFlagsMutuallyExclusive("live", "presets")
	return cmd
}

// checkResult is the outcome of starting one agent.
type checkResult struct {
	Name        string `json:"name"`
	OK          bool   `json:"ok"`
	MS          int64  `json:"ms"`
	Installed   bool   `json:"installed"`
	Path        string `json:"path,omitempty"`
	Version     string `json:"version,omitempty"`
	Error       string `json:"error,omitempty"`
	InstallHint string `json:"install_hint,omitempty"`
}

// checkAgents starts agents. One that is not installed is a failure only when
// it was asked for.
func (a *invocation) checkAgents(ctx context.Context, items []presetItem, all agent.Presets, named bool) error {
	results := []checkResult{}
	var failed error
	for _, item := range items {
		r := checkResult{Name: item.Name, Installed: item.Found, Path: item.Path, Version: item.Version, InstallHint: item.InstallHint}
		switch {
		case item.Found:
			r.run(ctx, all[item.Name])
		default:
			r.Error = "not installed"
		}
		if !r.OK && (item.Found || named) {
			failed = errs.New(errs.Unavailable, "agent %s does not work here", r.Name)
			if r.InstallHint != "" {
				failed = errs.New(errs.Unavailable, "agent %s is not installed here", r.Name).WithHint("%s", r.InstallHint)
			}
		}
		results = append(results, r)
	}
	if err := a.showChecks(results); err != nil {
		return err
	}
	return failed
}

func (a *invocation) showChecks(results []checkResult) error {
	if a.json {
		return a.printJSON(results)
	}
	var rows [][]string
	for _, r := range results {
		took, verdict := fmt.Sprintf("%d ms", r.MS), "ok"
		switch {
		case !r.Installed:
			took, verdict = "", "not installed: "+r.InstallHint
		case !r.OK:
			verdict = clip(r.Error, 200)
		}
		rows = append(rows, []string{r.Name, r.Version, took, verdict})
	}
	return a.table("no presets", []string{"PRESET", "VERSION", "TOOK", "RESULT"}, rows)
}

// run starts an agent in an empty directory, opens a session, and ends it. No
// model is asked: one that is never called stands in for the provider.
func (r *checkResult) run(ctx context.Context, p agent.Preset) {
	begin := time.Now()
	err := openSession(ctx, p)
	r.MS = time.Since(begin).Milliseconds()
	if r.OK = err == nil; !r.OK {
		r.Error = err.Error()
	}
}

func openSession(ctx context.Context, p agent.Preset) error {
	dir, err := os.MkdirTemp("", "gastown-check-")
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "making a temporary directory")
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return errs.Wrap(errs.Internal, err, "finding this program")
	}
	spec := agent.Spec{Preset: p, Dir: dir, Env: os.Environ(), SelfExe: self}
	if p.Model.NeedsProvider {
		spec.Model = &agent.Model{Provider: "check", BaseURL: "http://127.0.0.1:9/v1", Key: "none", Name: "none"}
	}
	s, err := agent.Launch(ctx, spec)
	if err != nil {
		return err
	}
	return s.Close(2 * time.Second)
}
