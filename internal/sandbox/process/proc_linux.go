package process

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), err
}

// processes lists all processes. Those that end meanwhile are left out.
func processes() ([]proc, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	names, err := dir.Readdirnames(-1)
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	procs := make([]proc, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, found, err := lookup(pid); err == nil && found {
			procs = append(procs, p)
		}
	}
	return procs, nil
}

// lookup describes one process.
func lookup(pid int) (p proc, found bool, err error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return proc{}, false, nil
	}
	if err != nil {
		return proc{}, false, err
	}
	p, err = parseStat(raw)
	return p, err == nil, err
}

// parseStat reads a line of /proc/<pid>/stat. The second field is a name that the
// process chooses and may contain anything, so fields count from the last ')'.
func parseStat(raw []byte) (proc, error) {
	open, end := bytes.IndexByte(raw, '('), bytes.LastIndexByte(raw, ')')
	if open < 0 || end < open {
		return proc{}, errors.New("stat without a name")
	}
	f := strings.Fields(string(raw[end+1:]))
	if len(f) < 20 {
		return proc{}, errors.New("stat with too few fields")
	}
	pid, err1 := strconv.Atoi(strings.TrimSpace(string(raw[:open])))
	ppid, err2 := strconv.Atoi(f[1])
	sid, err3 := strconv.Atoi(f[3])
	if err := errors.Join(err1, err2, err3); err != nil {
		return proc{}, err
	}
	return proc{pid: pid, ppid: ppid, sid: sid, start: f[19], zombie: f[0] == "Z" || f[0] == "X"}, nil
}

// environOf returns the environment that a process was started with, nil when it
// is another user's.
func environOf(pid int) []byte {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil
	}
	return raw
}

func cwdOf(pid int) string {
	dir, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	if err != nil {
		return ""
	}
	return dir + "/"
}

// awaitExit blocks until a child has exited and leaves it a zombie, so that its
// pid, and with it the session, stays ours until its leftovers are dead.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			return // any other error: the wait that follows reports it
		}
	}
}
