package town

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// exported writes a town as the server does.
func exported(t testing.TB, town *Town, ledger []Entry, now time.Time) []byte {
	t.Helper()
	var out bytes.Buffer
	line := func(v any) {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(b, '\n'))
	}
	e := town.Export(now)
	line(e.Header)
	line(e.Town)
	for _, r := range e.Rigs {
		line(r)
	}
	for i := range e.Beads() {
		line(e.Bead(i))
	}
	end := ExportEnd{Type: LineEnd, Counts: e.Header.Counts}
	for _, entry := range ledger {
		line(entry.ExportLine())
		end.Counts.Ledger++
	}
	end.SHA256 = hashOf(out.Bytes())
	line(end)
	return out.Bytes()
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// read hands a file to an importer and sorts what comes out into parts of a few lines.
func read(file []byte, rename map[string]string, perPart int) (*Importer, []ImportPart, error) {
	im, err := NewImporter(rename)
	if err != nil {
		return nil, nil, err
	}
	var parts []ImportPart
	var part ImportPart
	n := 0
	at := 0
	for at < len(file) {
		end := bytes.IndexByte(file[at:], '\n') + at + 1
		if end == at {
			end = len(file)
		}
		v, err := im.Line(file[at:end], func() string { return hashOf(file[:at]) })
		if err != nil {
			return im, nil, err
		}
		at = end
		switch v := v.(type) {
		case Rig:
			part.Rigs = append(part.Rigs, v)
		case Bead:
			part.Beads = append(part.Beads, v)
		case Entry:
			part.Ledger = append(part.Ledger, v)
		default:
			continue
		}
		if n++; n == perPart {
			parts, part, n = append(parts, part), ImportPart{N: part.N + 1}, 0
		}
	}
	if n > 0 {
		parts = append(parts, part)
	}
	return im, parts, im.Done()
}

// imported makes a town of a file, with a copy that is loaded before every input.
func imported(t testing.TB, file []byte, rename map[string]string, start bool) *driver {
	t.Helper()
	im, parts, err := read(file, rename, 3)
	if err != nil {
		t.Fatalf("import: %v\n%s", err, file)
	}
	d := &driver{t: t, now: epoch0.Add(48 * time.Hour), rows: map[string][]byte{}, conflict: map[string]bool{}, stream: "s1"}
	in, _ := im.Town()
	in.By = "ann"
	if d.town, err = NewImport("tn1", in, d.now); err != nil {
		t.Fatal(err)
	}
	d.save()
	for i, p := range parts {
		d.do(p)
		d.do(p) // a repeat changes nothing
		if i == len(parts)/2 {
			d.town = d.reload() // the server died in between
		}
	}
	d.do(FinishImport{By: "ann", From: im.Header().Town, ExportedAt: At(epoch0), Counts: im.Counts(), Reopened: im.Reopened(), Start: start})
	return d
}

