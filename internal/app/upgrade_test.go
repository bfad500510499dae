package app_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

var record = flag.Bool("record", false, "store a database of today's schema in testdata, if there is none")

// migrations are all that there are, by name; what was released never changes.
var migrations = map[string]string{
	"0001_towns.sql":   "3edfdf93d1b8e351",
	"0002_budgets.sql": "d79cc5cc28eb7e43",
	"0003_blocks.sql":  "26de83460da1d124",
}

// history drives a town through its public face, as a hall would.
type history struct {
	t    *town.Town
	now  time.Time
	fail []string // actions that fail
}

func oid(n int) string { return fmt.Sprintf("%040x", n) }

func (h *history) do(t *testing.T, in town.Input) {
	t.Helper()
	if err := h.t.Handle(h.now, in); err != nil {
		t.Fatalf("%T: %v", in, err)
	}
}

// perform answers what the town asks for.
func (h *history) perform(t *testing.T) {
	t.Helper()
	for range 50 {
		effects := h.t.Claim(h.now, "boot")
		if len(effects) == 0 {
			return
		}
		for _, e := range effects {
			done := town.EffectDone{Key: e.Key, ID: e.ID}
			switch e.Action.(type) {
			case town.Admit:
				done.Result = town.Admitted{Granted: true}
			case town.StartSandbox:
				done.Result = town.Started{Ref: "ref"}
			case town.FetchRig:
				done.Result = town.Fetched{Tip: oid(1), Writable: true}
			case town.BuildCandidate:
				done.Result = town.Candidate{Commit: oid(900)}
			case town.Land:
				done.Result = town.Landed{Tip: oid(901)}
			case town.CheckTarget:
				done.Result = town.Checked{Tip: oid(1)}
			}
			for _, f := range h.fail {
				if town.ActionName(e.Action) == f {
					done.Err, done.Result = "it failed", nil
				}
			}
			h.do(t, done)
		}
	}
}

func (h *history) report(t *testing.T, items ...town.Report) {
	t.Helper()
	s := h.t.Sandbox()
	h.do(t, town.Reports{Generation: s.Generation, Stream: "s", From: s.Seq + 1, Items: items})
	h.perform(t)
}

func (h *history) bead(t *testing.T, b town.CreateBead) {
	t.Helper()
	b.By, b.Title = "ann", "Bead "+b.ID
	h.do(t, b)
	h.perform(t)
}

// run starts the agent of a bead.
func (h *history) run(t *testing.T, bead string) town.Run {
	t.Helper()
	s := h.t.Sandbox()
	if s.State == town.SandboxStarting {
		h.do(t, town.Hello{Generation: s.Generation, Stream: "s"})
		h.perform(t)
	}
	for _, r := range h.t.Runs() {
		if r.Bead == bead {
			h.report(t, town.Report{Kind: town.ReportStarted, Run: r.ID, Epoch: r.Epoch, PID: 1})
			return r
		}
	}
	t.Fatalf("%s has no run", bead)
	return town.Run{}
}

func (h *history) done(t *testing.T, bead string) {
	t.Helper()
	r := h.run(t, bead)
	h.do(t, town.Verdict{Generation: h.t.Sandbox().Generation, Run: r.ID, Epoch: r.Epoch, CallID: "c" + bead, Kind: town.VerdictDone, Text: "did it",
		Evidence: town.Evidence{Commit: oid(500), Exists: true, Descends: true, Changed: true}})
	h.perform(t)
	h.report(t, town.Report{Kind: town.ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: town.OutcomeDone})
}

