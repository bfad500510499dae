package runner

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gastown/internal/runner/apart"
)

const mb = 1 << 20

// fakeCell is a cell of all processes with its user.
type fakeCell struct {
	apart.Cell
	uid int
}

func (c fakeCell) Mine(all []apart.Process, _ int, _ string) []apart.Process {
	return slices.DeleteFunc(slices.Clone(all), func(p apart.Process) bool { return p.UID != c.uid })
}

// fakes is a guard over processes that the test makes, and what it did.
type fakes struct {
	*guard
	all    []apart.Process
	killed []int
	told   []string
	ended  []string
}

func newFakes() *fakes {
	f := &fakes{}
	f.guard = &guard{procs: func() []apart.Process { return f.all }, kill: func(ps []apart.Process) {
		for _, p := range ps {
			f.killed = append(f.killed, p.PID)
			f.all = slices.DeleteFunc(f.all, func(o apart.Process) bool { return o.PID == p.PID })
		}
	}}
	return f
}

func (f *fakes) ward(uid, root int, l limits) *ward {
	w := &ward{cell: fakeCell{uid: uid}, root: root, since: 100, limits: l,
		tell: func(s string) { f.told = append(f.told, s) }, end: func(s string) { f.ended = append(f.ended, s) }}
	f.wards = append(f.wards, w)
	return w
}

func proc(pid, parent, uid int, born, memory int64) apart.Process {
	return apart.Process{PID: pid, Parent: parent, UID: uid, Born: born, Name: "p", Memory: memory * mb, Threads: 1}
}

func TestTheBiggestToolEndsFirstThenTheAgent(t *testing.T) {
	t.Parallel()
	f := newFakes()
	f.ward(1, 10, limits{memory: 500 * mb})
	f.ward(2, 20, limits{memory: 500 * mb})
	f.all = []apart.Process{proc(10, 1, 1, 50, 450), proc(11, 10, 1, 60, 10), proc(12, 10, 1, 200, 90), proc(13, 12, 1, 201, 1), proc(14, 10, 1, 200, 40),
		proc(20, 1, 2, 50, 499)}
	f.look()
	if !slices.Equal(f.killed, []int{12, 13}) || len(f.told) != 1 || len(f.ended) != 0 {
		t.Fatalf("first %v, told %v, ended %v", f.killed, f.told, f.ended)
	}
	if !strings.Contains(f.told[0], "run.max_memory_mb lets it use 500") || !strings.Contains(f.told[0], "90 MB") {
		t.Errorf("it says %q", f.told[0])
	}
	f.all = []apart.Process{proc(10, 1, 1, 50, 600), proc(11, 10, 1, 60, 10), proc(14, 10, 1, 200, 40), proc(20, 1, 2, 50, 499)}
	f.killed = nil
	f.look()
	if !slices.Equal(f.killed, []int{14}) || len(f.ended) != 0 {
		t.Fatalf("then %v, ended %v", f.killed, f.ended)
	}
	f.look()
	if len(f.ended) != 1 || len(f.killed) != 1 {
		t.Errorf("at last %v, ended %v", f.killed, f.ended)
	}
}

func TestARunThatGoesOverItsLimitsAgainAndAgainEnds(t *testing.T) {
	t.Parallel()
	f := newFakes()
	f.ward(1, 10, limits{processes: 40})
	for n := 1; n <= maxStrikes; n++ {
		f.all = []apart.Process{proc(10, 1, 1, 50, 1)}
		if f.look() || len(f.ended) != 0 {
			t.Fatalf("ended before the time %d: %v", n, f.ended)
		}
		for pid := 100; pid < 137; pid++ { // 38 in all: a limit that holds lets it have no more
			f.all = append(f.all, proc(pid, 1, 1, 200, 1))
		}
		f.killed = nil
		f.look()
		if len(f.killed) != 37 || slices.Contains(f.killed, 10) {
			t.Fatalf("of the tools %v were ended", f.killed)
		}
	}
	if len(f.ended) != 1 || !strings.Contains(f.ended[0], "run.max_processes lets it have 40") {
		t.Errorf("ended: %v", f.ended)
	}
}

func TestRunsThatShareAProcessHaveTheirLimitsTogetherAndNoneIsBlamed(t *testing.T) {
	t.Parallel()
	f := newFakes()
	f.whole.memory = 700 * mb
	f.ward(1, 10, limits{memory: 300 * mb})
	f.ward(1, 10, limits{memory: 300 * mb})
	f.all = []apart.Process{proc(10, 1, 1, 50, 400), proc(11, 10, 1, 200, 150)}
	f.look()
	if len(f.killed)+len(f.told) != 0 {
		t.Fatalf("ended %v, told %v", f.killed, f.told)
	}
	f.ward(1, 10, limits{memory: 300 * mb}) // 900 together, but the sandbox has no more than 700
	f.all = []apart.Process{proc(10, 1, 1, 50, 710), proc(11, 10, 1, 200, 150)}
	f.look()
	if !slices.Equal(f.killed, []int{11}) || len(f.told) != 3 {
		t.Fatalf("ended %v, told %v", f.killed, f.told)
	}
	f.look()
	if !slices.Equal(f.killed, []int{11, 10}) || len(f.ended) != 0 {
		t.Errorf("ended %v, blamed %v", f.killed, f.ended)
	}
}

func TestNoLimitIsNone(t *testing.T) {
	t.Parallel()
	f := newFakes()
	f.ward(1, 10, limits{})
	f.all = []apart.Process{proc(10, 1, 1, 50, 1<<20), proc(11, 10, 1, 200, 1<<20)}
	if f.look() || len(f.killed)+len(f.told) != 0 {
		t.Errorf("ended %v, told %v", f.killed, f.told)
	}
}

func TestTheDiskOfARunIsWhatItAdded(t *testing.T) {
	t.Parallel()
	f := newFakes()
	dir := t.TempDir()
	fill := func(name string, size int) {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fill("before", 3*mb)
	w := f.ward(1, 10, limits{})
	w.disk = newMeter(dir, 2*mb)
	f.all = []apart.Process{proc(10, 1, 1, 50, 1), proc(11, 10, 1, 200, 1)}
	fill("one", mb)
	if err := os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "same")); err != nil {
		t.Fatal(err)
	}
	f.measure(t.Context(), w)
	if len(f.ended) != 0 {
		t.Fatalf("ended: %v", f.ended)
	}
	fill("two", 2*mb)
	f.measure(t.Context(), w)
	if len(f.ended) != 1 || !slices.Equal(f.killed, []int{11}) || !strings.Contains(f.ended[0], "run.max_disk_mb lets it: 2") {
		t.Errorf("ended %v, tools %v", f.ended, f.killed)
	}
	if now := time.Now(); !w.disk.due(now.Add(time.Hour)) || w.disk.due(now.Add(time.Hour)) {
		t.Error("files are summed never, or twice at once")
	}
	f.wards = nil // it ended while files were summed
	f.measure(context.Background(), w)
	if len(f.ended) != 1 {
		t.Error("a run that is over was ended")
	}
}
