package town

import (
	"maps"
	"slices"
	"strconv"
)

// Offers is what the server has for agents to work with. It is given like the
// server's settings and is no part of a town's state. Nobody changes it once it
// was given.
type Offers struct {
	Agents    map[string]AgentOffer
	Providers map[string]ProviderOffer
	// Place names what sandboxes bring along: their image, or the programs of this
	// machine. What was missing in one place may be there in the next.
	Place string
}

// AgentOffer is a preset of an agent.
type AgentOffer struct {
	NeedsProvider bool
	Wire          string // of its model
	Install       string // how to install it
	Missing       string // why sandboxes can't start it, as far as the server sees; "" if they can
}

// ProviderOffer is a configured model provider.
type ProviderOffer struct {
	Kind     string
	Wires    []string
	Unusable string // why it can't be used, with what mends it; "" if it can
}

// Missing is an agent that a sandbox could not start because it is not there.
type Missing struct {
	At    Time   `json:"at"`
	Why   string `json:"why"`
	Place string `json:"place,omitempty"` // see Offers
}

// SubjectMissing is the subject of a run whose agent is not installed in its sandbox.
const SubjectMissing = "missing"

// SetOffers gives what the server has for agents. nil: nothing is known, and
// nothing waits for it.
func (t *Town) SetOffers(o *Offers) { t.offers = o }

// Offers returns what was given last.
func (t *Town) Offers() *Offers { return t.offers }

// agentWait is what keeps a bead from starting because what it shall be worked
// on with does not exist, does not fit, or is not there. Nothing else is ever
// taken instead: that would spend money on what nobody asked for. b is nil for
// the rig's beads without settings of their own.
func (t *Town) agentWait(b *Bead, r *Rig) Reason {
	if t.offers == nil {
		return Reason{}
	}
	s := t.selection(RolePolecat, b, r)
	a, ok := t.offers.Agents[s.Agent.Value]
	if !ok {
		return waits(waitAgent, "agent/"+clip(s.Agent.Value, 60), 0, "there is no agent preset %q (setting %s of the %s): %s, with one of %s",
			clip(s.Agent.Value, 60), s.Agent.Key, s.Agent.From, t.setCommand(s.Agent, b, r), list(slices.Sorted(maps.Keys(t.offers.Agents))))
	}
	if why := t.notThere(s.Agent.Value, a); why != "" {
		return waits(waitAgent, "agent/"+s.Agent.Value, 0, "the agent %s (setting %s of the %s) is not installed where sandboxes run: %s; gastown retry agent/%s --town %s tries again, or choose another: %s",
			s.Agent.Value, s.Agent.Key, s.Agent.From, why, s.Agent.Value, t.info.Name, t.setCommand(s.Agent, b, r))
	}
	if !a.NeedsProvider {
		return Reason{}
	}
	return t.providerWait(s, a, b, r)
}

// notThere says why an agent can't be started in the town's sandbox.
func (t *Town) notThere(name string, a AgentOffer) string {
	if a.Missing != "" {
		return a.Missing
	}
	if m, ok := t.info.Missing[name]; ok && m.Place == t.offers.Place {
		return m.Why
	}
	return ""
}

func (t *Town) providerWait(s Selection, a AgentOffer, b *Bead, r *Rig) Reason {
	var fit []string
	for _, name := range slices.Sorted(maps.Keys(t.offers.Providers)) {
		if slices.Contains(t.offers.Providers[name].Wires, a.Wire) {
			fit = append(fit, name)
		}
	}
	way := t.setCommand(s.Provider, b, r) + ", with one of " + list(fit)
	if len(fit) == 0 {
		way = "gastown provider add KIND NAME --key-file FILE adds one (gastown provider add --help lists the kinds)"
	}
	p, ok := t.offers.Providers[s.Provider.Value]
	subject := "provider/" + clip(s.Provider.Value, 60)
	switch {
	case s.Provider.Value == "":
		return waits(waitAgent, "agent/"+s.Agent.Value, 0, "the agent %s needs a model provider that speaks %s, and none is chosen: %s", s.Agent.Value, a.Wire, way)
	case !ok:
		return waits(waitAgent, subject, 0, "there is no model provider %q (setting %s of the %s): %s", clip(s.Provider.Value, 60), s.Provider.Key, s.Provider.From, way)
	case p.Unusable != "":
		return waits(waitAgent, subject, 0, "the model provider %s (setting %s of the %s) can't be used: %s", s.Provider.Value, s.Provider.Key, s.Provider.From, p.Unusable)
	case !slices.Contains(p.Wires, a.Wire):
		return waits(waitAgent, subject, 0, "the agent %s (setting %s of the %s) speaks %s with its model, which the provider %s (%s; setting %s of the %s) does not: %s",
			s.Agent.Value, s.Agent.Key, s.Agent.From, a.Wire, s.Provider.Value, p.Kind, s.Provider.Key, s.Provider.From, way)
	case s.Model.Value == "":
		return waits(waitAgent, "agent/"+s.Agent.Value, 0, "the agent %s needs a model, and none is chosen: %s", s.Agent.Value, t.setCommand(s.Model, b, r))
	}
	return Reason{}
}

// waitsAgent reports whether work waits for what the server does not have: when
// it has something else, it looks at such towns.
func (t *Town) waitsAgent() bool {
	if t.offers == nil || t.info.Mode != ModeActive {
		return false
	}
	for name, q := range t.ix.ready {
		usual := t.agentWait(nil, t.rigs[name]).Kind != ""
		if t.ix.ownSelection == 0 {
			if usual && len(*q) > 0 {
				return true
			}
			continue
		}
		for _, k := range *q {
			b := t.beads[k.id]
			if b.ownSelection() && t.agentWait(b, t.rigs[name]).Kind != "" || usual && !b.ownSelection() {
				return true
			}
		}
	}
	return false
}

// agentMissing ends a run whose agent is not installed in its sandbox. Trying
// again in the same place would only wake it again: work waits until the place
// is another one, or a person says that it is there now.
func (t *Town) agentMissing(r *Run, now Time, why string) {
	m := map[string]Missing{}
	maps.Copy(m, t.info.Missing)
	m[r.Preset] = Missing{At: now, Why: plain(why, 1000), Place: t.offers.Place}
	t.info.Missing = m
	t.mark(kindTown, t.info.ID)
	t.log(now, "agent.missing", "agent/"+r.Preset, "", plain(why, 1000), "generation", strconv.FormatInt(r.Generation, 10))
	t.endRun(r, now, OutcomeFailed, ClassInfra, why)
}

// agentThere forgets that an agent was missing, and reports whether it was.
func (t *Town) agentThere(preset string) bool {
	if _, ok := t.info.Missing[preset]; !ok {
		return false
	}
	m := map[string]Missing{}
	maps.Copy(m, t.info.Missing)
	delete(m, preset)
	if len(m) == 0 {
		m = nil
	}
	t.info.Missing = m
	t.mark(kindTown, t.info.ID)
	return true
}
