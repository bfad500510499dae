package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"gastown/internal/api"
	"gastown/internal/app"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// cleanUpFor bounds what a demo does after it has ended, however it ended.
const cleanUpFor = 20 * time.Second

// demoFlags are the flags of demo as given.
type demoFlags struct {
	dir, repo, target, agent                   string
	provider, baseURL, keyFile, model, presets string
	sandbox, image, isolation                  string
	limit                                      time.Duration
	allowHTTP                                  bool
}

func (a *invocation) demoCmd() *cobra.Command {
	var f demoFlags
	cmd := a.withJSON(a.command("demo", "Watch a town work: a server, a repository, and agents without a model", func(ctx context.Context, _ []string) error {
		return a.demo(ctx, f)
	}))
	cmd.Long = `Start a server of its own on a free port of this machine, give a town a small
repository and work on it, and tell what happens until all work is merged and
the sandbox is asleep. The agent is a scripted one, so that no model is needed.

With --repo and --target the work goes to a repository of yours, with --agent
(and --provider, --base-url, --key-file, --model) a real agent does it.`
	fl := cmd.Flags()
	fl.StringVar(&f.dir, "dir", "", "keep everything in this new directory")
	fl.StringVar(&f.repo, "repo", "", "URL of a repository of yours to work on")
	fl.StringVar(&f.target, "target", "", "with --repo: the branch that the work lands on")
	fl.StringVar(&f.agent, "agent", "scripted", "preset of the agent")
	fl.StringVar(&f.sandbox, "sandbox", "process", "where agents run: process or docker")
	fl.StringVar(&f.isolation, "isolation", "", "process: auto, bwrap or none, as of serve; auto, or none when the scripted agent works on the demo's own repository")
	fl.StringVar(&f.image, "image", "gastown:local", "docker: image of sandboxes; 'make image' builds one")
	fl.StringVar(&f.presets, "presets", "", "directory with more agent presets (*.toml)")
	fl.StringVar(&f.provider, "provider", "house", "name for the model provider, with --base-url")
	fl.StringVar(&f.baseURL, "base-url", "", "where the model provider's API is")
	fl.StringVar(&f.keyFile, "key-file", "", "file with the provider's key")
	fl.StringVar(&f.model, "model", "", "name of the model")
	fl.BoolVar(&f.allowHTTP, "allow-http", false, "permit plain http to the provider on another machine")
	fl.DurationVar(&f.limit, "limit", time.Minute, "give up after this time")
	return cmd
}

// demo is one demonstration.
type demo struct {
	a     *invocation
	f     demoFlags
	begin time.Time
	out   io.Writer // where the story is told
	data  string    // the server's data directory
	repo  string    // URL or path of the repository
	own   bool      // the repository is ours: the sample

	remove     []string // directories to remove at the end
	unlessDone string   // another, to remove unless the demo reached its end

	child *child
	c     *client.Client
	beads []api.Bead
	names map[string]string // bead id to what the story calls it
	story *story
}

// demoTown is the name of the demo's town, demoRig that of its rig.
const (
	demoTown = "demo"
	demoRig  = "textkit"
)

func (f demoFlags) check() error {
	if (f.repo == "") != (f.target == "") {
		return errs.New(errs.Invalid, "--repo and --target belong together").
			WithHint("name a branch of your repository that the demo's work may land on")
	}
	if f.limit <= 0 {
		return errs.New(errs.Invalid, "--limit must be more than nothing")
	}
	return nil
}

// server is the configuration of the demo's server, as far as its sandboxes need it.
func (f demoFlags) server(data string) app.Config {
	return app.Config{Data: data, Sandbox: f.sandbox, Containers: app.Containers{Image: f.image}}
}

func (a *invocation) demo(ctx context.Context, f demoFlags) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	if f.isolation == "" {
		f.isolation = a.isolation()
		if f.repo == "" && f.agent == "scripted" {
			f.isolation = "none" // all that runs is ours, and the gates find the user's build cache
		}
	}
	d := &demo{a: a, f: f, begin: a.env.Now(), out: a.env.Out, own: f.repo == "", names: map[string]string{}}
	if a.json {
		d.out = io.Discard
	}
	if err := d.places(); err != nil {
		return errors.Join(err, d.clean(false))
	}
	defer func() { err = errors.Join(err, d.clean(err == nil)) }()
	limited, cancel := context.WithTimeout(ctx, f.limit)
	defer cancel()
	err = d.run(limited)
	if err == nil {
		return d.report(ctx)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	d.diagnose(context.WithoutCancel(ctx))
	if limited.Err() != nil {
		return errs.New(errs.Unavailable, "the demo was not done after %s", f.limit).
			WithHint("what is left is listed above; on a slow machine give it more time with --limit 3m")
	}
	return err
}

// run does everything up to the sleeping sandbox.
func (d *demo) run(ctx context.Context) error {
	if d.own {
		if err := writeSample(ctx, d.repo); err != nil {
			return err
		}
	}
	var err error
	if d.child, err = startServer(ctx, d.data, d.f); err != nil {
		return err
	}
	if d.c, err = client.New(client.Options{URL: d.child.url, Token: d.child.token, Agent: "gastown/" + d.a.version(), User: d.a.user()}); err != nil {
		return err
	}
	d.tell("the server is up on %s", d.child.url)
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.work(ctx); err != nil {
		return err
	}
	d.story = newStory(d)
	if err := d.c.Events(ctx, demoTown, 0, d.story.event); err != nil {
		return err
	}
	return d.story.failure()
}

