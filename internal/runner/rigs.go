package runner

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
)

// hubTimeout bounds a fetch or push with the hub.
const hubTimeout = 10 * time.Minute

// localTimeout bounds a git call that stays on the disk.
const localTimeout = 5 * time.Minute

// hubAccess is how git processes reach the hub: through the runner's loopback,
// with a secret that goes by environment. The clones' have the runner's, those of
// a worktree their run's.
type hubAccess struct {
	base   string // http://127.0.0.1:port/git/-, or /git/<run>
	secret string
}

func (h hubAccess) url(rig string) string { return h.base + "/" + rig + ".git" }

// command is a git call on the hub for a run; run is "" for none.
func (h hubAccess) command(dir, run string, epoch int64, args ...string) git.Cmd {
	key := "http." + h.base + "/.extraHeader"
	c := git.Cmd{
		Dir: dir, GitDir: dir, Args: args,
		Env: []string{"GIT_ALLOW_PROTOCOL=http"},
		Config: []git.Setting{
			{Key: key}, // forgets what the repository says
			{Key: key, Value: "Authorization: Bearer " + h.secret},
			{Key: "http.proxy", Value: ""},
			{Key: "http.followRedirects", Value: "false"},
			{Key: "credential.helper", Value: ""},
		},
	}
	if run != "" {
		c.Config = append(c.Config,
			git.Setting{Key: key, Value: headerRun + ": " + run},
			git.Setting{Key: key, Value: headerEpoch + ": " + strconv.FormatInt(epoch, 10)})
	}
	return c
}

// rigs keeps one bare clone per rig, whose objects its worktrees share.
type rigs struct {
	root string
	git  *git.Git
	hub  hubAccess

	mu    sync.Mutex // guards clone
	clone map[string]*rigClone
}

func newRigs(root string, g *git.Git, hub hubAccess) *rigs {
	return &rigs{root: root, git: g, hub: hub, clone: map[string]*rigClone{}}
}

// rigClone is the bare clone of a rig.
type rigClone struct {
	name string
	dir  string
	of   *rigs
	fill sync.Mutex // held during a fetch: one at a time
}

// get returns the clone of a rig, making an empty one when there is none. name
// must be valid. The configuration is written anew at each boot, because where
// nothing keeps agents apart from the runner they can write to the clone.
func (r *rigs) get(name string) (*rigClone, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.clone[name]; c != nil {
		return c, nil
	}
	c := &rigClone{name: name, dir: filepath.Join(r.root, name+".git"), of: r}
	for _, d := range []string{"objects/info", "objects/pack", "refs/heads", "refs/tags"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the clone of rig %s", name)
		}
	}
	for file, text := range map[string]string{
		"config": gitConfig() + "[core]\n\tbare = true\n", "HEAD": "ref: refs/heads/main\n",
	} {
		if err := writeFile(filepath.Join(c.dir, file), text); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the clone of rig %s", name)
		}
	}
	r.clone[name] = c
	return c, nil
}

// gitConfig is what every repository here has.
func gitConfig() string {
	var b strings.Builder
	b.WriteString("[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tlogAllRefUpdates = true\n" +
		"\thooksPath = /dev/null\n\tfsmonitor = false\n")
	if runtime.GOOS == "darwin" {
		b.WriteString("\tignorecase = true\n\tprecomposeunicode = true\n")
	}
	b.WriteString("[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n" +
		"[protocol \"ext\"]\n\tallow = never\n[advice]\n\tdetachedHead = false\n")
	return b.String()
}

// writeFile replaces a file whole or not at all, following no link that stands there.
func writeFile(path, text string) error {
	tmp := path + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// has reports whether the clone holds a commit.
func (c *rigClone) has(ctx context.Context, oid string) bool {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	_, err := c.of.git.RunBare(ctx, c.dir, "cat-file", "-e", oid+"^{commit}")
	return err == nil
}

// ensure fetches a commit from the hub unless it is here, and keeps it under a
// local reference, which also tells later fetches what need not be sent.
func (c *rigClone) ensure(ctx context.Context, oid, bead string) error {
	c.fill.Lock()
	defer c.fill.Unlock()
	if c.has(ctx, oid) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hubTimeout)
	defer cancel()
	spec := "+" + oid + ":refs/gastown/have/" + bead
	_, err := c.of.git.Do(ctx, c.of.hub.command(c.dir, "", 0, "fetch", "--quiet", "--no-tags",
		"--no-write-fetch-head", "--no-recurse-submodules", "--", c.of.hub.url(c.name), spec))
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "fetching %s of rig %s from the hub", oid, c.name)
	}
	return nil
}

// adopt copies a commit that was made in a worktree, with what is not here of its
// history after start, and keeps it under a reference. Only a stream of objects
// passes between the two repositories: the clone's git reads nothing else of what
// an agent can write.
func (c *rigClone) adopt(ctx context.Context, w *worktree, start, commit, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	pr, pw := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		pack := w.cmd("pack-objects", "--revs", "--local", "--stdout", "-q")
		pack.Stdin, pack.Stdout = strings.NewReader(commit+"\n^"+start+"\n"), pw
		_, err := w.do(ctx, pack)
		packed <- errors.Join(err, pw.CloseWithError(err))
	}()
	_, err := c.of.git.Do(ctx, git.Cmd{Dir: c.dir, GitDir: c.dir, Args: []string{"index-pack", "--stdin"}, Stdin: pr})
	err = errors.Join(err, pr.CloseWithError(io.ErrClosedPipe), <-packed)
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "keeping a checkpoint on the disk")
	}
	_, err = c.of.git.RunBare(ctx, c.dir, "update-ref", ref, commit)
	return err
}
