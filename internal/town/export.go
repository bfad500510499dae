package town

import (
	"slices"
	"strings"
	"time"
)

// The format of an exported town: JSON lines in this order, each with its type.
const (
	ExportFormat  = "gastown-town"
	ExportVersion = 1

	LineHeader = "header"
	LineTown   = "town"
	LineRig    = "rig"
	LineBead   = "bead"
	LineLedger = "ledger"
	LineEnd    = "end"
)

// Stamp is a time in an export: RFC 3339 in UTC with milliseconds, "" for none.
type Stamp string

const stampLayout = "2006-01-02T15:04:05.000Z"

// StampOf writes a time.
func StampOf(t Time) Stamp {
	if t == 0 {
		return ""
	}
	return Stamp(t.Time().Format(stampLayout))
}

// ExportCounts say how many lines of each kind an export has; Dependencies are
// those that its beads name.
type ExportCounts struct {
	Rigs         int   `json:"rigs"`
	Beads        int   `json:"beads"`
	Dependencies int   `json:"dependencies"`
	Ledger       int64 `json:"ledger"`
}

// ExportHeader is the first line. Its counts leave the ledger out, of which only
// the number of the last entry is known: older ones may be gone.
type ExportHeader struct {
	Type       string       `json:"type"`
	Format     string       `json:"format"`
	Version    int          `json:"version"`
	Town       string       `json:"town"`
	TownID     string       `json:"town_id"`
	ExportedAt Stamp        `json:"exported_at"`
	Gastown    string       `json:"gastown,omitempty"` // version of the server that wrote it
	Counts     ExportCounts `json:"counts"`
	LedgerTo   int64        `json:"ledger_to"`
}

// ExportTown is the second line.
type ExportTown struct {
	Type      string   `json:"type"`
	Name      string   `json:"name"`
	Owner     string   `json:"owner,omitempty"` // "" for the town itself
	CreatedAt Stamp    `json:"created_at"`
	Mode      Mode     `json:"mode"`
	Settings  Settings `json:"settings,omitempty"`
	LeftOut   []string `json:"left_out,omitempty"` // what may be a secret, or can't be read, by name
}

// ExportGate is a gate of a rig.
type ExportGate struct {
	Name      string `json:"name"`
	Command   string `json:"command"`
	TimeoutMS int64  `json:"timeout_ms,omitempty"`
}

// ExportRig is a rig, without its credential and its repository.
type ExportRig struct {
	Type           string       `json:"type"`
	Name           string       `json:"name"`
	Prefix         string       `json:"prefix"`
	URL            string       `json:"url"`
	Target         string       `json:"target"`
	Gates          []ExportGate `json:"gates,omitempty"`
	Settings       Settings     `json:"settings,omitempty"`
	UpdateWorktree bool         `json:"update_worktree,omitempty"`
	Credential     bool         `json:"credential,omitempty"` // it had one, which is not here
	CreatedAt      Stamp        `json:"created_at"`
}

