package server

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/gateway"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// echo is a host on loopback that sends back what it gets; its port.
func echo(t *testing.T) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() }) // its loop ends
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c) // until the other side ends
				_ = c.Close()
			}()
		}
	}()
	return netip.MustParseAddrPort(ln.Addr().String()).Port()
}

// tunnelTo asks for a tunnel as a runner does.
func (l *lab) tunnelTo(token, host string, run town.DesiredRun) (*http.Response, net.Conn, *bufio.Reader) {
	l.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.http.URL, "http://"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() }) // mostly closed before
	req, err := http.NewRequest(http.MethodPost, l.http.URL+wire.PathTunnel, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {wire.TunnelProtocol}, "Authorization": {"Bearer " + token},
		wire.HeaderHost: {host}, wire.HeaderRun: {run.ID}, wire.HeaderEpoch: {strconv.FormatInt(run.Epoch, 10)}}
	if err := req.Write(conn); err != nil {
		l.t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		l.t.Fatal(err)
	}
	return res, conn, r
}

func (l *lab) refusedTunnel(token, host string, run town.DesiredRun, status int, words string) {
	l.t.Helper()
	res, _, _ := l.tunnelTo(token, host, run)
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != status || !strings.Contains(string(body), words) {
		l.t.Errorf("%s: %d %s, %v; want %d and %q", host, res.StatusCode, body, err, status, words)
	}
}

func TestATunnelLeadsWhereTheRigSays(t *testing.T) {
	t.Parallel()
	port := echo(t)
	at := func(name string) string { return net.JoinHostPort(name, strconv.Itoa(int(port))) }
	l := newLab(t, func(c *Config) {
		c.Dialer = &gateway.Dialer{Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}, nil
		}}
	})
	tn, _, token, run := l.awake()
	edit := func(e api.EditRig) {
		l.call("PATCH", "/api/v1/towns/"+tn.ID+"/rigs/web", e).want(200, nil)
	}
	l.refusedTunnel(token, at("host.test"), run, 403, "gastown rig set web --town alpha --allow-host 'host.test:"+strconv.Itoa(int(port))+"'")
	edit(api.EditRig{Allow: []string{at("host.test")}})
	l.refusedTunnel(token, at("host.test"), run, 403, "+private")
	l.refusedTunnel(token, at("127.0.0.1"), run, 403, "not open")
	edit(api.EditRig{Allow: []string{at("host.test") + "+private"}})
	l.refusedTunnel(token, "0x7f.1:80", run, 422, "host:port")
	l.refusedTunnel("nonsense", at("host.test"), run, 401, "")
	other := run
	other.Epoch++
	l.refusedTunnel(token, at("host.test"), other, 410, "not current")

	res, conn, r := l.tunnelTo(token, at("host.test"), run)
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d", res.StatusCode)
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	edit(api.EditRig{Deny: []string{at("host.test") + "+private"}})
	if _, err := r.ReadString('\n'); err == nil {
		t.Error("the tunnel outlives its entry on the list")
	}
}

func TestATunnelEndsWithItsRun(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	tn, b, token, run := l.awake()
	host := "127.0.0.1:" + strconv.Itoa(int(echo(t)))
	l.call("PATCH", "/api/v1/towns/"+tn.ID+"/rigs/web", api.EditRig{Allow: []string{host}}).want(200, nil)
	res, conn, r := l.tunnelTo(token, host, run)
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d", res.StatusCode)
	}
	l.callAs(token, "POST", wire.PathReports, wire.ReportsRequest{Stream: "s1", From: 1, Items: []town.Report{
		{Kind: town.ReportStarted, Run: run.ID, Epoch: run.Epoch, PID: 7},
		{Kind: town.ReportEnded, Run: run.ID, Epoch: run.Epoch, Outcome: town.OutcomeExited, Class: town.ClassWork, Reason: "gone"}}}).want(200, nil)
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the tunnel of bead %s is open after its run: %v", b.ID, err)
	}
}
