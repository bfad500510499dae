package app

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/store"
	"gastown/internal/town"
)

// Names under which the server itself puts towns to sleep, so that the next one
// knows what to undo.
const (
	stopActor       = "server stop"
	stopPausedActor = "server stop of a paused town"
)

const (
	// finishFor is how long effects under way may take when the server stops.
	finishFor = 10 * time.Second
	// answerFor is how long requests under way may take then.
	answerFor = 5 * time.Second
	// drainLook is how often a drain looks at what is left.
	drainLook = 200 * time.Millisecond
	// drained is the mark in the store that a drain may have put towns to sleep.
	drained = "drained"
	// drainMax ends a drain: the longest drain_timeout and stop_grace that make
	// sense to wait for at a terminal.
	drainMax = 5 * time.Minute
)

// Serve answers and runs towns until ctx ends, then stops in order: streams and
// long polls end, requests finish, effects under way finish. Sandboxes go on.
func (a *App) Serve(ctx context.Context) error {
	if err := a.writeLocation(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.serving = ctx
	p := a.current.Load()
	if err := p.begin(ctx); err != nil {
		return err
	}
	inside := make(chan error, 1)
	go func() {
		defer cancel() // one without the other is no server
		inside <- a.serveInside(ctx)
	}()
	go func() {
		defer cancel()
		select {
		case err := <-a.failed:
			a.failed <- err // for below
		case <-ctx.Done():
		}
	}()
	err := p.server.ServeHandler(ctx, a.listen, &a.gate, a.gate.endStreams)
	cancel()
	err = errors.Join(err, <-inside)
	a.restoring.Lock() // one under way ends first: it does not hear of ctx
	defer a.restoring.Unlock()
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), finishFor)
	defer stop()
	if p := a.current.Load(); p != nil {
		p.server.Settle()
		p.hall.Stop(end)
	}
	select {
	case failed := <-a.failed:
		err = errors.Join(failed, err)
	default:
	}
	return err
}

// begin lets the towns run and opens the gate.
func (p *parts) begin(ctx context.Context) error {
	if err := p.hearRestored(ctx); err != nil {
		return err
	}
	p.hall.Start(context.WithoutCancel(ctx))
	p.watchOffers()
	p.undoDrain(ctx)
	p.app.gate.open(p.server.Handler(), p.server.Stop)
	return nil
}

// serveInside answers sandboxes: the same handler, without TLS.
func (a *App) serveInside(ctx context.Context) error {
	srv := &http.Server{Handler: &a.gate, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(a.inside) }()
	select {
	case err := <-done:
		return errs.Wrap(errs.Unavailable, err, "serving sandboxes")
	case <-ctx.Done():
	}
	a.gate.endStreams()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerFor)
	defer cancel()
	if srv.Shutdown(end) != nil {
		// What did not finish in time is cut off; the runner tries again.
		_ = srv.Close()
	}
	<-done
	return nil
}

// Drain puts all sandboxes to sleep and waits until they are, or ctx ends. The
// towns go on when the next server starts. Serve must be running. progress is
// called with the number of sandboxes that are left whenever it changes.
func (a *App) Drain(ctx context.Context, progress func(left int)) error {
	ctx, cancel := context.WithTimeout(ctx, drainMax)
	defer cancel()
	last := -1
	asked := map[string]bool{}
	for {
		a := a.current.Load()
		if a == nil {
			return errs.New(errs.Unavailable, "a restore failed: there is nothing to drain")
		}
		heads, err := a.store.AwakeTowns(ctx)
		if err != nil {
			return err
		}
		if len(heads) != last {
			last = len(heads)
			progress(last)
		}
		if last == 0 {
			return nil
		}
		if len(asked) == 0 {
			if err := a.store.SetMeta(ctx, drained, "true"); err != nil {
				return err
			}
		}
		for _, h := range heads {
			if !asked[h.ID] {
				if err := a.putToSleep(ctx, h); err != nil {
					return err
				}
				asked[h.ID] = true
			}
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Unavailable, "%d sandboxes are still awake", last).WithHint("the next server finds them")
		case <-time.After(drainLook):
		}
	}
}

