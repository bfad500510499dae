package process

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/sandbox"
	"gastown/internal/sandbox/sandboxtest"
)

// firstProcess makes a test binary the first process of a box.
const firstProcess = "init"

// boxed opens a driver whose sandboxes are boxes. Where there can be none the test is
// skipped, unless GASTOWN_TEST_BWRAP says that there must be.
func boxed(t *testing.T, cfg Config) *Driver {
	t.Helper()
	cfg.Isolation, cfg.Init = Bwrap, []string{os.Args[0], firstProcess}
	d, err := New(t.Context(), cfg)
	if err != nil && os.Getenv("GASTOWN_TEST_BWRAP") != "" {
		t.Fatalf("bubblewrap must work here: %v", err)
	}
	if err != nil {
		t.Skipf("NOT TESTED: there can be no box of bubblewrap: %v", err)
	}
	t.Cleanup(func() { shut(t, d) })
	return d
}

func TestConformanceInBoxes(t *testing.T) {
	t.Parallel()
	sandboxtest.Run(t, func(t *testing.T) sandboxtest.Setup {
		root, exchange := t.TempDir(), t.TempDir()
		return sandboxtest.Setup{
			Open: func(t *testing.T) sandbox.Driver {
				return boxed(t, Config{Root: root, Binds: []Bind{{Outside: exchange, Inside: "/run/exchange"}}})
			},
			Drop:           func(t *testing.T, d sandbox.Driver) { shut(t, d.(*Driver)) },
			Helper:         os.Args[0],
			Exchange:       exchange,
			ExchangeInside: "/run/exchange",
		}
	})
}

// dials makes a test binary dial an address, as its exit code says.
const dials = "dial"

const (
	reached    = 7
	notReached = 8
)

func dial(addr string) int {
	c, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		return notReached
	}
	_ = c.Close() // it was reached
	return reached
}

