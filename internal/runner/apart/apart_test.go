package apart

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"gastown/internal/errs"
)

func TestAPipeInTheFilesPlaceIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "file")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := Open().Open(pipe); !errs.Is(err, errs.Conflict) {
		t.Errorf("a pipe was opened: %v, %v", f, err)
	}
	f, err := Open().Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
