package town

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// damaged is a town decoded from the rows of another, some of them changed; an
// empty body takes a row away.
func (d *driver) damaged(rows map[string]string) *Town {
	d.t.Helper()
	all := map[string][]byte{}
	for k, v := range d.rows {
		all[k] = v
	}
	for k, v := range rows {
		all[k] = []byte(v)
	}
	var list []Row
	for k, v := range all {
		kind, id, _ := strings.Cut(k, " ")
		if len(v) > 0 {
			list = append(list, Row{kind, id, v})
		}
	}
	town, err := Decode("tn1", list, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return town
}

// with returns a saved row with some of its fields changed.
func (d *driver) with(key string, fields map[string]any) string {
	d.t.Helper()
	var m map[string]any
	if err := json.Unmarshal(d.rows[key], &m); err != nil {
		d.t.Fatalf("%s: %v", key, err)
	}
	for k, v := range fields {
		at := m
		parts := strings.Split(k, ".")
		for _, p := range parts[:len(parts)-1] {
			at = at[p].(map[string]any)
		}
		at[parts[len(parts)-1]] = v
	}
	body, err := json.Marshal(m)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(body)
}

// survives handles time and asks every question; nothing may panic.
func survives(tb testing.TB, town *Town, at time.Time) {
	tb.Helper()
	for _, now := range []time.Time{at, at.Add(time.Minute), at.Add(25 * time.Hour)} {
		views(town, now)
		for _, in := range []Input{Tick{}, Unheard{}, SandboxExited{Generation: town.info.Sandbox.Generation}} {
			if err := town.Handle(now, in); err != nil {
				tb.Fatalf("%T: %v", in, err)
			}
			if w, ok := town.NextWake(now); ok && !w.After(now) {
				tb.Fatalf("it wakes at %s, now is %s", w, now)
			}
		}
		views(town, now)
		for _, e := range town.Claim(now, "boot") {
			for _, result := range []any{nil, Admitted{Granted: true}, Started{Ref: "r"}, Candidate{Conflict: true}, Landed{Lost: true}, Checked{In: true}} {
				if err := town.Handle(now, EffectDone{Key: e.Key, ID: e.ID, Result: result}); err != nil {
					tb.Fatalf("%s: %v", e.Key, err)
				}
			}
		}
	}
	rows := town.Rows()
	again, err := Decode(town.info.ID, rows, nil)
	if err != nil {
		tb.Fatalf("what was written can't be read: %v", err)
	}
	if len(again.odd) > 0 {
		tb.Fatalf("what was mended is still odd: %v", again.odd)
	}
}

func views(town *Town, now time.Time) {
	town.Effects(now)
	town.NextWake(now)
	town.Columns(now)
	town.WhyTown(now)
	town.Holds(now)
	town.Desired()
	town.Ready()
	town.Usage(now)
	town.AwakeMS(now)
	town.Breakers()
	town.Notices()
	town.Claims()
	town.Agents()
	town.Quarantined()
	for _, b := range town.Beads() {
		_, _ = town.Why(now, b.ID) // the beads exist; only a panic matters
	}
	for _, r := range town.Rigs() {
		_, _ = town.ShowSettings(r.Name)
	}
	for _, r := range town.Runs() {
		_, _ = town.Prime(r.ID, r.Epoch)
		_, _ = town.GitRules(r.ID, r.Epoch, r.Rig)
	}
}

func TestRowsThatContradictEachOtherAreMended(t *testing.T) {
	const bead, run = "bead web-aaaaa", "run web-aaaaa.1"
	for name, c := range map[string]struct {
		rows func(d *driver) map[string]string
		want BeadStatus
		how  string // kind of the ledger entry
	}{
		"in progress without a run": {func(d *driver) map[string]string { return map[string]string{run: ""} }, BeadInProgress, "bead.mended"},
		"in progress in another epoch than its run": {func(d *driver) map[string]string {
			return map[string]string{bead: d.with(bead, map[string]any{"epoch": 9})}
		}, BeadInProgress, "bead.mended"},
		"in review without a merge": {func(d *driver) map[string]string {
			return map[string]string{run: "", bead: d.with(bead, map[string]any{"status": "in_review"})}
		}, BeadInProgress, "bead.mended"},
		"in review without a commit": {func(d *driver) map[string]string {
			return map[string]string{run: "", bead: d.with(bead, map[string]any{"status": "in_review", "merge": map[string]any{"n": 1, "state": "landing", "since": 1}})}
		}, BeadInProgress, "bead.mended"},
		"open with a merge": {func(d *driver) map[string]string {
			return map[string]string{run: "", bead: d.with(bead, map[string]any{"status": "open", "merge": map[string]any{"n": 1, "state": "gating", "since": 1}})}
		}, BeadInProgress, "bead.mended"},
		"being pushed without a candidate": {func(d *driver) map[string]string {
			return map[string]string{run: "", bead: d.with(bead, map[string]any{"status": "in_review", "commit": commitName(5), "merge": map[string]any{"n": 1, "state": "landing", "since": 1, "tip": commitName(1)}})}
		}, BeadInReview, "bead.mended"},
		"a run of another generation": {func(d *driver) map[string]string {
			return map[string]string{run: d.with(run, map[string]any{"generation": 7})}
		}, BeadInProgress, "run.mended"},
		"a run that no sandbox has while one is awake": {func(d *driver) map[string]string {
			return map[string]string{run: d.with(run, map[string]any{"generation": 0})}
		}, BeadInProgress, "run.mended"},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := atWork(t)
			town := d.damaged(c.rows(d))
			if err := town.Handle(d.now, Tick{}); err != nil {
				t.Fatal(err)
			}
			b, ok := town.Bead("web-aaaaa")
			if !ok || b.Status != c.want || b.Charged != 0 {
				t.Fatalf("%+v", b)
			}
			if !slices.ContainsFunc(town.Entries(), func(e Entry) bool { return e.Kind == c.how && e.Text != "" }) {
				t.Fatalf("the ledger does not say %s", c.how)
			}
			checkInvariants(t, town, d.now)
			again := d.damaged(c.rows(d))
			rows := map[string]string{}
			for _, r := range town.Changes() {
				rows[r.Kind+" "+r.ID] = string(r.Body)
			}
			if err := again.Handle(d.now, Tick{}); err != nil {
				t.Fatal(err)
			}
			for _, r := range again.Changes() {
				if rows[r.Kind+" "+r.ID] != string(r.Body) {
					t.Fatalf("mended in two ways: %s %s", r.Kind, r.ID)
				}
			}
			survives(t, town, d.now)
		})
	}
}

