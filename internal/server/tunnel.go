package server

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// ofItsTunnels is how many tunnels a sandbox may have at a time.
const ofItsTunnels = 256

// tunnel connects an agent or a gate to a host that its rig opens. Nothing that
// the sandbox says of the list is believed: the server looks at its own, resolves
// the name and dials. The tunnel ends with the run or the gates, and when its host
// is taken off the list.
func (s *Server) tunnel(c *sandboxCall) error {
	host, err := town.ParseHost(c.r.Header.Get(wire.HeaderHost))
	if err != nil {
		return err
	}
	if !strings.EqualFold(c.r.Header.Get("Upgrade"), wire.TunnelProtocol) {
		return errs.New(errs.Invalid, "a tunnel is asked for by an upgrade to %s", wire.TunnelProtocol)
	}
	ctx, cancel := s.untilStop(c.r.Context())
	defer cancel()
	// Watched from before the first look, so that no end falls between.
	changed, unwatch := s.hall.Watch(c.Town)
	rig, rule, err := s.hostAccess(c, host)
	if err != nil {
		unwatch()
		return err
	}
	out, err := s.dialer().Dial(ctx, host.Name, host.IP, host.Port, rule.Private)
	if errors.Is(err, gateway.ErrPrivate) {
		err = s.privateHost(c, rig, host)
	}
	if err != nil {
		unwatch()
		return errs.Wrap(errs.KindOf(err), err, "connecting to %s", host)
	}
	in, err := hijack(c.w)
	if err != nil {
		unwatch()
		return errors.Join(err, out.Close())
	}
	go func() {
		defer cancel()
		s.whileOpen(ctx, c, host, rule.Private, changed, unwatch)
	}()
	gateway.Pipe(ctx, in, out, gateway.TunnelIdle, gateway.TunnelBytes)
	return nil
}

func (s *Server) dialer() *gateway.Dialer {
	if s.cfg.Dialer != nil {
		return s.cfg.Dialer
	}
	return &gateway.Dialer{}
}

// whileOpen returns when the tunnel may not be any more, or ctx ended. It looks
// after commits to the town only.
func (s *Server) whileOpen(ctx context.Context, c *sandboxCall, host town.Host, private bool, changed <-chan struct{}, unwatch func()) {
	defer func() { unwatch() }()
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-changed:
			if !open { // signalled by closing: watch anew
				unwatch()
				changed, unwatch = s.hall.Watch(c.Town)
			}
		}
		_, rule, err := s.hostAccess(c, host)
		if errs.Is(err, errs.Gone) || errs.Is(err, errs.Forbidden) || err == nil && private && !rule.Private {
			return
		}
	}
}

// hostAccess finds the rig for which a sandbox asks, and what opens the host to it.
func (s *Server) hostAccess(c *sandboxCall, host town.Host) (rig string, rule town.HostRule, err error) {
	err = s.currentTown(c, func(t *town.Town) error {
		if rig, err = s.rigOf(c, t); err != nil {
			return err
		}
		rule, err = t.HostAccess(rig, host)
		return err
	})
	return rig, rule, err
}

func (s *Server) privateHost(c *sandboxCall, rig string, host town.Host) (err error) {
	if viewErr := s.currentTown(c, func(t *town.Town) error { err = t.PrivateHost(rig, host); return nil }); viewErr != nil {
		return viewErr
	}
	return err
}

// rigOf is the rig of the run, or of the gates, for which a request is made.
func (s *Server) rigOf(c *sandboxCall, t *town.Town) (string, error) {
	h := c.r.Header
	if bead := h.Get(wire.HeaderGates); bead != "" {
		b, ok := t.Bead(bead)
		n, err := strconv.Atoi(h.Get(wire.HeaderEpoch))
		if !ok || err != nil || !t.Gating(bead) || b.Merge.N != n {
			return "", errs.New(errs.Gone, "the gates of bead %s are over", printable(bead, 60))
		}
		return b.Rig, nil
	}
	run, epoch, err := runOf(h.Get(wire.HeaderRun), h.Get(wire.HeaderEpoch))
	if err != nil {
		return "", err
	}
	at, ok := t.Run(run)
	if !ok || at.Epoch != epoch || at.Generation != c.Generation {
		return "", errs.New(errs.Gone, "run %s, epoch %d, is not current", printable(run, 60), epoch)
	}
	return at.Rig, nil
}

// hijack takes the connection over and answers that the tunnel is open.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "taking the connection over")
	}
	// The deadlines were those of a request.
	err = conn.SetDeadline(time.Time{})
	if err == nil {
		_, err = buf.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + wire.TunnelProtocol + "\r\n\r\n")
	}
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "opening the tunnel"), conn.Close())
	}
	return &begunConn{Conn: conn, r: buf.Reader}, nil
}

// begunConn is a connection of which something was read already.
type begunConn struct {
	net.Conn
	r *bufio.Reader
}

// Read reads what was read before, first.
func (c *begunConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite says that nothing more comes.
func (c *begunConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errs.New(errs.Internal, "the connection can't be closed by halves")
}
