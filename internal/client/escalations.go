package client

import (
	"context"
	"net/http"
	"net/url"

	"gastown/internal/api"
)

// Escalations lists what needs a person in a town; with closed also what did.
func (c *Client) Escalations(ctx context.Context, town string, closed bool) ([]api.Escalation, error) {
	l := list{path: at("towns", town, "escalations")}
	if closed {
		l.query = url.Values{"all": {"true"}}
	}
	return all[api.Escalation](ctx, c, l)
}

// SeeEscalation acknowledges an escalation.
func (c *Client) SeeEscalation(ctx context.Context, town, id string) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("towns", town, "escalations", "seen"), body: api.Seen{ID: id}})
	return err
}
