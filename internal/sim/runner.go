package sim

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// runner is what a runner would do inside a sandbox.
type runner struct {
	x       *box
	w       *world
	dice    dice
	stream  string
	greeted bool
	frozen  bool // runs, and says nothing any more
	first   int64
	outbox  []parcel // the first has number first
	sending bool
	heard   time.Time // when the server last answered
	runs    map[string]*agent
	over    map[string]bool // runs that ended here
	gates   map[string]bool
	drained bool
	seen    int64 // the newest desired revision that it was told of
}

// parcel is a report, and what to do once the server has it.
type parcel struct {
	report town.Report
	taken  func()
}

const (
	heartbeat = 30 * time.Second
	alone     = 10 * time.Minute // without contact, after which a runner ends
)

func newRunner(x *box, fresh bool) *runner {
	w := x.w
	r := &runner{x: x, w: w, dice: w.dice(fmt.Sprint("runner ", x.town, x.gen)), stream: fmt.Sprintf("s%d", x.gen), first: 1, heard: w.now,
		runs: map[string]*agent{}, over: map[string]bool{}, gates: map[string]bool{}}
	r.frozen = w.fault("sandbox-mute", x.who)
	slow := time.Duration(0)
	if fresh { // a new disk: what was cached comes over the network again
		slow = 20 * time.Second
	}
	r.later(slow+300*time.Millisecond, slow+3*time.Second, r.hello)
	r.later(0, 0, r.fate)
	return r
}

func (r *runner) speaks() bool { return r.x.running && !r.frozen }

// later does f after a while, if the sandbox still lives and speaks.
func (r *runner) later(lo, hi time.Duration, f func()) {
	r.w.at(r.dice.between(lo, hi), func() {
		if r.speaks() {
			f()
		}
	})
}

// fate lets some sandboxes die or freeze.
func (r *runner) fate() {
	switch {
	case r.w.fault("sandbox-dies", r.x.who):
		told := r.w.extent(0, time.Second) > 300*time.Millisecond
		if r.w.fault("disk-lost", r.x.who) {
			delete(r.w.boxes.disks, r.x.town)
		}
		r.x.end("killed by the host", told)
	case r.w.fault("sandbox-freezes", r.x.who):
		r.frozen = true
	default:
		if r.greeted && r.dice.chance(0.02) { // its token ran out
			r.call(town.Exchange{Generation: r.x.gen}, func(error) {})
		}
		r.later(10*time.Minute, 10*time.Minute, r.fate)
	}
}

// call hands an input to the server through a bad network. When no answer came,
// or one that means "try again", it does so; ok is called with the answer else.
func (r *runner) call(in town.Input, answer func(error)) {
	w, who := r.w, r.x.who
	again := func() { r.later(time.Second, 10*time.Second, func() { r.call(in, answer) }) }
	if w.now.Sub(r.heard) > alone {
		r.exit()
		return
	}
	if w.fault("message-lost", who) {
		again()
		return
	}
	if w.fault("message-late", who) {
		w.at(w.extent(0, 3*time.Hour), func() {
			_, _ = r.say(in) // nobody waits for the answer to a late copy
		})
	}
	if w.fault("message-forged", who) {
		r.forge(in)
	}
	err, lost := r.say(in)
	if !lost && w.fault("message-repeated", who) {
		e2, l2 := r.say(in)
		if _, reports := in.(town.Reports); reports && err == nil && e2 == nil && !l2 {
			w.violate(invStale, w.shadow.towns[r.x.town], "town %s took the same reports twice", r.x.town)
		}
		lost = l2 // else the first answer holds
	}
	if !r.speaks() {
		return
	}
	switch k := errs.KindOf(err); {
	case lost, k == errs.Unavailable, k == errs.Overloaded, w.fault("answer-lost", who):
		again()
	case k == errs.Internal:
		w.violate(invStale, w.shadow.towns[r.x.town], "%s was answered with: %v", town.InputName(in), err)
	default:
		r.heard = w.now
		answer(err)
	}
}

// forge sends an input with another epoch, generation or number before the real
// one: anything in a sandbox may do that. It must be refused.
func (r *runner) forge(in town.Input) {
	off := 1 - 2*int64(r.w.extent(0, time.Millisecond)/time.Millisecond) // 1 or -1
	gen := r.w.extent(0, time.Second) < 300*time.Millisecond
	switch v := in.(type) {
	case town.Verdict:
		if r.w.shadow.repeated(r.x.town, v) {
			return // it is answered as before
		}
		if gen {
			v.Generation -= 1
		} else {
			v.Epoch += off
		}
		in = v
	case town.GatesDone:
		if gen {
			v.Generation -= 1
		} else {
			v.N += int(off)
		}
		in = v
	case town.Reports:
		v.Generation -= 1 // another number may be the one that is expected
		in = v
	case town.Hello:
		v.Generation -= 1
		in = v
	case town.Exchange:
		v.Generation -= 1
		in = v
	default:
		return
	}
	err, lost := r.w.do(r.x.town, in)
	if !lost && r.w.shadow.towns[r.x.town] != nil {
		r.w.holds(invStale, err != nil, r.w.shadow.towns[r.x.town], "a forged %s was taken: %+v", town.InputName(in), in)
	}
}

