package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/app"
	"gastown/internal/client"
	"gastown/internal/errs"
	"gastown/internal/town"
)

// RecoveryOptions say how many towns are awake when the server dies.
type RecoveryOptions struct {
	Place *Place
	Towns int
	Down  time.Duration // between the kill and the next server
	Note  func(format string, args ...any)
}

// Recovery is what a server that was killed needs to be itself again. Times
// count from the start of the next process.
type Recovery struct {
	Towns         int     `json:"towns"`
	ReadyMS       float64 `json:"ready_ms"`      // it answers
	HalfHeardMS   float64 `json:"half_heard_ms"` // it heard from half of the sandboxes
	AllHeardMS    float64 `json:"all_heard_ms"`  // from all of them
	RunsLost      int     `json:"runs_lost"`
	SandboxStarts int     `json:"sandbox_starts"` // by the next server
	RSSMB         float64 `json:"rss_mb"`         // of the next server, with all of them heard
}

// recoveryFor bounds the wait until all are heard.
const recoveryFor = 2 * time.Minute

// makers is how many towns are made at once.
const makers = 8

// MeasureRecovery kills a server with awake towns, each with one run, and starts
// the next one. The sandboxes run FakeRunner, so that a thousand fit on a machine.
func MeasureRecovery(ctx context.Context, o RecoveryOptions) (out Recovery, err error) {
	repo := filepath.Join(o.Place.Dir, "recovery.git")
	if err := writeRepository(ctx, repo, 3); err != nil {
		return out, err
	}
	self, err := os.Executable()
	if err != nil {
		return out, errs.Wrap(errs.Internal, err, "finding this program")
	}
	place := &Place{Dir: o.Place.Dir, Gastown: self}
	data, many := filepath.Join(o.Place.Dir, "recovery"), strconv.Itoa(o.Towns)
	args := []string{"--set", "agent=scripted", "--set", "max_awake=" + many, "--set", "max_starting=" + strconv.Itoa(2*makers)}
	s, err := place.Serve(ctx, data, args...)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, endAll(s, o.Place.Dir)) }()
	r := &recovery{o: o, out: Recovery{Towns: o.Towns}}
	if err := r.wakeAll(ctx, s, repo); err != nil {
		return r.out, err
	}
	o.Note("killing the server")
	if err := s.Kill(); err != nil {
		return r.out, err
	}
	killed := time.Now()
	if err := wait(ctx, o.Down); err != nil {
		return r.out, err
	}
	next, err := place.begin(data, args...)
	if err != nil {
		return r.out, err
	}
	s = next
	return r.out, errors.Join(r.watch(ctx, s), r.verify(ctx, s, killed))
}

// endAll ends a server and its many sandboxes. Where their processes can be
// listed they are killed at once: ending each in order takes as many looks at
// all processes as there are sandboxes.
func endAll(s *Server, dir string) error {
	if chaosPossible() != nil {
		return s.Stop()
	}
	return errors.Join(s.Kill(), endProcesses(dir))
}

type recovery struct {
	o   RecoveryOptions
	out Recovery
}

func recoveryTown(i int) string { return fmt.Sprintf("recovery-%d", i) }

// wakeAll makes the towns and returns when each has a run at work.
func (r *recovery) wakeAll(ctx context.Context, s *Server, repo string) error {
	c, err := s.Client()
	if err != nil {
		return err
	}
	numbers, failed := make(chan int), make(chan error, makers)
	var all sync.WaitGroup
	for range makers {
		all.Go(func() {
			for i := range numbers {
				if err := r.wake(ctx, c, i, repo); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	for i := 0; i < r.o.Towns && err == nil; i++ {
		if i%100 == 0 {
			r.o.Note("%d of %d towns are awake", i, r.o.Towns)
		}
		select {
		case numbers <- i:
		case err = <-failed:
		}
	}
	close(numbers)
	all.Wait()
	close(failed)
	for f := range failed {
		err = errors.Join(err, f)
	}
	return err
}

func (r *recovery) wake(ctx context.Context, c *client.Client, i int, repo string) error {
	name := recoveryTown(i)
	if _, err := c.CreateTown(ctx, api.CreateTown{Name: name}); err != nil {
		return err
	}
	if _, err := c.AddRig(ctx, name, api.AddRig{Name: "web", Prefix: fmt.Sprintf("r%d", i), URL: repo, Target: "main"}); err != nil {
		return err
	}
	if _, err := c.CreateBead(ctx, name, api.CreateBead{Rig: "web", Title: "work", Body: "Work."}); err != nil {
		return err
	}
	return until(ctx, name+" is at work", func() (bool, error) {
		runs, err := c.Runs(ctx, name)
		return len(runs) == 1 && runs[0].State == "running", err
	})
}

// watch waits until the server is ready, and until it took a report from every
// sandbox: each sends one as soon as the server answers, the next half a minute later.
func (r *recovery) watch(ctx context.Context, s *Server) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	r.out.ReadyMS = s.ReadyMS
	ctx, cancel := context.WithTimeout(ctx, recoveryFor)
	defer cancel()
	for {
		m, err := s.metrics(ctx)
		if err != nil {
			return err
		}
		now := ms(time.Since(s.begun))
		heard := int(m.sum("gastown_http_request_duration_seconds_count", `/runner/v1/reports"`))
		if 2*heard >= r.o.Towns && r.out.HalfHeardMS == 0 {
			r.out.HalfHeardMS = now
		}
		if heard >= r.o.Towns {
			r.out.AllHeardMS = now
			return nil
		}
		if err := wait(ctx, 20*time.Millisecond); err != nil {
			return errs.New(errs.Unavailable, "only %d of %d sandboxes were heard within %s", heard, r.o.Towns, recoveryFor)
		}
	}
}

// verify asks every town for its run and its sandbox.
func (r *recovery) verify(ctx context.Context, s *Server, killed time.Time) error {
	if r.out.AllHeardMS == 0 {
		return nil
	}
	r.o.Note("ready after %.0f ms, all heard after %.0f ms; looking at each", r.out.ReadyMS, r.out.AllHeardMS)
	m, err := s.metrics(ctx)
	if err != nil {
		return err
	}
	r.out.SandboxStarts = int(m.sum("gastown_hall_sandbox_starts_total", ""))
	if u, ok, err := processUsage(s.PID()); err == nil && ok {
		r.out.RSSMB = float64(u.rss) / (1 << 20)
	}
	c, err := s.Client()
	if err != nil {
		return err
	}
	for i := range r.o.Towns {
		t, err := c.Town(ctx, recoveryTown(i))
		if err != nil {
			return err
		}
		runs, err := c.Runs(ctx, recoveryTown(i))
		if err != nil {
			return err
		}
		if len(runs) != 1 || runs[0].Epoch != 1 || runs[0].State != "running" || t.Sandbox.Starts != 1 {
			r.out.RunsLost++
		}
		if !t.Sandbox.LastSeen.After(killed) {
			return errs.New(errs.Internal, "%s was not heard since %s", recoveryTown(i), t.Sandbox.LastSeen)
		}
	}
	return nil
}

// ServeFake serves like `gastown serve`, with FakeRunner inside the sandboxes.
func ServeFake(ctx context.Context, data, listen string, settings map[string]string) error {
	self, err := os.Executable()
	if err != nil {
		return errs.Wrap(errs.Internal, err, "finding this program")
	}
	srv, err := app.Open(ctx, app.Config{Data: data, Listen: listen, Program: self, Version: "lab", Settings: town.Settings(settings)})
	if err != nil {
		return err
	}
	return errors.Join(srv.Serve(ctx), srv.Close())
}
