package vault

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gastown/internal/errs"
)

func open(t *testing.T) (*Vault, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "vault")
	v, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v, dir
}

func put(t *testing.T, v *Vault, name, value string) {
	t.Helper()
	if err := v.Put(name, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func TestASecretComesBackAsItWasPut(t *testing.T) {
	t.Parallel()
	v, dir := open(t)
	put(t, v, "git/a/b", "one")
	put(t, v, "git/a/b", "two")
	got, err := v.Get("git/a/b")
	if err != nil || string(got) != "two" {
		t.Fatalf("got %q, %v", got, err)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got, err := again.Get("git/a/b"); err != nil || string(got) != "two" {
		t.Fatalf("after reopening: %q, %v", got, err)
	}
}

func TestOnlyTheOwnerMayReadTheFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	v, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	put(t, v, "provider/house", "x")
	file := filepath.Join(dir, "provider", "house")
	for p, want := range map[string]os.FileMode{dir: 0o700, filepath.Dir(file): 0o700, file: 0o600, DefaultKeyFile(dir): 0o600} {
		st, err := os.Stat(p)
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v (%v)", p, st.Mode().Perm(), want, err)
		}
	}
}

func TestAMissingSecretIsNotFound(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	put(t, v, "a", "x")
	for _, name := range []string{"none", "a/b", "x/y/z"} {
		if _, err := v.Get(name); !errs.Is(err, errs.NotFound) {
			t.Errorf("Get(%q): %v", name, err)
		}
		if err := v.Delete(name); !errs.Is(err, errs.NotFound) {
			t.Errorf("Delete(%q): %v", name, err)
		}
	}
	put(t, v, "dir/x", "x")
	if _, err := v.Get("dir"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a directory is no secret: %v", err)
	}
	if err := v.Delete("dir"); !errs.Is(err, errs.NotFound) {
		t.Errorf("a directory is not deleted as a secret: %v", err)
	}
}

func TestNamesThatLeaveTheVaultAreRefused(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	for _, name := range []string{"", "/", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.b", "-x",
		"a\x00b", "a b", `a\b`, "é", strings.Repeat("a", 129), "a/b/c/d/e/f/g"} {
		if err := v.Put(name, []byte("x")); !errs.Is(err, errs.Invalid) {
			t.Errorf("Put(%q): %v", name, err)
		}
		if _, err := v.Get(name); !errs.Is(err, errs.Invalid) {
			t.Errorf("Get(%q): %v", name, err)
		}
	}
}

func TestAPlantedSymlinkLeadsNowhere(t *testing.T) {
	t.Parallel()
	v, dir := open(t)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := v.Get("link"); err == nil {
		t.Fatalf("read %q through a symlink", got)
	}
}

func TestANameCannotBeBothASecretAndADirectory(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	put(t, v, "a", "x")
	if err := v.Put("a/b", nil); !errs.Is(err, errs.Conflict) {
		t.Errorf("below a secret: %v", err)
	}
	put(t, v, "d/e", "x")
	if err := v.Put("d", nil); !errs.Is(err, errs.Conflict) {
		t.Errorf("over a directory: %v", err)
	}
	if names, err := v.List(""); err != nil || !slices.Equal(names, []string{"a", "d/e"}) {
		t.Errorf("leftovers: %v, %v", names, err)
	}
}

func TestAPrefixEndsAtAComponent(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	for _, n := range []string{"git/a/x", "git/a/y", "git/ab/x", "provider/house"} {
		put(t, v, n, "x")
	}
	if got, err := v.List("git/a/"); err != nil || !slices.Equal(got, []string{"git/a/x", "git/a/y"}) {
		t.Errorf("List: %v, %v", got, err)
	}
	if err := v.DeletePrefix("git/a"); err != nil {
		t.Fatal(err)
	}
	if err := v.DeletePrefix("git/a"); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	if err := v.DeletePrefix("no/such/thing"); err != nil {
		t.Fatalf("nothing there: %v", err)
	}
	if err := v.DeletePrefix(""); !errs.Is(err, errs.Invalid) {
		t.Fatalf("everything at once: %v", err)
	}
	if got, err := v.List(""); err != nil || !slices.Equal(got, []string{"git/ab/x", "provider/house"}) {
		t.Errorf("left: %v, %v", got, err)
	}
	if got, err := v.List("git/a"); err != nil || len(got) != 0 {
		t.Errorf("below nothing: %v, %v", got, err)
	}
}

func TestReadersSeeOneValueOrTheOther(t *testing.T) {
	t.Parallel()
	v, _ := open(t)
	long := strings.Repeat("b", 60000)
	put(t, v, "k", "a")
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 20 {
			put(t, v, "k", []string{"a", long}[i%2])
		}
	})
	for range 200 {
		if got, err := v.Get("k"); err != nil || string(got) != "a" && string(got) != long {
			t.Errorf("a torn value of %d bytes, %v", len(got), err)
		}
	}
	wg.Wait()
	if err := v.Put("k", make([]byte, MaxValue+1)); !errs.Is(err, errs.Invalid) {
		t.Errorf("too large: %v", err)
	}
}
