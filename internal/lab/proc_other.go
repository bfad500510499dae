//go:build !linux

package lab

// processUsage is not known here; the server's own metrics must do.
func processUsage(int) (u usage, ok bool, err error) { return u, false, nil }