// carried leaves out of an export what an import changes by design; back says
// that it is of a town that was imported.
func carried(t testing.TB, file []byte, back bool) []string {
	t.Helper()
	var out []string
	for line := range bytes.Lines(file) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		switch m["type"] {
		case LineHeader, LineEnd:
			continue // times, ids and hashes
		case LineTown:
			delete(m, "mode")
			delete(m, "left_out")
		case LineRig:
			delete(m, "credential")
		case LineBead:
			if s := m["status"]; s == "in_progress" || s == "in_review" {
				m["status"] = "open"
			}
			delete(m, "reason")     // says that work was lost
			delete(m, "not_before") // is over when it is imported
		case LineLedger:
			delete(m, "seq")
			data, _ := m["data"].(map[string]any)
			if back && data[importedMark] == nil {
				continue // the import's own
			}
			if data != nil {
				delete(data, importedMark)
				if len(data) == 0 {
					delete(m, "data")
				}
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

func TestARandomTownComesBackFromItsExport(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDriver(t)
		d.perform = false
		h := history{rt: rt, d: d}
		d.rig(Gate{Name: "test", Command: "make test", Timeout: time.Minute})
		for range rapid.IntRange(0, 60).Draw(rt, "steps") {
			in, _ := h.input()
			err := d.try(in)
			_ = err // refusals are part of the game
		}
		if d.town.info.Mode == ModeDeleting || d.town.rigs["web"] == nil || d.town.rigs["web"].State != RigActive {
			rt.Skip("it is being taken apart")
		}
		file := exported(t, d.town, d.ledger, d.now)
		back := imported(t, file, nil, false)
		again := exported(t, back.town, back.ledger, back.now)
		want, got := carried(t, file, false), carried(t, again, true)
		if !slices.Equal(want, got) {
			for i := range min(len(want), len(got)) {
				if want[i] != got[i] {
					rt.Fatalf("line %d of the export\n%s\ncame back as\n%s", i+1, want[i], got[i])
				}
			}
			rt.Fatalf("%d lines became %d", len(want), len(got))
		}
		if s := back.town.info; s.Mode != ModePaused || s.Sandbox.State != SandboxAsleep || s.Import != nil {
			rt.Fatalf("the town is %s, its sandbox %s", s.Mode, s.Sandbox.State)
		}
		if own := back.ledger[len(d.ledger)]; own.Kind != "town.imported" {
			rt.Fatalf("the imported entries are followed by %s", own.Kind)
		}
	})
}

// exampleFile is the export of a small town: a closed bead, one at work that it
// blocks nothing for, and one that waits for it.
func exampleFile(t testing.TB) []byte {
	t.Helper()
	d := newDriver(t)
	d.rig()
	d.do(SetTown{By: "ann", Set: Settings{"notify.url": "https://hooks.example/s3cret", "polecats.per_rig": "1"}})
	d.bead("web-aaaaa")
	d.hello()
	r := d.spawn("web-aaaaa")
	d.done("web-aaaaa")
	d.ended(r, OutcomeDone, "", "")
	d.wantBead("web-aaaaa", BeadClosed)
	d.bead("web-bbbbb", func(c *CreateBead) {
		c.Body, c.Labels, c.BlockedBy = "all of it\n\tplease", []string{"area:x"}, []string{"web-aaaaa"}
	})
	d.spawn("web-bbbbb")
	d.bead("web-ccccc", func(c *CreateBead) {
		c.BlockedBy = []string{"web-bbbbb"}
		c.Settings = Settings{"run.time_limit": "1h"}
	})
	d.wantBead("web-bbbbb", BeadInProgress)
	return exported(t, d.town, d.ledger, d.now)
}

func TestWorkGoesOnAfterAnImport(t *testing.T) {
	d := imported(t, exampleFile(t), nil, true)
	b := d.wantBead("web-bbbbb", BeadOpen)
	if !strings.Contains(b.Reason, "that work was not carried") {
		t.Fatalf("reason %q", b.Reason)
	}
	d.wantBead("web-aaaaa", BeadClosed)
	d.perform = true
	d.do(Tick{})
	d.wantWhy("web-bbbbb", Waiting, waitRepository)
	d.wantSandbox(SandboxAsleep)
	d.do(CloneRig{By: "ann", Rig: "web", URL: "/srv/web.git", Tip: commitName(0)})
	d.hello()
	run := d.spawn("web-bbbbb")
	if run.Epoch != 2 || run.Base != commitName(0) || run.Branch == "" {
		t.Fatalf("run %+v: its epoch must follow that of the run that was lost", run)
	}
	if err := d.try(CloneRig{By: "ann", Rig: "web", URL: "/srv/web.git", Tip: commitName(0)}); err == nil {
		t.Fatal("a rig that has its repository was cloned again")
	}
	for _, id := range []string{"web-bbbbb", "web-ccccc"} {
		r := d.run(id)
		d.spawn(id)
		d.done(id)
		d.ended(r, OutcomeDone, "", "")
		d.wantBead(id, BeadClosed)
	}
}

func TestAnImportedTownSpendsNothingByItself(t *testing.T) {
	d := imported(t, exampleFile(t), nil, false)
	d.perform = true
	d.do(CloneRig{By: "ann", Rig: "web", URL: "/srv/web.git", Tip: commitName(0)})
	for range 100 {
		d.now = d.now.Add(time.Hour)
		d.do(Tick{})
	}
	d.wantSandbox(SandboxAsleep)
	d.wantWhy("web-bbbbb", Waiting, waitPause)
	if n := d.town.info.Sandbox.Starts; n != 0 {
		t.Fatalf("%d starts", n)
	}
}

func TestAnImportThatNobodyFinishesIsDeleted(t *testing.T) {
	_, parts, err := read(exampleFile(t), nil, 3)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{t: t, now: epoch0, rows: map[string][]byte{}}
	if d.town, err = NewImport("tn1", ImportedTown{By: "ann", Name: "acme"}, d.now); err != nil {
		t.Fatal(err)
	}
	d.save()
	d.do(parts[0])
	if err := d.try(CreateBead{By: "ann", ID: "web-zzzzz", Rig: "web", Title: "x"}); err == nil {
		t.Fatal("a bead was created in the middle of an import")
	}
	if err := d.try(parts[2]); err == nil {
		t.Fatal("a part was left out")
	}
	next, ok := d.town.NextWake(d.now)
	if !ok || next.After(d.now.Add(importPatience)) {
		t.Fatalf("it is looked at again at %v", next)
	}
	d.now = next
	d.do(Tick{})
	if got := d.town.info.Mode; got != ModeDeleting {
		t.Fatalf("it is %s", got)
	}
}

func TestRenamingAPrefixRenamesAllThatNamesBeads(t *testing.T) {
	d := imported(t, exampleFile(t), map[string]string{"web": "shop"}, false)
	if b := d.the("shop-ccccc"); !slices.Equal(b.BlockedBy, []string{"shop-bbbbb"}) {
		t.Fatalf("blocked by %v", b.BlockedBy)
	}
	if r := d.town.rigs["web"]; r.Prefix != "shop" {
		t.Fatalf("prefix %s", r.Prefix)
	}
	for _, e := range d.ledger {
		if strings.HasPrefix(e.Subject, "web-") || strings.HasPrefix(e.Data["bead"], "web-") {
			t.Fatalf("ledger entry %+v", e)
		}
	}
}

func TestAnExportHasNoSecrets(t *testing.T) {
	file := exampleFile(t)
	if bytes.Contains(file, []byte("s3cret")) {
		t.Fatalf("the secret part of notify.url is in\n%s", file)
	}
	if !bytes.Contains(file, []byte(`"left_out":["setting notify.url"]`)) {
		t.Fatal("it is not said that notify.url was left out")
	}
	old := Entry{Kind: "town.set", Text: "agent=x, notify.url=https://hooks.example/s3cret, x=y"}
	if got, want := old.ExportLine().Text, "agent=x, notify.url=(hidden)"; got != want {
		t.Fatalf("an old entry says %q, want %q", got, want)
	}
	for in, want := range map[string]string{
		"https://ann:s3cret@git.example/web.git?token=s3cret": "https://git.example/web.git",
		"https://s3cret@git.example/web.git":                  "https://git.example/web.git",
		"ssh://git@git.example/web.git":                       "ssh://git@git.example/web.git",
		"git@git.example:web.git":                             "git@git.example:web.git",
		"/srv/web.git":                                        "/srv/web.git",
	} {
		if got := withoutPassword(in); got != want {
			t.Errorf("%s is exported as %s, want %s", in, got, want)
		}
	}
}

func TestAnImportedLedgerKeepsTimesAndActors(t *testing.T) {
	d := imported(t, exampleFile(t), nil, false)
	var created Entry
	for _, e := range d.ledger {
		if e.Kind == "bead.created" && e.Subject == "web-aaaaa" {
			created = e
		}
	}
	if created.At != At(epoch0) || created.Actor != "ann" || created.Data[importedMark] == "" {
		t.Fatalf("the creation is remembered as %+v", created)
	}
}

// TestABadFileNamesTheLine has one way after the other to spoil a file.
func TestABadFileNamesTheLine(t *testing.T) {
	good := string(exampleFile(t))
	if _, _, err := read([]byte(good), nil, 3); err != nil {
		t.Fatal(err)
	}
	lineOf := func(part string) string {
		i := strings.Index(good, part)
		if i < 0 {
			t.Fatalf("no %s in the file", part)
		}
		return fmt.Sprintf("line %d:", strings.Count(good[:i], "\n")+1)
	}
	drop := func(n int) string {
		lines := strings.SplitAfter(good, "\n")
		return strings.Join(slices.Delete(lines, n-1, n), "")
	}
	lines := strings.SplitAfter(good, "\n")
	last := len(lines) - 1 // of the file; after it is nothing
	beadB, beadC := lineOf(`"id":"web-bbbbb"`), lineOf(`"id":"web-ccccc"`)
	put := func(old, with string) string { return strings.Replace(good, old, with, 1) }
	unsealed := func(s string) string { return s[:strings.LastIndex(s, `,"sha256"`)] + "}\n" }
	for name, c := range map[string]struct {
		file   string
		line   string
		wants  string
		rename map[string]string
	}{
		"nothing":                 {"", "", "empty", nil},
		"another file":            {"hello\n", "line 1:", "not JSON", nil},
		"other JSON":              {"{\"a\":1}\n", "line 1:", "not the export", nil},
		"another format":          {put(`"format":"gastown-town"`, `"format":"x"`), "line 1:", "format", nil},
		"a newer version":         {put(`"version":1`, `"version":2`), "line 1:", "version", nil},
		"no town line":            {drop(2), "line 2:", "can't stand here", nil},
		"a second header":         {lines[0] + good, "line 2:", "can't stand here", nil},
		"a rig after beads":       {good[:strings.LastIndex(good, `{"type":"ledger"`)] + lines[2] + lines[last-1], lineOf(good[strings.LastIndex(good, `{"type":"ledger"`):]), "can't stand here", nil},
		"cut in a line":           {good[:len(good)-40], fmt.Sprintf("line %d:", last), "not JSON", nil},
		"cut between lines":       {strings.Join(lines[:last-1], ""), fmt.Sprintf("line %d:", last-1), "cut off", nil},
		"a line that is missing":  {drop(strings.Count(good[:strings.Index(good, `{"type":"ledger"`)], "\n") + 1), fmt.Sprintf("line %d:", last-1), "counts", nil},
		"something after the end": {good + lines[0], fmt.Sprintf("line %d:", last+1), "more after", nil},
		"a changed text":          {put("all of it", "all of IT"), fmt.Sprintf("line %d:", last), "sha256", nil},
		"an unknown field":        {put(`"title":"do web-bbbbb"`, `"titel":"x"`), beadB, `"titel"`, nil},
		"other bytes than UTF-8":  {put("do web-bbbbb", "do \xff"), beadB, "UTF-8", nil},
		"a field of another type": {put(`"id":"web-bbbbb"`, `"id":7`), beadB, "id: must be string, not number", nil},
		"an unknown type of line": {put(`{"type":"bead","id":"web-bbbbb"`, `{"type":"been","id":"web-bbbbb"`), beadB, "unknown type", nil},
		"a status":                {put(`"status":"in_progress"`, `"status":"lost"`), beadB, "status", nil},
		"an id":                   {put(`"id":"web-bbbbb"`, `"id":"WEB-1"`), beadB, "no bead id", nil},
		"the prefix of an id":     {put(`"id":"web-bbbbb"`, `"id":"api-bbbbb"`), beadB, "prefix", nil},
		"an id that is taken":     {put(`"id":"web-ccccc"`, `"id":"web-aaaaa"`), beadC, "already", nil},
		"a rig":                   {put(`"id":"web-bbbbb","rig":"web"`, `"id":"web-bbbbb","rig":"api"`), beadB, "no rig api", nil},
		"a title":                 {put(`"title":"do web-bbbbb"`, `"title":""`), beadB, "title", nil},
		"a priority":              {put(`"title":"do web-bbbbb","body":"all of it\n\tplease","priority":2`, `"title":"x","priority":9`), beadB, "priority", nil},
		"a label":                 {put(`"area:x"`, `"a b"`), beadB, "label", nil},
		"a blocker":               {unsealed(put(`"blocked_by":["web-bbbbb"]`, `"blocked_by":["web-zzzzz"]`)), beadC, "blocked_by", nil},
		"a blocker twice":         {put(`"blocked_by":["web-bbbbb"]`, `"blocked_by":["web-bbbbb","web-bbbbb"]`), beadC, "twice", nil},
		"a cycle":                 {unsealed(put(`"blocked_by":["web-aaaaa"]`, `"blocked_by":["web-ccccc"]`)), "line ", "cycle", nil},
		"a setting":               {put(`"run.time_limit":"1h"`, `"run.time_limit":"x"`), beadC, "run.time_limit", nil},
		"an unknown setting":      {put(`"run.time_limit"`, `"run.time_limt"`), beadC, "run.time_limt", nil},
		"a time":                  {put(`"closed_at":"20`, `"closed_at":"x20`), lineOf(`"id":"web-aaaaa"`), "closed_at", nil},
		"an outcome":              {put(`"outcome":"done"`, `"outcome":"fine"`), lineOf(`"id":"web-aaaaa"`), "outcome", nil},
		"a proof":                 {put(`"proof":{"kind":"merged"`, `"proof":{"kind":"trust"`), lineOf(`"id":"web-aaaaa"`), "proof", nil},
		"a negative counter":      {put(`"attempt":1,"epoch":1`, `"attempt":-1,"epoch":1`), lineOf(`"id":"web-aaaaa"`), "attempt", nil},
		"the order of the ledger": {put(`"type":"ledger","seq":3,`, `"type":"ledger","seq":1,`), lineOf(`"type":"ledger","seq":3,`), "seq", nil},
		"the time of an entry":    {put(`"type":"ledger","seq":3,"at":"2026`, `"type":"ledger","seq":3,"at":"1926`), lineOf(`"type":"ledger","seq":3,`), "at:", nil},
		"a setting of the town":   {put(`"polecats.per_rig":"1"`, `"polecats.per_rig":"many"`), "line 2:", "polecats.per_rig", nil},
		"a name":                  {put(`"type":"town","name":"acme"`, `"type":"town","name":"A B"`), "line 2:", "name", nil},
		"the prefix of a rig":     {put(`"prefix":"web"`, `"prefix":"WEB"`), "line 3:", "prefix", nil},
		"a prefix nobody has":     {good, "", "prefix api", map[string]string{"api": "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.file == good && c.rename == nil {
				t.Fatal("the file was not spoilt")
			}
			_, _, err := read([]byte(c.file), c.rename, 3)
			if err == nil {
				t.Fatal("it was taken")
			}
			if msg := err.Error(); !strings.HasPrefix(msg, c.line) || !strings.Contains(msg, c.wants) {
				t.Fatalf("the error says %q, want %q and %q", msg, c.line, c.wants)
			}
		})
	}
}

