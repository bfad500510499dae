package app

import (
	"testing"
	"time"

	"gastown/internal/town"
)

func TestTownsThatADrainPutToSleepGoOnAtTheNextStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, by string
		mark     string
		want     town.Mode
	}{
		{"with the mark of a drain", stopActor, "true", town.ModeActive},
		{"one that was paused is paused again", stopPausedActor, "true", town.ModePaused},
		{"one that a person put to sleep stays asleep", "ann", "true", town.ModeSleeping},
		{"without the mark no town is looked at", stopActor, "", town.ModeSleeping},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, err := Open(t.Context(), Config{Data: t.TempDir(), Listen: "127.0.0.1:0"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := a.Close(); err != nil {
					t.Error(err)
				}
			})
			p := a.current.Load()
			id, err := p.hall.CreateTown(t.Context(), "one", "", nil, "ann", nil)
			if err == nil {
				err = p.hall.Do(t.Context(), id, town.Pause{By: c.by, Now: true})
			}
			if err == nil {
				err = p.store.SetMeta(t.Context(), drained, c.mark)
			}
			if err != nil {
				t.Fatal(err)
			}
			p.undoDrain(t.Context())
			err = p.hall.View(t.Context(), id, func(tn *town.Town, _ time.Time) error {
				if got := tn.Info().Mode; got != c.want {
					t.Errorf("the town is %s, want %s", got, c.want)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if mark, _, err := p.store.Meta(t.Context(), drained); mark != "" || err != nil {
				t.Errorf("the mark is %q afterwards, %v", mark, err)
			}
		})
	}
}
