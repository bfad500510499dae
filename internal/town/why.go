package town

import (
	"fmt"
	"strings"
	"time"
)

// Standing says in one word how a bead stands. Every bead has exactly one.
type Standing string

// The standings.
const (
	Runnable Standing = "runnable"
	Active   Standing = "active"
	Waiting  Standing = "waiting"
	Terminal Standing = "terminal"
)

// The kinds of waiting.
const (
	waitStaged   = "staged"
	waitPerson   = "person"
	waitBlocker  = "blocker"
	waitBackoff  = "backoff"
	waitPause    = "pause"
	waitBreaker  = "breaker"
	waitFetch    = "fetch"
	waitCapacity = "capacity"
	waitAlone    = "alone"
	waitCleanup  = "cleanup"
	waitSandbox  = "sandbox_start"
	waitMerge    = "merge_turn"
	waitBranch   = "branch"
	waitRemoving = "removing"

	waitRepository = "repository"
	waitBudget     = "budget"
	waitLimit      = "limit"
	waitAgent      = "agent"
)

// Reason says how a bead stands and why.
type Reason struct {
	State   Standing `json:"state"`
	Kind    string   `json:"kind,omitempty"` // what it waits for or does
	Text    string   `json:"text"`
	Subject string   `json:"subject,omitempty"` // the blocker, run or breaker
	Until   Time     `json:"until,omitempty"`   // when time alone ends it
}

func waits(kind, subject string, until Time, format string, args ...any) Reason {
	return Reason{State: Waiting, Kind: kind, Subject: subject, Until: until, Text: fmt.Sprintf(format, args...)}
}

// Why says how a bead stands: what it does, or what exactly it waits for.
func (t *Town) Why(at time.Time, id string) (Reason, error) {
	b := t.beads[id]
	if b == nil {
		return Reason{}, t.NoBead(id)
	}
	return t.why(b, At(at)), nil
}

func (t *Town) why(b *Bead, now Time) Reason {
	switch b.Status {
	case BeadClosed:
		return Reason{State: Terminal, Kind: "closed", Text: t.closedText(b)}
	case BeadFailed:
		return Reason{State: Terminal, Kind: "failed", Text: "failed: " + t.lastFailure(b) + "; gastown bead reopen " + b.ID + " tries again"}
	case BeadCancelled:
		return Reason{State: Terminal, Kind: "cancelled", Text: "cancelled; gastown bead reopen " + b.ID + " takes it up again"}
	case BeadInProgress:
		return t.whyRun(b, now)
	case BeadInReview:
		return t.whyMerge(b, now)
	case BeadOpen:
	}
	r := t.rigs[b.Rig]
	if w := t.bookWaits(b, now); w.Kind != "" {
		return w
	}
	if w := t.beadBudgetWait(b, now); w.Kind != "" {
		return w
	}
	w := t.rigWaits(r, now)
	if w.Kind == "" || w.Kind == waitFetch { // nobody fetches for a bead that has to wait anyway
		if own := t.beadWaits(b, r, now); own.Kind != "" {
			return own
		}
	}
	if w.Kind != "" {
		return w
	}
	if o := t.ahead(b, now); o != nil {
		return waits(waitAlone, o.ID, 0, "%s is ahead and waits to run alone, because the sandbox was lost twice while it ran", o.ID)
	}
	return Reason{State: Runnable, Text: "it is next"}
}

// ahead is the bead before b, on its own or another rig, that waits to run
// alone, or nil.
func (t *Town) ahead(b *Bead, now Time) *Bead {
	_, own := t.place(b)
	for _, rig := range t.sortedRigs() {
		if o, k, alone := t.candidate(rig, now); alone && k.compare(own) < 0 {
			return o
		}
	}
	return nil
}

func (t *Town) closedText(b *Bead) string {
	if b.Proof == nil {
		return "closed"
	}
	return "closed: " + closeText(*b.Proof)
}

func (t *Town) lastFailure(b *Bead) string {
	if len(b.Failures) == 0 {
		return "no reason was recorded"
	}
	return clip(b.Failures[len(b.Failures)-1].Reason, 300)
}

