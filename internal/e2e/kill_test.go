//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/api"
)

// seedOf is the seed of a random case, which its log names.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("GASTOWN_E2E_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("GASTOWN_E2E_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("GASTOWN_E2E_SEED=%d", seed)
	return seed
}

// testKilledServers kills servers at random moments, before they are ready too,
// while beads conflict and fail their gates.
func testKilledServers(t *testing.T, program string) {
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, program, "checkpoint.interval=300ms")
	w.start()
	w.settle(api.Gate{Name: "clean", Command: "! ls bad-* 2>/dev/null"})
	const slow = "i=0; while [ $i -lt 8 ]; do i=$((i+1)); echo $i > \"$GASTOWN_BEAD.work\"; sleep 0.1; done\n"
	var ids []string
	for i := range 8 {
		switch i % 4 {
		case 0, 1: // all of these append to the same file
			ids = append(ids, w.sling(fmt.Sprintf("Append %d", i), slow+`grep -qx "$GASTOWN_BEAD" list.txt || echo "$GASTOWN_BEAD" >> list.txt`))
		case 2: // red, then green
			ids = append(ids, w.sling(fmt.Sprintf("Red %d", i), "attempt=1\n"+slow+`echo bad > "bad-$GASTOWN_BEAD"`,
				slow+`rm -f "bad-$GASTOWN_BEAD"; echo good > "good-$GASTOWN_BEAD"`))
		default:
			ids = append(ids, w.sling(fmt.Sprintf("Plain %d", i), slow+`echo plain > "plain-$GASTOWN_BEAD"`))
		}
	}
	kills := w.killAtRandom(random, ids)
	t.Logf("%d servers were killed", kills)
	w.start()
	for _, id := range ids {
		w.mergedOnce(w.closed(id))
	}
	w.asleep()
	w.hubIsTidy()
	w.quiet()
}

// killAtRandom starts and kills servers until the work is done, at most 12.
func (w *world) killAtRandom(random *rand.Rand, ids []string) (kills int) {
	for kills < 12 {
		moment := time.Duration(random.IntN(1500)) * time.Millisecond
		pass(moment)
		w.kill()
		kills++
		if random.IntN(3) == 0 {
			w.begin(nil) // dies while it starts
			pass(time.Duration(random.IntN(150)) * time.Millisecond)
			w.kill()
			kills++
		}
		w.start()
		open := 0
		for _, id := range ids {
			w.until("the state of "+id, func(ctx context.Context) error {
				b, err := w.api.Bead(ctx, id)
				if err == nil && b.Status != "closed" {
					open++
				}
				return err
			})
		}
		if open == 0 {
			break
		}
	}
	if kills < 4 {
		w.t.Errorf("the work was done after %d kills, this proves little", kills)
	}
	w.kill()
	return kills
}

// mergedOnce checks the way of a closed bead into the target.
func (w *world) mergedOnce(b api.Bead) {
	w.t.Helper()
	if b.Proof == nil || b.Proof.Kind != "merged" || b.Commit == "" {
		w.t.Errorf("%s is closed by %+v", b.ID, b.Proof)
		return
	}
	merges := w.git("--git-dir", w.upstream, "log", "--first-parent", "--format=%H", "--grep=^Bead: "+b.ID+"$", "main")
	if n := len(strings.Fields(merges)); n != 1 {
		w.t.Errorf("%s was merged %d times: %s", b.ID, n, merges)
	}
	w.git("--git-dir", w.upstream, "merge-base", "--is-ancestor", b.Commit, "main")
	for _, f := range b.Failures {
		if f.Charged && !strings.Contains(f.Reason, "clean") {
			w.t.Errorf("%s was charged for %q", b.ID, f.Reason)
		}
	}
}

// hubIsTidy checks that only the target is left in the server's repository, there and upstream.
func (w *world) hubIsTidy() {
	w.t.Helper()
	hub := filepath.Join(w.data, "hub", w.town, "web.git")
	for _, ref := range strings.Fields(w.git("--git-dir", hub, "for-each-ref", "--format=%(refname)")) {
		if strings.HasPrefix(ref, "refs/gastown/") || strings.HasPrefix(ref, "refs/heads/gt/") {
			w.t.Errorf("the hub still has %s", ref)
		}
	}
	if refs := w.git("--git-dir", w.upstream, "for-each-ref", "--format=%(refname)"); refs != "refs/heads/main" {
		w.t.Errorf("upstream has %s", refs)
	}
}

// numbers is a bead that writes a numbered file every 100 ms until it is
// released, and tells the world how many it found each time it begins.
func (w *world) numbers() string {
	return `n=$(ls | grep -c '^num-' || true)
echo "$n" >> '` + filepath.Join(w.root, "found") + `'
while [ ! -e '` + w.release + `' ]; do n=$((n+1)); echo $n > num-$n; sleep 0.1; done`
}

// found is how many files each run found at its begin.
func (w *world) found() (out []int) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.root, "found"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.t.Fatal(err)
	}
	for _, line := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(line)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

// savedFiles waits for a checkpoint newer than the given one and returns how many files it has.
func (w *world) savedFiles(id, newer string) (checkpoint string, files int) {
	w.t.Helper()
	w.until("a checkpoint of "+id, func(ctx context.Context) error {
		b, err := w.api.Bead(ctx, id)
		if err != nil {
			return err
		}
		if b.Checkpoint == "" || b.Checkpoint == newer {
			return errors.New("the bead has none")
		}
		checkpoint = b.Checkpoint
		return nil
	})
	hub := filepath.Join(w.data, "hub", w.town, "web.git")
	for _, name := range strings.Fields(w.git("--git-dir", hub, "ls-tree", "--name-only", checkpoint)) {
		if strings.HasPrefix(name, "num-") {
			files++
		}
	}
	return checkpoint, files
}

