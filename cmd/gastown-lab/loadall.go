package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gastown/internal/lab"
)

// loadAll takes every measurement and compares it with its target.
func loadAll(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	towns := f.set.Int("towns", 100_000, "sleeping towns")
	wake := f.set.Int("wake-towns", 50, "towns that are woken")
	length := f.set.Duration("for", 10*time.Second, "how long each throughput is measured; six times that for sleeping towns")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("towns", *towns, 1, 5_000_000), within("wake-towns", *wake, 1, 10_000), within("for", int(length.Seconds()), 1, 600)); err != nil {
			return nil, err
		}
		var t lab.Table
		for _, part := range []func() (lab.Table, error){
			func() (lab.Table, error) { return idleLines(ctx, f, p, *towns, 6**length) },
			func() (lab.Table, error) { return wakeLines(ctx, f, p, *wake) },
			func() (lab.Table, error) { return createLines(ctx, f, p, *length) },
			func() (lab.Table, error) { return streamLines(ctx, f, p, *length) },
			func() (lab.Table, error) { return townLines(ctx, f, p) },
		} {
			lines, err := part()
			if err != nil {
				return t, err // what was measured is worth showing
			}
			t = append(t, lines...)
		}
		return t, nil
	}
}

// under is a line whose figure should be below a limit.
func under(what, format string, v, limit float64) lab.Line {
	return lab.Line{What: what, Figure: fmt.Sprintf(format, v), Target: "< " + fmt.Sprintf(format, limit), Met: v < limit}
}

// none is a line whose figure should be 0.
func none(what string, v int64) lab.Line {
	return lab.Line{What: what, Figure: fmt.Sprint(v), Target: "0", Met: v == 0}
}

func idleLines(ctx context.Context, f *loadFlags, p *lab.Place, towns int, length time.Duration) (lab.Table, error) {
	r, err := lab.MeasureIdle(ctx, lab.IdleOptions{Place: p, Towns: towns, Beads: 3, For: length, Note: f.note})
	what := func(s string) string { return fmt.Sprintf("%d sleeping towns: %s", towns, s) }
	return lab.Table{
		none(what("sandbox starts"), int64(r.SandboxStarts)),
		none(what("runner contacts"), int64(r.RunnerContacts)),
		none(what("bytes written"), r.BytesWritten),
		under(what("memory"), "%.0f MB", r.RSSMB, 150),
		under(what("CPU of one core"), "%.2f %%", r.CPUPercentOfOneCore, 0.5),
		under(what("ready after kill -9"), "%.0f ms", r.ReadyAfterRestartMS, 1000),
	}, err
}

func wakeLines(ctx context.Context, f *loadFlags, p *lab.Place, towns int) (lab.Table, error) {
	r, err := lab.MeasureWake(ctx, lab.WakeOptions{Place: p, Towns: towns, Concurrent: 1, Files: 100, Note: f.note})
	return lab.Table{
		under("sling to agent, awake, p50", "%.0f ms", r.Awake.Spawned.P50, 50),
		under("sling to agent, awake, p99", "%.0f ms", r.Awake.Spawned.P99, 250),
		under("sling to agent, asleep, p50", "%.0f ms", r.Asleep.Spawned.P50, 400),
		{What: "sling to agent, first clone, p50", Figure: fmt.Sprintf("%.0f ms", r.Cold.Spawned.P50)},
		{What: "sling to document, awake, p50", Figure: fmt.Sprintf("%.1f ms", r.Awake.Desired.P50)},
		{What: "sling to document, asleep, p50", Figure: fmt.Sprintf("%.1f ms", r.Asleep.Desired.P50)},
		none("sling: errors", int64(r.Errors)),
	}, err
}

func createLines(ctx context.Context, f *loadFlags, p *lab.Place, length time.Duration) (lab.Table, error) {
	var t lab.Table
	for _, c := range []struct {
		clients, towns int
		rate, p99      float64 // targets; 0 for none
	}{{1, 1, 0, 0}, {16, 1, 0, 0}, {64, 1, 3000, 0}, {64, 64, 2000, 100}} {
		f.note("creating beads: %d clients, %d towns", c.clients, c.towns)
		r, err := lab.MeasureCreate(ctx, lab.CreateOptions{Place: p, Clients: c.clients, Towns: c.towns, For: length})
		if err != nil {
			return t, err
		}
		what := fmt.Sprintf("beads created, %d clients, %d towns", c.clients, c.towns)
		rate := lab.Line{What: what, Figure: fmt.Sprintf("%.0f/s", r.PerSecond)}
		if c.rate > 0 {
			rate.Target, rate.Met = fmt.Sprintf("> %.0f/s", c.rate), r.PerSecond > c.rate && r.Errors == 0
		}
		p99 := lab.Line{What: what + ", p99", Figure: fmt.Sprintf("%.0f ms", r.TookMS.P99)}
		if c.p99 > 0 {
			p99 = under(p99.What, "%.0f ms", r.TookMS.P99, c.p99)
		}
		t = append(t, rate, p99)
	}
	return t, nil
}

func townLines(ctx context.Context, f *loadFlags, p *lab.Place) (lab.Table, error) {
	f.note("a town of 10000 beads")
	r, err := lab.MeasureTown(ctx, lab.TownOptions{Place: p, Beads: 10_000, Times: 21})
	if err != nil {
		return nil, err
	}
	m, err := lab.MeasureMemory(ctx, lab.MemoryOptions{Place: p, Towns: 20, Runs: 8, Note: f.note})
	return lab.Table{
		under("10,000 beads: settle one change", "%.2f ms", r.SettleMS, 1),
		under("10,000 beads: load", "%.0f ms", r.LoadMS, 100),
		under("10,000 beads: reload after a conflict", "%.0f ms", r.ReloadMS, 5),
		{What: "10,000 beads: one durable change", Figure: fmt.Sprintf("%.1f ms", r.ChangeMS)},
		under("memory per awake town with 8 runs", "%.0f KB", m.HeapKBEach+m.StackKBEach, 1024),
	}, err
}
