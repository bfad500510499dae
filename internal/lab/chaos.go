package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// Names of the town and the rig that suffer, and the least number of each kill.
const (
	chaosTown = "chaos"
	chaosRig  = "web"
	minKills  = 3
)

// chaosLease is the lease of runs and sandboxes: a twentieth of the default, as
// are the other intervals of chaosSettings.
const chaosLease = 4500 * time.Millisecond

// chaosSettings are the server's. What bounds starts of processes is not
// shortened as much, because the machine is not faster.
func chaosSettings() map[string]string {
	return map[string]string{
		"agent": "scripted", "lease": chaosLease.String(), "checkpoint.interval": "2250ms",
		"infra.backoff_min": "1500ms", "infra.backoff_max": "45s", "work.backoff": "1500ms,3s,6s,15s,30s",
		"alarm.active_interval": "250ms", "alarm.idle_interval": "15s", "fetch.interval": "3s",
		"sandbox.grace": "6s", "sandbox.hello_timeout": "15s", "sandbox.stop_grace": "1s", "sandbox.drain_timeout": "3s",
		"stuck.nudge_after": "45s", "stuck.restart_after": "135s", "run.time_limit": "6m", "token.refresh_interval": "3m",
		"polecats.per_rig": "6",
		// Beads whose agents are killed again and again are charged at last; who pays is not what is tested here.
		"work.max_attempts": "50",
	}
}

// ChaosOptions say how much work there is and for how long everything goes wrong.
type ChaosOptions struct {
	Place *Place
	Beads int
	For   time.Duration // of faults; as long again, or five minutes, may pass until all is quiet
	Seed  uint64        // of all choices; the moments are those of the real clock
	Note  func(format string, args ...any)
}

// Chaos is what became of the work.
type Chaos struct {
	Beads         int      `json:"beads"` // acknowledged
	Merged        int      `json:"merged"`
	MergedTwice   int      `json:"merged_twice"`
	LostCommits   int      `json:"lost_commits"` // acknowledged, or other people's, and not in the target
	LostAcks      int      `json:"lost_acks"`    // acknowledged commands without effect, or with two
	ServerKills   int      `json:"server_kills"`
	RunnerKills   int      `json:"runner_kills"`
	AgentKills    int      `json:"agent_kills"`
	Stalls        int      `json:"stalls"` // longer than the lease
	SandboxStarts int64    `json:"sandbox_starts"`
	ElapsedMS     int64    `json:"elapsed_ms"`
	Violations    []string `json:"violations"`

	Seed           uint64 `json:"seed"`
	DisksDeleted   int    `json:"disks_deleted"`
	OutboxFills    int    `json:"outbox_fills"` // runs that lost output because an outbox was full, and say so
	RemoteOutages  int    `json:"remote_outages"`
	ForeignCommits int    `json:"foreign_commits"`
	Repeats        int    `json:"repeats"` // commands sent more than once
}

// chaos is one run of the tool.
type chaos struct {
	o      ChaosOptions
	begun  time.Time
	data   string
	town   string // id
	keeper *keeper
	remote *remote
	flood  string // while this file exists, scripts print its worth

	mu         sync.Mutex // guards the fields below
	out        Chaos
	work       map[int]*order            // by number
	seen       map[string]map[int]string // commits accepted by the server, by bead and attempt
	closed     map[string]string         // commits of beads that were closed once
	losses     int                       // of sandboxes, since progressed changed
	progressed int                       // accepted verdicts
	bad        map[string]bool           // violations said already
	others     []string                  // commits of other people
}

// RunChaos lets everything go wrong, then looks at what remains. The result is
// filled as far as the run came. An error means that the tool itself failed or
// was broken off; what Gastown did wrong is in Violations.
func RunChaos(ctx context.Context, o ChaosOptions) (out Chaos, err error) {
	if err := chaosPossible(); err != nil {
		return out, err
	}
	c := &chaos{o: o, begun: time.Now(), data: filepath.Join(o.Place.Dir, "data"), flood: filepath.Join(o.Place.Dir, "flood"),
		work: map[int]*order{}, seen: map[string]map[int]string{}, closed: map[string]string{}, bad: map[string]bool{}}
	defer func() {
		err = errors.Join(err, c.end())
		out = c.result()
	}()
	if err := c.begin(ctx); err != nil {
		return out, err
	}
	if err := c.suffer(ctx); err != nil {
		return out, err
	}
	quiet := c.settle(ctx)
	if ctx.Err() == nil {
		err = c.check(ctx, quiet)
	}
	return out, errors.Join(err, errs.Wrap(errs.Unavailable, ctx.Err(), "the chaos was broken off"))
}

