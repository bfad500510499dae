package town

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"gastown/internal/errs"
)

// Importer reads the lines of an export one after the other and turns them into
// what a town takes. It keeps ids and dependencies, not the lines themselves.
// Its errors name the line and the field. Make one with NewImporter; a file is
// good when Line returned no error for any line and Done returns none.
type Importer struct {
	rename map[string]string
	used   map[string]bool // renames that a rig asked for

	n      int // number of the line that is read
	stage  int // of the type of the last line
	header ExportHeader
	town   ImportedTown
	note   ExportTown
	rigs   map[string]string // name -> prefix
	heads  []ExportRig
	beads  map[string]importedBead
	counts ExportCounts
	last   int64 // seq of the last ledger entry in the file
	reopen int
	done   bool
}

type importedBead struct {
	line      int
	blockedBy []string
	lost      []string
}

// NewImporter makes an Importer that gives rigs other prefixes, from old to new.
func NewImporter(rename map[string]string) (*Importer, error) {
	for _, old := range slices.Sorted(maps.Keys(rename)) {
		if err := errors.Join(ValidPrefix(old), ValidPrefix(rename[old])); err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "renaming a prefix")
		}
	}
	return &Importer{rename: rename, used: map[string]bool{}, rigs: map[string]string{}, beads: map[string]importedBead{}}, nil
}

// Header returns the first line.
func (im *Importer) Header() ExportHeader { return im.header }

// Town returns what the second line says.
func (im *Importer) Town() (ImportedTown, ExportTown) { return im.town, im.note }

// Rigs returns the rigs that were read, with their new prefixes.
func (im *Importer) Rigs() []ExportRig { return im.heads }

// Counts returns how many lines of each kind were read.
func (im *Importer) Counts() ExportCounts { return im.counts }

// Reopened is how many beads were at work when they were exported.
func (im *Importer) Reopened() int { return im.reopen }

// LineNumber is the number of the line that was read last, from 1.
func (im *Importer) LineNumber() int { return im.n }

// At puts the number of the current line before an error.
func (im *Importer) At(err error) error { return AtLine(im.n, err) }

// AtLine puts the number of a line before an error, whose kind and hint stay.
func AtLine(n int, err error) error {
	if err == nil {
		return nil
	}
	var e *errs.Error
	if errors.As(err, &e) && e.Kind != errs.Internal {
		out := errs.New(e.Kind, "line %d: %s", n, strings.TrimSuffix(err.Error(), " ("+e.Hint+")"))
		out.Hint = e.Hint
		return out
	}
	return errs.New(errs.Invalid, "line %d: %s", n, err.Error())
}

// stages is the order of the types of lines.
var stages = map[string]int{LineHeader: 1, LineTown: 2, LineRig: 3, LineBead: 4, LineLedger: 5, LineEnd: 6}

// Line reads the next line, without its end. sum returns the hash of all bytes
// before it. The result is a Rig, a Bead, an Entry, or nil for other lines.
func (im *Importer) Line(raw []byte, sum func() string) (any, error) {
	im.n++
	out, err := im.line(raw, sum)
	return out, im.At(err)
}

func (im *Importer) line(raw []byte, sum func() string) (any, error) {
	if im.done {
		return nil, errs.New(errs.Invalid, "there is more after the last line of the export")
	}
	if !utf8.Valid(raw) { // encoding/json would repair it without a word
		return nil, errs.New(errs.Invalid, "not valid UTF-8")
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, jsonError(err)
	}
	stage := stages[head.Type]
	switch {
	case im.n == 1 && stage != 1:
		return nil, errs.New(errs.Invalid, "this is not the export of a town").WithHint("gastown town export TOWN FILE writes one")
	case stage == 0:
		return nil, errs.New(errs.Invalid, "type: unknown type %q", clip(head.Type, 60))
	case stage < im.stage || stage <= 2 && stage == im.stage || im.stage == 1 && stage != 2:
		return nil, errs.New(errs.Invalid, "type: a line of type %s can't stand here", head.Type).WithHint("the order is header, town, rig, bead, ledger, end")
	}
	im.stage = stage
	switch head.Type {
	case LineHeader:
		return nil, im.readHeader(raw)
	case LineTown:
		return nil, im.readTown(raw)
	case LineRig:
		return some(im.readRig(raw))
	case LineBead:
		return some(im.readBead(raw))
	case LineLedger:
		return some(im.readEntry(raw))
	}
	return nil, im.readEnd(raw, sum)
}