// resumed waits for the begin of the n-th run, which must find what was saved.
func (w *world) resumed(n, saved int) {
	w.t.Helper()
	w.until(fmt.Sprintf("run %d", n), func(context.Context) error {
		if found := w.found(); len(found) < n {
			return fmt.Errorf("runs began with %v files", found)
		}
		return nil
	})
	if got := w.found()[n-1]; saved == 0 || got < saved {
		w.t.Errorf("run %d began with %d files, %d were saved", n, got, saved)
	}
}

func testKilledRunner(t *testing.T, program string) {
	w := newWorld(t, program, "checkpoint.interval=300ms")
	w.start()
	w.settle()
	id := w.sling("Numbers", w.numbers())
	checkpoint := ""
	for n := range 2 {
		run := w.spawned(id, int64(n))
		checkpoint, _ = w.savedFiles(id, checkpoint)
		var saved int
		checkpoint, saved = w.savedFiles(id, checkpoint)
		r := w.record()
		if err := syscall.Kill(r.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.resumed(n+2, saved)
		if w.alive(run.PID) {
			t.Errorf("the agent %d of the killed runner is still there", run.PID)
		}
		if now := w.record(); now.Generation != r.Generation+1 {
			t.Errorf("the sandbox was %+v and is %+v", r, now)
		}
	}
	w.write(w.release, "")
	b := w.closed(id)
	if b.Charged != 0 || b.Attempt != 1 || len(b.Runs) != 3 {
		t.Errorf("attempt %d, %d charged, runs %+v, failures %+v", b.Attempt, b.Charged, b.Runs, b.Failures)
	}
	w.mergedOnce(b)
	w.asleep()
	w.hubIsTidy()
	w.quiet()
}

func testKilledAgent(t *testing.T, program string) {
	w := newWorld(t, program, "checkpoint.interval=300ms")
	w.start()
	w.settle()
	id := w.sling("Numbers", w.numbers())
	run := w.spawned(id, 0)
	checkpoint, _ := w.savedFiles(id, "")
	_, saved := w.savedFiles(id, checkpoint)
	if !w.alive(run.PID) {
		t.Fatalf("the agent is said to be process %d, which is somebody else's", run.PID)
	}
	if err := syscall.Kill(run.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.resumed(2, saved)
	w.write(w.release, "")
	b := w.closed(id)
	if b.Charged != 0 || b.Attempt != 1 {
		t.Errorf("attempt %d, %d charged: %+v", b.Attempt, b.Charged, b.Failures)
	}
	if s := w.sandbox(); s.Generation != 1 {
		t.Errorf("the sandbox is %+v", s)
	}
	w.mergedOnce(b)
	w.quiet()
}

// testFrozenServer stops a server for longer than the lease of its runs.
func testFrozenServer(t *testing.T, program string) {
	const lease = 4 * time.Second // a runner that gets no processor for so long is lost
	w := newWorld(t, program, "lease="+lease.String())
	w.start()
	w.settle()
	id := w.sling("Long work", w.held())
	run, first := w.spawned(id, 0), w.record()
	for range 2 {
		w.heard(time.Now())
		w.signal(syscall.SIGSTOP)
		pass(2 * lease)
		woke := time.Now()
		w.signal(syscall.SIGCONT)
		w.heard(woke.Add(5 * lease / 4)) // listening again for longer than the lease, too
	}
	if now := w.record(); now != first || !w.alive(run.PID) {
		t.Errorf("the sandbox was %+v and is %+v", first, now)
	}
	w.write(w.release, "")
	if b := w.closed(id); len(b.Runs) != 1 || len(b.Failures) != 0 {
		t.Errorf("the bead had runs %+v and failures %+v", b.Runs, b.Failures)
	}
	if bad := w.ledger("sandbox.wedged", "sandbox.lost", "breaker.open"); len(bad) > 0 {
		t.Errorf("the ledger has %+v", bad)
	}
	w.quiet()
}

// testFrozenRunner stops a runner for longer than its lease, while somebody listens.
func testFrozenRunner(t *testing.T, program string) {
	w := newWorld(t, program, "lease=4s")
	w.start()
	w.settle()
	id := w.sling("Long work", w.held())
	run, first := w.spawned(id, 0), w.record()
	w.heard(time.Now())
	if err := syscall.Kill(first.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	next := w.spawned(id, run.Epoch)
	if w.alive(first.PID) || w.alive(run.PID) {
		t.Errorf("the frozen runner %d lives: %v; its agent %d: %v", first.PID, w.alive(first.PID), run.PID, w.alive(run.PID))
	}
	if next.Generation != first.Generation+1 {
		t.Errorf("the next run is of generation %d", next.Generation)
	}
	if wedged := w.ledger("sandbox.wedged"); len(wedged) != 1 {
		t.Errorf("the ledger has %+v", wedged)
	}
	w.write(w.release, "")
	if b := w.closed(id); b.Charged != 0 || b.Attempt != 1 || len(b.Runs) != 2 {
		t.Errorf("attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	w.quiet()
}
