// Package sim runs the whole control plane, rules and hall, on a virtual clock
// and one goroutine, against a world of its own making: sandboxes, runners,
// repositories, people. Days run in seconds.
//
// Everything random comes from one seed: which of the things that could happen
// next happens, how long each takes, and which of the faults in faults.go strike.
// A call to the outside of a process may stand still while others go on (see
// strand), so every such call is a place to interleave and to die.
//
// After every step the invariants are checked against what was committed and
// against what the world really holds, never against what the hall believes. In
// the last hours faults and new work stop; then everything has to come to rest.
// A run with the same Options is the same run, to the byte of every commit; with
// Options.Only exactly the listed faults happen, and Shrink finds a short list
// that still breaks the same invariant.
package sim
