package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/agent"
	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

func (a *invocation) logsCmd() *cobra.Command {
	var follow bool
	cmd := a.withJSON(a.command("logs BEAD", "Show what happened to a bead and what its agents said", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		p := &logPrinter{a: a}
		if follow {
			return c.Logs(ctx, args[0], p.line)
		}
		lines, err := logOf(ctx, c, args[0])
		if err != nil {
			return err
		}
		for _, l := range lines {
			if err := p.line(l); err != nil {
				return err
			}
		}
		return p.end()
	}))
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the bead is finished")
	return cmd
}

// logOf collects what is known so far, in the order of time.
func logOf(ctx context.Context, c *client.Client, id string) ([]client.LogLine, error) {
	b, err := c.Bead(ctx, id)
	if err != nil {
		return nil, err
	}
	entries, err := c.Ledger(ctx, b.Town, client.LedgerQuery{Subject: id})
	if err != nil {
		return nil, err
	}
	var out []client.LogLine
	for i := range entries {
		out = append(out, client.LogLine{Entry: &entries[i]})
	}
	for _, r := range b.Runs {
		items, err := c.Transcript(ctx, id, r.Epoch, 0)
		if err != nil {
			return nil, err
		}
		for i := range items {
			out = append(out, client.LogLine{Item: &items[i]})
		}
	}
	slices.SortStableFunc(out, func(x, y client.LogLine) int { return at(x).Compare(at(y)) })
	return out, nil
}

func at(l client.LogLine) time.Time {
	if l.Entry != nil {
		return l.Entry.At
	}
	return l.Item.At
}

// logPrinter prints log lines. Pieces of one message come as several events and
// are joined.
type logPrinter struct {
	a    *invocation
	open agent.Kind // of the message that has no line end yet; "" for none
}

func (p *logPrinter) line(l client.LogLine) error {
	if p.a.json {
		if l.Item != nil {
			return p.a.printLine(l.Item)
		}
		return p.a.printLine(l.Entry)
	}
	if l.Entry != nil {
		if err := p.end(); err != nil {
			return err
		}
		return p.a.say("%s", p.a.entryLine(*l.Entry, false))
	}
	var e agent.Event
	if err := json.Unmarshal(l.Item.Body, &e); err != nil {
		e = agent.Event{Text: string(l.Item.Body)}
	}
	return p.event(agent.Kind(cmp.Or(string(e.Kind), l.Item.Kind)), e)
}

func (p *logPrinter) event(kind agent.Kind, e agent.Event) error {
	if e.Replayed {
		return nil
	}
	a := p.a
	switch kind {
	case agent.KindMessage, agent.KindThought:
		text := clean(e.Text)
		if kind == agent.KindThought {
			text = a.paint(dim, text)
		}
		if p.open != kind {
			if err := p.end(); err != nil {
				return err
			}
		}
		p.open = kind
		if strings.HasSuffix(e.Text, "\n") {
			p.open = ""
		}
		_, err := fmt.Fprint(a.env.Out, text)
		return err
	case agent.KindUsage, agent.KindPlan, agent.KindOther, agent.KindUser:
		return nil
	}
	if err := p.end(); err != nil {
		return err
	}
	switch kind {
	case agent.KindToolCall:
		return a.say("%s %s", a.paint(cyan, "tool:"), clip(cmp.Or(e.Tool, e.Text), 160))
	case agent.KindToolUpdate:
		if text := strings.TrimRight(clean(e.Text), "\n"); text != "" {
			return a.say("%s", a.paint(dim, "  | "+strings.ReplaceAll(text, "\n", "\n  | ")))
		}
		if e.Status == "failed" {
			return a.say("  | %s", a.paint(red, "failed"))
		}
		return nil
	case agent.KindPermission:
		return a.say("permission %s: %s", cell(e.Status), clip(cmp.Or(e.Tool, e.Text), 160))
	case agent.KindLifecycle:
		return a.say("%s", a.paint(dim, "agent "+cell(strings.TrimSpace(e.Status+" "+e.Text))))
	}
	return a.say("%s", a.paint(dim, cell(string(kind)+": "+e.Text)))
}

// end closes a message that has no line end yet.
func (p *logPrinter) end() error {
	if p.open == "" {
		return nil
	}
	p.open = ""
	_, err := fmt.Fprintln(p.a.env.Out)
	return err
}

func (a *invocation) ledgerCmd() *cobra.Command {
	var in string
	var follow bool
	var q client.LedgerQuery
	cmd := a.withJSON(a.command("ledger", "Show what happened in a town", func(ctx context.Context, _ []string) error {
		if q.Limit < 0 {
			return errs.New(errs.Invalid, "--limit %d is negative", q.Limit)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		if in, err = oneTown(ctx, c, in); err != nil {
			return err
		}
		return a.ledger(ctx, c, in, q, follow)
	}))
	fl := cmd.Flags()
	fl.StringVar(&in, "town", "", "the town (default: the only one)")
	fl.BoolVarP(&follow, "follow", "f", false, "go on as things happen")
	fl.StringVar(&q.Subject, "subject", "", "only about this bead, run or rig")
	fl.StringVar(&q.Kind, "kind", "", "only this kind of entry, such as bead.closed")
	fl.IntVar(&q.Limit, "limit", 100, "the last so many entries; 0 for all")
	return cmd
}

func (a *invocation) ledger(ctx context.Context, c *client.Client, in string, q client.LedgerQuery, follow bool) error {
	// Where following begins is read first: what the filter leaves out was seen, too.
	last := int64(0)
	if follow {
		newest, err := c.Ledger(ctx, in, client.LedgerQuery{Desc: true, Limit: 1})
		if err != nil {
			return err
		}
		for _, e := range newest {
			last, q.Before = e.Seq, e.Seq+1
		}
	}
	// The newest entries are wanted, in the order of time.
	q.Desc = true
	entries, err := c.Ledger(ctx, in, q)
	if err != nil {
		return err
	}
	slices.Reverse(entries)
	if a.json && !follow {
		return a.printJSON(entries)
	}
	print := func(e api.LedgerEntry) error {
		if a.json {
			return a.printLine(e)
		}
		return a.say("%s", a.entryLine(e, true))
	}
	for _, e := range entries {
		if err := print(e); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	return c.Events(ctx, in, last, func(e api.LedgerEntry) error {
		if q.Subject != "" && e.Subject != q.Subject || q.Kind != "" && e.Kind != q.Kind {
			return nil
		}
		return print(e)
	})
}

// entryLine is one line of a ledger.
func (a *invocation) entryLine(e api.LedgerEntry, subject bool) string {
	line := a.paint(dim, e.At.Local().Format("15:04:05"))
	if subject && e.Subject != "" {
		line += "  " + a.paint(bold, cell(e.Subject))
	}
	line += "  " + a.paint(cyan, cell(e.Kind))
	if e.Text != "" {
		line += "  " + cell(e.Text)
	}
	if e.Actor != "" && e.Actor != "town" {
		line += a.paint(dim, " ("+cell(e.Actor)+")")
	}
	return line
}