func TestACycleOfBlockersIsFound(t *testing.T) {
	for _, c := range []struct {
		in   map[string][]string
		want []string
	}{
		{map[string][]string{"a": nil, "b": {"a"}, "c": {"a", "b", "gone"}}, []string{""}},
		{map[string][]string{"a": {"b"}, "b": {"c"}, "c": {"b"}}, []string{"b", "c"}},
		{map[string][]string{"a": {"c"}, "b": {"a"}, "c": {"b"}, "d": {"a"}}, []string{"a", "b", "c"}},
	} {
		if got := inCycle(c.in); !slices.Contains(c.want, got) {
			t.Errorf("%v: %q, want one of %v", c.in, got, c.want)
		}
	}
}

// FuzzImporter reads lines of strangers: whatever they are, what is taken can be
// given to a town, kept, loaded and exported again.
func FuzzImporter(f *testing.F) {
	file := exampleFile(f)
	f.Add(file, "web", "shop")
	for line := range bytes.Lines(file) {
		f.Add(line, "", "")
	}
	f.Add([]byte(`{"type":"header","format":"gastown-town","version":1}`), "a", "")
	f.Fuzz(func(t *testing.T, raw []byte, old, to string) {
		rename := map[string]string{}
		if old != "" {
			rename[old] = to
		}
		im, parts, err := read(fixed(raw, file), rename, 2)
		if err != nil {
			return
		}
		in, _ := im.Town()
		town, err := NewImport("tn1", in, epoch0)
		if err != nil {
			t.Fatalf("the file was taken, the town was not: %v", err)
		}
		for _, p := range parts {
			if err := town.Handle(epoch0, p); err != nil {
				t.Fatalf("the file was taken, a part was not: %v", err)
			}
		}
		if err := town.Handle(epoch0, FinishImport{From: im.Header().Town, Counts: im.Counts(), Start: true}); err != nil {
			t.Fatalf("the file was taken, the import could not be finished: %v", err)
		}
		checkInvariants(t, town, epoch0)
		ledger := town.Entries()
		c, err := Decode("tn1", town.Rows(), nil)
		if err != nil || len(c.bad) > 0 {
			t.Fatalf("it can't be loaded: %v %v", err, c)
		}
		if _, _, err := read(exported(t, c, ledger, epoch0), nil, 2); err != nil {
			t.Fatalf("its own export is refused: %v", err)
		}
	})
}

