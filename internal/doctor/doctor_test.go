package doctor_test

import (
	"context"
	"database/sql"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to damage what the store wrote

	"gastown/internal/api"
	"gastown/internal/doctor"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

// house is a server without a network: a real store and hall, and a driver and
// repositories that are tables.
type house struct {
	t      *testing.T
	dir    string
	store  *store.SQLite
	hall   *hall.Hall
	doctor *doctor.Doctor
	now    time.Time
	later  []func()

	boxes   map[string]sandbox.Status // by town
	stopped []sandbox.Ref
	refs    map[hub.ID][]hub.BeadRef
	dropped []string
	health  store.Health
}

func (h *house) Now() time.Time { return h.now }

// AfterFunc implements hall.Clock: nothing happens by itself.
func (h *house) AfterFunc(time.Duration, func()) func() { return func() {} }

func (h *house) Perform(_ context.Context, t hall.TownRef, e town.Effect) (any, error) {
	switch a := e.Action.(type) {
	case town.StartSandbox:
		h.boxes[t.ID] = sandbox.Status{Ref: sandbox.Ref{Town: t.ID, Generation: a.Generation}, State: sandbox.Running}
		return town.Started{Ref: "box"}, nil
	case town.FetchRig:
		return town.Fetched{Tip: a.Rig.Tip, Writable: true}, nil
	}
	return nil, nil
}

func (h *house) List(context.Context) ([]sandbox.Status, error) {
	return slices.SortedFunc(maps.Values(h.boxes), func(a, b sandbox.Status) int { return strings.Compare(a.Ref.Town, b.Ref.Town) }), nil
}

func (h *house) Inspect(_ context.Context, r sandbox.Ref) (sandbox.Status, error) {
	if st, ok := h.boxes[r.Town]; ok && st.Ref.Generation == r.Generation {
		return st, nil
	}
	return sandbox.Status{Ref: r, State: sandbox.Gone, Reason: "it never was"}, nil
}

func (h *house) Stop(_ context.Context, r sandbox.Ref, _ time.Duration) error {
	h.stopped = append(h.stopped, r)
	delete(h.boxes, r.Town)
	return nil
}

func (h *house) Remove(ctx context.Context, r sandbox.Ref) error { return h.Stop(ctx, r, 0) }

// repositories are the hub of a house.
type repositories struct{ *house }

func (r repositories) List() ([]hub.ID, error) {
	return slices.SortedFunc(maps.Keys(r.refs), func(a, b hub.ID) int { return strings.Compare(a.String(), b.String()) }), nil
}

func (r repositories) BeadRefs(_ context.Context, id hub.ID) ([]hub.BeadRef, error) {
	return r.refs[id], nil
}

func (r repositories) DropBead(_ context.Context, id hub.ID, bead string, branches ...string) error {
	r.dropped = append(r.dropped, bead+" "+strings.Join(branches, " "))
	r.refs[id] = slices.DeleteFunc(r.refs[id], func(b hub.BeadRef) bool { return b.Bead == bead })
	return nil
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), now: time.Now(), boxes: map[string]sandbox.Status{}, refs: map[hub.ID][]hub.BeadRef{},
		health: store.Health{State: store.Healthy}}
	var err error
	if h.store, err = store.Open(t.Context(), h.dir, store.Options{CacheKiB: 2048, Readers: 2}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	h.reboot()
	return h
}

// reboot makes a hall that has nothing in memory.
func (h *house) reboot() {
	h.hall = hall.New(hall.Config{Store: h.store, Perform: h, Boot: "boot", Clock: h, Exec: h})
	h.doctor = doctor.New(doctor.Config{Store: h.store, Hall: h.hall, Hub: repositories{h}, Driver: h, Health: func() store.Health { return h.health }, Isolation: "agents run as you",
		TranscriptKeep: 720 * time.Hour, Now: h.Now, Pause: func(context.Context) error { return nil }})
}

// Go implements hall.Executor: settle runs it.
func (h *house) Go(fn func()) { h.later = append(h.later, fn) }

// settle runs what is to run beside the caller.
func (h *house) settle() {
	for len(h.later) > 0 {
		fn := h.later[0]
		h.later = h.later[1:]
		fn()
	}
}

