package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/hub"
)

// GitPolicy authenticates and authorizes a request for a rig's repository.
// Its error's kind becomes the HTTP status, its text is shown to the user.
type GitPolicy interface {
	GitAccess(r *http.Request, rig string) (GitGrant, error)
}

// Freshener is asked before references are shown to a fetch, to bring the
// target up to date if that is due. Its failure stops nothing.
type Freshener interface {
	Fresh(ctx context.Context, id hub.ID) error
}

// GitLimits bounds what one request may cost. Zero fields get the defaults.
type GitLimits struct {
	Commands   int           // references per push; default 100
	PackBytes  int64         // size of a pushed pack; default 512 MiB
	FetchBytes int64         // size of a fetch request, unpacked; default 8 MiB
	Timeout    time.Duration // of one request; default 10 min
	FreshFor   time.Duration // how long a fetch waits for the Freshener; default 20 s
	Concurrent int           // requests at a time; default 32
	PerTown    int           // requests at a time of one town; default half of Concurrent
	Wait       time.Duration // how long a request waits for its turn before it gets 429; default 15 s
}

func (l GitLimits) withDefaults() GitLimits {
	set := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.Commands, 100)
	set(&l.Concurrent, 32)
	set(&l.PerTown, max(1, l.Concurrent/2))
	if l.Wait <= 0 {
		l.Wait = 15 * time.Second
	}
	if l.PackBytes <= 0 {
		l.PackBytes = 512 << 20
	}
	if l.FetchBytes <= 0 {
		l.FetchBytes = 8 << 20
	}
	if l.Timeout <= 0 {
		l.Timeout = 10 * time.Minute
	}
	if l.FreshFor <= 0 {
		l.FreshFor = 20 * time.Second
	}
	return l
}

const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

type gitHandler struct {
	hub    *hub.Hub
	policy GitPolicy
	fresh  Freshener
	lim    GitLimits
	log    *slog.Logger
	slots  *slots
}

// NewGit serves the hub's repositories by git's smart HTTP protocol, at
// <any prefix>/{rig}.git/info/refs, /git-upload-pack and /git-receive-pack.
// fresh may be nil.
func NewGit(h *hub.Hub, p GitPolicy, fresh Freshener, limits GitLimits, log *slog.Logger) http.Handler {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	lim := limits.withDefaults()
	return &gitHandler{hub: h, policy: p, fresh: fresh, lim: lim, log: log, slots: newSlots(lim)}
}

// ServeHTTP finds the rig and the service, asks the policy, and runs git.
func (g *gitHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rig, service, advertise, err := route(r)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	grant, err := g.policy.GitAccess(r, rig)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	dir, err := g.hub.Path(grant.ID)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	leave, err := g.slots.enter(r.Context(), grant.ID.Town)
	if err != nil {
		g.fail(w, r, err)
		return
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), g.lim.Timeout)
	defer cancel()
	// A client that stops sending or reading must not keep its slot. A writer that
	// can't set deadlines has the context alone.
	rc, until := http.NewResponseController(w), time.Now().Add(g.lim.Timeout)
	_, _ = rc.SetReadDeadline(until), rc.SetWriteDeadline(until)

	call := gitCall{gitHandler: g, w: w, r: r.WithContext(ctx), dir: dir, grant: grant}
	switch {
	case advertise:
		err = call.advertise(service)
	case service == uploadPack:
		err = call.fetch()
	default:
		err = call.push()
	}
	if err != nil {
		g.fail(w, r, err)
	}
}

// route takes the path apart: .../{rig}.git/<service>.
func route(r *http.Request) (rig, service string, advertise bool, err error) {
	p, ok := strings.CutSuffix(r.URL.Path, "/info/refs")
	if ok {
		advertise = true
		service = r.URL.Query().Get("service")
	} else {
		service = path.Base(r.URL.Path)
		p = strings.TrimSuffix(r.URL.Path, "/"+service)
	}
	rig, isRepo := strings.CutSuffix(path.Base(p), ".git")
	switch {
	case !isRepo || rig == "":
		return "", "", false, errs.New(errs.NotFound, "there is no git repository at this address")
	case service != uploadPack && service != receivePack:
		return "", "", false, errs.New(errs.NotFound, "only git's smart HTTP protocol is served here")
	case advertise && r.Method != http.MethodGet, !advertise && r.Method != http.MethodPost:
		return "", "", false, errs.New(errs.Invalid, "the method %.20q does not belong to this address", r.Method)
	case !advertise && r.Header.Get("Content-Type") != "application/x-"+service+"-request":
		return "", "", false, errs.New(errs.Invalid, "the content type is not that of a %s request", service)
	}
	return rig, service, advertise, nil
}

