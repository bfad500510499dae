package app

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gastown/internal/backup"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/store"
	"gastown/internal/vault"
)

// Prefixes of directories below the data directory that exist only for a while.
const (
	backupTemp  = ".backup-"
	restoreTemp = ".restore-"
)

// source is what a backup is made of.
type source struct {
	dir      string
	version  string
	now      time.Time
	snapshot func(ctx context.Context, path string) (store.Contents, error)
	hub      *hub.Hub
	vault    *vault.Vault
	log      *slog.Logger
}

// Backup writes a backup of the running server: the database first, then all
// repositories, so that what the rows name is there. Work goes on meanwhile. With
// secrets it is as secret as the data directory. One is made at a time (Conflict).
func (p *parts) backup(ctx context.Context, w io.Writer, secrets bool) error {
	if !p.saving.TryLock() {
		return errs.New(errs.Conflict, "a backup is being made already").WithHint("wait until it is done")
	}
	defer p.saving.Unlock()
	a := p.app
	s := source{dir: a.dir, version: a.cfg.Version, now: time.Now(), snapshot: p.store.Snapshot, hub: p.hub, vault: p.vault, log: a.log}
	return s.write(ctx, w, secrets)
}

// BackupOf writes a backup of a data directory that no server uses. One that a
// server uses is a Conflict. keyFile is the vault's, "" for the one in dir.
func BackupOf(ctx context.Context, dir, keyFile, version string, w io.Writer, secrets bool) (err error) {
	if _, err := os.Stat(filepath.Join(dir, store.FileName)); err != nil {
		return (&errs.Error{Kind: errs.NotFound, Message: "this is no data directory of a server", Err: err}).WithHint("give it with --data DIR")
	}
	lock, err := store.TakeLock(dir, time.Now())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := finishSwap(dir); err != nil {
		return err
	}
	v, err := vault.OpenWith(filepath.Join(dir, vaultDir), keyFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	log := slog.New(slog.DiscardHandler)
	h, err := hub.Open(filepath.Join(dir, hubDir), v, log)
	if err != nil {
		return err
	}
	s := source{dir: dir, version: version, now: time.Now(), hub: h, vault: v, log: log,
		snapshot: func(ctx context.Context, path string) (store.Contents, error) {
			return store.SnapshotOf(ctx, dir, path)
		}}
	return s.write(ctx, w, secrets)
}

func (s source) write(ctx context.Context, w io.Writer, secrets bool) (err error) {
	tmp, err := os.MkdirTemp(s.dir, backupTemp)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "making the snapshot of the database")
	}
	defer func() {
		if rmErr := os.RemoveAll(tmp); rmErr != nil {
			s.log.Warn("leftover of a backup", "path", tmp, "err", rmErr)
		}
	}()
	copied := filepath.Join(tmp, store.FileName)
	c, err := s.snapshot(ctx, copied)
	if err != nil {
		return err
	}
	names, err := s.vault.List("")
	if err != nil {
		return err
	}
	b, err := backup.NewWriter(w, backup.Manifest{Format: backup.Format, Schema: c.Schema, Gastown: s.version, At: s.now.UTC(), Towns: c.Towns,
		Rigs: c.Rigs, Secrets: secrets, Names: names})
	if err != nil {
		return err
	}
	if err := addFile(b, copied, backup.Database); err != nil {
		return err
	}
	if err := s.repositories(ctx, b); err != nil {
		return err
	}
	if secrets {
		if err := s.secrets(b, names); err != nil {
			return err
		}
	}
	return b.Close()
}

func addFile(b *backup.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading what goes into the backup")
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading what goes into the backup")
	}
	return b.Add(name, st.Size(), f)
}

func (s source) repositories(ctx context.Context, b *backup.Writer) error {
	ids, err := s.hub.List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		under := backup.Hub + id.Town + "/" + id.Rig + ".git/"
		err := s.hub.Export(ctx, id, func(name string, size int64, r io.Reader) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return b.Add(under+name, size, r)
		})
		if err != nil && !errs.Is(err, errs.NotFound) { // removed meanwhile
			return err
		}
	}
	return nil
}

func (s source) secrets(b *backup.Writer, names []string) error {
	for _, n := range names {
		value, err := s.vault.Get(n)
		if errs.Is(err, errs.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if err := b.Add(backup.Vault+n, int64(len(value)), bytes.NewReader(value)); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, TokenFile)); err != nil {
		return nil // no server was started on it yet
	}
	return addFile(b, filepath.Join(s.dir, TokenFile), backup.Token)
}

// sweepTemp removes what backups and restores of a dead process left. The caller
// holds the directory's lock, and no swap is left to finish.
func sweepTemp(dir string, log *slog.Logger) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		log.Warn("the data directory can't be listed", "err", err)
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), backupTemp) || strings.HasPrefix(e.Name(), restoreTemp) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				log.Warn("leftover in the data directory", "name", e.Name(), "err", err)
			}
		}
	}
}

// InUse reports whether a server, or another command, holds a data directory.
func InUse(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, store.FileName)); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	lock, err := store.TakeLock(dir, time.Now())
	if errs.Is(err, errs.Conflict) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, lock.Release()
}
