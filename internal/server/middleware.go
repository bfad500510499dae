package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
)

const (
	normalBody    = 1 << 20
	drainBody     = 32 << 20 // read and thrown away, so that a client hears the refusal of its too large body
	bodyTimeout   = 60 * time.Second
	answerTimeout = 90 * time.Second
	writeTimeout  = 15 * time.Second // of one piece of a stream
)

// serve is the outermost handler: who may, how much, how long, and the record.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	rec := &recorder{ResponseWriter: w, r: r}
	defer func() {
		if v := recover(); v != nil {
			s.recovered(rec, v)
		}
		took := time.Since(begin)
		s.metrics.observe(rec.r, rec.code(), took)
		if s.log.Enabled(r.Context(), slog.LevelDebug) {
			s.log.Debug("request", "route", route(rec.r), "status", rec.code(), "ms", took.Milliseconds())
		}
	}()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	_, pattern := s.mux.Handler(r)
	if !open(r.URL.Path) {
		h.Set("Cache-Control", "no-store")
		leave, err := s.admit(r, pattern)
		if err != nil {
			s.fail(rec, err)
			return
		}
		defer leave()
	}
	if strings.ContainsRune(r.URL.Path, 0) {
		s.fail(rec, errs.New(errs.Invalid, "the address has a NUL byte"))
		return
	}
	body, ok := s.receive(rec, r, pattern)
	if !ok {
		return
	}
	c := &call{who: who(r), body: body}
	// The mux notes the pattern in the request that it is given.
	rec.r = r.WithContext(context.WithValue(r.Context(), keyCall, c))
	s.mux.ServeHTTP(rec, rec.r)
}

// open reports whether a path needs no token.
func open(path string) bool {
	switch path {
	case "/healthz", "/readyz", "/openapi.json", "/docs", "/docs/docs.js", "/docs/docs.css":
		return true
	}
	return false
}

func route(r *http.Request) string {
	if r.Pattern == "" {
		return "(none)" // not the method: strangers could fill the metrics with invented ones
	}
	return r.Pattern
}

// receive reads the body, within its limit, before anything else happens: a
// deadline for reading that outlived the body would end long requests.
func (s *Server) receive(w *recorder, r *http.Request, pattern string) ([]byte, bool) {
	limit, special := s.limits[pattern]
	if !special {
		limit = normalBody
	}
	rc := http.NewResponseController(w.ResponseWriter)
	// Recorders in tests know no deadlines.
	deadlines := func(read, write time.Time) { _, _ = rc.SetReadDeadline(read), rc.SetWriteDeadline(write) }
	if limit < 0 || s.streamed[pattern] {
		deadlines(time.Time{}, time.Time{})
		return nil, true
	}
	deadlines(time.Now().Add(bodyTimeout), time.Time{})
	body, err := readBody(r, limit)
	if err != nil {
		deadlines(time.Now().Add(5*time.Second), time.Now().Add(10*time.Second))
		var p *problem
		if errors.As(err, &p) {
			// Only a client that has finished sending reads an answer.
			_, _ = io.CopyN(io.Discard, r.Body, drainBody)
		}
		s.fail(w, err)
		return nil, false
	}
	write := time.Now().Add(answerTimeout)
	if s.long[pattern] {
		write = time.Time{}
	}
	deadlines(time.Time{}, write)
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body, true
}

func readBody(r *http.Request, limit int64) ([]byte, error) {
	tooLarge := newProblem(http.StatusRequestEntityTooLarge, errs.Invalid, "the request body is too large")
	tooLarge.Hint = "this address takes at most " + size(limit)
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	if r.Body == nil || r.ContentLength == 0 {
		return nil, nil
	}
	buf := make([]byte, 0, max(r.ContentLength, 0)+512)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Body.Read(buf[len(buf):min(cap(buf), len(buf)+1<<20)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, tooLarge
		}
		if errors.Is(err, io.EOF) {
			return buf, nil
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "the request body did not arrive whole")
		}
	}
}

func (s *Server) recovered(w *recorder, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // the way to cut a connection; net/http knows it
	}
	s.log.Error("a request panicked", "route", route(w.r), "panic", v, "stack", string(debug.Stack()))
	if w.status == 0 {
		newProblem(http.StatusInternalServerError, errs.Internal, "the server failed; its log says more").write(w)
	}
}

// recorder notes the status, and turns the mux's own plain refusals into problems.
type recorder struct {
	http.ResponseWriter
	r      *http.Request
	status int
	mute   bool // the body that follows belongs to a replaced answer
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status.
func (w *recorder) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	// 1xx are not the answer yet.
	if status >= 200 {
		w.status = status
	}
	if w.r.Pattern == "" && (status == http.StatusNotFound || status == http.StatusMethodNotAllowed) &&
		w.Header().Get("Content-Type") != api.ProblemType {
		w.mute = true
		p := newProblem(status, errs.NotFound, "there is nothing at this address")
		if status == http.StatusMethodNotAllowed {
			p = newProblem(status, errs.Invalid, "this address takes "+w.Header().Get("Allow"))
		}
		p.Hint = "see /docs"
		p.write(w.ResponseWriter)
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.mute {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

func (w *recorder) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}
