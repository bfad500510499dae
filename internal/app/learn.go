package app

import (
	"context"
	"encoding/json"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/scrub"
	"gastown/internal/town"
	"gastown/internal/vault"
)

// publicSecrets begins the names of what is kept in the vault and is no secret:
// the keys of ssh hosts.
const publicSecrets = "hosts/"

// learn makes the values of the vault known to the scrubber.
func (a *App) learn(v *vault.Vault) error {
	names, err := v.List("")
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := v.Get(name)
		if errs.Is(err, errs.NotFound) {
			continue // removed in between
		}
		if err != nil {
			a.log.Warn("a secret can't be read, so it is not looked for in what leaves", "name", name, "err", err)
			continue
		}
		a.known.Put("vault/"+name, secretsIn(name, value)...)
	}
	return nil
}

// secretsIn returns what of a value in the vault is secret: of a provider or a
// credential of git in JSON, the field that is. Other JSON is a person's own.
func secretsIn(name string, value []byte) []string {
	if strings.HasPrefix(name, publicSecrets) {
		return nil
	}
	var fields struct {
		Key    string `json:"key"`
		Secret string `json:"secret"`
	}
	if json.Unmarshal(value, &fields) == nil && fields.Key+fields.Secret != "" {
		return []string{fields.Key, fields.Secret}
	}
	return []string{string(value)}
}

// learning is a vault that makes known what is put into it. What is removed stays
// known while the server runs: an agent may still speak of it.
type learning struct {
	*vault.Vault
	known *scrub.Set
}

// Put stores a secret.
func (l learning) Put(name string, value []byte) error {
	l.known.Put("vault/"+name, secretsIn(name, value)...)
	return l.Vault.Put(name, value)
}

// discreet tells no secrets.
type discreet struct {
	hall.Notifier
	known *scrub.Set
}

// Notify passes a clean notice on.
func (d discreet) Notify(ctx context.Context, t hall.TownRef, n town.Notice, to string) error {
	n.Text, n.Subject = d.known.Text(n.Text), d.known.Text(n.Subject)
	return d.Notifier.Notify(ctx, t, n, to)
}