// bookWaits is what keeps an open bead out of the ready queue.
func (t *Town) bookWaits(b *Bead, now Time) Reason {
	switch {
	case b.Staged:
		return waits(waitStaged, "", 0, "staged: gastown sling %s releases it", b.ID)
	case b.Escalated:
		return waits(waitPerson, "", 0, "a person must decide: %s; gastown bead reopen %s goes on", clip(b.Reason, 300), b.ID)
	}
	if on := t.blocker(b); on != "" {
		d := t.beads[on]
		switch {
		case d == nil:
			return waits(waitBlocker, on, 0, "blocked by %s, which can't be read", on)
		case d.Status.Terminal():
			return waits(waitBlocker, on, 0, "blocked by %s, which is %s: reopen it, or remove it with gastown bead dep %s --remove %s", on, d.Status, b.ID, on)
		}
		return waits(waitBlocker, on, 0, "blocked by %s (%s), which is %s", on, clip(d.Title, 80), d.Status)
	}
	if b.NotBefore > now {
		return waits(waitBackoff, "", b.NotBefore, "paused until %s after: %s; gastown retry %s goes on now", b.NotBefore, t.lastFailure(b), b.ID)
	}
	return Reason{}
}

// rigWaits is what keeps every bead of a rig from starting. The dispatch rule
// and the explanation share it, so they can't disagree.
func (t *Town) rigWaits(r *Rig, now Time) Reason {
	switch {
	case t.info.Mode == ModeDeleting:
		return waits(waitRemoving, "", 0, "the town is being deleted")
	case t.info.Mode != ModeActive:
		return waits(waitPause, "", 0, "%s%s", t.modeText(), t.resumeHint())
	case r.State == RigMissing:
		return waits(waitRepository, r.Name, 0, "the repository of rig %s was not cloned since the import: gastown rig clone %s --town %s", r.Name, r.Name, t.info.Name)
	case r.State != RigActive:
		return waits(waitRemoving, r.Name, 0, "rig %s is being removed", r.Name)
	}
	if w := t.budgetWait(now); w.Kind != "" {
		return w
	}
	for _, subject := range []string{"sandbox", "rig/" + r.Name, "write/" + r.Name, "push/" + r.Name} {
		if w := t.breakerWait(subject, now); w.Kind != "" {
			return w
		}
	}
	if n := t.number("polecats.per_town", nil, nil); len(t.runs) >= n {
		return waits(waitCapacity, "town", 0, "all %d places of the town are taken (polecats.per_town)", n)
	}
	if n := t.number("polecats.per_rig", nil, r); t.ix.runsByRig[r.Name] >= n {
		return waits(waitCapacity, r.Name, 0, "all %d places of rig %s are taken (polecats.per_rig)", n, r.Name)
	}
	if t.stale(r, now) {
		return waits(waitFetch, r.Name, 0, "the server fetches the newest %s of rig %s", r.Target, r.Name)
	}
	if t.writeDue(r, now) {
		return waits(waitFetch, r.Name, 0, "the server asks whether it may push to rig %s", r.Name)
	}
	if id := t.pushing(r); id != "" && t.breakers["push/"+r.Name] != nil {
		return waits(waitFetch, id, 0, "the last push to rig %s failed: that of %s is tried first", r.Name, id)
	}
	return Reason{}
}

func (t *Town) modeText() string {
	if t.info.Mode == ModeImporting {
		return "town " + t.info.Name + " is being imported"
	}
	verb := "paused"
	if t.info.Mode == ModeSleeping {
		verb = "put to sleep"
	}
	return fmt.Sprintf("town %s was %s by %s", t.info.Name, verb, t.info.ModeBy)
}

// resumeHint says how a pause ends; an import ends by itself.
func (t *Town) resumeHint() string {
	if t.info.Mode == ModeImporting {
		return ""
	}
	return "; gastown town resume " + t.info.Name + " goes on"
}

func (t *Town) breakerWait(subject string, now Time) Reason {
	if !t.broken(subject, now) {
		return Reason{}
	}
	br := t.breakers[subject]
	if br.Limit {
		return waits(waitLimit, subject, br.Until, "%s limits its use until %s (%d times in a row): %s; gastown retry %s --town %s tries now",
			subject, br.Until, br.Fails, clip(br.Last, 300), subject, t.info.Name)
	}
	return waits(waitBreaker, subject, br.Until, "%s failed %d times, next try at %s: %s; gastown retry %s --town %s tries now",
		subject, br.Fails, br.Until, clip(br.Last, 300), subject, t.info.Name)
}

