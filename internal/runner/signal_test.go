package runner

import (
	"os"
	"syscall"
)

// signal0 asks whether a process exists.
func signal0() os.Signal { return syscall.Signal(0) }
