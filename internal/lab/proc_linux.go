package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// clockTick is the unit of CPU times in /proc: 100 per second on every
// architecture that Linux runs Go on.
const clockTick = 100

// processUsage reads /proc; ok is false where there is none.
func processUsage(pid int) (u usage, ok bool, err error) {
	read := func(name string) string {
		text, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		err = errors.Join(err, readErr)
		return string(text)
	}
	number := func(text string) int64 {
		n, parseErr := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		err = errors.Join(err, parseErr)
		return n
	}
	stat := read("stat")
	// The name stands in parentheses and may contain anything; utime and stime
	// are the 12th and 13th field after it.
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return u, true, errors.Join(err, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f)))
	}
	u.cpu = float64(number(f[11])+number(f[12])) / clockTick
	u.cpu = max(u.cpu, onCPU(pid))
	u.rss = number(field(read("status"), "VmRSS:")) << 10
	u.wrote = number(field(read("io"), "write_bytes:"))
	return u, true, err
}

// onCPU is the time that the threads of a process ran, in seconds, to the
// nanosecond: an idle server runs for less than a tick at a time, which the
// ticks of /proc/pid/stat do not see. 0 where the kernel does not say.
func onCPU(pid int) float64 {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0
	}
	var sum float64
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		if ns, err := strconv.ParseInt(first, 10, 64); err == nil {
			sum += float64(ns) / 1e9
		}
	}
	return sum
}

// field returns the first word after a name at the begin of a line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return words[0]
			}
		}
	}
	return "0"
}

// agentMemory sums what the processes of agents hold that run below a directory,
// and counts those that are not their tools'. One that ends meanwhile counts for nothing.
func agentMemory(below string) (bytes int64, agents int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, err
	}
	parents := map[string]string{}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !strings.Contains(string(env), "GASTOWN_AGENT_COOKIE=") || !strings.Contains(string(env), below) {
			continue
		}
		rollup, err := os.ReadFile(filepath.Join("/proc", e.Name(), "smaps_rollup"))
		if err != nil {
			continue
		}
		kb, err := strconv.ParseInt(field(string(rollup), "Pss:"), 10, 64)
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if err != nil {
			continue
		}
		parent := field(string(status), "PPid:")
		if sameProgram(e.Name(), parent) {
			continue // between fork and exec: its memory is its parent's
		}
		bytes += kb << 10
		parents[e.Name()] = parent
	}
	for _, parent := range parents {
		if _, ok := parents[parent]; !ok {
			agents++
		}
	}
	return bytes, agents, nil
}

// sameProgram reports whether two processes have the same arguments.
func sameProgram(pid, other string) bool {
	one, err1 := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	two, err2 := os.ReadFile(filepath.Join("/proc", other, "cmdline"))
	return err1 == nil && err2 == nil && string(one) == string(two)
}
