// Package town is the domain: what a town of coding agents is and how it
// changes. It is pure. It does no I/O, reads no clock, starts no goroutine and
// uses no randomness: the current time is an argument, ids of new beads come in
// with the input, and ids made by rules come from counters in the state.
//
// A Town changes only through Handle, which validates an input before it
// changes anything, applies it, and then settles: the rules (rules.go) run to a
// fixpoint. What the outside world should be asked is derived from the state by
// Effects, never queued; a caller claims what it is about to perform with Claim,
// commits, performs it, and feeds the outcome back as an EffectDone input.
// NextWake names the exact next moment at which time alone changes something,
// Why says what anything waits for, and Desired is the document that the runner
// inside the sandbox converges to.
//
// A Town is persisted as rows (rows.go): each changed row is handed out once by
// Changes, each ledger entry once by Entries. A row that can't be read is
// quarantined and the rest of the town goes on.
//
// The caller must serialize all calls on one Town. After an error from Handle
// nothing has changed. See DESIGN.md for the rules and where each one lives.
package town
