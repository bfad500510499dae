package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// Server describes the server.
func (c *Client) Server(ctx context.Context) (api.Server, error) {
	return call[api.Server](ctx, c, request{method: http.MethodGet, path: at("server")})
}

// Ready returns nil when the server answers and says that it is ready.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, request{method: http.MethodGet, path: "/readyz"})
	return err
}

// Providers lists the model providers, never with their keys.
func (c *Client) Providers(ctx context.Context) ([]api.Provider, error) {
	return all[api.Provider](ctx, c, list{path: at("providers")})
}

// AddProvider adds a model provider or replaces the one of its name.
func (c *Client) AddProvider(ctx context.Context, p api.CreateProvider) (api.Provider, error) {
	return call[api.Provider](ctx, c, request{method: http.MethodPost, path: at("providers"), body: p})
}

// RemoveProvider removes a model provider and its key.
func (c *Client) RemoveProvider(ctx context.Context, name string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: at("providers", name)})
	return err
}

// CreateTown makes a town.
func (c *Client) CreateTown(ctx context.Context, t api.CreateTown) (api.Town, error) {
	return call[api.Town](ctx, c, request{method: http.MethodPost, path: at("towns"), body: t})
}

// Towns lists the towns by name.
func (c *Client) Towns(ctx context.Context) ([]api.TownItem, error) {
	return all[api.TownItem](ctx, c, list{path: at("towns"), cursor: "cursor", size: 500})
}

// Town returns a town by name or id.
func (c *Client) Town(ctx context.Context, town string) (api.Town, error) {
	return call[api.Town](ctx, c, request{method: http.MethodGet, path: at("towns", town)})
}

// DeleteTown begins to delete a town with everything it has. See WaitTownGone.
func (c *Client) DeleteTown(ctx context.Context, town string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: at("towns", town)})
	return err
}

// WaitTownGone waits until a town does not exist any more.
func (c *Client) WaitTownGone(ctx context.Context, town string) error {
	for {
		_, err := c.Town(ctx, town)
		if errs.Is(err, errs.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.wait(ctx, 200*time.Millisecond); err != nil {
			return errs.Wrap(errs.Unavailable, err, "interrupted while town %s is being deleted", town)
		}
	}
}

// TownSettings shows every setting as it holds for the town.
func (c *Client) TownSettings(ctx context.Context, town string) ([]api.Setting, error) {
	return all[api.Setting](ctx, c, list{path: at("towns", town, "settings")})
}

// SetTown changes settings of a town.
func (c *Client) SetTown(ctx context.Context, town string, s api.SetSettings) error {
	_, err := c.do(ctx, request{method: http.MethodPatch, path: at("towns", town, "settings"), body: s})
	return err
}

// Pause lets nothing new start in a town; now drains its sandbox too.
func (c *Client) Pause(ctx context.Context, town string, now bool) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("towns", town, "pause"), body: api.Pause{Now: now}})
	return err
}

// RefreshToken renews the token of an awake sandbox; one that is not awake has
// none, which is a Conflict.
func (c *Client) RefreshToken(ctx context.Context, town string) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("towns", town, "refresh-token")})
	return err
}

// Resume ends a pause or sleep; a positive awake keeps the sandbox awake that long.
func (c *Client) Resume(ctx context.Context, town string, awake time.Duration) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("towns", town, "resume"), body: api.Resume{ForMS: awake.Milliseconds()}})
	return err
}

// Retry resets the backoff of a bead, a breaker or a notice.
func (c *Client) Retry(ctx context.Context, town, id string) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("towns", town, "retry"), body: api.Retry{ID: id}})
	return err
}

// WhyTown says why the sandbox of a town is awake or asleep.
func (c *Client) WhyTown(ctx context.Context, town string) (api.WhyTown, error) {
	return call[api.WhyTown](ctx, c, request{method: http.MethodGet, path: at("towns", town, "why")})
}

// Usage returns what a town has used.
func (c *Client) Usage(ctx context.Context, town string) (api.Usage, error) {
	return call[api.Usage](ctx, c, request{method: http.MethodGet, path: at("towns", town, "usage")})
}