// busy is a town with beads in all states, runs, claims, a breaker, notices.
func busy(t *testing.T, now time.Time) *history {
	h := &history{t: town.New("tbusy", "busy", "", town.At(now)), now: now, fail: []string{"notify"}}
	h.do(t, town.SetTown{By: "ann", Set: town.Settings{"work.max_attempts": "1", "notify.url": "https://example.com/hook"}})
	for _, r := range []town.Rig{
		{Name: "web", Prefix: "web", URL: "/upstream/web", Target: "main", Tip: oid(1), Gates: []town.Gate{{Name: "test", Command: "make test"}}},
		{Name: "api", Prefix: "api", URL: "/upstream/api", Target: "main", Tip: oid(1), Settings: town.Settings{"merge.mode": "branch"}},
		{Name: "lib", Prefix: "lib", URL: "/upstream/lib", Target: "main", Tip: oid(1)},
	} {
		h.do(t, town.AddRig{By: "ann", Rig: r})
	}
	h.perform(t)
	h.bead(t, town.CreateBead{ID: "web-staga", Rig: "web", Staged: true, Labels: []string{"a", "b"}, Body: "text"})
	h.bead(t, town.CreateBead{ID: "web-cance", Rig: "web", Staged: true})
	h.do(t, town.CancelBead{By: "ann", Bead: "web-cance", Reason: "no"})
	h.bead(t, town.CreateBead{ID: "web-handd", Rig: "web", Staged: true})
	h.do(t, town.CloseBead{By: "ann", Bead: "web-handd", Reason: "by hand"})
	h.bead(t, town.CreateBead{ID: "lib-merge", Rig: "lib"})
	h.done(t, "lib-merge") // closed: there are no gates
	h.bead(t, town.CreateBead{ID: "lib-faile", Rig: "lib"})
	r := h.run(t, "lib-faile")
	h.report(t, town.Report{Kind: town.ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: town.OutcomeExited, Class: town.ClassWork, Reason: "it gave up"})
	h.bead(t, town.CreateBead{ID: "web-gated", Rig: "web"})
	h.done(t, "web-gated") // in review: its gates run
	h.bead(t, town.CreateBead{ID: "api-waits", Rig: "api"})
	h.done(t, "api-waits") // in review: others merge it
	h.bead(t, town.CreateBead{ID: "web-works", Rig: "web", Priority: 1})
	r = h.run(t, "web-works")
	h.report(t, town.Report{Kind: town.ReportCheckpoint, Run: r.ID, Epoch: r.Epoch, Commit: oid(700), Ref: town.WipRef("web-works", r.Epoch)})
	h.bead(t, town.CreateBead{ID: "web-block", Rig: "web", BlockedBy: []string{"web-works"}})
	h.now = h.now.Add(time.Minute)
	h.do(t, town.Tick{})
	h.perform(t)
	h.fail = append(h.fail, "merge.candidate")
	h.bead(t, town.CreateBead{ID: "lib-third", Rig: "lib"})
	h.done(t, "lib-third") // its candidate can't be built
	h.bead(t, town.CreateBead{ID: "api-start", Rig: "api"})
	h.now = h.now.Add(time.Hour)
	h.t.Claim(h.now, "boot") // the process ends here
	return h
}

