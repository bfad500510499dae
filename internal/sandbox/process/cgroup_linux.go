package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// serverLeaf is where this server goes to make room for sandboxes beside it: a
// cgroup with controllers for its children may hold no process itself.
const serverLeaf = "gastown-server"

// cgroups bounds sandboxes: each has a cgroup below the one that was delegated to
// this server.
type cgroups struct {
	base   string
	prefix string            // of our sandboxes' cgroups
	limits map[string]string // file to content
}

// openCgroups finds the delegated cgroup. mount is where version 2 is mounted and
// self the text of /proc/self/cgroup. An error says why there is none.
func openCgroups(mount, self, hash string, cfg Config) (*cgroups, error) {
	limits, need := limitsOf(cfg)
	if len(limits) == 0 {
		return nil, errors.New("no limit is set")
	}
	own := ""
	for line := range strings.Lines(self) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = filepath.Join(mount, path)
		}
	}
	if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err != nil || own == "" {
		return nil, errors.New("this machine has no cgroup version 2")
	}
	for _, base := range []string{own, filepath.Dir(own)} {
		if within(base, mount) && delegated(base) {
			g := &cgroups{base: base, prefix: "gastown-" + hash + "-", limits: limits}
			if err := g.enable(need); err != nil {
				return nil, fmt.Errorf("the cgroup that is delegated to this server can't be used: %w", err)
			}
			return g, nil
		}
	}
	return nil, errors.New("no cgroup is delegated to this server; as a systemd service it needs Delegate=yes")
}

// limitsOf says what is written where, and which controllers that needs.
func limitsOf(cfg Config) (limits map[string]string, need []string) {
	limits = map[string]string{}
	if cfg.Memory > 0 {
		limits["memory.max"], limits["memory.swap.max"] = strconv.FormatInt(cfg.Memory, 10), "0"
		need = append(need, "memory")
	}
	if cfg.CPUs > 0 {
		limits["cpu.max"] = fmt.Sprintf("%d 100000", int64(cfg.CPUs*100000))
		need = append(need, "cpu")
	}
	if cfg.Pids > 0 {
		limits["pids.max"] = strconv.FormatInt(cfg.Pids, 10)
		need = append(need, "pids")
	}
	return limits, need
}

// delegated reports whether systemd, or whoever else, marked a cgroup as left to
// those in it.
func delegated(dir string) bool {
	value := make([]byte, 8)
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(dir, name, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// enable gives the children of the base the controllers that they need.
func (g *cgroups) enable(need []string) error {
	control := filepath.Join(g.base, "cgroup.subtree_control")
	have, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range need {
		if !slices.Contains(strings.Fields(string(have)), c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	inside, err := os.ReadFile(filepath.Join(g.base, "cgroup.procs"))
	if err != nil {
		return err
	}
	self := strconv.Itoa(os.Getpid())
	switch pids := strings.Fields(string(inside)); {
	case len(pids) == 1 && pids[0] == self:
		leaf := filepath.Join(g.base, serverLeaf)
		if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(self), 0); err != nil {
			return err
		}
	case len(pids) > 0:
		return errors.New("there are other processes in it")
	}
	return os.WriteFile(control, []byte(strings.Join(missing, " ")), 0)
}

// admit makes a cgroup for a start and has its process born in it.
func (g *cgroups) admit(attr *syscall.SysProcAttr, town string, generation int64) (dir string, f *os.File, err error) {
	dir = filepath.Join(g.base, g.prefix+town+"."+strconv.FormatInt(generation, 10))
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, err
	}
	for name, value := range g.limits {
		err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0)
		if errors.Is(err, fs.ErrNotExist) && name == "memory.swap.max" {
			continue // a kernel that does not count swap
		}
		if err != nil {
			return "", nil, errors.Join(err, os.Remove(dir))
		}
	}
	if f, err = os.Open(dir); err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(f.Fd())
	return dir, f, nil
}

// sweep removes the cgroups of sandboxes that are over.
func (g *cgroups) sweep() {
	dirs, _ := filepath.Glob(filepath.Join(g.base, g.prefix+"*")) // the pattern is good
	for _, dir := range dirs {
		// One with processes stays, as it shall.
		_ = syscall.Rmdir(dir)
	}
}

// outOfMemory reports whether something in a cgroup was killed for want of memory.
func outOfMemory(dir string) bool {
	events, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(events)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok && n != "0" {
			return true
		}
	}
	return false
}

// leaveCgroup removes the cgroup of a sandbox that is over.
func leaveCgroup(dir string) {
	// If something of it is still dying, the next server removes it.
	_ = syscall.Rmdir(dir)
}

// bound finds out whether sandboxes can be bounded, and says why not.
func bound(hash string, cfg Config) (*cgroups, error) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return openCgroups("/sys/fs/cgroup", string(self), hash, cfg)
}
