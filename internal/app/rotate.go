package app

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/vault"
)

// keyOf is where the key of a data directory's vault lies.
func keyOf(dir, keyFile string) string {
	if keyFile != "" {
		return keyFile
	}
	return vault.DefaultKeyFile(filepath.Join(dir, vaultDir))
}

// NotifyKey returns the key that signs the webhooks of a town, for who is to check
// them. It reads the vault of a data directory, also under a running server.
func NotifyKey(dir, keyFile, townID string) (string, error) {
	path := filepath.Join(dir, vaultDir)
	if _, err := os.Stat(path); err != nil {
		return "", (&errs.Error{Kind: errs.NotFound, Message: "this is no data directory of a server", Err: err}).WithHint("give it with --data DIR")
	}
	v, err := vault.OpenWith(path, keyFile)
	if err != nil {
		return "", err
	}
	key, err := v.Get("notify/" + townID)
	if errs.Is(err, errs.NotFound) {
		err = errs.New(errs.NotFound, "there is no key for the webhooks of the town %.80q yet", townID).
			WithHint("it is made with the first message; give the town's id, which gastown town show prints")
	}
	return string(key), errors.Join(err, v.Close())
}

// RotateVault encrypts the vault of a data directory with a new key, and returns
// how many secrets it has. A directory that a server uses is a Conflict.
func RotateVault(dir, keyFile string) (n int, err error) {
	if _, err := os.Stat(filepath.Join(dir, vaultDir)); err != nil {
		return 0, (&errs.Error{Kind: errs.NotFound, Message: "this is no data directory of a server", Err: err}).WithHint("give it with --data DIR")
	}
	lock, err := store.TakeLock(dir, time.Now())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := finishSwap(dir); err != nil {
		return 0, err
	}
	return vault.Rotate(filepath.Join(dir, vaultDir), keyFile)
}
