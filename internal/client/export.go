package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// ExportTown writes the export of a town to w as it comes. seen, which may be
// nil, is told the number of lines so far. An export that does not arrive whole
// is an error; then what was written is not to be kept.
func (c *Client) ExportTown(ctx context.Context, town string, w io.Writer, seen func(lines int)) error {
	req, err := c.build(ctx, request{method: http.MethodGet, path: at("towns", town, "export")}, nil)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		err, _ = c.unreachable(err)
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return c.refused(res)
	}
	in := bufio.NewReaderSize(res.Body, 64<<10)
	sum := sha256.New()
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return errCutOff()
		}
		if err != nil {
			err, _ = c.unreachable(err)
			return err
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		if seen != nil {
			seen(n)
		}
		if last, err := isEnd(line, hex.EncodeToString(sum.Sum(nil))); last || err != nil {
			return err
		}
		sum.Write(line) // never fails
	}
}

func errCutOff() error {
	return errs.New(errs.Unavailable, "the export ended early").WithHint("try again; the server's log may say why")
}

// isEnd reports whether a line is the last of an export, and checks its hash.
func isEnd(line []byte, sum string) (bool, error) {
	var end struct {
		Type   string `json:"type"`
		SHA256 string `json:"sha256"`
	}
	if err := json.Unmarshal(line, &end); err != nil {
		return false, errs.Wrap(errs.Internal, err, "the server's export can't be read")
	}
	if end.Type == "end" && end.SHA256 != sum {
		return true, errCutOff()
	}
	return end.Type == "end", nil
}

func (c *Client) refused(res *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		err, _ = c.unreachable(err)
		return err
	}
	return problem(res, body)
}

// Import is how a town is made of an export.
type Import struct {
	Name   string   // of the new town; "" for the name in the file
	Rename []string // old=new prefixes
	DryRun bool
	Start  bool
	// Open returns the file from its beginning. It is called again when the
	// server could not take it the first time; an error ends that.
	Open func() (io.ReadCloser, error)
}

// ImportTown makes a town of an export.
func (c *Client) ImportTown(ctx context.Context, in Import) (api.Imported, error) {
	q := url.Values{}
	if in.Name != "" {
		q.Set("name", in.Name)
	}
	for _, r := range in.Rename {
		q.Add("rename_prefix", r)
	}
	for key, on := range map[string]bool{"dry_run": in.DryRun, "start": in.Start} {
		if on {
			q.Set(key, "true")
		}
	}
	r := request{method: http.MethodPost, path: at("towns", "import"), query: q}
	key := rand.Text()
	file, err := in.Open()
	for try := 1; err == nil; try++ {
		out, again, failed := send[api.Imported](ctx, c, r, file, key)
		if failed == nil || !again || ctx.Err() != nil || try == maxTries || c.wait(ctx, pauseBefore(failed, try)) != nil {
			return out, failed
		}
		if file, err = in.Open(); err != nil {
			return out, failed // it can be read only once
		}
	}
	return api.Imported{}, err
}

// ImportBeads creates the beads of JSON lines, all or none. Unless sling is set
// they wait until they are slung.
func (c *Client) ImportBeads(ctx context.Context, town, rig string, lines []byte, sling bool) ([]api.ImportedBead, error) {
	q := url.Values{}
	if rig != "" {
		q.Set("rig", rig)
	}
	if sling {
		q.Set("sling", "true")
	}
	r := request{method: http.MethodPost, path: at("towns", town, "beads", "import"), query: q}
	key := rand.Text()
	for try := 1; ; try++ {
		out, again, err := send[api.List[api.ImportedBead]](ctx, c, r, io.NopCloser(bytes.NewReader(lines)), key)
		if err == nil || !again || ctx.Err() != nil || try == maxTries || c.wait(ctx, pauseBefore(err, try)) != nil {
			return out.Items, err
		}
	}
}

// send is one try of an import; again says that another may succeed. It closes
// the file.
func send[T any](ctx context.Context, c *Client, r request, file io.ReadCloser, key string) (out T, again bool, err error) {
	defer file.Close()
	req, err := c.buildBody(ctx, r, c.base+r.path+"?"+r.query.Encode(), file)
	if err != nil {
		return out, false, err
	}
	req.Header.Set("Content-Type", api.LinesType)
	req.Header.Set(api.HeaderIdempotencyKey, key)
	res, err := c.http.Do(req)
	if err != nil {
		err, again = c.unreachable(err)
		return out, again, err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		err := c.refused(res)
		return out, errs.Is(err, errs.Overloaded) || errs.Is(err, errs.Unavailable), err
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(&out); err != nil {
		return out, true, errs.Wrap(errs.Unavailable, err, "the server's answer can't be read")
	}
	return out, false, nil
}

// CloneRig clones the repository of an imported rig.
func (c *Client) CloneRig(ctx context.Context, town, rig string, r api.CloneRig) (api.Rig, error) {
	return call[api.Rig](ctx, c, request{method: http.MethodPost, path: at("towns", town, "rigs", rig, "clone"), body: r, slow: true})
}