// fixed puts lines of a stranger into a good file, in the place that their type
// has there, and makes the counts and the hash fit, so that more than the first
// check is reached. What is a file already stays.
func fixed(raw, good []byte) []byte {
	if bytes.Contains(raw, []byte(LineEnd)) {
		return raw
	}
	byType := map[string][][]byte{}
	var kind struct {
		Type string `json:"type"`
	}
	for _, file := range [][]byte{raw, good} {
		own := map[string]bool{}
		for line := range bytes.Lines(file) {
			kind.Type = ""
			if json.Unmarshal(line, &kind) != nil || stages[kind.Type] == 0 {
				return raw
			}
			if !own[kind.Type] && len(byType[kind.Type]) > 0 && (kind.Type == LineHeader || kind.Type == LineTown || kind.Type == LineRig || kind.Type == LineBead) {
				continue // the stranger's stand instead
			}
			own[kind.Type] = true
			byType[kind.Type] = append(byType[kind.Type], append(bytes.TrimRight(line, "\n"), '\n'))
		}
	}
	counts := ExportCounts{Rigs: len(byType[LineRig]), Beads: len(byType[LineBead]), Ledger: int64(len(byType[LineLedger]))}
	for _, line := range byType[LineBead] {
		var b struct {
			On []string `json:"blocked_by"`
		}
		if json.Unmarshal(line, &b) == nil {
			counts.Dependencies += len(b.On)
		}
	}
	var out []byte
	var h ExportHeader
	if json.Unmarshal(byType[LineHeader][0], &h) != nil {
		return raw
	}
	h.Counts = ExportCounts{Rigs: counts.Rigs, Beads: counts.Beads, Dependencies: counts.Dependencies}
	head, err := json.Marshal(h)
	if err != nil {
		return raw
	}
	byType[LineHeader] = [][]byte{append(head, '\n')}
	for _, kind := range []string{LineHeader, LineTown, LineRig, LineBead, LineLedger} {
		for _, line := range byType[kind] {
			out = append(out, line...)
		}
	}
	end, err := json.Marshal(ExportEnd{Type: LineEnd, Counts: counts})
	if err != nil {
		return raw
	}
	return append(out, append(end, '\n')...)
}

