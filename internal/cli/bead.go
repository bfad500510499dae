package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
	"gastown/internal/town"
)

// workFlags are the flags of a new bead.
type workFlags struct {
	town, rig, body, bodyFile, id string
	agent, model, provider        string
	priority                      int
	labels, blockedBy, set        []string
}

func (f *workFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.rig, "rig", "", "the rig (default: the only one)")
	fl.StringVar(&f.town, "town", "", "the town (default: that of the rig)")
	fl.StringVar(&f.body, "body", "", "what is to be done, in Markdown")
	fl.StringVar(&f.bodyFile, "body-file", "", "file with the body; - for stdin")
	fl.IntVar(&f.priority, "priority", 2, "0 is most urgent, 4 least")
	fl.StringArrayVar(&f.labels, "label", nil, "a label; may be repeated")
	fl.StringArrayVar(&f.blockedBy, "blocked-by", nil, "a bead that must be done first; may be repeated")
	fl.StringVar(&f.agent, "agent", "", "preset of the agent, for this bead alone")
	fl.StringVar(&f.model, "model", "", "model, for this bead alone")
	fl.StringVar(&f.provider, "provider", "", "model provider, for this bead alone")
	fl.StringArrayVar(&f.set, "set", nil, "a setting for this bead alone, as key=value; may be repeated")
	fl.StringVar(&f.id, "id", "", "the bead's id (default: made from the rig's prefix)")
}

func (f *workFlags) request(a *invocation, cmd *cobra.Command, title string, staged bool) (api.CreateBead, error) {
	settings, err := assignments("--set", f.set)
	if err != nil {
		return api.CreateBead{}, err
	}
	for _, s := range []struct{ flag, key, value string }{
		{"--agent", "agent", f.agent}, {"--model", "model", f.model}, {"--provider", "provider", f.provider},
	} {
		if settings, err = put(settings, s.flag, s.key, s.value); err != nil {
			return api.CreateBead{}, err
		}
	}
	body := f.body
	if f.bodyFile != "" {
		if body != "" {
			return api.CreateBead{}, errs.New(errs.Invalid, "--body and --body-file contradict each other")
		}
		if body, err = a.textFile("body", f.bodyFile, town.MaxBody); err != nil {
			return api.CreateBead{}, err
		}
	}
	b := api.CreateBead{ID: f.id, Title: title, Body: body, Labels: f.labels, BlockedBy: f.blockedBy, Staged: staged, Settings: settings}
	if cmd.Flags().Changed("priority") {
		b.Priority = &f.priority
	}
	return b, nil
}

// createBead makes a bead and prints its id.
func (a *invocation) createBead(ctx context.Context, cmd *cobra.Command, f *workFlags, title string, staged bool) error {
	b, err := f.request(a, cmd, title, staged)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	in, rig, err := placeOf(ctx, c, f.town, f.rig)
	if err != nil {
		return err
	}
	b.Rig = rig
	made, err := c.CreateBead(ctx, in, b)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(made)
	}
	return a.say("%s", made.ID)
}

