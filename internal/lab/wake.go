package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// stepFor bounds one step of one town: a bead, or falling asleep.
const stepFor = time.Minute

// restFor passes before each sling, so that it does not meet what the last run
// left to be tidied up, or a spare worktree in the making.
const restFor = time.Second

// WakeOptions say how to measure the way from sling to agent.
type WakeOptions struct {
	Place      *Place
	Towns      int
	Concurrent int // towns worked on at once
	Files      int // in the repository
	Args       []string
	Note       func(format string, args ...any)
}

// Quantiles of a number of durations, in milliseconds.
type Quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
	N   int     `json:"n"`
}

// Delay is how long it takes from sending `sling` until the runner has the
// document that names the run, and until the server was told of the agent's process.
type Delay struct {
	Desired Quantiles `json:"desired_ms"`
	Spawned Quantiles `json:"spawned_ms"`
}

// Wake is the delay for a town that never ran, for one that sleeps, and for one
// that is awake. Cold contains the first clone of the repository.
type Wake struct {
	Towns      int    `json:"towns"`
	Concurrent int    `json:"concurrent"`
	Cold       Delay  `json:"cold"`
	Asleep     Delay  `json:"asleep"`
	Awake      Delay  `json:"awake"`
	Errors     int    `json:"errors"`
	FirstError string `json:"first_error,omitempty"`
}

// sample is what one sling showed.
type sample struct{ desired, spawned time.Duration }

// waker measures town after town.
type waker struct {
	o WakeOptions
	c *client.Client

	mu    sync.Mutex // guards the fields below
	got   [3][]sample
	fails []error
}

// MeasureWake gives each town three beads: the first wakes a town without a
// disk, the second one that went to sleep, the third finds it awake. The agent
// is the scripted one and changes nothing, so that the base stays present.
func MeasureWake(ctx context.Context, o WakeOptions) (out Wake, err error) {
	repo := filepath.Join(o.Place.Dir, "wake.git")
	if err := writeRepository(ctx, repo, o.Files); err != nil {
		return out, err
	}
	args := append([]string{"--max-awake", strconv.Itoa(2 * o.Concurrent), "--set", "max_starting=" + strconv.Itoa(2*o.Concurrent),
		"--set", "agent=scripted", "--log-level", "debug"}, o.Args...)
	s, err := o.Place.Serve(ctx, filepath.Join(o.Place.Dir, "wake"), args...)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	w := &waker{o: o}
	if w.c, err = s.Client(); err != nil {
		return out, err
	}
	towns := make(chan int)
	var all sync.WaitGroup
	for range o.Concurrent {
		all.Go(func() {
			for i := range towns {
				w.record(w.town(ctx, fmt.Sprintf("wake-%d", i), repo))
			}
		})
	}
	for i := 0; i < o.Towns && ctx.Err() == nil; i++ {
		if i%50 == 0 {
			o.Note("%d of %d towns", i, o.Towns)
		}
		towns <- i
	}
	close(towns)
	all.Wait()
	if ctx.Err() != nil {
		return out, errs.Wrap(errs.Unavailable, ctx.Err(), "the measurement was broken off")
	}
	out = Wake{Towns: o.Towns, Concurrent: o.Concurrent, Cold: delay(w.got[0]), Asleep: delay(w.got[1]), Awake: delay(w.got[2]), Errors: len(w.fails)}
	if len(w.fails) > 0 {
		out.FirstError = w.fails[0].Error()
	}
	return out, nil
}

func (w *waker) record(got []sample, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, s := range got {
		w.got[i] = append(w.got[i], s)
	}
	if err != nil {
		w.fails = append(w.fails, err)
	}
}

// town lives the short life of one town and returns what was seen of it.
func (w *waker) town(ctx context.Context, name, repo string) (got []sample, err error) {
	if _, err := w.c.CreateTown(ctx, api.CreateTown{Name: name, Settings: map[string]string{"sandbox.grace": "10m"}}); err != nil {
		return nil, err
	}
	defer func() {
		// In the background: the next town need not wait for the disk.
		err = errors.Join(err, w.c.Pause(context.WithoutCancel(ctx), name, true), w.asleep(context.WithoutCancel(ctx), name),
			w.c.DeleteTown(context.WithoutCancel(ctx), name))
	}()
	if _, err := w.c.AddRig(ctx, name, api.AddRig{Name: "web", Prefix: strings.ReplaceAll(name, "-", ""), URL: repo, Target: "main"}); err != nil {
		return nil, err
	}
	for step := range 3 {
		if step == 1 {
			if err := w.sleep(ctx, name); err != nil {
				return got, err
			}
		}
		s, err := w.sling(ctx, name, step)
		if err != nil {
			return got, err
		}
		got = append(got, s)
	}
	return got, nil
}

