package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"gastown/internal/errs"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
	endTimeout    = 15 * time.Second // for requests under way when the server ends
)

// Serve answers on ln until ctx ends, then ends streams, waits for requests
// under way, at most 15 s, and returns nil. It may be called for several
// listeners; the first to end stops the streams of all. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return s.ServeHandler(ctx, ln, s.Handler(), s.Stop)
}

// ServeHandler is Serve for a handler that stands before this server's; stop ends
// the streams of whatever is behind it.
func (s *Server) ServeHandler(ctx context.Context, ln net.Listener, h http.Handler, stop func()) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12},
	}
	done := make(chan error, 1)
	go func() {
		if s.cfg.TLSCert != "" {
			done <- srv.ServeTLS(ln, s.cfg.TLSCert, s.cfg.TLSKey)
			return
		}
		done <- srv.Serve(ln)
	}()
	select {
	case err := <-done:
		stop()
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return errs.Wrap(errs.Unavailable, err, "serving on %s", ln.Addr())
	case <-ctx.Done():
	}
	stop()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	err := srv.Shutdown(end)
	if err != nil {
		s.log.Warn("requests were cut at the end", "err", err)
		err = srv.Close()
	}
	<-done
	return errs.Wrap(errs.Internal, err, "closing the server")
}
