package town

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

// Desired returns the document for the runner of the current generation.
func (t *Town) Desired() Desired {
	s := &t.info.Sandbox
	d := Desired{Town: t.info.ID, Generation: s.Generation, Rev: t.info.DesiredRev, TokenAt: s.TokenAt,
		Drain:     s.State == SandboxDraining || s.State == SandboxStopping,
		Heartbeat: int64(t.duration("lease", nil, nil)/3) / int64(time.Millisecond)}
	rigs := map[string]bool{}
	for _, r := range t.sortedRuns() {
		if r.Generation == s.Generation {
			d.Runs = append(d.Runs, t.desiredRun(r))
			rigs[r.Rig] = true
		}
	}
	for _, id := range t.gating() {
		b := t.beads[id]
		d.Gates = append(d.Gates, t.gateJob(b, t.rigs[b.Rig]))
		rigs[b.Rig] = true
	}
	for _, r := range t.sortedRigs() {
		if rigs[r.Name] {
			d.Rigs = append(d.Rigs, DesiredRig{Name: r.Name, Target: r.Target, Tip: r.Tip, Author: t.text("commit.author", nil, r),
				CheckpointMS: int64(t.duration("checkpoint.interval", nil, r) / time.Millisecond), MaxFileMB: t.number("checkpoint.max_file_mb", nil, r)})
		}
	}
	return d
}

func (t *Town) desiredRun(r *Run) DesiredRun {
	b, rig := t.beads[r.Bead], t.rigs[r.Rig]
	d := DesiredRun{ID: r.ID, Bead: r.Bead, Epoch: r.Epoch, Role: r.Role, Rig: r.Rig, Agent: r.Agent, Preset: r.Preset, Provider: r.Provider,
		Model: r.Model, OwnProcess: r.OwnProcess, Branch: r.Branch, Base: r.Base, Start: r.Start, Nudges: r.Nudges, Verdict: r.Verdict, Stop: r.Stop,
		TimeLimitMS: int64(t.duration("run.time_limit", b, rig) / time.Millisecond), TurnNudges: t.number("run.turn_nudges", b, rig), AllowHosts: t.AllowedHosts(r.Rig),
		MaxMemoryMB: t.number("run.max_memory_mb", b, rig), MaxProcesses: t.number("run.max_processes", b, rig), MaxDiskMB: t.number("run.max_disk_mb", b, rig)}
	if rig != nil && len(rig.Expose) > 0 {
		// A shared process has one environment: that of the run that began it.
		d.Expose, d.OwnProcess = slices.Clone(rig.Expose), true
	}
	if b != nil {
		d.Resume, d.ResumeRef, d.Session = b.Checkpoint, b.CheckpointRef, sessionOf(b, r)
		d.Prompt = t.prompt(b, rig, r)
		if b.CheckpointRef == WipRef(b.ID, r.Epoch) {
			d.Resume, d.ResumeRef = "", "" // its own checkpoint is no place to begin at
		}
	}
	return d
}

func (t *Town) gateJob(b *Bead, r *Rig) GateJob {
	j := GateJob{Bead: b.ID, N: b.Merge.N, Rig: r.Name, Ref: MergeRef(b.ID, b.Merge.N), Candidate: b.Merge.Candidate, AllowHosts: t.AllowedHosts(r.Name), Expose: slices.Clone(r.Expose)}
	for _, g := range r.Gates {
		j.Gates = append(j.Gates, GateLimit{Name: g.Name, Command: g.Command, TimeoutMS: int64(t.gateTimeout(g, r) / time.Millisecond)})
	}
	return j
}

// revise raises the revision of the desired document when what it asks for changed.
func (t *Town) revise() {
	s := &t.info.Sandbox
	var b strings.Builder
	num := func(n int64) { b.WriteString(strconv.FormatInt(n, 36)); b.WriteByte(' ') }
	num(s.Generation)
	num(int64(s.TokenAt))
	b.WriteString(map[bool]string{true: "drain "}[s.State == SandboxDraining || s.State == SandboxStopping])
	for _, r := range t.sortedRuns() {
		if r.Generation == s.Generation {
			b.WriteString(r.ID + " " + string(r.Verdict) + " " + r.Stop + " ")
			num(int64(r.NudgeN))
		}
	}
	for _, id := range t.gating() {
		b.WriteString(id + " ")
		num(int64(t.beads[id].Merge.N))
	}
	if h := strconv.FormatUint(hash(b.String()), 36); h != t.info.DesiredHash {
		t.info.DesiredHash = h
		t.info.DesiredRev++
		t.mark(kindTown, t.info.ID)
	}
}

// Prime returns what the agent of a run is told of its work, or Gone when the
// run is not current.
func (t *Town) Prime(run string, epoch int64) (Prime, error) {
	r := t.runs[run]
	if r == nil || r.Epoch != epoch || t.beads[r.Bead] == nil {
		return Prime{}, errs.New(errs.Gone, "run %s, epoch %d, is not current: stop working on it", clip(run, 60), epoch)
	}
	b, rig := t.beads[r.Bead], t.rigs[r.Rig]
	p := Prime{Bead: PrimeBead{ID: b.ID, Title: b.Title, Body: b.Body, Priority: b.Priority, Labels: b.Labels}, Run: r.ID, Agent: r.Agent,
		Role: r.Role, Attempt: b.Attempt, Reason: cmp.Or(r.Told, b.Reason), Branch: r.Branch, Base: r.Base, Target: rig.Target, Previous: b.Commit, Trailers: t.trailers(rig), Rules: rules}
	for _, g := range rig.Gates {
		p.Gates = append(p.Gates, g.Name+": "+g.Command)
	}
	return p, nil
}

const rules = `You are alone in a git worktree on a branch of your own. Do exactly the work described, check it with the gates, and commit it.
End with exactly one of these tools: done (your commit is ready to be merged), no_change (nothing has to change, with the reason), escalate (a person must decide, with the question).
A turn that ends without one of them does not count. Do not push to the target branch: the server merges your work after done.`

// prompt is the first message to the agent of a run.
func (t *Town) prompt(b *Bead, rig *Rig, r *Run) string {
	var s strings.Builder
	fmt.Fprintf(&s, "You are %s, a %s of town %s, working on bead %s of rig %s (attempt %d).\n\n%s\n\n# %s\n\n%s\n",
		r.Agent, r.Role, t.info.Name, b.ID, rig.Name, b.Attempt, rules, b.Title, b.Body)
	if told := cmp.Or(r.Told, b.Reason); told != "" {
		fmt.Fprintf(&s, "\n# What happened before\n\n%s\n", told)
	}
	if trailers := t.trailers(rig); len(trailers) > 0 {
		fmt.Fprintf(&s, "\n# Trailers that end the message of each of your commits\n\n%s\n", strings.Join(trailers, "\n"))
	}
	if len(rig.Gates) > 0 {
		s.WriteString("\n# Gates that your merged work must pass\n\n")
		for _, g := range rig.Gates {
			fmt.Fprintf(&s, "- %s: %s\n", g.Name, g.Command)
		}
	}
	if hosts := t.AllowedHosts(rig.Name); len(hosts) > 0 {
		fmt.Fprintf(&s, "\n# Network\n\nThe proxy in HTTPS_PROXY opens these hosts, and refuses others: %s\n", strings.Join(hosts, ", "))
	}
	return s.String()
}
