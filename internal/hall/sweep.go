package hall

import (
	"context"
	"fmt"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	secondLook   = 30 * time.Second // between two looks at a suspected orphan
	wholeSweep   = 20               // every so many sweeps look at what does not run, too
	sweepTimeout = 2 * time.Minute
)

// sweep remembers what no town seems to own. Something is removed only when it
// was seen so twice.
type sweep struct {
	running bool
	n       int                  // sweeps so far
	since   map[string]time.Time // suspect -> first seen
}

// maybeSweep starts a sweep when its time has come.
func (a *alarm) maybeSweep(now time.Time) {
	a.mu.Lock()
	old, whole := a.sweep.since, a.sweep.n%wholeSweep == 0
	wait := a.sweep.running || now.Before(a.sweepAt)
	if !wait {
		a.sweep.running, a.sweepAt = true, now.Add(a.h.cfg.SweepEach)
		a.sweep.n++
	}
	a.mu.Unlock()
	if wait {
		return
	}
	begun := a.h.spawn(func() {
		seen := a.h.sweepOnce(now, old, whole)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.sweep.running, a.sweep.since = false, seen
		if again := now.Add(secondLook + time.Second); len(seen) > 0 && again.Before(a.sweepAt) {
			a.sweepAt = again
		}
	})
	if !begun {
		a.mu.Lock()
		a.sweep.running = false
		a.mu.Unlock()
	}
}

// look is one sweep.
type look struct {
	now       time.Time
	whole     bool // look at disks and repositories too, not only at earlier suspects
	old, seen map[string]time.Time
}

// worth reports whether this sweep looks at something that does not run.
func (l *look) worth(key string) bool { return l.whole || !l.old[key].IsZero() }

// suspect notes a suspect and reports whether it was one for age already.
func (l *look) suspect(key string, age time.Duration) bool {
	first, ok := l.old[key]
	if !ok {
		first = l.now
	}
	l.seen[key] = first
	return ok && l.now.Sub(first) >= age
}

// sweepOnce looks for sandboxes, repositories and slots without a town, ends
// those that were suspected before, and returns the suspects. It wakes nothing.
func (h *Hall) sweepOnce(now time.Time, old map[string]time.Time, whole bool) map[string]time.Time {
	ctx, cancel := context.WithTimeout(h.background, sweepTimeout)
	defer cancel()
	l := &look{now: now, whole: whole, old: old, seen: map[string]time.Time{}}
	report := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			h.cfg.Log.Warn("the sweep of "+what+" is not complete", "err", err)
		}
	}
	if h.cfg.Driver != nil {
		report("sandboxes", h.sweepSandboxes(ctx, l))
	}
	if h.cfg.Hub != nil {
		report("repositories", h.sweepHub(ctx, l))
	}
	report("slots", h.sweepSlots(ctx, l))
	return l.seen
}

