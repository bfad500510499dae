// Package backup is the file that a backup is: a gzipped tar of
//
//	manifest.json   what it is: see Manifest
//	gastown.db      a snapshot of the database
//	hub/TOWN/RIG.git/...   HEAD, packed-refs and objects of each repository
//	vault/NAME      secrets, only where Manifest.Secrets says so
//	admin.token     likewise
//	SHA256SUMS      a line per member before it, as sha256sum writes it
//
// in this order, so that it is written and read in one go, and a file that was cut
// off is recognised: its last member is missing. Read hands every member to its
// caller and returns an error unless all of them were there with the content that
// they had; a caller puts members aside until then.
//
// An archive is a stranger's input: names that lead elsewhere, members that are no
// ordinary files, members twice, and more of the small ones than memory allows are
// refused.
package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"gastown/internal/errs"
)

// Format is the version of the file's form that this program writes, and the
// newest that it reads.
const Format = 1

// Names of members.
const (
	ManifestName = "manifest.json"
	Database     = "gastown.db"
	Token        = "admin.token"
	Hub          = "hub/"
	Vault        = "vault/"
	sums         = "SHA256SUMS"
)

const (
	maxManifest = 64 << 20
	maxMembers  = 50_000_000
	maxName     = 1024
)

// Manifest says what a backup holds.
type Manifest struct {
	Format  int       `json:"format"`
	Schema  int64     `json:"schema"`  // of the database
	Gastown string    `json:"gastown"` // version of the program
	At      time.Time `json:"at"`      // when the snapshot of the database was made
	Towns   int       `json:"towns"`
	Rigs    int       `json:"rigs"`
	Secrets bool      `json:"secrets"` // the values of the secrets are in it
	Names   []string  `json:"names"`   // of all secrets that the server had
}

// Writer writes a backup. After an error it is of no use any more.
type Writer struct {
	zip  *gzip.Writer
	tar  *tar.Writer
	at   time.Time
	sums bytes.Buffer
}

// NewWriter begins a backup.
func NewWriter(w io.Writer, m Manifest) (*Writer, error) {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed) // repositories are compressed already
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "beginning the backup")
	}
	b := &Writer{zip: z, tar: tar.NewWriter(z), at: m.At}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "encoding the manifest")
	}
	return b, b.Add(ManifestName, int64(len(text)), bytes.NewReader(text))
}

// Add writes a member of size bytes.
func (b *Writer) Add(name string, size int64, r io.Reader) error {
	sum := sha256.New()
	if err := b.member(name, size, io.TeeReader(r, sum)); err != nil {
		return err
	}
	fmt.Fprintf(&b.sums, "%x  %s\n", sum.Sum(nil), name)
	return nil
}

func (b *Writer) member(name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: b.at.Truncate(time.Second), Format: tar.FormatPAX}
	if err := b.tar.WriteHeader(h); err != nil {
		return errs.Wrap(errs.Unavailable, err, "writing %s to the backup", name)
	}
	n, err := io.Copy(b.tar, io.LimitReader(r, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return errs.Wrap(errs.Unavailable, err, "writing %s to the backup", name)
}

// Close writes the checksums and the end. It does not close the writer below.
func (b *Writer) Close() error {
	if err := b.member(sums, int64(b.sums.Len()), &b.sums); err != nil {
		return err
	}
	return errs.Wrap(errs.Unavailable, errors.Join(b.tar.Close(), b.zip.Close()), "ending the backup")
}

// Visit takes one member; what it leaves unread is skipped. The manifest comes
// first, without being visited.
type Visit func(m Manifest, name string, size int64, r io.Reader) error

// Read reads a whole backup. Errors of its form are Invalid, a form that only a
// newer program reads is a Conflict; an error of visit is returned as it is.
func Read(r io.Reader, visit Visit) (Manifest, error) {
	var m Manifest
	z, err := gzip.NewReader(bufio.NewReaderSize(r, 1<<20))
	if err != nil {
		return m, broken(err)
	}
	t := tar.NewReader(z)
	seen := map[string][sha256.Size]byte{}
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return m, errs.New(errs.Invalid, "the backup was cut off: its end is missing").WithHint("copy the file again, or take another backup")
		}
		if err != nil {
			return m, broken(err)
		}
		if err := check(h, seen); err != nil {
			return m, err
		}
		if h.Name == sums {
			if err := compare(t, seen); err != nil {
				return m, err
			}
			if _, err := t.Next(); !errors.Is(err, io.EOF) {
				return m, errs.New(errs.Invalid, "the backup goes on after its end: %v", err)
			}
			return m, whole(z)
		}
		sum := sha256.New()
		if h.Name == ManifestName {
			err = m.read(io.TeeReader(t, sum), h.Size)
		} else {
			err = pass(m, h, &summed{t, sum}, visit)
		}
		if err != nil {
			return m, err
		}
		seen[h.Name] = [sha256.Size]byte(sum.Sum(nil))
	}
}

