// Package bench holds Go benchmarks of paths that cross packages: a large town
// through hall, rules and store. It has no code to call.
//
// Benchmarks of one package stand with it: settling and decoding in
// internal/town, commits and reads in internal/store, requests in
// internal/server. What needs processes (the server under load, the way from
// sling to agent, memory, restarts) is measured by gastown-lab load. docs/
// benchmarks.md says how to run them all and what they showed.
package bench
