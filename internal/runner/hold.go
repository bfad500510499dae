package runner

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/runner/wire"
)

const (
	// holdFor is how long a request waits for a server that is away.
	holdFor = 2 * time.Minute
	// holdFirst and holdMost are the pauses between two looks.
	holdFirst, holdMost = 50 * time.Millisecond, time.Second
	// holdCuts is how often a request is sent again that the server had, perhaps,
	// before its connection broke: more often, and it may be what breaks it.
	holdCuts = 2
	// keepBody is how much of a request is kept to be sent again, in bytes, and
	// keepAll of all requests together. What is larger is held only until the
	// server has read of it.
	keepBody = 8 << 20
	keepAll  = 64 << 20
)

// holder is a transport that holds requests over a restart of the server. A
// request waits while the server can't be reached, or says that it is away, until
// its first answer, its sender's end, or the time is over. Whatever else the server
// answers is the answer: nothing is tried again that was answered.
type holder struct {
	next http.RoundTripper
	log  *slog.Logger
	cuts int           // how often a request is sent again whose connection broke
	kept *atomic.Int64 // bytes of all requests that are kept
}

// RoundTrip implements http.RoundTripper.
func (h *holder) RoundTrip(r *http.Request) (res *http.Response, err error) {
	s := &spool{src: r.Body, kept: h.kept}
	defer func() { s.forget(err != nil) }()
	end := time.Now().Add(holdFor)
	cuts, pause := 0, holdFirst
	for tries := 0; ; tries++ {
		res, err = h.next.RoundTrip(s.request(r))
		why, cut := away(res, err)
		if why == "" || r.Context().Err() != nil || time.Until(end) <= pause {
			return res, err
		}
		if cut {
			cuts++
		}
		if cuts > h.cuts || !s.again() {
			return res, err
		}
		if res != nil {
			// Only whether it closes would be news, and the connection is not needed.
			_ = res.Body.Close()
		}
		if tries == 0 {
			h.log.Warn("a request is held until the server is back", "path", r.URL.Path, "why", why)
			// Whether its sender leaves shows only once the request was read.
			go s.fill()
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(pause):
		}
		pause = min(pause*2, holdMost)
	}
}

// away says why a try was none, "" when it was answered; cut means that the server
// may have had the request.
func away(res *http.Response, err error) (why string, cut bool) {
	var op *net.OpError
	switch {
	case err == nil && res.StatusCode == http.StatusServiceUnavailable && res.Header.Get(wire.HeaderAway) != "":
		return "the server says that it is away", false
	case err == nil, errors.Is(err, errSpool):
		return "", false
	case errors.As(err, &op) && op.Op == "dial":
		return "the server can't be reached", false
	}
	return "the connection to the server broke", true
}

// errSpool is the end of a request of which its sender did not send all.
var errSpool = errors.New("the request did not arrive whole")

// spool keeps what was read of a request's body, so that it can be sent again.
type spool struct {
	kept *atomic.Int64

	mu   sync.Mutex // guards all below, and reading of src
	src  io.ReadCloser
	buf  []byte
	err  error   // the end of src
	lost bool    // something was read that is not kept
	done bool    // nothing is kept any more
	last *reader // of the newest try
}

// request is r with the body from its beginning.
func (s *spool) request(r *http.Request) *http.Request {
	if s.src == nil || s.src == http.NoBody {
		return r.Clone(r.Context())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		s.last.over.Store(true) // the transport may still read for the try before
	}
	s.last = &reader{s: s}
	out := r.Clone(r.Context())
	out.Body = s.last
	return out
}

// again reports whether all that was read is kept.
func (s *spool) again() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.lost
}

// fill reads all that can be kept.
func (s *spool) fill() {
	if s.src == nil {
		return
	}
	for {
		s.mu.Lock()
		more := !s.done && s.err == nil && len(s.buf) < keepBody-copySize && s.kept.Load() < keepAll-copySize
		if more {
			_, _ = s.read(make([]byte, copySize)) // s.err keeps what went wrong
		}
		s.mu.Unlock()
		if !more {
			return
		}
	}
}

const copySize = 32 << 10

// read reads a piece of the source and keeps it, with the lock held.
func (s *spool) read(p []byte) (int, error) {
	n, err := s.src.Read(p)
	s.err = err
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = errSpool
	}
	switch {
	case s.done || s.lost || n == 0:
	case len(s.buf)+n > keepBody || s.kept.Load()+int64(n) > keepAll:
		s.lost = true
		s.drop()
	default:
		s.buf = append(s.buf, p[:n]...)
		s.kept.Add(int64(n))
	}
	return n, s.err
}

func (s *spool) drop() {
	s.kept.Add(-int64(len(s.buf)))
	s.buf = nil
}

// forget keeps nothing any more: the answer has begun, and the last try still gets
// what it has not read yet, or it failed. Nobody waits for the lock, which a slow
// sender may hold.
func (s *spool) forget(failed bool) {
	go func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.done = true
		if failed && s.last != nil {
			s.last.over.Store(true)
		}
		s.release()
	}()
}

// release frees what nobody will read, with the lock held.
func (s *spool) release() {
	if t := s.last; s.done && (t == nil || t.over.Load() || t.at >= len(s.buf)) {
		s.drop()
	}
}

// reader is the body of one try.
type reader struct {
	s    *spool
	over atomic.Bool
	at   int // guarded by the spool's lock
}

// Read reads what is kept, then the source.
func (t *reader) Read(p []byte) (int, error) {
	s := t.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case t.over.Load():
		return 0, errSpool
	case t.at < len(s.buf):
		n := copy(p, s.buf[t.at:])
		t.at += n
		s.release()
		return n, nil
	case s.err != nil:
		return 0, s.err
	}
	n, err := s.read(p)
	if !s.lost && !s.done {
		t.at += n
	}
	return n, err
}

// Close ends the try; the source belongs to the server of the loopback.
func (t *reader) Close() error {
	t.over.Store(true)
	go func() {
		t.s.mu.Lock()
		defer t.s.mu.Unlock()
		t.s.release()
	}()
	return nil
}

// holding returns a transport for what is forwarded.
func (l *loopback) holding(cuts int) http.RoundTripper {
	return &holder{next: l.api.transport, log: l.log, cuts: cuts, kept: &l.kept}
}