// beadWaits is what keeps one ready bead of a rig that may start from starting.
func (t *Town) beadWaits(b *Bead, r *Rig, now Time) Reason {
	if w := t.agentWait(b, r); w.Kind != "" {
		return w
	}
	if w := t.breakerWait("agent/"+t.choose(keyAgent, RolePolecat, b, r).Value, now); w.Kind != "" {
		return w
	}
	if p := t.choose(keyProvider, RolePolecat, b, r).Value; p != "" {
		if w := t.breakerWait("provider/"+p, now); w.Kind != "" {
			return w
		}
	}
	if w := t.beadBudgetWait(b, now); w.Kind != "" {
		return w
	}
	if t.cleaning(b, now) || t.runs[b.currentRun()] != nil {
		return waits(waitCleanup, "", 0, "its last run is still being put away")
	}
	if len(t.runs) > 0 {
		if b.suspect() {
			return waits(waitAlone, "", 0, "the sandbox was lost %d times while it ran: it waits to run alone", b.Losses)
		}
		for _, o := range t.sortedRuns() {
			if d := t.beads[o.Bead]; d != nil && d.suspect() {
				return waits(waitAlone, d.ID, 0, "%s runs alone, because the sandbox was lost twice while it ran", d.ID)
			}
		}
	}
	return Reason{}
}

func (t *Town) whyRun(b *Bead, now Time) Reason {
	r := t.runs[b.currentRun()]
	if r == nil {
		return Reason{State: Active, Kind: "run", Text: "at work"}
	}
	s := &t.info.Sandbox
	if r.Generation == 0 || s.State != SandboxAwake && s.State != SandboxDraining {
		if t.info.Mode == ModeSleeping {
			return waits(waitPause, "", 0, "given to %s; %s; gastown town resume %s goes on", r.Agent, t.modeText(), t.info.Name)
		}
		w := waits(waitSandbox, r.ID, 0, "given to %s, waits for the sandbox (%s)", r.Agent, s.State)
		if s.State == SandboxQueued && s.Position > 0 {
			w.Text = fmt.Sprintf("given to %s, waits for one of the server's places for awake sandboxes: position %d", r.Agent, s.Position)
		}
		if w2 := t.breakerWait("sandbox", now); w2.Kind != "" {
			return w2
		}
		return w
	}
	if w := t.breakerWait(limitSubject(r), now); r.WaitUntil > now && w.Kind == waitLimit {
		return Reason{State: Active, Kind: "run", Subject: r.ID, Until: r.WaitUntil, Text: fmt.Sprintf("run %s waits: %s", r.ID, w.Text)}
	}
	text := fmt.Sprintf("%s works on it: run %s with %s, attempt %d", r.Agent, r.ID, r.Preset, b.Attempt)
	if r.State == RunDraining && r.Stop != "" {
		text = fmt.Sprintf("run %s is being stopped: %s", r.ID, r.Stop)
	}
	return Reason{State: Active, Kind: "run", Subject: r.ID, Text: text + saveTrouble(r)}
}

func (t *Town) whyMerge(b *Bead, now Time) Reason {
	m, r := b.Merge, t.rigs[b.Rig]
	if m == nil {
		return Reason{State: Active, Kind: "merge", Text: "in review"}
	}
	for _, subject := range []string{"merge/" + b.ID, "rig/" + b.Rig, "push/" + b.Rig, "gates/" + b.Rig} {
		if m.State == MergeGating {
			break
		}
		if subject == "push/"+b.Rig && (m.State == MergeBuilding || m.Pushed) {
			continue
		}
		if w := t.breakerWait(subject, now); w.Kind != "" {
			return w
		}
	}
	switch m.State {
	case MergeQueued:
		if t.info.Mode != ModeActive {
			return waits(waitPause, "", 0, "%s; its merge goes on with gastown town resume %s", t.modeText(), t.info.Name)
		}
		if w := t.breakerWait("sandbox", now); w.Kind != "" && len(r.Gates) > 0 {
			return w
		}
		if w := t.gatesWait(r, now); w.Kind != "" {
			return w
		}
		if o := t.ix.merging[b.Rig]; o != "" {
			return waits(waitMerge, o, 0, "waits for its turn to be merged: %s is being merged", o)
		}
		return waits(waitMerge, "", 0, "waits for its turn to be merged")
	case MergeWaiting:
		if m.Pushed {
			if t.checkDue(b, r, now) {
				return Reason{State: Active, Kind: "merge", Text: "the server looks whether " + r.Target + " contains " + short(b.Commit)}
			}
			next := m.CheckedAt.Add(t.duration("branch.poll_interval", nil, r))
			return waits(waitBranch, b.Branch, next, "branch %s is upstream: it waits until %s contains %s; looked for again at %s (gastown retry %s looks now)",
				b.Branch, r.Target, short(b.Commit), next, b.ID)
		}
		return Reason{State: Active, Kind: "merge", Text: "its branch is being pushed upstream"}
	case MergeGating:
		if t.info.Mode == ModeSleeping {
			return waits(waitPause, "", 0, "%s; its gates go on with gastown town resume %s", t.modeText(), t.info.Name)
		}
		if w := t.gatesWait(r, now); w.Kind != "" && !t.gatesUnderWay() {
			return w
		}
		if t.info.Sandbox.State != SandboxAwake {
			return waits(waitSandbox, "", 0, "its gates wait for the sandbox (%s)", t.info.Sandbox.State)
		}
		return Reason{State: Active, Kind: "merge", Until: m.Deadline, Text: fmt.Sprintf("the gates run on candidate %s (%d)", short(m.Candidate), m.N)}
	case MergeBuilding:
		return Reason{State: Active, Kind: "merge", Text: fmt.Sprintf("candidate %d is being built", m.N)}
	case MergeLanding:
	}
	return Reason{State: Active, Kind: "merge", Text: fmt.Sprintf("candidate %s is being pushed to %s", short(m.Candidate), r.Target)}
}

