package process

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"gastown/internal/errs"
)

const (
	trashDir = ".trash"
	// maxLog is the size in bytes from which a start sets the log aside.
	maxLog = 1 << 20
)

func (d *Driver) disk(town string) string { return filepath.Join(d.book.Dir(town), "disk") }

// makeDisk makes sure that a town has its directories; fresh gives it an empty
// disk, and so does a disk of another user, left by a sandbox of another isolation.
func (d *Driver) makeDisk(town string, fresh bool) error {
	disk := d.disk(town)
	user := os.Getuid()
	if d.box != nil {
		user = d.box.uid
	}
	if fresh || !ownedBy(disk, user) {
		if err := d.discard(disk); err != nil {
			return err
		}
	}
	for _, dir := range []string{disk, filepath.Join(disk, "home"), filepath.Join(disk, "tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return errs.Wrap(errs.Unavailable, err, "sandbox: make the disk of town %s", town)
		}
		if user != os.Getuid() {
			if err := os.Lchown(dir, user, user); err != nil {
				return errs.Wrap(errs.Unavailable, err, "sandbox: make the disk of town %s", town)
			}
		}
	}
	return nil
}

// ownedBy reports whether a path does not exist or belongs to a user.
func ownedBy(path string, uid int) bool {
	st, err := os.Lstat(path)
	if err != nil {
		return true
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return !ok || int(sys.Uid) == uid
}

// discard renames a directory into the trash, which takes no time, and has it
// deleted in the background.
func (d *Driver) discard(path string) error {
	dst, err := d.toTrash(path)
	if err != nil || dst == "" {
		return err
	}
	d.spawn(func() { d.deleteLogged(dst) }) // when closed, the next driver empties the trash
	return nil
}

// toTrash renames path into the trash and returns its new place, "" if it did not exist.
func (d *Driver) toTrash(path string) (string, error) {
	dst := filepath.Join(d.root, trashDir, rand.Text())
	err := os.Rename(path, dst)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return dst, errs.Wrap(errs.Unavailable, err, "sandbox: set an old disk aside")
}

// emptyTrash deletes what an earlier driver did not come to delete.
func (d *Driver) emptyTrash() {
	trash := filepath.Join(d.root, trashDir)
	entries, err := os.ReadDir(trash)
	if err != nil {
		d.log.Warn("can't read the trash of the sandboxes", "err", err)
	}
	for _, e := range entries {
		if d.isClosed() {
			return
		}
		d.deleteLogged(filepath.Join(trash, e.Name()))
	}
}

func (d *Driver) deleteLogged(path string) {
	if err := deleteTree(path); err != nil {
		d.log.Warn("an old disk could not be deleted; the next start of the server tries again", "err", err)
	}
}

// deleteTree deletes a tree that may contain directories without write
// permission, as a Go module cache does.
func deleteTree(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil && e == nil {
			return err
		}
		// e is a directory itself, never a link to one outside of the tree. The walk
		// opens it after this call, or calls again with err if it could not.
		if e.IsDir() && err == nil {
			return os.Chmod(p, 0o700)
		}
		return nil
	})
	return errors.Join(err, os.RemoveAll(path))
}

// openLog opens the log for stdout and stderr, the older part set aside when
// long. It is open for reading, too, so that the command can keep it short (see
// runner.CapLog): the server may not be there to do so.
func (d *Driver) openLog(town string) (*os.File, error) {
	path := filepath.Join(d.book.Dir(town), "runner.log")
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "sandbox: set the log of town %s aside", town)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: open the log of town %s", town)
	}
	return f, nil
}
