package gateway

import (
	"sort"
	"strings"

	"gastown/internal/git"
	"gastown/internal/git/hub"
)

// GitGrant is what one caller may do with one repository. Whoever has a grant
// may fetch all that the repository shows, and any commit by its id.
type GitGrant struct {
	ID   hub.ID
	Push []PushRule
	// See lists prefixes of checkpoints ("refs/gastown/wip/b-1/") to show beside
	// those that may be pushed.
	See []string
	// Refusal is added to the explanation of a refused push, e.g. "the target
	// branch is merged by gastown after done".
	Refusal string
	// MaxBytes is how much the repositories of the town may take together; 0 is
	// no limit.
	MaxBytes int64
}

// PushRule allows pushes to one reference, or to all below a prefix. The first
// rule that matches decides.
type PushRule struct {
	Ref    string // exact, or a prefix ending in "/"
	Force  bool   // may rewrite history
	Frozen string // when non-empty, pushes are refused with this reason
}

func (p PushRule) matches(ref string) bool {
	if strings.HasSuffix(p.Ref, "/") {
		return strings.HasPrefix(ref, p.Ref)
	}
	return ref == p.Ref
}

func (g GitGrant) rule(ref string) (PushRule, bool) {
	for _, p := range g.Push {
		if p.matches(ref) {
			return p, true
		}
	}
	return PushRule{}, false
}

// judge returns why each refused command is refused; empty when all may go on.
// force is whether all of them may rewrite history.
func (g GitGrant) judge(cmds []command) (reasons map[string]string, force bool) {
	reasons, force = map[string]string{}, true
	for _, c := range cmds {
		rule, ok := g.rule(c.Ref)
		switch {
		case !ok:
			reasons[c.Ref] = "not yours to push"
		case rule.Frozen != "":
			reasons[c.Ref] = rule.Frozen
		case c.deletes():
			reasons[c.Ref] = "deleting references is not allowed"
		}
		force = force && rule.Force
	}
	return reasons, force
}

// explain is what the user reads of a refused push.
func (g GitGrant) explain(reasons map[string]string) string {
	var b strings.Builder
	b.WriteString("gastown refused this push; nothing was changed.\n")
	for i, ref := range sortedKeys(reasons) {
		if i == 10 {
			b.WriteString("  …\n")
			break
		}
		b.WriteString("  " + ref + ": " + oneLine(reasons[ref]) + "\n")
	}
	var open []string
	for _, p := range g.Push {
		if p.Frozen == "" {
			open = append(open, strings.TrimPrefix(p.Ref, "refs/heads/"))
		}
	}
	if len(open) > 0 {
		b.WriteString("You may push: " + strings.Join(open, ", ") + "\n")
	}
	if g.Refusal != "" {
		b.WriteString(oneLine(g.Refusal) + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// hidden returns settings that keep from sight what is of no use to the
// caller: the state of upstream and other beads' checkpoints.
func (g GitGrant) hidden() []git.Setting {
	const key = "transfer.hideRefs"
	s := []git.Setting{{Key: key, Value: "refs/upstream"}, {Key: key, Value: "refs/gastown/wip"}}
	show := append([]string(nil), g.See...)
	for _, p := range g.Push {
		show = append(show, p.Ref)
	}
	for _, ref := range show {
		if ref = strings.TrimSuffix(ref, "/"); strings.HasPrefix(ref, "refs/gastown/wip") {
			s = append(s, git.Setting{Key: key, Value: "!" + ref})
		}
	}
	return s
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
