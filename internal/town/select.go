package town

import "strings"

// Choice is one part of what a bead is worked on with, and where it was given.
type Choice struct {
	Value string `json:"value"`
	From  Level  `json:"from"`
	Key   string `json:"key"` // the setting that gave it
}

// Selection says which agent works on a bead, with which model of which provider.
type Selection struct {
	Agent    Choice `json:"agent"`
	Provider Choice `json:"provider"`
	Model    Choice `json:"model"`
}

// The settings of which a selection is made.
const (
	keyAgent    = "agent"
	keyProvider = "provider"
	keyModel    = "model"
)

// roleKey is the setting that gives a key for one role alone.
func roleKey(role Role, key string) string { return "role." + string(role) + "." + key }

// choose finds the most specific value of one of the keys of a selection: the
// bead's own, then that for the role (of the rig, the town, the server), then
// that for all roles (of the rig, the town, the server). What is said of a role
// on purpose holds wherever nothing is said of it more closely.
func (t *Town) choose(key string, role Role, b *Bead, r *Rig) Choice {
	all := t.resolve(key, b, r)
	if all.From != LevelBead {
		if v := t.resolve(roleKey(role, key), nil, r); v.Value != "" {
			all = v
		}
	}
	return Choice{all.Value, all.From, all.Key}
}

// selection is what a new run would work with. b may be nil for what holds for
// beads without settings of their own.
func (t *Town) selection(role Role, b *Bead, r *Rig) Selection {
	return Selection{t.choose(keyAgent, role, b, r), t.choose(keyProvider, role, b, r), t.choose(keyModel, role, b, r)}
}

// Selection returns what a bead is worked on with: what its run was started
// with, or what one that starts now would get. An ended bead has none.
func (t *Town) Selection(bead string) (Selection, bool) {
	b := t.beads[bead]
	if b == nil || b.Status.Terminal() {
		return Selection{}, false
	}
	if r := t.runs[b.currentRun()]; r != nil && r.Chosen.Agent.Value != "" {
		return r.Chosen, true
	}
	return t.selection(RolePolecat, b, t.rigs[b.Rig]), true
}

// ownSelection reports whether a bead chooses its agent or model itself.
func (b *Bead) ownSelection() bool {
	for _, k := range []string{keyAgent, keyProvider, keyModel} {
		if _, ok := b.Settings[k]; ok {
			return true
		}
	}
	return false
}

// setCommand is what a person types to give a key another value, at the level
// where the present one is from. A default is overridden for the rig.
func (t *Town) setCommand(c Choice, b *Bead, r *Rig) string {
	switch {
	case c.From == LevelBead && b != nil:
		return "gastown bead edit " + b.ID + " --" + c.Key + " NAME"
	case c.From == LevelTown:
		return "gastown town set " + t.info.Name + " " + c.Key + "=NAME"
	}
	return "gastown rig set " + r.Name + " --town " + t.info.Name + " " + c.Key + "=NAME"
}

// list is for messages: names, or a word for none.
func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
