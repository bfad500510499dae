package town

import (
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The model check explores every history of a small town: two beads, two
// agents, one rig, one sandbox, and a world that may do anything in any order.
// What a good day brings may happen in any order as often as it does. Every
// deviation from it counts: an effect that fails, is performed without an
// answer or answered without being performed, the death of the process between
// any two steps, of the sandbox with and without a word, a runner that forgets,
// repeats or falls silent, agents that fail, gates that are red, conflicts,
// people who interfere. All histories with up to so many deviations, wherever
// they fall, are followed; those that lead to the same state once.
//
// In each state it asserts what a state can show (model_rules_test.go), that
// every message which could still arrive from an older epoch, generation,
// stream, candidate or claim changes nothing, that the stored rows give the same
// town, and that a world that behaves from here on brings all work to an end.
//
// GASTOWN_MODEL=3 explores further than make test does.

// scope is what one exploration starts from, and how much may go wrong in one
// history.
type scope struct {
	name       string
	rig        func(*Rig)
	beads      []CreateBead
	tired      bool // one more failure of any kind, and a bead is at its limit
	deviations int
}

// chain is two beads of which the second waits for the first.
func chain() []CreateBead {
	return []CreateBead{
		{By: "ann", ID: "web-aaaaa", Rig: "web", Title: "first", Staged: true},
		{By: "ann", ID: "web-bbbbb", Rig: "web", Title: "second", BlockedBy: []string{"web-aaaaa"}},
	}
}

// pair is two beads that two agents may do at once.
func pair() []CreateBead {
	return []CreateBead{{By: "ann", ID: "web-aaaaa", Rig: "web", Title: "first"}, {By: "ann", ID: "web-bbbbb", Rig: "web", Title: "second"}}
}

func scopes() []scope {
	gates := func(r *Rig) { r.Gates = []Gate{{Name: "test", Command: "true", Timeout: 10 * time.Second}} }
	branch := func(r *Rig) { r.Settings = Settings{"merge.mode": "branch", "branch.poll_interval": "1m"} }
	return []scope{
		{name: "a chain of two beads with a gate", rig: gates, beads: chain(), deviations: 1},
		{name: "a chain of two beads", beads: chain(), deviations: 1},
		{name: "a chain of two beads whose branches wait for others", rig: branch, beads: chain(), deviations: 1},
		{name: "two beads at once", beads: pair(), deviations: 1},
		{name: "two beads at once that are near their limits", beads: pair(), tired: true, deviations: 1},
	}
}

// modelSettings make times few: pauses of a millisecond have no jitter, and the
// other limits are multiples of each other.
var modelSettings = Settings{"agent": "scripted", "polecats.per_town": "2", "polecats.per_rig": "2", "work.max_attempts": "2",
	"merge.max_conflicts": "2", "work.backoff": "1s", "infra.backoff_min": "1ms", "infra.backoff_max": "10ms", "lease": "90s",
	"sandbox.hello_timeout": "90s", "sandbox.grace": "90s", "sandbox.drain_timeout": "30s", "fetch.interval": "24h",
	"token.refresh_interval": "7h", "run.time_limit": "4m", "stuck.nudge_after": "1m", "stuck.restart_after": "2m"}

func TestEveryHistoryOfASmallTownKeepsThePromises(t *testing.T) {
	t.Parallel()
	all := scopes()
	if raceOn || testing.Short() {
		all = all[:1] // nothing here runs at the same time as anything else
	}
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			if deep := os.Getenv("GASTOWN_MODEL"); deep != "" {
				n, err := strconv.Atoi(deep)
				if err != nil {
					t.Fatalf("GASTOWN_MODEL is the number of deviations: %v", err)
				}
				s.deviations = n
			}
			e := explorer{t: t, s: s, seen: map[state]int{}, live: map[state]int{}, names: map[string]string{},
				canon: &canon{unseen: unseen(), plans: map[reflect.Type][]int{}}}
			start := time.Now()
			e.run()
			t.Logf("%d states, %d steps, at most %d steps to rest, %s", len(e.nodes), e.steps, e.longest, time.Since(start).Round(time.Millisecond))
		})
	}
}

