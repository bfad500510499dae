package runner

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/apart"
	"gastown/internal/town"
)

const (
	// maxCrew is how many runs share a process at once.
	maxCrew = 8
	// maxSlots is how many runs a process serves in all. Its configuration is read
	// when it starts, so their keys are made then; none is used by two runs. Each
	// costs: with 32 eight runs of opencode took 1.8 GB, with 8 they take 0.8.
	maxSlots = maxCrew
)

// crewKey is what runs must have in common to share a process. The role is in it,
// because who shares a process can use the tools of the others.
type crewKey struct {
	preset, provider, model string
	role                    town.Role
	way                     string // out of the sandbox, where programs are told of a proxy
}

// crew is the runs that share an agent process, and what the process needs.
type crew struct {
	key   crewKey
	index int // names its directory: the lowest that is free
	cell  apart.Cell
	host  *agent.Host
	slots []*slot

	guest *proxyUser // as whom the process goes out of the sandbox; nil: it is told of no proxy

	// Guarded by crews.mu.
	runs   int
	served int
	guests []*proxyUser // of the living runs
}

// crews are the crews of a runner.
type crews struct {
	mu   sync.Mutex // guards list, and the counters of each crew
	list []*crew
}

// crewCell is a crew's cell in the hands of one of its runs: what the run has is
// closed when it leaves, and the others stay.
type crewCell struct {
	apart.Cell
	leave func() error

	mu    sync.Mutex // guards rooms
	rooms []string
}

// Room implements apart.Cell.
func (c *crewCell) Room(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rooms = append(c.rooms, dir)
	return c.Cell.Room(dir)
}

// Limit implements apart.Cell: what the crew's process may have was said when it began.
func (c *crewCell) Limit(int) {}

// Sweep implements apart.Cell: whose processes they are is not known.
func (c *crewCell) Sweep(time.Duration) int { return 0 }

// Leave implements apart.Cell.
func (c *crewCell) Leave() error {
	c.mu.Lock()
	rooms := c.rooms
	c.rooms = nil
	c.mu.Unlock()
	var err error
	for _, dir := range rooms {
		err = errors.Join(err, c.Shut(dir))
	}
	return errors.Join(err, c.leave())
}

// shares reports whether a run may share a process with others.
func (n *run) shares() (agent.Preset, bool) {
	p, err := n.r.cfg.Presets.Get(n.want.Preset)
	// A box shows what there was when its process began: no worktree of a later run.
	return p, err == nil && p.Shares() && !n.want.OwnProcess && n.r.apart.Kind() != apart.Bwrap
}

// join gives the run a place in a crew.
func (n *run) join(preset agent.Preset) error {
	d := n.want
	key := crewKey{preset: d.Preset, provider: d.Provider, model: d.Model, role: d.Role}
	if n.guest != nil {
		key.way = d.Rig + " " + strings.Join(d.AllowHosts, " ")
	}
	all := &n.r.crews
	all.mu.Lock()
	defer all.mu.Unlock()
	c := all.findLocked(key)
	if c == nil {
		var err error
		if c, err = n.r.newCrew(key, preset, all.freeLocked(), n.guest); err != nil {
			return err
		}
		all.list = append(all.list, c)
	}
	n.crew, n.place = c, c.served
	c.runs++
	if c.guest != nil {
		c.guest.pass(n.guest) // the newest is the last to go, usually
		c.guests = append(c.guests, n.guest)
	}
	c.served++
	if len(c.slots) > 0 {
		n.r.loopback.seat(c.slots[n.place], n.tenant)
	}
	n.cell = &crewCell{Cell: c.cell, leave: sync.OnceValue(func() error { return n.r.leaveCrew(c, n.guest) })}
	return nil
}

func (all *crews) findLocked(key crewKey) *crew {
	for _, c := range all.list {
		if c.key == key && c.runs > 0 && c.runs < maxCrew && c.served < maxSlots && !c.host.Tired() {
			return c
		}
	}
	return nil
}

func (all *crews) freeLocked() int {
	used := map[int]bool{}
	for _, c := range all.list {
		used[c.index] = true
	}
	i := 1
	for used[i] {
		i++
	}
	return i
}

// newCrew prepares all that a process of several runs needs, but starts none.
func (r *Runner) newCrew(key crewKey, preset agent.Preset, index int, guest *proxyUser) (*crew, error) {
	room := filepath.Join(r.dir("crews"), strconv.Itoa(index))
	cell, err := r.apart.Enter(filepath.Join(room, roomHome))
	if err != nil {
		return nil, err
	}
	cell.Limit(r.guard.processes(-1))
	if err := os.MkdirAll(room, 0o755); err != nil {
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "the directory of a shared agent process"), cell.Leave())
	}
	env, err := r.privateEnv(cell, room, room)
	if err != nil {
		return nil, errors.Join(err, cell.Leave())
	}
	c := &crew{key: key, index: index, cell: cell}
	if guest != nil {
		c.guest = r.loopback.proxy.admit("crew-"+strconv.Itoa(index), guest.header, guest.tell)
		env = append(env, c.guest.env(r.loopback.base)...)
	}
	var models []agent.Model
	if key.provider != "" {
		for range maxSlots {
			s, secret := r.loopback.newSlot()
			c.slots = append(c.slots, s)
			models = append(models, agent.Model{Provider: key.provider, BaseURL: r.loopback.base + "/slot/" + s.id, Key: secret, Name: key.model})
		}
	}
	c.host, err = agent.NewHost(agent.Spec{Preset: preset, Dir: room, SelfExe: r.cfg.SelfExe, Env: toolEnv(env),
		Start: cell.Start, Sweep: cell.Sweep}, models)
	if err != nil {
		r.dismiss(c)
		return nil, errors.Join(err, cell.Leave())
	}
	return c, nil
}

// dismiss closes what a crew has on loopback.
func (r *Runner) dismiss(c *crew) {
	r.loopback.drop(c.slots)
	if c.guest != nil {
		r.loopback.proxy.expel(c.guest)
	}
}

// leaveCrew takes a run out of its crew. The last one ends it; its process ended
// with the last session.
func (r *Runner) leaveCrew(c *crew, guest *proxyUser) error {
	r.crews.mu.Lock()
	c.runs--
	c.guests = slices.DeleteFunc(c.guests, func(u *proxyUser) bool { return u == guest })
	if n := len(c.guests); n > 0 {
		c.guest.pass(c.guests[n-1])
	}
	last := c.runs == 0 // and so nobody joins it any more
	r.crews.mu.Unlock()
	if !last {
		return nil
	}
	r.dismiss(c)
	err := c.cell.Leave()
	r.crews.mu.Lock()
	defer r.crews.mu.Unlock()
	for i, o := range r.crews.list {
		if o == c {
			r.crews.list = append(r.crews.list[:i:i], r.crews.list[i+1:]...)
			break
		}
	}
	return err
}
