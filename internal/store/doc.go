// Package store keeps what Gastown must not forget: towns as versioned rows of
// JSON, their ledgers, the slots that admit sandboxes, idempotency records and
// transcripts. It knows nothing of the rules of a town; it only knows Columns.
//
// The contract, which storetest checks for every implementation:
//
//   - One commit, one version. Commit applies rows, ledger entries, idempotency
//     records, rig index and slot change together or not at all, and only when
//     the town still has the version that the caller read. There is no other lock
//     on a town.
//   - A reply follows the durable commit. An error says whether anything was
//     changed: every error but ErrUnknown means that nothing was.
//   - A caller that gives up (its context ends) gets an error that is both its
//     context's error and ErrUnknown: the write may still happen. A context never
//     interrupts a write that has begun.
//   - ClaimDue, Admit, transcripts, Meta and PutIdem do not change a town's
//     version, so they never invalidate a copy in memory.
//   - Reads see committed state only. Load and its Head are one snapshot.
//   - Times are UTC milliseconds, ids are text. Byte slices handed in belong to
//     the store afterwards, byte slices handed out are read-only.
//
// Errors have kinds of package errs: NotFound, Conflict (a taken name or prefix,
// ErrVersion, ErrReplay), Invalid (a bad argument), Unavailable (full, read-only,
// closed, ErrUnknown).
package store