// Ready returns copies of the open beads that need nothing but capacity, the
// most urgent first, rig by rig.
func (t *Town) Ready() []Bead {
	var out []Bead
	for _, r := range t.sortedRigs() {
		if q := t.ix.ready[r.Name]; q != nil {
			for _, k := range *q {
				out = append(out, *t.beads[k.id])
			}
		}
	}
	return out
}

// TownReason says why the sandbox of a town is as it is.
type TownReason struct {
	State    SandboxState `json:"state"`
	Mode     Mode         `json:"mode"`
	Since    Time         `json:"since"`
	Text     string       `json:"text"`
	Holds    []Hold       `json:"holds"`
	GraceEnd Time         `json:"grace_end,omitempty"`
	NextWake Time         `json:"next_wake,omitempty"` // when the town is looked at again by itself
	Breakers []Breaker    `json:"breakers,omitempty"`
}

// WhyTown says in one line why the sandbox is awake or asleep, and what it
// would wake for.
func (t *Town) WhyTown(at time.Time) TownReason {
	now := At(at)
	s := &t.info.Sandbox
	w := TownReason{State: s.State, Mode: t.info.Mode, Since: s.Since, Holds: t.holds(now), Breakers: t.Breakers()}
	if next, ok := t.NextWake(at); ok {
		w.NextWake = At(next)
	}
	if g := t.graceEnd(); g > now && len(w.Holds) == 0 {
		w.GraceEnd = g
	}
	w.Text = t.townText(now, w)
	return w
}

func (t *Town) townText(now Time, w TownReason) string {
	s := &t.info.Sandbox
	var b strings.Builder
	fmt.Fprintf(&b, "%s since %s", s.State, s.Since)
	switch s.State {
	case SandboxAsleep:
		if s.StopReason != "" {
			b.WriteString(", because " + s.StopReason)
		}
		switch {
		case t.info.Mode != ModeActive:
			b.WriteString("; " + t.modeText() + t.resumeHint())
		case t.broken("sandbox", now):
			b.WriteString("; " + t.breakerWait("sandbox", now).Text)
		case t.budgetWait(now).Kind != "":
			b.WriteString("; " + t.budgetWait(now).Text)
		default:
			b.WriteString("; it would wake for a bead that can run, gates on a merge, or gastown wake " + t.info.Name)
		}
	case SandboxQueued:
		if s.Position > 0 {
			fmt.Fprintf(&b, ", position %d in the queue for one of the server's places", s.Position)
		}
		b.WriteString("; wanted for " + s.StartReason)
	case SandboxStarting, SandboxAwake, SandboxDraining, SandboxStopping, SandboxWedged:
		for i, h := range w.Holds {
			b.WriteString(map[bool]string{true: " for ", false: ", "}[i == 0] + t.holdText(h))
		}
		switch {
		case s.State == SandboxDraining || s.State == SandboxStopping || s.State == SandboxWedged:
			if s.StopReason != "" {
				b.WriteString(", because " + s.StopReason)
			}
		case w.GraceEnd != 0:
			fmt.Fprintf(&b, ", in its grace until %s: %s ended at %s", w.GraceEnd, s.LastHoldWas, s.LastHold)
		}
		if t.info.Mode != ModeActive {
			b.WriteString("; " + t.modeText())
		} else if w := t.budgetWait(now); w.Kind != "" {
			b.WriteString("; nothing new starts: " + w.Text)
		}
	}
	return b.String()
}

func (t *Town) holdText(h Hold) string {
	switch h.Reason {
	case HoldRun:
		return fmt.Sprintf("run %s on bead %s since %s, hold ends by %s", h.Subject, h.Bead, h.Since, h.Until)
	case HoldGates:
		return fmt.Sprintf("the gates of bead %s since %s, hold ends by %s", h.Subject, h.Since, h.Until)
	case HoldHuman:
	}
	return fmt.Sprintf("%s, who keeps it awake until %s", h.Subject, h.Until)
}
