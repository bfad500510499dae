package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// Backup opens a backup of the whole server, with the values of its secrets or
// without. The caller reads and closes it; it is whole only if package backup reads
// it to its end. It is not tried again.
func (c *Client) Backup(ctx context.Context, secrets bool) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, path: at("backup")}
	if secrets {
		r.query = url.Values{"secrets": {"true"}}
	}
	req, err := c.build(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		err, _ = c.unreachable(err)
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return &transfer{c, res.Body}, nil
}

// transfer gives errors of the connection their kind.
type transfer struct {
	c *Client
	io.ReadCloser
}

// Read implements io.Reader.
func (t *transfer) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err, _ = t.c.unreachable(err)
	}
	return n, err
}

// Restore replaces everything that the server has by a backup. It is not tried again.
func (c *Client) Restore(ctx context.Context, backup io.Reader) (out api.Restored, err error) {
	req, err := c.build(ctx, request{method: http.MethodPost, path: at("restore")}, nil)
	if err != nil {
		return out, err
	}
	req.Body = io.NopCloser(backup)
	req.Header.Set("Content-Type", "application/gzip")
	res, err := c.http.Do(req)
	if err != nil {
		err, _ = c.unreachable(err)
		return out, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return out, refusal(res)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&out); err != nil {
		return out, errs.Wrap(errs.Internal, err, "the server's answer can't be read; the backup is restored")
	}
	return out, nil
}

func refusal(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		body = nil // the status says enough
	}
	return problem(res, body)
}
