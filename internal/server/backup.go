package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/store"
)

const (
	gzipType     = "application/gzip"
	pieceTimeout = time.Minute // of one piece of a backup that is sent or received
)

func (s *Server) registerBackup() {
	if s.cfg.Backup != nil {
		add(s, op{method: "GET", path: "/backup", id: "backup", tag: "server", summary: "Take a backup of the whole server", errors: []int{409}, long: true,
			detail:  "One gzipped tar, made while everything goes on. It is whole only if its last member, SHA256SUMS, is there.",
			content: gzipType}, s.backup)
	}
	if s.cfg.Restore != nil {
		add(s, op{method: "POST", path: "/restore", id: "restore", tag: "server", summary: "Replace everything by a backup", errors: []int{409}, long: true,
			detail: "The body is a backup. It is checked first; then requests get 503 for the moments until the restored state is in place. " +
				"What was there is kept in a directory beside it.",
			upload: gzipType, result: api.Restored{}}, s.restore)
	}
}

type backupIn struct {
	Secrets bool `query:"secrets" doc:"With the values of all secrets and the admin token: as secret as the server itself."`
}

// backup streams. An error after the first byte cuts the connection, so that
// nobody takes a piece for the whole.
func (s *Server) backup(_ context.Context, in *backupIn) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		ctx, cancel := s.untilStop(r.Context())
		defer cancel()
		out := &pieces{w: w, rc: http.NewResponseController(w)}
		err := s.cfg.Backup(ctx, out, in.Secrets)
		switch {
		case err == nil:
		case !out.begun:
			s.fail(w, err)
		default:
			s.log.Warn("a backup was not finished", "err", err)
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

// pieces gives each piece its time, however long the whole takes.
type pieces struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

// Write implements io.Writer.
func (p *pieces) Write(b []byte) (int, error) {
	if !p.begun {
		p.begun = true
		h := p.w.Header()
		h.Set("Content-Type", gzipType)
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Disposition", `attachment; filename="gastown-backup.tar.gz"`)
	}
	// Recorders in tests know no deadlines.
	_ = p.rc.SetWriteDeadline(time.Now().Add(pieceTimeout))
	return p.w.Write(b)
}

// arriving gives each piece of an upload its time.
type arriving struct {
	r  io.Reader
	rc *http.ResponseController
}

// Read implements io.Reader.
func (a *arriving) Read(b []byte) (int, error) {
	// Likewise.
	_ = a.rc.SetReadDeadline(time.Now().Add(pieceTimeout))
	n, err := a.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = errs.Wrap(errs.Unavailable, err, "the backup did not arrive whole")
	}
	return n, err
}

func (s *Server) restore(_ context.Context, _ *struct{}) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		rc := http.NewResponseController(w)
		done, err := s.cfg.Restore(r.Context(), &arriving{r.Body, rc})
		// What is left of a refused body is read, so that a client that still sends
		// hears the answer.
		if err != nil {
			_ = rc.SetReadDeadline(time.Now().Add(pieceTimeout))
			_, _ = io.CopyN(io.Discard, r.Body, drainBody)
		}
		_ = rc.SetReadDeadline(time.Time{})
		_ = rc.SetWriteDeadline(time.Now().Add(answerTimeout))
		if err != nil {
			s.fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// The client may be gone; it was restored all the same.
		_, _ = w.Write(encode(done))
	}}, nil
}

func (s *Server) health() store.Health {
	if s.cfg.Health == nil {
		return store.Health{State: store.Healthy}
	}
	return s.cfg.Health()
}

func (s *Server) storeView() api.Store {
	h := s.health()
	return api.Store{State: string(h.State), Since: h.Since.UTC().Truncate(time.Millisecond), Cause: h.Cause, Hint: h.Hint, Check: string(h.Check)}
}

// stateText says to everybody what is wrong, without naming a file.
func stateText(s store.State) string {
	switch s {
	case store.Full:
		return "its disk is full"
	case store.ReadOnly:
		return "a write failed; it tries again by itself"
	case store.Damaged:
		return "its database is damaged; a backup must be restored"
	case store.Healthy:
	}
	return "ready"
}
