//go:build !linux

package lab

import "gastown/internal/errs"

// processUsage is not known here; the server's own metrics must do.
func processUsage(int) (u usage, ok bool, err error) { return u, false, nil }

// agentMemory is not known here.
func agentMemory(string) (bytes int64, agents int, err error) {
	return 0, 0, errs.New(errs.Invalid, "the memory of agents can be measured on Linux only")
}