func (h *Hall) sweepSandboxes(ctx context.Context, l *look) error {
	all, err := h.cfg.Driver.List(ctx)
	if err != nil {
		return err
	}
	for _, st := range all {
		disk := "disk " + st.Ref.Town
		if st.State != sandbox.Running && !l.worth(disk) {
			continue
		}
		head, err := h.cfg.Store.Head(ctx, st.Ref.Town)
		switch {
		case errs.Is(err, errs.NotFound):
			if l.suspect(disk, secondLook) {
				h.cfg.Log.Info("removing the sandbox of a town that does not exist", "town", st.Ref.Town)
				if err := h.cfg.Driver.Remove(ctx, sandbox.Ref{Driver: st.Ref.Driver, Town: st.Ref.Town}); err != nil {
					return err
				}
			}
		case err != nil:
			return err
		case st.State == sandbox.Running && !owns(head, st.Ref):
			if l.suspect(fmt.Sprintf("sandbox %s %d", st.Ref.Town, st.Ref.Generation), secondLook) {
				h.cfg.Log.Info("stopping a sandbox that its town does not own", "town", st.Ref.Town, "generation", st.Ref.Generation)
				if err := h.cfg.Driver.Stop(ctx, st.Ref, 10*time.Second); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// owns reports whether a running generation is the one that its town has.
func owns(head store.Head, ref sandbox.Ref) bool {
	return head.Generation == ref.Generation && town.SandboxState(head.Sandbox).Running()
}

func (h *Hall) sweepHub(ctx context.Context, l *look) error {
	ids, err := h.cfg.Hub.List()
	if err != nil {
		return err
	}
	known := map[string]map[string]bool{} // rig -> towns that have one of this name
	for _, id := range ids {
		key := "hub " + id.String()
		if !l.worth(key) {
			continue
		}
		if known[id.Rig] == nil {
			if known[id.Rig], err = h.townsWith(ctx, id.Rig); err != nil {
				return err
			}
		}
		// A rig's repository exists a moment before the rig does.
		if !known[id.Rig][id.Town] && l.suspect(key, h.cfg.SweepEach) {
			h.cfg.Log.Info("removing a repository without a rig", "repository", id.String())
			if err := h.cfg.Hub.RemoveRig(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *Hall) townsWith(ctx context.Context, rig string) (map[string]bool, error) {
	rigs, err := h.cfg.Store.FindRig(ctx, rig)
	towns := map[string]bool{}
	for _, r := range rigs {
		towns[r.Town] = true
	}
	return towns, err
}

// sweepSlots frees slots of towns that are asleep (a grant that arrived after
// the town had stopped wanting it, and a crash before that was seen), and gives
// slots to sandboxes that run without one.
func (h *Hall) sweepSlots(ctx context.Context, l *look) error {
	slots, err := h.cfg.Store.Slots(ctx)
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, s := range slots {
		has[s.Town] = s.State != store.SlotWaiting
		head, err := h.cfg.Store.Head(ctx, s.Town)
		if err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
		if err == nil && head.Sandbox == store.Asleep && l.suspect("slot "+s.Town, secondLook) {
			if err := h.submit(ctx, s.Town, &request{slot: true, own: true}); err != nil {
				return err
			}
		}
	}
	running, err := h.cfg.Store.AwakeTowns(ctx)
	if err != nil {
		return err
	}
	for _, head := range running {
		if town.SandboxState(head.Sandbox).Running() && !has[head.ID] && l.suspect("no slot "+head.ID, secondLook) {
			if err := h.submit(ctx, head.ID, &request{noSlot: true, own: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Exited passes on the driver's word that a generation ended, when that is news.
func (h *Hall) Exited(ref sandbox.Ref) {
	ctx, cancel := context.WithTimeout(h.background, time.Minute)
	defer cancel()
	head, err := h.cfg.Store.Head(ctx, ref.Town)
	if err != nil || !owns(head, ref) {
		return // nobody's, or known already; the sweep and inspections see the rest
	}
	st, err := h.cfg.Driver.Inspect(ctx, ref)
	if err != nil || st.State != sandbox.Gone {
		return // a hint that can't be confirmed; the town asks for itself when it hears nothing
	}
	if err := h.Do(ctx, ref.Town, town.SandboxExited{Generation: ref.Generation, Reason: st.Reason}); err != nil {
		h.cfg.Log.Warn("the end of a sandbox could not be recorded", "town", ref.Town, "generation", ref.Generation, "err", err)
	}
}

// Repair hands an input to a town together with what its row says now, so that a
// column that differs from the state is written anew, and settles its slot: a
// sleeping town keeps none. noSlot says that it runs and holds none.
func (h *Hall) Repair(ctx context.Context, townID string, in town.Input, noSlot bool) error {
	c, cancel := storeCtx(ctx)
	head, err := h.cfg.Store.Head(c, townID)
	cancel()
	if err != nil {
		return err
	}
	running := town.SandboxState(head.Sandbox).Running()
	return h.submit(ctx, townID, &request{in: in, stored: &head, slot: !running, noSlot: noSlot && running, write: true})
}
