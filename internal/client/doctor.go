package client

import (
	"context"
	"net/http"
	"net/url"

	"gastown/internal/api"
)

// Doctor examines the server, or one town; deep loads every town.
func (c *Client) Doctor(ctx context.Context, town string, deep bool) (api.DoctorReport, error) {
	q := url.Values{}
	if town != "" {
		q.Set("town", town)
	}
	if deep {
		q.Set("deep", "true")
	}
	return call[api.DoctorReport](ctx, c, request{method: http.MethodGet, path: at("doctor"), query: q, slow: true})
}

// DoctorProgress says how far the examination is that runs now.
func (c *Client) DoctorProgress(ctx context.Context) (api.DoctorProgress, error) {
	return call[api.DoctorProgress](ctx, c, request{method: http.MethodGet, path: at("doctor", "progress")})
}

// DoctorFix examines, does what is safe, and examines again.
func (c *Client) DoctorFix(ctx context.Context, f api.DoctorFix) (api.DoctorFixed, error) {
	return call[api.DoctorFixed](ctx, c, request{method: http.MethodPost, path: at("doctor", "fix"), body: f, slow: true})
}