// TestEveryFieldIsExportedOrLeftOutOnPurpose reminds who adds a field that it
// may have to move with a town.
func TestEveryFieldIsExportedOrLeftOutOnPurpose(t *testing.T) {
	for _, c := range []struct {
		stored, exported any
		leftOut          []string
	}{
		{Bead{}, ExportBead{}, []string{"branch", "start", "checkpoint", "checkpoint_ref", "session", "session_epoch", "interrupted", "merge", "merge_n", "conflict_tip", "last_call", "refs", "told", "nudges", "nudge_n"}},
		{Rig{}, ExportRig{}, []string{"secret", "state", "tip", "fetched_at", "write_at", "expose"}},
		{RunRecord{}, ExportRun{}, []string{"marks"}},
		{Failure{}, ExportFailure{}, nil},
		{Proof{}, ExportProof{}, nil},
		{Entry{}, ExportEntry{}, nil},
	} {
		names := func(v any) map[string]bool {
			out := map[string]bool{}
			for i := range reflect.TypeOf(v).NumField() {
				name, _, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
				out[name] = true
			}
			return out
		}
		stored, exported := names(c.stored), names(c.exported)
		for name := range stored {
			if !exported[name] && !slices.Contains(c.leftOut, name) {
				t.Errorf("%T.%s is not exported: carry it (export.go, importer.go), or name it here", c.stored, name)
			}
		}
		for _, name := range c.leftOut {
			if !stored[name] || exported[name] {
				t.Errorf("%T.%s is said to be left out", c.stored, name)
			}
		}
	}
}

