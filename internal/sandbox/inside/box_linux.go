package inside

import (
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"syscall"

	"gastown/internal/sandbox"
)

// box is the first process of a box of bubblewrap: it has the token on
// sandbox.TokenFD and says on StatusFD whether the command started.
func box(args []string) int {
	token, status := os.NewFile(sandbox.TokenFD, "token"), os.NewFile(StatusFD, "status")
	for fd := sandbox.TokenFD; fd < StatusFD+8; fd++ {
		syscall.CloseOnExec(fd) // what bubblewrap left open is not the command's
	}
	cmd, err := prepareBox(args, token)
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return sayFailed(status, err)
	}
	signals := catch()
	// A driver that is gone hears nothing; then the command finds no token and ends.
	_, _ = io.WriteString(status, Started+"\n")
	_ = status.Close()
	_ = token.Close() // from here on the command alone holds it
	return attend(cmd.Process, signals)
}

func prepareBox(args []string, token *os.File) (*exec.Cmd, error) {
	flags := flag.NewFlagSet("sandbox-init", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	uid := flags.Int("uid", -1, "user of the command; -1 is that of this process")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() == 0 {
		return nil, errors.New("no command is given")
	}
	cmd := exec.Command(flags.Arg(0), flags.Args()[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Dir = os.Getenv(sandbox.EnvDisk) // entered as the command's user
	cmd.ExtraFiles = []*os.File{token}   // becomes sandbox.TokenFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if *uid < 0 {
		return cmd, cmd.Err
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(*uid), Gid: uint32(*uid)}
	return cmd, errors.Join(cmd.Err, openUp())
}

// openUp lets users without capabilities use what belongs to root in a new box:
// temporary directories, and boxes of their own. For these nothing may cover a part
// of /proc; what bubblewrap covers is not writable for them anyway.
func openUp() error {
	var all error
	for _, dir := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"} {
		if err := syscall.Unmount(dir, 0); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			all = errors.Join(all, err)
		}
	}
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm"} {
		if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil && !errors.Is(err, os.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return all
}
