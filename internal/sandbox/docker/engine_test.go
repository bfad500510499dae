package docker

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/sandboxtest"
)

// gate is a socket in front of the engine's that can be closed, as when the
// engine is restarted.
type gate struct {
	t      *testing.T
	path   string
	engine string

	mu     sync.Mutex // guards the fields below
	listen net.Listener
	conns  []net.Conn
}

func newGate(t *testing.T) *gate {
	t.Helper()
	host := os.Getenv("DOCKER_HOST")
	if host == "" {
		host = "unix:///var/run/docker.sock"
	}
	engine, ok := strings.CutPrefix(host, "unix://")
	if !ok {
		t.Skipf("NOT TESTED: the engine at %s has no unix socket", host)
	}
	g := &gate{t: t, path: filepath.Join(t.TempDir(), "engine.sock"), engine: engine}
	g.open()
	t.Cleanup(g.shut)
	return g
}

func (g *gate) open() {
	g.t.Helper()
	l, err := net.Listen("unix", g.path)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	g.listen = l
	g.mu.Unlock()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go g.pass(in)
		}
	}()
}

func (g *gate) pass(in net.Conn) {
	out, err := net.Dial("unix", g.engine)
	if err != nil {
		_ = in.Close() // the caller sees that nobody answers
		return
	}
	g.mu.Lock()
	g.conns = append(g.conns, in, out)
	g.mu.Unlock()
	one := func(dst, src net.Conn) {
		// A broken connection is what the test is about.
		_, _ = io.Copy(dst, src)
		_ = dst.(*net.UnixConn).CloseWrite()
	}
	go one(out, in)
	one(in, out)
}

// shut cuts all connections and takes no new ones.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.listen.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		g.t.Error(err)
	}
	for _, c := range g.conns {
		_ = c.Close() // half of them are closed already
	}
	g.conns = nil
}

func TestAnEngineThatGoesAwayAndComesBackLosesNothing(t *testing.T) {
	api := engine(t)
	g := newGate(t)
	exchange := t.TempDir()
	d, err := New(t.Context(), Config{Root: t.TempDir(), Host: "unix://" + g.path, Image: new(testImage).make(t, api),
		Init: []string{"/helper", "init"}, Binds: []Bind{{Outside: exchange, Inside: "/exchange"}}})
	if err != nil {
		t.Fatal(err)
	}
	s := sandboxtest.Setup{Helper: "/helper", Exchange: exchange, ExchangeInside: "/exchange"}
	w, other := s.NewTown(t, "alpha"), s.NewTown(t, "beta")
	dies, _ := w.Start(d, w.Spec(1, "wait"))
	lives, _ := other.Start(d, other.Spec(1, "wait"))
	t.Cleanup(func() { shut(t, d) })

	g.shut()
	if st, err := d.Inspect(context.Background(), lives); err != nil || st.State != sandbox.Unknown {
		t.Errorf("without its engine a sandbox is %q, %v; want unknown", st.State, err)
	}
	if _, err := d.Start(context.Background(), other.Spec(2, "wait")); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a start without the engine: %v, want kind unavailable", err)
	}
	w.Exit(5) // nobody hears of it
	w.AllDead()
	g.open()
	sandboxtest.AwaitExit(t, d, dies)
	if st, err := d.Inspect(context.Background(), dies); err != nil || st.State != sandbox.Gone || st.ExitCode != 5 {
		t.Errorf("what died meanwhile is %+v, %v; want gone with code 5", st, err)
	}
	if st, err := d.Inspect(context.Background(), lives); err != nil || st.State != sandbox.Running {
		t.Errorf("what lived on is %+v, %v; want running", st, err)
	}
	if err := d.Stop(context.Background(), lives, time.Second); err != nil {
		t.Errorf("stop after the engine came back: %v", err)
	}
}

func TestAMissingImageOrEngineIsSaidWithWhatToDo(t *testing.T) {
	engine(t)
	_, err := New(t.Context(), Config{Root: t.TempDir(), Image: "gastown-no-such-image:latest"})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(hint(err), "make image") {
		t.Errorf("a missing image: %v, hint %q", err, hint(err))
	}
	_, err = New(t.Context(), Config{Root: t.TempDir(), Host: "unix:///nonexistent/engine.sock", Image: "x"})
	if !errs.Is(err, errs.Unavailable) || !strings.Contains(hint(err), "DOCKER_HOST") {
		t.Errorf("a missing engine: %v, hint %q", err, hint(err))
	}
}

func hint(err error) string {
	var e *errs.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Hint
}
