package lab

import (
	"slices"
	"testing"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

func TestMetricsAreReadAsSums(t *testing.T) {
	t.Parallel()
	m := parseMetrics(`# HELP calls_count Calls.
# TYPE calls_count counter
calls_count{route="GET /runner/v1/desired",status="200"} 3
calls_count{route="POST /runner/v1/reports",status="200"} 4
calls_count{route="GET /metrics",status="200"} 10
calls_count_more 100
rss 1.5e+06

broken line
`)
	if got := m.sum("calls_count", "/runner/v1/"); got != 7 {
		t.Errorf("calls of runners: %v, want 7", got)
	}
	if got := m.sum("calls_count", ""); got != 17 {
		t.Errorf("calls: %v, want 17", got)
	}
	if got := m.sum("rss", ""); got != 1.5e6 {
		t.Errorf("rss: %v", got)
	}
}

func TestQuantilesAreOfTheWholeList(t *testing.T) {
	t.Parallel()
	var d []time.Duration
	for i := range 100 {
		d = append(d, time.Duration(100-i)*time.Millisecond)
	}
	if got, want := quantiles(d), (Quantiles{P50: 51, P99: 100, Max: 100, N: 100}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := quantiles(nil); got != (Quantiles{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

func TestSeededTownsAreWholeAndIdle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := Seed(t.Context(), dir, 3, 2); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	head, err := s.Find(t.Context(), SeedName(2))
	if err != nil {
		t.Fatal(err)
	}
	_, rows, err := s.Load(t.Context(), head.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	var plain []town.Row
	for _, r := range rows {
		plain = append(plain, town.Row{Kind: r.Kind, ID: r.ID, Body: r.Body})
	}
	tn, err := town.Decode(head.ID, plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	beads, rigs := tn.Beads(), tn.Rigs()
	if len(beads) != 2 || len(rigs) != 1 || len(tn.Quarantined()) != 0 {
		t.Fatalf("%d beads, %d rigs, quarantined %v", len(beads), len(rigs), tn.Quarantined())
	}
	if !slices.ContainsFunc(beads, func(b town.Bead) bool { return b.ID == seedPrefix(2)+"-00001" && b.Status == town.BeadClosed }) {
		t.Errorf("beads: %+v", beads)
	}
	if c := tn.Columns(time.Now()); c.DueAt != 0 || c.Wanted || head.Contradicts() || head.DueAt != 0 {
		t.Errorf("the town is not idle: %+v, %+v", c, head.Columns)
	}
	if p, err := s.FindPrefix(t.Context(), seedPrefix(2)); err != nil || len(p) != 1 || p[0].Town != head.ID {
		t.Errorf("its prefix is found as %v, %v", p, err)
	}
}

func TestTheTableSaysWhatWasMissed(t *testing.T) {
	t.Parallel()
	got := Table{{What: "a", Figure: "5 ms", Target: "< 9 ms", Met: true}, {What: "longer", Figure: "11 ms", Target: "< 9 ms"}, {What: "b", Figure: "1"}}.String()
	want := "what    measured  target\n" +
		"a       5 ms      < 9 ms  ok\n" +
		"longer  11 ms     < 9 ms  MISSED\n" +
		"b       1\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
