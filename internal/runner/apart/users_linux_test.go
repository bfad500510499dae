package apart

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asRoot skips what only root can do. CI runs as root.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: starting processes as other users needs root")
	}
}

// openDir is a directory that other users reach, too.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "apart-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newKeeper makes one whose users are not those of another number's, nor of
// another process: a sweep reaches all that a user runs on this machine.
func newKeeper(t *testing.T, number int) *users {
	t.Helper()
	asRoot(t)
	first := 1_000_000 + 100*os.Getpid() + 10*number
	u, err := newUsers(first, first+9)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func enter(t *testing.T, u *users, like ...string) *userCell {
	t.Helper()
	c, err := u.enter(like)
	if err != nil {
		t.Fatal(err)
	}
	cell := c.(*userCell)
	t.Cleanup(func() {
		if err := cell.Leave(); err != nil {
			t.Error(err)
		}
	})
	return cell
}

// sh runs a script in a cell and returns what it printed.
func sh(t *testing.T, c Cell, script string) (string, error) {
	t.Helper()
	var out strings.Builder
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &out, &out
	if err := c.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	return strings.TrimSpace(out.String()), err
}

func TestWhatARunnerStartsHasNoCapability(t *testing.T) {
	asRoot(t)
	dir := openDir(t)
	exe := filepath.Join(dir, "child")
	build := exec.Command("go", "build", "-o", exe, "./testdata/child")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	as := func(args ...string) []string {
		cmd := exec.Command(exe, args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}, AmbientCaps: Caps()}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	const none = "CapInh: 0000000000000000; CapPrm: 0000000000000000; CapEff: 0000000000000000; CapAmb: 0000000000000000"
	if got := as("careless"); strings.Contains(got[0], "CapEff: 0000000000000000") {
		t.Fatalf("a program inherits no capability in any case, so this shows nothing: %s", got)
	}
	uid := func(n int) string { return fmt.Sprintf("Uid: %d %d %d %d; Groups:", n, n, n, n) }
	want := []string{uid(1000) + "; " + none, "one of the users of cells; " + none}
	got := as("keeper")
	for n := FirstUser; n <= LastUser; n++ {
		if len(got) == 2 && strings.HasPrefix(got[1], uid(n)) {
			want[1] = uid(n) + "; " + none
		}
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("what the runner starts as itself, and in a cell, may\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	closed := filepath.Join(dir, "closed", "below")
	if err := os.MkdirAll(closed, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(closed, "file"), nil, 0o644), os.Chmod(closed, 0o500),
		os.Lchown(closed, 1000, 1000), os.Lchown(filepath.Dir(closed), 1000, 1000), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "remove", filepath.Dir(closed))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a tree with a directory that is closed to writing was not removed: %v %s", err, out)
	}
}

func TestACellsRoomIsClosedToOthersAndAfterItsEnd(t *testing.T) {
	t.Parallel()
	u := newKeeper(t, 1)
	dir := openDir(t)
	a, b := enter(t, u), enter(t, u)
	room := filepath.Join(dir, "work", "room")
	tree := filepath.Join(room, "tree")
	if err := a.Room(room); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := a.Give(tree); err != nil {
		t.Fatal(err)
	}
	read := "cat " + tree + "/sub/file"
	if out, err := sh(t, a, "echo mine > "+tree+"/sub/file && "+read); err != nil || out != "mine" {
		t.Fatalf("the cell in its own room: %q, %v", out, err)
	}
	if out, err := sh(t, b, read); err == nil {
		t.Errorf("another cell reads %q", out)
	}
	if out, err := sh(t, a, "mv "+tree+" "+room+"/other || mkdir "+room+"/new"); err == nil {
		t.Errorf("a cell changes its room itself: %q", out)
	}
	if err := a.Leave(); err != nil {
		t.Fatal(err)
	}
	again := enter(t, u, tree)
	if again.uid != a.uid {
		t.Fatalf("the next cell has user %d, not %d, whose the files are", again.uid, a.uid)
	}
	if out, err := sh(t, again, read); err == nil {
		t.Errorf("a room that was left is open to the next cell of its user: %q", out)
	}
}

func TestAUserIsUsedByOneCellAtATime(t *testing.T) {
	t.Parallel()
	u := newKeeper(t, 2)
	file := filepath.Join(openDir(t), "file")
	a := enter(t, u)
	if err := errors.Join(os.WriteFile(file, nil, 0o600), a.Give(file)); err != nil {
		t.Fatal(err)
	}
	if b := enter(t, u, file); b.uid == a.uid {
		t.Fatal("two cells have the same user")
	}
	if err := a.Leave(); err != nil {
		t.Fatal(err)
	}
	if c := enter(t, u, file); c.uid != a.uid {
		t.Errorf("a cell for the files of user %d has user %d", a.uid, c.uid)
	}
}

func TestNothingEscapesASweep(t *testing.T) {
	t.Parallel()
	u := newKeeper(t, 3)
	c, other := enter(t, u), enter(t, u)
	lives := exec.Command("/bin/sleep", "1000")
	if err := other.Start(lives); err != nil {
		t.Fatal(err)
	}
	// Another session without an environment, and processes that beget others for ever.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `setsid env -i /bin/sleep 1000 & (while :; do /bin/sleep 0.01 & done) & echo ready >/dev/stdout; exec /bin/sleep 1000`)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", w, w
	if err := c.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// That it can open its output anew shows that the pipe is its own.
	if line, err := io.ReadAll(io.LimitReader(r, 6)); err != nil || string(line) != "ready\n" {
		t.Fatalf("it said %q, %v", line, err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	if left := c.Sweep(10 * time.Minute); left != 0 {
		t.Errorf("%d processes are left", left)
	}
	if all, _ := ofUser(c.uid); len(all) != 0 {
		t.Fatalf("these are left: %v", all)
	}
	<-waited // killed
	if _, ok := isUsers(lives.Process.Pid, other.uid); !ok {
		t.Error("a process of another cell was killed")
	}
	if err := other.Leave(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(r.Close(), lives.Wait()); err == nil {
		t.Error("a cell that was left goes on")
	}
}

func TestASweepWaitsForTheRunnersOwnCalls(t *testing.T) {
	t.Parallel()
	u := newKeeper(t, 4)
	u.hold = 10 * time.Minute
	c := enter(t, u)
	release := c.Hold()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	call := exec.Command("/bin/sh", "-c", "read x; exit 7")
	call.Stdin = in
	if err := c.Start(call); err != nil {
		t.Fatal(err)
	}
	swept := make(chan int, 1)
	go func() { swept <- c.Sweep(10 * time.Minute) }()
	for waits := false; !waits; runtime.Gosched() { // the sweep has begun
		c.mu.Lock()
		waits = c.idle != nil
		c.mu.Unlock()
		if len(swept) > 0 {
			t.Fatal("it did not wait")
		}
	}
	if _, err := io.WriteString(w, "go on\n"); err != nil {
		t.Fatal(err)
	}
	if err := call.Wait(); call.ProcessState.ExitCode() != 7 {
		t.Errorf("the call was cut off: %v", err)
	}
	release()
	if left := <-swept; left != 0 {
		t.Errorf("%d processes are left", left)
	}
	if err := errors.Join(in.Close(), w.Close()); err != nil {
		t.Error(err)
	}
}

func TestOnlyAFileOfTheCellIsOpened(t *testing.T) {
	t.Parallel()
	u := newKeeper(t, 5)
	c := enter(t, u)
	dir := openDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(path("own"), []byte("x"), 0o600), c.Give(path("own")), os.WriteFile(path("runners"), []byte("x"), 0o644),
		os.Symlink(path("own"), path("link")), unix.Mkfifo(path("pipe"), 0o600), c.Give(path("pipe")), os.Link(path("runners"), path("hard"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"own": true, "runners": false, "link": false, "pipe": false, "hard": false, "missing": false} {
		f, err := c.Open(path(name))
		if (err == nil) != want {
			t.Errorf("%s: opened %v, %v", name, f != nil, err)
		}
		if f != nil {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestGivingATreeLeavesWhatIsOthers(t *testing.T) {
	t.Parallel()
	u := newKeeper(t, 6)
	dir := openDir(t)
	home, secret := filepath.Join(dir, "home"), filepath.Join(dir, "secret")
	before := enter(t, u)
	if err := errors.Join(os.MkdirAll(filepath.Join(home, "a", "b"), 0o700), os.WriteFile(filepath.Join(home, "a", "b", "f"), nil, 0o600),
		before.Give(home), os.WriteFile(secret, nil, 0o600), os.Link(secret, filepath.Join(home, "a", "linked")), os.Symlink(secret, filepath.Join(home, "s"))); err != nil {
		t.Fatal(err)
	}
	c := enter(t, u)
	if err := c.Give(home); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"": c.uid, "a": c.uid, "a/b": c.uid, "a/b/f": c.uid, "a/linked": 0, "s": 0, "../secret": 0} {
		if got := ownerOf(filepath.Join(home, path)); got != want {
			t.Errorf("%q belongs to %s, not %s", path, strconv.Itoa(got), strconv.Itoa(want))
		}
	}
}

func TestAKindThatDoesNotExistIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := ParseKind("jail"); err == nil {
		t.Error("taken by the flag")
	}
	if _, err := New("jail"); err == nil {
		t.Error("a keeper was made of it")
	}
	if k, err := ParseKind(""); err != nil || k != None {
		t.Errorf("without the flag: %q, %v", k, err)
	}
}

// A user of a cell has only so many processes, and those of another have theirs.
func TestAUserHasOnlySoManyProcesses(t *testing.T) {
	u := newKeeper(t, 9)
	a, b := enter(t, u), enter(t, u)
	const most = 30
	a.Limit(most)
	begin := func(c *userCell) (string, error) {
		cmd := exec.Command("/bin/sh", "-c", `n=0; while [ $n -lt 60 ]; do sleep 1000 >/dev/null 2>&1 & n=$((n+1)); done; cat /proc/self/oom_score_adj`)
		cmd.Dir = "/"
		out, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = out
		if err := c.Start(cmd); err != nil {
			t.Fatal(err)
		}
		werr := cmd.Wait()
		text, err := os.ReadFile(out.Name())
		if err = errors.Join(err, out.Close()); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text)), werr
	}
	if _, err := begin(a); err == nil {
		t.Error("there is no limit")
	}
	mine := a.Mine(Processes(), 0, "")
	if len(mine) < most-5 || len(mine) > most {
		t.Errorf("%d processes, the limit is %d", len(mine), most)
	}
	b.Limit(100)
	if adj, err := begin(b); err != nil || adj != "500" {
		t.Errorf("who is not at the limit: %q, %v", adj, err)
	}
	Kill(mine)
	if left := a.Sweep(leaveTimeout); left != 0 {
		t.Errorf("%d are left", left)
	}
}
