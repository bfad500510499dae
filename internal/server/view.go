package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/store"
	"gastown/internal/town"
)

// This file turns what the domain says into what the API says.

func at(ms int64) time.Time { return town.Time(ms).Time() }

func sandboxView(b town.Sandbox) api.Sandbox {
	return api.Sandbox{State: string(b.State), Generation: b.Generation, Since: b.Since.Time(), StartedAt: b.StartedAt.Time(),
		StartReason: b.StartReason, StopReason: b.StopReason, LastSeen: b.LastSeen.Time(), TokenAt: b.TokenAt.Time(),
		Position: b.Position, Starts: b.Starts, Renewals: b.Renewals, AwakeMS: b.AwakeMS}
}

// townView shows a town; what counts its beads comes from the head.
func townView(t *town.Town, head store.Head) api.Town {
	in := t.Info()
	out := api.Town{ID: in.ID, Name: in.Name, Owner: in.Owner, CreatedAt: in.CreatedAt.Time(), Mode: string(in.Mode), ModeBy: in.ModeBy,
		ModeAt: in.ModeAt.Time(), Settings: in.Settings, Sandbox: sandboxView(in.Sandbox), Open: head.Open, Failing: head.Failing}
	out.Escalations = len(t.Escalations(false))
	for _, q := range t.Quarantined() {
		out.Quarantined = append(out.Quarantined, api.QuarantinedRow{Kind: q.Kind, ID: q.ID, Error: q.Error})
	}
	return out
}

func headView(h store.Head) api.TownItem {
	return api.TownItem{ID: h.ID, Name: h.Name, Owner: h.Owner, CreatedAt: at(h.CreatedAt), Status: h.Status, Sandbox: h.Sandbox,
		Generation: h.Generation, Wanted: h.Wanted, Open: h.Open, Failing: h.Failing, DueAt: at(h.DueAt)}
}

func reasonView(r town.Reason) *api.Reason {
	return &api.Reason{State: string(r.State), Kind: r.Kind, Text: r.Text, Subject: r.Subject, Until: r.Until.Time()}
}

// usesView says with what a bead is worked on; nil for one that is ended.
func usesView(t *town.Town, bead string) *api.Uses {
	s, ok := t.Selection(bead)
	if !ok {
		return nil
	}
	choice := func(c town.Choice) api.Choice { return api.Choice{Value: c.Value, From: string(c.From), Key: c.Key} }
	return &api.Uses{Agent: choice(s.Agent), Provider: choice(s.Provider), Model: choice(s.Model)}
}

func rigView(t *town.Town, r town.Rig) api.Rig {
	in := t.Info()
	out := api.Rig{Name: r.Name, Town: in.Name, TownID: in.ID, Prefix: r.Prefix, URL: r.URL, Target: r.Target, Gates: []api.Gate{},
		Settings: r.Settings, Exposed: r.Expose, AllowHosts: t.AllowedHosts(r.Name), HasCredential: r.Secret != "", UpdateWorktree: r.UpdateWorktree, State: string(r.State),
		CreatedAt: r.CreatedAt.Time(), Tip: r.Tip, FetchedAt: r.FetchedAt.Time()}
	out.Push = api.RigPush{State: "unasked", CheckedAt: r.WriteAt.Time()}
	if r.WriteAt != 0 {
		out.Push.State = "ok"
	}
	for _, b := range t.Breakers() {
		if b.Subject == "write/"+r.Name || b.Subject == "push/"+r.Name {
			out.Push.State, out.Push.Error, out.Push.NextTry, out.Push.Subject = "refused", b.Last, b.Until.Time(), b.Subject
		}
	}
	for _, g := range r.Gates {
		out.Gates = append(out.Gates, api.Gate{Name: g.Name, Command: g.Command, TimeoutMS: g.Timeout.Milliseconds()})
	}
	return out
}

// detail says how much of a bead is shown.
type detail int

const (
	inList detail = iota // no body, no history
	inFull
)

