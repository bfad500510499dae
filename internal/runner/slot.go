package runner

import (
	"crypto/rand"
	"crypto/sha256"
)

// slot is a place in the configuration of an agent process that serves several
// runs: /slot/<id>/... leads to the model as /model/<run>/... does, for the one
// run that sits there. A slot has no second run, so what comes late is refused,
// and never on the bill of another.
type slot struct {
	id     string
	secret [sha256.Size]byte
	holder *tenant // nil: not yet, or no longer; guarded by loopback.mu
}

// newSlot opens a slot; its secret is told once.
func (l *loopback) newSlot() (*slot, string) {
	secret := newSecret()
	s := &slot{id: rand.Text(), secret: hashSecret(secret)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots[s.id] = s
	return s, secret
}

// seat gives a slot to a run.
func (l *loopback) seat(s *slot, t *tenant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.holder = t
}

// drop closes slots for good.
func (l *loopback) drop(slots []*slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slots {
		s.holder = nil
		delete(l.slots, s.id)
	}
}

// holder is the living run in a slot, as a tenant with the slot's secret; nil
// when there is none.
func (l *loopback) holder(id string) *tenant {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s := l.slots[id]
	if s == nil || s.holder == nil || l.tenants[s.holder.id] != s.holder {
		return nil
	}
	t := *s.holder
	t.secret = s.secret
	return &t
}
