package town

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"
)

// unseen are the fields that decide nothing: counters of the past, texts, and
// times that nothing is measured from. A field that is not named here counts.
func unseen() map[string]bool {
	out := map[string]bool{}
	for typ, fields := range map[string][]string{
		"Info": {"CreatedAt", "ModeAt", "ModeBy", "AwakeFrom", "AwakeBy", "Meter", "DesiredRev", "DesiredHash", "LedgerSeq", "ClaimSeq", "NoticeSeq", "Settings",
			"EscalationSeq", "Told"},
		"Sandbox": {"Since", "StartedAt", "StartHold", "StartReason", "StopReason", "LastHoldWas", "TokenAt", "HelloAt", "Seq", "Starts", "Renewals", "AwakeMS", "AwakeBase",
			"Position"},
		"Bead": {"Title", "Body", "CreatedAt", "UpdatedAt", "ClosedAt", "CreatedBy", "Reason", "Summary", "Runs", "Failures", "Session",
			"SessionEpoch", "Interrupted", "Spent", "Past", "FreshAt", "Told"},
		"Run": {"CreatedAt", "LifeAt", "SavedAt", "PID", "Branch", "IdleMS", "Told", "SlowMS", "SaveError", "SaveErrorAt", "SaveNotes", "SaveTold",
			"Spent", "Marks"},
		"Nudge":   {"Text"},
		"Merge":   {"Since", "Gates"},
		"Proof":   {"At", "Reason"},
		"Agent":   {"Closed", "Failed", "Since"},
		"Claim":   {"ID", "Attempt", "By"},
		"Breaker": {"Last", "Since"},
		"Rig":     {"URL", "Gates", "Settings", "CreatedAt", "FetchedAt", "WriteAt"},
	} {
		for _, f := range fields {
			out[typ+"."+f] = true
		}
	}
	return out
}

// canon writes what matters of a world in a form in which two worlds that will
// do the same are the same: times are distances from now.
type canon struct {
	now    Time
	buf    []byte
	unseen map[string]bool
	plans  map[reflect.Type][]int
}

func (c *canon) text(s string) { c.buf = append(append(c.buf, s...), 0) }

// unit is how finely the model tells times apart.
const unit = 30 * time.Second

// time writes a moment: what lies back further than anything that is measured
// is all the same.
func (c *canon) time(t Time) {
	switch d := t.Sub(c.now); {
	case t == 0:
		c.text("-")
	case d <= -4*time.Minute:
		c.text("old")
	case d > time.Hour:
		c.text("far")
	case d > 0:
		c.buf = binary.AppendVarint(append(c.buf, '+'), int64((d+unit-1)/unit))
	default:
		c.buf = binary.AppendVarint(append(c.buf, '.'), int64(d/unit))
	}
}

func (c *canon) value(v reflect.Value) {
	if v.Type() == reflect.TypeFor[Time]() {
		c.time(Time(v.Int()))
		return
	}
	switch v.Kind() {
	case reflect.String:
		c.text(v.String())
	case reflect.Bool:
		c.text(strconv.FormatBool(v.Bool()))
	case reflect.Int, reflect.Int64:
		c.buf = binary.AppendVarint(append(c.buf, 'i'), v.Int())
	case reflect.Pointer:
		if v.IsNil() {
			c.text("nil")
			return
		}
		c.value(v.Elem())
	case reflect.Slice:
		c.buf = binary.AppendVarint(append(c.buf, 's'), int64(v.Len()))
		for i := range v.Len() {
			c.value(v.Index(i))
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		for _, k := range keys {
			c.text(fmt.Sprint(k))
			c.value(v.MapIndex(k))
		}
	case reflect.Struct:
		for _, i := range c.plan(v.Type()) {
			c.value(v.Field(i))
		}
	default:
		fail("the model can't write %s", v.Type())
	}
}

func (c *canon) plan(t reflect.Type) []int {
	if p, ok := c.plans[t]; ok {
		return p
	}
	var p []int
	for i := range t.NumField() {
		if !c.unseen[t.Name()+"."+t.Field(i).Name] {
			p = append(p, i)
		}
	}
	c.plans[t] = p
	return p
}

func writeMap[V any](c *canon, m map[string]*V) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		c.text(k)
		c.value(reflect.ValueOf(m[k]).Elem())
	}
	c.text(";")
}

