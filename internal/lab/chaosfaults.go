package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// fault is one thing that goes wrong. It reports whether it did: there may be
// nothing to break at the moment.
type fault struct {
	name  string
	needs func(Chaos) bool // it has not happened often enough
	do    func(context.Context, *rand.Rand) bool
}

// faults goes round after round through kills in random order, and one of the
// slower faults. When the time is over it ends, at once unless something has
// not happened often enough yet: then it does that, for half as long again.
func (c *chaos) faults(ctx, during context.Context) {
	late, over := context.WithTimeout(ctx, c.o.For*3/2)
	defer over()
	random := c.random(2)
	for round := 0; late.Err() == nil; round++ {
		for _, f := range c.round(random, round) {
			enough := during.Err() != nil && !f.needs(c.result())
			if enough || wait(late, between(random, 200*time.Millisecond, 1800*time.Millisecond)) != nil {
				continue
			}
			for !f.do(late, random) && late.Err() == nil && f.needs(c.result()) {
				if wait(late, 50*time.Millisecond) != nil {
					break
				}
			}
		}
		if r := c.result(); during.Err() != nil && min(r.ServerKills, r.RunnerKills, r.AgentKills) >= minKills && r.Stalls > 0 {
			return
		}
	}
}

// round is each kill once and one of the slower faults.
func (c *chaos) round(random *rand.Rand, n int) []fault {
	rare := func(Chaos) bool { return false }
	slow := []fault{
		{"stall of the server", func(r Chaos) bool { return r.Stalls == 0 }, c.stallServer},
		{"stall of the runner", rare, c.stallRunner},
		{"full outbox", func(Chaos) bool { return !c.flooded() }, c.fillOutbox},
		{"deleted disk", rare, c.deleteDisk},
		{"stall of an agent", rare, c.stallAgent},
	}
	out := []fault{
		{"kill of a server", func(r Chaos) bool { return r.ServerKills < minKills }, c.killServer},
		{"kill of a runner", func(r Chaos) bool { return r.RunnerKills < minKills }, c.killRunner},
		{"kill of an agent", func(r Chaos) bool { return r.AgentKills < minKills }, c.killAgent},
		slow[n%len(slow)],
	}
	random.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// landingFor is how long a fault waits for a push to land, in whose middle it happens.
const landingFor = 4 * time.Second

func (c *chaos) killServer(ctx context.Context, random *rand.Rand) bool {
	when := random.IntN(4)
	if when > 0 { // else it may be about to start
		if _, err := c.keeper.ready(ctx); err != nil {
			return false
		}
	}
	if when > 1 {
		c.remote.landed(ctx, landingFor)
		if wait(ctx, between(random, 0, 350*time.Millisecond)) != nil {
			return false
		}
	}
	if !c.keeper.kill() {
		return false
	}
	c.count(func(r *Chaos) { r.ServerKills++ })
	return true
}

// runnerRecord is what the process driver wrote of the town's sandbox.
type runnerRecord struct {
	PID   int    `json:"pid"`
	Phase string `json:"phase"`
}

// runner is the town's runner, 0 when there is none.
func (c *chaos) runner() int {
	text, err := os.ReadFile(filepath.Join(c.data, "sandboxes", c.town, "gen.json"))
	if err != nil {
		return 0
	}
	var r runnerRecord
	if json.Unmarshal(text, &r) != nil || r.Phase != "running" || !belongs(r.PID, c.o.Place.Dir) {
		return 0
	}
	return r.PID
}

func (c *chaos) killRunner(ctx context.Context, random *rand.Rand) bool {
	pid := c.runner()
	if pid == 0 || !c.mayLose() || wait(ctx, between(random, 0, 3*time.Second)) != nil || c.runner() != pid {
		return false
	}
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return false
	}
	c.lost()
	c.count(func(r *Chaos) { r.RunnerKills++ })
	return true
}

// maxLosses is how many sandboxes in a row are taken away before an agent had
// a chance to finish something: the pause between starts doubles each time.
const maxLosses = 3

// mayLose reports whether another sandbox may be taken away.
func (c *chaos) mayLose() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for _, attempts := range c.seen {
		done += len(attempts)
	}
	if done > c.progressed {
		c.progressed, c.losses = done, 0
	}
	return c.losses < maxLosses
}

func (c *chaos) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.losses++
}

// agent draws one of the runner's agents, 0 when there is none.
func (c *chaos) agent(random *rand.Rand) int {
	runner := c.runner()
	if runner == 0 {
		return 0
	}
	agents := agentsOf(runner)
	if len(agents) == 0 {
		return 0
	}
	return agents[random.IntN(len(agents))]
}

func (c *chaos) killAgent(ctx context.Context, random *rand.Rand) bool {
	pid := c.agent(random)
	if pid == 0 || wait(ctx, between(random, 0, time.Second)) != nil || !belongs(pid, c.o.Place.Dir) || syscall.Kill(pid, syscall.SIGKILL) != nil {
		return false
	}
	c.count(func(r *Chaos) { r.AgentKills++ })
	return true
}

