package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

func TestNamesThatLeadInwardsAreNotDialled(t *testing.T) {
	t.Parallel()
	for _, ip := range []string{"127.0.0.1", "::1", "::ffff:127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "fe80::1%lo", "fc00::1",
		"0.0.0.0", "::", "100.64.0.1", "224.0.0.1", "255.255.255.255", "64:ff9b::7f00:1", "2002:7f00:1::1", "::7f00:1", "fec0::1", "198.18.0.1", "168.63.129.16"} {
		d := Dialer{Lookup: func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(ip)}, nil }}
		if conn, err := d.Dial(t.Context(), "a.test", netip.Addr{}, 9, false); !errors.Is(err, ErrPrivate) {
			t.Errorf("%s gave %v, %v", ip, conn, err)
		}
		if Public(netip.MustParseAddr(ip)) {
			t.Errorf("%s is called public", ip)
		}
	}
	for _, ip := range []string{"1.1.1.1", "2606:4700::1111", "172.32.0.1"} {
		if !Public(netip.MustParseAddr(ip)) {
			t.Errorf("%s is not public", ip)
		}
	}
}

func TestTheMachinesOwnNetworkIsNotDialledByItsPublicAddresses(t *testing.T) {
	t.Parallel()
	own := func() ([]net.Addr, error) {
		return []net.Addr{
			&net.IPNet{IP: net.ParseIP("203.0.113.7"), Mask: net.CIDRMask(28, 32)},
			&net.IPNet{IP: net.ParseIP("2a00:1:2:3::7"), Mask: net.CIDRMask(64, 128)},
		}, nil
	}
	for ip, near := range map[string]bool{"203.0.113.7": true, "::ffff:203.0.113.1": true, "203.0.113.16": false,
		"2a00:1:2:3::7": true, "2a00:1:2:3:4::1": true, "2a00:1:2:4::7": false} {
		d := Dialer{Own: own, Lookup: func(context.Context, string) ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr(ip)}, nil }}
		if got := d.near(netip.MustParseAddr(ip).Unmap()); got != near {
			t.Errorf("%s is near: %v", ip, got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what may be dialled is not
		if _, err := d.Dial(ctx, "a.test", netip.Addr{}, 9, false); errors.Is(err, ErrPrivate) != near {
			t.Errorf("%s gave %v", ip, err)
		}
	}
	blind := Dialer{Own: func() ([]net.Addr, error) { return nil, errors.New("no answer") }}
	if !blind.near(netip.MustParseAddr("203.0.113.7")) {
		t.Error("an address is opened of which nothing is known")
	}
}

func TestTheAddressThatWasCheckedIsDialled(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	looks := 0
	d := Dialer{Lookup: func(context.Context, string) ([]netip.Addr, error) {
		looks++
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}
	conn, err := d.Dial(t.Context(), "a.test", netip.Addr{}, netip.MustParseAddrPort(ln.Addr().String()).Port(), true)
	if err != nil || looks != 1 {
		t.Fatalf("%v after %d looks", err, looks)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestATunnelHasAnEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit int64
		after time.Duration
		end   func(cancel func())
	}{
		"when nothing is said": {1 << 20, time.Minute, func(func()) {}},
		"at its limit":         {10, 0, func(func()) {}},
		"with its context":     {1 << 20, 0, func(cancel func()) { cancel() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a, inside := net.Pipe()
				b, outside := net.Pipe()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				begin := time.Now()
				go func() {
					_, _ = io.WriteString(inside, "12345678") // the tunnel may end before it is taken
					_, _ = io.WriteString(outside, "12345678")
					c.end(cancel)
				}()
				go func() { _, _ = io.Copy(io.Discard, outside) }() // until the end
				go func() { _, _ = io.Copy(io.Discard, inside) }()
				Pipe(ctx, a, b, time.Minute, c.limit)
				if took := time.Since(begin); took != c.after {
					t.Errorf("it ended after %s, not %s", took, c.after)
				}
				_, _ = inside.Close(), outside.Close() // closed on the other side already
			})
		})
	}
}
