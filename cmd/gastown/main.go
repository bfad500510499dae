// Command gastown is the server, the command line, the runner inside a sandbox
// and the scripted agent: one binary. See package cli.
package main

import (
	"context"
	"os"

	"gastown/internal/cli"
)

// version is set by the linker: -X main.version=v1.2.3
var version string

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Process(version)))
}
