package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

func (a *invocation) rigCmd() *cobra.Command {
	g := a.group("rig", "Rigs (git repositories): add, list, show, remove, settings", "")
	g.AddCommand(a.rigAddCmd(), a.rigListCmd(), a.rigShowCmd(), a.rigCloneCmd(), a.rigRemoveCmd(), a.rigSetCmd(), a.rigUnsetCmd(), a.rigSettingsCmd())
	return g
}

// rigFlags are the flags of "rig add" as given.
type rigFlags struct {
	town, prefix, target, tokenFile string
	agent, model, provider, mode    string
	author                          string
	gates, set                      []string
	gateTimeout                     time.Duration
	initEmpty, updateWorktree       bool
	credential                      credentialFlags
}

func (a *invocation) rigAddCmd() *cobra.Command {
	var f rigFlags
	cmd := a.withJSON(a.command("add NAME URL", "Add a git repository to a town", func(ctx context.Context, args []string) error {
		body, err := f.request(args[0], args[1])
		if err != nil {
			return err
		}
		if f.tokenFile != "" {
			if body.GitToken, err = a.secretFile("git token", f.tokenFile); err != nil {
				return err
			}
		}
		if body.Credential, err = a.credential(f.credential); err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		in, err := oneTown(ctx, c, f.town)
		if err != nil {
			return err
		}
		r, err := c.AddRig(ctx, in, body)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(r)
		}
		return a.say("%s", r.Name)
	}))
	fl := cmd.Flags()
	fl.StringVar(&f.town, "town", "", "the town (default: the only one)")
	fl.StringVar(&f.prefix, "prefix", "", "prefix of the ids of its beads (default: made from the name)")
	fl.StringVar(&f.target, "target", "", "branch that work lands on (default: main)")
	fl.StringArrayVar(&f.gates, "gate", nil, "a command that work must pass, as name=command; may be repeated")
	fl.DurationVar(&f.gateTimeout, "gate-timeout", 0, "time limit of each gate (default: the setting gate.timeout)")
	fl.StringVar(&f.tokenFile, "git-token-file", "", "file with a token, or user:password, for the repository; - for stdin")
	f.credential.flags(cmd)
	fl.StringVar(&f.agent, "agent", "", "preset of the agent that does the work")
	fl.StringVar(&f.provider, "provider", "", "model provider, for agents that need one")
	fl.StringVar(&f.model, "model", "", "model, for agents that need one")
	fl.StringVar(&f.mode, "mode", "", "direct: push to the target; branch: push a branch and wait")
	fl.StringVar(&f.author, "author", "", "author of commits, as 'Name <address>'")
	fl.StringArrayVar(&f.set, "set", nil, "a setting, as key=value; may be repeated")
	fl.BoolVar(&f.initEmpty, "init-empty", false, "give an empty repository a first commit")
	fl.BoolVar(&f.updateWorktree, "update-worktree", false, "allow a target that is checked out in a clean working copy on the server's machine")
	return cmd
}

// request builds the body without the credential.
func (f *rigFlags) request(name, url string) (api.AddRig, error) {
	settings, err := assignments("--set", f.set)
	if err != nil {
		return api.AddRig{}, err
	}
	for _, s := range []struct{ flag, key, value string }{
		{"--agent", "agent", f.agent}, {"--provider", "provider", f.provider}, {"--model", "model", f.model},
		{"--mode", "merge.mode", f.mode}, {"--author", "commit.author", f.author},
	} {
		if settings, err = put(settings, s.flag, s.key, s.value); err != nil {
			return api.AddRig{}, err
		}
	}
	gates, err := parseGates(f.gates, f.gateTimeout)
	if err != nil {
		return api.AddRig{}, err
	}
	return api.AddRig{Name: name, URL: url, Prefix: f.prefix, Target: f.target, Gates: gates, Settings: settings,
		InitEmpty: f.initEmpty, UpdateWorktree: f.updateWorktree}, nil
}

// put adds the setting that a flag stands for.
func put(settings map[string]string, flag, key, value string) (map[string]string, error) {
	if value == "" {
		return settings, nil
	}
	if settings == nil {
		settings = map[string]string{}
	}
	if _, dup := settings[key]; dup {
		return nil, errs.New(errs.Invalid, "%s and --set %s say the same thing twice", flag, key)
	}
	settings[key] = value
	return settings, nil
}

