//go:build !linux

package process

import "errors"

func (b *boxBirth) mapUsers() error { return errors.New("bubblewrap is Linux only") }
