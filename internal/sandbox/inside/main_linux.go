package inside

import (
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"gastown/internal/runner/apart"
	"gastown/internal/sandbox"
)

// exitFailed is the exit code when the command could not be started.
const exitFailed = 127

// Main is the first process: flags, "--", program and arguments. It returns the
// exit code of the command, 128 and the signal's number when a signal ended it.
func Main(args []string, stdout io.Writer) int {
	switch {
	case len(args) > 0 && args[0] == BoxFlag:
		return box(args[1:])
	case len(args) > 0 && args[0] == apart.CellFlag:
		return cell(args[1:])
	}
	cmd, err := prepare(args)
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return sayFailed(stdout, err)
	}
	signals := catch()
	if _, err := io.WriteString(stdout, Started+"\n"); err != nil {
		// The driver is gone; the command finds no token and ends.
		_ = os.Stdin.Close()
	}
	// From here on the command alone holds the token's pipe.
	_ = os.Stdin.Close()
	return attend(cmd.Process, signals)
}

// catch begins to collect the signals that are passed on.
func catch() <-chan os.Signal {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGCHLD)
	return signals
}

// attend passes signals on and reaps, until the command ends.
func attend(command *os.Process, signals <-chan os.Signal) int {
	for {
		if code, ended := reap(command.Pid); ended {
			return code
		}
		if s := <-signals; s != syscall.SIGCHLD {
			// A command that ended just now needs no signal.
			_ = command.Signal(s)
		}
	}
}

func sayFailed(stdout io.Writer, err error) int {
	reason := strings.ReplaceAll(err.Error(), "\n", " ")
	// Nobody else could be told.
	_, _ = io.WriteString(stdout, Failed+reason+"\n")
	return exitFailed
}

// prepare makes the disk ready and returns the command.
func prepare(args []string) (*exec.Cmd, error) {
	flags := flag.NewFlagSet("sandbox-init", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	uid := flags.Int("uid", 0, "user of the command")
	separate := flags.Bool("apart", false, "the command keeps agents apart: it gets what that takes")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() == 0 {
		return nil, errors.New("no command is given")
	}
	if err := errors.Join(prepareDisk(os.Getenv(sandbox.EnvDisk), *uid), closeDoor(*uid)); err != nil {
		return nil, err
	}
	cmd := exec.Command(flags.Arg(0), flags.Args()[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.Stdin} // becomes sandbox.TokenFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if *uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(*uid), Gid: uint32(*uid)}
	}
	if *separate {
		cmd.SysProcAttr.AmbientCaps = apart.Caps()
	}
	return cmd, cmd.Err
}

func prepareDisk(disk string, uid int) error {
	if disk == "" {
		return errors.New(sandbox.EnvDisk + " is not set")
	}
	// The disk itself comes last: without more capabilities root can't write into
	// what is another user's.
	for _, dir := range []string{filepath.Join(disk, "home"), filepath.Join(disk, "tmp"), disk} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Lchown(dir, uid, uid); err != nil {
			return err
		}
	}
	return nil
}

// closeDoor leaves the way to the server, if there is one here, to the command
// alone, whatever the rights of what is mounted below it.
func closeDoor(uid int) error {
	err := os.Chmod(sandbox.Door, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.Lchown(sandbox.Door, uid, uid))
}

// reap collects children that ended, orphans too, and reports whether the
// command was among them.
func reap(pid int) (code int, ended bool) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || got <= 0 {
			return 0, false
		}
		if got != pid {
			continue
		}
		if ws.Signaled() {
			return 128 + int(ws.Signal()), true
		}
		return ws.ExitStatus(), true
	}
}
