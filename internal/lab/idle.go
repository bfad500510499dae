package lab

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// settleFor passes between a server's start and a measurement: the looks of
// the start are over by then.
const settleFor = 5 * time.Second

// IdleOptions say how to measure a server whose towns all sleep.
type IdleOptions struct {
	Place *Place
	Towns int
	Beads int // closed ones, per town
	For   time.Duration
	Args  []string // more arguments for gastown serve
	Note  func(format string, args ...any)
}

// Idle is what a server with idle towns costs. Counts are those of the measured
// time.
type Idle struct {
	Towns               int     `json:"towns"`
	RSSMB               float64 `json:"rss_mb"` // at the end; files in the page cache don't count
	CPUPercentOfOneCore float64 `json:"cpu_pct_of_one_core"`
	SandboxStarts       int     `json:"sandbox_starts"`
	RunnerContacts      int     `json:"runner_contacts"`
	LooksRead           int     `json:"looks_read"` // slices read
	TownsLoaded         int     `json:"towns_loaded"`
	BytesWritten        int64   `json:"bytes_written"` // to the disk by the process, or growth of the store where that is more
	MaxAlarmLateMS      float64 `json:"max_alarm_late_ms"`
	ReadyAfterRestartMS float64 `json:"ready_after_restart_ms"` // after kill -9, from the start of the process
	SeedMS              float64 `json:"seed_ms"`
	StoreMB             float64 `json:"store_mb"`
	ForMS               float64 `json:"for_ms"`
}

// MeasureIdle seeds a store, lets a real server watch over it for a while, kills
// it and starts it again.
func MeasureIdle(ctx context.Context, o IdleOptions) (out Idle, err error) {
	data := filepath.Join(o.Place.Dir, "idle")
	out.Towns = o.Towns
	o.Note("seeding %d towns", o.Towns)
	begin := time.Now()
	if err := Seed(ctx, data, o.Towns, o.Beads); err != nil {
		return out, err
	}
	out.SeedMS = ms(time.Since(begin))
	s, err := o.Place.Serve(ctx, data, o.Args...)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	o.Note("the server was ready after %.0f ms; measuring for %s", s.ReadyMS, o.For)
	if err := wait(ctx, settleFor); err != nil {
		return out, err
	}
	if err := out.watch(ctx, s, o.For); err != nil {
		return out, err
	}
	if err := unclean(ctx, s); err != nil {
		return out, err
	}
	o.Note("killing the server")
	if err := s.Kill(); err != nil {
		return out, err
	}
	again, err := o.Place.Serve(ctx, data, o.Args...)
	if err != nil {
		return out, err
	}
	s, out.ReadyAfterRestartMS = again, again.ReadyMS
	return out, nil
}

// watch measures the server while nothing happens.
func (out *Idle) watch(ctx context.Context, s *Server, d time.Duration) error {
	before, err := s.metrics(ctx)
	if err != nil {
		return err
	}
	if err := wait(ctx, time.Second); err != nil { // the reading itself is over
		return err
	}
	used, err := s.usage(before)
	if err != nil {
		return err
	}
	size, err := storeSize(s.Data)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := wait(ctx, d); err != nil {
		return err
	}
	took := time.Since(begin)
	usedAfter, ok, err := processUsage(s.PID())
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "reading what the server uses")
	}
	sizeAfter, err := storeSize(s.Data)
	if err != nil {
		return err
	}
	after, err := s.metrics(ctx)
	if err != nil {
		return err
	}
	if !ok {
		if usedAfter, err = s.usage(after); err != nil {
			return err
		}
	}
	rise := func(name, label string) int { return int(after.sum(name, label) - before.sum(name, label)) }
	const calls = "gastown_http_request_duration_seconds_count"
	out.ForMS = ms(took)
	out.RSSMB = float64(usedAfter.rss) / (1 << 20)
	out.CPUPercentOfOneCore = 100 * (usedAfter.cpu - used.cpu) / took.Seconds()
	out.BytesWritten = max(usedAfter.wrote-used.wrote, sizeAfter-size)
	out.StoreMB = float64(sizeAfter) / (1 << 20)
	out.SandboxStarts = rise("gastown_hall_sandbox_starts_total", "")
	out.RunnerContacts = rise(calls, "/runner/v1/")
	out.LooksRead = rise("gastown_hall_idle_reads_total", "")
	out.TownsLoaded = rise("gastown_hall_loads_total", "")
	out.MaxAlarmLateMS = 1000 * after.sum("gastown_hall_late_max_seconds", "")
	return nil
}

// unclean leaves writes in the log of the store, as a server that dies at work does.
func unclean(ctx context.Context, s *Server) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	for i := range 100 {
		if err := staged(ctx, c, SeedName(0), i); err != nil {
			return err
		}
	}
	return nil
}

func staged(ctx context.Context, c *client.Client, town string, i int) error {
	_, err := c.CreateBead(ctx, town, api.CreateBead{Rig: "web", Title: "left behind", Staged: true, Body: seedNumber(i)})
	return err
}

// wait passes the time, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errs.Wrap(errs.Unavailable, ctx.Err(), "the measurement was broken off")
	}
}
