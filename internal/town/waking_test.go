package town

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// wakes says of every input and every outcome of an action whether it may make
// work runnable, or a hold, in a town that sleeps with nothing to do. What may
// not is driven against such towns below; a type that is missing fails the test.
var wakes = map[string]struct {
	may bool
	why string
}{
	"bead.create":      {true, "new work"},
	"bead.import":      {true, "new work"},
	"bead.sling":       {true, "staged work is released"},
	"bead.edit":        {true, "another agent or model may be one that works"},
	"bead.depend":      {true, "a removed blocker releases work"},
	"bead.close":       {true, "closing a blocker releases work"},
	"bead.cancel":      {false, "a cancelled blocker blocks"},
	"bead.reopen":      {true, "work is taken up again"},
	"bead.nudge":       {false, "mail to nobody running is refused"},
	"retry":            {true, "a person ends a pause"},
	"doctor.mend":      {true, "an alarm that was missed let work wait"},
	"row.drop":         {false, "what can't be read changes nothing, nor does its end"},
	"escalation.seen":  {false, "a person saw it"},
	"rig.add":          {false, "a new rig has no beads"},
	"rig.set":          {true, "only work that waited for this very setting, such as a limit of 0"},
	"rig.drop":         {false, ""},
	"town.set":         {true, "only work that waited for this very setting, such as a limit of 0"},
	"town.pause":       {false, ""},
	"town.resume":      {true, "a person ends a pause, or keeps it awake"},
	"token.refresh":    {false, "refused while asleep"},
	"town.delete":      {false, "an asleep town is deleted without waking it"},
	"town.import":      {false, "refused: the town is not being imported"},
	"town.imported":    {false, "refused: the town is not being imported"},
	"rig.clone":        {false, "refused: the rig has its repository"},
	"sandbox.hello":    {false, "refused: no generation is current while asleep"},
	"sandbox.reports":  {false, "refused: no generation is current while asleep"},
	"run.verdict":      {false, "refused: no run is current while asleep"},
	"run.refused":      {false, "refused: no generation is current while asleep"},
	"merge.gates":      {false, "refused: no generation is current while asleep"},
	"usage":            {false, "money that was spent starts nothing"},
	"usage.block":      {false, "refused: no run is current while asleep"},
	"provider.limited": {false, "refused: no run is current while asleep"},
	"provider.works":   {false, "refused: no run is current while asleep"},
	"token.exchange":   {false, "refused: an asleep sandbox has nothing to renew"},
	"sandbox.exited":   {false, "sleep that was asked for is no eviction"},
	"effect.done":      {true, "by the action: see below"},
	"unheard":          {false, "a restart of the server is no work"},
	"slot.free":        {false, "it only lets a town ask that is queued already"},
	"restored":         {true, "work that the backup has at an agent is taken up again"},
	"tick":             {true, "a pause that is over releases work"},

	"do sandbox.admit":   {false, "stale while asleep"},
	"do sandbox.start":   {false, "stale while asleep"},
	"do sandbox.stop":    {false, "stale while asleep"},
	"do sandbox.inspect": {false, "stale while asleep"},
	"do rig.fetch":       {true, "runnable work waited for the tip"},
	"do merge.candidate": {true, "a candidate has gates, a conflict sends its bead back"},
	"do merge.land":      {true, "a landed blocker releases work"},
	"do merge.publish":   {false, "waiting for others holds nothing"},
	"do merge.check":     {true, "a merged blocker releases work"},
	"do bead.cleanup":    {true, "a reopened bead may have waited for it"},
	"do rig.remove":      {false, ""},
	"do town.remove":     {false, ""},
	"do notify":          {false, "telling people is no work"},
	"do token.renew":     {false, "stale while asleep"},
}

