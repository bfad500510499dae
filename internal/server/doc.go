// Package server is the HTTP face of the control plane: the API /api/v1 for
// people and their tools, the endpoints of runners under /runner/v1, events,
// health, metrics, and the reference at /docs made from the handlers.
//
// The server decides nothing. It authenticates, checks the form of a request,
// hands one input to the hall, and answers from committed state. It holds no
// town in memory: streams wait on a signal of the hall and read the store.
//
// People authenticate with the admin token, sandboxes with a token of the
// Signer. Everything but health and the reference needs one of them; a path
// that is not known to be public is not. Errors are api.Problem documents, made
// from errs kinds in one place (problem.go).
//
// A creating call takes an Idempotency-Key. Where it ends in an input to a town
// the record commits together with it; else (providers) right after.
//
// Handler may be used alone. Serve adds listeners, TLS and an orderly end: when
// its context ends, streams and long polls end first, then requests finish.
// Stop ends streams too, and is harmless when repeated.
package server
