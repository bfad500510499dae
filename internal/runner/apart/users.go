//go:build linux

package apart

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gastown/internal/errs"
)

const (
	// leaveTimeout bounds the wait for the processes of a cell to disappear.
	leaveTimeout = 10 * time.Second
	// holdTimeout is how long a sweep waits for the runner's own calls.
	holdTimeout = 5 * time.Second
)

// users gives each cell a user of its own.
type users struct {
	uid, gid int           // the runner's
	hold     time.Duration // how long a sweep waits for the runner's own calls

	first, last int // of the cells

	mu   sync.Mutex // guards the fields below
	used map[int]bool
	next int
}

func newUsers(first, last int) (*users, error) {
	if err := settleCaps(); err != nil {
		return nil, err
	}
	// The first is any: the kernel counts the processes of a user in all containers
	// of an engine, where runs should not all have the same few.
	next := first + rand.IntN(last-first+1)
	return &users{uid: os.Getuid(), gid: os.Getgid(), hold: holdTimeout, first: first, last: last, used: map[int]bool{}, next: next}, nil
}

func (u *users) enter(like []string) (Cell, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, path := range like {
		if uid := ownerOf(path); uid >= u.first && uid <= u.last && !u.used[uid] {
			return u.takeLocked(uid), nil
		}
	}
	for range u.last - u.first + 1 {
		uid := u.next
		if u.next++; u.next > u.last {
			u.next = u.first
		}
		if !u.used[uid] {
			return u.takeLocked(uid), nil
		}
	}
	return nil, errs.New(errs.Unavailable, "no user is free for another run")
}

func (u *users) takeLocked(uid int) *userCell {
	u.used[uid] = true
	return &userCell{of: u, uid: uid, rooms: map[string]bool{}}
}

// ownerOf is the user of a path itself, -1 when there is none.
func ownerOf(path string) int {
	st, err := os.Lstat(path)
	if err != nil {
		return -1
	}
	return owner(st)
}

func owner(st fs.FileInfo) int {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(sys.Uid)
	}
	return -1
}

// userCell is the cell of kind UID.
type userCell struct {
	of  *users
	uid int

	limit atomic.Int64 // of processes; 0: none

	mu    sync.Mutex // guards the fields below
	rooms map[string]bool
	held  int
	idle  chan struct{} // closed when held gets 0; nil when nobody waits
	left  bool
}

// Start implements Cell. Programs open their pipes anew by /dev/stdout, so those
// must be the user's.
func (c *userCell) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if n := c.limit.Load(); n > 0 && cmd.Err == nil && !isGit(cmd.Path) {
		cmd.Args = limited(n, append([]string{cmd.Path}, cmd.Args[1:]...))
		cmd.Path = cmd.Args[0]
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}
	for _, stream := range []any{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		f, ok := stream.(*os.File)
		if !ok || f == nil {
			continue
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if st.Mode()&fs.ModeNamedPipe != 0 {
			if err := f.Chown(c.uid, c.uid); err != nil {
				return err
			}
		}
	}
	return cmd.Start()
}

// Limit implements Cell.
func (c *userCell) Limit(processes int) { c.limit.Store(int64(processes)) }

// Mine implements Cell.
func (c *userCell) Mine(all []Process, _ int, _ string) []Process {
	var mine []Process
	for _, p := range all {
		if p.UID == c.uid {
			mine = append(mine, p)
		}
	}
	return mine
}

// Room implements Cell.
func (c *userCell) Room(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rooms[dir] = true
	return errors.Join(os.Chmod(dir, 0o700), os.Lchown(dir, -1, c.uid), os.Chmod(dir, 0o750))
}

// Shut implements Cell.
func (c *userCell) Shut(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rooms[dir] {
		return nil
	}
	delete(c.rooms, dir)
	return c.close(dir)
}

// close makes a room the runner's alone. One that was moved away is none.
func (c *userCell) close(dir string) error {
	err := errors.Join(os.Chmod(dir, 0o700), os.Lchown(dir, -1, c.of.gid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Give implements Cell. The path itself comes last, so that one that belongs to
// the cell was given whole.
func (c *userCell) Give(path string) error {
	st, err := os.Lstat(path)
	if err != nil || owner(st) == c.uid {
		return err
	}
	if st.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return err
		}
		err = c.give(root, ".", owner(st))
		if err = errors.Join(err, root.Close()); err != nil {
			return err
		}
	}
	return os.Lchown(path, c.uid, c.uid)
}

// give changes what is in a directory and belongs to the user from: a link to
// somebody else's file, made by who had the directory before, stays theirs.
func (c *userCell) give(root *os.Root, dir string, from int) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		st, err := root.Lstat(name)
		if err != nil {
			return err
		}
		if owner(st) != from {
			continue
		}
		if st.IsDir() {
			if err := c.give(root, name, from); err != nil {
				return err
			}
		}
		if err := root.Lchown(name, c.uid, c.uid); err != nil {
			return err
		}
	}
	return nil
}

// Owns implements Cell.
func (c *userCell) Owns(path string) bool { return ownerOf(path) == c.uid }

// Open implements Cell. A pipe in the file's place would not be waited for.
func (c *userCell) Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() && owner(st) == c.uid {
		return f, nil
	}
	return nil, errors.Join(errs.New(errs.Conflict, "%s is not a file of the agent", path), err, f.Close())
}

// Hold implements Cell.
func (c *userCell) Hold() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.held--; c.held == 0 && c.idle != nil {
			close(c.idle)
			c.idle = nil
		}
	})
}

// awaitIdle waits for the runner's own calls in the cell, for a while.
func (c *userCell) awaitIdle() {
	c.mu.Lock()
	if c.held == 0 {
		c.mu.Unlock()
		return
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	t := time.NewTimer(c.of.hold)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}

// Sweep implements Cell.
func (c *userCell) Sweep(timeout time.Duration) int {
	c.awaitIdle()
	return killUser(c.uid, timeout)
}

// Leave implements Cell.
func (c *userCell) Leave() error {
	c.mu.Lock()
	if c.left {
		c.mu.Unlock()
		return nil
	}
	c.left = true
	c.mu.Unlock()
	left := c.Sweep(leaveTimeout)
	var err error
	c.mu.Lock()
	for dir := range c.rooms {
		err = errors.Join(err, c.close(dir))
	}
	c.mu.Unlock()
	if left > 0 {
		return errors.Join(err, errs.New(errs.Internal, "%d processes of user %d outlived SIGKILL; the user is not used again", left, c.uid))
	}
	if err != nil {
		return errs.Wrap(errs.Internal, err, "closing what user %d had; it is not used again", c.uid)
	}
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	delete(c.of.used, c.uid)
	return nil
}
