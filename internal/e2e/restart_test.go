//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/errs"
)

// restarts is how often a loop kills its server.
const restarts = 10

// testRestartsAsleep is the bug that this project began with, on real
// processes: a restart, an idle look and a due renewal wake and write nothing.
func testRestartsAsleep(t *testing.T, program string) {
	w := newWorld(t, program, "token.refresh_interval=100ms")
	w.start()
	w.settle()
	w.closed(w.sling("One file", "echo one > one.txt"))
	w.asleep()
	// The first start after work drops deleted rows, the second moves the log of
	// that into the store's file.
	for range 2 {
		w.kill()
		w.start()
		w.asleep()
	}
	before, seq := w.sandbox(), len(w.ledger())
	w.kill()
	content := w.storeContent()
	for life := range restarts {
		w.start()
		ready := time.Now()
		var m metrics
		w.until("a look at all idle towns", func(ctx context.Context) (err error) {
			if m, err = w.metrics(ctx); err == nil && (m["gastown_hall_idle_reads_total"] == 0 || time.Since(ready) < 1100*time.Millisecond) {
				err = errors.New("the idle interval is not over")
			}
			return err
		})
		for _, name := range []string{"gastown_hall_sandbox_starts_total", "gastown_hall_loads_total", "gastown_hall_commits_total",
			"gastown_hall_claimed_total", "gastown_hall_ticks_total", "gastown_hall_effects_total",
			"gastown_store_rows_written_total", "gastown_store_bytes_written_total", "gastown_store_transactions_total"} {
			if m[name] != 0 {
				t.Errorf("life %d: %s is %v", life, name, m[name])
			}
		}
		w.kill()
		if got := w.storeContent(); got != content {
			t.Errorf("life %d changed the store's files", life)
		}
	}
	w.start()
	if after := w.sandbox(); after != before {
		t.Errorf("the sandbox was %+v and is %+v", before, after)
	}
	if n := len(w.ledger()); n != seq {
		t.Errorf("the ledger had %d entries and has %d", seq, n)
	}
	w.quiet()
}

// storeContent is a hash over the store's file and its log.
func (w *world) storeContent() (sum [sha256.Size]byte) {
	w.t.Helper()
	h := sha256.New()
	for _, name := range []string{"gastown.db", "gastown.db-wal"} {
		b, err := os.ReadFile(filepath.Join(w.data, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatal(err)
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(b), b)
	}
	h.Sum(sum[:0])
	return sum
}

// testRestartsAwake kills servers while an agent works: one sandbox, one run,
// and no more renewals than the stored throttle allows, over all lives.
func testRestartsAwake(t *testing.T, program string) {
	const interval = 3 * time.Second
	w := newWorld(t, program, "lease=9s", "token.refresh_interval="+interval.String())
	w.start()
	w.settle()
	id := w.sling("Long work", w.held())
	run, first := w.spawned(id, 0), w.record()
	for life := range restarts {
		w.kill()
		began := time.Now()
		w.start()
		w.heard(began)
		if now := w.record(); now != first || !w.alive(first.PID) || !w.alive(run.PID) {
			t.Fatalf("life %d: the sandbox was %+v and is %+v, alive %v, its agent %v", life, first, now, w.alive(first.PID), w.alive(run.PID))
		}
	}
	w.write(w.release, "")
	b := w.closed(id)
	if len(b.Runs) != 1 || b.Charged != 0 || len(b.Failures) != 0 {
		t.Errorf("the bead had runs %+v and failures %+v", b.Runs, b.Failures)
	}
	w.asleep()
	s := w.sandbox()
	if s.Starts != 1 || s.Generation != 1 {
		t.Errorf("the sandbox is %+v", s)
	}
	last := s.StartedAt
	renewed := w.ledger("token.renewed")
	for _, e := range renewed {
		// Both times are stored, the first when the start was decided.
		if e.At.Sub(last) < interval {
			t.Errorf("renewed at %s, only %s after the last time", e.At, e.At.Sub(last))
		}
		last = e.At
	}
	if len(renewed) == 0 || int64(len(renewed)) != s.Renewals {
		t.Errorf("%d renewals in the ledger, %d counted; this proves nothing without one", len(renewed), s.Renewals)
	}
	w.quiet()
}

func testTerminated(t *testing.T, program string) {
	w := newWorld(t, program)
	w.start()
	w.settle()
	id := w.sling("Long work", w.held())
	run, first := w.spawned(id, 0), w.record()
	w.signal(syscall.SIGTERM)
	w.over()
	if !w.server.cmd.ProcessState.Success() {
		t.Errorf("the server ended with %s", w.server.cmd.ProcessState)
	}
	if now := w.record(); now != first || !w.alive(first.PID) || !w.alive(run.PID) {
		t.Errorf("the sandbox was %+v and is %+v, alive %v, its agent %v", first, now, w.alive(first.PID), w.alive(run.PID))
	}
	w.start()
	w.write(w.release, "")
	if b := w.closed(id); len(b.Runs) != 1 {
		t.Errorf("the bead had runs %+v", b.Runs)
	}
	w.quiet()
	if now := w.record(); now.Generation != 1 || now.PID != first.PID {
		t.Errorf("the sandbox was %+v and is %+v", first, now)
	}
}

func testTwoServers(t *testing.T, program string) {
	w := newWorld(t, program)
	w.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	second := exec.CommandContext(ctx, program, "--data", w.data, "serve", "--listen", "127.0.0.1:0")
	second.Env = w.env
	out, err := second.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != errs.ExitCode(errs.Conflict) {
		t.Errorf("the second server ended with %v", err)
	}
	if pid := fmt.Sprintf("pid %d ", w.server.cmd.Process.Pid); !strings.Contains(string(out), "is in use by "+pid) {
		t.Errorf("the second server does not name the first, %s: %s", pid, out)
	}
	if err := w.api.Ready(ctx); err != nil {
		t.Errorf("the first server is disturbed: %v", err)
	}
	w.settle()
	w.closed(w.sling("One file", "echo one > one.txt"))
	w.kill() // what a killed server held is free
	w.start()
	w.quiet()
}

// testRearm gives work to a town that only its row on disk knows of, with alarms
// that would not look for an hour.
func testRearm(t *testing.T, program string) {
	w := newWorld(t, program, "alarm.active_interval=1h", "alarm.idle_interval=1h", "sandbox.grace=0s")
	w.start()
	w.settle()
	for i, before := range []string{"a restart", "the town was dropped from memory"} {
		if i == 0 {
			w.asleep()
			w.kill()
			w.start()
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		was, err := w.metrics(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 && was["gastown_hall_loads_total"] != 0 {
			t.Errorf("after %s the town was loaded already", before)
		}
		b := w.closed(w.sling(fmt.Sprintf("File %d", i), fmt.Sprintf("echo %d > file-%d.txt", i, i)))
		t.Logf("after %s: from sling to the agent's process in %s", before, b.Runs[0].SpawnedAt.Sub(b.CreatedAt))
		w.asleep()
		if i > 0 {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			now, err := w.metrics(ctx)
			cancel()
			if err != nil || now["gastown_hall_loads_total"] == was["gastown_hall_loads_total"] {
				t.Errorf("the town was still in memory, this proves nothing (%v)", err)
			}
			continue
		}
		pass(8 * time.Second) // a town that nothing happens to is kept in memory for 2 to 4 s
	}
	if n, s := len(w.ledger("run.spawned")), w.sandbox(); n != 2 || s.Starts != 2 {
		t.Errorf("%d runs in %d generations", n, s.Starts)
	}
	w.quiet()
}
