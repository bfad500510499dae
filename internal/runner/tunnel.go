package runner

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner/wire"
)

// tunnelTimeout bounds how long the server may take to connect.
const tunnelTimeout = time.Minute

// tunnel asks the server for a connection to a host, for the run or the gates
// that header names. A refusal has the server's own words.
func (a *api) tunnel(ctx context.Context, host string, header http.Header) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, tunnelTimeout)
	defer cancel()
	used := a.bearer()
	conn, err := a.upgrade(ctx, host, header, used)
	if !errs.Is(err, errs.Unauthorized) {
		return conn, err
	}
	if err := a.exchange(ctx, used); err != nil {
		return nil, err
	}
	return a.upgrade(ctx, host, header, a.bearer())
}

func (a *api) upgrade(ctx context.Context, host string, header http.Header, token string) (_ net.Conn, err error) {
	u := *a.base
	u.Path += wire.PathTunnel
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "asking for a tunnel")
	}
	req.Header = header.Clone()
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", wire.TunnelProtocol)
	req.Header.Set(wire.HeaderHost, host)
	conn, err := a.connect(ctx)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the server can't be reached")
	}
	stop := context.AfterFunc(ctx, func() {
		// What is waited for below ends with that.
		_ = conn.SetDeadline(time.Now())
	})
	defer func() {
		if err == nil && !stop() {
			err = errs.New(errs.Unavailable, "the server took too long")
		}
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	if err = req.Write(conn); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the server can't be reached")
	}
	br := bufio.NewReader(conn)
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the server's answer was cut off")
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return &begunConn{Conn: conn, r: br}, nil
	}
	// A refusal without its text is one all the same.
	body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err = (answer{status: res.StatusCode, header: res.Header, body: body}).err(); err == nil {
		err = errs.New(errs.Internal, "the server answered a request for a tunnel with status %d", res.StatusCode)
	}
	return nil, err
}

// connect opens a connection to the server, as the transport does.
func (a *api) connect(ctx context.Context) (net.Conn, error) {
	host := a.base.Host
	if !strings.Contains(host, ":") {
		host = net.JoinHostPort(a.base.Hostname(), map[string]string{"https": "443"}[a.base.Scheme])
		if a.base.Scheme == "http" {
			host = net.JoinHostPort(a.base.Hostname(), "80")
		}
	}
	conn, err := a.transport.DialContext(ctx, "tcp", host)
	if err != nil || a.base.Scheme != "https" {
		return conn, err
	}
	secure := tls.Client(conn, &tls.Config{ServerName: a.base.Hostname()})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
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