func TestRowsOfUnknownStatesAreQuarantined(t *testing.T) {
	d := reviewed(t, nil, oneGate)
	d.bead("web-bbbbb")
	for key, fields := range map[string]map[string]any{
		"bead web-aaaaa":  {"merge.state": "flying"},
		"run web-bbbbb.1": {"state": "sleeping"},
		"agent web/amber": {"name": "other"},
		"rig web":         {"state": "frozen"},
	} {
		t.Run(key, func(t *testing.T) {
			town := d.damaged(map[string]string{key: d.with(key, fields)})
			kind, id, _ := strings.Cut(key, " ")
			if !slices.ContainsFunc(town.Quarantined(), func(q Quarantined) bool { return q.Kind == kind && q.ID == id && q.Error != "" }) {
				t.Fatalf("quarantined %v", town.Quarantined())
			}
			survives(t, town, d.now)
		})
	}
	t.Run("the town's own row", func(t *testing.T) {
		for _, fields := range []map[string]any{{"mode": "dreaming"}, {"mode": ""}, {"sandbox.state": "flying"}, {"id": "tn2"}} {
			if _, err := Decode("tn1", []Row{{"town", "tn1", []byte(d.with("town tn1", fields))}}, nil); err == nil {
				t.Errorf("%v was accepted", fields)
			}
		}
		if _, err := Decode("tn1", []Row{{"rig", "web", d.rows["rig web"]}}, nil); err == nil {
			t.Error("a town without its row was accepted")
		}
	})
	t.Run("text after the object", func(t *testing.T) {
		for _, tail := range []string{"}", "]", "{}", " x"} {
			if town := d.damaged(map[string]string{"rig web": string(d.rows["rig web"]) + tail}); len(town.Rigs()) != 0 {
				t.Errorf("%q was accepted", tail)
			}
		}
	})
}