// state is the hash of all that matters of a world but its budget.
type state [2]uint64

// node is a state that was reached, and how.
type node struct {
	from int
	move string
}

type explorer struct {
	t       *testing.T
	s       scope
	seen    map[state]int // 1 + the deviations left with which a state was reached
	live    map[state]int // steps to rest, of states whose end is known
	nodes   []node
	names   map[string]string
	canon   *canon
	steps   int
	longest int
	path    []string // moves after the node that is being looked at
	at      int
}

// run explores breadth first, so the first violation has the shortest history.
func (e *explorer) run() {
	type entry struct {
		w  *world
		at int
	}
	w := newWorld(e.s)
	queue := []entry{}
	e.guard(func() {
		if e.enter(w, -1, "the beginning") {
			queue = append(queue, entry{w, 0})
		}
	})
	for len(queue) > 0 {
		cur := queue[0]
		queue[0] = entry{}
		queue = queue[1:]
		e.at = cur.at
		for _, m := range cur.w.moves() {
			e.guard(func() {
				e.path = append(e.path[:0], m.name)
				next := cur.w.clone()
				e.take(next, m)
				if e.enter(next, cur.at, m.name) {
					queue = append(queue, entry{next, len(e.nodes) - 1})
				}
			})
		}
	}
}

// take makes a move and asserts what must hold between two states.
func (e *explorer) take(w *world, m move) {
	e.steps++
	before := remember(w)
	if m.costs {
		w.left--
	}
	m.do(w)
	w.claim()
	before.compare(w, m)
}

// enter looks at a state unless it was looked at before with no fewer deviations left.
func (e *explorer) enter(w *world, from int, move string) bool {
	st := w.state(e.canon)
	best := e.seen[st]
	if best > w.left {
		return false
	}
	e.seen[st] = w.left + 1
	name, ok := e.names[move]
	if !ok {
		name = move
		e.names[move] = move
	}
	e.nodes = append(e.nodes, node{from, name})
	if best == 0 {
		w.check()
		w.checkStale()
		e.rests(w.clone())
	}
	return true
}

// mostSteps is how long a world that behaves may take to bring a small town to rest.
const mostSteps = 150

// rests lets the world behave from here on and asserts that everything ends.
func (e *explorer) rests(w *world) {
	var way []state
	left := 0
	for {
		st := w.state(e.canon)
		if n, ok := e.live[st]; ok {
			left = n
			break
		}
		way = append(way, st)
		if len(way) > mostSteps {
			fail("no rest after %d steps of a world that behaves: %s", mostSteps, w.describe())
		}
		m, ok := w.behave()
		if !ok {
			w.checkRest()
			break
		}
		e.path = append(e.path, m.name)
		e.take(w, m)
	}
	for i, st := range way {
		e.live[st] = left + len(way) - i
		e.longest = max(e.longest, left+len(way)-i)
	}
	if e.longest > mostSteps {
		fail("%d steps to rest", e.longest)
	}
}

// violation is what breaks a promise.
type violation string

func fail(format string, args ...any) { panic(violation(fmt.Sprintf(format, args...))) }

// guard prints the history when something breaks.
func (e *explorer) guard(f func()) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		var moves []string
		for at := e.at; at > 0; at = e.nodes[at].from {
			moves = append(moves, e.nodes[at].move)
		}
		var b strings.Builder
		for i := len(moves) - 1; i >= 0; i-- {
			fmt.Fprintf(&b, "\n  %d. %s", len(moves)-i, moves[i])
		}
		for i, m := range e.path {
			fmt.Fprintf(&b, "\n  %d. %s", len(moves)+i+1, m)
		}
		stack := ""
		if _, ok := r.(violation); !ok {
			stack = "\n" + string(debug.Stack())
		}
		e.t.Fatalf("after %d states: %v\nthe shortest history that leads there (%s):%s%s", len(e.nodes), r, e.s.name, b.String(), stack)
	}()
	f()
}
