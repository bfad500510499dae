package apart

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gastown/internal/errs"
)

// beginTime bounds how long bubblewrap takes to make its first process.
const beginTime = time.Minute

// boxes gives each command of a cell a box of bubblewrap, in which there is
// nothing of the runner and of other cells.
type boxes struct {
	bwrap   string
	program string // of gastown; the first process of a box
	disk    string
	counts  bool     // the kernel counts the processes of a user in each box by themselves
	fixed   []string // arguments that are the same for every cell
}

// NewBoxes returns the keeper of kind Bwrap. disk is the runner's, of which a cell
// sees the clones and its own rooms; program is gastown.
func NewBoxes(disk, program string) (*Keeper, error) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		return nil, errs.New(errs.NotFound, "agents can't get boxes of their own: %v", err).WithHint("install bubblewrap")
	}
	b := &boxes{bwrap: bwrap, program: program, disk: disk, counts: countsApart()}
	if b.fixed, err = b.mounts(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "agents can't get boxes of their own")
	}
	return &Keeper{kind: Bwrap, enter: func([]string) (Cell, error) { return &boxCell{of: b}, nil }}, nil
}

// hidden are the directories that a cell has for itself, or that lead to the server.
func hidden() []string { return []string{"/tmp", "/var/tmp", "/run"} }

// mounts hides the runner's disk, its way to the server, and temporary files. What
// is mounted below those of the sandbox, such as programs, stays.
func (b *boxes) mounts() ([]string, error) {
	args := []string{"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
		"--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"}
	for _, dir := range hidden() {
		if st, err := os.Lstat(dir); err == nil && st.IsDir() {
			args = append(args, "--tmpfs", dir)
		}
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, point := range mountPoints(info) {
		for _, dir := range []string{"/tmp/", "/var/tmp/"} {
			if strings.HasPrefix(point, dir) && point != b.disk && !strings.HasPrefix(point, b.disk+"/") {
				args = append(args, "--ro-bind", point, point)
			}
		}
	}
	return append(args, "--tmpfs", b.disk, "--ro-bind-try", filepath.Join(b.disk, "rigs"), filepath.Join(b.disk, "rigs")), nil
}

// mountPoints reads /proc/<pid>/mountinfo.
func mountPoints(info []byte) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for line := range bytes.Lines(info) {
		if f := strings.Fields(string(line)); len(f) > 4 {
			points = append(points, unescape.Replace(f[4]))
		}
	}
	slices.Sort(points) // parents first
	return slices.Compact(points)
}

// boxCell is the cell of kind Bwrap. Its rooms are directories whose entries it
// may write; since they are mounted one by one it can't rename them.
type boxCell struct {
	of    *boxes
	limit atomic.Int64 // of processes of a box; 0: none

	mu    sync.Mutex // guards the fields below
	rooms []string
	alive []firstProcess
	left  bool
}

// firstProcess is the first process of a box.
type firstProcess struct {
	*os.Process
	runners bool // of a call of the runner itself, which ends by itself
}

// Limit implements Cell: for each box by itself.
func (c *boxCell) Limit(processes int) { c.limit.Store(int64(processes)) }

// Mine implements Cell. What is in a box descends from its first process.
func (c *boxCell) Mine(all []Process, _ int, _ string) []Process {
	c.mu.Lock()
	c.pruneLocked()
	first := map[int]bool{}
	for _, p := range c.alive {
		first[p.Pid] = !p.runners
	}
	c.mu.Unlock()
	return descend(all, func(p Process) bool { return first[p.PID] })
}

// Shut implements Cell: what has begun keeps what it saw, the next command sees it no more.
func (c *boxCell) Shut(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rooms = slices.DeleteFunc(c.rooms, func(r string) bool { return r == dir })
	return nil
}

// Start implements Cell. Every command has a box of its own.
func (c *boxCell) Start(cmd *exec.Cmd) error {
	if len(cmd.ExtraFiles) != 0 {
		return errs.New(errs.Internal, "a command with descriptors of its own can't be started in a box")
	}
	if cmd.Err != nil {
		return cmd.Err
	}
	args, err := c.args(cmd)
	if err != nil {
		return err
	}
	info, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	runners := isGit(cmd.Path)
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	cmd.Path, cmd.Args = args[0], args
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left {
		return errors.Join(errs.New(errs.Internal, "the cell was left"), info.Close(), theirs.Close())
	}
	err = cmd.Start()
	if err = errors.Join(err, theirs.Close()); err == nil {
		err = c.noteLocked(cmd, info, runners)
	}
	return errors.Join(err, info.Close())
}

