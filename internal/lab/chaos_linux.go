package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"gastown/internal/errs"
)

// agentMark is in the environment of agents and whatever they start.
const agentMark = "GASTOWN_AGENT_COOKIE="

func chaosPossible() error { return nil }

// environment of a process; nothing when it is gone, a zombie, or somebody else's.
func environment(pid int) []byte {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil
	}
	return text
}

// belongs reports whether a process runs in our directory: its environment or
// its arguments name it.
func belongs(pid int, dir string) bool {
	if pid <= 1 || pid == os.Getpid() {
		return false
	}
	if bytes.Contains(environment(pid), []byte(dir)) {
		return true
	}
	args, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && bytes.Contains(args, []byte(dir))
}

// agentsOf lists the agents that a runner started: its own children with the mark.
func agentsOf(runner int) (out []int) {
	for _, pid := range pids() {
		if parentOf(pid) == runner && bytes.Contains(environment(pid), []byte(agentMark)) {
			out = append(out, pid)
		}
	}
	return out
}

func pids() (out []int) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil // the pattern is good
	}
	for _, d := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// parentOf reads the second field after the name in /proc/pid/stat.
func parentOf(pid int) int {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(f) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(f[1]))
	if err != nil {
		return 0
	}
	return parent
}

// leftovers lists the processes of a directory.
func leftovers(dir string) (out []int) {
	for _, pid := range pids() {
		if belongs(pid, dir) {
			out = append(out, pid)
		}
	}
	return out
}

// endProcesses kills whatever is left of a directory.
func endProcesses(dir string) error {
	deadline := time.Now().Add(stopFor)
	for {
		left := leftovers(dir)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Internal, "processes can't be ended: %v", left)
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended just now
		}
		<-time.After(20 * time.Millisecond)
	}
}
