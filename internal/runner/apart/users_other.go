//go:build !linux

package apart

import "gastown/internal/errs"

type users struct{}

func newUsers(int, int) (*users, error) {
	return nil, errs.New(errs.Invalid, "agents get users of their own on Linux only")
}

func (*users) enter([]string) (Cell, error) {
	return nil, errs.New(errs.Invalid, "agents get users of their own on Linux only")
}
