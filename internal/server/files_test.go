package server

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func newLoopback() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }

func checkPrivate(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	info, err := os.Stat(filepath.Join(dir, adminTokenFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
