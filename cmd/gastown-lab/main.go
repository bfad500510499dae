// Command gastown-lab holds tools for developers and operators of Gastown.
package main

import (
	"fmt"
	"io"
	"os"
)

const usage = `usage: gastown-lab <command> [flags]

commands:
  sim    play days of the control plane on a virtual clock, with faults
  chaos  kill, stop and starve a real server, its runner and its agents, and look at what remains
  load   measure a real server on this machine: idle cost, latency, throughput, memory
  image  build the image of sandboxes in containers from what this machine has
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code: 0, 1 when a check failed, 2 for wrong usage.
func run(args []string, out, errOut io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errOut, usage)
		return 2
	}
	switch args[0] {
	case "sim":
		return runSim(args[1:], out, errOut)
	case "serve": // the server of "load recover"
		return runFakeServer(args[1:], errOut)
	case "runner": // what the server of "load memory" starts in its sandboxes
		return runFakeRunner(errOut)
	case "stream-client": // what agents of "load streams" run
		return runStreamClient(args[1:], errOut)
	case "chaos":
		return runChaos(args[1:], out, errOut)
	case "load":
		return runLoad(args[1:], out, errOut)
	case "image":
		return runImage(args[1:], out, errOut)
	case "help", "-h", "--help":
		fmt.Fprint(out, usage)
		return 0
	}
	fmt.Fprintf(errOut, "gastown-lab: unknown command %q\n%s", args[0], usage)
	return 2
}
