package sim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

// union is how long at least one of the spans lasts.
func union(spans []span) (n int64) {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	end := int64(0)
	for _, s := range spans {
		if from := max(s.from, end); s.to > from {
			n += s.to - from
			end = s.to
		}
	}
	return n
}

// cut returns the parts of spans that lie within others, which don't overlap.
func cut(spans, within []span) (out []span) {
	for _, s := range spans {
		for _, w := range within {
			if c := (span{max(s.from, w.from), min(s.to, w.to)}); c.from < c.to {
				out = append(out, c)
			}
		}
	}
	return out
}

// account is what a town's awake time must have been, from its history and from
// what people asked for, without a look at what it booked itself.
type account struct {
	awake []span            // from hello until something ended it
	whole []span            // from the order to start until gone
	holds map[string][]span // by name
}

// reckon reads a history. asked has the durations of "keep awake", in order.
func reckon(entries []town.Entry, asked []time.Duration) account {
	a := account{holds: map[string][]span{}}
	open := map[string]int64{} // what began and did not end
	end := func(key string, at int64) (span, bool) {
		from, ok := open[key]
		delete(open, key)
		return span{from, at}, ok
	}
	endHold := func(name string, at int64) {
		if s, ok := end(name, at); ok {
			a.holds[name] = append(a.holds[name], s)
		}
	}
	endAwake := func(at int64) {
		if s, ok := end("awake", at); ok {
			a.awake = append(a.awake, s)
		}
	}
	human, until := "human "+person, int64(0)
	for _, e := range entries {
		at := int64(e.At)
		if _, ok := open[human]; ok && until <= at {
			endHold(human, until)
		}
		switch {
		case e.Kind == "sandbox.starting":
			open["whole"] = at
		case e.Kind == "sandbox.awake":
			open["awake"] = at
		case e.Kind == "sandbox.draining", e.Kind == "sandbox.lost":
			endAwake(at)
		case e.Kind == "sandbox.asleep":
			endAwake(at)
			if s, ok := end("whole", at); ok {
				a.whole = append(a.whole, s)
			}
		case e.Kind == "run.started":
			open["run "+e.Subject] = at
		case e.Kind == "run.ended":
			endHold("run "+e.Subject, at)
		case e.Kind == "merge.candidate":
			open["gates "+e.Subject] = at
		case strings.HasPrefix(e.Kind, "gate."), strings.HasPrefix(e.Kind, "bead."):
			endHold("gates "+e.Subject, at)
		case e.Kind == "town.kept_awake":
			until = at + asked[0].Milliseconds()
			asked = asked[1:]
			if _, ok := open[human]; !ok {
				open[human] = at
			}
		case e.Kind == "town.paused", e.Kind == "town.sleeping":
			endHold(human, at)
		}
	}
	if _, ok := open[human]; ok {
		endHold(human, until)
	}
	return a
}

// week lets a town live through seven days.
type week struct {
	*stage
	id    string
	st    *simTown
	asked []time.Duration
	ends  time.Time
	looks int
}

// again does f at random times until the week is over.
func (k *week) again(lo, hi time.Duration, f func()) {
	k.at(k.between(lo, hi), func() {
		if k.now.Before(k.ends) {
			f()
			k.again(lo, hi, f)
		}
	})
}

func (k *week) person(in town.Input) error { return k.hall().Do(context.Background(), k.id, in) }

func (k *week) burst() {
	for range 1 + k.IntN(5) {
		k.st.asked++
		in := town.CreateBead{By: person, ID: fmt.Sprintf("%s-%05d", k.st.prefix, k.st.asked), Rig: rigName, Title: "a change", Staged: k.chance(0.1)}
		if len(k.st.beads) > 0 && k.chance(0.3) {
			in.BlockedBy = []string{k.st.beads[k.IntN(len(k.st.beads))]}
		}
		k.must(k.person(in))
		k.st.beads = append(k.st.beads, in.ID)
	}
}

func (k *week) keepAwake() {
	d := k.between(time.Minute, time.Hour).Truncate(time.Millisecond)
	k.must(k.person(town.Resume{By: person, For: d}))
	k.asked = append(k.asked, d)
}

// view is somebody who looks at everything.
func (k *week) view() {
	ctx := context.Background()
	_, cancel := k.hall().Watch(k.id)
	defer cancel()
	k.must(k.hall().View(ctx, k.id, func(t *town.Town, now time.Time) error {
		t.WhyTown(now)
		t.Usage(now)
		return nil
	}))
	_, err := k.mem.Ledger(ctx, k.id, store.LedgerQuery{Limit: 10, Desc: true})
	k.must(err)
	k.looks++
}

// renew restarts the server between two things that it does: the account of this
// test does not know what a call costs that got lost.
func (k *week) renew() {
	if len(k.procs[0].tasks) > 0 || k.procs[0].stepping {
		k.at(time.Second, k.renew)
		return
	}
	k.restart()
}