// ExportProof is why a bead counts as closed.
type ExportProof struct {
	Kind   ProofKind `json:"kind"`
	Commit string    `json:"commit,omitempty"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     Stamp     `json:"at"`
}

// ExportFailure is something that went wrong.
type ExportFailure struct {
	At      Stamp  `json:"at"`
	Epoch   int64  `json:"epoch,omitempty"`
	Class   Class  `json:"class"`
	Charged bool   `json:"charged"`
	Reason  string `json:"reason"`
}

// ExportRun is a run that has ended.
type ExportRun struct {
	Epoch      int64   `json:"epoch"`
	Agent      string  `json:"agent"`
	Preset     string  `json:"preset"`
	Generation int64   `json:"generation,omitempty"`
	StartedAt  Stamp   `json:"started_at"`
	SpawnedAt  Stamp   `json:"spawned_at,omitempty"`
	EndedAt    Stamp   `json:"ended_at"`
	Outcome    Outcome `json:"outcome"`
	Class      Class   `json:"class,omitempty"`
	Reason     string  `json:"reason,omitempty"`
	Spent      Spend   `json:"spent,omitzero"`
}

// ExportBead is everything of a bead that outlives its runs. Lost are blockers
// that the town does not have any more and that block all the same.
type ExportBead struct {
	Type      string     `json:"type"`
	ID        string     `json:"id"`
	Rig       string     `json:"rig"`
	Title     string     `json:"title"`
	Body      string     `json:"body,omitempty"`
	Priority  int        `json:"priority"`
	Labels    []string   `json:"labels,omitempty"`
	Status    BeadStatus `json:"status"`
	Staged    bool       `json:"staged,omitempty"`
	BlockedBy []string   `json:"blocked_by,omitempty"`
	Lost      []string   `json:"lost_blockers,omitempty"`
	CreatedAt Stamp      `json:"created_at"`
	UpdatedAt Stamp      `json:"updated_at,omitempty"`
	ClosedAt  Stamp      `json:"closed_at,omitempty"`
	CreatedBy string     `json:"created_by,omitempty"`
	Settings  Settings   `json:"settings,omitempty"`

	Attempt   int   `json:"attempt"`
	Charged   int   `json:"charged,omitempty"`
	Conflicts int   `json:"conflicts,omitempty"`
	Losses    int   `json:"losses,omitempty"`
	Epoch     int64 `json:"epoch,omitempty"`
	NotBefore Stamp `json:"not_before,omitempty"`
	Escalated bool  `json:"escalated,omitempty"`
	Restarted bool  `json:"restarted,omitempty"`
	Spent     Spend `json:"spent,omitzero"`
	Past      Spend `json:"past,omitzero"`
	FreshAt   Stamp `json:"fresh_at,omitempty"`

	Agent   string `json:"agent,omitempty"`
	Base    string `json:"base,omitempty"`   // of merged work alone: the target contains it
	Commit  string `json:"commit,omitempty"` // as base
	Reason  string `json:"reason,omitempty"`
	Summary string `json:"summary,omitempty"`

	Proof    *ExportProof    `json:"proof,omitempty"`
	Runs     []ExportRun     `json:"runs,omitempty"`
	Failures []ExportFailure `json:"failures,omitempty"`
}

// ExportEntry is a line of the ledger.
type ExportEntry struct {
	Type    string            `json:"type"`
	Seq     int64             `json:"seq"`
	At      Stamp             `json:"at"`
	Kind    string            `json:"kind"`
	Subject string            `json:"subject,omitempty"`
	Actor   string            `json:"actor,omitempty"`
	Text    string            `json:"text,omitempty"`
	Data    map[string]string `json:"data,omitempty"`
}

// ExportEnd is the last line: a file without it was cut off. SHA256 is over all
// bytes before this line, in hex; "" in a file that was made by hand.
type ExportEnd struct {
	Type   string       `json:"type"`
	Counts ExportCounts `json:"counts"`
	SHA256 string       `json:"sha256,omitempty"`
}

// Export is what is exported of a town at one version, but for its ledger, of
// which the entries up to Header.LedgerTo belong to it.
type Export struct {
	Header ExportHeader
	Town   ExportTown
	Rigs   []ExportRig
	beads  []Bead
	there  map[string]struct{}
}

// secretSettings may hold a secret: they are never exported.
var secretSettings = []string{"notify.url"}

// Export copies what is exported of the town. The copy shares nothing that the
// town changes later.
func (t *Town) Export(at time.Time) *Export {
	in := t.info
	e := &Export{beads: t.Beads(), there: make(map[string]struct{}, len(t.beads))}
	e.Town = ExportTown{Type: LineTown, Name: in.Name, CreatedAt: StampOf(in.CreatedAt), Mode: in.Mode, Settings: in.Settings.merged(nil, secretSettings)}
	if in.Owner != in.ID {
		e.Town.Owner = in.Owner
	}
	for _, k := range secretSettings {
		if _, ok := in.Settings[k]; ok {
			e.Town.LeftOut = append(e.Town.LeftOut, "setting "+k)
		}
	}
	for _, q := range t.bad {
		e.Town.LeftOut = append(e.Town.LeftOut, plain(q.Kind+" "+q.ID+", which can't be read", 300))
	}
	for _, r := range t.sortedRigs() {
		if r.State != RigRemoving {
			e.Rigs = append(e.Rigs, exportRig(r))
		}
	}
	e.beads = slices.DeleteFunc(e.beads, func(b Bead) bool { return t.rigs[b.Rig].State == RigRemoving })
	deps := 0
	for i := range e.beads {
		e.there[e.beads[i].ID] = struct{}{}
	}
	for i := range e.beads {
		b := &e.beads[i]
		b.Merge = nil // the only part that changes in place
		for _, on := range b.BlockedBy {
			if _, ok := e.there[on]; ok {
				deps++
			}
		}
	}
	e.Header = ExportHeader{Type: LineHeader, Format: ExportFormat, Version: ExportVersion, Town: in.Name, TownID: in.ID,
		ExportedAt: StampOf(At(at)), LedgerTo: in.LedgerSeq, Counts: ExportCounts{Rigs: len(e.Rigs), Beads: len(e.beads), Dependencies: deps}}
	return e
}

func exportRig(r *Rig) ExportRig {
	out := ExportRig{Type: LineRig, Name: r.Name, Prefix: r.Prefix, URL: withoutPassword(r.URL), Target: r.Target, Settings: r.Settings,
		UpdateWorktree: r.UpdateWorktree, Credential: r.Secret != "", CreatedAt: StampOf(r.CreatedAt)}
	for _, g := range r.Gates {
		out.Gates = append(out.Gates, ExportGate{Name: g.Name, Command: g.Command, TimeoutMS: g.Timeout.Milliseconds()})
	}
	return out
}

// withoutPassword removes a password, and a query, from a URL. Both are refused
// when a rig is added; a row that was written otherwise must not leak them.
func withoutPassword(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return raw
	}
	rest, _, _ = strings.Cut(rest, "?")
	host, path, _ := strings.Cut(rest, "/")
	if at := strings.LastIndexByte(host, '@'); at >= 0 {
		user, _, secret := strings.Cut(host[:at], ":")
		if host = host[at+1:]; !secret && scheme == "ssh" {
			host = user + "@" + host
		}
	}
	return scheme + "://" + host + "/" + path
}

// Beads is how many beads there are.
func (e *Export) Beads() int { return len(e.beads) }

// Bead returns the i-th bead.
func (e *Export) Bead(i int) ExportBead {
	b := &e.beads[i]
	out := ExportBead{Type: LineBead, ID: b.ID, Rig: b.Rig, Title: b.Title, Body: b.Body, Priority: b.Priority, Labels: b.Labels,
		Status: b.Status, Staged: b.Staged, CreatedAt: StampOf(b.CreatedAt), UpdatedAt: StampOf(b.UpdatedAt), ClosedAt: StampOf(b.ClosedAt),
		CreatedBy: b.CreatedBy, Settings: b.Settings, Attempt: b.Attempt, Charged: b.Charged, Conflicts: b.Conflicts, Losses: b.Losses,
		Epoch: b.Epoch, NotBefore: StampOf(b.NotBefore), Escalated: b.Escalated, Restarted: b.Restarted, Agent: b.Agent,
		Spent: b.Spent, Past: b.Past, FreshAt: StampOf(b.FreshAt),
		Reason: plain(b.Reason, MaxReason), Summary: plain(b.Summary, MaxReason)}
	for _, on := range b.BlockedBy {
		if _, ok := e.there[on]; ok {
			out.BlockedBy = append(out.BlockedBy, on)
		} else {
			out.Lost = append(out.Lost, on)
		}
	}
	if p := b.Proof; p != nil {
		out.Proof = &ExportProof{Kind: p.Kind, Commit: p.Commit, By: plain(p.By, 200), Reason: plain(p.Reason, MaxReason), At: StampOf(p.At)}
		if p.Kind == ProofMerged {
			out.Base, out.Commit = b.Base, b.Commit
		}
	}
	for _, r := range b.Runs {
		out.Runs = append(out.Runs, ExportRun{Epoch: r.Epoch, Agent: r.Agent, Preset: r.Preset, Generation: r.Generation,
			StartedAt: StampOf(r.StartedAt), SpawnedAt: StampOf(r.SpawnedAt), EndedAt: StampOf(r.EndedAt), Outcome: r.Outcome, Class: r.Class,
			Reason: plain(r.Reason, MaxReason), Spent: r.Spent})
	}
	for _, f := range b.Failures {
		out.Failures = append(out.Failures, ExportFailure{At: StampOf(f.At), Epoch: f.Epoch, Class: f.Class, Charged: f.Charged, Reason: plain(f.Reason, MaxReason)})
	}
	return out
}

// ExportLine returns an entry as it is exported. Values of settings that may be
// secrets go with all that follows them: where they end can't be known.
func (e Entry) ExportLine() ExportEntry {
	out := ExportEntry{Type: LineLedger, Seq: e.Seq, At: StampOf(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor,
		Text: plain(e.Text, MaxBody), Data: e.Data}
	for _, k := range secretSettings {
		if at := strings.Index(out.Text, k+"="); at >= 0 && e.Kind == "town.set" {
			out.Text = out.Text[:at] + k + "=" + hiddenValue
		}
	}
	return out
}

// hiddenValue stands for a value that may be a secret.
const hiddenValue = "(hidden)"