func some[T any](v T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// fields decodes a line strictly.
func fields(raw []byte, v any) error {
	if err := strict(raw, v); err != nil {
		return jsonError(err)
	}
	return nil
}

// jsonError says what is wrong with a line, without quoting it.
func jsonError(err error) error {
	var ute *json.UnmarshalTypeError
	var se *json.SyntaxError
	switch {
	case errors.As(err, &ute):
		return errs.New(errs.Invalid, "%s: must be %s, not %s", clip(ute.Field, 100), ute.Type, ute.Value)
	case errors.As(err, &se):
		return errs.New(errs.Invalid, "not JSON: %s at byte %d", se.Error(), se.Offset)
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return errs.New(errs.Invalid, "unknown field %s", clip(field, 100)).WithHint("a newer gastown may have written the file")
	}
	return errs.New(errs.Invalid, "not one JSON object")
}

// times reads stamps by the names of their fields and keeps the first error.
type times struct{ err error }

func (ts *times) read(field string, s Stamp) Time {
	if s == "" {
		return 0
	}
	at, err := time.Parse(time.RFC3339, string(s))
	if t := At(at); err == nil && t > 0 && t <= lastTime {
		return t
	}
	if ts.err == nil {
		ts.err = errs.New(errs.Invalid, "%s: %q is not a time like %s", field, clip(string(s), 60), stampLayout)
	}
	return 0
}

func (im *Importer) readHeader(raw []byte) error {
	// Whoever writes another format may write other fields: look at that first.
	var is struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(raw, &is); err != nil {
		return jsonError(err)
	}
	if is.Format != ExportFormat {
		return errs.New(errs.Invalid, "format: this is not the export of a town").WithHint("gastown town export TOWN FILE writes one")
	}
	if is.Version != ExportVersion {
		return errs.New(errs.Invalid, "version: this server reads version %d of the format, not %d", ExportVersion, is.Version).WithHint("import it with a newer gastown")
	}
	h := &im.header
	if err := fields(raw, h); err != nil {
		return err
	}
	var ts times
	if ts.read("exported_at", h.ExportedAt); ts.err != nil {
		return ts.err
	}
	if err := cleanText("gastown", h.Gastown, 200); err != nil {
		return err
	}
	return cleanLine("town", h.Town, 200)
}

func (im *Importer) readTown(raw []byte) error {
	v := &im.note
	if err := fields(raw, v); err != nil {
		return err
	}
	if err := ValidName("town", v.Name); err != nil {
		return err
	}
	if v.Owner != "" {
		if err := cleanLine("owner", v.Owner, 100); err != nil {
			return err
		}
	}
	for _, s := range v.LeftOut {
		if err := cleanText("left_out", s, 1000); err != nil {
			return err
		}
	}
	var ts times
	im.town = ImportedTown{Name: v.Name, Owner: v.Owner, CreatedAt: ts.read("created_at", v.CreatedAt), Settings: v.Settings}
	if ts.err != nil {
		return ts.err
	}
	return checkSettings(LevelTown, v.Settings, nil)
}

func (im *Importer) readRig(raw []byte) (Rig, error) {
	var v ExportRig
	if err := fields(raw, &v); err != nil {
		return Rig{}, err
	}
	if to, ok := im.rename[v.Prefix]; ok {
		im.used[v.Prefix] = true
		v.Prefix = to
	}
	var ts times
	r := Rig{Name: v.Name, Prefix: v.Prefix, URL: v.URL, Target: v.Target, Settings: v.Settings, UpdateWorktree: v.UpdateWorktree,
		State: RigMissing, CreatedAt: ts.read("created_at", v.CreatedAt)}
	for i, g := range v.Gates {
		if g.TimeoutMS < 0 || g.TimeoutMS > day.Milliseconds() {
			return r, errs.New(errs.Invalid, "gates[%d].timeout_ms: %d is not from 0 to %d", i, g.TimeoutMS, day.Milliseconds())
		}
		r.Gates = append(r.Gates, Gate{Name: g.Name, Command: g.Command, Timeout: time.Duration(g.TimeoutMS) * time.Millisecond})
	}
	if ts.err != nil {
		return r, ts.err
	}
	if err := empty().checkNewRig(r); err != nil {
		return r, err
	}
	for name, prefix := range im.rigs {
		if name == r.Name || prefix == r.Prefix {
			return r, errs.New(errs.Invalid, "name or prefix: rig %s with prefix %s is there already", name, prefix)
		}
	}
	im.rigs[r.Name] = r.Prefix
	im.heads = append(im.heads, v)
	im.counts.Rigs++
	return r, nil
}

// workLost tells the next attempt, and whoever asks why, what an import did.
const workLost = "It was being worked on when the town was exported; that work was not carried: begin anew."

func (im *Importer) readBead(raw []byte) (Bead, error) {
	var v ExportBead
	if err := fields(raw, &v); err != nil {
		return Bead{}, err
	}
	prefix, ok := im.rigs[v.Rig]
	if !ok {
		return Bead{}, errs.New(errs.Invalid, "rig: no rig %s in this file", clip(v.Rig, 60))
	}
	b, err := im.bead(&v)
	if err != nil {
		return b, err
	}
	if err := checkImported(&b, prefix); err != nil {
		return b, err
	}
	if old, ok := im.beads[b.ID]; ok {
		return b, errs.New(errs.Invalid, "id: bead %s is on line %d already", b.ID, old.line)
	}
	if len(im.beads) >= MaxBeads {
		return b, errs.New(errs.Invalid, "more than %d beads", MaxBeads)
	}
	kept := len(v.BlockedBy)
	im.beads[b.ID] = importedBead{im.n, b.BlockedBy[:kept:kept], b.BlockedBy[kept:]}
	im.counts.Beads++
	im.counts.Dependencies += kept
	return b, nil
}

// bead turns a line into a bead as it will be stored.
func (im *Importer) bead(v *ExportBead) (Bead, error) {
	var ts times
	b := Bead{ID: im.renamed(v.ID), Rig: v.Rig, Title: v.Title, Body: v.Body, Priority: v.Priority, Labels: v.Labels, Status: v.Status, Staged: v.Staged,
		CreatedAt: ts.read("created_at", v.CreatedAt), UpdatedAt: ts.read("updated_at", v.UpdatedAt), ClosedAt: ts.read("closed_at", v.ClosedAt),
		CreatedBy: v.CreatedBy, Settings: Settings(nil).merged(v.Settings, nil), Attempt: v.Attempt, Charged: v.Charged, Conflicts: v.Conflicts, Losses: v.Losses,
		Epoch: v.Epoch, NotBefore: ts.read("not_before", v.NotBefore), Escalated: v.Escalated, Restarted: v.Restarted, Agent: v.Agent,
		Spent: v.Spent, Past: v.Past, FreshAt: ts.read("fresh_at", v.FreshAt),
		Base: v.Base, Commit: v.Commit, Reason: v.Reason, Summary: v.Summary}
	for _, on := range slices.Concat(v.BlockedBy, v.Lost) {
		b.BlockedBy = append(b.BlockedBy, im.renamed(on))
	}
	if p := v.Proof; p != nil {
		b.Proof = &Proof{Kind: p.Kind, Commit: p.Commit, By: p.By, Reason: p.Reason, At: ts.read("proof.at", p.At)}
	}
	if b.Proof == nil || b.Proof.Kind != ProofMerged {
		b.Base, b.Commit = "", ""
	}
	for i, r := range v.Runs {
		at := func(name string, s Stamp) Time { return ts.read(fmt.Sprintf("runs[%d].%s", i, name), s) }
		b.Runs = append(b.Runs, RunRecord{Epoch: r.Epoch, Agent: r.Agent, Preset: r.Preset, Generation: r.Generation, Outcome: r.Outcome, Class: r.Class,
			StartedAt: at("started_at", r.StartedAt), SpawnedAt: at("spawned_at", r.SpawnedAt), EndedAt: at("ended_at", r.EndedAt), Reason: r.Reason, Spent: r.Spent})
	}
	for i, f := range v.Failures {
		b.Failures = append(b.Failures, Failure{At: ts.read(fmt.Sprintf("failures[%d].at", i), f.At), Epoch: f.Epoch, Class: f.Class, Charged: f.Charged, Reason: f.Reason})
	}
	if v.Status == BeadInProgress || v.Status == BeadInReview {
		im.reopen++
		b.Status, b.ClosedAt = BeadOpen, 0
		if b.Reason != "" {
			b.Reason = "\n\nBefore that: " + b.Reason
		}
		b.Reason = clip(workLost+b.Reason, MaxReason)
	}
	return b, ts.err
}

var beadRefRE = regexp.MustCompile(`^(merge/)?([a-z][a-z0-9]{0,11})(-[a-z0-9]{5}(\.[0-9]+)?)$`)

// renamed gives what names a bead, a run or a merge its new prefix.
func (im *Importer) renamed(s string) string {
	if len(im.rename) == 0 {
		return s
	}
	if m := beadRefRE.FindStringSubmatch(s); m != nil {
		if to, ok := im.rename[m[2]]; ok {
			return m[1] + to + m[3]
		}
	}
	return s
}

// importedMark is the fact of a ledger entry that says its number in the ledger
// that it came from first.
const importedMark = "imported"

func (im *Importer) readEntry(raw []byte) (Entry, error) {
	var v ExportEntry
	if err := fields(raw, &v); err != nil {
		return Entry{}, err
	}
	var ts times
	e := Entry{At: ts.read("at", v.At), Kind: v.Kind, Subject: im.renamed(v.Subject), Actor: v.Actor, Text: v.Text, Data: map[string]string{}}
	if ts.err != nil {
		return e, ts.err
	}
	if v.Seq <= im.last {
		return e, errs.New(errs.Invalid, "seq: %d does not follow %d", v.Seq, im.last)
	}
	im.last = v.Seq
	for k, s := range v.Data {
		e.Data[k] = im.renamed(s)
	}
	if e.Data[importedMark] == "" {
		e.Data[importedMark] = fmt.Sprint(v.Seq)
	}
	im.counts.Ledger++
	return e, checkEntry(&e)
}

func (im *Importer) readEnd(raw []byte, sum func() string) error {
	var v ExportEnd
	if err := fields(raw, &v); err != nil {
		return err
	}
	if v.Counts != im.counts {
		return errs.New(errs.Invalid, "counts: the file has %s, its last line says %s", im.counts, v.Counts).WithHint("lines are missing, or were added")
	}
	if v.SHA256 != "" && v.SHA256 != sum() {
		return errs.New(errs.Invalid, "sha256: the file was changed after it was written").
			WithHint("if you changed it on purpose, remove sha256 from the last line")
	}
	im.done = true
	return nil
}

// String says counts in words.
func (c ExportCounts) String() string {
	return fmt.Sprintf("%d rigs, %d beads, %d dependencies and %d ledger entries", c.Rigs, c.Beads, c.Dependencies, c.Ledger)
}

// Done checks what can be checked only at the end of the file.
func (im *Importer) Done() error {
	if im.n == 0 {
		return errs.New(errs.Invalid, "the file is empty")
	}
	if !im.done {
		return errs.New(errs.Invalid, "line %d: the file ends here, without its last line: it was cut off", im.n)
	}
	if h := im.header.Counts; h.Rigs != im.counts.Rigs || h.Beads != im.counts.Beads || h.Dependencies != im.counts.Dependencies {
		return errs.New(errs.Invalid, "line 1: counts: the file has %s, its first line says otherwise", im.counts)
	}
	for _, old := range slices.Sorted(maps.Keys(im.rename)) {
		if !im.used[old] {
			return errs.New(errs.Invalid, "no rig in the file has the prefix %s", old).WithHint("leave the renaming of it out")
		}
	}
	blocks := make(map[string][]string, len(im.beads))
	for _, id := range slices.SortedFunc(maps.Keys(im.beads), func(a, b string) int { return im.beads[a].line - im.beads[b].line }) {
		b := im.beads[id]
		blocks[id] = b.blockedBy
		for _, on := range b.blockedBy {
			if _, ok := im.beads[on]; !ok {
				return AtLine(b.line, errs.New(errs.Invalid, "blocked_by: no bead %s in this file", on))
			}
		}
		for _, on := range b.lost {
			if _, ok := im.beads[on]; ok {
				return AtLine(b.line, errs.New(errs.Invalid, "lost_blockers: %s is in this file", on))
			}
		}
	}
	if id := inCycle(blocks); id != "" {
		return AtLine(im.beads[id].line, errs.New(errs.Invalid, "blocked_by: bead %s is part of a cycle of blockers", id))
	}
	return nil
}
