package runner

import (
	"context"
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

// hubAccess is how the runner's own git processes reach the hub: through the
// runner's loopback, with a secret that goes by environment.
type hubAccess struct {
	base   string // http://127.0.0.1:port/git/-
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

// rigs keeps one bare clone per rig, shared by its worktrees.
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
// must be valid. The configuration is written anew at each boot, because
// agents can write to the clone.
func (r *rigs) get(name string) (*rigClone, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.clone[name]; c != nil {
		return c, nil
	}
	c := &rigClone{name: name, dir: filepath.Join(r.root, name+".git"), of: r}
	for _, d := range []string{"objects/info", "objects/pack", "refs/heads", "refs/tags", "worktrees"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the clone of rig %s", name)
		}
	}
	for file, text := range map[string]string{
		"config": cloneConfig(), "config.worktree": "[core]\n\tbare = true\n", "HEAD": "ref: refs/heads/main\n",
	} {
		if err := writeFile(filepath.Join(c.dir, file), text); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the clone of rig %s", name)
		}
	}
	r.clone[name] = c
	return c, nil
}

// cloneConfig is shared by all worktrees of a rig. core.bare is not in it but
// in config.worktree: else a worktree would count as bare. Each worktree has a
// remote of its own.
func cloneConfig() string {
	var b strings.Builder
	b.WriteString("[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tlogAllRefUpdates = true\n" +
		"\thooksPath = /dev/null\n\tfsmonitor = false\n")
	if runtime.GOOS == "darwin" {
		b.WriteString("\tignorecase = true\n\tprecomposeunicode = true\n")
	}
	b.WriteString("[extensions]\n\tworktreeConfig = true\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n" +
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

// push sends a commit to a reference of the hub, on behalf of a run.
func (c *rigClone) push(ctx context.Context, run string, epoch int64, commit, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, hubTimeout)
	defer cancel()
	_, err := c.of.git.Do(ctx, c.of.hub.command(c.dir, run, epoch, "push", "--quiet", "--no-verify",
		"--recurse-submodules=no", "--", c.of.hub.url(c.name), "+"+commit+":"+ref))
	return err
}
