package runner

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"
)

// killAll kills the process group pgid and every process with the marker in
// its environment, until none is left or two seconds passed.
func killAll(pgid int, marker string) {
	// ESRCH means that the group is empty, which is what we want.
	_ = syscall.Kill(-pgid, syscall.SIGKILL)
	mark := []byte(gateMarker + "=" + marker)
	deadline := time.Now().Add(2 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if killMarked(mark) == 0 || time.Now().After(deadline) {
			return
		}
		time.Sleep(wait)
	}
}

func killMarked(mark []byte) int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0 // no /proc: the group is all that can be known
	}
	n := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !hasMark(pid, mark) {
			continue
		}
		// The handle is opened first and the mark read again, so that a pid that
		// was given to another process is never killed.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if hasMark(pid, mark) {
			n++
			// Gone already is what we want.
			_ = p.Kill()
		}
		// Releasing a handle can't fail in a way that matters.
		_ = p.Release()
	}
	return n
}

func hasMark(pid int, mark []byte) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false // gone, or another user's
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(kv, mark) {
			return true
		}
	}
	return false
}