// begin makes remote, server, town and rig.
func (c *chaos) begin(ctx context.Context) (err error) {
	if c.remote, err = newRemote(ctx, filepath.Join(c.o.Place.Dir, "remote")); err != nil {
		return err
	}
	args := []string{"--log-level", "debug"}
	for k, v := range chaosSettings() {
		args = append(args, "--set", k+"="+v)
	}
	c.keeper = keep(c.o.Place, c.data, args, func(text string) { c.violation("%s", text) })
	return c.ask(ctx, func(ctx context.Context, srv *client.Client) error {
		t, err := srv.CreateTown(ctx, api.CreateTown{Name: chaosTown})
		if err != nil {
			return err
		}
		c.town = t.ID
		_, err = srv.AddRig(ctx, chaosTown, api.AddRig{Name: chaosRig, Prefix: chaosRig, URL: c.remote.url(), Target: "main",
			Gates: []api.Gate{{Name: "whole", Command: chaosGate}}})
		return err
	})
}

// end stops everything that is left.
func (c *chaos) end() error {
	var all []error
	if c.keeper != nil {
		all = append(all, c.keeper.stop())
	}
	if c.remote != nil {
		all = append(all, c.remote.stop())
	}
	return errors.Join(append(all, endProcesses(c.o.Place.Dir))...)
}

// suffer has work, other people and faults go on side by side until the time is over.
func (c *chaos) suffer(ctx context.Context) error {
	faults, over := context.WithTimeout(ctx, c.o.For)
	defer over()
	var all sync.WaitGroup
	var orderErr error
	all.Go(func() { orderErr = c.order(ctx) })
	all.Go(func() { c.disturb(faults) })
	watching, done := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { c.watch(watching) })
	watch.Go(func() { c.progress(watching) })
	c.faults(ctx, faults)
	all.Wait()
	done()
	watch.Wait()
	if ctx.Err() != nil {
		return errs.Wrap(errs.Unavailable, ctx.Err(), "the chaos was broken off")
	}
	return orderErr
}

// ask calls f until it succeeds or the server's word is final.
func (c *chaos) ask(ctx context.Context, f func(context.Context, *client.Client) error) error {
	for {
		up, err := c.keeper.ready(ctx)
		if err != nil {
			return err
		}
		try, cancel := context.WithTimeout(ctx, askFor)
		err = f(try, up.client)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		switch errs.KindOf(err) {
		case errs.Invalid, errs.NotFound, errs.Conflict, errs.Unauthorized, errs.Forbidden:
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// askFor bounds one try of a request: servers are stopped in the middle of it.
const askFor = 10 * time.Second

// violation records what must not happen, once.
func (c *chaos) violation(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.bad[text] {
		c.bad[text] = true
		c.out.Violations = append(c.out.Violations, text)
	}
}

// count changes the result.
func (c *chaos) count(f func(*Chaos)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.out)
}

func (c *chaos) result() Chaos {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.out
	out.Seed = c.o.Seed
	out.ElapsedMS = time.Since(c.begun).Milliseconds()
	out.Violations = append([]string{}, c.out.Violations...)
	sort.Strings(out.Violations)
	return out
}

// progress says every few seconds how far things are.
func (c *chaos) progress(ctx context.Context) {
	for wait(ctx, 5*time.Second) == nil {
		c.say("")
	}
}

func (c *chaos) say(what string) {
	c.mu.Lock()
	o, closed := c.out, len(c.closed)
	c.mu.Unlock()
	c.o.Note("%4.0f s: %d of %d beads made, %d closed; killed %d servers, %d runners, %d agents; %d stalls, %d disks deleted%s",
		time.Since(c.begun).Seconds(), o.Beads, c.o.Beads, closed, o.ServerKills, o.RunnerKills, o.AgentKills, o.Stalls, o.DisksDeleted, what)
}

// random returns the source of choices of one part of the tool.
func (c *chaos) random(part uint64) *rand.Rand { return rand.New(rand.NewPCG(c.o.Seed, part)) }

// between draws a duration.
func between(r *rand.Rand, lo, hi time.Duration) time.Duration {
	return lo + time.Duration(r.Int64N(int64(hi-lo)+1))
}

// touch writes a small file.
func touch(path, text string) error {
	return errs.Wrap(errs.Unavailable, os.WriteFile(path, []byte(text), 0o600), "writing a file")
}
