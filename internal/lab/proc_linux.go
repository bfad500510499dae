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
