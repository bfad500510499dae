package hub

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gastown/internal/errs"
)

// Export hands out the files that a repository is made of, by names relative to
// it: enough for Adopt to make it again, as it was at some moment during the call
// and with everything that its references reach.
//
// The references are read first and objects, which are immutable, afterwards; so
// pushes and merges go on meanwhile. Only Maintain, which replaces packs, waits.
// What nothing refers to is handed out too: the database may name it.
func (h *Hub) Export(ctx context.Context, id ID, add func(name string, size int64, r io.Reader) error) error {
	dir, err := h.Path(id)
	if err != nil {
		return err
	}
	unlock, err := h.lock(ctx, dir+maintenance)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.exportRefs(ctx, dir, add); err != nil {
		return err
	}
	objects := filepath.Join(dir, "objects")
	return filepath.WalkDir(objects, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // a temporary file that came and went
		case err != nil:
			return errs.Wrap(errs.Unavailable, err, "reading the repository of %s", id)
		case ctx.Err() != nil:
			return ctx.Err()
		case strings.HasPrefix(d.Name(), "tmp_") || strings.HasSuffix(d.Name(), ".lock"):
			// What a push or fetch is just writing.
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return errs.Wrap(errs.Internal, err, "reading the repository of %s", id)
		}
		return addFile(p, filepath.ToSlash(name), add)
	})
}

// maintenance is added to a repository's path to name the lock that Maintain and
// Export take; all else goes on beside them.
const maintenance = "\x00maintenance"

func (h *Hub) exportRefs(ctx context.Context, dir string, add func(string, int64, io.Reader) error) error {
	refs, err := h.refs(ctx, dir, "refs")
	if err != nil {
		return err
	}
	lines := make([]string, 0, len(refs))
	for name, oid := range refs {
		lines = append(lines, name+" "+oid)
	}
	slices.Sort(lines)
	var packed strings.Builder
	for _, l := range lines {
		name, oid, _ := strings.Cut(l, " ")
		packed.WriteString(oid + " " + name + "\n")
	}
	if err := add("packed-refs", int64(packed.Len()), strings.NewReader(packed.String())); err != nil {
		return err
	}
	return addFile(filepath.Join(dir, "HEAD"), "HEAD", add)
}

func addFile(path, name string, add func(string, int64, io.Reader) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading a repository")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading a repository")
	}
	return add(name, st.Size(), f)
}

// adopted is the configuration of a repository that was made from files. What
// strangers' files say is never taken over: a configuration can name programs.
const adopted = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"

// Adopt makes a repository of the files that Export handed out, in a directory
// that is not part of a hub yet.
func Adopt(dir string) error {
	for _, d := range []string{"objects/pack", "objects/info", "refs/heads", "refs/tags"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(d)), 0o700); err != nil {
			return errs.Wrap(errs.Unavailable, err, "making a repository")
		}
	}
	err := os.WriteFile(filepath.Join(dir, "config"), []byte(adopted), 0o600)
	return errs.Wrap(errs.Unavailable, err, "making a repository")
}

// Exportable reports whether a name, relative to a repository, is one that Export
// may have handed out.
func Exportable(name string) bool {
	if name == "HEAD" || name == "packed-refs" {
		return true
	}
	rest, ok := strings.CutPrefix(name, "objects/")
	low := strings.ToLower(rest) // some file systems don't tell them apart
	return ok && rest != "" && filepath.IsLocal(rest) && low != "info/alternates" && low != "info/http-alternates"
}

// ValidID reports whether an id may name a repository.
func ValidID(id ID) bool { return validSlug(id.Town) && validSlug(id.Rig) }
