package town

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

// gatesSlack is what fetching, checkout and reporting may take beside the gates.
const gatesSlack = 5 * time.Minute

// patientLosses is how many leases in a row a merge may lose to others' pushes
// before it pauses between attempts.
const patientLosses = 3

// gatesLimit is the longest that a rig's gates may take together.
func (t *Town) gatesLimit(r *Rig) time.Duration {
	sum := gatesSlack
	for _, g := range r.Gates {
		sum += t.gateTimeout(g, r)
	}
	return sum
}

func (t *Town) gateTimeout(g Gate, r *Rig) time.Duration {
	if g.Timeout > 0 {
		return min(g.Timeout, day)
	}
	return t.duration("gate.timeout", nil, r)
}

// takeTurn begins the merge of the next bead in a rig's queue: one candidate at
// a time per rig and target.
func (t *Town) takeTurn(r *Rig, now Time) bool {
	b := t.nextMerge(r, now)
	if b == nil || t.stale(r, now) {
		return false
	}
	t.edit(b, now, func() {
		b.MergeN++
		b.Merge.N = b.MergeN
		b.Merge.State = MergeBuilding
		b.Merge.Tip, b.Merge.Candidate, b.Merge.Gates = r.Tip, "", nil
	})
	return true
}

// nextMerge is the bead whose turn it is on a rig, or nil.
func (t *Town) nextMerge(r *Rig, now Time) *Bead {
	if t.info.Mode != ModeActive || r.State != RigActive || t.ix.merging[r.Name] != "" ||
		t.broken("rig/"+r.Name, now) || t.broken("push/"+r.Name, now) || len(r.Gates) > 0 && (t.broken("gates/"+r.Name, now) || t.broken("sandbox", now)) {
		return nil
	}
	q := t.ix.review[r.Name]
	if q == nil || len(*q) == 0 || t.gatesWait(r, now).Kind != "" {
		return nil
	}
	for _, k := range *q {
		if !t.broken("merge/"+k.id, now) {
			return t.beads[k.id]
		}
	}
	return nil
}

// requeue puts a merge back in its queue for another candidate.
func (t *Town) requeue(b *Bead, now Time) {
	t.edit(b, now, func() { b.Merge.State = MergeQueued })
}

func (t *Town) candidateBuilt(b *Bead, r *Rig, now Time, c Candidate) {
	switch {
	case c.AlreadyIn:
		t.closeBead(b, now, Proof{Kind: ProofMerged, Commit: b.Commit, At: now}, "")
	case c.Conflict:
		t.conflict(b, r, now, c.Detail)
	case len(r.Gates) == 0:
		t.edit(b, now, func() { b.Merge.Candidate = c.Commit })
		t.passed(b, r, now)
	default:
		t.edit(b, now, func() {
			b.Merge.Candidate = c.Commit
			b.Merge.State = MergeGating
			b.Merge.Deadline = now.Add(t.gatesLimit(r))
		})
		t.log(now, "merge.candidate", b.ID, "", "candidate "+short(c.Commit)+" on "+short(b.Merge.Tip), "n", strconv.Itoa(b.Merge.N))
	}
}

// conflict sends a bead back to be redone on the newest tip. Newer commits are
// nobody's fault: it is charged only when it repeats on the same tip.
func (t *Town) conflict(b *Bead, r *Rig, now Time, detail string) {
	tip := b.Merge.Tip
	reason := fmt.Sprintf("Your commit %s conflicts with newer commits on %s (%s): %s. You are on the newest %s now: do the work again on top of it; your earlier commit is still there to look at.",
		short(b.Commit), r.Target, short(tip), clip(detail, 1000), r.Target)
	repeated := b.ConflictTip == tip || b.Base == tip
	t.log(now, "merge.conflict", b.ID, "", "conflict with "+short(tip)+": "+clip(detail, 500), "n", strconv.Itoa(b.Merge.N))
	t.edit(b, now, func() {
		b.ConflictTip = tip
		b.Base, b.Start = "", ""
		b.Checkpoint, b.CheckpointRef, b.Session, b.Interrupted = "", "", "", ""
	})
	if repeated {
		t.chargeWork(b, now, reason)
		return
	}
	t.edit(b, now, func() {
		b.Conflicts++
		b.Attempt++
		b.Merge = nil
		b.Reason = reason
		b.note(Failure{At: now, Epoch: b.Epoch, Class: ClassWork, Reason: "conflict with " + short(tip) + ": " + clip(detail, 500)})
	})
	if limit := t.number("merge.max_conflicts", nil, r); b.Conflicts >= limit {
		t.setStatus(b, now, BeadFailed, "", fmt.Sprintf("%d conflicts with newer commits", b.Conflicts))
		t.escalate(now, CauseFailed, b.ID, b.Title+": too many conflicts with newer commits")
		return
	}
	t.setStatus(b, now, BeadOpen, "", "conflict with newer commits: to be redone on "+short(tip))
}

