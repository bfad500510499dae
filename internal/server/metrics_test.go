package server

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/town"
)

// scrape reads /metrics as a map from a sample's name and labels to its value.
func (l *lab) scrape() map[string]float64 {
	l.t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(string(l.call("GET", "/metrics", nil).want(200, nil).body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if ok {
			name += "}"
		} else {
			name, value, ok = strings.Cut(strings.TrimSpace(line), " ")
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(name, "#") {
			out[name] = v
		}
	}
	return out
}

func TestMetricsTellWhatIsAwakeAndWhy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "beta"}).want(201, nil)
	before := l.scrape()
	for name, want := range map[string]float64{
		`gastown_towns{sandbox="asleep"}`: 2, `gastown_towns{sandbox="awake"}`: 0,
		`gastown_sandbox_starts_total{hold="run"}`: 0, `gastown_sandbox_starts_total{hold="human"}`: 0, `gastown_holds{hold="run"}`: 0,
		`gastown_holds{hold="gates"}`: 0, `gastown_token_renewals_total`: 0, `gastown_awake_seconds_total`: 0, `gastown_looks_total{kind="claimed"}`: 0,
		`gastown_looks_total{kind="found"}`: 0, `gastown_looks_total{kind="memory"}`: 0, `gastown_alarm_late_seconds_count`: 0,
		`gastown_alarm_late_seconds_bucket{le="+Inf"}`: 0,
	} {
		if got, ok := before[name]; !ok || got != want {
			t.Errorf("%s is %v (there: %t), not %v", name, got, ok, want)
		}
	}
	l.bead("alpha", "a change")
	gen := (<-l.boxes).Generation
	head, err := l.store.Find(t.Context(), "alpha")
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []town.Input{town.Hello{Generation: gen, Stream: "s"}, town.RefreshToken{By: "Ada"}, town.Resume{By: "Ada", For: time.Hour}} {
		if err := l.hall.Do(t.Context(), head.ID, in); err != nil {
			t.Fatal(err)
		}
	}
	l.hall.Step(t.Context())
	after := l.scrape()
	for name, want := range map[string]float64{
		`gastown_towns{sandbox="asleep"}`: 1, `gastown_towns{sandbox="awake"}`: 1,
		`gastown_sandbox_starts_total{hold="run"}`: 1, `gastown_sandbox_starts_total{hold="human"}`: 0,
		`gastown_holds{hold="run"}`: 1, `gastown_holds{hold="human"}`: 1,
	} {
		if got := after[name]; got != want {
			t.Errorf("%s is %v, not %v", name, got, want)
		}
	}
	if after[`gastown_looks_total{kind="read"}`] <= before[`gastown_looks_total{kind="read"}`] {
		t.Error("a step of the loop read no idle towns")
	}
	if loads := l.scrape()["gastown_hall_loads_total"]; loads != after["gastown_hall_loads_total"] {
		t.Error("reading the metrics loaded a town")
	}
}
