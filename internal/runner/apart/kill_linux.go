package apart

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
	"time"
)

// killUser kills every process of a user and returns how many are left after
// timeout. They are stopped before they are killed, so that one that forks
// without end runs out of places instead of always being ahead.
func killUser(uid int, timeout time.Duration) int {
	deadline := time.Now().Add(timeout)
	wait := time.Millisecond
	for round := 0; ; round++ {
		all, moving := ofUser(uid)
		if len(all) == 0 || time.Now().After(deadline) {
			return len(all)
		}
		if round < 3 && len(moving) > 0 {
			signalUser(uid, moving, syscall.SIGSTOP)
			continue
		}
		signalUser(uid, all, syscall.SIGKILL)
		time.Sleep(wait)
		wait = min(2*wait, 50*time.Millisecond)
	}
}

// ofUser lists the living processes of a user, and those that are not stopped.
func ofUser(uid int) (all, moving []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil // no /proc: nothing can be known
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		state, ok := isUsers(pid, uid)
		if !ok {
			continue
		}
		all = append(all, pid)
		if state != 'T' && state != 't' {
			moving = append(moving, pid)
		}
	}
	return all, moving
}

// isUsers reads what everybody may: a process that can't be traced hides its
// owner in its directory, not in its status. Zombies don't count.
func isUsers(pid, uid int) (state byte, ok bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, false
	}
	want := strconv.Itoa(uid)
	for line := range bytes.Lines(text) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		switch string(name) {
		case "State":
			if rest = bytes.TrimSpace(rest); len(rest) > 0 {
				state = rest[0]
			}
		case "Uid":
			for _, id := range bytes.Fields(rest) {
				ok = ok || string(id) == want
			}
			return state, ok && state != 'Z' && state != 'X'
		}
	}
	return 0, false
}

func signalUser(uid int, pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		// The handle is opened first and the owner read again, so that a pid that was
		// given to another process is never signalled.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if _, ok := isUsers(pid, uid); ok {
			// Gone already is what we want.
			_ = p.Signal(sig)
		}
		// Releasing a handle can't fail in a way that matters.
		_ = p.Release()
	}
}
