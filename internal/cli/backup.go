package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/app"
	"gastown/internal/backup"
	"gastown/internal/errs"
)

func (a *invocation) backupCmd() *cobra.Command {
	var secrets, force bool
	cmd := a.withJSON(a.command("backup FILE", "Write a backup of the whole server into a file", func(ctx context.Context, args []string) error {
		return a.backup(ctx, args[0], secrets, force)
	}))
	cmd.Long = `Write a backup of the whole server into a file, "-" for stdout. The server may
run: work goes on meanwhile. Without a server on it, the data directory is read.

Secrets (provider keys, git credentials, the admin token) are left out unless
--with-secrets is given; such a file has them in plain text and is as secret as
the data directory. The key of the vault is never in it.`
	cmd.Flags().BoolVar(&secrets, "with-secrets", false, "with provider keys, git credentials and the admin token, in plain text")
	a.keyFileFlag(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	return cmd
}

func (a *invocation) restoreCmd() *cobra.Command {
	var force bool
	cmd := a.withJSON(a.command("restore FILE", "Replace everything by what a backup holds", func(ctx context.Context, args []string) error {
		return a.restore(ctx, args[0], force)
	}))
	cmd.Long = `Replace everything by what a backup holds ("-" for stdin). The backup is checked
before anything is changed, and what was there is moved aside, not deleted.

A running server goes on by itself with the restored state. Without a server,
the data directory is filled, for the next one.`
	cmd.Flags().BoolVar(&force, "force", false, "there is data already: move it aside")
	a.keyFileFlag(cmd)
	return cmd
}

// offline returns the data directory when no server is meant, or runs on it.
func (a *invocation) offline() (dir string, ok bool, err error) {
	if a.data == "" && a.env.Getenv("GASTOWN_URL") != "" {
		return "", false, nil
	}
	used, err := app.InUse(a.dataDir())
	return a.dataDir(), !used, err
}

// openBackup asks the server for a backup, or makes one of the data directory.
func (a *invocation) openBackup(ctx context.Context, secrets bool) (io.ReadCloser, error) {
	dir, ok, err := a.offline()
	if err != nil {
		return nil, err
	}
	if !ok {
		c, err := a.connect()
		if err != nil {
			return nil, err
		}
		return c.Backup(ctx, secrets)
	}
	r, w := io.Pipe()
	go func() {
		// A pipe's writer is closed without an error of its own.
		_ = w.CloseWithError(app.BackupOf(ctx, dir, a.keyFile(), a.version(), w, secrets))
	}()
	return r, nil
}

func (a *invocation) backup(ctx context.Context, file string, secrets, force bool) error {
	begin := a.env.Now()
	out, err := a.target(file, force)
	if err != nil {
		return err
	}
	m, n, err := a.receive(ctx, out, secrets)
	if err = out.finish(err); err != nil {
		return err
	}
	took := a.env.Now().Sub(begin)
	switch {
	case file == "-":
		return nil
	case a.json:
		return a.printJSON(struct {
			File      string `json:"file"`
			Bytes     int64  `json:"bytes"`
			Towns     int    `json:"towns"`
			Rigs      int    `json:"rigs"`
			ElapsedMS int64  `json:"elapsed_ms"`
		}{file, n, m.Towns, m.Rigs, took.Milliseconds()})
	}
	if err := a.say("%s: %d towns, %d rigs, %s, in %s", file, m.Towns, m.Rigs, bytesText(n), took.Round(time.Millisecond)); err != nil || len(m.Names) == 0 {
		return err
	}
	if secrets {
		return a.yes("with the values of %d secrets in plain text, and without the vault's key: keep it as safe as the server", len(m.Names))
	}
	return a.yes("without the values of %d secrets; --with-secrets takes them, too", len(m.Names))
}

// receive writes the backup and reads it at the same time: what can't be restored
// is not kept.
func (a *invocation) receive(ctx context.Context, out io.Writer, secrets bool) (m backup.Manifest, n int64, err error) {
	in, err := a.openBackup(ctx, secrets)
	if err != nil {
		return m, 0, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	p := &progress{a: a, verb: "written"}
	r := io.TeeReader(in, io.MultiWriter(out, p))
	m, err = backup.Read(r, func(backup.Manifest, string, int64, io.Reader) error { return ctx.Err() })
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	p.end()
	return m, p.n, err
}

// progress says from time to time how much there is, to somebody who waits.
type progress struct {
	a    *invocation
	verb string
	n    int64
	said time.Time
}

// Write implements io.Writer.
func (p *progress) Write(b []byte) (int, error) {
	p.n += int64(len(b))
	if now := p.a.env.Now(); p.a.env.Attended && now.Sub(p.said) >= time.Second {
		p.said = now
		fmt.Fprintf(p.a.env.Err, "\r%s %s ", bytesText(p.n), p.verb)
	}
	return len(b), nil
}

func (p *progress) end() {
	if !p.said.IsZero() {
		fmt.Fprintln(p.a.env.Err)
	}
}

func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", (n+1023)>>10)
}

// target is where a backup goes: a file that appears under its name when it is
// whole and on disk, or stdout.
type target struct {
	io.Writer
	file  *os.File // nil for stdout
	path  string
	force bool
}

func (a *invocation) target(path string, force bool) (*target, error) {
	if path == "-" {
		if a.json {
			return nil, errs.New(errs.Invalid, "--json can't go where the backup goes").WithHint("name a file")
		}
		return &target{Writer: a.env.Out}, nil
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return nil, exists(path)
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strings.ToLower(rand.Text()[:8]))
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "writing the backup")
	}
	return &target{Writer: f, file: f, path: path, force: force}, nil
}