// say hands an input to the server. What comes from a generation that is not the
// current one must be refused, but for the repeat of a verdict that was accepted:
// it gets the same answer, and changes nothing.
func (r *runner) say(in town.Input) (error, bool) {
	w := r.w
	was := w.shadow.towns[r.x.town]
	stale := was != nil && was.columns.Generation != r.x.gen
	v, verdict := in.(town.Verdict)
	bead, _, _ := strings.Cut(v.Run, ".")
	before := w.shadow.epochOf(r.x.town, bead)
	w.shadow.input(r.x.town, in)
	err, lost := w.do(r.x.town, in)
	if lost || verdict && before == w.shadow.epochOf(r.x.town, bead) {
		return err, lost
	}
	w.holds(invStale, !stale || err != nil, was, "%s of generation %d was taken by a newer one", town.InputName(in), r.x.gen)
	return err, lost
}

func (r *runner) hello() {
	r.call(town.Hello{Generation: r.x.gen, Stream: r.stream}, func(err error) {
		if err != nil {
			r.exit()
			return
		}
		if !r.greeted {
			r.greeted = true
			r.beat()
		}
		r.sync()
	})
}

func (r *runner) exit() { r.x.end("told to exit", r.dice.chance(0.7)) }

func (r *runner) beat() {
	var lives []town.RunLife
	for _, id := range sortedKeys(r.runs) {
		a := r.runs[id]
		life := town.RunLife{Run: id, Epoch: a.d.Epoch}
		if since := a.silentSince(); !since.IsZero() {
			life.IdleMS = r.w.now.Sub(since).Milliseconds()
		}
		lives = append(lives, life)
	}
	r.report(town.Report{Kind: town.ReportHeartbeat, Runs: lives}, nil)
	r.sync()
	r.later(heartbeat, heartbeat+time.Second, r.beat)
}

func (r *runner) report(p town.Report, taken func()) {
	r.outbox = append(r.outbox, parcel{p, taken})
	r.flush()
}

// took drops the first n reports, which the server has.
func (r *runner) took(n int) {
	for _, p := range r.outbox[:n] {
		if p.taken != nil {
			p.taken()
		}
	}
	r.outbox = r.outbox[n:]
	r.first += int64(n)
}

// flush sends what is in the outbox, one message after the other.
func (r *runner) flush() {
	if r.sending || len(r.outbox) == 0 || !r.greeted {
		return
	}
	r.sending = true
	n := len(r.outbox)
	in := town.Reports{Generation: r.x.gen, Stream: r.stream, From: r.first}
	for _, p := range r.outbox {
		in.Items = append(in.Items, p.report)
	}
	r.call(in, func(err error) {
		r.sending = false
		switch {
		case err == nil:
			r.took(n)
		case errs.Is(err, errs.Conflict):
			r.realign()
			return
		default:
			r.exit()
			return
		}
		r.flush()
	})
}

// realign asks which report is expected.
func (r *runner) realign() {
	var want int64
	var stream string
	r.sending = true
	ok := r.view(func(t *town.Town) { want, stream = t.Sandbox().Seq+1, t.Sandbox().Stream })
	r.sending = false
	switch {
	case !ok:
		r.later(time.Second, 5*time.Second, r.flush)
		return
	case stream != r.stream:
		r.later(time.Second, 5*time.Second, r.hello)
		return
	}
	r.w.holds(invAcked, want >= r.first, r.w.shadow.towns[r.x.town], "town %s forgot reports that it had taken: %d expected, %d sent", r.x.town, want, r.first)
	r.took(int(min(max(want-r.first, 0), int64(len(r.outbox)))))
	r.flush()
}

// view reads the town, for this sandbox.
func (r *runner) view(f func(*town.Town)) bool {
	p := r.w.reach()
	if p == nil {
		return false
	}
	err := p.hall.View(context.Background(), r.x.town, func(t *town.Town, _ time.Time) error { f(t); return nil })
	return err == nil && !p.dead && r.speaks()
}

// wanted is told when the desired document has a new revision.
func (r *runner) wanted(rev int64) {
	if rev > r.seen && r.greeted {
		r.seen = rev
		r.later(5*time.Millisecond, 2*time.Second, r.sync)
	}
}

// sync converges to the desired document.
func (r *runner) sync() {
	var d town.Desired
	gone := false
	if !r.view(func(t *town.Town) {
		sb := t.Sandbox()
		gone = sb.Generation != r.x.gen || !sb.State.Running()
		d = t.Desired()
	}) {
		return // the next heartbeat asks again
	}
	r.heard = r.w.now
	if gone {
		r.exit()
		return
	}
	if d.Rev < r.seen {
		return // it was overtaken by a newer one
	}
	r.seen = d.Rev
	wanted := map[string]bool{}
	for _, run := range d.Runs {
		wanted[run.ID] = true
		r.converge(run)
	}
	for _, id := range sortedKeys(r.runs) {
		if !wanted[id] {
			delete(r.runs, id)
		}
	}
	for _, g := range d.Gates {
		r.gate(g)
	}
	switch {
	case !d.Drain:
		r.drained = false
	case len(r.runs) == 0 && !r.drained:
		r.drained = true
		r.report(town.Report{Kind: town.ReportDrained}, nil)
	}
}