// parseGates reads name=command flags; all get the same time limit, 0 for the
// setting gate.timeout.
func parseGates(flags []string, limit time.Duration) ([]api.Gate, error) {
	if limit < 0 {
		return nil, errs.New(errs.Invalid, "--gate-timeout %s is negative", limit)
	}
	if limit > 0 && len(flags) == 0 {
		return nil, errs.New(errs.Invalid, "--gate-timeout without --gate")
	}
	var out []api.Gate
	for _, f := range flags {
		name, command, ok := strings.Cut(f, "=")
		name, command = strings.TrimSpace(name), strings.TrimSpace(command)
		if !ok || name == "" || command == "" || strings.ContainsAny(name, " \t") {
			return nil, errs.New(errs.Invalid, "--gate %q is not name=command", short40(f)).WithHint("for example: --gate 'test=go test ./...'")
		}
		if slices.ContainsFunc(out, func(g api.Gate) bool { return g.Name == name }) {
			return nil, errs.New(errs.Invalid, "two gates are named %s", name)
		}
		out = append(out, api.Gate{Name: name, Command: command, TimeoutMS: limit.Milliseconds()})
	}
	return out, nil
}

func (a *invocation) rigListCmd() *cobra.Command {
	var in string
	cmd := a.withJSON(a.command("list", "List the rigs of a town, or of all", func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		rigs, err := rigsOf(ctx, c, in)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(rigs)
		}
		var rows [][]string
		for _, r := range rigs {
			rows = append(rows, []string{r.Name, r.Town, r.Prefix, r.Target, commit(r.Tip), fmt.Sprint(len(r.Gates)), r.State, r.URL})
		}
		return a.table("no rigs yet: gastown rig add NAME URL --town TOWN", []string{"RIG", "TOWN", "PREFIX", "TARGET", "TIP", "GATES", "STATE", "URL"}, rows)
	}))
	cmd.Flags().StringVar(&in, "town", "", "only this town")
	return cmd
}

func rigsOf(ctx context.Context, c *client.Client, in string) ([]api.Rig, error) {
	if in != "" {
		return c.Rigs(ctx, in)
	}
	towns, err := c.Towns(ctx)
	if err != nil {
		return nil, err
	}
	out := []api.Rig{}
	for _, t := range towns {
		rigs, err := c.Rigs(ctx, t.ID)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return nil, err
		}
		out = append(out, rigs...)
	}
	return out, nil
}

// rigAction is a command on one rig that is named by argument and --town.
func (a *invocation) rigAction(use, short string, run func(ctx context.Context, c *client.Client, in, rig string, rest []string) error) *cobra.Command {
	var in string
	cmd := a.command(use, short, func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		in, rig, err := placeOf(ctx, c, in, args[0])
		if err != nil {
			return err
		}
		return run(ctx, c, in, rig, args[1:])
	})
	cmd.Flags().StringVar(&in, "town", "", "the town (needed when several have a rig of this name)")
	return cmd
}

