package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

const tellEach = 10_000 // lines between two words of progress

func (a *invocation) townExportCmd() *cobra.Command {
	var force bool
	cmd := a.command("export TOWN [FILE]", "Write a town's beads, dependencies and ledger as JSON lines", func(ctx context.Context, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if len(args) == 1 || args[1] == "-" {
			return c.ExportTown(ctx, args[0], a.env.Out, nil)
		}
		return a.exportTo(ctx, c, args[0], args[1], force)
	})
	cmd.Flags().BoolVar(&force, "force", false, "overwrite a file that exists")
	return cmd
}

// exportTo writes the export beside the file and puts it in place when it is whole.
func (a *invocation) exportTo(ctx context.Context, c *client.Client, in, path string, force bool) (err error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return errs.New(errs.Conflict, "%s exists already", path).WithHint("choose another name, or overwrite it with --force")
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".gastown-export-*")
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "writing the export")
	}
	defer func() {
		if err != nil {
			// It is not whole; that it is there no more is all that is left to say.
			_ = os.Remove(f.Name())
		}
	}()
	lines := 0
	err = c.ExportTown(ctx, in, f, func(n int) {
		if lines = n; n%tellEach == 0 {
			fmt.Fprintf(a.env.Err, "%d lines ...\n", n)
		}
	})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errs.Wrap(errs.Invalid, err, "writing the export")
	}
	return a.yes("town %s: %d lines in %s", in, lines, path)
}

// importFlags are the flags of "town import".
type importFlags struct {
	name          string
	rename        []string
	dryRun, start bool
	noClone       bool
	tokenFile     string
}

func (a *invocation) townImportCmd() *cobra.Command {
	var f importFlags
	cmd := a.withJSON(a.command("import FILE", "Make a town of an export; - for stdin", func(ctx context.Context, args []string) error {
		token := ""
		if f.tokenFile != "" {
			if f.tokenFile == "-" && args[0] == "-" {
				return errs.New(errs.Invalid, "the export and the token can't both come from stdin")
			}
			var err error
			if token, err = a.secretFile("git token", f.tokenFile); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		done, err := c.ImportTown(ctx, client.Import{Name: f.name, Rename: f.rename, DryRun: f.dryRun, Start: f.start, Open: a.opener(args[0])})
		if err != nil {
			return err
		}
		var rigs []clonedRig
		if !f.dryRun && !f.noClone {
			rigs = a.cloneAll(ctx, c, done, token)
		}
		return a.tellImport(done, rigs, f)
	}))
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the new town (default: the name in the file)")
	fl.StringArrayVar(&f.rename, "rename-prefix", nil, "another prefix for the ids of a rig's beads, as old=new; may be repeated")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only check the file, and whether names and prefixes are free")
	fl.BoolVar(&f.start, "start", false, "let work begin at once (default: the town is paused)")
	fl.BoolVar(&f.noClone, "no-clone", false, "leave the repositories for later")
	fl.StringVar(&f.tokenFile, "git-token-file", "", "file with the token for the repositories; - for stdin")
	return cmd
}

// opener opens a file each time it is asked; stdin only once.
func (a *invocation) opener(path string) func() (io.ReadCloser, error) {
	read := false
	return func() (io.ReadCloser, error) {
		if path == "-" {
			if read {
				return nil, errs.New(errs.Invalid, "stdin was read already")
			}
			read = true
			return io.NopCloser(a.env.In), nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "reading the export")
		}
		return f, nil
	}
}

// clonedRig is a rig of an import and what became of its repository.
type clonedRig struct {
	api.ImportedRig
	Cloned bool   `json:"cloned"`
	Error  string `json:"error,omitempty"`
}

// cloneAll brings the repositories that can be had now. One that can't leaves
// its rig waiting, and the others alone.
func (a *invocation) cloneAll(ctx context.Context, c *client.Client, done api.Imported, token string) []clonedRig {
	var out []clonedRig
	if token != "" && severalServers(done.Rigs) {
		fmt.Fprintln(a.env.Err, "warning: the file names repositories on several servers: none of them gets the token")
		token = ""
	}
	for _, r := range done.Rigs {
		got := clonedRig{ImportedRig: r}
		fmt.Fprintf(a.env.Err, "cloning rig %s from %s ...\n", r.Name, clean(r.URL))
		body := api.CloneRig{}
		if r.Credential {
			body.GitToken = token // only where one was used: a token is not shown to others
		}
		if _, err := c.CloneRig(ctx, done.TownID, r.Name, body); err != nil {
			got.Error = err.Error()
			fmt.Fprintf(a.env.Err, "warning: rig %s could not be cloned: %s\n", r.Name, clean(err.Error()))
			note := ""
			if r.Credential && token == "" {
				note = " --credential-file FILE"
			}
			fmt.Fprintf(a.env.Err, "hint: its beads wait until: gastown rig clone %s --town %s%s\n", r.Name, done.Town, note)
		} else {
			got.Cloned = true
		}
		out = append(out, got)
	}
	return out
}