func (h *history) save(t *testing.T, s *store.SQLite) {
	t.Helper()
	ctx := context.Background()
	rows, entries, info := h.t.Rows(), h.t.Entries(), h.t.Info()
	var out []store.Row
	for _, r := range rows {
		out = append(out, store.Row{Kind: r.Kind, ID: r.ID, Body: r.Body})
	}
	var ledger []store.Entry
	for _, e := range entries {
		b, err := json.Marshal(map[string]any{"text": e.Text, "data": e.Data})
		if err != nil {
			t.Fatal(err)
		}
		ledger = append(ledger, store.Entry{Seq: e.Seq, At: int64(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor, Body: b})
	}
	c := h.t.Columns(h.now)
	cols := store.Columns{DueAt: int64(c.DueAt), DesiredRev: c.DesiredRev, Sandbox: string(c.Sandbox), Generation: c.Generation,
		Wanted: c.Wanted, Open: int64(c.Open), Status: string(c.Mode)}
	err := s.CreateTown(ctx, store.Head{ID: info.ID, Name: info.Name, Owner: info.Owner, CreatedAt: int64(info.CreatedAt), CommitID: "c1", Columns: cols}, out, ledger)
	if err != nil {
		t.Fatal(err)
	}
	com := store.Commit{Town: info.ID, Expect: 1, CommitID: "c2", At: int64(town.At(h.now)), Columns: cols,
		Idem: []store.Idem{{Key: "key-" + info.ID, Hash: "h", Status: 201, Body: []byte(`{"id":"x"}`), At: 5}}}
	for _, r := range h.t.Rigs() {
		com.Rigs = append(com.Rigs, store.RigIndex{Rig: r.Name, Prefix: r.Prefix})
	}
	if len(com.Rigs) > 0 {
		com.Slot = store.SlotAwake
	}
	if _, err := s.Commit(ctx, com); err != nil {
		t.Fatal(err)
	}
	if err := s.AppendTranscript(ctx, []store.Chunk{{Town: info.ID, Run: "web-works.1", Epoch: 1, Seq: 1, At: 7, Kind: "text", Body: []byte("hello")}}); err != nil {
		t.Fatal(err)
	}
}

// fill stores towns of all kinds.
func fill(t *testing.T, s *store.SQLite) {
	t.Helper()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	busy(t, now).save(t, s)
	empty := &history{t: town.New("tempty", "empty", "bob", town.At(now)), now: now}
	empty.save(t, s)
	asleep := &history{t: town.New("tasleep", "asleep", "", town.At(now)), now: now}
	asleep.do(t, town.Pause{By: "ann", Now: true})
	asleep.save(t, s)
	if err := s.SetMeta(context.Background(), "fact", "value"); err != nil {
		t.Fatal(err)
	}
}

// contents is what a store holds, as far as every version of it has that.
type contents struct {
	Towns []storedTown
	Slots []store.Slot
	Fact  string
}

type storedTown struct {
	ID, Name, Owner, Sandbox, Status string
	Version, Generation, LedgerSeq   int64
	Rows, Ledger                     map[string]string // to hashes
	Idem                             string
	Rigs                             []store.RigIndex
	Transcript                       string
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:8])
}

func read(t *testing.T, s *store.SQLite) (c contents) {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	heads, err := s.Heads(ctx, "", 100)
	must(err)
	for _, h := range heads {
		st := storedTown{ID: h.ID, Name: h.Name, Owner: h.Owner, Sandbox: h.Sandbox, Status: h.Status, Version: h.Version, Generation: h.Generation,
			LedgerSeq: h.LedgerSeq, Rows: map[string]string{}, Ledger: map[string]string{}}
		_, rows, err := s.Load(ctx, h.ID, 0)
		must(err)
		for _, r := range rows {
			st.Rows[r.Kind+"/"+r.ID] = sum(r.Body)
		}
		entries, err := s.Ledger(ctx, h.ID, store.LedgerQuery{Limit: 10000})
		must(err)
		for _, e := range entries {
			st.Ledger[fmt.Sprintf("%04d %s %s", e.Seq, e.Kind, e.Subject)] = sum(e.Body)
		}
		i, _, err := s.Idem(ctx, h.ID, "key-"+h.ID)
		must(err)
		st.Idem = fmt.Sprint(i.Hash, i.Status, string(i.Body))
		for _, rig := range []string{"web", "api", "lib"} {
			found, err := s.FindPrefix(ctx, rig)
			must(err)
			for _, f := range found {
				if f.Town == h.ID {
					st.Rigs = append(st.Rigs, f)
				}
			}
		}
		chunks, err := s.Transcript(ctx, h.ID, "web-works.1", 1, 0, 0)
		must(err)
		for _, k := range chunks {
			st.Transcript += fmt.Sprint(k.Seq, k.At, k.Kind, string(k.Body))
		}
		c.Towns = append(c.Towns, st)
	}
	c.Slots, err = s.Slots(ctx)
	must(err)
	c.Fact, _, err = s.Meta(ctx, "fact")
	must(err)
	return c
}

func stored(version int64) (db, want string) {
	return filepath.Join("testdata", fmt.Sprintf("schema-%d.db.gz", version)), filepath.Join("testdata", fmt.Sprintf("schema-%d.json", version))
}

