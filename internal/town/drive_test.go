package town

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// driver plays everybody around a town in tests: it keeps the clock, performs
// effects in memory, and speaks as the runner. It compares what it is told with
// a second copy that is rebuilt from rows before every input.
type driver struct {
	t        testing.TB
	town     *Town
	now      time.Time
	seq      int64
	tip      int
	stream   string
	rows     map[string][]byte
	ledger   []Entry
	perform  bool
	quiet    bool
	spent    Spend              // given to the server's days
	days     map[string]Spend   // of the server
	lent     map[string]Granted // likewise
	conflict map[string]bool    // beads whose next candidate conflicts
}

var epoch0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newDriver(t testing.TB) *driver {
	d := &driver{t: t, now: epoch0, rows: map[string][]byte{}, conflict: map[string]bool{}, days: map[string]Spend{}, perform: true, stream: "s1"}
	d.town = New("tn1", "acme", "", At(d.now))
	d.save()
	return d
}

func commitName(n int) string { return fmt.Sprintf("%040x", n+1) }

func (d *driver) save() {
	for _, r := range d.town.Changes() {
		key := r.Kind + " " + r.ID
		if r.Body == nil {
			delete(d.rows, key)
			continue
		}
		d.rows[key] = r.Body
	}
	d.ledger = append(d.ledger, d.town.Entries()...)
	for _, s := range d.town.TakeSpend() {
		if d.days == nil {
			d.days = map[string]Spend{}
		}
		d.spent = d.spent.add(s.Spend)
		d.days[s.Day] = d.days[s.Day].add(s.Spend)
		if d.lent == nil {
			d.lent = map[string]Granted{}
		}
		d.lent[s.Day] = d.lent[s.Day].add(s.Granted)
	}
}

// reload makes a town from what was saved.
func (d *driver) reload() *Town {
	d.t.Helper()
	var rows []Row
	for k, v := range d.rows {
		kind, id, _ := strings.Cut(k, " ")
		rows = append(rows, Row{Kind: kind, ID: id, Body: v})
	}
	c, err := Decode("tn1", rows, d.town.server)
	if err != nil {
		d.t.Fatalf("reload: %v", err)
	}
	c.serverDay = d.town.serverDay
	c.SetOffers(d.town.Offers())
	if len(c.bad) > 0 {
		d.t.Fatalf("reload quarantined %v", c.bad)
	}
	return c
}

// try handles one input on the town and on a copy loaded from its rows, and
// checks that both end the same.
func (d *driver) try(in Input) error {
	d.t.Helper()
	today := dayOf(At(d.now))
	d.town.SetServerDay(DaySpend{today, d.days[today], d.lent[today]})
	c := d.reload()
	err := d.town.Handle(d.now, in)
	err2 := c.Handle(d.now, in)
	if (err == nil) != (err2 == nil) {
		d.t.Fatalf("%T: the town says %v, its copy says %v", in, err, err2)
	}
	if err != nil && len(d.town.dirty) > 0 {
		d.t.Fatalf("%T was refused (%v) and changed %v", in, err, d.town.dirty)
	}
	d.save()
	for _, r := range c.Changes() {
		if want := d.rows[r.Kind+" "+r.ID]; !bytes.Equal(want, r.Body) {
			d.t.Fatalf("%T: row %s %s differs between two copies:\n%s\n%s", in, r.Kind, r.ID, want, r.Body)
		}
	}
	d.check()
	return err
}

func (d *driver) do(in Input) {
	d.t.Helper()
	if err := d.try(in); err != nil {
		d.t.Fatalf("%T: %v", in, err)
	}
	if d.perform {
		d.effects()
	}
}

// effects performs everything that is asked for, until nothing is.
func (d *driver) effects() {
	d.t.Helper()
	for i := 0; ; i++ {
		effs := d.town.Claim(d.now, "boot")
		d.save()
		if len(effs) == 0 {
			return
		}
		if i > 100 {
			d.t.Fatalf("effects without end: %v", effs)
		}
		for _, e := range effs {
			if err := d.try(EffectDone{Key: e.Key, ID: e.ID, Result: d.result(e)}); err != nil {
				d.t.Fatalf("%s: %v", e.Key, err)
			}
		}
	}
}

func (d *driver) result(e Effect) any {
	switch a := e.Action.(type) {
	case Admit:
		return Admitted{Granted: true}
	case StartSandbox:
		return Started{Ref: "ref"}
	case InspectSandbox:
		return Inspected{State: "gone"}
	case FetchRig:
		return Fetched{Tip: commitName(d.tip), Writable: true}
	case BuildCandidate:
		if d.conflict[a.Bead] {
			delete(d.conflict, a.Bead)
			return Candidate{Conflict: true, Detail: "main.go"}
		}
		return Candidate{Commit: commitName(1000 + a.N)}
	case Land:
		d.tip++
		return Landed{Tip: commitName(d.tip)}
	case CheckTarget:
		return Checked{In: true}
	}
	return nil
}