func (k *week) mode(m town.MergeMode) func() {
	return func() {
		k.must(k.person(town.SetRig{By: person, Rig: rigName, Set: town.Settings{"merge.mode": string(m)}}))
	}
}

func (k *week) live() {
	k.again(time.Hour, 6*time.Hour, k.burst)
	k.again(4*time.Hour, 12*time.Hour, k.keepAwake)
	k.again(10*time.Second, 30*time.Minute, k.view)
	k.again(5*time.Minute, 3*time.Hour, k.renew)
	k.again(8*time.Hour, 20*time.Hour, func() {
		k.must(k.person(town.Pause{By: person, Now: k.chance(0.5)}))
		k.at(k.between(time.Minute, 2*time.Hour), func() { k.must(k.person(town.Resume{By: person})) })
	})
	k.again(3*time.Hour, 12*time.Hour, func() {
		if x := k.boxes.by[k.id]; x != nil {
			x.end("killed by the host", true)
		}
	})
	for day := range 7 {
		m := town.ModeDirect
		if day%3 == 1 {
			m = town.ModeBranch
		}
		k.at(time.Duration(day)*24*time.Hour, k.mode(m))
	}
	k.at(time.Hour, k.outside)
}

// TestAWeeksAwakeTimeIsAccountedForToTheMillisecond compares what a town booked
// with the driver's own times, and with an account drawn up from its history.
func TestAWeeksAwakeTimeIsAccountedForToTheMillisecond(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			for range seed {
				s.Uint64() // another week per seed
			}
			id := s.town("mixed", town.Gate{Name: "build", Command: "make"}, town.Gate{Name: "test", Command: "make test"})
			k := &week{stage: s, id: id, st: s.towns[0], ends: s.now.Add(7 * 24 * time.Hour)}
			k.live()
			s.wait(7 * 24 * time.Hour)
			s.ask(id, town.Pause{By: person, Now: true})
			s.wait(10 * time.Minute)
			k.compare()
		})
	}
}

func (k *week) compare() {
	k.t.Helper()
	var sum town.Usage
	perHold := map[string]int64{}
	var awakeMS int64
	k.must(k.hall().View(context.Background(), k.id, func(t *town.Town, now time.Time) error {
		awakeMS = t.AwakeMS(now)
		for _, u := range t.Usage(now) {
			sum.Starting, sum.Held, sum.Grace = sum.Starting+u.Starting, sum.Held+u.Held, sum.Grace+u.Grace
			sum.Draining, sum.Stopping = sum.Draining+u.Draining, sum.Stopping+u.Stopping
			for h, n := range u.Holds {
				perHold[h] += n
			}
		}
		return nil
	}))
	entries := k.ledger(k.id, "")
	a := reckon(entries, k.asked)
	var all []span
	for _, spans := range a.holds {
		all = append(all, spans...)
	}
	whole, awake, held := union(a.whole), union(a.awake), union(cut(all, a.awake))
	for _, c := range []struct {
		what      string
		got, want int64
	}{
		{"awake time by the driver", awakeMS, union(k.boxes.lived[k.id])},
		{"awake time by usage", sum.Awake(), awakeMS},
		{"awake time by the history", awakeMS, whole},
		{"starting, draining and stopping", sum.Starting + sum.Draining + sum.Stopping, whole - awake},
		{"union of the holds", sum.Held, held},
		{"grace", sum.Grace, awake - held},
		{"the sum of all", held + sum.Grace + sum.Starting + sum.Draining + sum.Stopping, union(k.boxes.lived[k.id])},
	} {
		if c.got != c.want {
			k.t.Errorf("%s: the town booked %d ms, it was %d", c.what, c.got, c.want)
		}
	}
	for name, spans := range a.holds {
		if got, want := perHold[name], union(cut(spans, a.awake)); got != want {
			k.t.Errorf("%s: the town booked %d ms, it was %d", name, got, want)
		}
		delete(perHold, name)
	}
	for name, n := range perHold {
		if n != 0 {
			k.t.Errorf("%s was booked with %d ms and never was", name, n)
		}
	}
	kinds := map[string]int{}
	for _, e := range entries {
		kinds[e.Kind]++
	}
	for _, kind := range []string{"run.ended", "gate.failed", "gate.passed", "merge.published", "merge.landed", "town.kept_awake", "sandbox.lost", "town.sleeping"} {
		if kinds[kind] == 0 {
			k.t.Errorf("a week without %s proves too little", kind)
		}
	}
	if held == 0 || sum.Grace == 0 || awakeMS > 6*24*3600*1000 || k.looks < 500 {
		k.t.Errorf("held %d ms, grace %d ms, awake %d ms, %d looks", held, sum.Grace, awakeMS, k.looks)
	}
}
