package runner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"gastown/internal/runner/apart"
	"gastown/internal/town"
)

const (
	// guardEvery is how often the processes of runs are looked at, and guardSoon how
	// often when a run has more than half of what it may have.
	guardEvery, guardSoon = time.Second, 200 * time.Millisecond
	// maxStrikes is how often a run may go over a limit; then it ends. Before, only
	// its tools do, of which its agent may learn.
	maxStrikes = 3
)

// limits are what the processes of a run may use together; 0 is no limit.
type limits struct {
	memory    int64 // bytes
	processes int   // and threads
}

// guard looks after what runs use, so that the tool of one agent can't take the
// machine from the others. It ends tools first, then agents.
type guard struct {
	procs func() []apart.Process
	kill  func([]apart.Process)
	whole limits // what a run may have that has no limits of its own

	mu    sync.Mutex // held during a look; guards wards and their fields
	wards []*ward
}

func newGuard() *guard {
	memory, processes := sandboxHas()
	return &guard{procs: apart.Processes, kill: apart.Kill, whole: limits{memory: memory / 4 * 3, processes: processes / 2}}
}

// ward is a run that is looked after.
type ward struct {
	cell   apart.Cell
	root   int    // the agent's process; runs that share it are judged together
	mark   string // in the environment of its processes
	since  int64  // when its first turn began: what is younger is a tool
	limits limits
	disk   *meter            // nil: no limit
	tell   func(text string) // a tool was ended
	end    func(text string) // the run has to end

	over    bool // at the last look
	strikes int
}

// processes is the limit for what a setting says.
func (g *guard) processes(setting int) int {
	if setting < 0 {
		return g.whole.processes
	}
	return setting
}

// watch looks after a run until release is called.
func (g *guard) watch(n *run, root int) (release func()) {
	d := n.want
	w := &ward{cell: n.cell, root: root, mark: "GASTOWN_RUN=" + d.ID, since: apart.Now(),
		limits: limits{memory: int64(d.MaxMemoryMB) << 20, processes: g.processes(d.MaxProcesses)}}
	if d.MaxMemoryMB < 0 {
		w.limits.memory = g.whole.memory
	}
	w.tell = func(text string) {
		n.hurt.Store(&text)
		n.log.Warn("tools of a run were ended", "why", text)
		n.story("limit", text)
	}
	w.end = func(text string) {
		w.tell(text)
		n.ask(ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassWork, reason: text})
	}
	if d.MaxDiskMB != 0 {
		w.disk = newMeter(n.tree.room, int64(d.MaxDiskMB)<<20)
	}
	n.guarded.Store(w)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wards = append(g.wards, w)
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.wards = slices.DeleteFunc(g.wards, func(o *ward) bool { return o == w })
	}
}

// run looks again and again.
func (g *guard) run(ctx context.Context) {
	var sums sync.WaitGroup
	defer sums.Wait()
	t := time.NewTimer(guardEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		near := g.look()
		for _, w := range g.meters() {
			if w.disk.due(time.Now()) {
				sums.Go(func() { g.measure(ctx, w) })
			}
		}
		if near {
			t.Reset(guardSoon)
		} else {
			t.Reset(guardEvery)
		}
	}
}

func (g *guard) meters() (with []*ward) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.wards {
		if w.disk != nil {
			with = append(with, w)
		}
	}
	return with
}

// measure ends a run that fills the disk. What it wrote stays after its tools are
// gone, so there is nothing to wait for.
func (g *guard) measure(ctx context.Context, w *ward) {
	more := w.disk.measure(ctx)
	if more <= w.disk.limit {
		return
	}
	text := fmt.Sprintf("the run added %d MB to its disk, more than run.max_disk_mb lets it: %d", more>>20, w.disk.limit>>20)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Contains(g.wards, w) {
		return
	}
	if !g.sharedLocked(w) {
		tools, _ := w.split(w.cell.Mine(g.procs(), w.root, w.mark))
		g.kill(tools)
	}
	w.end(text)
}

func (g *guard) sharedLocked(w *ward) bool {
	return slices.ContainsFunc(g.wards, func(o *ward) bool { return o != w && o.root == w.root })
}

// look looks once at the processes of all runs; near means that one has more than
// half of what it may have.
func (g *guard) look() (near bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.wards) == 0 {
		return false
	}
	all := g.procs()
	done := map[int]bool{}
	for _, w := range g.wards {
		if done[w.root] {
			continue
		}
		done[w.root] = true
		group := slices.DeleteFunc(slices.Clone(g.wards), func(o *ward) bool { return o.root != w.root })
		if g.judgeLocked(group, all) {
			near = true
		}
	}
	return near
}

