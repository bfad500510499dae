package hall_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/hall"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/sandboxtest"
	"gastown/internal/store"
	"gastown/internal/store/storetest"
	"gastown/internal/town"
	"gastown/internal/vault"
)

// mortal is a process that dies after so many steps that leave a mark outside:
// from then on nothing that it does has an effect.
type mortal struct {
	mu    sync.Mutex // guards what follows
	left  int
	steps []string
}

func (m *mortal) step(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == 0 {
		return errs.New(errs.Unavailable, "the process is dead")
	}
	m.left--
	m.steps = append(m.steps, name)
	return nil
}

// live begins to count anew.
func (m *mortal) live(steps int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left, m.steps = steps, nil
}

// way returns the steps that were taken.
func (m *mortal) way() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.steps)
}

type mortalStore struct {
	store.Store
	m *mortal
}

func (s mortalStore) Commit(ctx context.Context, c store.Commit) (int64, error) {
	if err := s.m.step("commit"); err != nil {
		return 0, err
	}
	return s.Store.Commit(ctx, c)
}

func (s mortalStore) DeleteTown(ctx context.Context, id string) error {
	if err := s.m.step("rows"); err != nil {
		return err
	}
	return s.Store.DeleteTown(ctx, id)
}

type mortalDriver struct {
	*sandboxtest.Fake
	m *mortal
}

func (d mortalDriver) Stop(ctx context.Context, r sandbox.Ref, grace time.Duration) error {
	if err := d.m.step("stop"); err != nil {
		return err
	}
	return d.Fake.Stop(ctx, r, grace)
}

func (d mortalDriver) Remove(ctx context.Context, r sandbox.Ref) error {
	if err := d.m.step("disk"); err != nil {
		return err
	}
	return d.Fake.Remove(ctx, r)
}

// mortalHub holds the repositories of towns by name.
type mortalHub struct {
	hall.Hub
	m     *mortal
	repos map[string]bool
}

func (h mortalHub) List() ([]hub.ID, error) { return nil, nil }

func (h mortalHub) RemoveTown(_ context.Context, id string) error {
	if err := h.m.step("hub"); err != nil {
		return err
	}
	delete(h.repos, id)
	return nil
}

type mortalVault struct {
	*vault.Vault
	m *mortal
}

func (v mortalVault) DeletePrefix(prefix string) error {
	if err := v.m.step("secrets"); err != nil {
		return err
	}
	return v.Vault.DeletePrefix(prefix)
}

// dying is a world that outlives the processes which work on it.
type dying struct {
	store  store.Store
	driver *sandboxtest.Fake
	vault  *vault.Vault
	repos  map[string]bool
	boots  int
}

// boot starts a process that has so many steps to live.
func (w *dying) boot(f *fixture, life int) *mortal {
	w.boots++
	m := &mortal{left: life}
	d, h := mortalDriver{w.driver, m}, mortalHub{m: m, repos: w.repos}
	f.cfg.Store, f.store = mortalStore{w.store, m}, w.store
	f.cfg.Driver, f.cfg.Hub, f.cfg.Boot = d, h, fmt.Sprintf("boot%d", w.boots)
	f.cfg.Perform = &hall.Outside{Driver: d, Hub: h, Tokens: tokens{}, Vault: mortalVault{w.vault, m},
		Runner: func(hall.TownRef, int64) ([]string, []string) { return []string{"runner"}, nil }}
	f.h = hall.New(f.cfg)
	f.h.Start(f.t.Context())
	return m
}

func TestATownIsDeletedWholeWhereverTheServerDies(t *testing.T) {
	t.Parallel()
	const immortal = 1 << 30
	for after := 0; ; after++ {
		var steps []string
		synctest.Test(t, func(t *testing.T) {
			w := &dying{store: storetest.NewMemory(), driver: sandboxtest.NewFake(), vault: newVault(t), repos: map[string]bool{}}
			f := newFixture(t, nil)
			m := w.boot(f, immortal)
			id := f.awake("house")
			w.repos[id] = true
			for _, name := range []string{"git/" + id + "/web", "notify/" + id} {
				f.must(w.vault.Put(name, []byte("secret")))
			}
			m.live(after)
			if err := f.h.Do(t.Context(), id, town.DeleteTown{By: "tester"}); (err == nil) != (after > 0) {
				t.Fatalf("after %d steps: deleting gave %v", after, err)
			}
			sleep(2 * time.Minute)
			f.stop()
			steps = m.way()
			if after < len(steps) {
				t.Fatalf("%d steps of a process that had %d to live", len(steps), after)
			}

			w.boot(f, immortal)
			defer f.stop()
			if after == 0 {
				f.must(f.h.Do(t.Context(), id, town.DeleteTown{By: "tester"}))
			}
			sleep(20 * time.Minute)
			if _, err := f.h.Resolve(t.Context(), id); !errs.Is(err, errs.NotFound) {
				t.Fatalf("after %v the rows stay: %v", steps, err)
			}
			if st, err := w.driver.List(t.Context()); err != nil || len(st) != 0 {
				t.Errorf("after %v sandboxes stay: %v, %v", steps, st, err)
			}
			if names, err := w.vault.List(""); err != nil || len(names) != 0 {
				t.Errorf("after %v secrets stay: %v, %v", steps, names, err)
			}
			if len(w.repos) != 0 {
				t.Errorf("after %v repositories stay", steps)
			}
			again, err := f.h.CreateTown(t.Context(), "house", "", nil, "tester", nil)
			if err != nil || again == id {
				t.Errorf("the name can't be used again: %q, %v", again, err)
			}
		})
		if after > len(steps) { // it did not die any more
			for _, want := range []string{"commit", "disk", "hub", "secrets", "rows"} {
				if !slices.Contains(steps, want) {
					t.Fatalf("the way of a deletion was %v: there is no %s", steps, want)
				}
			}
			if steps[len(steps)-1] != "rows" {
				t.Fatalf("the way of a deletion was %v: the rows must go last, they alone know what is left", steps)
			}
			return
		}
		if t.Failed() || after > 100 {
			t.Fatalf("after %d steps: %v", after, steps)
		}
	}
}
