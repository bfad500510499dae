package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// progressEach is how often a person who waits is told how far it is.
const progressEach = 500 * time.Millisecond

// doctorCmd examines the server. It exits with 1 when there is a problem.
func (a *invocation) doctorCmd() *cobra.Command {
	var in string
	var deep, fix bool
	cmd := a.withJSON(a.command("doctor [ROW...]", "Examine the server: what is stored, what runs, and whether its promises are kept", func(ctx context.Context, rows []string) error {
		if len(rows) > 0 && !fix {
			return errs.New(errs.Invalid, "a row is named and nothing is to be fixed").WithHint("gastown doctor --fix --town TOWN %s deletes the quarantined row", short40(rows[0]))
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			if in, err = oneTown(ctx, c, in); err != nil {
				return err
			}
		}
		stop := a.watchDoctor(ctx, c)
		if fix {
			done, err := c.DoctorFix(ctx, api.DoctorFix{Town: in, Deep: deep, Rows: rows})
			stop()
			if err != nil {
				return err
			}
			return a.showFixed(done)
		}
		rep, err := c.Doctor(ctx, in, deep)
		stop()
		if err != nil {
			return err
		}
		return a.showReport(rep)
	}))
	cmd.Args = cobra.ArbitraryArgs
	cmd.Flags().StringVar(&in, "town", "", "the only town to look at, with its whole state (default: all)")
	cmd.Flags().BoolVar(&deep, "deep", false, "load every town, not only those with open work")
	cmd.Flags().BoolVar(&fix, "fix", false, "do what is safe; quarantined rows are deleted only when they are named, as kind/id")
	return cmd
}

// watchDoctor tells a person at a terminal how far the examination is.
func (a *invocation) watchDoctor(ctx context.Context, c *client.Client) (stop func()) {
	if !a.env.Terminal || a.json {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressEach)
		defer tick.Stop()
		said := false
		for {
			select {
			case <-ctx.Done():
				if said {
					fmt.Fprint(a.env.Err, "\r\x1b[K")
				}
				return
			case <-tick.C:
			}
			p, err := c.DoctorProgress(ctx)
			if err != nil || !p.Running {
				continue
			}
			text := fmt.Sprintf("looking at %s: %d", p.Phase, p.Done)
			if p.Total > 0 {
				text += fmt.Sprintf(" of %d", p.Total)
			}
			said = true
			fmt.Fprintf(a.env.Err, "\r\x1b[K%s", text)
		}
	}()
	return func() { cancel(); <-done }
}

func (a *invocation) showFixed(f api.DoctorFixed) error {
	if a.json {
		if err := a.printJSON(f); err != nil {
			return err
		}
		return verdict(f.After)
	}
	for _, d := range f.Done {
		mark := a.paint(green, "fixed")
		if d.Error != "" {
			mark = a.paint(red, "not fixed")
		}
		line := fmt.Sprintf("%s: %s %s: %s", place(d.Town), d.Check, d.Subject, d.Did)
		if d.Error != "" {
			line += ": " + d.Error
		}
		if err := a.say("%s  %s", mark, cell(line)); err != nil {
			return err
		}
	}
	if len(f.Done) == 0 {
		if err := a.say("there was nothing to fix"); err != nil {
			return err
		}
	}
	return a.showReport(f.After)
}

func place(town string) string {
	if town == "" {
		return "server"
	}
	return "town " + town
}

func (a *invocation) showReport(r api.DoctorReport) error {
	if a.json {
		if err := a.printJSON(r); err != nil {
			return err
		}
		return verdict(r)
	}
	for _, f := range r.Findings {
		mark := a.paint(red, "problem")
		if f.Severity == "info" {
			mark = a.paint(dim, "info")
		}
		if err := a.say("%s  %s: %s: %s", mark, cell(place(f.Town)), cell(strings.TrimSpace(f.Check+" "+f.Subject)), cell(f.What)); err != nil {
			return err
		}
		fix := f.Fix
		if f.Fixable {
			fix += " (gastown doctor --fix)"
		}
		if err := a.say("    means: %s\n    to do: %s", cell(f.Means), cell(fix)); err != nil {
			return err
		}
	}
	if more := r.Problems + r.Infos - len(r.Findings); more > 0 {
		if err := a.say("and %d more", more); err != nil {
			return err
		}
	}
	var parts []string
	for _, n := range []struct {
		n    int
		what string
	}{{r.Problems, "problems"}, {r.Infos, "to know"}, {r.Towns, "towns"}, {r.Loaded, "of them loaded"}, {r.Repositories, "repositories"}} {
		parts = append(parts, fmt.Sprintf("%d %s", n.n, n.what))
	}
	if err := a.say("%s; took %s", strings.Join(parts, ", "), msSpan(r.TookMS)); err != nil {
		return err
	}
	return verdict(r)
}

// verdict is the exit code: 1 when there is a problem.
func verdict(r api.DoctorReport) error {
	if r.Problems > 0 {
		return &exitError{code: 1}
	}
	return nil
}
