package runner

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// meterEvery is how often files are summed when the disk does not fill, and
	// meterShare how much longer than that took nothing is summed again.
	meterEvery, meterShare = 5 * time.Second, 50
	// meterTime bounds one sum; what it reaches by then counts.
	meterTime = 30 * time.Second
)

// meter measures what a directory takes on the disk, more than when it was made.
// Files are summed when the disk got fuller, which costs nothing to see.
type meter struct {
	dir   string
	limit int64 // bytes
	base  int64

	mu   sync.Mutex // guards the fields below
	busy bool
	used int64 // of the whole disk when files were last summed
	next time.Time
	soon time.Time // not before, even when the disk fills
}

// newMeter begins to measure; a limit below 0 is three quarters of what is free.
func newMeter(dir string, limit int64) *meter {
	used, free := space(dir)
	if limit < 0 {
		limit = free / 4 * 3
	}
	ctx, cancel := context.WithTimeout(context.Background(), meterTime)
	defer cancel()
	m := &meter{dir: dir, limit: limit, used: used, next: time.Now().Add(meterEvery)}
	m.base = sumFiles(ctx, dir)
	return m
}

// due claims the next sum when it is time for one.
func (m *meter) due(now time.Time) bool {
	used, _ := space(m.dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	fills := used-m.used >= max(m.limit/16, 1<<20) && now.After(m.soon)
	if m.busy || !fills && now.Before(m.next) {
		return false
	}
	m.busy, m.used = true, used
	return true
}

// measure returns what the directory has more than at the beginning, in bytes.
func (m *meter) measure(ctx context.Context) int64 {
	ctx, cancel := context.WithTimeout(ctx, meterTime)
	defer cancel()
	begin := time.Now()
	sum := sumFiles(ctx, m.dir)
	m.mu.Lock()
	defer m.mu.Unlock()
	took := time.Since(begin)
	m.busy, m.soon, m.next = false, time.Now().Add(5*took), time.Now().Add(max(meterEvery, meterShare*took))
	return sum - m.base
}

// space is what is used and free of the disk of a directory, in bytes.
func space(dir string) (used, free int64) {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 0, 0
	}
	block := int64(st.Bsize)
	return int64(st.Blocks-st.Bfree) * block, int64(st.Bavail) * block
}

// sumFiles is what the files below a directory take, in bytes. Files with several
// names count once; links are not followed; what can't be read takes nothing.
func sumFiles(ctx context.Context, dir string) (sum int64) {
	type file struct{ dev, ino uint64 }
	seen := map[file]bool{}
	// An error of a file is that it is gone, and one of the walk is the end of its time.
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return nil
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if sys.Nlink > 1 && !d.IsDir() {
			f := file{uint64(sys.Dev), uint64(sys.Ino)}
			if seen[f] {
				return nil
			}
			seen[f] = true
		}
		sum += int64(sys.Blocks) * 512
		return nil
	})
	return sum
}

// manyProcesses is what a sandbox has that nobody limits.
const manyProcesses = 8192

// sandboxHas is the memory of the sandbox, in bytes, 0 when it is not known, and
// how many processes it may have: by its cgroup, else the machine's.
func sandboxHas() (memory int64, processes int) {
	memory = firstNumber("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if f := strings.Fields(string(text)); len(f) > 1 && f[0] == "MemTotal:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil && (memory == 0 || memory > kb<<10) {
				memory = kb << 10
			}
		}
	}
	processes = int(firstNumber("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"))
	if processes <= 0 || processes > manyProcesses {
		processes = manyProcesses
	}
	return memory, processes
}

// firstNumber reads the first of the files that is there and holds a number.
func firstNumber(paths ...string) int64 {
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 {
			return n
		}
	}
	return 0
}
