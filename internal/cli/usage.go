package cli

import (
	"cmp"
	"context"
	"errors"
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

// usageCmd shows what towns used: one line each, or the days of one.
func (a *invocation) usageCmd() *cobra.Command {
	var one string
	cmd := a.withJSON(a.command("usage [TOWN]", "Show what towns have used; for one town also its days, holds, budgets and beads", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if one != "" {
			args = append(args, one)
		}
		if len(args) > 1 {
			return errs.New(errs.Invalid, "two towns are named: %s and %s", short40(args[0]), short40(args[1]))
		}
		all, failed := usages(ctx, c, args)
		if failed != nil && len(all) == 0 {
			return failed
		}
		if a.json {
			return errors.Join(a.printJSON(all), failed)
		}
		var rows [][]string
		for _, u := range all {
			rows = append(rows, []string{u.Town, fmt.Sprint(u.Starts), msSpan(u.AwakeMS), fmt.Sprint(u.Renewals),
				fmt.Sprint(u.Runs), msSpan(u.RunMS),
				fmt.Sprint(u.Open), fmt.Sprint(u.Closed), fmt.Sprint(u.Failed), fmt.Sprint(u.Cancelled)})
		}
		if err := a.table("there is no town yet", []string{"TOWN", "STARTS", "AWAKE", "RENEWALS", "RUNS", "RUN TIME", "OPEN", "CLOSED", "FAILED", "CANCELLED"}, rows); err != nil || len(args) == 0 {
			return cmp.Or(err, failed)
		}
		if err := a.usageDays(all[0].Days); err != nil {
			return err
		}
		if err := a.usageBudgets(all[0].Budgets); err != nil {
			return err
		}
		return a.usageBeads(all[0].Beads)
	}))
	cmd.Flags().StringVar(&one, "town", "", "the town")
	return cmd
}

// usageDays prints what each day's awake time was for, and the holds of it.
func (a *invocation) usageDays(days []api.UsageDay) error {
	var rows, holds [][]string
	for _, d := range days {
		rows = append(rows, []string{d.Day, msSpan(d.AwakeMS), msSpan(d.HeldMS), msSpan(d.GraceMS), msSpan(d.StartingMS), msSpan(d.DrainingMS), msSpan(d.StoppingMS),
			fmt.Sprint(d.Runs), fmt.Sprint(d.Tokens), dollars(d.CostMicros)})
		for _, h := range slices.Sorted(maps.Keys(d.Holds)) {
			holds = append(holds, []string{d.Day, h, msSpan(d.Holds[h])})
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if err := a.say(""); err != nil {
		return err
	}
	if err := a.table("", []string{"DAY", "AWAKE", "HELD", "GRACE", "STARTING", "DRAINING", "STOPPING", "RUNS", "TOKENS", "COST"}, rows); err != nil {
		return err
	}
	for _, d := range days {
		if d.Unpriced > 0 {
			if err := a.say("%s: %d of the tokens are of models without a price of their own (gastown provider add … --price)", d.Day, d.Unpriced); err != nil {
				return err
			}
		}
	}
	if len(holds) == 0 {
		return nil
	}
	if err := a.say(""); err != nil {
		return err
	}
	return a.table("", []string{"DAY", "HOLD", "TIME"}, holds)
}

// usageBudgets prints the limits that are set and what is left of them.
func (a *invocation) usageBudgets(budgets []api.Budget) error {
	var rows [][]string
	for _, b := range budgets {
		until := ""
		if !b.Until.IsZero() {
			until = a.ago(b.Until)
		}
		granted := ""
		if b.Granted > 0 {
			granted = amount(b.What, b.Granted)
		}
		rows = append(rows, []string{b.Setting, amount(b.What, b.Limit), amount(b.What, b.Spent), granted, amount(b.What, b.Left), until})
	}
	if len(rows) == 0 {
		return nil
	}
	if err := a.say(""); err != nil {
		return err
	}
	return a.table("", []string{"BUDGET", "LIMIT", "SPENT", "GRANTED", "LEFT", "COUNTS ANEW"}, rows)
}

// usageBeads prints what beads cost.
func (a *invocation) usageBeads(beads []api.BeadSpend) error {
	var rows [][]string
	for _, b := range beads {
		rows = append(rows, []string{b.Bead, b.Status, fmt.Sprint(b.Spent.Runs), msSpan(b.Spent.AwakeMS), fmt.Sprint(b.Spent.Tokens), dollars(b.Spent.CostMicros), b.Title})
	}
	if len(rows) == 0 {
		return nil
	}
	if err := a.say(""); err != nil {
		return err
	}
	return a.table("", []string{"BEAD", "STATUS", "RUNS", "AWAKE", "TOKENS", "COST", "TITLE"}, rows)
}

func amount(what string, n int64) string {
	switch what {
	case "cost":
		return dollars(n)
	case "awake":
		return msSpan(n)
	}
	return fmt.Sprint(n)
}

// dollars writes millionths of a dollar, with the cents or more.
func dollars(micros int64) string {
	text := fmt.Sprintf("$%d.%06d", micros/1_000_000, micros%1_000_000)
	cents := len(text) - 4
	return text[:cents] + strings.TrimRight(text[cents:], "0")
}

// spentText is what a bead cost, and its limits.
func spentText(b api.Bead) string {
	if b.Spent == (api.Spend{}) {
		return ""
	}
	text := fmt.Sprintf("%d runs, %s awake, %d tokens, %s", b.Spent.Runs, msSpan(b.Spent.AwakeMS), b.Spent.Tokens, dollars(b.Spent.CostMicros))
	for _, l := range b.Budgets {
		text += fmt.Sprintf("; %s: %s of %s left", l.Setting, amount(l.What, l.Left), amount(l.What, l.Limit))
	}
	return text
}

func msSpan(ms int64) string { return span(time.Duration(ms) * time.Millisecond) }

// sandboxCmd is what a person may do with the sandbox itself.
func (a *invocation) sandboxCmd() *cobra.Command {
	cmd := a.group("sandbox", "Look after the sandbox of a town", "")
	cmd.AddCommand(a.command("refresh-token TOWN", "Renew the token of an awake sandbox now", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if err := c.RefreshToken(ctx, args[0]); err != nil {
			return err
		}
		return a.yes("the token of the sandbox of town %s is being renewed", args[0])
	}))
	return cmd
}

// usages asks for all towns, or those named. One that can't be read does not
// hide the others: its error comes with them.
func usages(ctx context.Context, c *client.Client, args []string) ([]api.Usage, error) {
	names := args
	if len(names) == 0 {
		towns, err := c.Towns(ctx)
		if err != nil {
			return nil, err
		}
		for _, t := range towns {
			names = append(names, t.ID)
		}
	}
	var failed error
	out := []api.Usage{}
	for _, n := range names {
		u, err := c.Usage(ctx, n)
		if errs.Is(err, errs.NotFound) && len(args) == 0 {
			continue // deleted since it was listed
		}
		if errs.Is(err, errs.Internal) && len(args) == 0 {
			failed = errs.New(errs.Internal, "a town is left out, because it can't be read").WithHint("gastown town list shows towns that fail, and why")
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, failed
}
