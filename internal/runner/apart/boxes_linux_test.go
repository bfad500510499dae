package apart_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/runner/apart"
	"gastown/internal/sandbox/inside"
)

// TestMain lets a test binary be the first process of a box.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "sandbox-init" {
		os.Exit(inside.Main(os.Args[2:], os.Stdout))
	}
	os.Exit(m.Run())
}

// boxes returns a disk and a keeper of boxes on it, or skips where there can be none.
func boxes(t *testing.T) (disk string, k *apart.Keeper) {
	t.Helper()
	try := exec.CommandContext(t.Context(), "bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true")
	if out, err := try.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: there can be no box of bubblewrap: %v %s", err, out)
	}
	disk = t.TempDir()
	if err := os.Mkdir(filepath.Join(disk, "rigs"), 0o755); err != nil {
		t.Fatal(err)
	}
	// The test binary lies where boxes have nothing of this machine.
	program := filepath.Join(disk, "rigs", "program")
	// Not by this process: what it forks meanwhile would hold the file open for
	// writing, and the kernel runs no such file.
	if out, err := exec.CommandContext(t.Context(), "cp", os.Args[0], program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	k, err := apart.NewBoxes(disk, program)
	if err != nil {
		t.Fatal(err)
	}
	return disk, k
}

func enter(t *testing.T, k *apart.Keeper) apart.Cell {
	t.Helper()
	c, err := k.Enter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Leave(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// room gives a cell a room with a directory in it.
func room(t *testing.T, c apart.Cell, dir string) (tree string) {
	t.Helper()
	tree = filepath.Join(dir, "tree")
	if err := errors.Join(c.Room(dir), os.MkdirAll(tree, 0o755)); err != nil {
		t.Fatal(err)
	}
	return tree
}

// shell starts a shell in a cell, and returns what it prints.
func shell(t *testing.T, c apart.Cell, dir, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	return shellFrom(t, c, dir, script, nil)
}

func shellFrom(t *testing.T, c apart.Cell, dir, script string, in *os.File) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = dir
	if in != nil {
		cmd.Stdin = in
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = theirs, os.Stderr
	if err := errors.Join(c.Start(cmd), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	})
	return cmd, bufio.NewReader(out)
}

func line(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	s, err := r.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

func TestAnAgentInABoxIsAskedToEnd(t *testing.T) {
	t.Parallel()
	disk, k := boxes(t)
	c := enter(t, k)
	tree := room(t, c, filepath.Join(disk, "work"))
	cmd, out := shell(t, c, tree, `trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
	if got := line(t, out); got != "ready" {
		t.Fatalf("it said %q", got)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if got, err := line(t, out), cmd.Wait(); got != "bye" || !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("asked to end it said %q and ended with %v; want bye and 5", got, err)
	}
}

func TestNothingOutlivesTheEndOfABox(t *testing.T) {
	t.Parallel()
	disk, k := boxes(t)
	c := enter(t, k)
	tree := room(t, c, filepath.Join(disk, "work"))
	cmd, out := shell(t, c, tree, `setsid env -i sh -c 'echo ready; exec sleep 100000' & while :; do wait; done`)
	if got := line(t, out); got != "ready" {
		t.Fatalf("it said %q", got)
	}
	if left := c.Sweep(time.Minute); left != 0 {
		t.Errorf("%d boxes are left", left)
	}
	if rest, err := io.ReadAll(out); err != nil || len(rest) != 0 { // ends when all that hold it are dead
		t.Errorf("then it said %q, %v", rest, err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a killed box ended well")
	}
}

func TestABoxHasItsRoomsAlone(t *testing.T) {
	t.Parallel()
	disk, k := boxes(t)
	mine, other := enter(t, k), enter(t, k)
	tree := room(t, mine, filepath.Join(disk, "work", "a"))
	theirs := room(t, other, filepath.Join(disk, "work", "b"))
	secret := filepath.Join(disk, "outbox")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `cat ` + secret + ` && echo read; ls ` + theirs + ` && echo listed; (: >` + disk + `/rigs/x) && echo wrote
		mv ` + tree + ` ` + tree + `2 && echo moved; : >written && echo done`
	cmd, out := shell(t, mine, tree, "exec 3>&1 2>/dev/null >/dev/null; "+strings.ReplaceAll(script, "echo ", "echo >&3 "))
	said, err := io.ReadAll(out)
	if err := errors.Join(err, cmd.Wait()); err != nil || string(said) != "done\n" {
		t.Errorf("in a box was possible: %q, %v; want to write into its own tree alone", said, err)
	}
	if _, err := os.Stat(filepath.Join(tree, "written")); err != nil {
		t.Errorf("what was written to the room is not there: %v", err)
	}
}

func TestAFileOfABoxIsNotALinkOutOfIt(t *testing.T) {
	t.Parallel()
	disk, k := boxes(t)
	c := enter(t, k)
	tree := room(t, c, filepath.Join(disk, "work"))
	link, pipe := filepath.Join(tree, "link"), filepath.Join(tree, "pipe")
	if err := errors.Join(os.Symlink("/etc/passwd", link), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, pipe, tree} {
		if f, err := c.Open(path); err == nil {
			t.Errorf("%s was opened", path)
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if c.Owns(link) {
		t.Error("a link is the cell's")
	}
}

// Each box counts for itself; what is in it is found, and nothing else.
func TestABoxHasOnlySoManyProcesses(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Skip("NOT TESTED: the kernel does not count the processes of root")
	}
	disk, k := boxes(t)
	c := enter(t, k)
	tree := room(t, c, filepath.Join(disk, "work"))
	c.Limit(30)
	script := `(n=0; while [ $n -lt 60 ]; do sleep 1000 >/dev/null 2>&1 & n=$((n+1)); done) 2>/dev/null && echo all || echo some; read never`
	hold := func() (io.Closer, *bufio.Reader) {
		in, theirs, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd, out := shellFrom(t, c, tree, script, in)
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// Its end is the test's.
			_ = cmd.Wait()
		})
		return theirs, out
	}
	first, out := hold()
	defer first.Close()
	if got := line(t, out); got != "some" {
		t.Errorf("the kernel does not hold the limit in a box: %q", got)
	}
	mine := len(c.Mine(apart.Processes(), 0, ""))
	if mine < 20 || mine > 35 {
		t.Errorf("%d processes are found in a box that may have 30", mine)
	}
	second, out := hold()
	defer second.Close()
	if got := line(t, out); got != "some" {
		t.Errorf("the second box: %q", got)
	}
	if both := len(c.Mine(apart.Processes(), 0, "")); both < mine+15 {
		t.Errorf("%d processes in one box, %d in two: they count together", mine, both)
	}
	if left := c.Sweep(10 * time.Second); left != 0 {
		t.Errorf("%d boxes are left", left)
	}
}
