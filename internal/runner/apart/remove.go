package apart

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove removes a path with all below it, also where directories are another
// user's or closed to writing. Links are not followed. That it does not exist is fine.
func Remove(path string) error {
	err := os.RemoveAll(path)
	if err == nil {
		return nil
	}
	st, lerr := os.Lstat(path)
	if lerr != nil || !st.IsDir() {
		return err
	}
	// Its own errors show in what can't be removed after it.
	_ = takeBack(path)
	return os.RemoveAll(path)
}

// takeBack makes the directories of a tree the caller's and open to it.
func takeBack(path string) error {
	if err := errors.Join(os.Lchown(path, os.Getuid(), -1), os.Chmod(path, 0o700)); err != nil {
		return err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	return errors.Join(takeBackIn(root, "."), root.Close())
}

func takeBackIn(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	err = errors.Join(err, f.Close())
	for _, e := range entries {
		if e.Type()&fs.ModeType != fs.ModeDir {
			continue
		}
		name := filepath.Join(dir, e.Name())
		err = errors.Join(err, root.Lchown(name, os.Getuid(), -1), root.Chmod(name, 0o700), takeBackIn(root, name))
	}
	return err
}
