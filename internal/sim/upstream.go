package sim

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"gastown/internal/git/hub"
)

// hubs are the repositories and their upstreams.
type hubs struct {
	w     *world
	rigs  map[hub.ID]*upstream
	cands map[string]candidate // by commit
	nodes map[string]*node     // all commits that ever were on a target
	units map[string]int       // commits with agents' work: how much of it
	wip   map[string]string    // checkpoints by town and ref
}

// node is a commit that was on a target.
type node struct {
	parent *node
	commit string
	work   string // what it merged
	depth  int
}

type upstream struct {
	id      hub.ID
	tip     string
	down    time.Time       // can't be reached until then
	pushes  int             // by other people
	offered []string        // branches that wait for a person to merge them
	ever    map[string]bool // what the target contained at some time
}

type candidate struct{ bead, commit, tip string }

func newHubs(w *world) *hubs {
	return &hubs{w: w, rigs: map[hub.ID]*upstream{}, cands: map[string]candidate{}, nodes: map[string]*node{}, units: map[string]int{}, wip: map[string]string{}}
}

// oid makes a commit id.
func oid(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, " ")))
	return hex.EncodeToString(sum[:20])
}

// add makes a repository, if there is none.
func (h *hubs) add(id hub.ID) *upstream {
	if u := h.rigs[id]; u != nil {
		return u
	}
	u := &upstream{id: id, ever: map[string]bool{}}
	h.rigs[id] = u
	h.push(u, oid("first", id.String()), "")
	return u
}

func (h *hubs) rig(id hub.ID) *upstream { return h.add(id) }

// push puts a commit on the target.
func (h *hubs) push(u *upstream, commit, work string) {
	n := h.nodes[commit]
	if n == nil {
		n = &node{parent: h.nodes[u.tip], commit: commit, work: work}
		if n.parent != nil {
			n.depth = n.parent.depth + 1
		}
		h.nodes[commit] = n
		if work != "" && h.nodes[work] == nil {
			h.nodes[work] = n // the first merge that brought it in
		}
	}
	u.tip = commit
	u.ever[commit] = true
	if work != "" {
		u.ever[work] = true
	}
}

// contains reports whether a commit is in the history of a tip.
func (h *hubs) contains(tip, commit string) bool {
	if h.nodes[commit] == nil {
		return false // it never was on any target
	}
	for n := h.nodes[tip]; n != nil; n = n.parent {
		if n.commit == commit || n.work == commit {
			return true
		}
	}
	return false
}

// others is a push by somebody else.
func (h *hubs) others(u *upstream) {
	u.pushes++
	h.push(u, oid("other", u.id.String(), fmt.Sprint(u.pushes)), "")
}

// rewind forces the target back by up to n commits.
func (h *hubs) rewind(u *upstream, n int) {
	at := h.nodes[u.tip]
	for ; n > 0 && at.parent != nil; n-- {
		at = at.parent
	}
	u.tip = at.commit
}

// candidate merges; one in sixteen merges of distinct work conflicts.
func (h *hubs) candidate(id hub.ID, s hub.CandidateSpec) hub.Candidate {
	h.w.bounds.count(id.Town, "candidates")
	if h.contains(s.Tip, s.Commit) {
		return hub.Candidate{Tip: s.Tip, AlreadyIn: true}
	}
	c := oid("merge", s.Tip, s.Commit)
	if c[0] == '0' {
		return hub.Candidate{Tip: s.Tip, Conflict: true, Detail: "both changed a file"}
	}
	h.cands[c] = candidate{s.Bead, s.Commit, s.Tip}
	return hub.Candidate{Commit: c, Tip: s.Tip}
}

func (h *hubs) land(id hub.ID, tip, c string) hub.LandResult {
	u, cand := h.rig(id), h.cands[c]
	t := h.w.shadow.towns[id.Town]
	switch {
	case h.contains(u.tip, c):
		return hub.LandResult{Landed: true, Tip: u.tip}
	case u.tip != tip:
		return hub.LandResult{Lost: true, Tip: u.tip}
	}
	// What was pushed while its sender had given up may land, but never a second time.
	h.w.holds(invOnce, !h.contains(u.tip, cand.commit), t, "bead %s was merged twice", cand.bead)
	h.push(u, c, cand.commit)
	h.w.merged++
	h.w.shadow.landed(id.Town, cand.bead)
	return hub.LandResult{Landed: true, Tip: c}
}

func (h *hubs) publish(id hub.ID, commit string) {
	u := h.rig(id)
	if !slices.Contains(u.offered, commit) {
		u.offered = append(u.offered, commit)
	}
}

func wipKey(id, ref string) string { return id + " " + ref }

// drop removes the refs of a bead.
func (h *hubs) drop(id hub.ID, bead string) {
	h.w.shadow.dropped(id.Town, bead)
	prefix := wipKey(id.Town, "refs/gastown/wip/"+bead+"/")
	for k := range h.wip {
		if strings.HasPrefix(k, prefix) {
			delete(h.wip, k)
		}
	}
}

// refs lists the checkpoints in a repository.
func (h *hubs) refs(id hub.ID, prefix string) map[string]string {
	out := map[string]string{}
	for k, c := range h.wip {
		if ref, ok := strings.CutPrefix(k, wipKey(id.Town, "")); ok && strings.HasPrefix(ref, prefix) {
			out[ref] = c
		}
	}
	return out
}

// dropRefs removes references that nobody needs, as they were listed.
func (h *hubs) dropRefs(id hub.ID, refs map[string]string) {
	t := h.w.shadow.towns[id.Town]
	for ref, c := range refs {
		key := wipKey(id.Town, ref)
		if h.wip[key] != c {
			continue
		}
		bead, _, _ := strings.Cut(strings.TrimPrefix(ref, "refs/gastown/wip/"), "/")
		if t != nil && t.beads[bead] != nil {
			b := t.beads[bead]
			h.w.holds(invSaved, b.Status.Terminal() || b.CheckpointRef != ref, t, "checkpoint %s of bead %s was removed, and it is %s", ref, bead, b.Status)
		}
		delete(h.wip, key)
	}
}

func (h *hubs) removed(id hub.ID) {
	h.w.holds(invRemoved, !h.w.shadow.hasRig(id.Town, id.Rig), h.w.shadow.towns[id.Town], "the repository of %s was removed, and the rig is there", id)
	delete(h.rigs, id)
}

func (h *hubs) removedTown(id string) {
	t := h.w.shadow.towns[id]
	h.w.holds(invRemoved, t == nil || t.columns.Status == "deleting", t, "the repositories of %s were removed, and the town is there", id)
	for r := range h.rigs {
		if r.Town == id {
			delete(h.rigs, r)
		}
	}
}

func (h *hubs) list() (out []hub.ID) {
	for id := range h.rigs {
		out = append(out, id)
	}
	slices.SortFunc(out, func(a, b hub.ID) int { return cmp.Compare(a.String(), b.String()) })
	return out
}