func TestEachFieldOfABeadComesBack(t *testing.T) {
	want := Bead{ID: "web-aaaaa", Rig: "web", Title: "t", Body: "b", Priority: 3, Labels: []string{"x"}, Status: BeadClosed, Staged: true,
		BlockedBy: []string{"web-zzzzz"}, CreatedAt: 1000, UpdatedAt: 2000, ClosedAt: 3000, CreatedBy: "ann", Settings: Settings{"run.time_limit": "1h"},
		Attempt: 2, Charged: 3, Conflicts: 4, Losses: 5, Epoch: 6, NotBefore: 7000, Restarted: true, Spent: Spend{1, 2, 3, 4}, Past: Spend{5, 6, 7, 8}, FreshAt: 8000,
		Agent: "amber", Base: commitName(1), Commit: commitName(2), Reason: "r", Summary: "s",
		Proof:    &Proof{Kind: ProofMerged, Commit: commitName(3), By: "ann", Reason: "merged", At: 9000},
		Runs:     []RunRecord{{Epoch: 6, Agent: "amber", Preset: "scripted", Generation: 7, StartedAt: 1, SpawnedAt: 2, EndedAt: 3, Outcome: OutcomeDone, Class: ClassWork, Reason: "x", Spent: Spend{1, 1, 1, 1}}},
		Failures: []Failure{{At: 4, Epoch: 5, Class: ClassLimit, Charged: true, Reason: "y"}}}
	e := &Export{beads: []Bead{want}}
	line, err := json.Marshal(e.Bead(0))
	if err != nil {
		t.Fatal(err)
	}
	im, err := NewImporter(nil)
	if err != nil {
		t.Fatal(err)
	}
	im.rigs["web"] = "web"
	got, err := im.readBead(line)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\n%+v\ncame back as\n%+v", err, want, got)
	}
}