func exists(path string) error {
	return errs.New(errs.Conflict, "%s exists already", path).WithHint("give another name, or --force to replace it")
}

// finish puts the file in place, or removes it when err says that it is not whole.
func (t *target) finish(err error) error {
	if t.file == nil {
		return err
	}
	tmp := t.file.Name()
	if err == nil {
		err = errs.Wrap(errs.Unavailable, t.file.Sync(), "writing the backup")
	}
	err = errors.Join(err, t.file.Close())
	switch {
	case err != nil:
	case t.force:
		err = errs.Wrap(errs.Unavailable, os.Rename(tmp, t.path), "writing the backup")
	default: // another program may have made the file meanwhile
		if err = os.Link(tmp, t.path); errors.Is(err, os.ErrExist) {
			err = exists(t.path)
		}
		err = errs.Wrap(errs.KindOf(err), err, "writing the backup")
	}
	if err != nil || !t.force {
		err = errors.Join(err, os.Remove(tmp))
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(t.path))
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "writing the backup")
	}
	return errs.Wrap(errs.Unavailable, errors.Join(dir.Sync(), dir.Close()), "writing the backup")
}

func (a *invocation) restore(ctx context.Context, file string, force bool) error {
	in := io.NopCloser(a.env.In)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return errs.Wrap(errs.Invalid, err, "reading the backup")
		}
		in = f
	}
	defer in.Close()
	p := &progress{a: a, verb: "read"}
	r := io.TeeReader(&stopped{ctx, in}, p)
	dir, ok, err := a.offline()
	if err != nil {
		return err
	}
	var done api.Restored
	if ok {
		done, err = app.RestoreInto(ctx, dir, a.keyFile(), r, force)
	} else {
		done, err = a.restoreServer(ctx, r, force)
	}
	p.end()
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	if err := a.say("restored %d towns and %d rigs as they were at %s", done.Towns, done.Rigs, done.TakenAt.Local().Format("2006-01-02 15:04:05")); err != nil {
		return err
	}
	if done.Aside != "" {
		if err := a.yes("what was there is in %s now; delete it when you don't need it", done.Aside); err != nil {
			return err
		}
	}
	if len(done.MissingSecrets) > 0 {
		return a.yes("these secrets are not in the backup, give them again: %s", clean(strings.Join(done.MissingSecrets, ", ")))
	}
	return nil
}

func (a *invocation) restoreServer(ctx context.Context, r io.Reader, force bool) (api.Restored, error) {
	if !force {
		return api.Restored{}, errs.New(errs.Conflict, "a server is running: a restore replaces everything that it has").
			WithHint("give --force; what it has is moved aside, not deleted")
	}
	c, err := a.connect()
	if err != nil {
		return api.Restored{}, err
	}
	return c.Restore(ctx, r)
}

// stopped is a reader that ends with its context.
type stopped struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (s *stopped) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}