func (t *Town) gatesDone(now Time, in GatesDone) error {
	if err := t.current(in.Generation); err != nil {
		return err
	}
	b := t.beads[in.Bead]
	if b == nil || b.Merge == nil || b.Merge.State != MergeGating || b.Merge.N != in.N || b.Merge.Candidate != in.Candidate {
		return errs.New(errs.Gone, "candidate %d of bead %s is not being checked: drop it", in.N, clip(in.Bead, 60))
	}
	r := t.rigs[b.Rig]
	if in.Infra != "" {
		t.failed(now, "gates/"+r.Name, plain(in.Infra, 2000))
		t.requeue(b, now)
		return nil
	}
	results, err := checkResults(r, in.Results)
	if err != nil {
		return err
	}
	t.edit(b, now, func() { b.Merge.Gates = results })
	t.proved(now, "gates/"+r.Name)
	t.proved(now, "sandbox")
	var red *GateRun
	for i, g := range results {
		verdict := "passed"
		if !g.Passed {
			verdict, red = "failed", &results[i]
		}
		t.log(now, "gate."+verdict, b.ID, "", g.Name, "ms", strconv.FormatInt(g.Millis, 10), "exit", strconv.Itoa(g.ExitCode))
	}
	if red == nil {
		t.passed(b, r, now)
		return nil
	}
	t.edit(b, now, func() { b.Start = b.Commit })
	t.chargeWork(b, now, gateReason(*red))
	return nil
}

// checkResults wants the gates of the rig in their order, up to the first that
// is red, and clips their logs.
func checkResults(r *Rig, results []GateRun) ([]GateRun, error) {
	if len(results) == 0 || len(results) > len(r.Gates) {
		return nil, errs.New(errs.Invalid, "%d gate results for %d gates", len(results), len(r.Gates))
	}
	out := slices.Clone(results)
	for i := range out {
		g := &out[i]
		if g.Name != r.Gates[i].Name {
			return nil, errs.New(errs.Invalid, "result %d is of gate %q, not %q", i+1, clip(g.Name, 60), r.Gates[i].Name)
		}
		if !g.Passed && i < len(out)-1 || g.Passed && i == len(out)-1 && len(out) < len(r.Gates) {
			return nil, errs.New(errs.Invalid, "results must end with the first gate that failed")
		}
		if len(g.Log) > MaxLog {
			g.Log = g.Log[len(g.Log)-MaxLog:]
		}
		g.Log = strings.ToValidUTF8(g.Log, "�")
	}
	return out, nil
}

func gateReason(g GateRun) string {
	how := fmt.Sprintf("exited with %d", g.ExitCode)
	if g.TimedOut {
		how = "ran into its time limit"
	}
	log := g.Log
	if len(log) > 4000 {
		log = "…" + strings.ToValidUTF8(log[len(log)-4000:], "")
	}
	return fmt.Sprintf("gate %s %s on the merge of your commit with the target:\n%s", g.Name, how, log)
}

// passed goes on with a candidate whose gates are green, or that needs none.
func (t *Town) passed(b *Bead, r *Rig, now Time) {
	to := MergeLanding
	if MergeMode(t.text("merge.mode", nil, r)) == ModeBranch {
		to = MergeWaiting
	}
	t.edit(b, now, func() {
		b.Merge.State = to
		b.Merge.Pushed, b.Merge.Asked = false, false
	})
}

func (t *Town) landed(b *Bead, r *Rig, now Time, l Landed) {
	if l.Tip != "" {
		r.Tip, r.FetchedAt = l.Tip, now
		t.mark(kindRig, r.Name)
	}
	t.proved(now, "rig/"+r.Name)
	if l.Lost {
		t.proved(now, "push/"+r.Name)
	} else {
		t.pushed(r, now)
		t.log(now, "merge.landed", b.ID, "", short(b.Merge.Candidate)+" is on "+r.Target, "commit", b.Merge.Candidate)
		t.proved(now, "merge/"+b.ID)
		t.closeBead(b, now, Proof{Kind: ProofMerged, Commit: b.Merge.Candidate, At: now}, "")
		return
	}
	t.log(now, "merge.lost_lease", b.ID, "", "somebody pushed to "+r.Target+": a new candidate on "+short(l.Tip))
	t.edit(b, now, func() { b.Merge.Lost++ })
	if b.Merge.Lost >= patientLosses {
		t.failed(now, "merge/"+b.ID, "others push to "+r.Target+" faster than candidates are checked")
	}
	t.requeue(b, now)
}

// checkDue reports whether a branch that waits upstream should be looked for on
// the target.
func (t *Town) checkDue(b *Bead, r *Rig, now Time) bool {
	return b.Merge.Pushed && (b.Merge.Asked || now.Sub(b.Merge.CheckedAt) >= t.duration("branch.poll_interval", nil, r))
}
