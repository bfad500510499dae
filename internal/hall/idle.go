package hall

import (
	"context"
	"errors"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	idleSlices   = 64                     // of all towns, each read once per idle interval
	minIdleStep  = 100 * time.Millisecond // between two slices; shorter intervals have fewer
	ownLookBack  = time.Minute            // beats of towns that a boot looks back at
	ownLookParts = 64                     // looks per shortest interval of a town's own
)

// idleLooks says what of the idle towns was read already. Which slice is read
// when, and when a town with an interval of its own is looked at, follows from
// the clock alone, so a process that is restarted all the time misses none.
type idleLooks struct {
	step    int64 // number of the slice read last, counted from the epoch; 0 before the first
	sliceAt time.Time
	ownTo   time.Time // beats up to here were looked at
	ownAt   time.Time
}

// idleLook reads what has its time now: a slice of all towns, and the towns with
// an idle interval of their own. Those whose columns contradict each other are
// ticked. It writes nothing and loads nothing.
func (a *alarm) idleLook(ctx context.Context, now time.Time) error {
	return errors.Join(a.lookSlice(ctx, now), a.lookOwn(ctx, now))
}

func (a *alarm) lookSlice(ctx context.Context, now time.Time) error {
	interval := a.h.serverDuration("alarm.idle_interval")
	slices := min(max(int64(interval/minIdleStep), 1), idleSlices)
	each := max(interval.Milliseconds()/slices, 1)
	is := now.UnixMilli() / each
	a.mu.Lock()
	last := a.idle.step
	switch {
	case last == 0, last > is: // at boot, and when the clock went back
		last = is - 1
	case is-last > slices:
		last = is - slices
	}
	a.mu.Unlock()
	again := func(step int64, at time.Time) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.idle.step, a.idle.sliceAt = step, at
	}
	if last == is {
		again(is, time.UnixMilli((is+1)*each))
		return nil
	}
	a.h.metrics.IdleReads.Add(1)
	heads, err := a.h.cfg.Store.IdleSlice(ctx, int((last+1)%slices), int(slices), now.UnixMilli())
	if err != nil {
		again(last, now.Add(loopRetry))
		return err
	}
	last++
	next := time.UnixMilli((is + 1) * each)
	if last < is {
		next = now.Add(time.Millisecond)
	}
	again(last, next)
	a.repair(heads)
	return nil
}

// lookOwn looks at the towns with an interval of their own whose beats passed.
func (a *alarm) lookOwn(ctx context.Context, now time.Time) error {
	a.mu.Lock()
	from := a.idle.ownTo
	wait := now.Before(a.idle.ownAt) && !from.After(now)
	a.mu.Unlock()
	if wait {
		return nil
	}
	if from.IsZero() || from.After(now) {
		from = now.Add(-ownLookBack)
	}
	a.h.metrics.IdleReads.Add(1)
	heads, least, err := a.h.cfg.Store.IdleOwn(ctx, from.UnixMilli(), now.UnixMilli())
	a.mu.Lock()
	if err != nil {
		a.idle.ownAt = now.Add(loopRetry)
	} else {
		a.idle.ownTo, a.idle.ownAt = now, now.Add(ownPause(least))
	}
	a.mu.Unlock()
	a.repair(heads)
	return err
}

// ownPause is how long the loop may wait between looks when least is the shortest
// interval, in milliseconds; 0: there is none.
func ownPause(least int64) time.Duration {
	if least == 0 {
		return loopMax
	}
	return min(max(time.Duration(least)*time.Millisecond/ownLookParts, minIdleStep), loopMax)
}

// ownChanged hears that a town got another idle interval.
func (a *alarm) ownChanged(now time.Time, idle int64) {
	if idle == 0 {
		return
	}
	at := now.Add(ownPause(idle))
	a.mu.Lock()
	sooner := at.Before(a.idle.ownAt)
	if sooner {
		a.idle.ownAt = at
	}
	a.mu.Unlock()
	if sooner {
		a.poke(at)
	}
}

// repair queues the towns whose columns contradict each other. Those that are
// only due are claimed by dispatch.
func (a *alarm) repair(heads []store.Head) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, head := range heads {
		if head.DueAt == 0 {
			a.h.metrics.Found.Add(1)
			a.addLocked(wanted{head.ID, &head})
		}
	}
}

// serverDuration is a setting of the whole server. A value that can't be right is
// passed over, as towns do.
func (h *Hall) serverDuration(key string) time.Duration {
	s, err := town.Lookup(key)
	if err != nil {
		panic(err) // the hall names a setting that does not exist
	}
	if v, ok := h.cfg.Server[key]; ok && town.CheckSetting(town.LevelServer, key, v) == nil {
		s.Default = v
	}
	d, err := time.ParseDuration(s.Default)
	if err != nil {
		panic(err) // checked, or the table is wrong
	}
	return d
}
