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
	"gastown/internal/errs"
	"gastown/internal/town"
)

func (a *invocation) townCmd() *cobra.Command {
	g := a.group("town", "Towns: create, list, show, pause, delete, settings", "")
	g.AddCommand(a.townCreateCmd(), a.townListCmd(), a.townShowCmd(), a.townDeleteCmd(),
		a.pauseCmd("pause", false), a.townResumeCmd(), a.townSetCmd(), a.townUnsetCmd(), a.townSettingsCmd(), a.townAgentsCmd(),
		a.townExportCmd(), a.townImportCmd())
	return g
}

func (a *invocation) townCreateCmd() *cobra.Command {
	var owner string
	var set []string
	cmd := a.withJSON(a.command("create NAME", "Make a town", func(ctx context.Context, args []string) error {
		settings, err := assignments("--set", set)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		t, err := c.CreateTown(ctx, api.CreateTown{Name: args[0], Owner: owner, Settings: settings})
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(t)
		}
		return a.say("%s", t.Name)
	}))
	cmd.Flags().StringVar(&owner, "owner", "", "who owns it (default: the town itself)")
	cmd.Flags().StringArrayVar(&set, "set", nil, "a setting, as key=value; may be repeated")
	return cmd
}

func (a *invocation) townListCmd() *cobra.Command {
	return a.withJSON(a.command("list", "List the towns", func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		towns, err := c.Towns(ctx)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(towns)
		}
		var rows [][]string
		for _, t := range towns {
			rows = append(rows, []string{t.Name, t.Status, t.Sandbox, fmt.Sprint(t.Open), a.ago(t.CreatedAt), clip(t.Failing, 60)})
		}
		return a.table("there is no town yet: gastown town create NAME", []string{"TOWN", "STATUS", "SANDBOX", "OPEN", "CREATED", "FAILING"}, rows)
	}))
}

func (a *invocation) townShowCmd() *cobra.Command {
	return a.withJSON(a.command("show TOWN", "Show a town", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		t, err := c.Town(ctx, args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(t)
		}
		return a.showTown(t)
	}))
}

func (a *invocation) showTown(t api.Town) error {
	owner := t.Owner
	if owner == t.ID {
		owner = ""
	}
	mode := t.Mode
	if t.ModeBy != "" {
		mode += fmt.Sprintf(" (by %s, %s)", t.ModeBy, a.ago(t.ModeAt))
	}
	s := t.Sandbox
	box := s.State
	if !s.Since.IsZero() {
		box += " since " + a.ago(s.Since)
	}
	if s.Position > 0 {
		box += fmt.Sprintf(", place %d in the queue for a slot", s.Position)
	}
	why := ""
	if s.StartReason != "" && s.Generation > 0 {
		why = fmt.Sprintf("generation %d, started for %s", s.Generation, s.StartReason)
	}
	var set []string
	for _, k := range slices.Sorted(maps.Keys(t.Settings)) {
		set = append(set, k+"="+t.Settings[k])
	}
	err := a.fields("town", t.Name, "id", t.ID, "owner", owner, "mode", mode, "open beads", fmt.Sprint(t.Open),
		"sandbox", box, "", why,
		"starts", fmt.Sprintf("%d, awake %s in all, %d token renewals", s.Starts, span(time.Duration(s.AwakeMS)*time.Millisecond), s.Renewals),
		"settings", strings.Join(set, " "), "failing", t.Failing, "created", a.ago(t.CreatedAt))
	if t.Escalations > 0 {
		if err := a.say("%d things need a person: gastown escalations --town %s", t.Escalations, t.Name); err != nil {
			return err
		}
	}
	for _, q := range t.Quarantined {
		if err := a.say("quarantined: %s %s: %s", cell(q.Kind), cell(q.ID), cell(q.Error)); err != nil {
			return err
		}
	}
	return err
}