// args wraps a command. Agents and gates get a first process that reaps. Their
// group is asked to end by SIGTERM, of which the bubblewrap that waits for them
// must not die first: so it ignores that, and the first process sets it right.
func (c *boxCell) args(cmd *exec.Cmd) ([]string, error) {
	box := append([]string{c.of.bwrap}, c.of.fixed...)
	rooms, err := c.inRooms()
	if err != nil {
		return nil, err
	}
	box = append(box, rooms...)
	if cmd.Dir != "" {
		box = append(box, "--chdir", cmd.Dir)
	}
	box = append(box, "--info-fd", "3")
	command := append([]string{cmd.Path}, cmd.Args[1:]...)
	if isGit(cmd.Path) {
		return append(append(box, "--"), command...), nil
	}
	if n := c.limit.Load(); n > 0 && c.of.counts {
		command = limited(n, command)
	}
	box = append(box, "--as-pid-1", "--", c.of.program, "sandbox-init", CellFlag, "--")
	return append([]string{"/bin/sh", "-c", `trap "" TERM; exec "$@"`, "sh"}, append(box, command...)...), nil
}

// isGit tells the runner's own calls from agents and gates.
func isGit(path string) bool { return filepath.Base(path) == "git" }

// inRooms mounts what is in the rooms now.
func (c *boxCell) inRooms() ([]string, error) {
	c.mu.Lock()
	rooms := slices.Clone(c.rooms)
	c.mu.Unlock()
	var args []string
	for _, room := range rooms {
		entries, err := os.ReadDir(room)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was moved: a spare worktree became a run's
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			path := filepath.Join(room, e.Name())
			if e.IsDir() {
				args = append(args, "--bind", path, path)
			}
		}
	}
	return args, nil
}

// noteLocked takes a handle of the first process of a box that was started.
func (c *boxCell) noteLocked(cmd *exec.Cmd, info *os.File, runners bool) error {
	fail := func(err error) error {
		// It may have ended; then its end says more.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return errs.Wrap(errs.Unavailable, err, "bubblewrap made no box")
	}
	if err := info.SetReadDeadline(time.Now().Add(beginTime)); err != nil {
		return fail(err)
	}
	raw, err := io.ReadAll(io.LimitReader(info, 4096))
	if err != nil {
		return fail(err)
	}
	var said struct {
		Child int `json:"child-pid"`
	}
	if err := json.Unmarshal(raw, &said); err != nil || said.Child <= 1 {
		return fail(errors.New("it did not say which process is the first in it"))
	}
	p, err := os.FindProcess(said.Child)
	if err != nil {
		return fail(err)
	}
	c.pruneLocked()
	if parentOf(said.Child) != cmd.Process.Pid {
		return p.Release() // over already
	}
	c.alive = append(c.alive, firstProcess{p, runners})
	return nil
}

// pruneLocked forgets boxes that ended.
func (c *boxCell) pruneLocked() {
	c.alive = slices.DeleteFunc(c.alive, func(p firstProcess) bool {
		if err := p.Signal(syscall.Signal(0)); err == nil || errors.Is(err, syscall.EPERM) {
			return false
		}
		// Releasing a handle loses nothing.
		_ = p.Release()
		return true
	})
}

// parentOf returns the parent of a process, 0 when there is none.
func parentOf(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return 0
	}
	return parent
}

// Room implements Cell.
func (c *boxCell) Room(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.rooms, dir) {
		c.rooms = append(c.rooms, dir)
	}
	return errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700))
}

// Give implements Cell: what is in a room is the cell's.
func (c *boxCell) Give(string) error { return nil }

// Owns implements Cell.
func (c *boxCell) Owns(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&fs.ModeSymlink == 0
}

// Open implements Cell.
func (c *boxCell) Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errs.New(errs.Invalid, "%s is no regular file", filepath.Base(path))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Hold implements Cell: a sweep spares the runner's own calls.
func (c *boxCell) Hold() func() { return func() {} }

// Sweep implements Cell. With its first process all of a box ends, at once.
func (c *boxCell) Sweep(timeout time.Duration) int { return c.end(timeout, false) }

func (c *boxCell) end(timeout time.Duration, all bool) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		c.pruneLocked()
		left := 0
		for _, p := range c.alive {
			if all || !p.runners {
				left++
				// Gone already is what we want.
				_ = p.Signal(syscall.SIGKILL)
			}
		}
		if left == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(wait)
	}
}

// Leave implements Cell.
func (c *boxCell) Leave() error {
	left := c.end(leaveTimeout, true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
	if left > 0 {
		return errs.New(errs.Internal, "%d boxes outlived SIGKILL", left)
	}
	return nil
}
