package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// problem is an api.Problem as an error of a handler.
type problem struct{ api.Problem }

// Error returns the detail.
func (p *problem) Error() string { return p.Detail }

// GetStatus is for huma.
func (p *problem) GetStatus() int { return p.Status }

// GetHeaders adds Retry-After, in whole seconds.
func (p *problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.RetryAfterMS > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(float64(p.RetryAfterMS)/1000)), 10))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="gastown"`)
	}
	return h
}

// ContentType is for huma.
func (p *problem) ContentType(string) string { return api.ProblemType }

// toProblem turns any error into a problem. The text of an internal error stays
// in the log: it may name files and queries.
func (s *Server) toProblem(err error) *problem {
	p := *s.asProblem(err)
	p.Detail, p.Hint = s.cfg.Scrub.Text(p.Detail), s.cfg.Scrub.Text(p.Hint)
	return &p
}

func (s *Server) asProblem(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	kind := errs.KindOf(err)
	status := errs.HTTPStatus(kind)
	p = newProblem(status, kind, err.Error())
	var e *errs.Error
	if errors.As(err, &e) {
		p.Detail = strings.TrimSuffix(err.Error(), " ("+e.Hint+")")
		p.Hint = e.Hint
		p.RetryAfterMS = e.RetryAfter.Milliseconds()
	}
	switch kind {
	case errs.Internal:
		s.log.Error("request failed", "err", err)
		p.Detail, p.Hint = "the server failed; its log says more", ""
	case errs.Overloaded, errs.Unavailable:
		if p.RetryAfterMS == 0 {
			p.RetryAfterMS = time.Second.Milliseconds()
		}
	}
	p.Detail = printable(p.Detail, 4096)
	p.Hint = printable(p.Hint, 1024)
	return p
}

func newProblem(status int, kind errs.Kind, detail string) *problem {
	return &problem{api.Problem{Title: http.StatusText(status), Status: status, Kind: string(kind), Detail: detail}}
}

// fromHuma turns what the framework says of a malformed request into a problem.
// It leaves out the offending value, which may be a secret.
func fromHuma(m *huma.ErrorModel) *problem {
	status := m.Status
	kind := errs.KindOfStatus(status)
	if status >= 400 && status < 500 && kind == errs.Internal {
		kind = errs.Invalid
	}
	p := newProblem(status, kind, m.Detail)
	for i, e := range m.Errors {
		if e == nil {
			continue
		}
		if i == 20 {
			break
		}
		p.Errors = append(p.Errors, api.ProblemField{Location: printable(e.Location, 200), Message: printable(e.Message, 300)})
	}
	if len(p.Errors) > 0 {
		first := p.Errors[0]
		p.Detail = first.Message
		if first.Location != "" {
			p.Detail = first.Location + ": " + first.Message
		}
		if n := len(p.Errors); n > 1 {
			p.Detail += fmt.Sprintf(" (and %d more)", n-1)
		}
	}
	return p
}

// write sends a problem outside the framework.
func (p *problem) write(w http.ResponseWriter) {
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", api.ProblemType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Del("Content-Length")
	w.WriteHeader(p.Status)
	// The client may be gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(p.Problem)
}

func (s *Server) fail(w http.ResponseWriter, err error) { s.toProblem(err).write(w) }

// printable shortens text for an answer and takes control characters out.
func printable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "�")
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit] + "…"
}
