package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"gastown/internal/agent/scripted"
)

// agentCmd holds agents that are part of this program.
func (a *invocation) agentCmd() *cobra.Command {
	g := a.group("agent", "Agents that are part of this program", "")
	g.Hidden = true
	g.AddCommand(a.command("scripted", "Run the agent that executes the shell block of its bead, on stdin and stdout", func(ctx context.Context, _ []string) error {
		err := scripted.Main(ctx, a.env.In, a.env.Out, a.env.Err)
		var exit *scripted.ExitError
		if errors.As(err, &exit) {
			return &exitError{exit.Code}
		}
		return err
	}))
	return g
}
