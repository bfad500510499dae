package sim

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Replay is the smallest run that was found to break the same invariant.
type Replay struct {
	Command string      `json:"command"` // plays it again, exactly
	Faults  []Injection `json:"-"`
	Of      int         `json:"of"` // faults of the run that failed first
	Runs    int         `json:"runs"`
	Again   bool        `json:"again"` // the replay did fail when it was played by itself
}

// slack is for how long a smaller run is watched beyond the time of the first failure.
const slack = 3 * time.Hour

// shrinker looks for fewer faults that still break an invariant.
type shrinker struct {
	ctx  context.Context
	o    Options
	inv  string
	at   time.Duration // when it broke, in the smallest run so far
	runs int
}

// Shrink looks for a small run that breaks the first invariant that r broke. It
// takes faults away, by halves and then one by one, and keeps what still fails,
// for at most the given time of this machine.
func Shrink(ctx context.Context, o Options, r Report, budget time.Duration) Replay {
	limited, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	v := r.Violations[0]
	s := &shrinker{ctx: limited, o: o, inv: v.Invariant, at: v.At}
	all := slices.DeleteFunc(slices.Clone(r.Injected), func(i Injection) bool { return i.At > v.At })
	s.o.first, s.o.Faults, s.o.Only = true, nil, all
	keep := all
	if hours := math.Ceil(v.At.Hours()*100) / 100; hours < s.o.Hours {
		was := s.o.Hours
		if s.o.Hours = hours; !s.fails(all) {
			s.o.Hours = was
		}
	}
	if s.fails([]Injection{}) {
		keep = []Injection{}
	} else {
		keep = s.shrink(s.withoutKinds(s.latest(keep)))
	}
	out := Replay{Faults: keep, Of: len(r.Injected), Command: command1(s.o, keep)}
	last := s.o
	last.Only, last.until = keep, 0
	again := Run(ctx, last)
	out.Again = slices.ContainsFunc(again.Violations, func(v Violation) bool { return v.Invariant == s.inv })
	out.Runs = s.runs + 1
	return out
}

// command1 is the command line that plays a run with exactly these faults.
func command1(o Options, only []Injection) string {
	names := make([]string, len(only))
	for i, f := range only {
		names[i] = f.String()
	}
	c := fmt.Sprintf("gastown-lab sim --seed %d --hours %g --towns %d --only-faults %s", o.Seed, o.Hours, o.Towns, cmp.Or(strings.Join(names, ","), "none"))
	if o.Pair {
		c += " --pair"
	}
	return c
}

// fails plays a run with exactly the given faults.
func (s *shrinker) fails(only []Injection) bool {
	if s.ctx.Err() != nil {
		return false
	}
	s.runs++
	o := s.o
	o.Only = only
	if late := s.at + slack; late.Hours() < o.Hours {
		o.until = late
	}
	for _, v := range Run(s.ctx, o).Violations {
		if v.Invariant == s.inv {
			s.at = min(s.at, v.At)
			return true
		}
	}
	return false
}

// latest tries only the latest faults, twice as many each time: what breaks
// something is seldom long ago.
func (s *shrinker) latest(list []Injection) []Injection {
	for n := 4; n < len(list) && s.ctx.Err() == nil; n *= 2 {
		some := slices.Clone(list[len(list)-n:])
		if list[0].Kind == "two-servers" {
			some = append(some, list[0])
		}
		if s.fails(some) {
			return some
		}
	}
	return list
}

// withoutKinds leaves out whole kinds of faults.
func (s *shrinker) withoutKinds(list []Injection) []Injection {
	for _, k := range kinds {
		rest := slices.DeleteFunc(slices.Clone(list), func(i Injection) bool { return i.Kind == k.name })
		if len(rest) < len(list) && len(rest) > 0 && s.fails(rest) {
			list = rest
		}
	}
	return list
}

// shrink is delta debugging: it leaves out ever smaller parts of the list as long
// as what remains fails.
func (s *shrinker) shrink(list []Injection) []Injection {
	parts := 2
	for len(list) > 1 && s.ctx.Err() == nil {
		size := (len(list) + parts - 1) / parts
		smaller := false
		for from := 0; from < len(list) && s.ctx.Err() == nil; from += size {
			rest := append(slices.Clone(list[:from]), list[min(from+size, len(list)):]...)
			if s.fails(rest) {
				list, smaller = rest, true
				parts = max(parts-1, 2)
				break
			}
		}
		if smaller {
			continue
		}
		if size == 1 {
			break
		}
		parts = min(parts*2, len(list))
	}
	return list
}
