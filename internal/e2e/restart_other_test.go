//go:build e2e && !linux

package e2e

import "testing"

func testInterrupted(t *testing.T, _ string) { t.Skip("SKIPPED: terminals are made on Linux only") }
func testInterruptedTwice(t *testing.T, _ string) {
	t.Skip("SKIPPED: terminals are made on Linux only")
}
func testFullDisk(t *testing.T, _ string) { t.Skip("SKIPPED: small disks are made on Linux only") }
