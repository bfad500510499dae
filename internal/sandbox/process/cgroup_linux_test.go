package process

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeCgroup makes a directory that looks like a cgroup, with the content of its
// files, marked as delegated.
func fakeCgroup(t *testing.T, files map[string]string) (mount string) {
	t.Helper()
	mount = t.TempDir()
	dir := filepath.Join(mount, "unit")
	err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(mount, "cgroup.controllers"), nil, 0o644))
	for name, text := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(dir, "user.delegate", []byte("1"), 0); err != nil {
		t.Skipf("NOT TESTED: directories here take no mark: %v", err)
	}
	return mount
}

var bounded = Config{Memory: 1 << 30, CPUs: 1.5, Pids: 100}

func TestASandboxHasTheLimitsOfItsCgroup(t *testing.T) {
	t.Parallel()
	mount := fakeCgroup(t, map[string]string{"cgroup.subtree_control": "cpu io memory pids\n", "cgroup.procs": ""})
	for _, self := range []string{"0::/unit\n", "12:pids:/\n0::/unit/" + serverLeaf + "\n"} {
		g, err := openCgroups(mount, self, "h", bounded)
		if err != nil {
			t.Fatal(err)
		}
		var attr syscall.SysProcAttr
		dir, f, err := g.admit(&attr, "alpha", 3)
		if err != nil {
			t.Fatal(err)
		}
		if !attr.UseCgroupFD || attr.CgroupFD != int(f.Fd()) || dir != filepath.Join(mount, "unit", "gastown-h-alpha.3") {
			t.Errorf("the cgroup is %s, and its process begins in %+v", dir, attr)
		}
		closeQuietly(f)
		for name, want := range map[string]string{"memory.max": "1073741824", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "100"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%s is %q, %v; want %q", name, got, err, want)
			}
		}
	}
}

func TestTheServerMakesRoomInItsCgroup(t *testing.T) {
	t.Parallel()
	self := strconv.Itoa(os.Getpid())
	mount := fakeCgroup(t, map[string]string{"cgroup.subtree_control": "", "cgroup.procs": self + "\n"})
	if _, err := openCgroups(mount, "0::/unit\n", "h", bounded); err != nil {
		t.Fatal(err)
	}
	moved, err1 := os.ReadFile(filepath.Join(mount, "unit", serverLeaf, "cgroup.procs"))
	control, err2 := os.ReadFile(filepath.Join(mount, "unit", "cgroup.subtree_control"))
	if err := errors.Join(err1, err2); err != nil || string(moved) != self || string(control) != "+memory +cpu +pids" {
		t.Errorf("moved is %q, controllers %q, %v", moved, control, err)
	}
}

func TestWhyNothingIsBoundedIsSaid(t *testing.T) {
	t.Parallel()
	crowded := fakeCgroup(t, map[string]string{"cgroup.subtree_control": "", "cgroup.procs": "1\n2\n"})
	plain := t.TempDir()
	if err := os.WriteFile(filepath.Join(plain, "cgroup.controllers"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		mount, self string
		cfg         Config
		want        string
	}{
		"others in it":     {crowded, "0::/unit\n", bounded, "other processes"},
		"not delegated":    {plain, "0::/unit\n", bounded, "Delegate=yes"},
		"outside of ours":  {plain, "0::/../../unit\n", bounded, "Delegate=yes"},
		"no version 2":     {t.TempDir(), "0::/unit\n", bounded, "version 2"},
		"version 1 alone":  {plain, "4:memory:/unit\n", bounded, "version 2"},
		"no limit is set":  {crowded, "0::/unit\n", Config{}, "no limit"},
		"nothing is known": {crowded, "", bounded, "version 2"},
	} {
		if g, err := openCgroups(c.mount, c.self, "h", c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %q", name, g, err, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(crowded, "unit", serverLeaf)); err == nil {
		t.Error("the server moved although others were in its cgroup")
	}
}

func TestAKillForWantOfMemoryIsSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, want := range map[string]bool{"low 0\noom 3\noom_kill 1\n": true, "oom 0\noom_kill 0\noom_group_kill 0\n": false, "": false} {
		if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := outOfMemory(dir); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