func TestAgentsAreFreeOfRunsThatAreNotTheirs(t *testing.T) {
	d, r := atWork(t)
	d.bead("web-bbbbb")
	other := d.run("web-bbbbb")
	town := d.damaged(map[string]string{"agent web/" + other.Agent: d.with("agent web/"+other.Agent, map[string]any{"run": r.ID})})
	for _, a := range town.Agents() {
		if a.Name == other.Agent && a.Run != "" {
			t.Fatalf("%+v", a)
		}
	}
	survives(t, town, d.now)
}

func TestTwoCandidatesOnOneRigAreOneAgain(t *testing.T) {
	d := reviewed(t, nil)
	body := func(state string) string {
		return d.with("bead web-aaaaa", map[string]any{"merge.state": state, "merge.tip": commitName(1), "merge.candidate": commitName(2)})
	}
	second := strings.ReplaceAll(body("landing"), "web-aaaaa", "web-bbbbb")
	for range 5 { // the order of a map must not show
		town := d.damaged(map[string]string{"bead web-aaaaa": body("building"), "bead web-bbbbb": second})
		if err := town.Handle(d.now, Tick{}); err != nil {
			t.Fatal(err)
		}
		a, _ := town.Bead("web-aaaaa")
		b, _ := town.Bead("web-bbbbb")
		if a.Merge.State != MergeQueued || b.Merge.State != MergeLanding {
			t.Fatalf("%s and %s", a.Merge.State, b.Merge.State)
		}
		checkInvariants(t, town, d.now)
	}
}

// TestNoAbsurdRowHoldsTheSandboxAwakeForEver puts impossible values into every
// row, one field at a time: the town must survive, and when its runner goes on
// talking of nothing, its sandbox sleeps within a day or says why it can't.
func TestNoAbsurdRowHoldsTheSandboxAwakeForEver(t *testing.T) {
	d, _ := atWork(t, oneGate)
	d.do(Resume{By: "ann", For: time.Minute})
	d.bead("web-bbbbb", func(c *CreateBead) { c.Staged = true })
	absurd := []any{0, -1, int64(1) << 62, -(int64(1) << 62), 253402300800000, "", "?", true, nil, []any{}, map[string]any{}}
	for key, body := range d.rows {
		kind, _, _ := strings.Cut(key, " ")
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		fields := []string{}
		for k, v := range m {
			fields = append(fields, k)
			if inner, ok := v.(map[string]any); ok {
				for i := range inner {
					fields = append(fields, k+"."+i)
				}
			}
		}
		slices.Sort(fields)
		for _, f := range fields {
			for _, v := range absurd {
				rows := []Row{}
				for k, b := range d.rows {
					kd, id, _ := strings.Cut(k, " ")
					if k == key {
						b = []byte(d.with(key, map[string]any{f: v}))
					}
					rows = append(rows, Row{kd, id, b})
				}
				town, err := Decode("tn1", rows, nil)
				if err != nil {
					if kind != string(kindTown) {
						t.Fatalf("%s %s=%v: %v", key, f, v, err)
					}
					continue
				}
				sleeps(t, town, d.now, fmt.Sprintf("%s %s=%v", key, f, v))
			}
		}
	}
}

