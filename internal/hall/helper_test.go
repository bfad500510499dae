package hall_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
)

var oid = strings.Repeat("a", 40)

// outside is a Performer that answers as a healthy world would, and records.
type outside struct {
	mu    sync.Mutex
	calls []string
	do    func(ctx context.Context, t hall.TownRef, e town.Effect) (result any, err error, handled bool)
}

func (o *outside) Perform(ctx context.Context, t hall.TownRef, e town.Effect) (any, error) {
	o.mu.Lock()
	o.calls = append(o.calls, t.Name+" "+town.ActionName(e.Action))
	do := o.do
	o.mu.Unlock()
	if do != nil {
		if res, err, ok := do(ctx, t, e); ok {
			return res, err
		}
	}
	switch a := e.Action.(type) {
	case town.StartSandbox:
		return town.Started{Ref: "box"}, nil
	case town.InspectSandbox:
		return town.Inspected{State: "running"}, nil
	case town.FetchRig:
		return town.Fetched{Tip: a.Rig.Tip, Writable: true}, nil
	case town.BuildCandidate:
		return town.Candidate{Commit: strings.Repeat("c", 40)}, nil
	case town.Land:
		return town.Landed{Tip: a.Candidate}, nil
	case town.CheckTarget:
		return town.Checked{}, nil
	}
	return nil, nil
}

func (o *outside) count(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, c := range o.calls {
		if strings.HasSuffix(c, what) {
			n++
		}
	}
	return n
}

func (o *outside) list() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.calls)
}

// faulty is a store whose calls can be replaced.
type faulty struct {
	store.Store
	mu     sync.Mutex
	commit func(next func() (int64, error), c store.Commit) (int64, error)
	load   func(id string) error
}

func (f *faulty) set(fn func(next func() (int64, error), c store.Commit) (int64, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit = fn
}

func (f *faulty) Commit(ctx context.Context, c store.Commit) (int64, error) {
	f.mu.Lock()
	fn := f.commit
	f.mu.Unlock()
	next := func() (int64, error) { return f.Store.Commit(ctx, c) }
	if fn == nil {
		return next()
	}
	return fn(next, c)
}

func (f *faulty) Load(ctx context.Context, id string, since int64) (store.Head, []store.Row, error) {
	head, rows, err := f.Store.Load(ctx, id, since)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.load != nil && err == nil && f.load(id) != nil {
		for i := range rows {
			if rows[i].Kind == "town" {
				rows[i].Body = []byte("{damaged")
			}
		}
	}
	return head, rows, err
}

type fixture struct {
	t     *testing.T
	h     *hall.Hall
	store store.Store
	out   *outside
	cfg   hall.Config
	beads int
}

func newFixture(t *testing.T, mod func(*hall.Config)) *fixture {
	t.Helper()
	f := &fixture{t: t, out: &outside{}}
	n := 0
	var mu sync.Mutex
	f.cfg = hall.Config{Store: storetest.NewMemory(), Perform: f.out, Boot: "boot1", NewID: func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprintf("%016d", n)
	}}
	if mod != nil {
		mod(&f.cfg)
	}
	f.store = f.cfg.Store
	f.h = hall.New(f.cfg)
	return f
}

// restart gives a new process on the same store; the old one is forgotten as if
// it had been killed.
func (f *fixture) restart(boot string) {
	f.cfg.Boot = boot
	f.cfg.Exec = nil
	f.out = &outside{}
	f.cfg.Perform = f.out
	f.h = hall.New(f.cfg)
}

func (f *fixture) stop() { stopHall(f.h) }

func stopHall(h *hall.Hall) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	h.Stop(ctx)
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// town makes a town with one rig, web.
func (f *fixture) town(name string) string {
	f.t.Helper()
	id, err := f.h.CreateTown(f.t.Context(), name, "", nil, "tester", nil)
	f.must(err)
	prefix := strings.ReplaceAll(name, "-", "")
	f.must(f.h.Do(f.t.Context(), id, town.AddRig{By: "tester", Rig: town.Rig{Name: "web", Prefix: prefix, URL: "/upstream/web", Target: "main", Tip: oid}}))
	return id
}

func (f *fixture) bead(townID, prefix string) town.CreateBead {
	f.beads++
	return town.CreateBead{By: "tester", ID: fmt.Sprintf("%s-%05d", prefix, f.beads), Rig: "web", Title: "a change"}
}

func (f *fixture) head(id string) store.Head {
	f.t.Helper()
	h, err := f.store.Head(f.t.Context(), id)
	f.must(err)
	return h
}

func (f *fixture) hello(id string) {
	f.t.Helper()
	f.must(f.h.Do(f.t.Context(), id, town.Hello{Generation: f.head(id).Generation, Stream: "s"}))
}

// awake makes a town with a bead at work in a sandbox that said hello.
func (f *fixture) awake(name string) string {
	f.t.Helper()
	id := f.town(name)
	f.must(f.h.Do(f.t.Context(), id, f.bead(id, strings.ReplaceAll(name, "-", ""))))
	synctest.Wait()
	f.hello(id)
	if got := f.head(id).Sandbox; got != "awake" {
		f.t.Fatalf("the sandbox of %s is %s, not awake", name, got)
	}
	return id
}

// sleep lets the virtual time of the bubble pass.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// fetchFails is an outside whose upstreams can't be reached.
func fetchFails(_ context.Context, _ hall.TownRef, e town.Effect) (any, error, bool) {
	if _, ok := e.Action.(town.FetchRig); ok {
		return nil, errs.New(errs.Unavailable, "no answer from upstream"), true
	}
	return nil, nil, false
}

func containsText(s, part string) bool { return strings.Contains(s, part) }

func decodeJSON(body []byte, v any) error { return json.Unmarshal(body, v) }