// pass lets time go by with a runner that sends its heartbeats, unless it is quiet.
func (d *driver) pass(t time.Duration) {
	d.t.Helper()
	for t > 0 {
		step := min(t, 30*time.Second)
		t -= step
		d.now = d.now.Add(step)
		if s := d.town.info.Sandbox.State; !d.quiet && (s == SandboxAwake || s == SandboxDraining) {
			d.heartbeat()
		}
		d.do(Tick{})
	}
}

func (d *driver) heartbeat() {
	d.t.Helper()
	var lives []RunLife
	for _, r := range d.town.Runs() {
		lives = append(lives, RunLife{Run: r.ID, Epoch: r.Epoch})
	}
	d.report(Report{Kind: ReportHeartbeat, Runs: lives})
}

func (d *driver) gen() int64 { return d.town.info.Sandbox.Generation }

func (d *driver) hello() {
	d.t.Helper()
	d.seq = 0
	d.do(Hello{Generation: d.gen(), Stream: d.stream})
}

func (d *driver) report(items ...Report) {
	d.t.Helper()
	d.do(Reports{Generation: d.gen(), Stream: d.stream, From: d.seq + 1, Items: items})
	d.seq += int64(len(items))
}

func (d *driver) rig(gates ...Gate) {
	d.t.Helper()
	d.do(AddRig{By: "ann", Rig: Rig{Name: "web", Prefix: "web", URL: "/srv/web.git", Target: "main", Tip: commitName(0), Gates: gates,
		Settings: Settings{"agent": "scripted"}}})
}

func (d *driver) bead(id string, more ...func(*CreateBead)) {
	d.t.Helper()
	in := CreateBead{By: "ann", ID: id, Rig: "web", Title: "do " + id, Priority: 2}
	for _, m := range more {
		m(&in)
	}
	d.do(in)
}

func (d *driver) the(id string) Bead {
	d.t.Helper()
	b, ok := d.town.Bead(id)
	if !ok {
		d.t.Fatalf("no bead %s", id)
	}
	return b
}

func (d *driver) run(id string) Run {
	d.t.Helper()
	b := d.the(id)
	r, ok := d.town.Run(b.currentRun())
	if !ok {
		d.t.Fatalf("bead %s (%s) has no run", id, b.Status)
	}
	return r
}

// spawn says that the agent of a bead runs.
func (d *driver) spawn(id string) Run {
	d.t.Helper()
	r := d.run(id)
	d.report(Report{Kind: ReportStarted, Run: r.ID, Epoch: r.Epoch, PID: 42})
	return d.run(id)
}

func (d *driver) done(id string) {
	d.t.Helper()
	r := d.run(id)
	d.do(Verdict{Generation: d.gen(), Run: r.ID, Epoch: r.Epoch, CallID: "c" + r.ID, Kind: VerdictDone, Text: "did it",
		Evidence: Evidence{Commit: commitName(500), Exists: true, Descends: true, Changed: true}})
}

func (d *driver) ended(r Run, o Outcome, c Class, reason string) {
	d.t.Helper()
	d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: o, Class: c, Reason: reason})
}

func (d *driver) gates(id string, passed bool) {
	d.t.Helper()
	b := d.the(id)
	if b.Merge == nil {
		d.t.Fatalf("bead %s (%s) is not being merged", id, b.Status)
	}
	d.do(GatesDone{Generation: d.gen(), Bead: id, N: b.Merge.N, Candidate: b.Merge.Candidate,
		Results: []GateRun{{Name: "test", Passed: passed, ExitCode: map[bool]int{false: 1}[passed], Log: "log of test"}}})
}

func (d *driver) wantBead(id string, s BeadStatus) Bead {
	d.t.Helper()
	b := d.the(id)
	if b.Status != s {
		r, _ := d.town.Why(d.now, id)
		d.t.Fatalf("bead %s is %s (%s), want %s", id, b.Status, r.Text, s)
	}
	return b
}

func (d *driver) wantSandbox(s SandboxState) {
	d.t.Helper()
	if got := d.town.info.Sandbox.State; got != s {
		d.t.Fatalf("sandbox is %s (%s), want %s", got, d.town.WhyTown(d.now).Text, s)
	}
}

func (d *driver) wantWhy(id string, s Standing, kind string) Reason {
	d.t.Helper()
	r, err := d.town.Why(d.now, id)
	if err != nil || r.State != s || r.Kind != kind {
		d.t.Fatalf("why %s = %+v, %v; want %s %s", id, r, err, s, kind)
	}
	return r
}

// count is how many ledger entries of a kind there were.
func (d *driver) count(kind string) int {
	n := 0
	for _, e := range d.ledger {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// check asserts what must hold after every input.
func (d *driver) check() {
	d.t.Helper()
	for i, e := range d.ledger {
		if e.Seq != int64(i+1) {
			d.t.Fatalf("ledger entry %d has number %d", i+1, e.Seq)
		}
	}
	for day, g := range d.lent {
		if have := d.town.grantedTo(func(b Block) bool { return b.Day == day }); have != g {
			d.t.Fatalf("on %s %+v is granted, and the server was told of %+v", day, have, g)
		}
	}
	checkInvariants(d.t, d.town, d.now)
}