// TestAnyMixtureOfAbsurdRowsIsSurvived puts several impossible values into a
// town at once.
func TestAnyMixtureOfAbsurdRowsIsSurvived(t *testing.T) {
	d, _ := atWork(t, oneGate)
	d.do(Resume{By: "ann", For: time.Minute})
	d.bead("web-bbbbb")
	d.bead("web-ccccc")
	d.done("web-aaaaa")
	d.ended(d.spawn("web-ccccc"), OutcomeExited, ClassWork, "x")
	towns := []string{"asleep", "queued", "starting", "awake", "draining", "stopping", "wedged"}
	fields := map[string][]string{
		"bead":    {"status", "epoch", "merge", "not_before", "charged", "losses", "rig", "blocked_by", "commit", "escalated", "attempt"},
		"run":     {"state", "generation", "lease_until", "spawned_at", "created_at", "stop", "stop_at", "verdict", "rig", "epoch"},
		"rig":     {"gates", "fetched_at", "state", "tip"},
		"agent":   {"run", "bead"},
		"breaker": {"until", "fails"},
		"claim":   {"until"},
		"town": {"sandbox.state", "sandbox.generation", "sandbox.hello_by", "sandbox.last_hold", "sandbox.drain_by", "sandbox.last_seen", "awake_for", "mode",
			"sandbox.started_at", "meter.since", "sandbox.drained", "sandbox.token_at"},
	}
	values := []any{0, -1, 1, 7, int64(1) << 62, -(int64(1) << 62), "", true, nil, []any{}, "open", "in_progress", "in_review", "closed", "failed",
		map[string]any{"n": 1, "state": "gating", "since": 1, "tip": commitName(1), "candidate": commitName(2)}, map[string]any{"n": 1, "state": "landing"},
		map[string]any{"n": 2, "state": "waiting", "pushed": true}, "web-aaaaa.1", "web-bbbbb.1", "api", []any{"web-aaaaa", "web-bbbbb", "web-bbbbb"},
		"running", "draining", "removing", "active", "sleeping", "deleting", "done", commitName(3)}
	keys := []string{}
	for k := range d.rows {
		if kind, _, _ := strings.Cut(k, " "); fields[kind] != nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	rapid.Check(t, func(rt *rapid.T) {
		rows := map[string]string{}
		for range rapid.IntRange(1, 4).Draw(rt, "changes") {
			key := rapid.SampledFrom(keys).Draw(rt, "row")
			kind, _, _ := strings.Cut(key, " ")
			field := rapid.SampledFrom(fields[kind]).Draw(rt, "field")
			value := rapid.SampledFrom(values).Draw(rt, "value")
			if field == "sandbox.state" {
				value = rapid.SampledFrom(towns).Draw(rt, "state")
			}
			rows[key] = d.with(key, map[string]any{field: value})
		}
		all := []Row{}
		for k, v := range d.rows {
			kind, id, _ := strings.Cut(k, " ")
			if changed, ok := rows[k]; ok {
				v = []byte(changed)
			}
			all = append(all, Row{kind, id, v})
		}
		town, err := Decode("tn1", all, nil)
		if err != nil {
			return
		}
		survives(t, town, d.now)
	})
}

// sleeps lets a runner talk that knows of nothing, for a day and a half.
func sleeps(t *testing.T, town *Town, now time.Time, what string) {
	t.Helper()
	if err := town.Handle(now, Pause{By: "ann"}); err != nil {
		return // it is being deleted, or paused already
	}
	for range 40 {
		if town.info.Sandbox.State != SandboxAwake {
			return
		}
		now = now.Add(time.Hour)
		for _, in := range []Input{Hello{Generation: town.info.Sandbox.Generation, Stream: now.String()}, Tick{}} {
			if err := town.Handle(now, in); err != nil {
				return
			}
		}
	}
	t.Errorf("%s: %s", what, town.WhyTown(now).Text)
}

// FuzzDecode decodes towns from rows of strangers: a row each of a kind, and
// one more.
func FuzzDecode(f *testing.F) {
	d, _ := atWork(f, oneGate)
	d.do(Resume{By: "ann", For: time.Minute})
	d.bead("web-bbbbb")
	d.done("web-aaaaa")
	get := func(key string) []byte { return d.rows[key] }
	f.Add("bead", "web-aaaaa", get("bead web-aaaaa"), get("town tn1"), get("rig web"), get("run web-bbbbb.1"))
	f.Add("bead", "web-bbbbb", get("bead web-bbbbb"), get("town tn1"), get("rig web"), get("run web-bbbbb.1"))
	f.Add("agent", "web/amber", get("agent web/amber"), get("town tn1"), get("rig web"), get("run web-aaaaa.1"))
	f.Add("claim", "x", []byte(`{"key":"x","id":1,"attempt":1,"by":"b","until":9223372036854775807}`), get("town tn1"), []byte(`{"name":"web"}`), []byte(`null`))
	f.Add("notice", "1", []byte(`{"id":1,"next":-9223372036854775808}`), get("town tn1"), get("rig web"), []byte(`[]`))
	f.Add("breaker", "sandbox", []byte(`{"subject":"sandbox","fails":-5,"until":9e18}`), get("town tn1"), get("rig web"), []byte(`{}`))
	f.Add("usage", "2026-03-01", []byte(`{"day":"2026-03-01","held_ms":-1}`), get("town tn1"), get("rig web"), []byte(`{}`))
	f.Add("telepathy", "", []byte(`{}`), []byte(`{"id":"tn1","mode":"active","sandbox":{"state":"awake"},"meter":{"since":-9223372036854775808,"phase":"held"}}`), get("rig web"), []byte(``))
	now := d.now
	f.Fuzz(func(t *testing.T, kind, id string, body, town, rig, run []byte) {
		rows := []Row{{"town", "tn1", town}, {"rig", "web", rig}, {"run", "web-bbbbb.1", run}, {"bead", "web-bbbbb", get("bead web-bbbbb")}, {kind, id, body}}
		decoded, err := Decode("tn1", rows, nil)
		if err != nil {
			return
		}
		survives(t, decoded, now)
	})
}

// FuzzOneBadRow changes one row of a town at work: the town loads, settles, and
// all rows that don't depend on the changed one are there.
func FuzzOneBadRow(f *testing.F) {
	d, _ := atWork(f, oneGate)
	d.bead("web-bbbbb")
	d.do(SetTown{By: "ann", Set: Settings{"notify.url": "https://hooks.example/x"}})
	d.done("web-aaaaa")
	keys := slices.Sorted(maps.Keys(d.rows))
	for i, k := range keys {
		body := d.rows[k]
		f.Add(uint8(i), body)
		for _, s := range []string{"", "null", "{}", "[]", `{"id":`, string(body) + "x", strings.Replace(string(body), `":"`, `":7,"x":"`, 1),
			strings.Replace(string(body), `"status":"`, `"status":"un`, 1), strings.Replace(string(body), `"state":"`, `"state":"un`, 1), strings.Replace(string(body), `"id":"`, `"id":"x`, 1),
			strings.ReplaceAll(string(body), `1`, `9223372036854775807`), strings.ReplaceAll(string(body), `:1`, `:-1`)} {
			f.Add(uint8(i), []byte(s))
		}
	}
	now := d.now
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		changed := keys[int(which)%len(keys)]
		var rows []Row
		for _, k := range keys {
			kind, id, _ := strings.Cut(k, " ")
			b := d.rows[k]
			if k == changed {
				b = body
			}
			rows = append(rows, Row{kind, id, b})
		}
		town, err := Decode("tn1", rows, nil)
		what, _, _ := strings.Cut(changed, " ")
		if err != nil {
			if what != "town" {
				t.Fatalf("a bad row of kind %s makes the town unreadable: %v", what, err)
			}
			return
		}
		for _, r := range rows {
			switch {
			case r.Kind+" "+r.ID == changed, what == "rig", r.Kind == "run" && (what == "bead" || what == "town"):
				continue // it is the bad one, or depends on it
			}
			if slices.ContainsFunc(town.Quarantined(), func(q Quarantined) bool { return q.Kind == r.Kind && q.ID == r.ID }) {
				t.Fatalf("%s is bad, and %s %s is in quarantine: %v", changed, r.Kind, r.ID, town.Quarantined())
			}
		}
		survives(t, town, now)
	})
}