// judgeLocked looks at the runs of one agent process. When they are several nobody
// knows whose the tools are, and so none of them ends for it.
func (g *guard) judgeLocked(group []*ward, all []apart.Process) (near bool) {
	w, l := group[0], g.together(group)
	mine := w.cell.Mine(all, w.root, w.mark)
	v := judge(l, mine, w.split)
	if !v.over {
		for _, o := range group {
			o.over = false
		}
		return v.near
	}
	fresh := !w.over
	for _, o := range group {
		if o.over = true; fresh {
			o.strikes++
		}
	}
	g.kill(v.kill)
	switch {
	case len(group) == 1 && (v.agent || w.strikes >= maxStrikes):
		if fresh && w.strikes > 1 {
			v.why += fmt.Sprintf(", for the %d. time", w.strikes)
		}
		w.end(v.why)
	case fresh:
		for _, o := range group {
			o.tell(v.why)
		}
	}
	if v.agent && len(group) > 1 {
		g.kill(mine)
	}
	return true
}

// together are the limits of runs that share a process: their sum, at most what
// the sandbox can give.
func (g *guard) together(group []*ward) limits {
	l := group[0].limits
	for _, o := range group[1:] {
		if l.memory = l.memory + o.limits.memory; o.limits.memory == 0 {
			l.memory = 0
		}
		if l.processes = l.processes + o.limits.processes; o.limits.processes == 0 {
			l.processes = 0
		}
	}
	if len(group) > 1 && g.whole.memory > 0 && l.memory > 0 {
		l.memory = min(l.memory, g.whole.memory)
	}
	if len(group) > 1 && g.whole.processes > 0 && l.processes > 0 {
		l.processes = min(l.processes, g.whole.processes)
	}
	return l
}

// split tells tools from the agent's own processes, which were there before its first turn.
func (w *ward) split(mine []apart.Process) (tools, agent []apart.Process) {
	for _, p := range mine {
		if p.PID == w.root || p.Born < w.since {
			agent = append(agent, p)
		} else {
			tools = append(tools, p)
		}
	}
	return tools, agent
}

// judgement is what comes of a look.
type judgement struct {
	near, over bool
	why        string
	kill       []apart.Process // tools
	agent      bool            // there is no tool left: the agent itself is what is over
}

// judge compares what processes use with what they may. A bomb is all tools
// together; of a hog, the biggest tool and what it began.
func judge(l limits, mine []apart.Process, split func([]apart.Process) (tools, agent []apart.Process)) (v judgement) {
	var memory int64
	threads := 0
	for _, p := range mine {
		memory += p.Memory
		threads += p.Threads
	}
	tools, _ := split(mine)
	// A system that holds the limit, too, lets nobody go over it.
	bomb := l.processes > 0 && threads >= l.processes-l.processes/20
	hog := l.memory > 0 && memory > l.memory
	v.near = l.processes > 0 && 2*threads > l.processes || l.memory > 0 && 2*memory > l.memory
	v.over = bomb || hog
	v.agent = v.over && len(tools) == 0
	switch {
	case bomb:
		v.why = fmt.Sprintf("the run had %d processes and threads; run.max_processes lets it have %d", threads, l.processes)
		v.kill = tools
	case hog:
		v.why = fmt.Sprintf("the run used %d MB of memory; run.max_memory_mb lets it use %d", memory>>20, l.memory>>20)
		if len(tools) > 0 {
			biggest := slices.MaxFunc(tools, func(a, b apart.Process) int { return cmp.Compare(a.Memory, b.Memory) })
			v.why += fmt.Sprintf("; its biggest tool, %.20q, had %d MB", biggest.Name, biggest.Memory>>20)
			v.kill = apart.Below(tools, biggest)
		}
	}
	if v.over {
		v.why = clip(v.why, town.MaxReason/2)
	}
	return v
}

// lookNow does not wait for the next look: an agent died, and what it left, of which
// it may have died, is about to be ended.
func (n *run) lookNow() {
	if n.guarded.Load() != nil {
		n.r.guard.look()
	}
}

// blamed adds to a failure what the run was over.
func (n *run) blamed(e ending) ending {
	h := n.hurt.Load()
	if h != nil && e.class == town.ClassWork && e.reason != *h && (e.outcome == town.OutcomeFailed || e.outcome == town.OutcomeExited) {
		e.reason = clip(*h+"; then: "+e.reason, town.MaxReason)
	}
	return e
}
