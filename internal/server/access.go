package server

import (
	"context"
	"crypto/rand"
	"net/http"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/git/hub"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// GitAccess implements gateway.GitPolicy. A sandbox may fetch from the rigs of
// its town; a run may push its own branch and its checkpoints.
func (s *Server) GitAccess(r *http.Request, rig string) (gateway.GitGrant, error) {
	c, err := s.sandbox(nil, r)
	if err != nil {
		return gateway.GitGrant{}, err
	}
	grant := gateway.GitGrant{ID: hub.ID{Town: c.Town, Rig: rig}}
	name := r.Header.Get(wire.HeaderRun)
	err = s.currentTown(c, func(t *town.Town) error {
		if _, err := getRig(t, rig); err != nil {
			return err
		}
		if name == "" {
			grant.Refusal = "this request names no run, so it may only fetch"
			return nil
		}
		run, epoch, err := runOf(name, r.Header.Get(wire.HeaderEpoch))
		if err != nil {
			return err
		}
		rules, err := t.GitRules(run, epoch, rig)
		if err != nil {
			return err
		}
		grant.Push = []gateway.PushRule{{Ref: rules.Branch, Force: true, Frozen: rules.Frozen}, {Ref: rules.Wip, Force: true}}
		grant.MaxBytes = rules.MaxBytes
		grant.See = checkpointsOf(rules.Wip)
		grant.Refusal = "the target branch is merged by gastown after done"
		return nil
	})
	return grant, err
}

// checkpointsOf is the prefix of all checkpoints of a bead, from one of them:
// a run resumes from those of the runs before it.
func checkpointsOf(wip string) []string {
	i := strings.LastIndexByte(wip, '/')
	return []string{wip[:i+1]}
}

// ModelAccess implements gateway.ModelPolicy. A request must come from a run
// that goes on in the current sandbox, and only for the provider of that run.
func (s *Server) ModelAccess(r *http.Request, provider string) (gateway.ModelGrant, error) {
	c, err := s.sandbox(nil, r)
	if err != nil {
		return gateway.ModelGrant{}, err
	}
	run, epoch, err := runOf(r.Header.Get(wire.HeaderRun), r.Header.Get(wire.HeaderEpoch))
	if err != nil {
		return gateway.ModelGrant{}, err
	}
	grant := gateway.ModelGrant{Town: c.Town, Run: run, Epoch: epoch}
	err = s.currentTown(c, func(t *town.Town) error {
		at, ok := t.Run(run)
		switch {
		case !ok || at.Epoch != epoch || at.Generation != c.Generation:
			return errs.New(errs.Gone, "run %s, epoch %d, is not current", printable(run, 60), epoch)
		case at.Provider != provider:
			return errs.New(errs.Forbidden, "the provider of run %s is another one", printable(run, 60))
		case at.State == town.RunDraining && at.Stop != "":
			return errs.New(errs.Conflict, "run %s is being stopped", printable(run, 60)) // its budget may be used up
		}
		grant.Limited, grant.Budgeted = t.ProviderLimited(run), t.NeedsBlock(run)
		return nil
	})
	return grant, err
}

// ModelLimited implements gateway.ModelLimits.
func (s *Server) ModelLimited(g gateway.ModelGrant, provider string, wait time.Duration, reason string) {
	in := town.Limited{Run: g.Run, Epoch: g.Epoch, Provider: provider, Reason: reason}
	if wait != gateway.NotStated {
		in.Until = town.At(s.now().Add(wait))
	}
	s.tellLimit(g, in)
}

// ModelWorks implements gateway.ModelLimits.
func (s *Server) ModelWorks(g gateway.ModelGrant, provider string) {
	s.tellLimit(g, town.ProviderWorks{Run: g.Run, Epoch: g.Epoch, Provider: provider})
}

// usedTimeout bounds how long the end of an answer waits until its usage is recorded.
const usedTimeout = 10 * time.Second

// ModelUsed implements gateway.ModelMeter. Each answer is a meter of its own, so
// that a repeat after an unknown outcome counts once, in whatever order answers end.
func (s *Server) ModelUsed(g gateway.ModelGrant, provider, model string, t gateway.Tokens, cost int64, priced bool) {
	ctx, cancel := context.WithTimeout(context.Background(), usedTimeout)
	defer cancel()
	in := town.Metered{Run: g.Run, Epoch: g.Epoch, Meter: "gw-" + rand.Text(), Seq: 1, Tokens: t.Total(), Cost: cost}
	if !priced {
		in.Unpriced = in.Tokens
	}
	var err error
	for range 3 {
		if err = s.hall.Do(ctx, g.Town, in); !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Overloaded) {
			break
		}
	}
	if err != nil {
		s.log.Error("what a model's answer used could not be recorded", "run", g.Run, "provider", provider, "model", model,
			"tokens", t.Total(), "cost", cost, "err", err)
	}
}

const (
	limitTellers = 64 // words about limits on their way to towns at once
	limitTimeout = 30 * time.Second
)

// tellLimit hands a word about a limit to its town without making the agent
// wait. One that is lost is said again by the next refused request.
func (s *Server) tellLimit(g gateway.ModelGrant, in town.Input) {
	select {
	case s.tellers <- struct{}{}:
	default:
		s.log.Warn("too many words about limits of model providers at once: one is left out", "run", g.Run)
		return
	}
	go func() {
		defer func() { <-s.tellers }()
		ctx, cancel := context.WithTimeout(context.Background(), limitTimeout)
		defer cancel()
		if err := s.hall.Do(ctx, g.Town, in); err != nil && !errs.Is(err, errs.Gone) {
			s.log.Warn("a limit of a model provider could not be recorded", "run", g.Run, "err", err)
		}
	}()
}