// stall stops a process for longer than the lease.
func (c *chaos) stall(ctx context.Context, random *rand.Rand, signal func(syscall.Signal) bool) bool {
	begin := time.Now()
	if !signal(syscall.SIGSTOP) {
		return false
	}
	err := wait(ctx, between(random, chaosLease+500*time.Millisecond, chaosLease+2500*time.Millisecond))
	signal(syscall.SIGCONT) // who waits for a stopped process may have killed it meanwhile
	if err == nil && time.Since(begin) > chaosLease {
		c.count(func(r *Chaos) { r.Stalls++ })
	}
	return err == nil
}

func (c *chaos) stallServer(ctx context.Context, random *rand.Rand) bool {
	if _, err := c.keeper.ready(ctx); err != nil {
		return false
	}
	return c.stall(ctx, random, c.keeper.signal)
}

func (c *chaos) stallRunner(ctx context.Context, random *rand.Rand) bool {
	pid := c.runner()
	if pid == 0 || !c.mayLose() {
		return false
	}
	c.lost()
	return c.stall(ctx, random, c.signalTo(pid))
}

func (c *chaos) stallAgent(ctx context.Context, random *rand.Rand) bool {
	pid := c.agent(random)
	return pid != 0 && c.stall(ctx, random, c.signalTo(pid))
}

// signalTo signals a process as long as it is one of ours.
func (c *chaos) signalTo(pid int) func(syscall.Signal) bool {
	return func(s syscall.Signal) bool { return belongs(pid, c.o.Place.Dir) && syscall.Kill(pid, s) == nil }
}

// fillOutbox stops the server while every agent prints more than the runner
// keeps for it.
func (c *chaos) fillOutbox(ctx context.Context, random *rand.Rand) bool {
	if c.agent(random) == 0 {
		return false
	}
	if _, err := c.keeper.ready(ctx); err != nil {
		return false
	}
	defer func() {
		// The next fill writes it anew.
		_ = os.Remove(c.flood)
	}()
	return c.stall(ctx, random, func(s syscall.Signal) bool {
		return c.keeper.signal(s) && (s != syscall.SIGSTOP || touch(c.flood, fmt.Sprint(random.Uint64())) == nil)
	})
}

// flooded reports whether an agent ever took its chance to print that much.
func (c *chaos) flooded() bool {
	took, err := filepath.Glob(c.flood + ".*")
	return err == nil && len(took) > 0
}

// deleteDisk takes the sandbox's disk away: under the runner, together with
// it, or while nothing runs.
func (c *chaos) deleteDisk(_ context.Context, random *rand.Rand) bool {
	disk := filepath.Join(c.data, "sandboxes", c.town, "disk")
	if _, err := os.Stat(disk); err != nil || !c.mayLose() {
		return false
	}
	c.lost()
	if pid := c.runner(); pid != 0 && random.IntN(2) == 0 {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			c.count(func(r *Chaos) { r.RunnerKills++ })
		}
	}
	// Away at once, as a disk that is lost; agents that live go on writing into what was renamed.
	gone := filepath.Join(c.o.Place.Dir, fmt.Sprintf("lost-%d", time.Now().UnixNano()))
	if os.Rename(disk, gone) != nil {
		return false
	}
	c.count(func(r *Chaos) { r.DisksDeleted++ })
	if err := os.RemoveAll(gone); err != nil {
		c.o.Note("a lost disk was not removed at once: %v", err) // somebody writes there still; the end removes it
	}
	return true
}

// disturb has the remote repository down now and then, and other people push
// to the target.
func (c *chaos) disturb(ctx context.Context) {
	random := c.random(3)
	for n := 1; wait(ctx, between(random, 2*time.Second, 7*time.Second)) == nil; n++ {
		if random.IntN(3) == 0 {
			c.outage(ctx, random)
			continue
		}
		commit, err := c.remote.push(ctx, n)
		if err != nil && ctx.Err() == nil {
			c.o.Note("somebody else could not push: %v", err)
		}
		if commit != "" && err == nil {
			c.mu.Lock()
			c.others = append(c.others, commit)
			c.out.ForeignCommits++
			c.mu.Unlock()
		}
	}
}

func (c *chaos) outage(ctx context.Context, random *rand.Rand) {
	if random.IntN(2) == 0 {
		c.remote.landed(ctx, landingFor)
	}
	if err := c.remote.down(); err != nil {
		c.o.Note("the remote did not go down: %v", err)
	}
	c.count(func(r *Chaos) { r.RemoteOutages++ })
	_ = wait(ctx, between(random, 500*time.Millisecond, 3*time.Second)) // it comes back in any case
	if err := c.remote.up(); err != nil {
		c.violation("the tool could not bring its remote back: %v", err)
	}
}
