//go:build !linux

package agent

import (
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// awaitExit does nothing: the caller's Wait is the first to notice.
func awaitExit(int) {}

// descendants returns the processes below pid, as ps sees them now. Without
// ps only the group is killed.
func descendants(pid int) []int {
	out, err := exec.Command("/bin/ps", "-axo", "pid=,ppid=").Output()
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		child, err1 := strconv.Atoi(f[0])
		parent, err2 := strconv.Atoi(f[1])
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], child)
		}
	}
	var all []int
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		all = append(all, children[todo[0]]...)
		todo = append(todo, children[todo[0]]...)
	}
	return all
}

// sweep kills the strays and waits until the group is empty; it returns 1 when
// it is not after timeout.
func sweep(pgid int, _ string, strays []int, timeout time.Duration) int {
	for _, pid := range strays {
		// Gone already is what we want.
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	deadline := time.Now().Add(timeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if errors.Is(syscall.Kill(-pgid, syscall.SIGKILL), syscall.ESRCH) {
			return 0
		}
		if time.Now().After(deadline) {
			return 1
		}
		time.Sleep(wait)
	}
}

// sweepDir does nothing: what a session left ends with its process.
func sweepDir(int, string, string, time.Duration) int { return 0 }
