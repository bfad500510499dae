package runner

import (
	"os"
	"syscall"
	"testing"
)

// signal0 asks whether a process exists.
func signal0() os.Signal { return syscall.Signal(0) }

// dupFD gives up an os.File for its bare descriptor.
func dupFD(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return fd
}
