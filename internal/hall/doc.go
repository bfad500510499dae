// Package hall runs towns. It is the only place where a town's rules meet the
// store and the outside world.
//
// For each input it loads the town (or uses the copy in memory), lets it handle
// the input, commits rows, ledger, columns, slot and idempotency record in one
// transaction, answers, and then performs the effects which that same commit
// claimed. What follows from this order:
//
//   - A reply and an effect leave only after the commit they belong to.
//   - A refusal or a read leaves only from a copy whose version was read after
//     the request arrived.
//   - A crash at any point loses nothing: effects are derived from state, and a
//     claim of an older boot is void at load (Config.Shared turns that off).
//   - A commit whose outcome is unknown performs nothing unless it is found.
//
// Inputs of one town are handled one after another by whichever caller found it
// idle; those that queued up meanwhile share one commit. There is no goroutine
// per town, and an asleep town without effects under way leaves memory within
// Config.KeepIdle.
//
// What is looked at when follows from the clock and the store alone, so a process
// that is restarted all the time forgets nothing: slices of idle towns, the beats
// of towns with an interval of their own, housekeeping at the full hour.
//
// Alarms: the loop (Start, Stop, or Step for a simulator) claims due towns from
// the store and ticks them, looks at running towns in memory without a write,
// and at all others by a read-only query per slice. A town whose load, rules or
// commit fails backs off (durably, in its columns) and slows nobody else.
//
// All methods are safe for concurrent use, except that a function given to View
// must not call the hall.
package hall
