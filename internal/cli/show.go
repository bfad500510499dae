package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// flagsOf returns the flags that were given.
func flagsOf(cmd *cobra.Command) map[string]bool {
	out := map[string]bool{}
	cmd.Flags().Visit(func(f *pflag.Flag) { out[f.Name] = true })
	return out
}

func (a *invocation) beadShowCmd() *cobra.Command {
	return a.withJSON(a.command("show BEAD", "Show a bead with everything that is known of it", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		b, err := c.Bead(ctx, args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(b)
		}
		return a.showBead(b)
	}))
}

func (a *invocation) showBead(b api.Bead) error {
	if err := a.say("%s  %s", a.paint(bold, b.ID), cell(b.Title)); err != nil {
		return err
	}
	var set []string
	for _, k := range slices.Sorted(maps.Keys(b.Settings)) {
		set = append(set, k+"="+b.Settings[k])
	}
	attempts := ""
	if b.Attempts > 0 {
		attempts = fmt.Sprint(b.Attempts)
		if b.Charged > 0 {
			attempts += fmt.Sprintf(" (%d failed)", b.Charged)
		}
	}
	if err := a.say("status      %s", a.paint(statusStyle(b.Status), status(b))); err != nil {
		return err
	}
	if err := a.fields("why       ", reasonText(b.Why, a), "rig", b.Rig+" of town "+b.Town, "priority", fmt.Sprint(b.Priority), "labels", strings.Join(b.Labels, " "),
		"waits for", strings.Join(b.BlockedBy, " "), "agent", b.Agent, "works with", usesText(b.Uses), "attempts", attempts, "spent", spentText(b),
		"branch", b.Branch, "base", commit(b.Base), "commit", commit(b.Commit), "checkpoint", commit(b.Checkpoint),
		"merge", mergeText(b.Merge), "proof", a.proofText(b.Proof), "summary", b.Summary, "settings", strings.Join(set, " "),
		"created", a.ago(b.CreatedAt)+by(b.CreatedBy), "closed", a.ago(b.ClosedAt)); err != nil {
		return err
	}
	if b.Reason != "" && b.Status != "closed" {
		if err := a.say("\nWhat the next attempt is told:\n%s", indent(b.Reason)); err != nil {
			return err
		}
	}
	if len(b.Failures) > 0 {
		if err := a.say("\nWhat went wrong:"); err != nil {
			return err
		}
		for _, f := range b.Failures {
			if err := a.say("  %s  %s: %s", a.ago(f.At), f.Class, clip(f.Reason, 160)); err != nil {
				return err
			}
		}
	}
	if len(b.Nudges) > 0 {
		if err := a.say("\nMessages to its agents:"); err != nil {
			return err
		}
		for _, m := range b.Nudges {
			if err := a.say("  %d  %s by %s, %s: %s", m.N, a.ago(m.At), m.From, nudgeState(m, a), clip(m.Text, 160)); err != nil {
				return err
			}
		}
	}
	if b.Body != "" {
		return a.say("\n%s", strings.TrimRight(clean(b.Body), "\n"))
	}
	return nil
}

func by(who string) string {
	if who == "" {
		return ""
	}
	return " by " + who
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(clean(s), "\n"), "\n", "\n  ")
}

func reasonText(r *api.Reason, a *invocation) string {
	if r == nil {
		return ""
	}
	text := r.Text
	if !r.Until.IsZero() && r.State != "terminal" {
		text += " (" + a.ago(r.Until) + ")"
	}
	return text
}

// usesText says with what a bead is worked on, and where each part was given.
func usesText(u *api.Uses) string {
	if u == nil {
		return ""
	}
	var parts []string
	for _, p := range []struct {
		what string
		c    api.Choice
	}{{"agent", u.Agent}, {"provider", u.Provider}, {"model", u.Model}} {
		if p.c.Value == "" {
			continue
		}
		from := p.c.From
		if p.c.From != "default" {
			from = "the " + p.c.From
		}
		if p.c.Key != p.what {
			from = p.c.Key + " of " + from
		}
		parts = append(parts, fmt.Sprintf("%s %s (%s)", p.what, cell(p.c.Value), from))
	}
	return strings.Join(parts, ", ")
}

func mergeText(m *api.Merge) string {
	if m == nil {
		return ""
	}
	text := fmt.Sprintf("%s, candidate %d", m.State, m.N)
	if m.Candidate != "" {
		text += " " + commit(m.Candidate)
	}
	for _, g := range m.Gates {
		text += "; " + gateText(g)
	}
	return text
}

func gateText(g api.GateState) string {
	took := span(time.Duration(g.MS) * time.Millisecond)
	switch {
	case g.Passed:
		return fmt.Sprintf("%s passed (%s)", g.Name, took)
	case g.TimedOut:
		return fmt.Sprintf("%s ran out of time (%s)", g.Name, took)
	}
	return fmt.Sprintf("%s failed with exit code %d (%s)", g.Name, g.ExitCode, took)
}