// Runs lists the runs of a town that have not ended.
func (c *Client) Runs(ctx context.Context, town string) ([]api.Run, error) {
	return all[api.Run](ctx, c, list{path: at("towns", town, "runs")})
}

// Agents lists the agents of a town.
func (c *Client) Agents(ctx context.Context, town string) ([]api.Agent, error) {
	return all[api.Agent](ctx, c, list{path: at("towns", town, "agents")})
}

// AddRig adds a rig; the server clones the repository before it answers.
func (c *Client) AddRig(ctx context.Context, town string, r api.AddRig) (api.Rig, error) {
	return call[api.Rig](ctx, c, request{method: http.MethodPost, path: at("towns", town, "rigs"), body: r, slow: true})
}

// Rigs lists the rigs of a town.
func (c *Client) Rigs(ctx context.Context, town string) ([]api.Rig, error) {
	return all[api.Rig](ctx, c, list{path: at("towns", town, "rigs")})
}

// Rig returns a rig of a town.
func (c *Client) Rig(ctx context.Context, town, rig string) (api.Rig, error) {
	return call[api.Rig](ctx, c, request{method: http.MethodGet, path: at("towns", town, "rigs", rig)})
}

// RigSettings shows every setting as it holds for a rig.
func (c *Client) RigSettings(ctx context.Context, town, rig string) ([]api.Setting, error) {
	return all[api.Setting](ctx, c, list{path: at("towns", town, "settings"), query: url.Values{"rig": {rig}}})
}

// EditRig changes settings and gates of a rig.
func (c *Client) EditRig(ctx context.Context, town, rig string, e api.EditRig) (api.Rig, error) {
	return call[api.Rig](ctx, c, request{method: http.MethodPatch, path: at("towns", town, "rigs", rig), body: e})
}

// RemoveRig removes a rig; force cancels its beads that are not terminal.
func (c *Client) RemoveRig(ctx context.Context, town, rig string, force bool) error {
	r := request{method: http.MethodDelete, path: at("towns", town, "rigs", rig)}
	if force {
		r.query = url.Values{"force": {"true"}}
	}
	_, err := c.do(ctx, r)
	return err
}

// FindRig lists the towns that have a rig of this name.
func (c *Client) FindRig(ctx context.Context, rig string) ([]api.RigPlace, error) {
	return all[api.RigPlace](ctx, c, list{path: at("rigs"), query: url.Values{"name": {rig}}})
}

// LedgerQuery selects entries of a ledger; zero fields select all.
type LedgerQuery struct {
	After, Before int64
	Limit         int
	Subject, Kind string
	Desc          bool
}

// Ledger reads a town's ledger; Limit 0 reads all that matches.
func (c *Client) Ledger(ctx context.Context, town string, q LedgerQuery) ([]api.LedgerEntry, error) {
	v := url.Values{}
	number := func(key string, n int64) {
		if n != 0 {
			v.Set(key, strconv.FormatInt(n, 10))
		}
	}
	number("after", q.After)
	number("before", q.Before)
	if q.Subject != "" {
		v.Set("subject", q.Subject)
	}
	if q.Kind != "" {
		v.Set("kind", q.Kind)
	}
	cursor := "after"
	if q.Desc {
		v.Set("desc", "true")
		cursor = "before"
	}
	return all[api.LedgerEntry](ctx, c, list{path: at("towns", town, "ledger"), query: v, cursor: cursor, size: 500, limit: q.Limit})
}

// Events calls fn for each ledger entry after the given one, as it happens,
// until fn fails or ctx ends.
func (c *Client) Events(ctx context.Context, town string, after int64, fn func(api.LedgerEntry) error) error {
	return c.stream(ctx, at("towns", town, "events"), nil, strconv.FormatInt(after, 10), func(e Event) error {
		var entry api.LedgerEntry
		if err := decodeEvent(e, &entry); err != nil {
			return err
		}
		return fn(entry)
	}, nil)
}
