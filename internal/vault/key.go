package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gastown/internal/errs"
)

const (
	// magic begins every encrypted file. It holds a NUL, so that no text begins so.
	magic = "\x00gtvault1"
	// keyTitle is the first line of a key file; keys follow, the one to write with first.
	keyTitle   = "gastown vault key 1"
	keyBytes   = 32
	keyIDBytes = 8
	maxKeyFile = 4 << 10
	// aadTitle binds a value to this format; its name follows, so that the file of
	// one secret can't be put in the place of another's.
	aadTitle = "gastown vault 1\x00"
	// overhead is what a file has more than its value: magic, key id, nonce, tag.
	overhead = len(magic) + keyIDBytes + 12 + 16
)

// key is one AES-256 key.
type key struct {
	id     string // keyIDBytes long; says nothing of the key
	secret []byte
	aead   cipher.AEAD // with random nonces
}

func newKey(secret []byte) (key, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return key{}, errs.Wrap(errs.Internal, err, "making the vault's key")
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return key{}, errs.Wrap(errs.Internal, err, "making the vault's key")
	}
	sum := sha256.Sum256(append([]byte("gastown vault key id\x00"), secret...))
	return key{id: string(sum[:keyIDBytes]), secret: secret, aead: aead}, nil
}

func freshKey() (key, error) {
	secret := make([]byte, keyBytes)
	if _, err := rand.Read(secret); err != nil {
		return key{}, errs.Wrap(errs.Internal, err, "making the vault's key")
	}
	return newKey(secret)
}

// seal encrypts value as the content of the file called name.
func (k key) seal(name string, value []byte) []byte {
	out := make([]byte, 0, len(value)+overhead)
	out = append(append(out, magic...), k.id...)
	return k.aead.Seal(out, nil, value, []byte(aadTitle+name))
}

// sealedBy returns the id of the key that encrypted a file, "" for a plain one.
func sealedBy(file []byte) string {
	if len(file) < overhead || string(file[:len(magic)]) != magic {
		return ""
	}
	return string(file[len(magic) : len(magic)+keyIDBytes])
}

// open decrypts the file called name.
func (k key) open(name string, file []byte) ([]byte, error) {
	return k.aead.Open(nil, nil, file[len(magic)+keyIDBytes:], []byte(aadTitle+name))
}

// readKeys reads a key file, fs.ErrNotExist when there is none. One that others
// may read is refused.
func readKeys(path string) ([]key, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, errs.Wrap(errs.Forbidden, err, "opening the vault's key file")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "looking at the vault's key file")
	}
	if !st.Mode().IsRegular() {
		return nil, errs.New(errs.Invalid, "the vault's key file %s is no file", path).WithHint("give --key-file a file")
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, errs.New(errs.Forbidden, "the vault's key file %s may be read by others (mode %04o)", path, st.Mode().Perm()).
			WithHint("chmod 600 %s; if others may have read it, make a new key then: gastown vault rotate", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "reading the vault's key file")
	}
	return parseKeys(path, string(text))
}

// parseKeys reads what a key file holds: a title and one or two keys.
func parseKeys(path, text string) ([]key, error) {
	lines := strings.Fields(strings.TrimPrefix(text, keyTitle+"\n"))
	bad := !strings.HasPrefix(text, keyTitle+"\n") || len(lines) == 0 || len(lines) > 2
	var keys []key
	for _, l := range lines {
		secret, err := base64.StdEncoding.DecodeString(l)
		if bad = bad || err != nil || len(secret) != keyBytes; bad {
			break
		}
		k, err := newKey(secret)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if bad {
		return nil, errs.New(errs.Invalid, "%s is not a key file of a vault, or is damaged", path).
			WithHint("put the right file back, or name it with --key-file")
	}
	return keys, nil
}

func keyText(keys []key) []byte {
	text := keyTitle + "\n"
	for _, k := range keys {
		text += base64.StdEncoding.EncodeToString(k.secret) + "\n"
	}
	return []byte(text)
}

// createKeys writes a key file where there is none; one that came into being
// meanwhile stays, fs.ErrExist.
func createKeys(path string, keys []key) error {
	return writeKeys(path, keys, func(tmp string) error {
		return errors.Join(os.Link(tmp, path), os.Remove(tmp))
	})
}

// replaceKeys writes a key file over the one that is there.
func replaceKeys(path string, keys []key) error {
	return writeKeys(path, keys, func(tmp string) error { return os.Rename(tmp, path) })
}

func writeKeys(path string, keys []key, place func(tmp string) error) error {
	tmp := path + ".new-" + rand.Text()[:8]
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return errs.Wrap(errs.Forbidden, err, "writing the vault's key file")
	}
	_, err = f.Write(keyText(keys))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = place(tmp)
	}
	if err != nil {
		// After a failed link it is gone already.
		_ = os.Remove(tmp)
		return errs.Wrap(errs.Internal, err, "writing the vault's key file")
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return errs.Wrap(errs.Internal, err, "syncing the vault's key file")
	}
	return errs.Wrap(errs.Internal, errors.Join(d.Sync(), d.Close()), "syncing the vault's key file")
}
