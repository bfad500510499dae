package apart

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ticks is how many clock ticks a second has, wherever Linux runs.
const ticks = 100

// Processes looks at all living processes. Zombies use nothing and are left out.
func Processes() []Process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil // no /proc: nothing can be known
	}
	names, err := dir.Readdirnames(-1)
	if cerr := dir.Close(); err != nil || cerr != nil {
		return nil
	}
	all := make([]Process, 0, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := look(pid); ok {
			all = append(all, p)
		}
	}
	return all
}

func look(pid int) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, false // it ended meanwhile
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Process{}, false
	}
	return parseProcess(pid, stat, status)
}

// parseProcess reads /proc/<pid>/stat, for the birth, and status, for the rest. The
// name of a process is what it likes, brackets and spaces too.
func parseProcess(pid int, stat, status []byte) (p Process, ok bool) {
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return p, false
	}
	var err error
	if p.Born, err = strconv.ParseInt(f[19], 10, 64); err != nil {
		return p, false
	}
	p.PID, p.UID = pid, -1
	for line := range bytes.Lines(status) {
		name, rest, _ := strings.Cut(string(line), ":")
		words := strings.Fields(rest)
		if len(words) == 0 {
			continue
		}
		if name == "Name" {
			p.Name = words[0]
			continue
		}
		n, err := strconv.ParseInt(words[0], 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "PPid":
			p.Parent = int(n)
		case "Uid":
			p.UID = int(n)
		case "RssAnon", "RssShmem", "VmSwap":
			p.Memory += n << 10
		case "Threads":
			p.Threads = int(n)
		}
	}
	return p, p.UID >= 0
}

// Now is the present in the ticks of Process.Born, 0 when it is not known.
func Now() int64 {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	word, _, _ := strings.Cut(string(text), " ")
	s, err := strconv.ParseFloat(word, 64)
	if err != nil {
		return 0
	}
	return int64(s*ticks + 0.5)
}

// marked says whether the environment that a process began with has a line.
func (p Process) marked(mark string) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/environ")
	if err != nil {
		return false // gone, or another user's
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if string(kv) == mark {
			return true
		}
	}
	return false
}

// Kill stops processes, so that none of them begins others, and then kills them.
func Kill(procs []Process) {
	handles := make([]*os.Process, 0, len(procs))
	for _, p := range procs {
		// The handle is opened first and the process read again, so that a pid that
		// was given to another is never signalled.
		h, err := os.FindProcess(p.PID)
		if err != nil {
			continue
		}
		if now, ok := look(p.PID); ok && now.Born == p.Born {
			handles = append(handles, h)
			// Gone already is what we want.
			_ = h.Signal(syscall.SIGSTOP)
			continue
		}
		// Releasing a handle can't fail in a way that matters.
		_ = h.Release()
	}
	for _, h := range handles {
		_ = h.Signal(syscall.SIGKILL)
		_ = h.Release()
	}
}

// limited wraps a command with a limit of processes for its user, and makes it what
// the kernel ends first when memory runs out. The limit is set by a shell in the
// cell: from outside, prlimit(2) would need more rights over another user's process
// than the runner has, and would come after what the command had started by then;
// the runner's own limit, to be inherited, counts against all that has the runner's
// number on this machine. Shells call it -u or -p.
func limited(n int64, command []string) []string {
	script := "ulimit -u " + strconv.FormatInt(n, 10) + " 2>/dev/null || ulimit -p " + strconv.FormatInt(n, 10) +
		` 2>/dev/null; echo 500 2>/dev/null >/proc/self/oom_score_adj; exec "$@"`
	return append([]string{"/bin/sh", "-c", script, "sh"}, command...)
}

// countsApart says whether the kernel counts the processes of a user in each user
// namespace by themselves, as it does since 5.14. Before, a limit for one box would
// count all that the user runs on this machine.
func countsApart() bool {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return false
	}
	major, rest, _ := strings.Cut(string(release), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err := strconv.Atoi(major)
	b, _ := strconv.Atoi(strings.TrimSpace(minor)) // 0 for what is no number
	return err == nil && (a > 5 || a == 5 && b >= 14)
}
