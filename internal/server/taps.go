package server

import "sync"

// taps tell streams of this process that a town has new transcript chunks,
// which are no commit of the town. Streams on other replicas find out by
// looking every now and then.
type taps struct {
	mu sync.Mutex // guards m
	m  map[string]map[chan struct{}]struct{}
}

func (t *taps) listen(town string) (heard <-chan struct{}, cancel func()) {
	ch := make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[string]map[chan struct{}]struct{}{}
	}
	if t.m[town] == nil {
		t.m[town] = map[chan struct{}]struct{}{}
	}
	t.m[town][ch] = struct{}{}
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.m[town], ch)
		if len(t.m[town]) == 0 {
			delete(t.m, town)
		}
	}
}

func (t *taps) tell(town string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ch := range t.m[town] {
		select {
		case ch <- struct{}{}:
		default: // it has not looked since the last one
		}
	}
}
