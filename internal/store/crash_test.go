//go:build unix

package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// The test binary runs itself as a server that writes: crashDir is its data
// directory, crashLimit the file size (bytes) at which its disk breaks, or empty.
const (
	crashDir   = "STORE_TEST_CRASH_DIR"
	crashLimit = "STORE_TEST_CRASH_LIMIT"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := writeForEver(dir); err != nil {
			fmt.Println("failed", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const crashTowns = 8

// writeForEver commits to all towns at once and prints each acknowledged version
// as "town version". With a limit it ends when the store refuses.
func writeForEver(dir string) error {
	ctx := context.Background()
	news := make(chan store.Health, 100)
	s, err := store.Open(ctx, dir, store.Options{CacheKiB: 2048, Changed: func(h store.Health) { news <- h }})
	if err != nil {
		return err
	}
	if limit := os.Getenv(crashLimit); limit != "" {
		if err := limitFiles(limit); err != nil {
			return err
		}
	}
	var mu sync.Mutex // guards stdout
	var all sync.WaitGroup
	refusals := make([]error, crashTowns)
	for i := range crashTowns {
		all.Go(func() {
			town := fmt.Sprint("t", i)
			h, err := s.Head(ctx, town)
			for v := h.Version; err == nil; v++ {
				_, err = s.Commit(ctx, store.Commit{Town: town, Expect: v, CommitID: "c", Columns: store.Columns{Sandbox: store.Asleep},
					Rows:   []store.Row{{Kind: "bead", ID: fmt.Sprint(v), Body: []byte(strings.Repeat("x", 3000))}},
					Ledger: []store.Entry{{Seq: v}}})
				if err == nil {
					mu.Lock()
					fmt.Println(town, v+1)
					mu.Unlock()
				}
			}
			refusals[i] = err
		})
	}
	all.Wait()
	if err := afterRefusal(ctx, s, refusals); err != nil {
		return err
	}
	return afterRepair(ctx, s, news)
}

// afterRepair lets the disk take writes again: the same store does, too, and has
// itself checked.
func afterRepair(ctx context.Context, s *store.SQLite, news chan store.Health) error {
	h := <-news
	for h.State == store.Healthy {
		h = <-news // the check after the unclean end
	}
	if h.State != store.ReadOnly || h.Hint == "" {
		return fmt.Errorf("the store is %+v", h)
	}
	if err := limitFiles(""); err != nil {
		return err
	}
	for h.State != store.Healthy || h.Check != store.CheckOK {
		h = <-news
	}
	head, err := s.Head(ctx, "t0")
	if err != nil {
		return err
	}
	_, err = s.Commit(ctx, store.Commit{Town: "t0", Expect: head.Version, CommitID: "c", Columns: store.Columns{Sandbox: store.Asleep},
		Rows: []store.Row{{Kind: "bead", ID: "after", Body: []byte("{}")}}, Ledger: []store.Entry{{Seq: head.Version}}})
	if err == nil {
		fmt.Println("t0", head.Version+1)
		fmt.Println(repaired)
	}
	return err
}

const repaired = "repaired"

// afterRefusal checks a store whose disk broke: writes are refused, reads work.
func afterRefusal(ctx context.Context, s *store.SQLite, refusals []error) error {
	for _, err := range refusals {
		if !errs.Is(err, errs.Unavailable) {
			return fmt.Errorf("a writer ended with %w", err)
		}
	}
	err := s.SetMeta(ctx, "k", "v")
	if !errs.Is(err, errs.Unavailable) || errors.Is(err, store.ErrUnknown) || !strings.Contains(err.Error(), "read-only") {
		return fmt.Errorf("a write after the failure gave %w", err)
	}
	_, _, err = s.Load(ctx, "t0", 0)
	return err
}

// limitFiles bounds the size of files, "" ends that.
func limitFiles(text string) error {
	r := syscall.Rlimit{}
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &r); err != nil {
		return err
	}
	r.Cur = r.Max
	if text != "" {
		if _, err := fmt.Sscan(text, &r.Cur); err != nil {
			return err
		}
		signal.Ignore(syscall.SIGXFSZ)
	}
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &r)
}

func prepareTowns(t *testing.T, dir string) {
	t.Helper()
	s := openSQLite(t, dir, small)
	for i := range crashTowns {
		createTown(t, s, fmt.Sprint("t", i))
	}
	closeStore(t, s)
}

// child starts the writing server; acks reads its acknowledgements until stop
// returns true or it ends.
func child(t *testing.T, dir string, env ...string) (*exec.Cmd, func(acked map[string]int64, stop func() bool) (last string)) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), crashDir+"="+dir), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	return cmd, func(acked map[string]int64, stop func() bool) (last string) {
		for !stop() && lines.Scan() {
			last = lines.Text()
			var town string
			var v int64
			if n, err := fmt.Sscan(last, &town, &v); n == 2 && err == nil {
				acked[town] = v
			}
		}
		return last
	}
}

func checkAcknowledged(t *testing.T, dir string, acked map[string]int64) {
	t.Helper()
	s := openSQLite(t, dir, small)
	defer closeStore(t, s)
	for town, v := range acked {
		h, rows, err := s.Load(t.Context(), town, 0)
		if err != nil {
			t.Fatal(err)
		}
		if h.Version < v {
			t.Errorf("town %s: version %d was acknowledged, %d is there", town, v, h.Version)
		}
		if int64(len(rows)) != h.Version-1 || h.LedgerSeq != h.Version-1 {
			t.Errorf("town %s: version %d with %d rows and ledger %d", town, h.Version, len(rows), h.LedgerSeq)
		}
	}
}

func TestAcknowledgedCommitsSurviveKill9(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	prepareTowns(t, dir)
	acked := map[string]int64{}
	for range 3 {
		cmd, read := child(t, dir)
		n, until := 0, 100+rand.IntN(400)
		last := read(acked, func() bool { n++; return n > until })
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		read(acked, func() bool { return false })
		if err := cmd.Wait(); err == nil {
			t.Fatal("the server ended by itself")
		}
		if len(acked) == 0 {
			t.Fatalf("nothing was acknowledged; last line %q", last)
		}
		checkAcknowledged(t, dir, acked)
	}
}

func TestABrokenDiskTurnsTheStoreReadOnlyUntilItWorksAgainAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	prepareTowns(t, dir)
	acked := map[string]int64{}
	cmd, read := child(t, dir, crashLimit+"=1000000")
	last := read(acked, func() bool { return false })
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v; last line %q", err, last)
	}
	if len(acked) == 0 || last != repaired {
		t.Fatalf("%d towns were acknowledged; last line %q", len(acked), last)
	}
	checkAcknowledged(t, dir, acked)
}
