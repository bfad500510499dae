package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// escalationsCmd lists what needs a person.
func (a *invocation) escalationsCmd() *cobra.Command {
	var in string
	var closed bool
	cmd := a.withJSON(a.command("escalations", "List what needs a person, in one town or in all", func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		found, err := escalations(ctx, c, in, closed)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(found)
		}
		var rows [][]string
		for _, e := range found {
			state := "open"
			switch {
			case !e.Open:
				state = "closed: " + e.How
			case e.SeenBy != "":
				state = "seen by " + e.SeenBy
			}
			rows = append(rows, []string{e.ID, e.Town, e.Cause, e.Subject, fmt.Sprint(e.Count), a.ago(e.Last), state, clip(e.Text, 100)})
		}
		return a.table("nothing needs a person", []string{"ID", "TOWN", "CAUSE", "SUBJECT", "TIMES", "LAST", "STATE", "WHAT"}, rows)
	}))
	cmd.Flags().StringVar(&in, "town", "", "the town (default: all)")
	cmd.Flags().BoolVar(&closed, "all", false, "also those that are closed")
	cmd.AddCommand(a.escalationSeenCmd())
	return cmd
}

func (a *invocation) escalationSeenCmd() *cobra.Command {
	var in string
	cmd := a.command("seen ID", "Acknowledge an escalation; it stays open until its subject is settled", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if in, err = oneTown(ctx, c, in); err != nil {
			return err
		}
		return c.SeeEscalation(ctx, in, args[0])
	})
	cmd.Flags().StringVar(&in, "town", "", "the town (default: the only one)")
	return cmd
}

// escalations asks one town, or all. Of all, one that can't be read or was
// deleted meanwhile hides no other: gastown doctor speaks of it.
func escalations(ctx context.Context, c *client.Client, in string, closed bool) ([]api.Escalation, error) {
	if in != "" {
		return c.Escalations(ctx, in, closed)
	}
	towns, err := c.Towns(ctx)
	if err != nil {
		return nil, err
	}
	out := []api.Escalation{}
	for _, t := range towns {
		found, err := c.Escalations(ctx, t.ID, closed)
		if errs.Is(err, errs.NotFound) || errs.Is(err, errs.Internal) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}
