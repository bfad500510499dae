// Package sim runs the whole control plane, rules and hall, on a virtual clock
// and one goroutine, against a world of its own making: sandboxes, runners,
// repositories, people. Days run in seconds.
//
// Everything random comes from one seed: which of the things that could happen
// next happens, how long each takes, and which go wrong. The faults: the process
// dies between any two of its calls to the store or the world, commits that
// fail, commits that happen but seem to fail, sandboxes that die or fall silent,
// messages that are lost, repeated or late, answers that are lost, upstreams that
// move or can't be reached, a machine that sleeps for hours.
//
// After every step the invariants are checked against what was committed and
// against what the world really holds, never against what the hall believes. In
// the last hours faults and new work stop; then everything has to come to rest.
// A run with the same Options is the same run, to the byte of every commit.
package sim