func (a *invocation) townDeleteCmd() *cobra.Command {
	var yes, wait bool
	cmd := a.command("delete TOWN", "Delete a town with everything it has", func(ctx context.Context, args []string) error {
		if !yes {
			return errs.New(errs.Invalid, "deleting a town can't be undone").WithHint("repeat with --yes")
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		// The id stays the town's own: a name could be taken by a new town while we wait.
		t, err := c.Town(ctx, args[0])
		if err != nil {
			return err
		}
		if err := c.DeleteTown(ctx, t.ID); err != nil {
			return err
		}
		if wait {
			if err := c.WaitTownGone(ctx, t.ID); err != nil {
				return err
			}
			return a.yes("town %s is gone", t.Name)
		}
		return a.yes("town %s is being deleted", t.Name)
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "really")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is gone")
	return cmd
}

// pauseCmd is "town pause", or "sleep" when now is set.
func (a *invocation) pauseCmd(name string, now bool) *cobra.Command {
	short := "Let nothing new start; running work finishes"
	if now {
		short = "Pause a town and put its sandbox to sleep now"
	}
	cmd := a.command(name+" TOWN", short, func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.Pause(ctx, args[0], now); err != nil {
			return err
		}
		if now {
			return a.yes("town %s goes to sleep; gastown wake %s ends that", args[0], args[0])
		}
		return a.yes("town %s is paused; gastown town resume %s ends that", args[0], args[0])
	})
	if !now {
		cmd.Flags().BoolVar(&now, "now", false, "drain the sandbox now, too")
	}
	return cmd
}

func (a *invocation) townResumeCmd() *cobra.Command {
	return a.command("resume TOWN", "End a pause or a sleep", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.Resume(ctx, args[0], 0); err != nil {
			return err
		}
		return a.yes("town %s is active", args[0])
	})
}

func (a *invocation) wakeCmd() *cobra.Command {
	var awake time.Duration
	cmd := a.command("wake TOWN", "End a pause or a sleep and keep the sandbox awake for a while", func(ctx context.Context, args []string) error {
		if awake < 0 {
			return errs.New(errs.Invalid, "--for %s is negative", awake)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.Resume(ctx, args[0], awake); err != nil {
			return err
		}
		if awake == 0 {
			return a.yes("town %s is active", args[0])
		}
		return a.yes("town %s is active and kept awake for %s", args[0], awake)
	})
	cmd.Flags().DurationVar(&awake, "for", 0, "how long to keep the sandbox awake, such as 30m")
	return cmd
}

func (a *invocation) townSetCmd() *cobra.Command {
	cmd := a.command("set TOWN KEY=VALUE", "Change settings of a town", func(ctx context.Context, args []string) error {
		set, err := assignments("the argument", args[1:])
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return c.SetTown(ctx, args[0], api.SetSettings{Set: set})
	})
	cmd.Use, cmd.Args = "set TOWN KEY=VALUE...", atLeast("TOWN", "KEY=VALUE")
	return cmd
}

func (a *invocation) townUnsetCmd() *cobra.Command {
	cmd := a.command("unset TOWN KEY", "Take settings of a town back", func(ctx context.Context, args []string) error {
		if err := knownKeys(args[1:]); err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return c.SetTown(ctx, args[0], api.SetSettings{Unset: args[1:]})
	})
	cmd.Use, cmd.Args = "unset TOWN KEY...", atLeast("TOWN", "KEY")
	return cmd
}

func (a *invocation) townSettingsCmd() *cobra.Command {
	return a.withJSON(a.command("settings TOWN", "Show every setting, its value and where it comes from", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		items, err := c.TownSettings(ctx, args[0])
		if err != nil {
			return err
		}
		return a.showSettings(items)
	}))
}

func (a *invocation) showSettings(items []api.Setting) error {
	if a.json {
		return a.printJSON(items)
	}
	var rows [][]string
	for _, s := range items {
		rows = append(rows, []string{s.Key, clip(s.Value, 60), s.From, s.Help})
	}
	return a.table("no settings", []string{"SETTING", "VALUE", "FROM", "MEANING"}, rows)
}

func (a *invocation) townAgentsCmd() *cobra.Command {
	return a.withJSON(a.command("agents TOWN", "List the agents of a town", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		agents, err := c.Agents(ctx, args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(agents)
		}
		var rows [][]string
		for _, g := range agents {
			rows = append(rows, []string{g.ID, g.Role, g.Bead, fmt.Sprint(g.Closed), fmt.Sprint(g.Failed), a.ago(g.Since)})
		}
		return a.table("no agents yet: they come with the first work", []string{"AGENT", "ROLE", "BEAD", "CLOSED", "FAILED", "SINCE"}, rows)
	}))
}

// atLeast wants the named arguments; the last may be repeated.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return errs.New(errs.Invalid, "%s is missing", names[len(args)]).WithHint("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// knownKeys refuses unknown settings before the server is asked.
func knownKeys(keys []string) error {
	for _, k := range keys {
		if _, err := town.Lookup(k); err != nil {
			return err
		}
	}
	return nil
}
