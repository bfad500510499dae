package sim

import (
	"context"
	"sync"
	"time"
)

// Many is a series of runs, of one seed after the other.
type Many struct {
	Options               // of each run; Seed is the first
	Seeds   uint64        // how many
	Jobs    int           // at once; at least 1
	Shrink  time.Duration // time for the smallest replay of each seed that fails; 0: none
}

// Failure is a seed whose run broke an invariant.
type Failure struct {
	Seed       uint64      `json:"seed"`
	Violations []Violation `json:"violations"`
	Replay     *Replay     `json:"replay,omitempty"`
}

// Summary is the outcome of a series.
type Summary struct {
	FirstSeed     uint64           `json:"first_seed"`
	Seeds         uint64           `json:"seeds"`
	Done          uint64           `json:"seeds_done"`
	Hours         float64          `json:"hours"` // per seed
	Towns         int              `json:"towns"`
	TwoServers    uint64           `json:"two_servers"` // seeds with two servers on one store
	Simulated     float64          `json:"simulated_hours"`
	PerSecond     float64          `json:"simulated_hours_per_second"`
	Steps         int64            `json:"steps"`
	Commits       int64            `json:"commits"`
	Commands      int64            `json:"commands"`
	Crashes       int64            `json:"crashes"`
	Beads         int              `json:"beads"`
	Merged        int              `json:"merged"`
	SandboxStarts int64            `json:"sandbox_starts"`
	Faults        map[Kind]int64   `json:"faults"`
	Checked       map[string]int64 `json:"invariants"` // and how often each was checked
	Busiest       map[string]int   `json:"busiest_hour"`
	Limits        map[string]int   `json:"limits_per_hour"`
	Violations    int              `json:"violations"`
	Failures      []Failure        `json:"failures"`
	Stopped       bool             `json:"stopped,omitempty"`
	ElapsedMS     int64            `json:"elapsed_ms"`
}

// Play runs the series until its end, or until ctx ends: then the summary is of
// what was done. each is called after each run, one call at a time; it may be nil.
func (m Many) Play(ctx context.Context, each func(Report, *Replay)) Summary {
	begin := time.Now()
	s := Summary{FirstSeed: m.Seed, Seeds: m.Seeds, Hours: m.Hours, Towns: m.Towns, Faults: map[Kind]int64{}, Checked: map[string]int64{},
		Busiest: map[string]int{}, Limits: perHour, Failures: []Failure{}}
	var mu sync.Mutex // guards s
	seeds := make(chan uint64)
	var workers sync.WaitGroup
	for range max(m.Jobs, 1) {
		workers.Go(func() {
			for seed := range seeds {
				o := m.Options
				o.Seed = seed
				r := Run(ctx, o)
				var replay *Replay
				if len(r.Violations) > 0 && m.Shrink > 0 && o.Only == nil {
					got := Shrink(ctx, o, r, m.Shrink)
					replay = &got
				}
				mu.Lock()
				s.add(r, replay)
				if each != nil {
					each(r, replay)
				}
				mu.Unlock()
			}
		})
	}
	for i := range m.Seeds {
		select {
		case seeds <- m.Seed + i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(seeds)
	workers.Wait()
	s.Stopped = ctx.Err() != nil
	elapsed := time.Since(begin)
	s.ElapsedMS = elapsed.Milliseconds()
	s.PerSecond = s.Simulated / max(elapsed.Seconds(), 1e-3)
	return s
}

func (s *Summary) add(r Report, replay *Replay) {
	if !r.Stopped {
		s.Done++
		s.Simulated += r.Hours
	}
	if r.Servers == 2 {
		s.TwoServers++
	}
	s.Steps += r.Steps
	s.Commits += r.Commits
	s.Commands += r.Commands
	s.Crashes += r.Crashes
	s.Beads += r.Beads
	s.Merged += r.Merged
	s.SandboxStarts += r.SandboxStarts
	for k, n := range r.Faults {
		s.Faults[k] += n
	}
	for k, n := range r.Checked {
		s.Checked[k] += n
	}
	for k, n := range r.Busiest {
		s.Busiest[k] = max(s.Busiest[k], n)
	}
	if len(r.Violations) > 0 {
		s.Violations += len(r.Violations)
		s.Failures = append(s.Failures, Failure{Seed: r.Seed, Violations: r.Violations, Replay: replay})
	}
}
