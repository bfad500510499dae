package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"gastown/internal/errs"
)

func openTest(t *testing.T, dir string, opts Options) *SQLite {
	t.Helper()
	opts.CacheKiB, opts.Readers = 2048, 2
	s, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return s
}

func create(t *testing.T, s *SQLite, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.CreateTown(t.Context(), Head{ID: id, Name: id, Columns: Columns{Sandbox: Asleep}}, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func simple(town string, expect int64, body string) Commit {
	return Commit{Town: town, Expect: expect, CommitID: fmt.Sprint(town, expect), Columns: Columns{Sandbox: Asleep},
		Rows: []Row{{Kind: "bead", ID: "b", Body: []byte(body)}}}
}

// hold makes the next COMMIT wait. entered is closed when it does; release lets it
// and all later ones go.
func hold(s *SQLite) (entered chan struct{}, release func()) {
	entered, gate := make(chan struct{}), make(chan struct{})
	var first, once sync.Once
	s.w.commit = func(l *link) error {
		first.Do(func() { close(entered) })
		<-gate
		return commitLink(l)
	}
	return entered, func() { once.Do(func() { close(gate) }) }
}

// together commits all in one transaction: behind a held one, so that they queue.
func together(t *testing.T, s *SQLite, commits ...Commit) []error {
	t.Helper()
	create(t, s, "front")
	entered, release := hold(s)
	defer release()
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := s.Commit(context.Background(), simple("front", 1, "x")); err != nil {
			t.Errorf("the held commit: %v", err)
		}
	})
	<-entered
	before := s.Stats().Batches
	results := make([]error, len(commits))
	for i, c := range commits {
		all.Go(func() { _, results[i] = s.Commit(context.Background(), c) })
		for len(s.w.queue) < i+1 { // in this order
			runtime.Gosched()
		}
	}
	release()
	all.Wait()
	if got := s.Stats().Batches - before; got > 2 {
		t.Fatalf("the commits made %d transactions, not one", got-1)
	}
	return results
}

func version(t *testing.T, s Store, town string) int64 {
	t.Helper()
	h, err := s.Head(t.Context(), town)
	if err != nil {
		t.Fatal(err)
	}
	return h.Version
}

func TestJobsOfOneTransactionUndoOnlyThemselves(t *testing.T) {
	t.Parallel()
	s := openTest(t, t.TempDir(), Options{})
	create(t, s, "a", "b", "c")
	late := simple("b", 1, "late failure")
	late.Ledger = []Entry{{Seq: 1}}
	late.Rigs = []RigIndex{{Rig: "r", Prefix: "p"}}
	holder := simple("a", 1, "good")
	holder.Rigs = []RigIndex{{Rig: "r", Prefix: "p"}}
	results := together(t, s, holder, simple("c", 7, "miss"), late, simple("c", 1, "good"), simple("c", 1, "second"), simple("c", 2, "third"))
	want := []string{"", "version", "prefix", "", "version", ""}
	for i, err := range results {
		got := ""
		switch {
		case errors.Is(err, ErrVersion):
			got = "version"
		case errs.Is(err, errs.Conflict):
			got = "prefix"
		case err != nil:
			got = err.Error()
		}
		if got != want[i] {
			t.Errorf("job %d: got %q, want %q", i, got, want[i])
		}
	}
	for town, want := range map[string]int64{"a": 2, "b": 1, "c": 3} {
		if got := version(t, s, town); got != want {
			t.Errorf("town %s is at version %d, want %d", town, got, want)
		}
	}
	if _, rows, err := s.Load(t.Context(), "b", 0); err != nil || len(rows) != 0 {
		t.Errorf("the undone job left %v, %v", rows, err)
	}
}

func TestFullDiskAcknowledgesNothingOfTheTransaction(t *testing.T) {
	t.Parallel()
	s := openTest(t, t.TempDir(), Options{MaxPages: 100})
	create(t, s, "a", "b", "c")
	results := together(t, s, simple("a", 1, "small"), simple("b", 1, strings.Repeat("x", 1<<20)), simple("c", 1, "small"))
	for i, err := range results {
		if !errs.Is(err, errs.Unavailable) || errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "full") {
			t.Errorf("job %d: got %v", i, err)
		}
	}
	for _, town := range []string{"a", "b", "c"} {
		if got := version(t, s, town); got != 1 {
			t.Errorf("town %s is at version %d", town, got)
		}
	}
	if _, err := s.Commit(t.Context(), simple("a", 1, "small")); err != nil {
		t.Errorf("a write that fits: %v", err)
	}
}