func (a *invocation) proofText(p *api.Proof) string {
	if p == nil {
		return ""
	}
	text := p.Kind
	if p.Commit != "" {
		text += " as " + commit(p.Commit)
	}
	text += by(p.By)
	if p.Reason != "" {
		text += ": " + p.Reason
	}
	return text
}

func (a *invocation) whyCmd() *cobra.Command {
	return a.withJSON(a.command("why BEAD|TOWN", "Say why a bead is where it is, or why a town's sandbox is awake or asleep", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		var beadErr error
		if isBead(args[0]) {
			r, err := c.WhyBead(ctx, args[0])
			if err == nil {
				if a.json {
					return a.printJSON(r)
				}
				err := a.say("%s (%s): %s", args[0], cell(r.State), cell(reasonText(&r, a)))
				if r.Uses == nil || err != nil {
					return err
				}
				return a.say("worked on with %s", usesText(r.Uses))
			}
			if !errs.Is(err, errs.NotFound) {
				return err
			}
			beadErr = err
		}
		w, townErr := c.WhyTown(ctx, args[0])
		if townErr != nil {
			if beadErr != nil && errs.Is(townErr, errs.NotFound) {
				return beadErr
			}
			return townErr
		}
		if a.json {
			return a.printJSON(w)
		}
		return a.showWhyTown(w)
	}))
}

func (a *invocation) showWhyTown(w api.WhyTown) error {
	if err := a.say("%s: sandbox %s: %s", cell(w.Town), cell(w.Sandbox.State), cell(w.Text)); err != nil {
		return err
	}
	var lines []string
	for _, h := range w.Holds {
		line := fmt.Sprintf("held awake by %s %s since %s", h.Reason, h.Subject, a.ago(h.Since))
		if !h.Until.IsZero() {
			line += ", at the latest until " + h.Until.Local().Format("15:04:05")
		}
		lines = append(lines, line)
	}
	if w.Sandbox.StartReason != "" && w.Sandbox.State != "queued" { // what a queued one is wanted for is in the text
		lines = append(lines, fmt.Sprintf("generation %d was started for %s", w.Sandbox.Generation, w.Sandbox.StartReason))
	}
	for _, b := range w.Breakers {
		lines = append(lines, fmt.Sprintf("breaker %s: %d failures, again %s: %s", b.Subject, b.Fails, a.ago(b.Until), clip(b.Last, 120)))
	}
	for _, k := range w.Claims {
		lines = append(lines, fmt.Sprintf("the server is doing %s, try %d", k.Key, k.Attempt))
	}
	for _, e := range w.Escalations {
		lines = append(lines, fmt.Sprintf("%s needs a person: %s %s: %s (gastown retry %s --town %s)", e.ID, e.Cause, e.Subject, clip(e.Text, 120), e.ID, w.Town))
	}
	for _, n := range w.Notices {
		lines = append(lines, fmt.Sprintf("notice %d could not be delivered: %s: %s", n.ID, n.Subject, clip(n.Error, 120)))
	}
	if w.Failing != "" {
		lines = append(lines, "failing: "+w.Failing)
	}
	for _, l := range lines {
		if err := a.say("  %s", cell(l)); err != nil {
			return err
		}
	}
	return nil
}

func (a *invocation) runsCmd() *cobra.Command {
	var in string
	cmd := a.withJSON(a.command("runs [BEAD]", "List what runs now in a town, or all runs of a bead", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		runs, err := runsFor(ctx, c, in, args)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(runs)
		}
		var rows [][]string
		for _, r := range runs {
			state := r.State
			if r.Outcome != "" {
				state = r.Outcome
			}
			end := a.env.Now()
			if !r.EndedAt.IsZero() {
				end = r.EndedAt
			}
			took := ""
			if !r.StartedAt.IsZero() {
				took = span(end.Sub(r.StartedAt))
			}
			rows = append(rows, []string{r.ID, r.Bead, r.Agent, r.Preset, state, a.ago(r.StartedAt), took, a.ago(r.LifeAt), clip(r.Reason, 60)})
		}
		return a.table("nothing runs", []string{"RUN", "BEAD", "AGENT", "PRESET", "STATE", "STARTED", "TOOK", "LAST SIGN", "REASON"}, rows)
	}))
	cmd.Flags().StringVar(&in, "town", "", "the town (default: the only one)")
	return cmd
}

func runsFor(ctx context.Context, c *client.Client, in string, args []string) ([]api.Run, error) {
	if len(args) > 0 {
		return c.BeadRuns(ctx, args[0])
	}
	in, err := oneTown(ctx, c, in)
	if err != nil {
		return nil, err
	}
	return c.Runs(ctx, in)
}

func (a *invocation) diffCmd() *cobra.Command {
	return a.withJSON(a.command("diff BEAD", "Show what a bead's work changed", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		d, err := c.Diff(ctx, args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(d)
		}
		if d.Truncated {
			fmt.Fprintln(a.env.Err, "the diff is too long: this is its beginning")
		}
		text := d.Diff
		if a.env.Terminal {
			text = clean(text)
		}
		_, err = fmt.Fprint(a.env.Out, text)
		return err
	}))
}
