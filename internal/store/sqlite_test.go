package store_test

import (
	"bytes"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
)

var small = store.Options{CacheKiB: 2048, Readers: 2}

func openSQLite(t testing.TB, dir string, opts store.Options) *store.SQLite {
	t.Helper()
	s, err := store.Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func closeStore(t testing.TB, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

func createTown(t testing.TB, s store.Store, id string) {
	t.Helper()
	h := store.Head{ID: id, Name: id, Columns: store.Columns{Sandbox: store.Asleep}}
	if err := s.CreateTown(t.Context(), h, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func commitRow(t testing.TB, s store.Store, town string, expect int64, body []byte) error {
	t.Helper()
	_, err := s.Commit(t.Context(), store.Commit{Town: town, Expect: expect, CommitID: fmt.Sprint("c", expect),
		Columns: store.Columns{Sandbox: store.Asleep}, Rows: []store.Row{{Kind: "bead", ID: fmt.Sprint(expect), Body: body}}})
	return err
}

func TestSQLiteConforms(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) store.Store { return openSQLite(t, t.TempDir(), small) })
}

func TestReopenedStoreHasEverything(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a ?#%41 'dir'")
	s := openSQLite(t, dir, small)
	createTown(t, s, "t")
	c := store.Commit{Town: "t", Expect: 1, CommitID: "c", At: 5,
		Columns: store.Columns{DueAt: 9, DesiredRev: 1, Sandbox: "awake", Generation: 2, Wanted: true, Open: 3, Failing: "f", Status: "active"},
		Rows:    []store.Row{{Kind: "bead", ID: "b", Body: []byte("{}")}}, Ledger: []store.Entry{{Seq: 1, Kind: "k", Body: []byte("l")}},
		Idem: []store.Idem{{Key: "k", Hash: "h", Status: 200}}, Slot: store.SlotAwake, Rigs: []store.RigIndex{{Rig: "r", Prefix: "p"}}}
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := s.AppendTranscript(t.Context(), []store.Chunk{{Town: "t", Run: "r", Epoch: 1, Seq: 1, Body: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetMeta(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	before := everything(t, s)
	closeStore(t, s)
	if _, err := os.Stat(filepath.Join(dir, "gastown.db")); err != nil {
		t.Fatalf("the file is not where it should be: %v", err)
	}
	if after := everything(t, openSQLite(t, dir, small)); after != before {
		t.Fatalf("before:\n%s\nafter:\n%s", before, after)
	}
}

// everything is the text of all that the store knows of town t.
func everything(t *testing.T, s store.Store) string {
	t.Helper()
	ctx := t.Context()
	var b strings.Builder
	add := func(v any, err error) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%+v\n", v)
	}
	h, rows, err := s.Load(ctx, "t", 0)
	add(fmt.Sprintf("%+v %+v", h, rows), err)
	entries, err := s.Ledger(ctx, "t", store.LedgerQuery{})
	add(entries, err)
	idem, _, err := s.Idem(ctx, "t", "k")
	add(idem, err)
	slots, err := s.Slots(ctx)
	add(slots, err)
	rigs, err := s.FindPrefix(ctx, "p")
	add(rigs, err)
	chunks, err := s.Transcript(ctx, "t", "r", 1, 0, 0)
	add(chunks, err)
	meta, _, err := s.Meta(ctx, "k")
	add(meta, err)
	return b.String()
}

func TestTheLockOfADeadServerMayLingerForAMoment(t *testing.T) {
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "gastown.lock")
	child := flock.New(path) // as a child has it that the server was just forking when it was killed
	if ok, err := child.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "pid %d on here since now\n", dead.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	unlocked := make(chan error, 1)
	time.AfterFunc(50*time.Millisecond, func() { unlocked <- child.Unlock() })
	s, err := store.Open(t.Context(), dir, small)
	if err != nil {
		t.Fatalf("a dead server's lock: %v", err)
	}
	closeStore(t, s)
	if err := <-unlocked; err != nil {
		t.Fatal(err)
	}
}

func TestSecondServerIsRefusedAndToldWhoIsFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	opts := small
	opts.Now = func() time.Time { return time.Unix(0, 0) }
	s := openSQLite(t, dir, opts)
	_, err := store.Open(t.Context(), dir, small)
	want := fmt.Sprintf("in use by pid %d on ", os.Getpid())
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "since 1970-01-01T00:00:00Z") {
		t.Fatalf("got %v", err)
	}
	closeStore(t, s)
	openSQLite(t, dir, small)
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	closeStore(t, openSQLite(t, dir, small))
	db, err := sql.Open("sqlite", filepath.Join(dir, "gastown.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the refusal lets go of the directory
		_, err = store.Open(t.Context(), dir, small)
		if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "schema 9999") {
			t.Fatalf("got %v", err)
		}
	}
}

func TestForeignFileIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gastown.db"), bytes.Repeat([]byte("not a database "), 500), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), dir, small); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "gastown restore FILE --force") {
		t.Fatalf("got %v", err)
	}
}

func TestFullDiskRefusesWritesUntilThereIsSpace(t *testing.T) {
	t.Parallel()
	opts := small
	opts.MaxPages = 200
	s := openSQLite(t, t.TempDir(), opts)
	createTown(t, s, "big")
	createTown(t, s, "t")
	body := bytes.Repeat([]byte("x"), 50_000)
	version := int64(1)
	var err error
	for ; version < 100; version++ {
		if err = commitRow(t, s, "big", version, body); err != nil {
			break
		}
	}
	if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "full") || strings.Contains(err.Error(), "read-only") {
		t.Fatalf("after %d rows: got %v", version, err)
	}
	h, rows, err := s.Load(t.Context(), "big", 0)
	if err != nil || h.Version != version || len(rows) != int(version-1) {
		t.Fatalf("acknowledged %d rows, found version %d with %d rows, %v", version-1, h.Version, len(rows), err)
	}
	if err := commitRow(t, s, "t", 1, body); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	if err := s.DeleteTown(t.Context(), "big"); err != nil {
		t.Fatalf("making space: %v", err)
	}
	if err := commitRow(t, s, "t", 1, body); err != nil {
		t.Fatalf("with space again: %v", err)
	}
}

func TestIdleStoreDoesNotTouchItsFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openSQLite(t, dir, small)
	createTown(t, s, "t")
	look := func() string {
		var b strings.Builder
		for _, name := range []string{"gastown.db", "gastown.db-wal"} {
			fi, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&b, name, fi.Size(), fi.ModTime().UnixNano())
		}
		return b.String()
	}
	before := look()
	for i := range int64(20) {
		if _, err := s.IdleSlice(t.Context(), int(i)%5, 5, i); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ClaimDue(t.Context(), i, i+10, 10); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Load(t.Context(), "t", 0); err != nil {
			t.Fatal(err)
		}
	}
	if after := look(); after != before {
		t.Fatalf("before:\n%safter:\n%s", before, after)
	}
}
