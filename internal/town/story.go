package town

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// told is what the agent of a new run is told of what happened before it, and
// in which state it finds its files; "" when it is the first to work on the
// bead. It is fixed when the run is made, so that the prompt and the tool prime
// say the same however long the run lasts.
func (t *Town) told(b *Bead, r *Run) string {
	var parts []string
	if b.Reason != "" {
		parts = append(parts, b.Reason)
	}
	if b.Interrupted != "" {
		parts = append(parts, "The last run was interrupted ("+b.Interrupted+").")
	}
	switch {
	case b.Checkpoint != "":
		parts = append(parts, fmt.Sprintf("Your work was restored from its last checkpoint (%s): your commits up to it are on the branch %s, "+
			"and what was not committed is there as uncommitted changes. Files that git ignores, and untracked files that were too large for a checkpoint, are not restored. "+
			"Look at git status and git log, then go on.", short(b.Checkpoint), r.Branch))
	case r.Start != r.Base:
		parts = append(parts, fmt.Sprintf("Your branch %s begins with your earlier commit %s: go on from there.", r.Branch, short(r.Start)))
	case b.Interrupted != "":
		parts = append(parts, "Nothing of it was saved: the worktree is as at the beginning, so start anew.")
	}
	if b.Interrupted != "" && b.Session != "" {
		parts = append(parts, "If you don't remember this work, your session could not be restored: what is written here is all there is to know.")
	}
	return strings.Join(parts, "\n\n")
}

// interruption is what the next agent is told of an end that was not the
// bead's own fault.
func interruption(o Outcome, reason string) string {
	if o == OutcomeStopped {
		return clip(reason, 300)
	}
	return clip(string(o)+": "+reason, 300)
}

// sessionOf is the session to load, which only agents of the same preset know.
func sessionOf(b *Bead, r *Run) string {
	for _, was := range b.Runs {
		if was.Epoch == b.SessionEpoch && was.Preset != r.Preset {
			return ""
		}
	}
	return b.Session
}

const (
	// slowCheckpoint is how long a checkpoint may take before people are told:
	// what an agent does meanwhile is not safe yet.
	slowCheckpoint = 10 * time.Second
	// maxSaveNotes bounds the ledger's entries about failed checkpoints of one
	// run: whatever runs in a sandbox may report them without end.
	maxSaveNotes = 5
	// unsavedPatience is how long checkpoints may fail before people are told: a
	// server or a disk that comes back soon needs nobody.
	unsavedPatience = 5 * time.Minute
)

// savedSlowly tells people once per run that its checkpoints take long.
func (t *Town) savedSlowly(r *Run, now Time, ms int64) {
	if r.SlowMS != 0 || ms <= slowCheckpoint.Milliseconds() {
		return
	}
	r.SlowMS = min(ms, int64(day/time.Millisecond))
	t.mark(kindRun, r.ID)
	text := "a checkpoint took " + millis(r.SlowMS) + ", longer than " + slowCheckpoint.String()
	t.log(now, "run.checkpoint_slow", r.ID, r.Agent, text, "bead", r.Bead, "ms", strconv.FormatInt(r.SlowMS, 10))
	t.unsaved(r, now, text)
}

// unsaved tells people that what an agent does is not safe, or late.
func (t *Town) unsaved(r *Run, now Time, text string) {
	if b := t.beads[r.Bead]; b != nil && b.Status == BeadInProgress && b.Epoch == r.Epoch {
		t.escalate(now, CauseUnsaved, b.ID, b.Title+": "+text)
	}
}

// ruleUnsaved tells people of runs whose checkpoints have failed for a while.
func (t *Town) ruleUnsaved(now Time) bool {
	moved := false
	for _, r := range t.sortedRuns() {
		if r.SaveError != "" && !r.SaveTold && now >= r.unsavedAt() {
			r.SaveTold = true
			t.mark(kindRun, r.ID)
			t.unsaved(r, now, "its work has not been saved since "+r.SaveErrorAt.String()+": "+clip(r.SaveError, 300))
			moved = true
		}
	}
	return moved
}

// unsavedAt is when people are to be told that its checkpoints fail.
func (r *Run) unsavedAt() Time { return r.SaveErrorAt.Add(unsavedPatience) }

// saveFailed notes that work of a run is not safe; an empty reason says that it
// is again.
func (t *Town) saveFailed(r *Run, now Time, reason string) {
	reason = plain(reason, 500)
	if (reason == "") == (r.SaveError == "") {
		return
	}
	r.SaveError, r.SaveErrorAt = reason, now
	if reason == "" {
		r.SaveErrorAt, r.SaveTold = 0, false
		if r.SlowMS == 0 {
			t.settled(now, r.Bead, "", "it is being saved again", CauseUnsaved)
		}
	}
	t.mark(kindRun, r.ID)
	if r.SaveNotes >= maxSaveNotes {
		return
	}
	if reason == "" {
		t.log(now, "run.checkpoint_works", r.ID, r.Agent, "", "bead", r.Bead)
		return
	}
	r.SaveNotes++
	t.log(now, "run.checkpoint_failed", r.ID, r.Agent, reason, "bead", r.Bead)
}

// saveTrouble is what `why` adds about the checkpoints of a run.
func saveTrouble(r *Run) string {
	switch {
	case r.SaveError != "":
		return fmt.Sprintf("; WARNING: its work is not being saved since %s: %s", r.SaveErrorAt, clip(r.SaveError, 300))
	case r.SlowMS != 0:
		return fmt.Sprintf("; WARNING: a checkpoint of it took %s", millis(r.SlowMS))
	}
	return ""
}

func millis(ms int64) string { return (time.Duration(ms) * time.Millisecond).String() }

// KeepsRefs reports whether the hub's references of a bead may still be wanted:
// it is not over, they are about to be removed in order, or its row can't be
// read, so that nobody knows.
func (t *Town) KeepsRefs(bead string) bool {
	if b := t.beads[bead]; b != nil {
		return !b.Status.Terminal() || b.Refs || t.runs[b.currentRun()] != nil
	}
	for _, q := range t.bad {
		if q.ID == bead || strings.HasSuffix(q.ID, "/"+bead) {
			return true
		}
	}
	return false
}
