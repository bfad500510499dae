package apart

import (
	"errors"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"gastown/internal/errs"
)

// Caps are the capabilities that kind UID needs: to start processes as other
// users, to end them, to give them files, and to save and remove what they made.
// The runner keeps them to itself: see settleCaps.
func Caps() []uintptr {
	return []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID}
}

// settleCaps clears what programs started by this process would inherit of its
// capabilities, in all of its threads, and checks that it has those that it needs.
func settleCaps() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return errs.Wrap(errs.Internal, err, "reading the runner's capabilities")
	}
	for _, c := range Caps() {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return errs.New(errs.Invalid, "agents can't get users of their own: the runner lacks capability %d", c).
				WithHint("it gets them from 'gastown sandbox-init --apart' as the first process of a container")
		}
	}
	// A process of several threads has capabilities per thread; the Go runtime
	// reaches all of them only in programs without C.
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); e != 0 {
		return inherits(e)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return inherits(e)
	}
	return nil
}

// inherits refuses a process whose children would have its capabilities. One that
// could not clear them needs not, when there are none to inherit.
func inherits(cause error) error {
	if errors.Is(cause, syscall.ENOTSUP) && !hasAmbient() {
		return nil
	}
	return errs.New(errs.Internal, "what the runner starts would inherit its capabilities: %v", cause).
		WithHint("build gastown with CGO_ENABLED=0")
}

func hasAmbient() bool {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		on, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, c, 0, 0)
		if err == nil && on != 0 {
			return true
		}
	}
	return false
}
