package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/errs"
)

// ErrPrivate says that a name leads only to addresses that were not meant: those
// of the server's own network.
var ErrPrivate = errors.New("the name leads to the server's own network")

const (
	resolveTimeout = 10 * time.Second
	dialTimeout    = 10 * time.Second // of one address
	maxAddresses   = 8                // that are tried
	// TunnelIdle is how long a tunnel may be silent in both directions.
	TunnelIdle = 10 * time.Minute
	// TunnelBytes is how much a tunnel carries, both directions together.
	TunnelBytes = 8 << 30
)

// Dialer connects sandboxes to hosts that their rig opens. The zero value asks
// the system.
type Dialer struct {
	// Lookup resolves a name; nil asks the system.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Own are the addresses of this machine with their networks; nil asks the system.
	Own func() ([]net.Addr, error)
}

// Dial connects to a name, or to ip where that is valid. Every address is looked
// at after the name was resolved, and exactly that address is dialled: what a
// name means a moment later changes nothing. Unless private, addresses that are
// not public are passed over; ErrPrivate says that there were no others.
func (d *Dialer) Dial(ctx context.Context, name string, ip netip.Addr, port uint16, private bool) (net.Conn, error) {
	ips := []netip.Addr{ip}
	if !ip.IsValid() {
		var err error
		if ips, err = d.resolve(ctx, name); err != nil {
			return nil, err
		}
	}
	inward := false
	var last error
	for _, ip := range ips {
		ip = ip.Unmap().WithZone("")
		if !private && (!Public(ip) || d.near(ip)) {
			inward = true
			continue
		}
		dialer := net.Dialer{Timeout: dialTimeout}
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(ip, port).String())
		if err == nil {
			return conn, nil
		}
		last = err
	}
	if last == nil && inward {
		return nil, ErrPrivate
	}
	if errs.Is(last, errs.Unavailable) || last == nil {
		return nil, last
	}
	return nil, errs.New(errs.Unavailable, "no connection to port %d: %s", port, cause(last))
}

// near reports whether an address is this machine's, or of a network that it is
// in: what listens there counts on a firewall that is passed from inside. Public
// addresses of IPv6 are mostly such.
func (d *Dialer) near(ip netip.Addr) bool {
	own := d.Own
	if own == nil {
		own = net.InterfaceAddrs
	}
	addrs, err := own()
	if err != nil {
		return true // nothing is opened that is not known
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.Contains(ip.AsSlice()) {
			return true
		}
	}
	return false
}

func (d *Dialer) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	lookup := d.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
			// The dot: no search list of the server's own network is tried.
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name+".")
		}
	}
	ips, err := lookup(ctx, name)
	if err != nil || len(ips) == 0 {
		return nil, errs.New(errs.Unavailable, "the server can't resolve the name")
	}
	return ips[:min(len(ips), maxAddresses)], nil
}

// cause leaves out addresses, which are nobody's business in a sandbox.
func cause(err error) string {
	var op *net.OpError
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return "it can't be reached"
}

// Public reports whether an address belongs to the open internet: not to this
// machine, its network, or ranges that lead inwards by another name.
func Public(ip netip.Addr) bool {
	ip = ip.Unmap()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range []string{"100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "0.0.0.0/8", "192.88.99.0/24",
		"168.63.129.16/32", // what machines on Azure ask for their secrets
		"64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "fec0::/10"} {
		if netip.MustParsePrefix(p).Contains(ip) {
			return false
		}
	}
	return true
}

// Pipe carries bytes both ways until both sides have ended, one fails, ctx ends,
// neither says anything for idle, or limit bytes have passed. It closes both.
func Pipe(ctx context.Context, a, b net.Conn, idle time.Duration, limit int64) {
	stop := sync.OnceFunc(func() {
		// Whoever reads or writes meets the end; an error says nothing more.
		_, _ = a.Close(), b.Close()
	})
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	var left atomic.Int64
	left.Store(limit)
	timer := time.AfterFunc(idle, stop)
	defer timer.Stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			if err := carry(way[1], way[0], func(n int) bool { timer.Reset(idle); return left.Add(-int64(n)) >= 0 }); err != nil {
				stop()
			}
		})
	}
	both.Wait()
}

// carry copies from src to dst and passes the end on.
func carry(dst, src net.Conn, count func(int) bool) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if !count(n) {
				return errs.New(errs.Overloaded, "the tunnel carried all it may")
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			half, ok := dst.(interface{ CloseWrite() error })
			if !ok {
				return err
			}
			return half.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}
