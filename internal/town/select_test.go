package town

import (
	"strings"
	"testing"
	"time"
)

// offersOf is a server with the given agents that need no model, the agent
// thinker that speaks chat, and a provider for each of two wires.
func offersOf(plain ...string) *Offers {
	o := &Offers{Place: "here", Providers: map[string]ProviderOffer{"house": {Kind: "openai-compatible", Wires: []string{"chat", "responses"}},
		"other": {Kind: "anthropic", Wires: []string{"messages"}}},
		Agents: map[string]AgentOffer{"thinker": {NeedsProvider: true, Wire: "chat"}}}
	for _, name := range plain {
		o.Agents[name] = AgentOffer{}
	}
	return o
}

// missing lets a run end because its agent is not installed.
func (d *driver) missing(r Run) {
	d.t.Helper()
	d.report(Report{Kind: ReportEnded, Run: r.ID, Epoch: r.Epoch, Outcome: OutcomeFailed, Class: ClassInfra, Subject: SubjectMissing,
		Reason: "the program is not in PATH (install it)"})
}

func TestARunIsToldWhetherItMayShareAProcess(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{false, true} {
		d := newDriver(t)
		d.rig()
		if own {
			d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"process_per_run": "true"}})
		}
		d.bead("web-aaaaa")
		d.hello()
		if got := d.town.Desired().Runs[0].OwnProcess; got != own {
			t.Errorf("process_per_run %v: the run is told %v", own, got)
		}
	}
}

func TestTheMostSpecificAgentAndModelHold(t *testing.T) {
	t.Parallel()
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
	d.do(SetRig{By: "ann", Rig: "web", Unset: []string{"agent"}})
	server := Settings{}
	want := func(value string, from Level, key string) {
		t.Helper()
		s, ok := d.town.Selection("web-aaaaa")
		if got := s.Agent; !ok || got != (Choice{value, from, key}) {
			t.Errorf("agent: %+v, want %s from %s of the %s", got, value, key, from)
		}
	}
	want("opencode", LevelDefault, "agent")
	server["agent"] = "a1"
	d.town.SetServer(server)
	want("a1", LevelServer, "agent")
	d.set(Settings{"agent": "a2"})
	want("a2", LevelTown, "agent")
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"agent": "a3"}})
	want("a3", LevelRig, "agent")
	server["role.polecat.agent"] = "a4"
	d.town.SetServer(server)
	want("a4", LevelServer, "role.polecat.agent")
	d.set(Settings{"role.polecat.agent": "a5", "role.polecat.model": "m5"})
	want("a5", LevelTown, "role.polecat.agent")
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"role.polecat.agent": "a6", "model": "m6"}})
	want("a6", LevelRig, "role.polecat.agent")
	d.do(EditBead{By: "ann", Bead: "web-aaaaa", Set: Settings{"agent": "a7"}})
	want("a7", LevelBead, "agent")
	s, _ := d.town.Selection("web-aaaaa")
	if s.Model != (Choice{"m5", LevelTown, "role.polecat.model"}) {
		t.Errorf("the model is chosen apart from the agent: %+v", s.Model)
	}
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"role.polecat.agent": ""}})
	d.do(EditBead{By: "ann", Bead: "web-aaaaa", Unset: []string{"agent"}})
	d.set(Settings{"role.polecat.agent": ""})
	want("a3", LevelRig, "agent")
}

func TestARunKeepsWhatItWasStartedWith(t *testing.T) {
	t.Parallel()
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.hello()
	d.spawn("web-aaaaa")
	d.do(EditBead{By: "ann", Bead: "web-aaaaa", Set: Settings{"agent": "later"}})
	if s, _ := d.town.Selection("web-aaaaa"); s.Agent != (Choice{"scripted", LevelRig, "agent"}) {
		t.Errorf("at work it is %+v", s.Agent)
	}
}

