package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// nudgeLook is how often a command that waits looks whether a message was read.
const nudgeLook = time.Second

func (a *invocation) nudgeCmd() *cobra.Command {
	var interrupt, wait bool
	cmd := a.withJSON(a.command("nudge BEAD TEXT", "Send a message to the agent at work on a bead", func(ctx context.Context, args []string) error {
		if strings.TrimSpace(args[1]) == "" {
			return errs.New(errs.Invalid, "the message is empty")
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		b, err := c.Nudge(ctx, args[0], api.Nudge{Text: args[1], Interrupt: interrupt})
		if err != nil {
			return err
		}
		if len(b.Nudges) == 0 { // an older server says no more
			return a.say("sent")
		}
		m := b.Nudges[len(b.Nudges)-1]
		if wait {
			if m, err = a.untilRead(ctx, c, b, m); err != nil {
				return err
			}
		}
		if a.json {
			return a.printJSON(m)
		}
		return a.say("message %d %s", m.N, nudgeState(m, a))
	}))
	fl := cmd.Flags()
	fl.BoolVar(&interrupt, "interrupt", false, "end the agent's turn, so that it reads the message at once")
	fl.BoolVar(&wait, "wait", false, "return when an agent has read it")
	return cmd
}

// untilRead waits until a message was delivered, or can't be any more.
func (a *invocation) untilRead(ctx context.Context, c *client.Client, b api.Bead, m api.SentNudge) (api.SentNudge, error) {
	again := time.NewTicker(nudgeLook)
	defer again.Stop()
	for n := m.N; ; {
		for _, o := range b.Nudges {
			if o.N == n {
				m = o
			}
		}
		if !m.DeliveredAt.IsZero() {
			return m, nil
		}
		switch b.Status {
		case "closed", "failed", "cancelled", "in_review":
			return m, errs.New(errs.Conflict, "bead %s is %s, and no agent read message %d", b.ID, b.Status, n).
				WithHint("an agent reads it when the bead is worked on again, as after gastown bead reopen %s", b.ID)
		}
		select {
		case <-ctx.Done():
			return m, ctx.Err()
		case <-again.C:
		}
		var err error
		if b, err = c.Bead(ctx, b.ID); err != nil {
			return m, err
		}
	}
}

// nudgeState is where a message is, in words.
func nudgeState(m api.SentNudge, a *invocation) string {
	switch {
	case !m.DeliveredAt.IsZero():
		return "was read " + a.ago(m.DeliveredAt) + " in run " + strconv.FormatInt(m.Epoch, 10)
	case m.Interrupt:
		return "waits until the agent has stopped"
	}
	return "waits for the end of the agent's turn"
}
