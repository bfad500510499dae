package app

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/backup"
	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/sandbox"
	"gastown/internal/server"
	"gastown/internal/store"
	"gastown/internal/town"
	"gastown/internal/vault"
)

const (
	hubDir   = "hub"
	vaultDir = "vault"
	// restoredKey is the mark in a restored store: the towns that have to hear of it.
	restoredKey = "restored"
	// leap is by how much generations rise when nobody can say which ones there
	// were, because the old database can't be read: more than a sandbox starts in
	// the life of any backup.
	leap = 1_000_000
)

// marks say which towns have to hear that they were restored, and up to which
// generation nobody may be listened to.
type marks struct {
	At    town.Time       `json:"at"` // of the backup
	Towns map[string]mark `json:"towns"`
}

type mark struct {
	Generation int64 `json:"generation"`
	Running    int64 `json:"-"` // which the driver says still runs
}

// sight is what the database that is replaced knows of generations.
type sight struct {
	latest map[string]int64 // by town
	blind  bool             // it can't be read
}

// staged is a backup that was unpacked and checked.
type staged struct {
	dir      string // below the data directory
	manifest backup.Manifest
	contents store.Contents
	repos    map[string]bool // directories below hub/
	token    bool
}

// stage unpacks a backup into a directory of its own and checks all of it. The
// caller removes the directory.
func stage(ctx context.Context, r io.Reader, dir, keyFile string) (*staged, error) {
	s := &staged{dir: dir, repos: map[string]bool{}}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "unpacking the backup")
	}
	defer root.Close()
	v, err := vault.OpenWith(filepath.Join(dir, vaultDir), keyFile)
	if err != nil {
		return nil, err
	}
	defer func() {
		// Only what Put has written counts, and it is checked.
		_ = v.Close()
	}()
	found := false
	s.manifest, err = backup.Read(r, func(m backup.Manifest, name string, _ int64, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case name == backup.Database:
			if err := known(m); err != nil {
				return err
			}
			found = true
			return unpack(root, store.FileName, r)
		case name == backup.Token:
			s.token = true
			return unpack(root, TokenFile, r)
		case strings.HasPrefix(name, backup.Vault):
			value, err := io.ReadAll(io.LimitReader(r, vault.MaxValue+1))
			if err != nil {
				return err
			}
			return v.Put(strings.TrimPrefix(name, backup.Vault), value)
		}
		return s.repository(root, name, r)
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errs.New(errs.Invalid, "the backup has no database")
	}
	return s, s.settle(ctx)
}

// known refuses a database that only a newer program understands, before the rest
// is read.
func known(m backup.Manifest) error {
	schema, err := store.Schema()
	if err == nil && m.Schema > schema {
		err = errs.New(errs.Conflict, "the backup's database has schema %d, but this gastown knows only %d", m.Schema, schema).
			WithHint("restore it with the gastown that wrote it: %s", m.Gastown)
	}
	return err
}

// repository unpacks a member of a repository.
func (s *staged) repository(root *os.Root, name string, r io.Reader) error {
	inTown, rest, _ := strings.Cut(strings.TrimPrefix(name, backup.Hub), "/")
	repo, member, ok := strings.Cut(rest, "/")
	rig, isRepo := strings.CutSuffix(repo, ".git")
	if !ok || !isRepo || !hub.ValidID(hub.ID{Town: inTown, Rig: rig}) || !hub.Exportable(member) {
		return errs.New(errs.Invalid, "the backup has a member %.200q that no backup has", name)
	}
	s.repos[filepath.Join(inTown, repo)] = true
	return unpack(root, filepath.FromSlash(name), r)
}

func unpack(root *os.Root, name string, r io.Reader) error {
	fail := func(err error) error {
		if err == nil || errs.KindOf(err) != errs.Internal {
			return err // of the archive
		}
		return (&errs.Error{Kind: errs.Unavailable, Message: "unpacking the backup", Err: err}).
			WithHint("the data directory needs free space for a second copy of everything")
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o700); err != nil {
			return fail(err)
		}
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fail(err)
	}
	_, err = io.Copy(f, r)
	return fail(errors.Join(err, f.Close()))
}

