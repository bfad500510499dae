// Command helper is the whole content of the image of the driver's tests: the
// first process, and what runs inside.
package main

import (
	"os"

	"gastown/internal/sandbox/inside"
	"gastown/internal/sandbox/sandboxtest"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(inside.Main(os.Args[2:], os.Stdout))
	}
	sandboxtest.HelperMain()
	os.Exit(2)
}
