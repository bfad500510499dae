// Package runner is what runs inside a sandbox: a small kubelet for agents. It
// dials the server, never the other way round, converges to the desired
// document of its town, and serves the agents on loopback.
//
// The contract:
//
//   - One runner per disk (a lock on the directory). Nothing is written before
//     the server's first answer. 410 Gone for the generation kills every agent
//     and ends the runner.
//   - A run is known by (id, epoch) and started once. Its end is reported once,
//     after its last checkpoint. What the document no longer names is stopped.
//   - Reports go through the outbox in order, under a random stream id per
//     boot, until the server acknowledged them. Verdicts and gate results are
//     synchronous calls with a key that makes a repeat harmless.
//   - Secrets: the sandbox token stays in this process. Agents get a random
//     secret per run, good for their own loopback endpoints and dead with the
//     run. Git processes of the runner get another one, by environment.
//   - Names from the document become paths only after checkNames and checkRun
//     accepted them; git sees only full refs and object ids.
//
// Who may call what: one goroutine per run (run.go) owns its agent; apply
// (converge.go) only asks it to end or hands it nudges. See DESIGN.md.
package runner