func (a *invocation) rigShowCmd() *cobra.Command {
	return a.withJSON(a.rigAction("show RIG", "Show a rig", func(ctx context.Context, c *client.Client, in, rig string, _ []string) error {
		r, err := c.Rig(ctx, in, rig)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(r)
		}
		var set []string
		for _, k := range slices.Sorted(maps.Keys(r.Settings)) {
			set = append(set, k+"="+r.Settings[k])
		}
		if err := a.fields("rig", r.Name, "town", r.Town, "state", r.State, "url", r.URL, "credential", credentialText(r), "push", a.pushText(r), "agents see", strings.Join(r.Exposed, " "), "prefix", r.Prefix,
			"target", r.Target, "tip", commit(r.Tip), "fetched", a.ago(r.FetchedAt), "hosts", strings.Join(r.AllowHosts, " "), "settings", strings.Join(set, " "), "created", a.ago(r.CreatedAt)); err != nil {
			return err
		}
		for _, g := range r.Gates {
			limit := ""
			if g.TimeoutMS > 0 {
				limit = fmt.Sprintf(" (at most %s)", time.Duration(g.TimeoutMS)*time.Millisecond)
			}
			if err := a.say("gate %s: %s%s", cell(g.Name), cell(g.Command), limit); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (a *invocation) rigRemoveCmd() *cobra.Command {
	var force bool
	cmd := a.rigAction("remove RIG", "Remove a rig from its town", func(ctx context.Context, c *client.Client, in, rig string, _ []string) error {
		if err := c.RemoveRig(ctx, in, rig, force); err != nil {
			return err
		}
		return a.yes("rig %s of town %s is being removed", rig, in)
	})
	cmd.Flags().BoolVar(&force, "force", false, "cancel its beads that are not finished")
	return cmd
}

func (a *invocation) rigSetCmd() *cobra.Command {
	var gates, allow, deny []string
	var limit time.Duration
	var noGates, noCredential, forgetHost bool
	var expose, hide []string
	var cf credentialFlags
	cmd := a.rigAction("set RIG [KEY=VALUE]", "Change settings, gates or the credential of a rig", func(ctx context.Context, c *client.Client, in, rig string, rest []string) error {
		set, err := assignments("the argument", rest)
		if err != nil {
			return err
		}
		e := api.EditRig{Set: set, Allow: allow, Deny: deny, NoCredential: noCredential, ForgetHostKeys: forgetHost}
		if e.Credential, err = a.credential(cf); err != nil {
			return err
		}
		e.Hide = hide
		if e.Expose, err = a.exposed(expose); err != nil {
			return err
		}
		list, err := parseGates(gates, limit)
		if err != nil {
			return err
		}
		switch {
		case noGates && len(list) > 0:
			return errs.New(errs.Invalid, "--gate and --no-gates contradict each other")
		case noGates:
			e.Gates = &[]api.Gate{}
		case len(list) > 0:
			e.Gates = &list
		case len(set)+len(allow)+len(deny) == 0 && e.Credential == nil && !noCredential && !forgetHost && len(expose)+len(hide) == 0:
			return errs.New(errs.Invalid, "there is nothing to change").WithHint("give KEY=VALUE, --gate name=command, --no-gates, --allow-host HOST or --credential-file FILE")
		}
		_, err = c.EditRig(ctx, in, rig, e)
		return err
	})
	cmd.Use, cmd.Args = "set RIG [KEY=VALUE...]", atLeast("RIG")
	cmd.Flags().StringArrayVar(&gates, "gate", nil, "replace all gates by these, as name=command; may be repeated")
	cmd.Flags().DurationVar(&limit, "gate-timeout", 0, "time limit of each gate")
	cmd.Flags().BoolVar(&noGates, "no-gates", false, "take all gates away")
	cf.flags(cmd)
	cmd.Flags().StringArrayVar(&expose, "expose", nil, "let agents and gates see a value: NAME takes it from this command's environment, NAME=@FILE from a file, NAME=- from stdin; may be repeated")
	cmd.Flags().StringArrayVar(&hide, "hide", nil, "name of a value that they see no longer; may be repeated")
	cmd.Flags().BoolVar(&noCredential, "no-credential", false, "take the credential away")
	cmd.Flags().BoolVar(&forgetHost, "forget-host-keys", false, "record the key of the ssh host anew")
	cmd.Flags().StringSliceVar(&allow, "allow-host", nil, "let agents and gates reach HOST[:PORT] or *.HOST[:PORT] through the server; may be repeated")
	cmd.Flags().StringSliceVar(&deny, "deny-host", nil, "take a host off that list; may be repeated")
	return cmd
}

func (a *invocation) rigUnsetCmd() *cobra.Command {
	cmd := a.rigAction("unset RIG KEY", "Take settings of a rig back", func(ctx context.Context, c *client.Client, in, rig string, rest []string) error {
		if err := knownKeys(rest); err != nil {
			return err
		}
		_, err := c.EditRig(ctx, in, rig, api.EditRig{Unset: rest})
		return err
	})
	cmd.Use, cmd.Args = "unset RIG KEY...", atLeast("RIG", "KEY")
	return cmd
}

func (a *invocation) rigSettingsCmd() *cobra.Command {
	return a.withJSON(a.rigAction("settings RIG", "Show every setting as it holds for a rig", func(ctx context.Context, c *client.Client, in, rig string, _ []string) error {
		items, err := c.RigSettings(ctx, in, rig)
		if err != nil {
			return err
		}
		return a.showSettings(items)
	}))
}
