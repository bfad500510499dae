package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// awaitExit waits until pid has ended and leaves it unreaped.
func awaitExit(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return // on any other error the caller's Wait decides
		}
	}
}

// descendants is not needed where the cookie finds everything.
func descendants(int) []int { return nil }

// sweep kills every process of the group pgid or with the cookie in its
// environment, until none is left, and returns how many are after timeout.
func sweep(pgid int, cookie string, _ []int, timeout time.Duration) int {
	mark := []byte(cookieVar + "=" + cookie)
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		left := killMarked(pgid, mark)
		if left == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(wait)
	}
}

func killMarked(pgid int, mark []byte) int {
	return killIf(func(pid int) bool { return marked(pid, pgid, mark) })
}

// killIf kills the processes that are ours and returns how many there were.
func killIf(ours func(pid int) bool) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0 // no /proc: the group was killed, more can't be known
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !ours(pid) {
			continue
		}
		// The handle is opened first and the mark read again, so that a pid
		// that was given to another process is never killed.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if ours(pid) {
			n++
			// Already gone is what we want.
			_ = p.Kill()
		}
		// Release of a handle can't fail in a way that matters.
		_ = p.Release()
	}
	return n
}

// sweepDir kills what has the cookie and its working directory in dir, except
// pid and what was given another user; it returns how many are left after timeout.
func sweepDir(pid int, cookie, dir string, timeout time.Duration) int {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	mark := []byte(cookieVar + "=" + cookie)
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		left := killIf(func(p int) bool { return p != pid && marked(p, -1, mark) && worksIn(p, dir) })
		if left == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(wait)
	}
}

func worksIn(pid int, dir string) bool {
	cwd, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd")
	return err == nil && (cwd == dir || strings.HasPrefix(cwd, dir+"/"))
}

// marked reports whether a living process carries the mark. A zombie has no
// environment. A process of the group that cleared its environment is found by
// its group; other users' processes can't be read and are not ours.
func marked(pid, pgid int, mark []byte) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	env, err := os.ReadFile(dir + "/environ")
	if err != nil {
		return false
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(kv, mark) {
			return true
		}
	}
	return inGroup(dir, pgid)
}

// inGroup reads /proc/<pid>/stat: state and process group follow the name.
func inGroup(dir string, pgid int) bool {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	f := bytes.Fields(rest)
	if !ok || len(f) < 3 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return false
	}
	return string(f[2]) == strconv.Itoa(pgid)
}