// severalServers reports whether the rigs that need a credential are on different
// servers. The file says where they are, and a token is for one of them.
func severalServers(rigs []api.ImportedRig) bool {
	first := ""
	for _, r := range rigs {
		if !r.Credential {
			continue
		}
		at := r.URL
		if u, err := url.Parse(r.URL); err == nil && u.Host != "" {
			at = u.Scheme + "://" + u.Host
		}
		if first == "" {
			first = at
		}
		if at != first {
			return true
		}
	}
	return false
}

func (a *invocation) tellImport(done api.Imported, rigs []clonedRig, f importFlags) error {
	if a.json {
		if rigs == nil {
			return a.printJSON(done)
		}
		return a.printJSON(struct {
			api.Imported
			Rigs []clonedRig `json:"rigs"`
		}{done, rigs})
	}
	what := fmt.Sprintf("%d rigs, %d beads, %d ledger entries", len(done.Rigs), done.Beads, done.Ledger)
	if done.Reopened > 0 {
		what += fmt.Sprintf("; %d beads were at work and are open again", done.Reopened)
	}
	if len(done.LeftOut) > 0 {
		what += "; not in the file: " + clean(strings.Join(done.LeftOut, ", "))
	}
	if f.dryRun {
		return a.yes("the file is good: %s; nothing was changed", what)
	}
	if err := a.yes("town %s: %s", done.Town, what); err != nil {
		return err
	}
	if f.noClone && len(done.Rigs) > 0 {
		if err := a.yes("its rigs wait for: gastown rig clone RIG --town %s", done.Town); err != nil {
			return err
		}
	}
	if !f.start {
		if err := a.yes("it is paused: gastown town resume %s lets work begin", done.Town); err != nil {
			return err
		}
	}
	return a.say("%s", done.Town)
}

func (a *invocation) rigCloneCmd() *cobra.Command {
	var url, tokenFile string
	var cf credentialFlags
	cmd := a.withJSON(a.rigAction("clone RIG", "Clone the repository of an imported rig", func(ctx context.Context, c *client.Client, in, rig string, _ []string) error {
		body := api.CloneRig{URL: url}
		var err error
		if tokenFile != "" {
			if body.GitToken, err = a.secretFile("git token", tokenFile); err != nil {
				return err
			}
		}
		if body.Credential, err = a.credential(cf); err != nil {
			return err
		}
		r, err := c.CloneRig(ctx, in, rig, body)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(r)
		}
		return a.yes("rig %s of town %s has its repository", rig, in)
	}))
	cmd.Flags().StringVar(&url, "url", "", "another place of the repository (default: as imported)")
	cmd.Flags().StringVar(&tokenFile, "git-token-file", "", "file with a token, or user:password, for the repository; - for stdin")
	cf.flags(cmd)
	return cmd
}

const maxBeadFile = 16 << 20

func (a *invocation) beadImportCmd() *cobra.Command {
	var in, rig string
	var sling bool
	cmd := a.withJSON(a.command("import FILE", "Create many beads of JSON lines; - for stdin", func(ctx context.Context, args []string) error {
		text, err := a.textFile("list of beads", args[0], maxBeadFile)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		in, rig, err := placeOf(ctx, c, in, rig)
		if err != nil {
			return err
		}
		made, err := c.ImportBeads(ctx, in, rig, []byte(text), sling)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(made)
		}
		for _, b := range made {
			if err := a.say("%s  %s", b.ID, cell(b.Title)); err != nil {
				return err
			}
		}
		return nil
	}))
	cmd.Flags().StringVar(&in, "town", "", "the town (default: that of the rig)")
	cmd.Flags().StringVar(&rig, "rig", "", "the rig (default: the only one)")
	cmd.Flags().BoolVar(&sling, "sling", false, "let work on them begin (default: they wait until they are slung)")
	return cmd
}