func beadView(t *town.Town, now time.Time, b town.Bead, d detail) api.Bead {
	out := api.Bead{ID: b.ID, Town: t.Info().Name, Rig: b.Rig, Title: b.Title, Priority: b.Priority, Labels: b.Labels,
		Status: string(b.Status), Staged: b.Staged, BlockedBy: b.BlockedBy, CreatedAt: b.CreatedAt.Time(), UpdatedAt: b.UpdatedAt.Time(),
		ClosedAt: b.ClosedAt.Time(), CreatedBy: b.CreatedBy, Attempt: b.Attempt, Attempts: b.Attempt, Charged: b.Charged,
		Escalated: b.Escalated, NotBefore: b.NotBefore.Time(), Agent: b.Agent, Branch: b.Branch, Base: b.Base, Commit: b.Commit,
		Reason: b.Reason, Summary: b.Summary, Checkpoint: b.Checkpoint, Settings: b.Settings, ETag: etag(b),
		Spent: spendView(t.BeadSpend(now, b.ID).Total())}
	if p := b.Proof; p != nil {
		out.Proof = &api.Proof{Kind: string(p.Kind), Commit: p.Commit, By: p.By, Reason: p.Reason, At: p.At.Time()}
	}
	if m := b.Merge; m != nil {
		out.Merge = &api.Merge{N: m.N, State: string(m.State), Commit: b.Commit, Tip: m.Tip, Candidate: m.Candidate, Since: m.Since.Time()}
		for _, g := range m.Gates {
			s := api.GateState{Name: g.Name, Passed: g.Passed, ExitCode: g.ExitCode, TimedOut: g.TimedOut, MS: g.Millis}
			if d == inFull {
				s.Log = g.Log
			}
			out.Merge.Gates = append(out.Merge.Gates, s)
		}
	}
	// A bead that exists can always be explained; without a reason it is shown all the same.
	if why, err := t.Why(now, b.ID); err == nil {
		out.Why = reasonView(why)
	}
	if d == inList {
		return out
	}
	out.Body = b.Body
	out.Uses = usesView(t, b.ID)
	out.Budgets = budgetViews(t.BeadBudgets(now, b.ID))
	for _, m := range b.Nudges {
		out.Nudges = append(out.Nudges, api.SentNudge{N: m.N, From: m.From, Text: m.Text, Interrupt: m.Interrupt, At: m.At.Time(),
			DeliveredAt: m.DeliveredAt.Time(), Epoch: m.Epoch})
	}
	for _, f := range b.Failures {
		out.Failures = append(out.Failures, api.Failure{At: f.At.Time(), Epoch: f.Epoch, Class: string(f.Class), Charged: f.Charged, Reason: f.Reason})
	}
	out.Runs = beadRuns(t, now, b)
	return out
}

func runID(bead string, epoch int64) string { return fmt.Sprintf("%s.%d", bead, epoch) }

// beadRuns returns the past runs of a bead and the present one, oldest first.
func beadRuns(t *town.Town, now time.Time, b town.Bead) []api.Run {
	out := []api.Run{}
	for _, r := range b.Runs {
		out = append(out, api.Run{ID: runID(b.ID, r.Epoch), Bead: b.ID, Rig: b.Rig, Epoch: r.Epoch, Agent: r.Agent, Preset: r.Preset,
			State: "ended", Generation: r.Generation, StartedAt: r.StartedAt.Time(), SpawnedAt: r.SpawnedAt.Time(),
			EndedAt: r.EndedAt.Time(), Outcome: string(r.Outcome), Class: string(r.Class), Reason: r.Reason, Spent: spendView(r.Spent)})
	}
	if r, ok := t.Run(runID(b.ID, b.Epoch)); ok {
		v := runView(r)
		v.Spent = spendView(t.RunSpend(now, r.ID))
		out = append(out, v)
	}
	return out
}

func runView(r town.Run) api.Run {
	return api.Run{ID: r.ID, Bead: r.Bead, Rig: r.Rig, Epoch: r.Epoch, Role: string(r.Role), Agent: r.Agent, Preset: r.Preset,
		Provider: r.Provider, Model: r.Model, State: string(r.State), Generation: r.Generation, Branch: r.Branch,
		StartedAt: r.CreatedAt.Time(), SpawnedAt: r.SpawnedAt.Time(), LifeAt: r.LifeAt.Time(), PID: r.PID,
		Verdict: string(r.Verdict), Stop: r.Stop}
}

func agentView(a town.Agent) api.Agent {
	return api.Agent{ID: a.ID, Rig: a.Rig, Name: a.Name, Role: string(a.Role), Run: a.Run, Bead: a.Bead, Closed: a.Closed,
		Failed: a.Failed, Since: a.Since.Time()}
}

// etag covers what people edit, so that the progress of a run does not make an
// edit fail.
func etag(b town.Bead) string {
	h := sha256.New()
	// Encoding strings and numbers can't fail, nor can writing to a hash.
	_ = json.NewEncoder(h).Encode([]any{b.ID, b.Title, b.Body, b.Priority, b.Labels, b.Settings, b.Status.Terminal()})
	return `"` + hex.EncodeToString(h.Sum(nil)[:12]) + `"`
}

// matches reports whether an If-Match header names the tag.
func matches(header, tag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		if part = strings.TrimSpace(part); part == "*" || part == tag {
			return true
		}
	}
	return false
}

// entryView reads a ledger entry. A body that can't be read shows what the columns know.
func entryView(e store.Entry) api.LedgerEntry {
	out := api.LedgerEntry{Seq: e.Seq, At: at(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor}
	var body town.Entry
	if err := json.Unmarshal(e.Body, &body); err != nil {
		out.Text = "(this entry can't be read)"
		return out
	}
	out.Text, out.Data = body.Text, body.Data
	return out
}

func chunkView(c store.Chunk) api.TranscriptItem {
	out := api.TranscriptItem{Run: c.Run, Epoch: c.Epoch, Seq: c.Seq, At: at(c.At), Kind: c.Kind, Body: c.Body}
	if !json.Valid(c.Body) {
		out.Body = json.RawMessage(`null`)
	}
	return out
}

func mapped[A, B any](in []A, f func(A) B) []B {
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}