// places decides where everything lives.
func (d *demo) places() error {
	if d.f.dir != "" {
		dir, err := filepath.Abs(d.f.dir)
		if err == nil {
			err = os.Mkdir(dir, 0o700)
		}
		if err != nil {
			return errs.New(errs.Conflict, "--dir %s: %v", d.f.dir, err).WithHint("name a directory that does not exist yet")
		}
		d.data, d.repo = filepath.Join(dir, "data"), filepath.Join(dir, "textkit.git")
	} else {
		data, err := os.MkdirTemp("", "gastown-demo-")
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "making a temporary directory")
		}
		d.data, d.remove = data, []string{data}
	}
	if !d.own {
		d.repo = d.f.repo
	} else if d.f.dir == "" {
		// The repository outlives the demo, so that one can look at it.
		dir, err := os.MkdirTemp("", "gastown-demo-repo-")
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "making a temporary directory")
		}
		d.repo, d.unlessDone = filepath.Join(dir, "textkit.git"), dir
	}
	return nil
}

// prepare makes provider, town and rig.
func (d *demo) prepare(ctx context.Context) error {
	settings := map[string]string{"agent": d.f.agent}
	if d.f.baseURL != "" {
		p := api.CreateProvider{Kind: "openai-compatible", Name: d.f.provider, BaseURL: d.f.baseURL, AllowHTTP: d.f.allowHTTP}
		if d.f.model != "" {
			p.Models = []string{d.f.model}
			settings["model"] = d.f.model
		}
		if d.f.keyFile != "" {
			key, err := d.a.secretFile("key", d.f.keyFile)
			if err != nil {
				return err
			}
			p.Key = key
		}
		if _, err := d.c.AddProvider(ctx, p); err != nil {
			return err
		}
		settings["provider"] = d.f.provider
	}
	// Pauses are shortened, so that nobody waits for a demo; nothing else is special.
	_, err := d.c.CreateTown(ctx, api.CreateTown{Name: demoTown, Settings: map[string]string{
		"work.backoff": "1s", "infra.backoff_min": "1s", "sandbox.grace": "3s", "polecats.per_rig": "6"}})
	if err != nil {
		return err
	}
	d.tell("there is a town: %s", demoTown)
	rig := api.AddRig{Name: demoRig, Prefix: "tk", URL: d.repo, Target: "main", Settings: settings,
		Gates: []api.Gate{{Name: "vet", Command: "go vet ./..."}, {Name: "test", Command: "go test ./..."}}}
	if d.f.sandbox != "process" || d.f.isolation != "none" {
		// What a container has, it has from its image, and Go is much; a box begins
		// without a build cache.
		rig.Gates = []api.Gate{{Name: "files", Command: "test -s main.go && test -s commands.go && ! grep -rn '^<<<<<<<' ."}}
	}
	if !d.own {
		rig.Target, rig.Gates = d.f.target, nil
	}
	r, err := d.c.AddRig(ctx, demoTown, rig)
	if err != nil {
		return err
	}
	d.tell("it has a rig: %s, %s at %s, %d gates", r.Name, r.Target, commit(r.Tip), len(r.Gates))
	return nil
}

// work gives the town its beads. All are there before the first begins, so that
// those which touch the same line start from the same commit.
func (d *demo) work(ctx context.Context) error {
	tasks := sampleTasks()
	if !d.own {
		tasks = guestTasks()
	}
	ids := map[string]string{}
	for _, t := range tasks {
		b := api.CreateBead{Rig: demoRig, Title: t.title, Body: t.body, Staged: true}
		if t.after != "" {
			b.BlockedBy = []string{ids[t.after]}
		}
		made, err := d.c.CreateBead(ctx, demoTown, b)
		if err != nil {
			return err
		}
		ids[t.name] = made.ID
		d.beads = append(d.beads, made)
		d.names[made.ID] = made.Title
	}
	for _, b := range d.beads {
		if err := d.c.Sling(ctx, b.ID); err != nil {
			return err
		}
	}
	return nil
}

// clean stops the sandbox, if one is left, then the server, and removes what is
// not to be kept. It does so however the demo ended.
func (d *demo) clean(done bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpFor)
	defer cancel()
	var all []error
	if d.child != nil {
		if d.c != nil {
			d.settle(ctx)
		}
		all = append(all, d.child.stop(ctx), app.StopSandboxes(ctx, d.f.server(d.data), time.Second, d.f.dir == ""))
	}
	if !done && d.unlessDone != "" {
		d.remove = append(d.remove, d.unlessDone)
	}
	for _, dir := range d.remove {
		all = append(all, os.RemoveAll(dir))
	}
	return errors.Join(all...)
}

// settle lets a sandbox that is still awake end in order. It is a courtesy:
// what does not end is killed after the server.
func (d *demo) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanUpFor/2)
	defer cancel()
	for {
		t, err := d.c.Town(ctx, demoTown)
		if err != nil || t.Sandbox.State == "asleep" {
			return
		}
		if t.Mode != "sleeping" && d.c.Pause(ctx, demoTown, true) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// tell adds a line to the story.
func (d *demo) tell(format string, args ...any) {
	d.line(d.a.env.Now(), format, args...)
}

func (d *demo) line(at time.Time, format string, args ...any) {
	// A story that can't be told changes nothing of what happens.
	_, _ = fmt.Fprintf(d.out, "%s  %s\n", d.a.paint(dim, fmt.Sprintf("%5.1fs", max(0, at.Sub(d.begin).Seconds()))), fmt.Sprintf(format, args...))
}