// run runs a command in a box until it ends and returns its exit code and what
// it wrote to the file "out" on its disk.
func run(t *testing.T, d *Driver, town string, command ...string) (int, string) {
	t.Helper()
	ref, err := d.Start(context.Background(), sandbox.Spec{Town: town, Generation: 1, Command: command, Token: []byte("t")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(context.Background(), sandbox.Ref{Town: town}); err != nil {
			t.Error(err)
		}
	})
	sandboxtest.AwaitExit(t, d, ref)
	st, err := d.Inspect(context.Background(), ref)
	if err != nil || st.State != sandbox.Gone {
		t.Fatalf("after its end the sandbox is %+v, %v", st, err)
	}
	out, err := os.ReadFile(filepath.Join(d.disk(town), "out"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return st.ExitCode, string(out)
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("secret"), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func TestABoxSeesNothingOfTheServerTheUserOtherTownsOrTheHost(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	data, home, shown := filepath.Join(outside, "data"), filepath.Join(outside, "home"), filepath.Join(outside, "shown")
	root := filepath.Join(data, "sandboxes")
	secret, private, other := filepath.Join(data, "admin.token"), filepath.Join(home, "key"), filepath.Join(root, "beta", "disk", "work")
	visible, key, below := filepath.Join(shown, "file"), filepath.Join(shown, "tls.key"), filepath.Join(shown, "data", "token")
	for _, path := range []string{secret, private, other, visible, key, below} {
		writeFile(t, path)
	}
	link := filepath.Join(outside, "link")
	if err := os.Symlink(filepath.Dir(below), link); err != nil {
		t.Fatal(err)
	}
	d := boxed(t, Config{Root: root, Show: []string{shown}, Hide: []string{data, home, key, link, filepath.Join(outside, "missing")}})
	script := `exec >out
	for f in "$@"; do cat "$f" >/dev/null 2>&1 && echo "read $f"; SHOWN=$(dirname "$f"); done
	for f in /usr /etc / "$SHOWN"; do (: >"$f/written") 2>/dev/null && echo "wrote $f"; done
	for d in "$HOME" "$TMPDIR" /tmp /var/tmp /dev/shm "$GASTOWN_DISK"; do (: >"$d/written") 2>/dev/null || echo "can't write $d"; done
	test -e /proc/` + strconv.Itoa(os.Getpid()) + `/environ && grep -q process.test /proc/` + strconv.Itoa(os.Getpid()) + `/cmdline && echo "sees the host's processes"
	kill -0 ` + strconv.Itoa(os.Getpid()) + ` 2>/dev/null && echo "signals the host's processes"
	test "$(ls /proc | grep -c '^[0-9]')" -lt 12 || echo "many processes"
	cat /etc/shadow >/dev/null 2>&1 && echo "read shadow"
	exit 3`
	code, out := run(t, d, "alpha", "/bin/sh", "-c", script, "sh", secret, private, other, key, below, d.book.Dir("alpha")+"/gen.json", "/proc/1/environ", "/proc/1/mem", visible)
	// What else the box of an ordinary user can read is the user's own environment in it.
	out = strings.ReplaceAll(out, "read /proc/1/environ\n", "")
	if code != 3 || out != "read "+visible+"\n" {
		t.Errorf("exit code %d, and what was possible is %q; want to read %s alone", code, out, visible)
	}
}

func TestABoxReachesNoListenerOfTheHostUnlessItHasItsNetwork(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for network, want := range map[bool]int{false: notReached, true: reached} {
		d := boxed(t, Config{Root: t.TempDir(), Network: network})
		if code, _ := run(t, d, "alpha", os.Args[0], dials, l.Addr().String()); code != want {
			t.Errorf("with the host's network %v: exit code %d, want %d", network, code, want)
		}
		if says := strings.Contains(d.Isolation(), "network"); says != network {
			t.Errorf("with the host's network %v it says %q", network, d.Isolation())
		}
	}
}

func TestADiskOfAnotherUserIsThrownAway(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("a box has its own user only where the server is root")
	}
	root := t.TempDir()
	plain := open(t, root)
	if err := plain.makeDisk("alpha", false); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(plain.disk("alpha"), "kept")
	writeFile(t, kept)
	if err := plain.makeDisk("alpha", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a disk of the same user was not kept: %v", err)
	}
	if err := boxed(t, Config{Root: root}).makeDisk("alpha", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kept); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a box got files of another user: %v", err)
	}
}

func TestWhatKeepsBoxesAwayIsSaid(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "bwrap")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho 'no permission to make namespaces' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, want string }{
		"broken": {filepath.Dir(broken) + ":" + os.Getenv("PATH"), "no permission to make namespaces"},
		"absent": {t.TempDir(), "bubblewrap is not installed"},
	} {
		t.Setenv("PATH", c.path)
		cfg := Config{Root: t.TempDir(), Isolation: Auto, Init: []string{os.Args[0], firstProcess}}
		d, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatalf("%s: without bubblewrap there is no driver: %v", name, err)
		}
		t.Cleanup(func() { shut(t, d) })
		if d.Boxed() || !strings.Contains(d.Isolation(), c.want) {
			t.Errorf("%s: boxed %v, it says %q; want the reason %q", name, d.Boxed(), d.Isolation(), c.want)
		}
		cfg.Isolation = Bwrap
		if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: forced, the error is %v; want %q", name, err, c.want)
		}
	}
}

func TestToolsAreShownButNoHome(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	for _, dir := range []string{"a/bin", "a/lib", "sdk/bin", "sdk/pkg/tool", "node_modules/.bin", "mine/.bin", "own"} {
		if err := os.MkdirAll(filepath.Join(home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var path []string
	for _, dir := range []string{"a/bin", "sdk/bin", "node_modules/.bin", "mine/.bin", "own", "missing", ""} {
		path = append(path, filepath.Join(home, dir))
	}
	got := tools(strings.Join(append(path, "relative", ""), ":"), []string{home})
	want := []string{"a/bin", "a/lib", "sdk", "node_modules", "mine/.bin", "own"}
	for i := range want {
		want[i] = filepath.Join(home, want[i])
	}
	if !slices.Equal(got, want) {
		t.Errorf("tools are %q, want %q", got, want)
	}
}

// As root the suite runs once more as an ordinary user, for whom boxes are made in
// another way.
func TestBoxesOfAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("the other tests are of an ordinary user already")
	}
	dir, err := os.MkdirTemp("/tmp", "gastown-box-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program, tmp := filepath.Join(dir, "process.test"), filepath.Join(dir, "tmp")
	raw, err := os.ReadFile(os.Args[0])
	const user = 65533
	if err := errors.Join(err, os.Chmod(dir, 0o711), os.WriteFile(program, raw, 0o755), os.Mkdir(tmp, 0o700), os.Chown(tmp, user, user)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run=Box", "-test.v", "-test.timeout=5m")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("as an ordinary user: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "NOT TESTED") {
		t.Skipf("NOT TESTED: an ordinary user can't make boxes here:\n%.500s", out)
	}
}
