package server

import (
	"context"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

const maxPlaces = 4096

// place is what the creation of beads needs to know of a town: facts that
// change only when a town or a rig is removed and made anew. What is remembered
// may be stale; whoever is refused because of it asks again (see createBead).
type place struct {
	id   string
	rigs map[string]string // name to prefix
}

// places remembers places by name or id of the town, a bounded number.
type places struct {
	mu sync.Mutex // guards m
	m  map[string]place
}

func (p *places) get(town string) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.m[town]
	return v, ok
}

func (p *places) put(town string, v place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= maxPlaces {
		p.m = map[string]place{}
	}
	p.m[town] = v
}

func (p *places) drop(town string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.m, town)
}

// townID finds a town by name or id.
func (s *Server) townID(ctx context.Context, nameOrID string) (string, error) {
	h, err := s.townHead(ctx, nameOrID)
	return h.ID, err
}

func (s *Server) townHead(ctx context.Context, nameOrID string) (store.Head, error) {
	if len(nameOrID) > 128 {
		return store.Head{}, errs.New(errs.NotFound, "no town of that name")
	}
	h, err := s.hall.Resolve(ctx, nameOrID)
	if errs.Is(err, errs.NotFound) {
		return h, errs.New(errs.NotFound, "no town %s", printable(nameOrID, 60)).WithHint("gastown town list shows those that exist")
	}
	return h, err
}

// townOfBead finds the town of a bead by the prefix of its id.
func (s *Server) townOfBead(ctx context.Context, bead string) (string, error) {
	if err := town.ValidBeadID(bead); err != nil {
		return "", err
	}
	prefix, _, _ := strings.Cut(bead, "-")
	found, err := s.store.FindPrefix(ctx, prefix)
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errs.New(errs.NotFound, "no bead %s", bead).WithHint("no rig has the prefix %s; gastown bead list shows those that exist", prefix)
	}
	return found[0].Town, nil
}

// view shows a town at the time of the look.
func (s *Server) view(ctx context.Context, townID string, fn func(t *town.Town) error) error {
	return s.hall.View(ctx, townID, func(t *town.Town, _ time.Time) error { return fn(t) })
}

// viewBead shows a bead and its town.
func (s *Server) viewBead(ctx context.Context, bead string, fn func(t *town.Town, now time.Time, b town.Bead) error) error {
	id, err := s.townOfBead(ctx, bead)
	if err != nil {
		return err
	}
	return s.hall.View(ctx, id, func(t *town.Town, now time.Time) error {
		b, err := getBead(t, bead)
		if err != nil {
			return err
		}
		return fn(t, now, b)
	})
}

func getBead(t *town.Town, id string) (town.Bead, error) {
	b, ok := t.Bead(id)
	if !ok {
		return b, t.NoBead(printable(id, 60))
	}
	return b, nil
}

func getRig(t *town.Town, name string) (town.Rig, error) {
	r, ok := t.Rig(name)
	if !ok {
		return r, errs.New(errs.NotFound, "no rig %s in town %s", printable(name, 60), t.Info().Name).
			WithHint("gastown rig list shows those that exist")
	}
	return r, nil
}

// keyed serializes work by key within this process.
type keyed struct {
	mu sync.Mutex // guards m
	m  map[string]*keyLock
}

type keyLock struct {
	held  chan struct{} // capacity 1: full while held
	users int           // holders and waiters; guarded by keyed.mu
}

// lock waits for the key until ctx ends.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.m == nil {
		k.m = map[string]*keyLock{}
	}
	l := k.m[key]
	if l == nil {
		l = &keyLock{held: make(chan struct{}, 1)}
		k.m[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.m, key)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
