package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// list is a list of the API.
type list struct {
	path  string
	query url.Values
	// cursor is the parameter that takes a page's next; "" for a list of one page.
	cursor string
	size   int // items per page
	limit  int // items in all; 0 means all
}

// all follows the pages of a list.
func all[T any](ctx context.Context, c *Client, l list) ([]T, error) {
	q := url.Values{}
	for k, v := range l.query {
		q[k] = v
	}
	out := []T{}
	last := ""
	for {
		if l.size > 0 {
			n := l.size
			if l.limit > 0 {
				n = min(l.limit-len(out), n)
			}
			q.Set("limit", strconv.Itoa(n))
		}
		page, err := call[api.List[T]](ctx, c, request{method: http.MethodGet, path: l.path, query: q})
		if err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if page.Next == "" || page.Next == last || l.cursor == "" || l.limit > 0 && len(out) >= l.limit {
			return out, nil
		}
		last = page.Next
		q.Set(l.cursor, last)
	}
}

// CreateBead makes a bead; unless it is staged, work on it begins at once.
func (c *Client) CreateBead(ctx context.Context, town string, b api.CreateBead) (api.Bead, error) {
	return call[api.Bead](ctx, c, request{method: http.MethodPost, path: at("towns", town, "beads"), body: b})
}

// BeadQuery selects beads; zero fields select all.
type BeadQuery struct {
	Status, Rig, Label string
	Ready              bool // only those that could start now
	Limit              int
}

// Beads lists beads of a town.
func (c *Client) Beads(ctx context.Context, town string, q BeadQuery) ([]api.Bead, error) {
	v := url.Values{}
	for key, val := range map[string]string{"status": q.Status, "rig": q.Rig, "label": q.Label} {
		if val != "" {
			v.Set(key, val)
		}
	}
	if q.Ready {
		v.Set("ready", "true")
	}
	return all[api.Bead](ctx, c, list{path: at("towns", town, "beads"), query: v, cursor: "cursor", size: 500, limit: q.Limit})
}

// Bead returns a bead with everything that is known of it.
func (c *Client) Bead(ctx context.Context, id string) (api.Bead, error) {
	return call[api.Bead](ctx, c, request{method: http.MethodGet, path: at("beads", id)})
}

// WhyBead says why a bead is where it is.
func (c *Client) WhyBead(ctx context.Context, id string) (api.Reason, error) {
	return call[api.Reason](ctx, c, request{method: http.MethodGet, path: at("beads", id, "why")})
}

// EditBead changes a bead. A non-empty etag refuses when somebody else changed
// it since it was read.
func (c *Client) EditBead(ctx context.Context, id, etag string, e api.EditBead) (api.Bead, error) {
	return call[api.Bead](ctx, c, request{method: http.MethodPatch, path: at("beads", id), body: e, etag: etag})
}

// Sling releases a staged bead.
func (c *Client) Sling(ctx context.Context, id string) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("beads", id, "sling")})
	return err
}

// CloseBead closes a bead on the word of the person who asks.
func (c *Client) CloseBead(ctx context.Context, id, reason string) error {
	return c.move(ctx, id, "close", reason)
}

// CancelBead stops a bead until a person reopens it.
func (c *Client) CancelBead(ctx context.Context, id, reason string) error {
	return c.move(ctx, id, "cancel", reason)
}

// ReopenBead makes a terminal or escalated bead open again.
func (c *Client) ReopenBead(ctx context.Context, id, reason string) error {
	return c.move(ctx, id, "reopen", reason)
}

func (c *Client) move(ctx context.Context, id, verb, reason string) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("beads", id, verb), body: api.WithReason{Reason: reason}})
	return err
}

// Nudge sends a message to the agent at work on a bead, and returns the bead with it.
func (c *Client) Nudge(ctx context.Context, id string, n api.Nudge) (api.Bead, error) {
	return call[api.Bead](ctx, c, request{method: http.MethodPost, path: at("beads", id, "nudge"), body: n})
}

// AddBlocker makes a bead wait for another.
func (c *Client) AddBlocker(ctx context.Context, id, on string) error {
	_, err := c.do(ctx, request{method: http.MethodPost, path: at("beads", id, "blockers"), body: api.Blocker{On: on}})
	return err
}

// RemoveBlocker takes a blocker away.
func (c *Client) RemoveBlocker(ctx context.Context, id, on string) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: at("beads", id, "blockers", on)})
	return err
}

// Diff returns what a bead's work changed.
func (c *Client) Diff(ctx context.Context, id string) (api.Diff, error) {
	return call[api.Diff](ctx, c, request{method: http.MethodGet, path: at("beads", id, "diff")})
}

// BeadRuns lists the present and past runs of a bead.
func (c *Client) BeadRuns(ctx context.Context, id string) ([]api.Run, error) {
	return all[api.Run](ctx, c, list{path: at("beads", id, "runs")})
}

// Transcript reads what an epoch's run said after a number; epoch 0 is the latest.
func (c *Client) Transcript(ctx context.Context, id string, epoch, after int64) ([]api.TranscriptItem, error) {
	q := url.Values{}
	if epoch > 0 {
		q.Set("epoch", strconv.FormatInt(epoch, 10))
	}
	if after > 0 {
		q.Set("after", strconv.FormatInt(after, 10))
	}
	return all[api.TranscriptItem](ctx, c, list{path: at("beads", id, "transcript"), query: q, cursor: "after", size: 200})
}

// LogLine is one line of a bead's log: exactly one of its fields is set.
type LogLine struct {
	Item  *api.TranscriptItem
	Entry *api.LedgerEntry
}

// Logs follows what the runs of a bead do and what the ledger says of it, from
// the beginning, until the bead is terminal, fn fails, or ctx ends.
func (c *Client) Logs(ctx context.Context, id string, fn func(LogLine) error) error {
	take := func(e Event) error {
		switch e.Name {
		case api.EventEnd:
			return ErrStop
		case api.EventTranscript:
			item := new(api.TranscriptItem)
			if err := decodeEvent(e, item); err != nil {
				return err
			}
			return fn(LogLine{Item: item})
		case api.EventLedger:
			entry := new(api.LedgerEntry)
			if err := decodeEvent(e, entry); err != nil {
				return err
			}
			return fn(LogLine{Entry: entry})
		}
		return nil // an event of a newer server
	}
	// A server that shuts down ends its streams too; only the bead tells which it was.
	ended := func(ctx context.Context) (bool, error) {
		b, err := c.Bead(ctx, id)
		if errs.Is(err, errs.Unavailable) {
			return false, nil
		}
		return b.Status == "closed" || b.Status == "failed" || b.Status == "cancelled", err
	}
	return c.stream(ctx, at("beads", id, "logs"), url.Values{"until": {"end"}}, "", take, ended)
}

func decodeEvent(e Event, to any) error {
	if err := json.Unmarshal(e.Data, to); err != nil {
		return errs.Wrap(errs.Internal, err, "an event of the server can't be read")
	}
	return nil
}