// sleep puts a town to sleep and lets it go on, so that the next work wakes it.
func (w *waker) sleep(ctx context.Context, name string) error {
	if err := w.c.Pause(ctx, name, true); err != nil {
		return err
	}
	if err := w.asleep(ctx, name); err != nil {
		return err
	}
	return w.c.Resume(ctx, name, 0)
}

func (w *waker) asleep(ctx context.Context, name string) error {
	return until(ctx, name+" sleeps", func() (bool, error) {
		t, err := w.c.Town(ctx, name)
		return err == nil && t.Sandbox.State == "asleep", err
	})
}

// sling releases a bead and waits until its run is over.
func (w *waker) sling(ctx context.Context, name string, step int) (sample, error) {
	b, err := w.c.CreateBead(ctx, name, api.CreateBead{Rig: "web", Title: fmt.Sprintf("step %d", step), Staged: true, Body: "```sh end=no_change\ntrue\n```\n"})
	if err != nil {
		return sample{}, err
	}
	if err := wait(ctx, restFor); err != nil {
		return sample{}, err
	}
	begin := time.Now()
	if err := w.c.Sling(ctx, b.ID); err != nil {
		return sample{}, err
	}
	spawned, err := w.followed(ctx, name, b.ID)
	if err != nil {
		return sample{}, err
	}
	received, err := w.received(ctx, b.ID)
	return sample{desired: received.Sub(begin), spawned: spawned.Sub(begin)}, err
}

// followed waits for the end of a bead's run, by the stream of events, so that
// nobody asks while it is measured. It returns when the agent was spawned.
func (w *waker) followed(ctx context.Context, name, bead string) (spawned time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepFor)
	defer cancel()
	err = w.c.Events(ctx, name, 0, func(e api.LedgerEntry) error {
		switch {
		case !strings.HasPrefix(e.Subject, bead):
		case e.Kind == "run.spawned":
			spawned = e.At
		case e.Kind == "run.ended" && spawned.IsZero():
			return errs.New(errs.Internal, "%s: the run ended without an agent: %s", bead, e.Text)
		case e.Kind == "run.ended":
			return client.ErrStop
		}
		return nil
	})
	return spawned, err
}

// received is when the runner had the document with the run, by its own word.
func (w *waker) received(ctx context.Context, bead string) (time.Time, error) {
	var at time.Time
	err := until(ctx, "the transcript of "+bead, func() (bool, error) {
		items, err := w.c.Transcript(ctx, bead, 0, 0)
		for _, i := range items {
			var e struct {
				Status string `json:"status"`
			}
			if i.Kind == "lifecycle" && json.Unmarshal(i.Body, &e) == nil && e.Status == "received" {
				at = i.At
				return true, nil
			}
		}
		return false, err
	})
	return at, err
}

// until asks every 20 ms.
func until(ctx context.Context, what string, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, stepFor)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "waited in vain until %s", what)
		}
	}
}

func delay(s []sample) Delay {
	desired, spawned := make([]time.Duration, len(s)), make([]time.Duration, len(s))
	for i, x := range s {
		desired[i], spawned[i] = x.desired, x.spawned
	}
	return Delay{quantiles(desired), quantiles(spawned)}
}

// quantiles sorts d.
func quantiles(d []time.Duration) Quantiles {
	if len(d) == 0 {
		return Quantiles{}
	}
	slices.Sort(d)
	at := func(q float64) float64 { return ms(d[min(len(d)-1, int(q*float64(len(d))))]) }
	return Quantiles{P50: at(0.50), P99: at(0.99), Max: ms(d[len(d)-1]), N: len(d)}
}

// writeRepository makes a bare repository with so many files of about 2 KiB.
func writeRepository(ctx context.Context, bare string, files int) error {
	work := bare + ".work"
	for i := range files {
		path := filepath.Join(work, fmt.Sprintf("dir%d", i%10), fmt.Sprintf("file%d.go", i))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			text := "package dir\n"
			for n := range 60 {
				text += fmt.Sprintf("// line %d of file %d says nothing\n", n, i)
			}
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "writing a repository")
		}
	}
	for _, args := range [][]string{
		{"init", "-q", "--bare", bare}, {"--git-dir=" + bare, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"-C", work, "init", "-q"}, {"-C", work, "symbolic-ref", "HEAD", "refs/heads/main"}, {"-C", work, "add", "-A"},
		{"-C", work, "commit", "-q", "-m", "a beginning"}, {"-C", work, "push", "-q", bare, "main"},
	} {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=lab", "GIT_AUTHOR_EMAIL=lab@localhost",
			"GIT_COMMITTER_NAME=lab", "GIT_COMMITTER_EMAIL=lab@localhost")
		if out, err := cmd.CombinedOutput(); err != nil {
			return errs.New(errs.Internal, "git %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	return os.RemoveAll(work)
}
