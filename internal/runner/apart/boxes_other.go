//go:build !linux

package apart

import "gastown/internal/errs"

// NewBoxes returns the keeper of kind Bwrap.
func NewBoxes(disk, program string) (*Keeper, error) {
	return nil, errs.New(errs.Invalid, "agents get boxes of their own on Linux only")
}
