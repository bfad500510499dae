package backup

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func sample(t testing.TB, m Manifest, members ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf, m)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range members {
		if err := w.Add(name, int64(len(name)), strings.NewReader(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var good = Manifest{Format: Format, Schema: 3, Gastown: "v1", At: time.Unix(1000, 0).UTC(), Towns: 2, Rigs: 1, Names: []string{"git/a/b"}}

func collect(into *[]string) Visit {
	return func(_ Manifest, name string, size int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		if err == nil && (int64(len(b)) != size || string(b) != name) {
			err = errors.New("another content")
		}
		*into = append(*into, name)
		return err
	}
}

func TestABackupIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	names := []string{Database, "hub/t/r.git/HEAD", "vault/provider/x", Token}
	var got []string
	m, err := Read(bytes.NewReader(sample(t, good, names...)), collect(&got))
	if err != nil || strings.Join(got, " ") != strings.Join(names, " ") || m.Schema != 3 || !m.At.Equal(good.At) || m.Names[0] != "git/a/b" {
		t.Fatalf("%v %+v %v", got, m, err)
	}
}

func TestABackupThatWasCutOffOrChangedIsRefused(t *testing.T) {
	t.Parallel()
	whole := sample(t, good, Database, "hub/t/r.git/HEAD")
	var got []string
	for n := range len(whole) {
		if _, err := Read(bytes.NewReader(whole[:n]), collect(&got)); !errs.Is(err, errs.Invalid) {
			t.Fatalf("the first %d bytes of %d: %v", n, len(whole), err)
		}
	}
	for i := range whole {
		changed := bytes.Clone(whole)
		changed[i] ^= 0x10
		got = nil
		m, err := Read(bytes.NewReader(changed), collect(&got))
		if err == nil && (len(got) != 2 || m.Towns != good.Towns || m.Schema != good.Schema || !m.At.Equal(good.At)) {
			t.Fatalf("a change of byte %d is not noticed", i) // some bytes of gzip's mean nothing
		}
	}
}

func TestMembersThatNoBackupHasAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"../x", "hub/../../x", "/etc/passwd", "hub//x", "vault/./x", "gastown.db-wal", "gastown.lock", "hub/a\\b", "vault/a\nb", "hub/\x00"} {
		var got []string
		if ValidName(name) {
			t.Errorf("%q is a valid name", name)
		}
		raw := sample(t, good, strings.ReplaceAll(name, "\x00", "\\"))
		if _, err := Read(bytes.NewReader(raw), collect(&got)); !errs.Is(err, errs.Invalid) || len(got) > 0 {
			t.Errorf("%q: %v", name, err)
		}
	}
	var got []string
	if _, err := Read(bytes.NewReader(sample(t, good, Database, Database)), collect(&got)); !errs.Is(err, errs.Invalid) {
		t.Errorf("a member twice: %v", err)
	}
}

func TestANewerFormatIsAConflictThatNamesTheProgram(t *testing.T) {
	t.Parallel()
	m := good
	m.Format, m.Gastown = Format+1, "v9.9"
	var got []string
	_, err := Read(bytes.NewReader(sample(t, m, Database)), collect(&got))
	if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "v9.9") || len(got) > 0 {
		t.Errorf("%v, read %v", err, got)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(sample(f, good, Database, "hub/t/r.git/HEAD"))
	f.Add(sample(f, Manifest{}))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Read(bytes.NewReader(raw), func(_ Manifest, name string, _ int64, r io.Reader) error {
			if !ValidName(name) {
				t.Errorf("%q was handed out", name)
			}
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if err == nil && (m.Format < 1 || m.Format > Format) {
			t.Errorf("%+v", m)
		}
	})
}