// fail answers with plain text, which git shows as "remote: …".
func (g *gitHandler) fail(w http.ResponseWriter, r *http.Request, err error) {
	kind := errs.KindOf(err)
	text := err.Error()
	if kind == errs.Internal {
		g.log.Error("git request failed", "path", r.URL.Path, "err", err)
		text = "the server failed; its log says more"
	}
	if kind == errs.Unauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="gastown"`)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(errs.HTTPStatus(kind))
	// The client may be gone; there is nobody else to tell.
	_, _ = io.WriteString(w, git.Redact(text)+"\n")
}

// gitCall is one request in progress.
type gitCall struct {
	*gitHandler
	w     http.ResponseWriter
	r     *http.Request
	dir   string
	grant GitGrant
}

func (c *gitCall) header(kind string) {
	h := c.w.Header()
	h.Set("Content-Type", "application/x-"+kind)
	h.Set("Cache-Control", "no-cache, max-age=0, must-revalidate")
}

// version2 reports whether the client asked for protocol v2. Nothing else of
// its header goes on to git.
func version2(r *http.Request) bool {
	for v := range strings.SplitSeq(r.Header.Get("Git-Protocol"), ":") {
		if v == "version=2" {
			return true
		}
	}
	return false
}

func (c *gitCall) fetchCmd(args ...string) git.Cmd {
	cmd := git.Cmd{
		Dir:  c.dir,
		Args: append([]string{"upload-pack", "--stateless-rpc", "--strict", "--timeout=120"}, args...),
		Config: append(c.grant.hidden(),
			git.Setting{Key: "safe.directory", Value: c.dir},
			git.Setting{Key: "uploadpack.allowAnySHA1InWant", Value: "true"}),
	}
	cmd.Args = append(cmd.Args, c.dir)
	if version2(c.r) {
		cmd.Env = []string{"GIT_PROTOCOL=version=2"}
	}
	return cmd
}

func (c *gitCall) advertise(service string) error {
	cmd := c.fetchCmd("--advertise-refs")
	v2 := version2(c.r)
	if service == receivePack {
		cmd, v2 = c.pushCmd(true, "--advertise-refs"), false
	} else {
		c.freshen()
	}
	out, err := c.hub.Git().Do(c.r.Context(), cmd)
	if err != nil {
		return err
	}
	c.header(service + "-advertisement")
	if !v2 {
		// Protocol v2 opens with its own greeting instead.
		if _, err := io.WriteString(c.w, pkt("# service="+service+"\n")+flushPkt); err != nil {
			return nil // the client went away
		}
	}
	_, _ = c.w.Write(out.Stdout) // the client may have gone away
	return nil
}

// freshen lets the target be fetched from upstream first. An upstream that is
// slow or down stops no sandbox.
func (c *gitCall) freshen() {
	if c.fresh == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), c.lim.FreshFor)
	defer cancel()
	if err := c.fresh.Fresh(ctx, c.grant.ID); err != nil {
		c.log.Warn("serving a repository that may be behind upstream", "rig", c.grant.ID.String(), "err", err)
	}
}

// fetch answers upload-pack. The request is small and read whole first, so
// that the answer can stream.
func (c *gitCall) fetch() error {
	body, err := c.body(c.lim.FetchBytes)
	if err != nil {
		return err
	}
	req, err := io.ReadAll(body)
	if err != nil {
		return bodyError(err)
	}
	c.header(uploadPack + "-result")
	cmd := c.fetchCmd()
	cmd.Stdin = bytes.NewReader(req)
	sent := &flushWriter{w: c.w, rc: http.NewResponseController(c.w)}
	cmd.Stdout = sent
	if _, err := c.hub.Git().Do(c.r.Context(), cmd); err != nil {
		if !sent.started {
			return upErr(err)
		}
		// Too late for a status: the protocol's own error packets, or the cut, tell the client.
		c.log.Debug("a fetch ended early", "rig", c.grant.ID.String(), "err", err)
	}
	return nil
}

// upErr tells a request that git did not accept from a failure of ours.
func upErr(err error) error {
	if git.Code(err) > 0 {
		return errs.Wrap(errs.Invalid, err, "git did not accept the request")
	}
	return err
}

// errTooLarge is what a bounded body returns at its limit.
var errTooLarge = errors.New("the request is larger than allowed")

// body returns the request's body, unpacked, that fails after limit bytes.
func (c *gitCall) body(limit int64) (io.Reader, error) {
	var src io.Reader = c.r.Body
	switch enc := c.r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(c.r.Body)
		if err != nil {
			return nil, errs.New(errs.Invalid, "the request is not gzip, though it says so")
		}
		src = z
	default:
		return nil, errs.New(errs.Invalid, "the content encoding %.20q is not supported", enc)
	}
	return &boundedReader{r: src, left: limit}, nil
}

func bodyError(err error) error {
	if errors.Is(err, errTooLarge) {
		return errs.New(errs.Invalid, "%s", errTooLarge)
	}
	return errs.Wrap(errs.Invalid, err, "reading the request")
}

type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// One byte more tells a body that ends here from one that goes on.
		var one [1]byte
		if n, err := b.r.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, errTooLarge
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// flushWriter sends each piece at once, as progress is worth nothing later.
type flushWriter struct {
	w       io.Writer
	rc      *http.ResponseController
	started bool
}

func (f *flushWriter) Write(p []byte) (int, error) {
	f.started = true
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}