func TestCallerWhoGivesUpDoesNotStopTheWrite(t *testing.T) {
	t.Parallel()
	s := openTest(t, t.TempDir(), Options{})
	create(t, s, "t")
	entered, release := hold(s)
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() { _, err := s.Commit(ctx, simple("t", 1, "x")); result <- err }()
	<-entered
	cancel()
	err := <-result
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnknown) || !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	if got := version(t, s, "t"); got != 1 {
		t.Fatalf("a reader saw version %d before the commit", got)
	}
	release()
	if err := s.SetMeta(t.Context(), "k", "v"); err != nil { // comes after it in the queue
		t.Fatal(err)
	}
	if known, err := s.CommitKnown(t.Context(), "t", "t1"); err != nil || !known {
		t.Fatalf("the write is not there: %v, %v", known, err)
	}
}

func TestCommitWithoutKnownOutcomeMakesTheStoreReadOnly(t *testing.T) {
	t.Parallel()
	for name, happened := range map[string]bool{"it happened": true, "it was lost": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openTest(t, dir, Options{})
			create(t, s, "t")
			s.w.commit = func(l *link) error {
				if happened {
					if err := commitLink(l); err != nil {
						t.Error(err)
					}
				}
				return errors.New("sync failed")
			}
			if _, err := s.Commit(t.Context(), simple("t", 1, "x")); !errors.Is(err, ErrUnknown) || !errs.Is(err, errs.Unavailable) {
				t.Fatalf("got %v", err)
			}
			s.w.commit = commitLink
			_, err := s.Commit(t.Context(), simple("t", 1, "x"))
			if !errs.Is(err, errs.Unavailable) || errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "read-only") {
				t.Fatalf("the next write: %v", err)
			}
			want := int64(1)
			if happened {
				want = 2
			}
			if got := version(t, s, "t"); got != want {
				t.Fatalf("read version %d, want %d", got, want)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again := openTest(t, dir, Options{})
			if known, err := again.CommitKnown(t.Context(), "t", "t1"); err != nil || known != happened {
				t.Fatalf("after reopening: known %v, %v", known, err)
			}
			if _, err := again.Commit(t.Context(), simple("t", want, "y")); err != nil {
				t.Fatalf("a write after reopening: %v", err)
			}
		})
	}
}

func TestCloseAmidWritesAnswersEveryone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	const n = 20
	for i := range n {
		create(t, s, fmt.Sprint("t", i))
	}
	var all sync.WaitGroup
	acked := make([]int64, n)
	for i := range n {
		all.Go(func() {
			for v := int64(1); ; v++ {
				_, err := s.Commit(context.Background(), simple(fmt.Sprint("t", i), v, "x"))
				if err != nil {
					if !errs.Is(err, errs.Unavailable) {
						t.Errorf("town %d: %v", i, err)
					}
					return
				}
				acked[i] = v + 1
				if v == 3 && i == 0 {
					go func() {
						if err := s.Close(); err != nil {
							t.Errorf("closing: %v", err)
						}
					}()
				}
			}
		})
	}
	all.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, dir, Options{})
	for i, v := range acked {
		if got := version(t, again, fmt.Sprint("t", i)); v > 0 && got != v {
			t.Errorf("town %d: acknowledged %d, found %d", i, v, got)
		}
	}
}

func TestLongLogIsResetByTheWriter(t *testing.T) {
	t.Parallel()
	s := openTest(t, t.TempDir(), Options{})
	create(t, s, "t")
	s.w.ckpt.long.Store(true)
	if _, err := s.Commit(t.Context(), simple("t", 1, "x")); err != nil {
		t.Fatal(err)
	}
	if err := s.SetMeta(t.Context(), "k", "v"); err != nil { // after the writer's checkpoint
		t.Fatal(err)
	}
	if s.w.ckpt.long.Load() {
		t.Fatal("the writer did not look")
	}
}

func TestTombstonesLastAsLongAsTheProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	create(t, s, "t")
	if _, err := s.Commit(t.Context(), simple("t", 1, "x")); err != nil {
		t.Fatal(err)
	}
	gone := simple("t", 2, "")
	gone.Rows[0].Body = nil
	gone.Rows = append(gone.Rows, Row{Kind: "bead", ID: "other", Body: []byte("stays")})
	if _, err := s.Commit(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if _, rows, err := s.Load(t.Context(), "t", 2); err != nil || len(rows) != 2 {
		t.Fatalf("got %v, %v", rows, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, dir, Options{})
	if _, rows, err := again.Load(t.Context(), "t", 2); err != nil || len(rows) != 1 || rows[0].ID != "other" {
		t.Fatalf("after reopening: %v, %v", rows, err)
	}
}

func TestCheckFindsDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, dir, Options{})
	create(t, s, "t")
	if err := s.Check(t.Context()); err != nil {
		t.Fatalf("a sound file: %v", err)
	}
	if _, err := s.Commit(t.Context(), simple("t", 1, strings.Repeat("x", 100_000))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, fileName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := len(data) / 2; i < len(data); i++ { // overwrites pages in use
		data[i] = 0xff
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := openTest(t, dir, Options{}).Check(t.Context()); err == nil {
		t.Fatal("no damage was found")
	}
}
