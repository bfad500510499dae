package app

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"gastown/internal/errs"
)

// swap replaces members of the data directory by staged ones. It is written to a
// file before it begins, so that one that a crash interrupted is finished by
// whoever takes the directory next: at any moment either all of the old state is
// there, or all of the new one will be.
type swap struct {
	Staging string   `json:"staging"` // directory below the data directory
	Aside   string   `json:"aside"`   // likewise: where the old members go
	Away    []string `json:"away"`    // members that are moved aside, if they exist
	In      []string `json:"in"`      // members that come from Staging
	Emptied bool     `json:"emptied"` // all of Away are aside
}

const swapFile = "restore.json"

// run moves everything and removes the note and the staging directory.
func (s swap) run(dir string) error {
	if err := s.note(dir); err != nil {
		return err
	}
	return s.resume(dir)
}

func (s swap) note(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "encoding the note of a restore")
	}
	tmp := filepath.Join(dir, swapFile+".new")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = errors.Join(os.Rename(tmp, filepath.Join(dir, swapFile)), syncPath(dir))
	}
	return errs.Wrap(errs.Unavailable, err, "noting the restore")
}

// finishSwap finishes a swap that was interrupted, if there is one.
func finishSwap(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, swapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading the note of a restore")
	}
	var s swap
	if err := json.Unmarshal(b, &s); err != nil {
		return errs.New(errs.Internal, "%s can't be read: %v", filepath.Join(dir, swapFile), err).
			WithHint("a restore was interrupted; move the file away and restore again with --force")
	}
	for _, name := range append([]string{s.Staging, s.Aside}, append(s.Away, s.In...)...) {
		if !filepath.IsLocal(name) || name != filepath.Base(name) {
			return errs.New(errs.Internal, "%s names %q", filepath.Join(dir, swapFile), name)
		}
	}
	return s.resume(dir)
}

func (s swap) resume(dir string) error {
	fail := func(err error) error {
		return errs.Wrap(errs.Unavailable, err, "putting the restored state in place")
	}
	staging, aside := filepath.Join(dir, s.Staging), filepath.Join(dir, s.Aside)
	if !s.Emptied {
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return fail(err)
		}
		for _, name := range s.Away {
			if err := moved(filepath.Join(dir, name), filepath.Join(aside, name)); err != nil {
				return fail(err)
			}
		}
		if err := errors.Join(syncPath(aside), syncPath(dir)); err != nil {
			return fail(err)
		}
		s.Emptied = true
		if err := s.note(dir); err != nil {
			return err
		}
	}
	for _, name := range s.In {
		if err := moved(filepath.Join(staging, name), filepath.Join(dir, name)); err != nil {
			return fail(err)
		}
	}
	if err := syncPath(dir); err != nil {
		return fail(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, swapFile)), syncPath(dir)); err != nil {
		return fail(err)
	}
	// What stays is swept when a server starts.
	_ = os.RemoveAll(staging)
	return nil
}

// back undoes a swap that was finished: the old members are in place again, the
// new ones gone.
func (s swap) back(dir string) error {
	undo := swap{Staging: s.Aside, Aside: s.Staging, Away: s.In, In: s.Away}
	for _, name := range s.Away {
		if _, err := os.Lstat(filepath.Join(dir, s.Aside, name)); errors.Is(err, fs.ErrNotExist) {
			undo.Away = append(undo.Away, name) // it came into being since
		}
	}
	if err := undo.run(dir); err != nil {
		return err
	}
	// Likewise.
	_ = os.RemoveAll(filepath.Join(dir, s.Staging))
	return nil
}

// moved renames what is there.
func moved(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
