// Package vault keeps secrets in files on the server: provider keys, git
// tokens, signing keys.
//
// A secret has a name of one to six components joined by "/", such as
// "provider/house" or "git/<town>/<rig>". Each lives in a file of its own
// under the vault's directory (0700), mode 0600, encrypted with AES-256-GCM; the
// name is authenticated with it, so that a file can't stand for another secret.
//
// The key lies in a file of its own, made at the first start, refused when others
// may read it. The file has two keys while a rotation is under way. A missing or
// wrong key is an error before anything is written. Plain files of earlier versions
// are encrypted at the first Open, crash-safely.
//
// Writes are atomic and durable: a reader sees the old value or the new one,
// and what Put returned nil for survives a power cut. All access goes through
// an os.Root, so that neither a name nor a planted symlink leads outside.
// A Vault is safe for concurrent use, also by several processes on one volume.
// No error carries a value.
package vault

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"gastown/internal/errs"
)

// MaxValue is the largest value that a vault takes, in bytes.
const MaxValue = 1 << 20

const (
	maxComponents = 6
	maxComponent  = 128
)

// Vault is an open directory of secrets.
type Vault struct {
	dir     string
	root    *os.Root
	keyFile string
	keys    []key // the one to write with first
}

// Open is OpenWith, with the key in the file beside the vault.
func Open(dir string) (*Vault, error) { return OpenWith(dir, "") }

// OpenWith opens the vault in dir with the key in keyFile ("" for DefaultKeyFile),
// creating both when they are missing, and takes away everybody else's access to
// the vault. errs.NotFound when only the key is missing, errs.Forbidden when it
// is not the vault's or others may read it.
func OpenWith(dir, keyFile string) (*Vault, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "opening the vault")
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "creating the vault")
	}
	if err := os.Chmod(abs, 0o700); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "closing the vault to others")
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "opening the vault")
	}
	if keyFile == "" {
		keyFile = DefaultKeyFile(abs)
	}
	v := &Vault{dir: abs, root: root}
	if err := v.unlock(keyFile); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return v, nil
}

// Close releases the directory.
func (v *Vault) Close() error { return v.root.Close() }

// Put stores value under name, replacing what was there.
func (v *Vault) Put(name string, value []byte) error {
	if err := validName(name); err != nil {
		return err
	}
	if len(value) > MaxValue {
		return errs.New(errs.Invalid, "the secret %q has %d bytes, more than %d", name, len(value), MaxValue)
	}
	return v.store(name, value)
}

// store writes the encrypted file of a secret.
func (v *Vault) store(name string, value []byte) error {
	dir := path.Dir(name)
	if err := v.root.MkdirAll(dir, 0o700); err != nil {
		return storeError(err, name)
	}
	// The leading dot keeps a half-written file out of List and out of reach of any valid name.
	tmp := path.Join(dir, ".tmp-"+rand.Text())
	if err := v.writeFile(tmp, v.keys[0].seal(name, value)); err != nil {
		return errs.Wrap(errs.Internal, errors.Join(err, v.root.Remove(tmp)), "storing the secret %q", name)
	}
	if err := v.root.Rename(tmp, name); err != nil {
		return storeError(errors.Join(err, v.root.Remove(tmp)), name)
	}
	return v.syncUp(dir)
}

func (v *Vault) writeFile(name string, value []byte) error {
	f, err := v.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncUp makes new directory entries durable, from dir up to the root.
func (v *Vault) syncUp(dir string) error {
	for {
		d, err := v.root.Open(dir)
		if err != nil {
			return errs.Wrap(errs.Internal, err, "syncing the vault")
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return errs.Wrap(errs.Internal, err, "syncing the vault")
		}
		if dir == "." {
			return nil
		}
		dir = path.Dir(dir)
	}
}

// Get returns the value of name, errs.NotFound when there is none.
func (v *Vault) Get(name string) ([]byte, error) {
	if err := validName(name); err != nil {
		return nil, err
	}
	file, err := v.read(name)
	if err != nil {
		return nil, missing(err, name)
	}
	return v.plain(name, file)
}

// Delete removes name, errs.NotFound when there is none.
func (v *Vault) Delete(name string) error {
	if err := validName(name); err != nil {
		return err
	}
	if st, err := v.root.Stat(name); err != nil {
		return missing(err, name)
	} else if !st.Mode().IsRegular() {
		return missing(fs.ErrNotExist, name)
	}
	if err := v.root.Remove(name); err != nil {
		return missing(err, name)
	}
	return v.syncUp(path.Dir(name))
}

// DeletePrefix removes the secret called prefix and all below it. The prefix
// ends at a component: "git/a" does not touch "git/ab". Nothing there is no error.
func (v *Vault) DeletePrefix(prefix string) error {
	prefix = strings.TrimSuffix(prefix, "/")
	if err := validName(prefix); err != nil {
		return err
	}
	if err := v.root.RemoveAll(prefix); err != nil {
		return errs.Wrap(errs.Internal, err, "deleting the secrets under %q", prefix)
	}
	dir := path.Dir(prefix)
	if _, err := v.root.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return v.syncUp(dir)
}

// List returns the names of the secret called prefix and of all below it,
// sorted; all names for "".
func (v *Vault) List(prefix string) ([]string, error) {
	prefix = strings.TrimSuffix(prefix, "/")
	start := "."
	if prefix != "" {
		if err := validName(prefix); err != nil {
			return nil, err
		}
		start = prefix
	}
	var names []string
	err := fs.WalkDir(v.root.FS(), start, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // deleted while we walk, or nothing under prefix
		case err != nil:
			return err
		case d.Type().IsRegular() && validName(p) == nil:
			names = append(names, p)
		}
		return nil
	})
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "listing the vault")
	}
	sort.Strings(names)
	return names, nil
}

// validName accepts components of letters, digits, ".", "_" and "-" that begin
// with a letter or digit.
func validName(name string) error {
	parts := strings.Split(name, "/")
	bad := len(parts) > maxComponents
	for _, p := range parts {
		bad = bad || p == "" || len(p) > maxComponent || !alnum(p[0])
		for i := range len(p) {
			bad = bad || !alnum(p[i]) && !strings.ContainsRune("._-", rune(p[i]))
		}
	}
	if bad {
		return errs.New(errs.Invalid, "%s is not a name for a secret", quote(name)).
			WithHint("use letters, digits, '.', '_' and '-', in parts joined by '/'")
	}
	return nil
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// quote shortens what a stranger sent.
func quote(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%.80q…", s)
	}
	return fmt.Sprintf("%q", s)
}

func missing(err error, name string) error {
	if errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), "not a directory") {
		return errs.New(errs.NotFound, "there is no secret %q", name)
	}
	return errs.Wrap(errs.Internal, err, "reading the secret %q", name)
}

// storeError tells a name that stands in the way of another from a broken disk.
func storeError(err error, name string) error {
	s := err.Error()
	if errors.Is(err, fs.ErrExist) || strings.Contains(s, "not a directory") || strings.Contains(s, "is a directory") {
		return errs.New(errs.Conflict, "the secret %q can't be stored: a part of its name is taken by another secret", name)
	}
	return errs.Wrap(errs.Internal, err, "storing the secret %q", name)
}
