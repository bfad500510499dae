package sim

import (
	"testing"
	"time"

	"gastown/internal/town"
)

// TestAFullDiskEndsNoSandbox: while the store takes no writes the server hears
// its sandboxes and can't say so; what it missed is not their silence.
func TestAFullDiskEndsNoSandbox(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	id := s.town("awake")
	s.ask(id, town.Resume{By: person, For: 3 * time.Hour})
	s.wait(5 * time.Minute)
	s.fullUntil = s.now.Add(20 * time.Minute)
	s.wait(30 * time.Minute)
	if h := s.head(id); h.Sandbox != "awake" || h.Generation != 1 || s.boxes.starts != 1 {
		t.Errorf("after 20 minutes of a full disk: %+v, %d starts", h, s.boxes.starts)
	}
	if lost := s.ledger(id, "sandbox.wedged"); len(lost) != 0 {
		t.Errorf("the sandbox was given up: %+v", lost)
	}
}