func (a *parts) putToSleep(ctx context.Context, h store.Head) error {
	var mode town.Mode
	err := a.hall.View(ctx, h.ID, func(t *town.Town, _ time.Time) error {
		mode = t.Info().Mode
		return nil
	})
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	by := stopActor
	switch mode {
	case town.ModeActive:
	case town.ModePaused:
		by = stopPausedActor
	default:
		return nil // asleep or being deleted already
	}
	return a.hall.Do(ctx, h.ID, town.Pause{By: by, Now: true})
}

// undoDrain makes towns go on that the last server put to sleep when it stopped.
// A town that can't is told of and stays asleep, where a person can resume it.
// Without the mark of a drain no town is looked at: there may be a million.
func (a *parts) undoDrain(ctx context.Context) {
	mark, _, err := a.store.Meta(ctx, drained)
	if err != nil || mark == "" {
		a.warn("whether the last stop put towns to sleep can't be read", "", err)
		return
	}
	after := ""
	for {
		heads, err := a.store.Heads(ctx, after, 500)
		if err != nil {
			a.warn("the towns that the last stop put to sleep can't be listed", "", err)
			return
		}
		if len(heads) == 0 {
			a.warn("the mark of the last stop can't be removed", "", a.store.SetMeta(ctx, drained, ""))
			return
		}
		for _, h := range heads {
			after = h.Name
			if h.Status != "active" {
				a.warn("a town that the last stop put to sleep could not be resumed", h.Name, a.undo(ctx, h))
			}
		}
	}
}

func (a *parts) undo(ctx context.Context, h store.Head) error {
	var info town.Info
	err := a.hall.View(ctx, h.ID, func(t *town.Town, _ time.Time) error {
		info = t.Info()
		return nil
	})
	if err != nil || info.Mode != town.ModeSleeping || info.ModeBy != stopActor && info.ModeBy != stopPausedActor {
		return err
	}
	if info.ModeBy == stopPausedActor {
		return a.hall.Do(ctx, h.ID, town.Pause{By: "server start"})
	}
	return a.hall.Do(ctx, h.ID, town.Resume{By: "server start"})
}

func (a *parts) warn(text, name string, err error) {
	if err != nil {
		a.app.log.Warn(text, "town", name, "err", err)
	}
}

// Close gives everything back. server.json stays: a command that finds nobody
// at its address says so.
func (a *App) Close() error {
	a.restoring.Lock()
	defer a.restoring.Unlock()
	var all []error
	if a.listen != nil {
		// Serve has closed it already in the ordinary case.
		_ = a.listen.Close()
	}
	if a.inside != nil {
		_ = a.inside.Close() // likewise
	}
	p := a.current.Swap(nil)
	if p != nil && p.hall != nil {
		p.stopNow()
	}
	if a.driver != nil {
		all = append(all, a.driver.Close())
	}
	if p != nil {
		all = append(all, p.close())
	}
	if a.lock != nil {
		all = append(all, a.lock.Release())
	}
	return errors.Join(all...)
}

// stopNow ends the hall without waiting for anything.
func (p *parts) stopNow() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	p.hall.Stop(ended)
}

// close gives the files back.
func (p *parts) close() error {
	var all []error
	if p.hall != nil {
		p.stopNow()
	}
	if p.offers != nil {
		p.offers.stop()
	}
	if p.vault != nil {
		all = append(all, p.vault.Close())
	}
	if p.store != nil {
		all = append(all, p.store.Close())
	}
	return errors.Join(all...)
}

// StopSandboxes ends the sandboxes that a server which is gone left running in
// its data directory, and everything that belongs to them. Disks stay, unless
// remove is set.
func StopSandboxes(ctx context.Context, cfg Config, grace time.Duration, remove bool) error {
	cfg.Isolation = "" // nothing is started
	d, err := newDriver(ctx, cfg, cfg.Data, cfg.Data, "", slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	all := []error{}
	list, err := d.List(ctx)
	all = append(all, err)
	for _, s := range list {
		if s.State != sandbox.Gone {
			all = append(all, d.Stop(ctx, s.Ref, grace))
		}
		if remove {
			all = append(all, d.Remove(ctx, sandbox.Ref{Town: s.Ref.Town}))
		}
	}
	return errors.Join(append(all, d.Close())...)
}