// recordNow makes the stored database of today's schema.
func recordNow(t *testing.T, version int64) {
	t.Helper()
	db, want := stored(version)
	if _, err := os.Stat(db); err == nil {
		t.Skipf("%s exists; what was recorded stays", db)
	}
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s)
	text, err := json.MarshalIndent(read(t, s), "", " ")
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "gastown.db"))
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string][]byte{db: packed.Bytes(), want: text} {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// unpacked puts a stored database into a data directory.
func unpacked(t *testing.T, version int64) (dir string, want contents) {
	t.Helper()
	db, text := stored(version)
	f, err := os.Open(db)
	if err != nil {
		t.Fatalf("there is no stored database of schema %d: add one with go test ./internal/app -run Stored -record, with the code before the migration: %v", version, err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "gastown.db"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(text)
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, want
}

func latest(t *testing.T) int64 {
	t.Helper()
	v, err := store.Schema()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStoredDatabasesOfAllSchemasAreUpgradedWhole(t *testing.T) {
	now := latest(t)
	if *record {
		recordNow(t, now)
	}
	for v := int64(1); v <= now; v++ {
		t.Run(fmt.Sprint("schema ", v), func(t *testing.T) {
			dir, want := unpacked(t, v)
			s, err := store.Open(t.Context(), dir, store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := read(t, s)
			if !reflect.DeepEqual(got, want) {
				a, _ := json.MarshalIndent(got, "", " ")
				b, _ := json.MarshalIndent(want, "", " ")
				t.Errorf("it holds\n%s\nwant\n%s", a, b)
			}
			for _, st := range want.Towns {
				settles(t, s, st.ID)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_, err = os.Stat(filepath.Join(dir, fmt.Sprintf("gastown.db.schema-%d", v)))
			if (err == nil) != (v < now) {
				t.Errorf("the copy before the upgrade: %v", err)
			}
		})
	}
}

// settles decodes a town, lets time pass over it, and decodes what it left.
func settles(t *testing.T, s *store.SQLite, id string) {
	t.Helper()
	_, rows, err := s.Load(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	var plain []town.Row
	for _, r := range rows {
		plain = append(plain, town.Row{Kind: r.Kind, ID: r.ID, Body: r.Body})
	}
	h := &history{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	if h.t, err = town.Decode(id, plain, nil); err != nil {
		t.Fatal(err)
	}
	if bad := h.t.Quarantined(); len(bad) > 0 {
		t.Errorf("town %s: rows that can't be read: %+v", id, bad)
	}
	h.t.VoidClaims("another boot")
	h.do(t, town.Unheard{})
	h.perform(t)
	if id == "tbusy" {
		h.wants(t)
	}
	if _, err := town.Decode(id, h.t.Rows(), nil); err != nil {
		t.Error(err)
	}
}

// wants checks that the busy town has a bead in every state.
func (h *history) wants(t *testing.T) {
	t.Helper()
	missing := map[town.BeadStatus]bool{town.BeadOpen: true, town.BeadInProgress: true, town.BeadInReview: true, town.BeadClosed: true,
		town.BeadFailed: true, town.BeadCancelled: true}
	for _, b := range h.t.Beads() {
		delete(missing, b.Status)
	}
	if len(missing) > 0 {
		t.Errorf("no bead is %v", missing)
	}
}

func TestAMigrationThatWasReleasedNeverChanges(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../store/migrations/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(files)) != latest(t) || len(files) != len(migrations) {
		t.Errorf("%d migrations for schema %d; %d are known here", len(files), latest(t), len(migrations))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if got := sum(b); got != migrations[filepath.Base(f)] {
			t.Errorf("%s has the hash %s, known is %q: add another migration instead of changing this one", filepath.Base(f), got, migrations[filepath.Base(f)])
		}
	}
}

func TestADatabaseOfANewerSchemaIsLeftAsItIs(t *testing.T) {
	t.Parallel()
	dir, _ := unpacked(t, latest(t))
	path := filepath.Join(dir, "gastown.db")
	db, err := sql.Open("sqlite", path)
	if err == nil {
		_, err = db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	}
	if err == nil {
		err = db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), dir, store.Options{}); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "newer gastown") {
		t.Errorf("got %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before[100:], after[100:]) { // the head says that the log is a file beside it
		t.Errorf("the file was changed, %v", err)
	}
}