func (a *invocation) slingCmd() *cobra.Command {
	var f workFlags
	var cmd *cobra.Command
	cmd = a.withJSON(a.command("sling TITLE|BEAD", "Give a town work: a new bead, or a staged one", func(ctx context.Context, args []string) error {
		if isBead(args[0]) {
			if flag := changed(cmd, "json", "data"); flag != "" {
				return errs.New(errs.Invalid, "--%s makes no sense with a bead that exists", flag).
					WithHint("gastown bead edit %s changes it", args[0])
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := c.Sling(ctx, args[0]); err != nil {
				return err
			}
			return a.beadResult(ctx, c, args[0])
		}
		return a.createBead(ctx, cmd, &f, args[0], false)
	}))
	f.add(cmd)
	return cmd
}

// changed returns a flag that was given, apart from those named.
func changed(cmd *cobra.Command, but ...string) string {
	for name := range flagsOf(cmd) {
		ok := true
		for _, b := range but {
			ok = ok && b != name
		}
		if ok {
			return name
		}
	}
	return ""
}

func (a *invocation) beadCmd() *cobra.Command {
	g := a.group("bead", "Beads (work items): create, list, show, edit, dep, close, cancel, reopen, release", "")
	g.AddCommand(a.beadCreateCmd(), a.beadImportCmd(), a.beadListCmd(), a.beadShowCmd(), a.beadEditCmd(), a.beadDepCmd(), a.beadReleaseCmd(),
		a.beadMoveCmd("close", "Close a bead on your word", (*client.Client).CloseBead),
		a.beadMoveCmd("cancel", "Stop a bead until somebody reopens it", (*client.Client).CancelBead),
		a.beadMoveCmd("reopen", "Open a finished or escalated bead again", (*client.Client).ReopenBead))
	return g
}

func (a *invocation) beadCreateCmd() *cobra.Command {
	var f workFlags
	var cmd *cobra.Command
	cmd = a.withJSON(a.command("create TITLE", "Make a bead that waits until it is slung", func(ctx context.Context, args []string) error {
		return a.createBead(ctx, cmd, &f, args[0], true)
	}))
	f.add(cmd)
	return cmd
}

func (a *invocation) beadListCmd() *cobra.Command {
	var in string
	var q client.BeadQuery
	cmd := a.withJSON(a.command("list", "List the beads of a town", func(ctx context.Context, _ []string) error {
		return a.listBeads(ctx, in, q, "no beads")
	}))
	cmd.Flags().StringVar(&in, "town", "", "the town (default: the only one)")
	cmd.Flags().StringVar(&q.Rig, "rig", "", "only this rig")
	cmd.Flags().StringVar(&q.Status, "status", "", "only this status: open, in_progress, in_review, closed, failed, cancelled")
	cmd.Flags().StringVar(&q.Label, "label", "", "only with this label")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "at most so many")
	return cmd
}

func (a *invocation) readyCmd() *cobra.Command {
	var in string
	var q client.BeadQuery
	cmd := a.withJSON(a.command("ready", "List the beads that could start now", func(ctx context.Context, _ []string) error {
		q.Ready = true
		return a.listBeads(ctx, in, q, "nothing is ready to start")
	}))
	cmd.Flags().StringVar(&in, "town", "", "the town (default: the only one)")
	cmd.Flags().StringVar(&q.Rig, "rig", "", "only this rig")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "at most so many")
	return cmd
}

func (a *invocation) listBeads(ctx context.Context, in string, q client.BeadQuery, none string) error {
	if q.Limit < 0 {
		return errs.New(errs.Invalid, "--limit %d is negative", q.Limit)
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	if in == "" && q.Rig != "" {
		in, _, err = placeOf(ctx, c, "", q.Rig)
	} else {
		in, err = oneTown(ctx, c, in)
	}
	if err != nil {
		return err
	}
	beads, err := c.Beads(ctx, in, q)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(beads)
	}
	var rows [][]string
	for _, b := range beads {
		rows = append(rows, []string{b.ID, status(b), fmt.Sprintf("P%d", b.Priority), b.Rig, b.Agent, a.ago(b.UpdatedAt), clip(b.Title, 60)})
	}
	return a.table(none, []string{"BEAD", "STATUS", "PRIO", "RIG", "AGENT", "CHANGED", "TITLE"}, rows)
}

// status is a bead's status in a table.
func status(b api.Bead) string {
	switch {
	case b.Staged && b.Status == "open":
		return "staged"
	case b.Escalated:
		return b.Status + " (escalated)"
	case b.Merge != nil && b.Status == "in_review":
		return "in_review (" + b.Merge.State + ")"
	}
	return b.Status
}