// town makes a town with a rig.
func (h *house) town(name string) string {
	h.t.Helper()
	id, err := h.hall.CreateTown(h.t.Context(), name, "", nil, "ann", nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.do(id, town.AddRig{By: "ann", Rig: town.Rig{Name: "web", Prefix: name, URL: "/x", Target: "main", Tip: strings.Repeat("a", 40)}})
	h.refs[hub.ID{Town: id, Rig: "web"}] = nil
	return id
}

func (h *house) do(id string, in town.Input) {
	h.t.Helper()
	if err := h.hall.Do(h.t.Context(), id, in); err != nil {
		h.t.Fatalf("%T: %v", in, err)
	}
	h.settle()
}

// work has the town's sandbox started for a bead.
func (h *house) work(id, bead string) {
	h.t.Helper()
	h.do(id, town.CreateBead{By: "ann", ID: bead, Rig: "web", Title: "x", Priority: 2})
	h.do(id, town.Hello{Generation: 1, Stream: "s"})
}

// damage changes the database behind everybody's back.
func (h *house) damage(q string, args ...any) {
	h.t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(h.dir, "gastown.db")+"?_pragma=busy_timeout(5000)")
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	res, err := db.Exec(q, args...)
	if err != nil {
		h.t.Fatalf("%s: %v", q, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		h.t.Fatalf("%s: %d rows, %v", q, n, err)
	}
	h.reboot()
}

func (h *house) examine(o doctor.Options) api.DoctorReport {
	h.t.Helper()
	rep, err := h.doctor.Examine(h.t.Context(), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return rep
}

func problems(r api.DoctorReport) []string {
	out := []string{}
	for _, f := range r.Findings {
		if f.Severity == "problem" {
			out = append(out, strings.Join([]string{f.Town, f.Check, f.Subject}, " "))
		}
	}
	return out
}

func TestAStoreThatTakesNoWritesIsAProblemWithAWayOut(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.health = store.Health{State: store.Full, Cause: "no space", Hint: "free space"}
	rep := h.examine(doctor.Options{})
	if got := problems(rep); len(got) != 1 || !strings.Contains(got[0], "store.writes") {
		t.Fatalf("%v", got)
	}
}

func TestDamageThatTheStoreKnowsOfIsAProblemThoughItCanBeRead(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.health = store.Health{State: store.Damaged, Cause: "page 7 is torn", Hint: "restore a backup"}
	rep := h.examine(doctor.Options{})
	if got := problems(rep); len(got) != 1 || !strings.Contains(got[0], "store.damaged") || !strings.Contains(rep.Findings[0].What, "page 7") {
		t.Fatalf("%+v", rep.Findings)
	}
}

func TestAHealthyServerHasNoProblem(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.town("asleep")
	h.work(h.town("busy"), "busy-aaaaa")
	rep := h.examine(doctor.Options{})
	if len(problems(rep)) != 0 || rep.Towns != 2 || rep.Loaded != 1 || rep.Repositories != 2 {
		t.Fatalf("%+v", rep)
	}
	if len(rep.Findings) != 1 || rep.Findings[0].Check != "sandbox.isolation" {
		t.Errorf("%+v", rep.Findings)
	}
	if deep := h.examine(doctor.Options{Deep: true}); deep.Loaded != 2 {
		t.Errorf("%d loaded", deep.Loaded)
	}
}

func TestLookingChangesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	id := h.town("busy")
	h.work(id, "busy-aaaaa")
	h.damage(`UPDATE towns SET due_at = NULL, open = 7 WHERE id = ?`, id)
	before := h.store.Stats()
	h.examine(doctor.Options{Deep: true})
	if after := h.store.Stats(); after != before {
		t.Errorf("it wrote: %+v, before %+v", after, before)
	}
}

func TestDamageIsFoundExplainedAndFixed(t *testing.T) {
	t.Parallel()
	const ghost = "tghost"
	for name, c := range map[string]struct {
		damage func(h *house, id string)
		want   string
		stays  bool // nobody can undo it
	}{
		"an alarm that was wiped":       {func(h *house, id string) { h.damage(`UPDATE towns SET due_at = NULL WHERE id = ?`, id) }, "busy alarm.missing busy", false},
		"an alarm that nobody answered": {func(h *house, id string) { h.damage(`UPDATE towns SET due_at = 1000 WHERE id = ?`, id) }, "busy alarm.late busy", false},
		"an alarm in the year 9999":     {func(h *house, id string) { h.damage(`UPDATE towns SET due_at = 253402300799000 WHERE id = ?`, id) }, "busy alarm.far busy", false},
		"a column that lies": {func(h *house, id string) { h.damage(`UPDATE towns SET open = 7 WHERE id = ?`, id) },
			"busy column.differs busy", false},
		"a ledger with a gap": {func(h *house, id string) { h.damage(`DELETE FROM ledger WHERE town = ? AND seq = 3`, id) },
			"busy ledger.gap busy", false},
		"a ledger without its end": {func(h *house, id string) {
			h.damage(`DELETE FROM ledger WHERE town = ? AND seq = (SELECT MAX(seq) FROM ledger WHERE town = ?)`, id, id)
		}, "busy ledger.gap busy", false},
		"a sandbox of no town": {func(h *house, _ string) {
			h.boxes[ghost] = sandbox.Status{Ref: sandbox.Ref{Town: ghost, Generation: 3}, State: sandbox.Running}
		}, " sandbox.orphan " + ghost, false},
		"a sandbox of another generation": {func(h *house, id string) {
			h.boxes[id] = sandbox.Status{Ref: sandbox.Ref{Town: id, Generation: 9}, State: sandbox.Running}
		}, "busy sandbox.orphan ID/9", false},
		"a sandbox that is gone": {func(h *house, id string) { delete(h.boxes, id) }, "busy sandbox.missing ID/1", false},
		"a slot of no town": {func(h *house, _ string) {
			h.damage(`INSERT INTO slots (town, state, since, seen, at) VALUES (?, 'awake', 1, 1, 1)`, ghost)
		}, " slot.orphan " + ghost, true},
		"a slot of a sleeper": {func(h *house, _ string) {
			id := h.town("asleep")
			h.damage(`INSERT INTO slots (town, state, since, seen, at) VALUES (?, 'awake', 1, 1, 1)`, id)
		}, "asleep slot.orphan asleep", false},
		"a sandbox without a slot": {func(h *house, id string) { h.damage(`DELETE FROM slots WHERE town = ?`, id) }, "busy slot.missing busy", false},
		"a rig without a repository": {func(h *house, id string) { delete(h.refs, hub.ID{Town: id, Rig: "web"}) },
			"busy rig.empty web", true},
		"references of a bead that never was": {func(h *house, id string) {
			h.refs[hub.ID{Town: id, Rig: "web"}] = []hub.BeadRef{{Name: "refs/gastown/wip/busy-zzzzz/1", Bead: "busy-zzzzz"},
				{Name: "refs/heads/gt/amber/busy-zzzzz", Bead: "busy-zzzzz", Branch: "gt/amber/busy-zzzzz"},
				{Name: "refs/gastown/wip/busy-aaaaa/1", Bead: "busy-aaaaa"}}
		}, "busy ref.orphan web busy-zzzzz", false},
		"rows of no town": {func(h *house, _ string) {
			h.damage(`INSERT INTO town_rows (town, kind, id, version, body) VALUES (?, 'bead', 'x', 1, '{}')`, ghost)
		}, " store.stray " + ghost, true},
		"a bead of a later version": {func(h *house, id string) {
			h.damage(`UPDATE town_rows SET body = CAST(json_set(body, '$.schema', 2) AS BLOB) WHERE town = ? AND kind = 'bead'`, id)
		}, "busy row.quarantined bead/busy-aaaaa", true},
		"a bead without its run": {func(h *house, id string) { h.damage(`DELETE FROM town_rows WHERE town = ? AND kind = 'run'`, id) },
			"busy row.odd bead/busy-aaaaa", false},
		"a town's own row": {func(h *house, id string) {
			h.damage(`UPDATE town_rows SET body = CAST('{' AS BLOB) WHERE town = ? AND kind = 'town'`, id)
		}, "busy town.failing busy", true},
		"idempotency records for ever": {func(h *house, _ string) {
			h.damage(`INSERT INTO idem (town, key, hash, status, body, at) VALUES ('', 'k', 'h', 200, NULL, 1000)`)
		}, " retention idempotency records", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			id := h.town("busy")
			h.work(id, "busy-aaaaa")
			c.damage(h, id)
			want := strings.ReplaceAll(c.want, "ID", id)
			rep := h.examine(doctor.Options{})
			if !slices.Contains(problems(rep), want) {
				t.Fatalf("found %q, want %q", problems(rep), want)
			}
			for _, f := range rep.Findings {
				if f.What == "" || f.Means == "" || f.Fix == "" {
					t.Errorf("it is not explained: %+v", f)
				}
			}
			done, err := h.doctor.Fix(t.Context(), doctor.Options{}, "ann", nil)
			if err != nil {
				t.Fatal(err)
			}
			if stays := slices.Contains(problems(done.After), want); stays != c.stays {
				t.Errorf("after fixing %+v: found %q", done.Done, problems(done.After))
			}
			if !c.stays && len(done.Done) == 0 {
				t.Error("nobody says what was done")
			}
			for _, f := range done.Done {
				if f.Error != "" {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

func TestOnlyWhatBelongsToNobodyIsRemoved(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	id := h.town("busy")
	h.work(id, "busy-aaaaa")
	web := hub.ID{Town: id, Rig: "web"}
	h.refs[web] = []hub.BeadRef{{Name: "refs/gastown/wip/busy-aaaaa/1", Bead: "busy-aaaaa"},
		{Name: "refs/gastown/wip/busy-qqqqq/1", Bead: "busy-qqqqq"}, {Name: "refs/gastown/wip/busy-zzzzz/1", Bead: "busy-zzzzz"}}
	h.damage(`INSERT INTO town_rows (town, kind, id, version, body) VALUES (?, 'bead', 'busy-qqqqq', 1, CAST('poison' AS BLOB))`, id)
	if _, err := h.doctor.Fix(t.Context(), doctor.Options{}, "ann", nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(h.dropped, []string{"busy-zzzzz "}) {
		t.Errorf("dropped the references of %q", h.dropped)
	}
	if len(h.stopped) != 0 {
		t.Errorf("stopped %v", h.stopped)
	}
	entries, err := h.store.Ledger(t.Context(), id, store.LedgerQuery{Kind: "doctor.fixed"})
	if err != nil || len(entries) != 1 || entries[0].Actor != "ann" || !strings.Contains(string(entries[0].Body), "busy-zzzzz") {
		t.Errorf("the ledger says %+v, %v", entries, err)
	}
}

func TestAQuarantinedRowIsDeletedWhenItIsNamed(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	id := h.town("busy")
	h.damage(`INSERT INTO town_rows (town, kind, id, version, body) VALUES (?, 'bead', 'busy-qqqqq', 1, CAST('poison' AS BLOB))`, id)
	if rep := h.examine(doctor.Options{Town: id}); !slices.Equal(problems(rep), []string{"busy row.quarantined bead/busy-qqqqq"}) {
		t.Fatalf("%q", problems(rep))
	}
	if _, err := h.doctor.Fix(t.Context(), doctor.Options{}, "ann", []string{"bead/busy-qqqqq"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("without a town: %v", err)
	}
	if _, err := h.doctor.Fix(t.Context(), doctor.Options{Town: id}, "ann", []string{"bead/busy-zzzzz"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("another one: %v", err)
	}
	done, err := h.doctor.Fix(t.Context(), doctor.Options{Town: id}, "ann", []string{"bead/busy-qqqqq"})
	if err != nil || len(done.Done) != 1 || len(problems(done.After)) != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
}

func TestATownThatDoesNotExistIsNotFound(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	if _, err := h.doctor.Examine(t.Context(), doctor.Options{Town: "tnone"}); !errs.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestASecondExaminationWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.work(h.town("busy"), "busy-aaaaa")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.doctor.Examine(ctx, doctor.Options{}); err == nil {
		t.Error("it looked although its caller had left")
	}
	if p := h.doctor.Progress(); p.Running {
		t.Errorf("%+v", p)
	}
}
