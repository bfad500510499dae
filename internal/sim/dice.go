package sim

import (
	"math/rand/v2"
	"time"
)

// source is one actor's stream of random numbers. Each number is a function of
// the seed, the actor, the time and how many were drawn at that time. So what
// one actor does after a fault was taken away changes nobody else's luck, and a
// replay with fewer faults stays close to the run that it came from.
type source struct {
	w   *world
	key uint64
	at  int64
	n   uint64
}

// Uint64 implements rand.Source.
func (s *source) Uint64() uint64 {
	if at := s.w.now.UnixNano(); at != s.at {
		s.at, s.n = at, 0
	}
	s.n++
	return mix(mix(s.key^uint64(s.at)) + s.n*0x9e3779b97f4a7c15)
}

// mix spreads the bits of x (the end of splitmix64).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// keyOf is FNV-1a of a name, with the seed.
func keyOf(seed uint64, name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h ^ mix(seed+0x6761))
}

// dice are the random decisions of one actor.
type dice struct{ *rand.Rand }

func (w *world) dice(actor string) dice {
	return dice{rand.New(&source{w: w, key: keyOf(w.opt.Seed, actor)})}
}

// chance is true with probability p.
func (d dice) chance(p float64) bool { return d.Float64() < p }

// between is a random duration in whole milliseconds.
func (d dice) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(d.Int64N(int64((hi-lo)/time.Millisecond)+1))*time.Millisecond
}
