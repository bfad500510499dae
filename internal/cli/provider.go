package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/agent"
	"gastown/internal/api"
	"gastown/internal/errs"
)

func (a *invocation) providerCmd() *cobra.Command {
	g := a.group("provider", "Model providers: add, list, remove", "")
	g.AddCommand(a.providerAddCmd(), a.providerListCmd(), a.providerRemoveCmd())
	return g
}

func (a *invocation) providerAddCmd() *cobra.Command {
	var baseURL, keyFile string
	var models, prices []string
	var allowHTTP bool
	cmd := a.withJSON(a.command("add KIND NAME", "Add a model provider, or replace one; the kind is openai, anthropic, gemini or openai-compatible", func(ctx context.Context, args []string) error {
		p := api.CreateProvider{Kind: args[0], Name: args[1], BaseURL: baseURL, Models: models, AllowHTTP: allowHTTP}
		var err error
		if p.Prices, err = pricesIn(prices); err != nil {
			return err
		}
		if keyFile != "" {
			if p.Key, err = a.secretFile("key", keyFile); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		made, err := c.AddProvider(ctx, p)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(made)
		}
		return a.say("%s", made.Name)
	}))
	fl := cmd.Flags()
	fl.StringVar(&baseURL, "base-url", "", "where its API is; needed for openai-compatible, up to and with the version")
	fl.StringVar(&keyFile, "key-file", "", "file with its key; - for stdin")
	fl.StringArrayVar(&models, "model", nil, "name of a model; the first is the default; may be repeated")
	fl.StringArrayVar(&prices, "price", nil, "dollars for a million tokens, as MODEL=INPUT,OUTPUT[,CACHE READ[,CACHE WRITE]]; may be repeated")
	fl.BoolVar(&allowHTTP, "allow-http", false, "permit plain http to another machine: the key travels unprotected")
	return cmd
}

// pricesIn reads MODEL=INPUT,OUTPUT[,CACHE READ[,CACHE WRITE]].
func pricesIn(list []string) (map[string]api.Price, error) {
	var out map[string]api.Price
	for _, text := range list {
		model, rest, ok := strings.Cut(text, "=")
		parts := strings.Split(rest, ",")
		if !ok || model == "" || len(parts) < 2 || len(parts) > 4 {
			return nil, errs.New(errs.Invalid, "the price %q is not MODEL=INPUT,OUTPUT[,CACHE READ[,CACHE WRITE]]", text).
				WithHint("for example: --price some-model=1.25,10,0.125")
		}
		parts = append(parts, "", "")
		if out == nil {
			out = map[string]api.Price{}
		}
		out[model] = api.Price{Input: parts[0], Output: parts[1], CacheRead: parts[2], CacheWrite: parts[3]}
	}
	return out, nil
}

func (a *invocation) providerListCmd() *cobra.Command {
	return a.withJSON(a.command("list", "List the model providers", func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		all, err := c.Providers(ctx)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(all)
		}
		var rows [][]string
		for _, p := range all {
			rows = append(rows, []string{p.Name, p.Kind, p.BaseURL, strings.Join(p.Models, " ")})
		}
		return a.table("no providers yet: gastown provider add openai|anthropic|gemini|openai-compatible NAME --key-file FILE",
			[]string{"PROVIDER", "KIND", "BASE URL", "MODELS"}, rows)
	}))
}

func (a *invocation) providerRemoveCmd() *cobra.Command {
	return a.command("remove NAME", "Remove a model provider and its key", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return c.RemoveProvider(ctx, args[0])
	})
}

func (a *invocation) agentsCmd() *cobra.Command {
	g := a.group("agents", "Kinds of coding agents (presets): list, check", "")
	g.AddCommand(a.agentsListCmd(), a.agentsCheckCmd())
	return g
}

// presetItem is a preset as "agents list --json" shows it.
type presetItem struct {
	Name          string   `json:"name"`
	Summary       string   `json:"summary"`
	Command       string   `json:"command"`
	Args          []string `json:"args"`
	NeedsProvider bool     `json:"needs_provider"`
	Found         bool     `json:"found"`          // the program is installed here
	Path          string   `json:"path,omitempty"` // where
	InstallHint   string   `json:"install_hint,omitempty"`
}

