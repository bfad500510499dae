package sim

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git/hub"
	"gastown/internal/sandbox"
)

// span is a stretch of time in milliseconds.
type span struct{ from, to int64 }

// boxes are the sandboxes that really exist.
type boxes struct {
	w      *world
	by     map[string]*box   // by town: the newest generation
	lived  map[string][]span // by town: when sandboxes ran
	starts int64
}

// box is one sandbox with its runner.
type box struct {
	w       *world
	town    string
	gen     int64
	running bool
	since   time.Time
	ended   string    // why it ended
	unused  time.Time // since when nothing that was committed wants it awake; zero while something does
	runner  *runner
}

func newBoxes(w *world) *boxes {
	return &boxes{w: w, by: map[string]*box{}, lived: map[string][]span{}}
}

func (b *boxes) start(s sandbox.Spec) (sandbox.Ref, error) {
	ref := sandbox.Ref{Driver: "sim", Town: s.Town, Generation: s.Generation, ID: "box"}
	if old := b.by[s.Town]; old != nil {
		switch {
		case old.gen == s.Generation && old.running:
			return ref, nil
		case old.gen == s.Generation:
			return ref, errs.New(errs.Gone, "generation %d has ended", old.gen)
		case old.gen > s.Generation:
			return ref, errs.New(errs.Conflict, "generation %d is newer", old.gen)
		case old.running:
			b.w.violate("two sandboxes: generation %d of %s was asked for while %d runs", s.Generation, s.Town, old.gen)
			return ref, errs.New(errs.Conflict, "generation %d still runs", old.gen)
		}
	}
	b.starts++
	n := &box{w: b.w, town: s.Town, gen: s.Generation, running: true, since: b.w.now}
	b.by[s.Town] = n
	n.runner = newRunner(n)
	awake := 0
	for _, o := range b.by {
		if o.running {
			awake++
		}
	}
	if awake > b.w.limits.MaxAwake {
		b.w.violate("%d sandboxes run, the limit is %d", awake, b.w.limits.MaxAwake)
	}
	return ref, nil
}

// healthy reports that a generation runs, spoke, and would speak now.
func (b *boxes) healthy(town string, gen int64) bool {
	x := b.by[town]
	return x != nil && x.gen == gen && x.running && x.runner.greeted && !x.runner.frozen
}

// end ends a box; told says that the driver's hint reaches the server.
func (x *box) end(why string, told bool) {
	if !x.running {
		return
	}
	x.running, x.ended = false, why
	x.w.boxes.lived[x.town] = append(x.w.boxes.lived[x.town], span{x.since.UnixMilli(), x.w.now.UnixMilli()})
	if p := x.w.server(); told && p != nil {
		p.Go(func() { p.hall.Exited(sandbox.Ref{Driver: "sim", Town: x.town, Generation: x.gen}) })
	}
}

func (b *boxes) inspect(r sandbox.Ref) sandbox.Status {
	st := sandbox.Status{Ref: r, State: sandbox.Gone, Reason: "never started"}
	if x := b.by[r.Town]; x != nil && x.gen == r.Generation {
		st.Reason = x.ended
		if x.running {
			st.State, st.Reason = sandbox.Running, "running"
		}
	}
	return st
}

func (b *boxes) stop(r sandbox.Ref) {
	if x := b.by[r.Town]; x != nil && x.gen == r.Generation {
		x.end("stopped", b.w.chance(0.5))
	}
}

func (b *boxes) list() (out []sandbox.Status) {
	for _, x := range b.sorted() {
		out = append(out, b.inspect(sandbox.Ref{Driver: "sim", Town: x.town, Generation: x.gen}))
	}
	return out
}

func (b *boxes) remove(r sandbox.Ref) {
	if x := b.by[r.Town]; x != nil {
		x.end("removed", false)
		delete(b.by, r.Town)
	}
}

func (b *boxes) sorted() []*box {
	out := make([]*box, 0, len(b.by))
	for _, x := range b.by {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b *box) int { return cmp.Compare(a.town, b.town) })
	return out
}

// hubs are the repositories and their upstreams.
type hubs struct {
	w     *world
	rigs  map[hub.ID]*upstream
	cands map[string]candidate // by commit
}

type upstream struct {
	id      hub.ID
	tip     string
	in      map[string]bool // what the target contains
	pushes  int             // by other people
	offered []string        // branches that wait for a person to merge them
	merges  map[string]int  // landed candidates by bead
}

type candidate struct{ bead, commit, tip string }

func newHubs(w *world) *hubs {
	return &hubs{w: w, rigs: map[hub.ID]*upstream{}, cands: map[string]candidate{}}
}

// oid makes a commit id.
func oid(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, " ")))
	return hex.EncodeToString(sum[:20])
}

func (h *hubs) add(id hub.ID) *upstream {
	u := &upstream{id: id, tip: oid("first", id.String()), in: map[string]bool{}, merges: map[string]int{}}
	u.in[u.tip] = true
	h.rigs[id] = u
	return u
}

func (h *hubs) rig(id hub.ID) *upstream {
	if u := h.rigs[id]; u != nil {
		return u
	}
	return h.add(id)
}

func (u *upstream) push(commit string) { u.tip, u.in[commit] = commit, true }

// candidate merges; one in twelve merges of distinct work conflicts.
func (h *hubs) candidate(id hub.ID, s hub.CandidateSpec) hub.Candidate {
	if h.rig(id).in[s.Commit] {
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
	switch {
	case u.in[c]:
		return hub.LandResult{Landed: true, Tip: u.tip}
	case u.tip != tip:
		return hub.LandResult{Lost: true, Tip: u.tip}
	}
	u.push(c)
	u.in[cand.commit] = true
	u.merges[cand.bead]++
	if u.merges[cand.bead] > 1 {
		h.w.violate("bead %s was merged %d times", cand.bead, u.merges[cand.bead])
	}
	h.w.shadow.landed(id.Town, cand.bead)
	return hub.LandResult{Landed: true, Tip: c}
}

func (h *hubs) publish(id hub.ID, commit string) {
	u := h.rig(id)
	if !slices.Contains(u.offered, commit) {
		u.offered = append(u.offered, commit)
	}
}

func (h *hubs) removed(id hub.ID) {
	if h.w.shadow.hasRig(id.Town, id.Rig) {
		h.w.violate("the repository of %s was removed, and the rig is there", id)
	}
	delete(h.rigs, id)
}

func (h *hubs) removedTown(town string) {
	for id := range h.rigs {
		if id.Town == town {
			delete(h.rigs, id)
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