// state is what matters of a world.
func (w *world) state(c *canon) state {
	c.now, c.buf = At(w.now), c.buf[:0]
	t := w.town
	c.value(reflect.ValueOf(t.info))
	writeMap(c, t.rigs)
	writeMap(c, t.beads)
	writeMap(c, t.runs)
	writeMap(c, t.agents)
	writeMap(c, t.claims)
	writeMap(c, t.breakers)
	for _, key := range slices.Sorted(maps.Keys(w.flight)) {
		c.text(key)
	}
	fmt.Fprintf((*appender)(&c.buf), "%d %d %d %v", w.alive, w.over, w.tip, w.landed)
	sum := sha256.Sum256(c.buf)
	return state{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

type appender []byte

func (a *appender) Write(p []byte) (int, error) { *a = append(*a, p...); return len(p), nil }

// memory is what a step is compared with.
type memory struct {
	beads   map[string]Bead
	runs    map[string]Run
	now     time.Time
	ledger  int64
	gen     int64
	late    map[string]bool // beads whose run is stopped for what it did
	breaker map[string]int
	alone   bool
}

func remember(w *world) memory {
	t := w.town
	m := memory{beads: map[string]Bead{}, runs: map[string]Run{}, now: w.now, ledger: t.info.LedgerSeq, gen: w.gen(), breaker: map[string]int{}, late: map[string]bool{}, alone: len(t.runs) == 1}
	for id, b := range t.beads {
		m.beads[id] = *b
	}
	for id, r := range t.runs {
		m.runs[id] = *r
		m.late[r.Bead] = r.SpawnedAt != 0 && (r.Stop == stopLimit || r.Stop == stopStuckAgain)
	}
	for s, b := range t.breakers {
		m.breaker[s] = b.Fails
	}
	return m
}

// compare asserts what must hold between two states, and empties the town's
// lists of what is to be stored.
func (m memory) compare(w *world, mv move) {
	t := w.town
	entries := t.Entries()
	for i, e := range entries {
		if e.Seq != m.ledger+int64(i)+1 {
			fail("ledger entry %d comes after %d", e.Seq, m.ledger+int64(i))
		}
	}
	if t.info.LedgerSeq != m.ledger+int64(len(entries)) {
		fail("the ledger is at %d, its entries end at %d", t.info.LedgerSeq, m.ledger+int64(len(entries)))
	}
	clear(t.dirty)
	if w.gen() < m.gen {
		fail("the generation fell from %d to %d", m.gen, w.gen())
	}
	for id, was := range m.beads {
		m.compareBead(w, was, t.beads[id], mv, entries)
		m.compareCounts(w, was, t.beads[id], mv, entries)
	}
	for id, r := range t.runs {
		for _, on := range t.beads[r.Bead].BlockedBy {
			if _, old := m.runs[id]; !old && t.beads[on].Status != BeadClosed {
				fail("run %s was started while %s is %s", id, on, t.beads[on].Status)
			}
		}
	}
	for s, fails := range m.breaker {
		if br := t.breakers[s]; br != nil && br.Fails < fails && !mv.person {
			fail("breaker %s went from %d to %d failures without a success", s, fails, br.Fails)
		}
	}
}

func (m memory) compareBead(w *world, was Bead, b *Bead, mv move, entries []Entry) {
	paid := slices.ContainsFunc(entries, func(e Entry) bool {
		return e.Kind == "run.ended" && e.Data["bead"] == was.ID && e.Data["class"] == string(ClassWork)
	})
	judged := slices.ContainsFunc(entries, func(e Entry) bool {
		return e.Subject == was.ID && (e.Kind == "gate.failed" || e.Kind == "merge.conflict")
	})
	merged := 0
	for _, e := range entries {
		if e.Kind == "merge.landed" && e.Subject == was.ID {
			merged++
		}
	}
	switch {
	case b == nil:
		fail("bead %s is gone", was.ID)
	case was.Status.Terminal() && b.Status != was.Status && !mv.person:
		fail("bead %s went from %s to %s, and no person asked", b.ID, was.Status, b.Status)
	case b.Epoch < was.Epoch || b.MergeN < was.MergeN || b.Attempt < was.Attempt:
		fail("a counter of bead %s fell: epoch %d to %d, candidate %d to %d, attempt %d to %d", b.ID, was.Epoch, b.Epoch, was.MergeN, b.MergeN, was.Attempt, b.Attempt)
	case b.Charged > was.Charged+1 || b.Charged > was.Charged && !paid && !judged:
		fail("bead %s paid %d attempts for nothing of its own", b.ID, b.Charged-was.Charged)
	case b.Charged > was.Charged && mv.fault && !judged && !m.late[b.ID] && !(was.suspect() && m.alone):
		fail("bead %s paid an attempt for a fault of infrastructure", b.ID)
	case (b.Charged < was.Charged || b.Conflicts < was.Conflicts || !b.Restarted && was.Restarted) && !mv.person:
		fail("a counter of bead %s was reset without a success or a person", b.ID)
	case b.Losses < was.Losses && !mv.person && was.LastCall == b.LastCall && b.Status != BeadClosed:
		fail("the losses of bead %s were forgotten without a success or a person", b.ID)
	case merged > 1 || merged == 1 && was.Status.Terminal():
		fail("bead %s is merged again", b.ID)
	}
}

// compareCounts asserts that what happens to a bead is counted where it must be.
func (m memory) compareCounts(w *world, was Bead, b *Bead, mv move, entries []Entry) {
	r, worked := m.runs[was.currentRun()]
	for _, e := range entries {
		switch {
		case e.Kind == "merge.conflict" && e.Subject == was.ID && was.Merge != nil:
			same := was.ConflictTip == was.Merge.Tip || was.Base == was.Merge.Tip
			if same != (b.Charged > was.Charged) || same == (b.Conflicts > was.Conflicts) {
				fail("a conflict of bead %s (on the same tip: %v) took it from %d charged attempts and %d conflicts to %d and %d",
					b.ID, same, was.Charged, was.Conflicts, b.Charged, b.Conflicts)
			}
		case (e.Kind == "sandbox.lost" || e.Kind == "sandbox.wedged") && w.now.Equal(m.now) && worked && r.SpawnedAt != 0 && r.Verdict == "" && !mv.person:
			if b.Losses != was.Losses+1 {
				fail("bead %s ran when the sandbox was lost, and its losses went from %d to %d", b.ID, was.Losses, b.Losses)
			}
		}
	}
}

// check asserts what every state must show.
func (w *world) check() {
	t := w.town
	checkInvariants(catch{}, t, w.now)
	w.checkHolds()
	for id, b := range t.beads {
		if b.Status == BeadClosed && b.Proof.Kind == ProofMerged && !slices.ContainsFunc(w.landed, func(l onTarget) bool {
			return l.bead == id && (l.candidate == b.Proof.Commit || l.commit == b.Proof.Commit)
		}) {
			fail("bead %s counts as merged with %s, which the target does not contain", id, short(b.Proof.Commit))
		}
		if b.Charged > 2 || b.Conflicts > 2 || (b.Charged == 2 || b.Conflicts == 2) && !b.Status.Terminal() {
			fail("bead %s goes on after %d charged attempts and %d conflicts", id, b.Charged, b.Conflicts)
		}
	}
	for subject := range t.breakers {
		if id, ok := cutPrefix(subject, "merge/"); ok && (t.beads[id] == nil || t.beads[id].Status.Terminal()) {
			fail("breaker %s outlives its bead", subject)
		}
	}
	w.checkRows()
}

func cutPrefix(s, p string) (string, bool) {
	if len(s) > len(p) && s[:len(p)] == p {
		return s[len(p):], true
	}
	return "", false
}

// checkHolds asserts that the sandbox is wanted exactly for a cause or a grace.
func (w *world) checkHolds() {
	t, now := w.town, At(w.now)
	s := &t.info.Sandbox
	causes := len(t.runs)
	for _, b := range t.beads {
		if b.Merge != nil && b.Merge.State == MergeGating {
			causes++
		}
	}
	if t.info.AwakeFor > now {
		causes++
	}
	if got := len(t.holds(now)); got != causes {
		fail("%d holds for %d causes", got, causes)
	}
	suppressed := t.info.Mode == ModeSleeping
	grace := (s.State == SandboxAwake || s.State == SandboxStarting) && s.LastHold != 0 && now < s.LastHold.Add(90*time.Second)
	if want := !suppressed && (causes > 0 || grace); t.wanted(now) != want {
		fail("the sandbox (%s) is wanted: %v, with %d causes and grace %v", s.State, !want, causes, grace)
	}
	if s.State == SandboxAwake && suppressed || s.State == SandboxStarting && suppressed {
		fail("the sandbox is %s although a person put it to sleep", s.State)
	}
}

// checkRows asserts that the stored rows give the same town, index included.
func (w *world) checkRows() {
	rows := w.town.Rows()
	c, err := Decode("tn1", rows, nil)
	if err != nil || len(c.bad) > 0 || len(c.odd) > 0 {
		fail("what the town stores can't be read: %v %v %v", err, c.bad, c.odd)
	}
	again := c.Rows()
	for i, r := range rows {
		if len(again) != len(rows) || again[i].ID != r.ID || !bytes.Equal(again[i].Body, r.Body) {
			fail("row %s %s is another one after reading it back", r.Kind, r.ID)
		}
	}
	if a, b := indexText(w.town), indexText(c); a != b {
		fail("the index is not that of the rows:\n%s\n%s", a, b)
	}
}

func indexText(t *Town) string {
	var b bytes.Buffer
	queues := func(m map[string]*queue) {
		for _, rig := range slices.Sorted(maps.Keys(m)) {
			if len(*m[rig]) > 0 {
				fmt.Fprintf(&b, "%s %v ", rig, *m[rig])
			}
		}
		b.WriteString("; ")
	}
	queues(t.ix.ready)
	queues(t.ix.review)
	fmt.Fprintf(&b, "%v; %v; %v; %v; %d; ", []ticket(t.ix.delayed), t.ix.merging, t.ix.waiting, t.ix.refs, t.ix.open)
	for rig, n := range t.ix.runsByRig {
		if n != 0 {
			fmt.Fprintf(&b, "%s %d ", rig, n)
		}
	}
	return b.String()
}

// checkStale gives a copy of the town everything that may still arrive from
// before, and asserts that nothing changes.
func (w *world) checkStale() {
	c := w.clone()
	t := c.town
	still := func(what string, in Input, refusals ...func(error) bool) {
		err := t.apply(At(c.now), in) // the rules are at rest, so what changes nothing moves none of them
		if len(t.dirty) > 0 || len(t.entries) > 0 {
			fail("%s changed %v", what, t.dirty)
		}
		if len(refusals) > 0 && (err == nil || !slices.ContainsFunc(refusals, func(is func(error) bool) bool { return is(err) })) {
			fail("%s was answered with %v", what, err)
		}
	}
	s := t.info.Sandbox
	if err := t.Handle(c.now, Tick{}); err != nil || len(t.dirty) > 0 || len(t.entries) > 0 {
		fail("a second look changes %v (%v)", t.dirty, err)
	}
	for gen := range s.Generation {
		still("hello of an old generation", Hello{Generation: gen, Stream: "s0"}, gone)
		still("a report of an old generation", Reports{Generation: gen, Stream: s.Stream, From: s.Seq + 1, Items: []Report{{Kind: ReportDrained}}}, gone)
		still("an exchange of an old generation", Exchange{Generation: gen}, gone)
		still("the exit of an old generation", SandboxExited{Generation: gen, Reason: "late"})
	}
	for _, from := range []int64{s.Seq - 1, s.Seq, s.Seq + 2} {
		still("a report out of order", Reports{Generation: s.Generation, Stream: s.Stream, From: from, Items: []Report{{Kind: ReportDrained}}}, conflict, gone)
	}
	still("a report of another stream", Reports{Generation: s.Generation, Stream: "other", From: s.Seq + 1, Items: []Report{{Kind: ReportDrained}}}, conflict, gone)
	c.staleVerdicts(still)
	c.staleMerges(still)
	c.staleOutcomes(still)
	c.staleReports()
}

type stiller func(what string, in Input, refusals ...func(error) bool)

// staleVerdicts are those of older and unknown epochs, and repeats.
func (c *world) staleVerdicts(still stiller) {
	t := c.town
	for _, b := range t.Beads() {
		r := t.runs[b.currentRun()]
		for epoch := int64(0); epoch <= b.Epoch+1; epoch++ {
			for _, kind := range []VerdictKind{VerdictDone, VerdictNoChange, VerdictEscalate} {
				in := verdictOf(c.gen(), b.ID, epoch, kind, strings40("d"))
				repeat := b.LastCall != nil && *b.LastCall == (Call{Epoch: epoch, ID: in.CallID})
				current := r != nil && r.Epoch == epoch
				switch {
				case repeat:
					still("the repeat of an accepted verdict", in)
				case current && r.Generation == c.gen() && r.State != RunDraining:
				case current:
					still("a second verdict", in, gone, conflict)
				default:
					still(fmt.Sprintf("%s of epoch %d of %s", kind, epoch, b.ID), in, gone)
				}
				if current && !repeat {
					in.Generation--
					still("a verdict of an old generation", in, gone)
					in.Generation, in.Epoch = c.gen(), epoch-1
					still("a verdict with the epoch of an older run", in, gone)
				}
			}
		}
	}
}

// staleMerges are gates of candidates that are not being checked.
func (c *world) staleMerges(still stiller) {
	t := c.town
	for _, b := range t.Beads() {
		for n := 0; n <= b.MergeN+1; n++ {
			for _, in := range []GatesDone{{Infra: "no disk"}, {Results: []GateRun{{Name: "test", Passed: true}}}, {Results: []GateRun{{Name: "test"}}}} {
				in.Generation, in.Bead, in.N, in.Candidate = c.gen(), b.ID, n, candidateOf(b.ID, n)
				if m := b.Merge; m != nil && m.State == MergeGating && m.N == n {
					in.Candidate = candidateOf(b.ID, n+7)
				}
				still(fmt.Sprintf("gates of candidate %d of %s", n, b.ID), in, gone)
			}
		}
	}
}

// staleOutcomes are those of effects whose claim is void or another one.
func (c *world) staleOutcomes(still stiller) {
	t := c.town
	keys := []string{"sandbox/admit", "sandbox/start", "sandbox/stop", "sandbox/inspect", "token/renew", "rig/web/fetch", "rig/web/remove", "town/remove"}
	for _, b := range t.Beads() {
		keys = append(keys, "cleanup/"+b.ID)
		for n := 0; n <= b.MergeN; n++ {
			for _, verb := range []string{"candidate", "land", "publish", "check"} {
				keys = append(keys, fmt.Sprintf("merge/%s/%d/%s", b.ID, n, verb))
			}
		}
	}
	results := map[string][]any{
		"admit": {Admitted{Granted: true}}, "start": {Started{Ref: "late"}}, "inspect": {Inspected{State: "gone"}, Inspected{State: "running"}},
		"fetch": {Fetched{Tip: commitName(77), Writable: true}}, "candidate": {Candidate{Commit: strings40("e")}, Candidate{Conflict: true}, Candidate{AlreadyIn: true}},
		"land": {Landed{Tip: commitName(78)}, Landed{Lost: true, Tip: commitName(79)}}, "check": {Checked{In: true, Tip: commitName(80)}},
	}
	for _, key := range keys {
		verb := key[lastSlash(key)+1:]
		for _, id := range []int64{0, t.info.ClaimSeq - 1, t.info.ClaimSeq, t.info.ClaimSeq + 1} {
			if cl := t.claims[key]; cl != nil && cl.ID == id {
				continue
			}
			still("a late failure of "+key, EffectDone{Key: key, ID: id, Err: "late"})
			still("a late success of "+key, EffectDone{Key: key, ID: id})
			for _, r := range results[verb] {
				still("a late success of "+key, EffectDone{Key: key, ID: id, Result: r})
			}
		}
	}
	c.oldCandidates(results)
	c.landsOnItsTip()
}

// landsOnItsTip asserts that a candidate is only ever pushed over the tip that it
// was built on, whatever was fetched since.
func (c *world) landsOnItsTip() {
	t := c.town
	for _, id := range t.ix.merging {
		m := t.beads[id].Merge
		if m.State != MergeLanding {
			continue
		}
		r := t.rigs[t.beads[id].Rig]
		was := r.Tip
		r.Tip = commitName(99)
		t.mergeEffects(t.beads[id], r, At(c.now), func(key string, a Action, _ time.Duration) {
			if l, ok := a.(Land); ok && (l.Tip != m.Tip || l.Candidate != m.Candidate) {
				fail("%s would push %s over %s, it was built on %s", key, short(l.Candidate), short(l.Tip), short(m.Tip))
			}
		})
		r.Tip = was
	}
}

// oldCandidates are outcomes of effects on earlier candidates whose claims still
// stand, as after a person took the bead out of the queue and in again.
func (c *world) oldCandidates(results map[string][]any) {
	t := c.town
	for _, b := range t.Beads() {
		for n := 1; n <= b.MergeN; n++ {
			if b.Merge != nil && b.Merge.N == n {
				continue
			}
			for _, verb := range []string{"candidate", "land", "publish", "check"} {
				key := fmt.Sprintf("merge/%s/%d/%s", b.ID, n, verb)
				for _, in := range append([]any{nil, refusal("late")}, results[verb]...) {
					t.claims[key] = &Claim{Key: key, ID: -7, Until: At(c.now) + 1}
					out := EffectDone{Key: key, ID: -7, Result: in}
					if no, ok := in.(refusal); ok {
						out.Result, out.Err = nil, string(no)
					}
					err := t.apply(At(c.now), out)
					delete(t.dirty, rowKey{kindClaim, key})
					if err != nil || len(t.dirty) > 0 || len(t.entries) > 0 {
						fail("%v of the old %s changed %v (%v)", in, key, t.dirty, err)
					}
				}
			}
		}
	}
}

func lastSlash(s string) int { return bytes.LastIndexByte([]byte(s), '/') }

func strings40(s string) string { return string(bytes.Repeat([]byte(s), 40)) }

// staleReports are reports of runs that are not current: they are taken from
// the stream, and touch nothing but what the town knows of the stream.
func (c *world) staleReports() {
	t := c.town
	if !c.talks() || t.silent(At(c.now)) {
		return
	}
	var items []Report
	for _, b := range t.Beads() {
		for epoch := int64(0); epoch <= b.Epoch+1; epoch++ {
			if r := t.runs[runID(b.ID, epoch)]; r != nil && r.Generation == c.gen() {
				continue
			}
			p := Report{Run: runID(b.ID, epoch), Epoch: epoch}
			for _, kind := range []ReportKind{ReportStarted, ReportNudged, ReportCheckpoint, ReportEnded, ReportHeartbeat} {
				p.Kind = kind
				p.Nudge, p.Commit, p.Ref = 99, strings40("f"), WipRef(b.ID, epoch)
				p.Outcome, p.Class = OutcomeExited, ClassWork
				p.Runs = []RunLife{{Run: p.Run, Epoch: epoch, IdleMS: ms(time.Hour)}}
				items = append(items, p)
				p.Outcome, p.Class, p.Subject = OutcomeFailed, ClassInfra, "sandbox"
				p.Run = b.currentRun() // the current run with an old epoch
				if epoch != b.Epoch {
					p.Runs[0].Run = p.Run
					items = append(items, p)
				}
				p.Run, p.Subject = runID(b.ID, epoch), ""
			}
		}
	}
	c.report(items...)
	delete(t.dirty, rowKey{kindTown, t.info.ID})
	maps.DeleteFunc(t.dirty, func(k rowKey, _ struct{}) bool { return k.kind == kindUsage })
	if len(t.dirty) > 0 || len(t.entries) > 0 {
		fail("late reports of runs changed %v: %v", t.dirty, t.entries)
	}
}

// checkRest asserts how everything stands when nothing will happen any more.
func (w *world) checkRest() {
	t := w.town
	if t.info.Sandbox.State != SandboxAsleep || len(t.runs) > 0 && t.info.Mode != ModeSleeping || slices.ContainsFunc(t.Claims(), func(c Claim) bool { return c.Until > At(w.now) }) || w.alive != 0 {
		fail("at rest: %s, claims %v", w.describe(), t.Claims())
	}
	for _, b := range t.Beads() {
		why := t.why(&b, At(w.now))
		switch {
		case why.State == Terminal:
		case why.State == Waiting && why.Kind == waitBlocker: // its blocker is in this list
		case why.State == Waiting && (why.Kind == waitPerson || why.Kind == waitStaged):
		case why.State == Waiting && why.Kind == waitPause && t.info.Mode != ModeActive:
		default:
			fail("bead %s is left as %s: %s", b.ID, why.State, why.Text)
		}
	}
}
