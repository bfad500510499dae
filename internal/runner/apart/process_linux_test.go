package apart

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestProcessesAreReadWhateverTheyCallThemselves(t *testing.T) {
	t.Parallel()
	stat := "7 (a) Z 1 (b) S 3 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 2 0 4711 1 1"
	status := "Name:\ta) Z 1\nState:\tS (sleeping)\nPPid:\t3\nUid:\t10001\t10001\t10001\t10001\nVmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t 800 kB\nRssShmem:\t  20 kB\nVmSwap:\t  3 kB\nThreads:\t2\n"
	p, ok := parseProcess(7, []byte(stat), []byte(status))
	if want := (Process{PID: 7, Parent: 3, Born: 4711, UID: 10001, Name: "a)", Memory: 123 << 10, Threads: 2}); !ok || p != want {
		t.Errorf("%v %+v", ok, p)
	}
	for _, bad := range []string{"", "7 (x", "7 (x) S 1", strings.Replace(stat, "(b) S", "(b) Z", 1), strings.Replace(stat, "4711", "x", 1)} {
		if p, ok := parseProcess(7, []byte(bad), []byte(status)); ok {
			t.Errorf("%q is %+v", bad, p)
		}
	}
}

func FuzzParseProcess(f *testing.F) {
	f.Add("7 (a) S 3 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 2 0 4711 1 1", "Name:\tx\nUid:\t1\n")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, stat, status string) {
		if p, ok := parseProcess(7, []byte(stat), []byte(status)); ok && (p.PID != 7 || p.UID < 0) {
			t.Errorf("%+v", p)
		}
	})
}

// Without users and boxes, processes are found below the first, and by their mark.
func TestProcessesAreFoundAndEnded(t *testing.T) {
	t.Parallel()
	before := Now()
	mark := "APART_TEST=" + t.Name() + t.TempDir()
	cmd := exec.Command("/bin/sh", "-c", `env -i sleep 1000 & echo; wait`)
	cmd.Env = append(os.Environ(), mark)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = Open().Start(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	byRoot := Open().Mine(Processes(), cmd.Process.Pid, "")
	byMark := Open().Mine(Processes(), 0, mark)
	if len(byRoot) < 2 || !slices.ContainsFunc(byMark, func(p Process) bool { return p.PID == cmd.Process.Pid }) {
		t.Errorf("found below the first: %+v; by the mark: %+v", byRoot, byMark)
	}
	for _, p := range byRoot {
		if p.Born < before || p.Threads != 1 || p.UID != os.Getuid() {
			t.Errorf("before %d: %+v", before, p)
		}
	}
	stranger := byRoot[0]
	stranger.Born++
	Kill([]Process{stranger}) // the number of another process
	if len(Open().Mine(Processes(), cmd.Process.Pid, "")) < 2 {
		t.Error("one that was not meant was ended")
	}
	Kill(byRoot)
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended with %v", err)
	}
}
