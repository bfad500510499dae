package cli

import (
	"context"

	"github.com/spf13/cobra"

	"gastown/internal/app"
)

// keyFileFlag lets a command that opens the data directory be told where the key
// of the vault is.
func (a *invocation) keyFileFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.key, "key-file", "", "file with the key of the vault, made at the first start (default: $GASTOWN_KEY_FILE, else vault.key in the data directory)")
}

func (a *invocation) keyFile() string {
	if a.key != "" {
		return a.key
	}
	return a.env.Getenv("GASTOWN_KEY_FILE")
}

func (a *invocation) notifyKeyCmd() *cobra.Command {
	cmd := a.withJSON(a.command("notify-key TOWN-ID", "Print the key that signs the webhooks of a town", func(_ context.Context, args []string) error {
		key, err := app.NotifyKey(a.dataDir(), a.keyFile(), args[0])
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(struct {
				Key string `json:"key"`
			}{key})
		}
		return a.say("%s", key)
	}))
	cmd.Long = `Print the key that signs the webhooks of a town, for the program that checks them.
It is read from the data directory: this works on the server's machine only.`
	a.keyFileFlag(cmd)
	return cmd
}

func (a *invocation) vaultCmd() *cobra.Command {
	g := a.group("vault", "The encrypted store of the server's secrets", "")
	rotate := a.withJSON(a.command("rotate", "Make a new key and encrypt all secrets with it", func(_ context.Context, _ []string) error {
		n, err := app.RotateVault(a.dataDir(), a.keyFile())
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(struct {
				Secrets int `json:"secrets"`
			}{n})
		}
		return a.yes("%d secrets are encrypted with a new key; the old one opens nothing any more", n)
	}))
	rotate.Long = `Make a new key and encrypt all secrets with it. No server may run on the data
directory meanwhile. A rotation that is cut off is finished by the next start.

The secrets themselves stay: where the old key may have been seen together with
the data directory, change them, too.`
	a.keyFileFlag(rotate)
	g.AddCommand(rotate, a.notifyKeyCmd())
	return g
}
