package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"gastown/internal/app"
	"gastown/internal/client"
	"gastown/internal/errs"
	"gastown/internal/town"
)

// maxSecret is the largest key or token file.
const maxSecret = 64 << 10

// dataDir returns the data directory that holds when --data is not given.
func (a *invocation) dataDir() string {
	switch {
	case a.data != "":
		return a.data
	case a.env.Getenv("GASTOWN_DATA") != "":
		return a.env.Getenv("GASTOWN_DATA")
	case a.env.Getenv("XDG_DATA_HOME") != "":
		return filepath.Join(a.env.Getenv("XDG_DATA_HOME"), "gastown")
	}
	return filepath.Join(a.env.Getenv("HOME"), ".local", "share", "gastown")
}

// connect makes the client: see the package comment for where the server is found.
func (a *invocation) connect() (*client.Client, error) {
	o := client.Options{Agent: "gastown/" + a.version(), User: a.user()}
	if a.data == "" && a.env.Getenv("GASTOWN_URL") != "" {
		o.URL, o.Token = a.env.Getenv("GASTOWN_URL"), strings.TrimSpace(a.env.Getenv("GASTOWN_TOKEN"))
		return client.New(o)
	}
	var err error
	if o.URL, o.Token, err = readDataDir(a.dataDir()); err != nil {
		return nil, err
	}
	return client.New(o)
}

// readDataDir reads what a server on this machine left in its data directory.
func readDataDir(dir string) (url, token string, err error) {
	where, err := app.ReadLocation(dir)
	if err != nil {
		return "", "", err
	}
	secret, err := os.ReadFile(filepath.Join(dir, app.TokenFile))
	if err != nil {
		return "", "", errs.Wrap(errs.Unauthorized, err, "reading the admin token")
	}
	return where.URL, strings.TrimSpace(string(secret)), nil
}

// user names the person for the ledger.
func (a *invocation) user() string {
	if u := a.env.Getenv("GASTOWN_USER"); u != "" {
		return u
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

// secretFile reads a key or token from a file, "-" from stdin.
func (a *invocation) secretFile(what, path string) (string, error) {
	text, err := a.textFile(what, path, maxSecret)
	if err != nil {
		return "", err
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", errs.New(errs.Invalid, "the file with the %s is empty", what)
	}
	return text, nil
}

// textFile reads a text from a file, "-" from stdin.
func (a *invocation) textFile(what, path string, limit int64) (string, error) {
	r := a.env.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", errs.Wrap(errs.Invalid, err, "reading the %s", what)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return "", errs.Wrap(errs.Invalid, err, "reading the %s", what)
	}
	if int64(len(b)) > limit {
		return "", errs.New(errs.Invalid, "the %s is longer than %d bytes", what, limit)
	}
	// JSON would carry it as replacement characters without a word.
	if !utf8.Valid(b) {
		return "", errs.New(errs.Invalid, "the %s is not valid UTF-8", what)
	}
	return string(b), nil
}

// oneTown returns the town that was named, else the only one there is.
func oneTown(ctx context.Context, c *client.Client, name string) (string, error) {
	if name != "" {
		return name, nil
	}
	towns, err := c.Towns(ctx)
	if err != nil {
		return "", err
	}
	switch len(towns) {
	case 0:
		return "", errs.New(errs.NotFound, "there is no town yet").WithHint("make one with: gastown town create NAME")
	case 1:
		return towns[0].Name, nil
	}
	return "", errs.New(errs.Invalid, "there are %d towns: which one?", len(towns)).WithHint("give --town NAME; gastown town list shows them")
}

// placeOf returns the town of a rig. Without a rig it is the only town, whose
// only rig the server then takes.
func placeOf(ctx context.Context, c *client.Client, townName, rig string) (inTown, name string, err error) {
	if townName != "" {
		return townName, rig, nil
	}
	if rig == "" {
		inTown, err = oneTown(ctx, c, "")
		return inTown, "", err
	}
	places, err := c.FindRig(ctx, rig)
	if err != nil {
		return "", "", err
	}
	switch len(places) {
	case 0:
		return "", "", errs.New(errs.NotFound, "no town has a rig %s", short40(rig)).WithHint("gastown rig list shows those that exist")
	case 1:
		return places[0].Town, places[0].Rig, nil
	}
	var names []string
	for _, p := range places[:min(len(places), 5)] {
		names = append(names, p.Town)
	}
	return "", "", errs.New(errs.Invalid, "%d towns have a rig %s: %s", len(places), short40(rig), strings.Join(names, ", ")).
		WithHint("give --town, too")
}

// isBead reports whether an argument has the form of a bead's id.
func isBead(s string) bool { return town.ValidBeadID(s) == nil }

// assignments parses repeated key=value flags.
func assignments(flag string, values []string) (map[string]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, v := range values {
		key, val, ok := strings.Cut(v, "=")
		if !ok || key == "" {
			return nil, errs.New(errs.Invalid, "%s %q is not key=value", flag, short40(v))
		}
		if _, dup := out[key]; dup {
			return nil, errs.New(errs.Invalid, "%s names %s twice", flag, short40(key))
		}
		if _, err := town.Lookup(key); err != nil {
			return nil, err
		}
		out[key] = val
	}
	return out, nil
}

// yes says on stderr that something was done, for commands without a result.
func (a *invocation) yes(format string, args ...any) error {
	_, err := fmt.Fprintf(a.env.Err, format+"\n", args...)
	return err
}