// settle checks the database, completes the repositories and makes all durable.
func (s *staged) settle(ctx context.Context) error {
	var err error
	if s.contents, err = store.Verify(ctx, filepath.Join(s.dir, store.FileName)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, hubDir), 0o700); err != nil {
		return errs.Wrap(errs.Unavailable, err, "unpacking the backup")
	}
	for repo := range s.repos {
		if err := hub.Adopt(filepath.Join(s.dir, hubDir, repo)); err != nil {
			return err
		}
	}
	err = filepath.WalkDir(s.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && (d.Type().IsRegular() || d.IsDir()) {
			err = syncPath(p)
		}
		return errors.Join(err, ctx.Err())
	})
	return errs.Wrap(errs.Unavailable, err, "unpacking the backup")
}

// mark readies the staged database: nobody holds a slot, and the towns that have to
// hear of the restore are named in it.
func (s *staged) mark(ctx context.Context, seen sight) (err error) {
	st, err := store.Open(ctx, s.dir, store.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	m := marks{At: town.At(s.manifest.At), Towns: map[string]mark{}}
	for after := ""; ; {
		heads, err := st.Heads(ctx, after, 1000)
		if err != nil {
			return err
		}
		if len(heads) == 0 {
			break
		}
		for _, h := range heads {
			after = h.Name
			g := max(h.Generation, seen.latest[h.ID])
			if seen.blind && g > 0 {
				g += leap
			}
			if g > h.Generation || h.Sandbox != store.Asleep {
				m.Towns[h.ID] = mark{Generation: g}
			}
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "encoding the marks of a restore")
	}
	if err := st.DropSlots(ctx); err != nil {
		return err
	}
	return st.SetMeta(ctx, restoredKey, string(text))
}

// missing returns the names of secrets that the restored server will lack.
func (s *staged) missing(dir, keyFile string) ([]string, error) {
	if s.manifest.Secrets || len(s.manifest.Names) == 0 {
		return []string{}, nil
	}
	v, err := vault.OpenWith(filepath.Join(dir, vaultDir), keyOf(dir, keyFile))
	if err != nil {
		return nil, err
	}
	have, err := v.List("")
	out := slices.DeleteFunc(slices.Clone(s.manifest.Names), func(n string) bool {
		return slices.Contains(have, n) || n == server.SigningKey // made anew
	})
	return out, errors.Join(err, v.Close())
}

// swap says what is exchanged for what was staged.
func (s *staged) swap(dir string, now time.Time) (swap, error) {
	w := swap{Staging: filepath.Base(s.dir), Aside: "before-restore-" + now.UTC().Format("20060102T150405.000")}
	w.Away = append(store.Files(), hubDir)
	w.In = append(store.Files(), hubDir)
	if s.manifest.Secrets {
		w.Away, w.In = append(w.Away, vaultDir), append(w.In, vaultDir)
		if _, err := os.Lstat(filepath.Join(dir, TokenFile)); errors.Is(err, fs.ErrNotExist) && s.token {
			w.In = append(w.In, TokenFile) // who has a token already keeps it
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return w, errs.Wrap(errs.Unavailable, err, "looking for the admin token")
		}
	}
	return w, nil
}

func (s *staged) result(aside string, missing []string, begun time.Time) api.Restored {
	return api.Restored{TakenAt: s.manifest.At, Towns: s.contents.Towns, Rigs: s.contents.Rigs, Aside: aside, MissingSecrets: missing,
		ElapsedMS: time.Since(begun).Milliseconds()}
}

// generations returns the latest generation of each town of a store.
func generations(ctx context.Context, st *store.SQLite) (map[string]int64, error) {
	out := map[string]int64{}
	for after := ""; ; {
		heads, err := st.Heads(ctx, after, 1000)
		if err != nil || len(heads) == 0 {
			return out, err
		}
		for _, h := range heads {
			after, out[h.ID] = h.Name, h.Generation
		}
	}
}

// RestoreInto restores a backup into a data directory that no server uses. What is
// there already is moved aside, with force; without, it is a Conflict.
func RestoreInto(ctx context.Context, dir, keyFile string, r io.Reader, force bool) (out api.Restored, err error) {
	begun := time.Now()
	if dir, err = dataDir(dir); err != nil {
		return out, err
	}
	lock, err := store.TakeLock(dir, begun)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := finishSwap(dir); err != nil {
		return out, err
	}
	sweepTemp(dir, slog.New(slog.DiscardHandler))
	there := false
	for _, name := range append(store.Files(), hubDir) {
		_, err := os.Lstat(filepath.Join(dir, name))
		there = there || err == nil
	}
	if there && !force {
		return out, errs.New(errs.Conflict, "%s holds a server's data already", dir).
			WithHint("give --force to move it aside, or another directory with --data")
	}
	tmp, err := os.MkdirTemp(dir, restoreTemp)
	if err != nil {
		return out, errs.Wrap(errs.Unavailable, err, "unpacking the backup")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	s, err := stage(ctx, r, tmp, keyOf(dir, keyFile))
	if err != nil {
		return out, err
	}
	if err := s.mark(ctx, latest(ctx, dir, there)); err != nil {
		return out, err
	}
	w, err := s.swap(dir, begun)
	if err != nil {
		return out, err
	}
	if err := ctx.Err(); err != nil {
		return out, err
	}
	if err := w.run(dir); err != nil {
		return out, err
	}
	missing, err := s.missing(dir, keyFile)
	aside := ""
	if there {
		aside = filepath.Join(dir, w.Aside)
	} else if rmErr := os.Remove(filepath.Join(dir, w.Aside)); rmErr != nil {
		aside = filepath.Join(dir, w.Aside) // a vault without a database
	}
	return s.result(aside, missing, begun), err
}

// latest reads the generations of a database that is about to be replaced. It is
// blind when that can't be read, which may be why it is replaced.
func latest(ctx context.Context, dir string, there bool) sight {
	if !there {
		return sight{latest: map[string]int64{}}
	}
	seen, err := store.Generations(ctx, dir)
	if err != nil {
		return sight{latest: map[string]int64{}, blind: true}
	}
	return sight{latest: seen}
}

// hearRestored lets the towns of a restored store know. It runs before anything
// else happens to a town, and again if it was interrupted.
func (p *parts) hearRestored(ctx context.Context) error {
	text, _, err := p.store.Meta(ctx, restoredKey)
	if err != nil || text == "" {
		return err
	}
	var m marks
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return errs.New(errs.Internal, "the marks of a restore can't be read: %v", err)
	}
	if err := p.listed(ctx, &m); err != nil {
		return err
	}
	for id, k := range m.Towns {
		err := p.hall.Do(ctx, id, town.Restored{Generation: k.Generation, Running: k.Running, At: m.At})
		switch errs.KindOf(err) {
		case "", errs.NotFound:
		case errs.Unavailable:
			return err
		default: // its state can't be read: nothing runs for it
			p.app.log.Error("a town could not hear that it was restored", "town", id, "err", err)
		}
	}
	p.app.log.Info("towns were told that a backup was restored", "towns", len(m.Towns))
	return p.store.SetMeta(ctx, restoredKey, "")
}

// listed adds what the driver knows: generations that may be newer than all that a
// database knew, and those that still run.
func (p *parts) listed(ctx context.Context, m *marks) error {
	all, err := p.app.driver.List(ctx)
	if err != nil {
		return err
	}
	for _, st := range all {
		head, err := p.store.Head(ctx, st.Ref.Town)
		if errs.Is(err, errs.NotFound) {
			continue // swept as any sandbox without a town
		}
		if err != nil {
			return err
		}
		k, marked := m.Towns[st.Ref.Town]
		if !marked && st.State == sandbox.Gone && st.Ref.Generation <= head.Generation {
			continue
		}
		k.Generation = max(k.Generation, st.Ref.Generation)
		if st.State != sandbox.Gone {
			k.Running = st.Ref.Generation
		}
		m.Towns[st.Ref.Town] = k
	}
	return nil
}

// restore restores a backup under the running server: it is unpacked and checked
// first; then requests are turned away, the old parts end, the files are
// exchanged, and new parts open over them. If that fails the old ones come back.
func (a *App) restore(ctx context.Context, r io.Reader) (out api.Restored, err error) {
	begun := time.Now()
	if !a.restoring.TryLock() {
		return out, errs.New(errs.Conflict, "another restore is under way, or the server is stopping")
	}
	defer a.restoring.Unlock()
	tmp, err := os.MkdirTemp(a.dir, restoreTemp)
	if err != nil {
		return out, errs.Wrap(errs.Unavailable, err, "unpacking the backup")
	}
	defer func() {
		if rmErr := os.RemoveAll(tmp); rmErr != nil {
			a.log.Warn("leftover of a restore", "path", tmp, "err", rmErr)
		}
	}()
	s, err := stage(ctx, r, tmp, keyOf(a.dir, a.cfg.KeyFile))
	if err != nil {
		return out, err
	}
	if err := ctx.Err(); err != nil {
		return out, err
	}
	// From here on a client that goes away stops nothing.
	ctx = context.WithoutCancel(ctx)
	old := a.current.Load()
	a.log.Warn("restoring a backup: requests are turned away until it is in place", "taken_at", s.manifest.At)
	w, err := a.exchange(ctx, old, s, begun)
	if err == nil {
		if err = a.open(ctx); err == nil {
			err = a.current.Load().begin(a.serving)
		}
		if err != nil {
			err = errors.Join(err, a.undo(w))
		}
	}
	if err != nil {
		a.log.Error("the restore failed; the state before it is put back", "err", err)
		return out, errors.Join(err, a.reopen(ctx))
	}
	missing, err := s.missing(a.dir, a.cfg.KeyFile)
	a.log.Warn("a backup was restored", "taken_at", s.manifest.At, "towns", s.contents.Towns, "aside", filepath.Join(a.dir, w.Aside))
	return s.result(filepath.Join(a.dir, w.Aside), missing, begun), err
}

// exchange ends the old parts and puts the staged files in their place. After an
// error the old files are there.
func (a *App) exchange(ctx context.Context, old *parts, s *staged, begun time.Time) (swap, error) {
	end, cancel := context.WithTimeout(ctx, quietFor)
	defer cancel()
	err := a.gate.close(end, 1) // the restore's own request goes on
	stop, cancelStop := context.WithTimeout(ctx, finishFor)
	defer cancelStop()
	old.hall.Stop(stop)
	if err != nil {
		return swap{}, err
	}
	// Nothing starts a sandbox any more: what is seen now is all there is.
	known, err := generations(ctx, old.store)
	if err := s.mark(ctx, sight{latest: known, blind: err != nil}); err != nil {
		return swap{}, err
	}
	w, err := s.swap(a.dir, begun)
	if err != nil {
		return swap{}, err
	}
	if err := old.close(); err != nil {
		a.log.Warn("closing what a restore replaces", "err", err) // it may be damaged: that may be why
	}
	a.current.Store(nil)
	if err := w.run(a.dir); err != nil {
		return swap{}, errors.Join(err, w.back(a.dir))
	}
	return w, nil
}

// quietFor is how long requests under way may hold up a restore.
const quietFor = 30 * time.Second

// undo puts the old files back after the new ones could not be opened.
func (a *App) undo(w swap) error {
	if p := a.current.Swap(nil); p != nil {
		if err := p.close(); err != nil {
			a.log.Warn("closing what could not be restored", "err", err)
		}
	}
	return w.back(a.dir)
}

// reopen makes the server work on the files that are there. When it can't, Serve
// ends: a server without parts would only turn requests away.
func (a *App) reopen(ctx context.Context) error {
	if p := a.current.Swap(nil); p != nil {
		if err := p.close(); err != nil {
			a.log.Warn("closing what a restore would have replaced", "err", err)
		}
	}
	err := a.open(ctx)
	if err == nil {
		err = a.current.Load().begin(a.serving)
	}
	if err != nil {
		a.failed <- err
	}
	return err
}
