package server

import (
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gastown/internal/hall"
	"gastown/internal/store"
)

// metrics has a registry of its own, so that several servers live in a process.
type metrics struct {
	registry *prometheus.Registry
	duration *prometheus.HistogramVec
	towns    townCount
}

func newMetrics(s *Server) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "gastown_http_request_duration_seconds", Help: "Time to answer, streams and long polls included.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
	}, []string{"route", "status"})}
	m.registry.MustRegister(m.duration, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(&stateCollector{s: s})
	m.registry.MustRegister(s.cfg.Collectors...)
	return m
}

func (m *metrics) observe(r *http.Request, status int, took time.Duration) {
	m.duration.WithLabelValues(route(r), strconv.Itoa(status)).Observe(took.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Registry: m.registry})
}

// stateCollector reads towns and counters when somebody asks.
type stateCollector struct{ s *Server }

// Describe sends nothing: what there is depends on the state.
func (c *stateCollector) Describe(chan<- *prometheus.Desc) {}

// Collect sends what can be read now; what can't is left out.
func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	send := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
	}
	counter := func(name, help string, v float64, labels ...string) {
		send(prometheus.CounterValue, name, help, v, labels...)
	}
	gauge := func(name, help string, v float64, labels ...string) {
		send(prometheus.GaugeValue, name, help, v, labels...)
	}

	gauge("gastown_build_info", "Always 1.", 1, "version", c.s.cfg.Info.Version)
	c.towns(ctx, gauge)
	health := c.s.health()
	for _, state := range []store.State{store.Healthy, store.Full, store.ReadOnly, store.Damaged} {
		v := 0.0
		if health.State == state {
			v = 1
		}
		gauge("gastown_store_state", "1 for the state that the store is in; it takes writes only in ok.", v, "state", string(state))
	}
	st := c.s.store.Stats()
	counter("gastown_store_rows_written_total", "Rows written.", float64(st.Writes))
	counter("gastown_store_bytes_written_total", "Bytes of their bodies.", float64(st.Bytes))
	counter("gastown_store_jobs_total", "Calls that wrote.", float64(st.Jobs))
	counter("gastown_store_transactions_total", "Durable transactions.", float64(st.Batches))
	if m := c.s.cfg.Metrics; m != nil {
		hallMetrics(m, counter, gauge)
		idleMetrics(m, counter, gauge)
		out <- lateness(m)
	}
}

type emit func(name, help string, v float64, labels ...string)

func (c *stateCollector) towns(ctx context.Context, gauge emit) {
	const name, help = "gastown_towns", "Towns by the state of their sandbox."
	awake, err := c.s.store.AwakeTowns(ctx)
	if err != nil {
		c.s.log.Warn("metrics without towns", "err", err)
		return
	}
	n := map[string]int{store.Asleep: 0, "queued": 0, "starting": 0, "awake": 0, "draining": 0, "stopping": 0, "wedged": 0}
	for _, h := range awake {
		n[h.Sandbox]++
	}
	if all, failing, err := c.s.countTowns(ctx); err == nil {
		n[store.Asleep] = max(all-len(awake), 0)
		gauge("gastown_towns_failing", "Towns whose loop fails.", float64(failing))
	}
	for state, count := range n {
		gauge(name, help, float64(count), "sandbox", state)
	}
	if slots, err := c.s.store.SlotCounts(ctx); err == nil {
		for state, count := range map[string]int{store.SlotWaiting: slots.Waiting, store.SlotStarting: slots.Starting, store.SlotIsAwake: slots.Awake} {
			gauge("gastown_slots", "Places for sandboxes.", float64(count), "state", state)
		}
	}
}

func hallMetrics(m *hall.Metrics, counter, gauge emit) {
	for _, c := range []struct {
		name, help string
		v          *atomic.Int64
	}{
		{"inputs", "Inputs answered, refusals included.", &m.Inputs},
		{"refused", "Inputs that the rules refused.", &m.Refused},
		{"loads", "Towns read from the store.", &m.Loads},
		{"commits", "Successful commits.", &m.Commits},
		{"conflicts", "Commits that met a newer version.", &m.Conflicts},
		{"unknown", "Commits whose outcome was not known.", &m.Unknown},
		{"panics", "Panics of rules.", &m.Panics},
		{"failures", "Times that a town was marked as failing.", &m.Failures},
		{"looks", "Looks at running towns in memory.", &m.Looks},
		{"idle_reads", "Slices of idle towns read.", &m.IdleReads},
		{"claimed", "Due towns claimed.", &m.Claimed},
		{"ticks", "Alarms handled.", &m.Ticks},
		{"sandbox_starts", "Sandboxes asked for.", &m.Starts},
		{"stray_refs", "References of ended or unknown beads that were removed from the hub.", &m.Strays},
		{"queue_full", "Inputs refused because a queue was full.", &m.Full},
	} {
		counter("gastown_hall_"+c.name+"_total", c.help, float64(c.v.Load()))
	}
	counter("gastown_hall_late_seconds_total", "How late claimed towns were, summed.", float64(m.LateMS.Load())/1000)
	gauge("gastown_hall_late_max_seconds", "The latest of them.", float64(m.LateMaxMS.Load())/1000)
	for k, c := range m.Effects() {
		counter("gastown_hall_effects_total", "Outcomes of effects.", float64(c.N), "action", k.Action, "outcome", k.Outcome)
		counter("gastown_hall_effect_seconds_total", "Time that effects took.", c.Took.Seconds(), "action", k.Action, "outcome", k.Outcome)
	}
}

// idleMetrics tells what keeps sandboxes awake, and what looking after the others
// costs. Nothing of it reads a town.
func idleMetrics(m *hall.Metrics, counter, gauge emit) {
	for hold, n := range m.StartsBy() {
		counter("gastown_sandbox_starts_total", "Generations of sandboxes begun, by the kind of hold that they were for.", float64(n), "hold", hold)
	}
	for hold, n := range m.Holds() {
		gauge("gastown_holds", "Holds of the running towns that this process has in memory.", float64(n), "hold", hold)
	}
	counter("gastown_awake_seconds_total", "Awake time of all sandboxes while this process saw them.", float64(m.AwakeMS.Load())/1000)
	counter("gastown_token_renewals_total", "Renewals of sandboxes' tokens.", float64(m.Renewals.Load()))
	for kind, n := range map[string]int64{"read": m.IdleReads.Load(), "found": m.Found.Load(), "claimed": m.Claimed.Load(),
		"loaded": m.TickLoads.Load(), "memory": m.Looks.Load()} {
		counter("gastown_looks_total", "Looks at towns: queries for idle ones, damaged ones found, due ones claimed, towns loaded for an alarm, "+
			"running ones looked at in memory.", float64(n), "kind", kind)
	}
}

func lateness(m *hall.Metrics) prometheus.Metric {
	atMost, n := m.Late()
	return prometheus.MustNewConstHistogram(prometheus.NewDesc("gastown_alarm_late_seconds", "How late due towns were claimed.", nil, nil),
		n, float64(m.LateMS.Load())/1000, atMost)
}