func (a *invocation) beadEditCmd() *cobra.Command {
	var title, body, bodyFile string
	var agent, model, provider string
	var priority int
	var labels, set, unset []string
	var cmd *cobra.Command
	cmd = a.withJSON(a.command("edit BEAD", "Change a bead", func(ctx context.Context, args []string) error {
		e := api.EditBead{Unset: unset}
		var err error
		if e.Set, err = assignments("--set", set); err != nil {
			return err
		}
		for _, s := range []struct{ flag, key, value string }{
			{"--agent", "agent", agent}, {"--model", "model", model}, {"--provider", "provider", provider},
		} {
			if e.Set, err = put(e.Set, s.flag, s.key, s.value); err != nil {
				return err
			}
		}
		if err := knownKeys(unset); err != nil {
			return err
		}
		if bodyFile != "" {
			if body, err = a.textFile("body", bodyFile, town.MaxBody); err != nil {
				return err
			}
			e.Body = &body
		}
		given := flagsOf(cmd)
		if given["title"] {
			e.Title = &title
		}
		if given["body"] {
			e.Body = &body
		}
		if given["priority"] {
			e.Priority = &priority
		}
		if given["label"] {
			if len(labels) == 1 && labels[0] == "" {
				labels = []string{}
			}
			e.Labels = &labels
		}
		if changed(cmd, "json", "data") == "" {
			return errs.New(errs.Invalid, "there is nothing to change").WithHint("see: gastown bead edit --help")
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		b, err := c.EditBead(ctx, args[0], "", e)
		if err != nil || !a.json {
			return err
		}
		return a.printJSON(b)
	}))
	fl := cmd.Flags()
	fl.StringVar(&title, "title", "", "new title")
	fl.StringVar(&body, "body", "", "new body")
	fl.StringVar(&bodyFile, "body-file", "", "file with the new body; - for stdin")
	fl.IntVar(&priority, "priority", 2, "0 is most urgent, 4 least")
	fl.StringArrayVar(&labels, "label", nil, "replace the labels by this one; may be repeated; empty for none")
	fl.StringVar(&agent, "agent", "", "preset of the agent, for this bead alone")
	fl.StringVar(&model, "model", "", "model, for this bead alone")
	fl.StringVar(&provider, "provider", "", "model provider, for this bead alone")
	fl.StringArrayVar(&set, "set", nil, "a setting for this bead alone, as key=value; may be repeated")
	fl.StringArrayVar(&unset, "unset", nil, "take a setting of this bead back; may be repeated")
	cmd.MarkFlagsMutuallyExclusive("body", "body-file")
	return cmd
}

func (a *invocation) beadDepCmd() *cobra.Command {
	var on, remove []string
	cmd := a.withJSON(a.command("dep BEAD", "Show or change what a bead waits for", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		for _, x := range on {
			if err := c.AddBlocker(ctx, args[0], x); err != nil {
				return err
			}
		}
		for _, x := range remove {
			if err := c.RemoveBlocker(ctx, args[0], x); err != nil {
				return err
			}
		}
		if len(on)+len(remove) > 0 && !a.json {
			return nil
		}
		b, err := c.Bead(ctx, args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(b)
		}
		var rows [][]string
		for _, id := range b.BlockedBy {
			x, err := c.Bead(ctx, id)
			if err != nil {
				return err
			}
			rows = append(rows, []string{x.ID, status(x), clip(x.Title, 60)})
		}
		return a.table(b.ID+" waits for no other bead", []string{"WAITS FOR", "STATUS", "TITLE"}, rows)
	}))
	cmd.Flags().StringArrayVar(&on, "blocked-by", nil, "a bead that must be done first; may be repeated")
	cmd.Flags().StringArrayVar(&remove, "remove", nil, "a bead not to wait for any more; may be repeated")
	return cmd
}

func (a *invocation) beadReleaseCmd() *cobra.Command {
	return a.withJSON(a.command("release BEAD", "Let work on a staged bead begin", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.Sling(ctx, args[0]); err != nil {
			return err
		}
		return a.beadResult(ctx, c, args[0])
	}))
}

// beadResult prints a bead after a change: its id, or all of it as JSON.
func (a *invocation) beadResult(ctx context.Context, c *client.Client, id string) error {
	if !a.json {
		return a.say("%s", id)
	}
	b, err := c.Bead(ctx, id)
	if err != nil {
		return err
	}
	return a.printJSON(b)
}

func (a *invocation) beadMoveCmd(verb, short string, move func(*client.Client, context.Context, string, string) error) *cobra.Command {
	var reason string
	cmd := a.command(verb+" BEAD", short, func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		for _, id := range args {
			if err := move(c, ctx, id, reason); err != nil {
				return err
			}
		}
		return nil
	})
	cmd.Use, cmd.Args = verb+" BEAD...", atLeast("BEAD")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the ledger and the agent")
	return cmd
}

func (a *invocation) retryCmd() *cobra.Command {
	var in string
	cmd := a.command("retry ID", "Try a bead, a breaker, a notice or the subject of an escalation again now, without its backoff", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if in == "" && isBead(args[0]) {
			b, err := c.Bead(ctx, args[0])
			if err != nil {
				return err
			}
			in = b.Town
		}
		if in, err = oneTown(ctx, c, in); err != nil {
			return err
		}
		return c.Retry(ctx, in, args[0])
	})
	cmd.Flags().StringVar(&in, "town", "", "the town (default: that of the bead, or the only one)")
	return cmd
}