func TestEveryInputAndActionSaysWhetherItMayWake(t *testing.T) {
	seen := map[string]bool{}
	for _, in := range Inputs() {
		seen[InputName(in)] = true
	}
	for _, a := range Actions() {
		seen["do "+ActionName(a)] = true
	}
	for name := range seen {
		if _, ok := wakes[name]; !ok {
			t.Errorf("%s is not in the table", name)
		}
	}
	for name := range wakes {
		if !seen[name] {
			t.Errorf("%s is in the table and does not exist", name)
		}
	}
}

// asleepTown draws a history and lets it end in a town that sleeps with nothing
// to do, whatever waits in it.
func asleepTown(t *testing.T, rt *rapid.T) *driver {
	d := newDriver(t)
	d.perform = false
	h := history{rt: rt, d: d}
	d.do(AddRig{By: "ann", Rig: Rig{Name: "web", Prefix: "web", URL: "/x", Target: "main", Tip: commitName(0)}})
	for range rapid.IntRange(0, 40).Draw(rt, "steps") {
		in, _ := h.input()
		if err := d.try(in); err != nil {
			continue
		}
	}
	if d.town.info.Mode == ModeDeleting {
		rt.Skip("deleting")
	}
	d.perform = true
	for range 60 {
		if d.town.info.Sandbox.State == SandboxAsleep && len(d.town.holds(At(d.now))) == 0 {
			return d
		}
		d.now = d.now.Add(20 * time.Second)
		h.behave()
		d.do(Tick{})
	}
	rt.Skip("did not fall asleep")
	return nil
}

func TestWhatMayNotWakeDoesNot(t *testing.T) {
	driven := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		d := asleepTown(t, rt)
		d.perform = false
		h := history{rt: rt, d: d}
		for range 12 {
			in := sleeper(h)
			driven[InputName(in)]++
			if err := d.try(in); err != nil {
				continue // a refusal changes nothing, which try checks
			}
			if s := d.town.info.Sandbox; s.State != SandboxAsleep || len(d.town.Holds(d.now)) > 0 {
				rt.Fatalf("%T woke it: %s", in, d.town.WhyTown(d.now).Text)
			}
			for _, e := range d.town.Effects(d.now) {
				if strings.HasPrefix(e.Key, "sandbox/") || strings.HasPrefix(e.Key, "token/") {
					rt.Fatalf("%T asks for %s", in, e.Key)
				}
			}
		}
	})
	for name, w := range wakes {
		if !w.may && !strings.HasPrefix(name, "do ") && driven[name] == 0 {
			t.Errorf("%s says it does not wake and was never driven", name)
		}
	}
}

// sleeper draws an input of a type that may not wake, in the town's own names.
func sleeper(h history) Input {
	b, r, gen := h.someBead(), h.someRun(), h.d.gen()
	inputs := []Input{
		CancelBead{By: "ann", Bead: b},
		Acknowledge{By: "ann", ID: "esc/1"},
		DropRow{By: "ann", Name: "bead/web-aaaaa"},
		NudgeBead{By: "ann", Bead: b, Text: "hurry"},
		AddRig{By: "ann", Rig: Rig{Name: "api", Prefix: "api", URL: "/y", Target: "main", Tip: commitName(4)}},
		DropRig{By: "ann", Rig: "web", Force: h.pick(2) == 0},
		Pause{By: "ann", Now: h.pick(2) == 0},
		DeleteTown{By: "ann"},
		RefreshToken{By: "ann"},
		ImportPart{Beads: []Bead{{ID: "web-ccccc", Rig: "web"}}},
		FinishImport{By: "ann", Start: true},
		CloneRig{By: "ann", Rig: "web", URL: "/x", Tip: commitName(3)},
		Hello{Generation: gen, Stream: "again"},
		Reports{Generation: gen, Stream: "s1", From: h.d.town.info.Sandbox.Seq + 1, Items: []Report{{Kind: ReportHeartbeat}}},
		Verdict{Generation: gen, Run: r.ID, Epoch: r.Epoch, CallID: "z", Kind: VerdictNoChange, Text: "x"},
		Refused{Generation: gen, Run: r.ID, Epoch: r.Epoch, Why: "x"},
		GatesDone{Generation: gen, Bead: b, N: 1},
		Exchange{Generation: gen},
		SandboxExited{Generation: gen, Reason: "gone"},
		Unheard{},
		SlotFree{},
		h.usage(),
		TakeBlock{Run: r.ID, Epoch: r.Epoch, ID: "b1", Tokens: 10},
		Limited{Run: r.ID, Epoch: r.Epoch, Provider: r.Provider},
		ProviderWorks{Run: r.ID, Epoch: r.Epoch, Provider: r.Provider},
	}
	return inputs[h.pick(len(inputs))]
}

