//go:build unix

package git

import (
	"os/exec"
	"syscall"
)

// ownGroup puts cmd into a process group of its own and makes the end of its
// context a SIGTERM to all of it.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
}

// endGroup kills what SIGTERM left of the group.
func endGroup(cmd *exec.Cmd) {
	// The usual answer is ESRCH: nobody is left, which is what we want.
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
}
