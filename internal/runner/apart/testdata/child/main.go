// Command child is what the tests of package apart start as an ordinary user with
// the capabilities of a runner.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"

	"gastown/internal/runner/apart"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch args[0] {
	case "show": // what this process may do
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		var out []string
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); strings.HasPrefix(line, "Cap") && f[0] != "CapBnd:" || f[0] == "Uid:" || f[0] == "Groups:" {
				out = append(out, strings.Join(f, " "))
			}
		}
		fmt.Println(strings.Join(out, "; "))
		return nil
	case "careless": // starts a program without having made a keeper
		return output(exec.Command(os.Args[0], "show"), (*exec.Cmd).Start)
	case "keeper": // starts one as itself and one in a cell
		keeper, err := apart.New(apart.UID)
		if err != nil {
			return err
		}
		cell, err := keeper.Enter()
		if err != nil {
			return err
		}
		if err := output(exec.Command(os.Args[0], "show"), (*exec.Cmd).Start); err != nil {
			return err
		}
		// The cell is not left: what it started has ended, and a sweep would reach
		// beyond this test.
		return output(exec.Command(os.Args[0], "show"), cell.Start)
	case "remove":
		return apart.Remove(args[1])
	}
	return fmt.Errorf("what is %q?", args)
}

func output(cmd *exec.Cmd, start func(*exec.Cmd) error) error {
	cmd.Stdout = os.Stdout
	if err := start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
