package vault

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"gastown/internal/errs"
)

// checkFile is encrypted with the vault's key and holds nothing. While it is
// there, every file of the vault is encrypted, and its key tells a wrong one
// before anything is read.
const checkFile = ".check"

// unlock loads the key and brings all files to it: plain ones of an earlier
// version are encrypted, and a rotation that was cut off is finished. A crash at
// any point leaves files that the next start reads. Nothing is written with a
// key that does not open what is there.
func (v *Vault) unlock(keyFile string) error {
	v.keyFile = keyFile
	keys, err := readKeys(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		keys, err = v.firstKey(keyFile)
	}
	if err != nil {
		return err
	}
	v.keys = keys
	check, err := v.read(checkFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.Wrap(errs.Internal, err, "reading the vault's check")
	}
	if err == nil {
		if _, err := v.plain(checkFile, check); err != nil {
			return v.wrongKey()
		}
		if len(keys) == 1 {
			return nil
		}
	}
	return v.sealAll()
}

// firstKey makes the key file of a vault that never had one.
func (v *Vault) firstKey(keyFile string) ([]key, error) {
	sealed, err := v.anySealed()
	if err != nil {
		return nil, err
	}
	if sealed {
		return nil, errs.New(errs.NotFound, "the vault %s is encrypted, and its key file %s is missing", v.dir, keyFile).
			WithHint("put the key file back, or name its place with --key-file; without the key nothing in the vault can be read: " +
				"to start over, move the vault away and give all provider keys and git credentials again")
	}
	k, err := freshKey()
	if err != nil {
		return nil, err
	}
	if err := createKeys(keyFile, []key{k}); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return readKeys(keyFile) // another server on the same files may have been first
}

func (v *Vault) wrongKey() error {
	return errs.New(errs.Forbidden, "the key file %s is not the key of the vault %s", v.keyFile, v.dir).
		WithHint("put the right key file back, or name it with --key-file; nothing was changed")
}

// anySealed reports whether some file of the vault is encrypted.
func (v *Vault) anySealed() (bool, error) {
	found := false
	err := v.walk(func(_ string, file []byte) error {
		if sealedBy(file) != "" {
			found = true
			return fs.SkipAll
		}
		return nil
	})
	return found, err
}

// sealAll encrypts with the first key what is plain or has the other one, then
// leaves the check, then forgets the other key.
func (v *Vault) sealAll() error {
	err := v.walk(func(name string, file []byte) error {
		if by := sealedBy(file); by != "" && !v.has(by) {
			return v.wrongKey()
		}
		return nil
	})
	if err != nil {
		return err // before anything is written
	}
	err = v.walk(func(name string, file []byte) error {
		by := sealedBy(file)
		if name == checkFile || by == v.keys[0].id {
			return nil
		}
		value := file
		if by != "" {
			var err error
			if value, err = v.plain(name, file); err != nil {
				return err
			}
		}
		return v.store(name, value)
	})
	if err != nil {
		return err
	}
	if err := v.store(checkFile, nil); err != nil {
		return err
	}
	if len(v.keys) == 1 {
		return nil
	}
	if err := replaceKeys(v.keyFile, v.keys[:1]); err != nil {
		return err
	}
	v.keys = v.keys[:1]
	return nil
}

func (v *Vault) has(id string) bool {
	for _, k := range v.keys {
		if k.id == id {
			return true
		}
	}
	return false
}

// plain decrypts the content of the file called name. Only the key and the name
// that it was written with open it.
func (v *Vault) plain(name string, file []byte) ([]byte, error) {
	by := sealedBy(file)
	if by == "" {
		return nil, errs.New(errs.Internal, "the secret %q is not encrypted, in a vault that is", name).
			WithHint("give it again; if an older version of gastown wrote it, remove %s and restart: plain files are taken over then", path.Join(v.dir, checkFile))
	}
	for _, k := range v.keys {
		if k.id != by {
			continue
		}
		if value, err := k.open(name, file); err == nil {
			return value, nil
		}
		return nil, errs.New(errs.Internal, "the file of the secret %q is damaged, or belongs to another secret", name).
			WithHint("give the secret again")
	}
	return nil, errs.New(errs.Internal, "the secret %q was encrypted with another key", name).
		WithHint("give the secret again, or start with the key file that it was written with")
}

// walk calls f with the content of every secret and of the check.
func (v *Vault) walk(f func(name string, file []byte) error) error {
	err := fs.WalkDir(v.root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // deleted while we walk
		case err != nil:
			return err
		case !d.Type().IsRegular() || validName(p) != nil && p != checkFile:
			return nil
		}
		file, err := v.read(p)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return f(p, file)
	})
	var known *errs.Error
	if errors.As(err, &known) {
		return err
	}
	return errs.Wrap(errs.Internal, err, "going through the vault")
}

// read returns the content of a file as it lies there.
func (v *Vault) read(name string) ([]byte, error) {
	f, err := v.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fs.ErrNotExist, err)
	}
	return io.ReadAll(io.LimitReader(f, MaxValue+int64(overhead)))
}

// Rotate makes a new key for the vault in dir and encrypts everything with it.
// Nobody else may have the vault open. One that is cut off is finished by the
// next Open. It returns how many secrets there are.
func Rotate(dir, keyFile string) (n int, err error) {
	v, err := OpenWith(dir, keyFile)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	k, err := freshKey()
	if err != nil {
		return 0, err
	}
	both := []key{k, v.keys[0]}
	if err := replaceKeys(v.keyFile, both); err != nil {
		return 0, err
	}
	v.keys = both
	if err := v.sealAll(); err != nil {
		return 0, err
	}
	names, err := v.List("")
	return len(names), err
}

// DefaultKeyFile is where the key of the vault in dir lies when nobody says otherwise.
func DefaultKeyFile(dir string) string { return strings.TrimRight(dir, "/") + ".key" }
