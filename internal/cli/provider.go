package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/errs"
)

func (a *invocation) providerCmd() *cobra.Command {
	g := a.group("provider", "Model providers: add, list, remove", "")
	g.AddCommand(a.providerAddCmd(), a.providerListCmd(), a.providerRemoveCmd())
	return g
}

func (a *invocation) providerAddCmd() *cobra.Command {
	var baseURL, keyFile, keyEnv string
	var models, prices []string
	var allowHTTP bool
	cmd := a.withJSON(a.command("add KIND NAME", "Add a model provider, or replace one; the kind is openai, anthropic, gemini or openai-compatible", func(ctx context.Context, args []string) error {
		p := api.CreateProvider{Kind: args[0], Name: args[1], BaseURL: baseURL, Models: models, AllowHTTP: allowHTTP}
		var err error
		if p.Prices, err = pricesIn(prices); err != nil {
			return err
		}
		if keyFile != "" {
			if p.Key, err = a.secretFile("key", keyFile); err != nil {
				return err
			}
		}
		if keyEnv != "" {
			if p.Key = strings.TrimSpace(a.env.Getenv(keyEnv)); p.Key == "" || keyFile != "" {
				return errs.New(errs.Invalid, "the environment variable %s is empty or not set, or there is a file, too", short40(keyEnv)).
					WithHint("--key-env takes the name of a variable, not the key; give either that or --key-file")
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		made, err := c.AddProvider(ctx, p)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(made)
		}
		return a.say("%s", made.Name)
	}))
	fl := cmd.Flags()
	fl.StringVar(&baseURL, "base-url", "", "where its API is; needed for openai-compatible, up to and with the version")
	fl.StringVar(&keyFile, "key-file", "", "file with its key; - for stdin")
	fl.StringVar(&keyEnv, "key-env", "", "name of the environment variable that holds its key")
	fl.StringArrayVar(&models, "model", nil, "name of a model; the first is the default; may be repeated")
	fl.StringArrayVar(&prices, "price", nil, "dollars for a million tokens, as MODEL=INPUT,OUTPUT[,CACHE READ[,CACHE WRITE]]; may be repeated")
	fl.BoolVar(&allowHTTP, "allow-http", false, "permit plain http to another machine: the key travels unprotected")
	return cmd
}

// pricesIn reads MODEL=INPUT,OUTPUT[,CACHE READ[,CACHE WRITE]].
func pricesIn(list []string) (map[string]api.Price, error) {
	var out map[string]api.Price
	for _, text := range list {
		model, rest, ok := strings.Cut(text, "=")
		parts := strings.Split(rest, ",")
		if !ok || model == "" || len(parts) < 2 || len(parts) > 4 {
			return nil, errs.New(errs.Invalid, "the price %q is not MODEL=INPUT,OUTPUT[,CACHE READ[,CACHE WRITE]]", text).
				WithHint("for example: --price some-model=1.25,10,0.125")
		}
		parts = append(parts, "", "")
		if out == nil {
			out = map[string]api.Price{}
		}
		out[model] = api.Price{Input: parts[0], Output: parts[1], CacheRead: parts[2], CacheWrite: parts[3]}
	}
	return out, nil
}

func (a *invocation) providerListCmd() *cobra.Command {
	return a.withJSON(a.command("list", "List the model providers", func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		all, err := c.Providers(ctx)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(all)
		}
		var rows [][]string
		for _, p := range all {
			rows = append(rows, []string{p.Name, p.Kind, p.BaseURL, strings.Join(p.Models, " ")})
		}
		return a.table("no providers yet: gastown provider add openai|anthropic|gemini|openai-compatible NAME --key-file FILE",
			[]string{"PROVIDER", "KIND", "BASE URL", "MODELS"}, rows)
	}))
}

func (a *invocation) providerRemoveCmd() *cobra.Command {
	return a.command("remove NAME", "Remove a model provider and its key", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		return c.RemoveProvider(ctx, args[0])
	})
}