func (a *invocation) presets(dir string) ([]presetItem, agent.Presets, error) {
	all, err := agent.LoadPresets(dir)
	if err != nil {
		return nil, nil, err
	}
	var out []presetItem
	for _, name := range all.Names() {
		p := all[name]
		item := presetItem{Name: p.Name, Summary: p.Summary, Command: p.Command, Args: p.Args, NeedsProvider: p.Model.NeedsProvider, InstallHint: p.InstallHint}
		if p.Command == agent.SelfCommand {
			item.Path, err = os.Executable()
		} else {
			item.Path, err = exec.LookPath(p.Command)
		}
		if item.Found = err == nil; item.Found {
			item.InstallHint = ""
		}
		out = append(out, item)
	}
	return out, all, nil
}

func (a *invocation) agentsListCmd() *cobra.Command {
	var dir string
	cmd := a.withJSON(a.command("list", "List the kinds of agents and whether they are installed on this machine", func(context.Context, []string) error {
		items, _, err := a.presets(dir)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(items)
		}
		var rows [][]string
		for _, p := range items {
			where := p.Path
			if !p.Found {
				where = "not installed: " + p.InstallHint
			}
			rows = append(rows, []string{p.Name, p.Summary, where})
		}
		return a.table("no presets", []string{"PRESET", "WHAT", "WHERE"}, rows)
	}))
	cmd.Flags().StringVar(&dir, "presets", "", "directory with more presets (*.toml)")
	return cmd
}

func (a *invocation) agentsCheckCmd() *cobra.Command {
	var dir string
	cmd := a.withJSON(a.command("check [PRESET]", "Start an agent on this machine and see whether it speaks the protocol", func(ctx context.Context, args []string) error {
		items, all, err := a.presets(dir)
		if err != nil {
			return err
		}
		if len(args) == 1 {
			if _, err := all.Get(args[0]); err != nil {
				return err
			}
		}
		results := []checkResult{}
		var failed error
		for _, item := range items {
			if len(args) == 1 && item.Name != args[0] || len(args) == 0 && !item.Found {
				continue
			}
			r := checkAgent(ctx, all[item.Name])
			if !r.OK {
				failed = errs.New(errs.Unavailable, "agent %s does not work here", r.Name).WithHint("%s", item.InstallHint)
			}
			results = append(results, r)
		}
		if err := a.showChecks(results); err != nil {
			return err
		}
		return failed
	}))
	cmd.Flags().StringVar(&dir, "presets", "", "directory with more presets (*.toml)")
	return cmd
}

// checkResult is the outcome of starting one agent.
type checkResult struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	MS    int64  `json:"ms"`
	Error string `json:"error,omitempty"`
}

func (a *invocation) showChecks(results []checkResult) error {
	if a.json {
		return a.printJSON(results)
	}
	var rows [][]string
	for _, r := range results {
		verdict := "ok"
		if !r.OK {
			verdict = clip(r.Error, 200)
		}
		rows = append(rows, []string{r.Name, fmt.Sprintf("%d ms", r.MS), verdict})
	}
	return a.table("no agent is installed here", []string{"PRESET", "TOOK", "RESULT"}, rows)
}

// checkAgent starts an agent in an empty directory, opens a session, and ends it.
// No model is asked: one that is never called stands in for the provider.
func checkAgent(ctx context.Context, p agent.Preset) (r checkResult) {
	r.Name = p.Name
	begin := time.Now()
	fail := func(err error) checkResult {
		r.Error, r.MS = err.Error(), time.Since(begin).Milliseconds()
		return r
	}
	dir, err := os.MkdirTemp("", "gastown-check-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	spec := agent.Spec{Preset: p, Dir: dir, Env: os.Environ(), SelfExe: self}
	if p.Model.NeedsProvider {
		spec.Model = &agent.Model{Provider: "check", BaseURL: "http://127.0.0.1:9/v1", Key: "none", Name: "none"}
	}
	s, err := agent.Launch(ctx, spec)
	if err != nil {
		return fail(err)
	}
	if err := s.Close(2 * time.Second); err != nil {
		return fail(err)
	}
	r.OK, r.MS = true, time.Since(begin).Milliseconds()
	return r
}
