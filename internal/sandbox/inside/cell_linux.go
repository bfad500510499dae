package inside

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"gastown/internal/runner/apart"
)

// cell is the first process of an agent's box: it starts the command with its own
// streams, reaps orphans, and ends with the command. Signals go to the whole group,
// so none is passed on, and none ends it before the command.
func cell(args []string) int {
	for len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return cellFailed(errors.New("no command is given"))
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGCHLD)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return cellFailed(err)
	}
	for {
		if code, ended := reap(cmd.Process.Pid); ended {
			return code
		}
		<-signals
	}
}

func cellFailed(err error) int {
	// Standard error is the last resort; there is nowhere to report its failure.
	_, _ = fmt.Fprintln(os.Stderr, "gastown sandbox-init "+apart.CellFlag+":", err)
	return exitFailed
}
