// Package inside is the first process of a sandbox that is a container or a box
// of bubblewrap. It
// prepares the disk, starts the sandbox's command as a user of its own, hands the
// token over from its standard input to descriptor 3, reaps orphans, passes
// signals on, and ends with the command.
//
// It runs as root with the few capabilities that the driver leaves to it. The
// command runs as another user. Only with --apart it has capabilities: those with
// which the runner gives agents users of their own (see package apart).
//
// Its first line of output says to the driver whether the command started.
package inside

// The first line of output.
const (
	Started = "gastown-sandbox: started"
	Failed  = "gastown-sandbox: failed: " // and the reason
)

// BoxFlag is the first argument in a box of bubblewrap. There the token comes on
// sandbox.TokenFD already, and StatusFD takes the place of the output.
const (
	BoxFlag  = "--box"
	StatusFD = 4
)