// TestNothingIsTakenInstead has one case for each thing that can be wrong with
// what a bead is to be worked on with, and what makes it right.
func TestNothingIsTakenInstead(t *testing.T) {
	t.Parallel()
	good := Settings{"agent": "thinker", "provider": "house", "model": "m"}
	for name, c := range map[string]struct {
		set   Settings
		spoil func(*Offers)
		says  []string
		mend  Settings // "" takes the bead's own setting back; nil: the server mends it
	}{
		"an agent that does not exist": {Settings{"agent": "nobody"}, nil,
			[]string{`no agent preset "nobody"`, "setting agent of the bead", "gastown bead edit web-aaaaa --agent NAME", "scripted, thinker"}, Settings{"agent": "scripted"}},
		"an agent that is not installed": {good, func(o *Offers) {
			o.Agents["thinker"] = AgentOffer{NeedsProvider: true, Wire: "chat", Missing: "npm install thinker"}
		},
			[]string{"thinker", "not installed", "npm install thinker", "gastown retry agent/thinker --town acme"}, nil},
		"no provider": {Settings{"agent": "thinker", "model": "m"}, nil,
			[]string{"needs a model provider that speaks chat", "gastown rig set web --town acme provider=NAME, with one of house"}, Settings{"provider": "house"}},
		"no provider at all": {Settings{"agent": "thinker", "model": "m"}, func(o *Offers) { o.Providers = nil },
			[]string{"needs a model provider", "gastown provider add"}, Settings{"agent": "scripted"}},
		"a provider that does not exist": {Settings{"agent": "thinker", "provider": "gone", "model": "m"}, nil,
			[]string{`no model provider "gone"`, "--provider NAME, with one of house"}, Settings{"provider": "house"}},
		"a provider without a key": {good, func(o *Offers) {
			o.Providers["house"] = ProviderOffer{Wires: []string{"chat"}, Unusable: "it has no key; gastown provider add"}
		},
			[]string{"house", "it has no key; gastown provider add"}, nil},
		"a provider of another wire": {Settings{"agent": "thinker", "provider": "other", "model": "m"}, nil,
			[]string{"speaks chat", "the provider other (anthropic", "with one of house"}, Settings{"provider": "house"}},
		"no model": {Settings{"agent": "thinker", "provider": "house"}, nil,
			[]string{"needs a model, and none is chosen", "model=NAME"}, Settings{"model": "m"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			o := offersOf("scripted")
			if c.spoil != nil {
				c.spoil(o)
			}
			d.town.SetOffers(o)
			d.rig()
			d.bead("web-aaaaa", func(b *CreateBead) { b.Settings = c.set })
			d.bead("web-bbbbb") // others go on
			w := d.wantWhy("web-aaaaa", Waiting, waitAgent)
			for _, says := range c.says {
				if !strings.Contains(w.Text, says) {
					t.Errorf("why does not say %q: %s", says, w.Text)
				}
			}
			if !d.town.Columns(d.now).Budget {
				t.Error("the store does not know that it waits")
			}
			if d.town.beads["web-bbbbb"].Status != BeadInProgress {
				t.Errorf("the other bead is %s", d.town.beads["web-bbbbb"].Status)
			}
			d.hello()
			d.do(CancelBead{By: "ann", Bead: "web-bbbbb"})
			d.ended(d.run("web-bbbbb"), OutcomeStopped, "", "")
			d.pass(10 * time.Minute)
			b := d.town.beads["web-aaaaa"]
			if b.Status != BeadOpen || b.Epoch != 0 || b.Charged != 0 || len(b.Failures) != 0 {
				t.Errorf("%s, epoch %d, %d charged", b.Status, b.Epoch, b.Charged)
			}
			if c.mend != nil {
				d.do(EditBead{By: "ann", Bead: "web-aaaaa", Set: c.mend})
			} else {
				d.town.SetOffers(offersOf("scripted"))
				d.do(Tick{})
			}
			if b.Status != BeadInProgress {
				t.Errorf("mended, it is %s: %s", b.Status, d.town.why(b, At(d.now)).Text)
			}
			if d.town.Columns(d.now).Budget {
				t.Error("the store says that it waits still")
			}
		})
	}
}

func TestAnAgentThatIsNotThereIsNotTriedAgainInTheSamePlace(t *testing.T) {
	t.Parallel()
	begin := func(t *testing.T) *driver {
		d := newDriver(t)
		d.town.SetOffers(offersOf("scripted"))
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.missing(d.run("web-aaaaa"))
		w := d.wantWhy("web-aaaaa", Waiting, waitAgent)
		if !strings.Contains(w.Text, "the program is not in PATH (install it)") {
			t.Errorf("why: %s", w.Text)
		}
		b := d.town.beads["web-aaaaa"]
		if b.Charged != 0 || b.Attempt != 1 || len(b.Failures) != 1 || b.Failures[0].Charged {
			t.Errorf("attempt %d, %d charged, %+v", b.Attempt, b.Charged, b.Failures)
		}
		if len(d.town.Breakers()) != 0 {
			t.Errorf("breakers: %+v", d.town.Breakers())
		}
		d.pass(2 * time.Hour)
		if b.Epoch != 1 {
			t.Errorf("it was tried %d times", b.Epoch)
		}
		return d
	}
	atWork := func(t *testing.T, d *driver) {
		t.Helper()
		if b := d.town.beads["web-aaaaa"]; b.Status != BeadInProgress || b.Epoch != 2 {
			t.Errorf("it is %s, epoch %d: %s", b.Status, b.Epoch, d.town.why(b, At(d.now)).Text)
		}
	}
	t.Run("another place", func(t *testing.T) {
		d := begin(t)
		o := offersOf("scripted")
		o.Place = "there"
		d.town.SetOffers(o)
		d.do(Tick{})
		atWork(t, d)
	})
	t.Run("a person", func(t *testing.T) {
		d := begin(t)
		d.do(Retry{By: "ann", ID: "agent/scripted"})
		atWork(t, d)
		d.hello()
		d.spawn("web-aaaaa")
	})
}

func TestWaitingForAnAgentHoldsNothing(t *testing.T) {
	t.Parallel()
	t.Run("a provider that is not there", func(t *testing.T) {
		d := newDriver(t)
		d.town.SetOffers(offersOf("scripted"))
		d.rig()
		d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"agent": "thinker", "provider": "gone", "model": "m"}})
		d.bead("web-aaaaa")
		asleep(t, d, waitAgent)
	})
	t.Run("an agent that its sandbox does not have", func(t *testing.T) {
		d := newDriver(t)
		d.town.SetOffers(offersOf("scripted"))
		d.rig()
		d.bead("web-aaaaa")
		d.hello()
		d.missing(d.run("web-aaaaa"))
		asleep(t, d, waitAgent)
	})
}