// whole reads to the end, where the checksum of the compression stands.
func whole(z *gzip.Reader) error {
	if _, err := io.Copy(io.Discard, z); err != nil {
		return broken(err)
	}
	return nil
}

// summed reads and sums. Its errors are of the archive, not of a visitor.
type summed struct {
	r   io.Reader
	sum hash.Hash
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n]) // never fails
	if err != nil && !errors.Is(err, io.EOF) {
		err = broken(err)
	}
	return n, err
}

func pass(m Manifest, h *tar.Header, r io.Reader, visit Visit) error {
	if err := visit(m, h.Name, h.Size, r); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r)
	return err
}

func broken(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "the backup was cut off").WithHint("copy the file again, or take another backup")
	}
	if k := errs.KindOf(err); k == errs.Unavailable || k == errs.Invalid {
		return err // of the connection, or said already
	}
	return (&errs.Error{Kind: errs.Invalid, Message: "this is no whole backup of gastown's", Err: err}).
		WithHint("give a file that gastown backup wrote")
}

// check refuses members that no backup has.
func check(h *tar.Header, seen map[string][sha256.Size]byte) error {
	_, twice := seen[h.Name]
	switch {
	case len(seen) == 0 && h.Name != ManifestName:
		return errs.New(errs.Invalid, "this is no backup of gastown's: it has no manifest").WithHint("give a file that gastown backup wrote")
	case h.Typeflag != tar.TypeReg, twice, len(seen) >= maxMembers, h.Size < 0, !ValidName(h.Name):
		return errs.New(errs.Invalid, "the backup has a member %.200q that no backup has", h.Name)
	}
	return nil
}

// ValidName reports whether a name may be a member's: one of the fixed ones, or a
// path below the repositories or secrets that leads nowhere else.
func ValidName(name string) bool {
	if len(name) > maxName || strings.ContainsAny(name, "\x00\\\r\n") {
		return false
	}
	switch name {
	case ManifestName, Database, Token, sums:
		return true
	}
	if !strings.HasPrefix(name, Hub) && !strings.HasPrefix(name, Vault) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

func (m *Manifest) read(r io.Reader, size int64) error {
	if size > maxManifest {
		return errs.New(errs.Invalid, "the backup's manifest is too large")
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return broken(err)
	}
	if err := json.Unmarshal(b, m); err != nil {
		return errs.New(errs.Invalid, "the backup's manifest can't be read: %v", err)
	}
	switch {
	case m.Format > Format:
		return errs.New(errs.Conflict, "the backup has format %d, but this gastown reads only up to %d", m.Format, Format).
			WithHint("restore it with the gastown that wrote it: %s", cmp.Or(m.Gastown, "a newer one"))
	case m.Format < 1 || m.Towns < 0 || m.Rigs < 0:
		return errs.New(errs.Invalid, "the backup's manifest makes no sense")
	}
	return nil
}

// compare reads the checksums.
func compare(r io.Reader, seen map[string][sha256.Size]byte) error {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxName+200)
	n := 0
	for in.Scan() {
		sum, name, ok := strings.Cut(in.Text(), "  ")
		got, found := seen[name]
		if !ok || !found {
			return errs.New(errs.Invalid, "the backup lacks %.200q", name)
		}
		if hex.EncodeToString(got[:]) != sum {
			return errs.New(errs.Invalid, "%s in the backup is not what was written", name).WithHint("copy the file again, or take another backup")
		}
		n++
	}
	if err := in.Err(); err != nil {
		return broken(err)
	}
	if n != len(seen) {
		return errs.New(errs.Invalid, "the backup has %d members, of which %d have a checksum", len(seen), n)
	}
	return nil
}
