package vault

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gastown/internal/errs"
)

// files returns the content of every file below dir.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p) // p is below dir
		out[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func reopen(t *testing.T, dir string) *Vault {
	t.Helper()
	v, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func is(t *testing.T, v *Vault, name, want string) {
	t.Helper()
	if got, err := v.Get(name); err != nil || string(got) != want {
		t.Errorf("%s is %q, %v; want %q", name, got, err, want)
	}
}

func hint(err error) string {
	var e *errs.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Hint
}

func TestNoFileOfTheVaultShowsAValue(t *testing.T) {
	t.Parallel()
	v, dir := open(t)
	put(t, v, "provider/house", "sk-very-secret-value")
	put(t, v, "empty", "")
	for name, content := range files(t, filepath.Dir(dir)) {
		if strings.Contains(content, "very-secret") {
			t.Errorf("%s shows the value", name)
		}
	}
	is(t, v, "provider/house", "sk-very-secret-value")
	is(t, v, "empty", "")
}

func TestAFileCannotStandForAnotherSecret(t *testing.T) {
	t.Parallel()
	v, dir := open(t)
	put(t, v, "git/mine/r", "mine")
	put(t, v, "git/yours/r", "yours")
	mine, err := os.ReadFile(filepath.Join(dir, "git/mine/r"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "git/yours/r"), string(mine))
	if got, err := v.Get("git/yours/r"); err == nil {
		t.Errorf("a swapped file was read as %q", got)
	}
	flipped := bytes.Clone(mine)
	flipped[len(flipped)-1] ^= 1
	write(t, filepath.Join(dir, "git/mine/r"), string(flipped))
	if got, err := v.Get("git/mine/r"); err == nil {
		t.Errorf("a changed file was read as %q", got)
	}
	write(t, filepath.Join(dir, "git/mine/r"), "plain")
	if got, err := v.Get("git/mine/r"); err == nil {
		t.Errorf("a planted plain file was read as %q", got)
	}
}

func TestAMissingOrWrongKeyIsAnErrorAndChangesNothing(t *testing.T) {
	t.Parallel()
	v, dir := open(t)
	put(t, v, "a", "value")
	key := DefaultKeyFile(dir)
	right, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := open(t)
	wrong, err := os.ReadFile(other.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	for what, c := range map[string]struct {
		text string
		kind errs.Kind
	}{"missing": {"", errs.NotFound}, "wrong": {string(wrong), errs.Forbidden}, "damaged": {string(right[:len(right)-9]), errs.Invalid}} {
		if err := os.Remove(key); err != nil && c.text == "" {
			t.Fatal(err)
		}
		if c.text != "" {
			write(t, key, c.text)
		}
		_, err := Open(dir)
		if !errs.Is(err, c.kind) || hint(err) == "" {
			t.Errorf("%s: %v (hint %q)", what, err, hint(err))
		}
		if _, err := os.Stat(key); c.text == "" && err == nil {
			t.Error("a key was made for a vault that has one")
		}
		write(t, key, string(right))
	}
	if after := files(t, dir); !equal(before, after) {
		t.Error("files changed")
	}
	is(t, reopen(t, dir), "a", "value")
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestAKeyFileThatOthersMayReadIsRefused(t *testing.T) {
	t.Parallel()
	_, dir := open(t)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(DefaultKeyFile(dir), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errs.Is(err, errs.Forbidden) || !strings.Contains(hint(err), "chmod 600") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
}

func TestPlainFilesOfAnEarlierVersionAreEncryptedWhereverACrashCutItOff(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "vault")
	plain := map[string]string{"signing-key": "\xff\x00bytes", "provider/house": "sk-very-secret", "git/t/r": "user:very-secret"}
	for name, value := range plain {
		write(t, filepath.Join(dir, name), value)
	}
	reopen(t, dir)
	sealed := files(t, dir)
	names := make([]string, 0, len(plain))
	for n := range plain {
		names = append(names, n)
	}
	slices.Sort(names)
	// A crash leaves the first n files encrypted and no check.
	for n := range len(names) + 1 {
		write(t, filepath.Join(dir, checkFile), "")
		if err := os.Remove(filepath.Join(dir, checkFile)); err != nil {
			t.Fatal(err)
		}
		for i, name := range names {
			content := sealed[name]
			if i >= n {
				content = plain[name]
			}
			write(t, filepath.Join(dir, name), content)
		}
		v := reopen(t, dir)
		for _, name := range names {
			is(t, v, name, plain[name])
		}
		for name, content := range files(t, dir) {
			if strings.Contains(content, "very-secret") {
				t.Errorf("after a crash at %d, %s is plain", n, name)
			}
		}
	}
	if err := os.Remove(DefaultKeyFile(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, checkFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errs.Is(err, errs.NotFound) {
		t.Errorf("half encrypted and without a key: %v", err)
	}
}

func TestARotationLeavesNothingOfTheOldKeyWhereverACrashCutItOff(t *testing.T) {
	t.Parallel()
	v, dir := open(t)
	key := DefaultKeyFile(dir)
	values := map[string]string{"a": "one", "b/c": "two", "signing-key": "three"}
	for name, value := range values {
		put(t, v, name, value)
	}
	oldKey, oldFiles := files(t, filepath.Dir(dir))["vault.key"], files(t, dir)
	if n, err := Rotate(dir, ""); n != 3 || err != nil {
		t.Fatalf("rotated %d, %v", n, err)
	}
	newKey, newFiles := files(t, filepath.Dir(dir))["vault.key"], files(t, dir)
	for name := range oldFiles {
		if sealedBy([]byte(oldFiles[name])) == sealedBy([]byte(newFiles[name])) {
			t.Errorf("%s still has the old key", name)
		}
	}
	both := newKey + strings.TrimPrefix(oldKey, keyTitle+"\n")
	for _, done := range [][]string{nil, {"a"}, {"a", "b/c", "signing-key"}, {"a", "b/c", "signing-key", checkFile}} {
		write(t, key, both)
		for name, content := range oldFiles {
			if slices.Contains(done, name) {
				content = newFiles[name]
			}
			write(t, filepath.Join(dir, name), content)
		}
		v := reopen(t, dir)
		for name, want := range values {
			is(t, v, name, want)
		}
		if got := files(t, filepath.Dir(dir))["vault.key"]; got != newKey {
			t.Errorf("after a crash at %v the key file is not that of the new key", done)
		}
	}
}

func FuzzKeyFilesAreReadOrRefused(f *testing.F) {
	f.Add(keyTitle + "\n" + strings.Repeat("A", 43) + "=\n")
	f.Add(keyTitle + "\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := parseKeys("k", text)
		if err == nil && (len(keys) == 0 || len(keys) > 2) {
			t.Errorf("%d keys", len(keys))
		}
		if err == nil {
			again, err := parseKeys("k", string(keyText(keys)))
			if err != nil || len(again) != len(keys) || again[0].id != keys[0].id {
				t.Errorf("what was read does not come back: %v", err)
			}
		}
	})
}
