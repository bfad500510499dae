package runner

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/runner/apart"
	"gastown/internal/town"
)

// candidate wants gates on a commit that changes one file.
func (f *fakeTown) candidate(gates ...town.GateLimit) {
	f.t.Helper()
	f.write(f.work, "c.txt", "candidate\n")
	f.must(f.work, "add", "-A")
	f.must(f.work, "commit", "-q", "-m", "candidate")
	c := f.must(f.work, "rev-parse", "HEAD")
	ref := "refs/gastown/merge/" + theBead + "/1"
	f.must(f.work, "push", "-q", f.dir, "HEAD:"+ref)
	f.publish(func(d *town.Desired) {
		d.Gates = []town.GateJob{{Bead: theBead, N: 1, Rig: "app", Ref: ref, Candidate: c, Gates: gates}}
	})
}

func gate(name, command string) town.GateLimit {
	return town.GateLimit{Name: name, Command: command, TimeoutMS: 30_000}
}

func TestGatesRunInOrderUpToTheFirstFailure(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.candidate(gate("lint", "cat c.txt; git log -1 --format=%s"), gate("test", "echo broken >&2; env; exit 3"), gate("never", "true"))
	f.begin(nil)
	f.await("gates", func() bool { return len(f.gates) == 1 })
	g := f.gates[0]
	if g.Infra != "" || len(g.Results) != 2 || g.Candidate != f.doc.Gates[0].Candidate {
		t.Fatalf("%+v", g)
	}
	if r := g.Results[0]; !r.Passed || r.Log != "candidate\ncandidate\n" || r.Name != "lint" {
		t.Errorf("%+v", r)
	}
	if r := g.Results[1]; r.Passed || r.ExitCode != 3 || !strings.Contains(r.Log, "broken") || strings.Contains(r.Log, "token-1") {
		t.Errorf("%+v", r)
	}
	full, err := os.ReadFile(filepath.Join(f.disk, "logs/gates", theBead+"-1-test.log"))
	if err != nil || string(full) != g.Results[1].Log {
		t.Errorf("the log on disk: %v", err)
	}
	if _, err := os.Stat(filepath.Join(f.disk, "gates", theBead+"-1")); !os.IsNotExist(err) {
		t.Errorf("the gate's worktree is still there: %v", err)
	}
	f.publish(func(d *town.Desired) { d.Heartbeat = 10 })
	f.awaitReport(town.ReportHeartbeat, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.gates); n != 1 {
		t.Errorf("the same candidate was checked %d times", n)
	}
}

func TestACandidateThatCantBeFetchedIsInfrastructure(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.publish(func(d *town.Desired) {
		d.Gates = []town.GateJob{{Bead: theBead, N: 1, Rig: "app", Candidate: strings.Repeat("1", 40), Gates: []town.GateLimit{gate("x", "true")}}}
	})
	f.begin(nil)
	f.await("gates", func() bool { return len(f.gates) == 1 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if g := f.gates[0]; g.Infra == "" || len(g.Results) != 0 {
		t.Errorf("%+v", g)
	}
}

func TestAGateAtItsLimitTakesItsChildrenWithIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	// A child in the group, one that left it for a session of its own, and the shell itself.
	cmd := `sleep 300 & echo $! >> pids; setsid sh -c 'echo $$ >> pids; sleep 300' & while ! [ $(wc -l < pids) -ge 2 ]; do :; done; echo started; sleep 300`
	if _, err := os.Stat("/usr/bin/setsid"); err != nil {
		cmd = strings.Replace(cmd, "setsid ", "", 1)
	}
	res, err := runGate(t.Context(), place{cell: apart.Open(), dir: dir}, town.GateLimit{Name: "slow", Command: cmd, TimeoutMS: 1000}, filepath.Join(dir, "log"))
	if err != nil || !res.TimedOut || res.Passed || !strings.Contains(res.Log, "started") {
		t.Fatalf("%+v, %v", res, err)
	}
	data, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || running(pid) {
			t.Errorf("process %d outlived its gate (%v)", pid, err)
		}
	}
}

// running tells living processes from zombies that their new parent has not reaped.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		if _, noProc := os.Stat("/proc/self"); noProc != nil {
			return alive(pid)
		}
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

func TestAGateKeepsTheEndOfALongOutput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	res, err := runGate(t.Context(), place{cell: apart.Open(), dir: dir}, gate("long", "yes 0123456789 | head -n 50000; echo the end"), filepath.Join(dir, "log"))
	if err != nil || !res.Passed || len(res.Log) > town.MaxLog || !strings.HasSuffix(res.Log, "the end\n") {
		t.Errorf("%d bytes, %v", len(res.Log), err)
	}
	if st, err := os.Stat(filepath.Join(dir, "log")); err != nil || st.Size() != 50000*11+8 {
		t.Errorf("the log on disk: %v, %v", st, err)
	}
}

func TestDrainCancelsGatesWithoutAReport(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.candidate(gate("hang", "touch "+filepath.Join(f.disk, "begun")+"; sleep 300"))
	f.begin(nil)
	f.awaitPath(filepath.Join(f.disk, "begun"))
	f.publish(func(d *town.Desired) { d.Drain = true })
	f.awaitReport(town.ReportDrained, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.gates) != 0 {
		t.Errorf("%+v", f.gates)
	}
}

func TestGateJobsWithHostileNamesAreRefused(t *testing.T) {
	t.Parallel()
	good := town.GateJob{Bead: theBead, N: 1, Rig: "app", Ref: "refs/gastown/merge/x/1", Candidate: strings.Repeat("a", 40)}
	if err := checkGates(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*town.GateJob){
		"bead": func(j *town.GateJob) { j.Bead = "../x" }, "rig": func(j *town.GateJob) { j.Rig = "a/b" },
		"ref": func(j *town.GateJob) { j.Ref = "--exec=x" }, "candidate": func(j *town.GateJob) { j.Candidate = "HEAD" },
		"n": func(j *town.GateJob) { j.N = 0 },
	} {
		j := good
		edit(&j)
		if err := checkGates(j); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := fileName("../../a b/é"); strings.ContainsAny(got, "/. ") {
		t.Errorf("file name %q", got)
	}
}

// cancelledLate is a context that is found cancelled only after its gate ended.
type cancelledLate struct{ context.Context }

func (cancelledLate) Done() <-chan struct{} { return nil }
func (cancelledLate) Err() error            { return context.Canceled }

func TestAGateThatEndsWhileItIsCancelledEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	res, err := runGate(cancelledLate{t.Context()}, place{cell: apart.Open(), dir: dir}, gate("quick", "exit 3"), filepath.Join(dir, "log"))
	if err != nil || res.ExitCode != 3 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestAGateSeesWhatTheRigExposesAndNothingElseOfOthers(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.candidate(gate("test", `printf '%s' "$NPM_TOKEN" | wc -c; env | grep -c OTHER_TOKEN || true`))
	f.publish(func(d *town.Desired) { d.Gates[0].Env = []string{"NPM_TOKEN=from the vault\nof two lines"} })
	f.begin(nil)
	f.await("gates", func() bool { return len(f.gates) == 1 })
	if r := f.gates[0].Results; len(r) != 1 || strings.Join(strings.Fields(r[0].Log), " ") != "27 0" {
		t.Errorf("%+v", r)
	}
}