// asleep waits until a town sleeps, and sees that it goes on sleeping for a day
// while its bead waits.
func asleep(t *testing.T, d *driver, kind string) {
	t.Helper()
	for range 8 {
		if d.town.info.Sandbox.State == SandboxAwake || d.town.info.Sandbox.State == SandboxDraining {
			d.pass(time.Minute)
		}
	}
	d.wantSandbox(SandboxAsleep)
	starts := d.town.info.Sandbox.Starts
	until := d.wantWhy("web-aaaaa", Waiting, kind).Until
	for range 22 * 12 {
		d.now = d.now.Add(5 * time.Minute)
		if until != 0 && until <= At(d.now) {
			t.Fatalf("its wait ends at %s already", until)
		}
		d.do(Tick{})
		d.wantWhy("web-aaaaa", Waiting, kind)
		if got := d.town.info.Sandbox.Starts; got != starts {
			t.Fatalf("it was started while its bead waits: %s", d.town.info.Sandbox.StartReason)
		}
	}
}

// TestWaitingHoldsNothing has one town for each thing that a bead can wait for
// while nobody can do anything about it.
func TestWaitingHoldsNothing(t *testing.T) {
	t.Run("staged", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
		asleep(t, d, waitStaged)
	})
	t.Run("a blocker", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-bbbbb", func(c *CreateBead) { c.Staged = true })
		d.bead("web-aaaaa", func(c *CreateBead) { c.BlockedBy = []string{"web-bbbbb"} })
		asleep(t, d, waitBlocker)
	})
	t.Run("a person", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		r := d.spawn("web-aaaaa")
		d.do(Verdict{Generation: 1, Run: r.ID, Epoch: 1, CallID: "e", Kind: VerdictEscalate, Text: "which one?"})
		d.ended(r, OutcomeStopped, "", "")
		asleep(t, d, waitPerson)
	})
	t.Run("a branch that others merge", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"merge.mode": "branch", "branch.poll_interval": "24h"}})
		d.bead("web-aaaaa")
		d.hello()
		r := d.spawn("web-aaaaa")
		d.done("web-aaaaa")
		d.ended(r, OutcomeDone, "", "")
		asleep(t, d, waitBranch)
	})
	t.Run("a pause", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(Pause{By: "ann"})
		d.bead("web-aaaaa")
		asleep(t, d, waitPause)
	})
	t.Run("an open breaker", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(SetTown{By: "ann", Set: Settings{"infra.backoff_min": "24h", "infra.backoff_max": "24h"}})
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.run("web-aaaaa"), OutcomeFailed, ClassInfra, "not installed")
		asleep(t, d, waitBreaker)
	})
	t.Run("backoff", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(SetTown{By: "ann", Set: Settings{"work.backoff": "23h"}})
		d.bead("web-aaaaa")
		d.hello()
		d.ended(d.spawn("web-aaaaa"), OutcomeExited, ClassWork, "no verdict")
		asleep(t, d, waitBackoff)
	})
	t.Run("capacity of none", func(t *testing.T) {
		d := newDriver(t)
		d.rig()
		d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"polecats.per_rig": "0"}})
		d.bead("web-aaaaa")
		asleep(t, d, waitCapacity)
	})
}
