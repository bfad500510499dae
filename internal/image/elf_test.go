package image

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Packages of agents carry modules for other processors, and programs for libraries
// that nobody installed; a tool of the machine that lacks one is a mistake all the same.
func TestALibraryIsMissedByToolsButNotByWhatPackagesBring(t *testing.T) {
	t.Parallel()
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if found, err := needs("/bin/sh"); err != nil || len(found) == 0 || !bytes.Contains(sh, []byte("libc.so.6")) {
		t.Skipf("the shell of this machine is not linked with a libc.so.6: %v, %v", found, err)
	}
	sh = bytes.ReplaceAll(sh, []byte("libc.so.6"), []byte("none.so.6"))
	dir := t.TempDir()
	program, module := filepath.Join(dir, "program"), filepath.Join(dir, "node_modules", "voice", "module.node")
	for _, path := range []string{program, module} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, sh, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := needs(program); err == nil || !strings.Contains(err.Error(), "needs the library none.so.6") {
		t.Errorf("a tool without its library: %v", err)
	}
	if found, err := needs(module); err != nil || len(found) != 0 {
		t.Errorf("what a package brings without its library: %v, %v", found, err)
	}
}
