// Package lab measures a real Gastown: server process, SQLite store, HTTP,
// sandboxes of the process driver. It is the load tool behind gastown-lab, not
// a test: nothing in it fails because a machine is slow.
//
// Every measurement works in a temporary directory of its own, listens on
// loopback only, is bounded in count and time, and removes its processes and
// files however it ends. Figures come from outside the server where that is
// possible (the clock of the client, /proc, /metrics), so that they hold for
// what an operator would see. Server, client and sandboxes share the machine:
// latencies contain the cost of the client.
//
// RunChaos is the one part that judges: it breaks real processes and says what
// must not have happened.
//
// One measurement at a time; they are not safe to run side by side, because
// they would measure each other.
package lab
