package server

import (
	"context"
	"net/http"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// TownPath is the parameter that names a town. It is exported for
// the framework, which passes over others when they are embedded.
type TownPath struct {
	Town string `path:"town" doc:"Name or id of a town."`
}

func (s *Server) registerTowns() {
	const tag = "towns"
	add(s, op{method: "POST", path: "/towns", id: "create-town", tag: tag, summary: "Create a town", status: 201, errors: []int{409},
		result: api.Town{}}, s.createTown)
	add(s, op{method: "GET", path: "/towns", id: "list-towns", tag: tag, summary: "List towns by name"}, s.listTowns)
	add(s, op{method: "GET", path: "/towns/{town}", id: "get-town", tag: tag, summary: "Show a town", errors: []int{404}}, s.getTown)
	add(s, op{method: "DELETE", path: "/towns/{town}", id: "delete-town", tag: tag, summary: "Delete a town and all that it has", status: 202,
		errors: []int{404, 409}, detail: "Deletion goes on in the background: the town is there until a GET answers 404."}, s.deleteTown)
	add(s, op{method: "PATCH", path: "/towns/{town}/settings", id: "set-town", tag: tag, summary: "Change settings of a town",
		errors: []int{404, 409}}, s.setTown)
	add(s, op{method: "GET", path: "/towns/{town}/settings", id: "show-settings", tag: tag, summary: "Show settings and where they come from",
		errors: []int{404}}, s.showSettings)
	add(s, op{method: "POST", path: "/towns/{town}/pause", id: "pause-town", tag: tag, summary: "Let nothing new start; with now also drain the sandbox",
		errors: []int{404, 409}, optional: true}, s.pauseTown)
	add(s, op{method: "POST", path: "/towns/{town}/resume", id: "resume-town", tag: tag, summary: "End a pause or sleep; with for_ms keep the sandbox awake",
		errors: []int{404, 409}, optional: true}, s.resumeTown)
	add(s, op{method: "POST", path: "/towns/{town}/retry", id: "retry", tag: tag, summary: "Try a breaker, bead or notice again now",
		errors: []int{404, 409}}, s.retry)
	add(s, op{method: "POST", path: "/towns/{town}/refresh-token", id: "refresh-token", tag: tag,
		summary: "Renew the token of an awake sandbox now", errors: []int{404, 409}}, s.refreshToken)
	add(s, op{method: "GET", path: "/towns/{town}/why", id: "why-town", tag: tag, summary: "Say why the sandbox is awake or asleep and what waits",
		errors: []int{404}}, s.whyTown)
	add(s, op{method: "GET", path: "/towns/{town}/why/{id}", id: "why", tag: tag, summary: "Say why a bead, or the sandbox, is as it is",
		errors: []int{404}}, s.why)
	add(s, op{method: "GET", path: "/towns/{town}/usage", id: "usage", tag: tag, summary: "Show what a town has used", errors: []int{404}}, s.usage)
}

type createTownIn struct {
	IdemKey
	Body api.CreateTown
}

func (s *Server) createTown(ctx context.Context, in *createTownIn) (*raw, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if err := town.ValidName("town", in.Body.Name); err != nil {
		return nil, err
	}
	if err := s.checkSettings(town.LevelTown, in.Body.Settings); err != nil {
		return nil, err
	}
	if len(in.Body.Owner) > maxUser || printable(in.Body.Owner, maxUser) != in.Body.Owner {
		return nil, errs.New(errs.Invalid, "the owner is not a name of at most %d printable characters", maxUser)
	}
	var idem *hall.Idem
	if in.Key != "" {
		idem = &hall.Idem{Key: in.Key, Hash: digest(ctx, "create-town")}
	}
	id, err := s.hall.CreateTown(ctx, in.Body.Name, in.Body.Owner, in.Body.Settings, callOf(ctx).who, idem)
	if err != nil {
		return nil, err
	}
	out, err := s.showTown(ctx, id)
	if err != nil {
		return nil, err
	}
	return rawAnswer(http.StatusCreated, encode(out.Body), false), nil
}

// PageIn are the parameters of a list. It is exported for
// the framework, which passes over others when they are embedded.
type PageIn struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"How many items at most."`
	Cursor string `query:"cursor" maxLength:"200" doc:"next of the page before."`
}

func (s *Server) listTowns(ctx context.Context, in *PageIn) (*body[api.List[api.TownItem]], error) {
	heads, err := s.store.Heads(ctx, in.Cursor, in.Limit+1)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.TownItem]]{}
	if len(heads) > in.Limit {
		heads = heads[:in.Limit]
		out.Body.Next = heads[in.Limit-1].Name
	}
	out.Body.Items = mapped(heads, headView)
	return out, nil
}

// showTown shows a town by its id.
func (s *Server) showTown(ctx context.Context, id string) (*body[api.Town], error) {
	head, err := s.store.Head(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &body[api.Town]{}
	return out, s.view(ctx, id, func(t *town.Town) error {
		out.Body = townView(t, head)
		return nil
	})
}

func (s *Server) getTown(ctx context.Context, in *TownPath) (*body[api.Town], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	return s.showTown(ctx, id)
}

// change hands an input to a town and shows the town.
func (s *Server) change(ctx context.Context, name string, in town.Input) (*body[api.Town], error) {
	id, err := s.townID(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.hall.Do(ctx, id, in); err != nil {
		return nil, err
	}
	return s.showTown(ctx, id)
}

func (s *Server) deleteTown(ctx context.Context, in *TownPath) (*none, error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	s.places.drop(in.Town)
	return nil, s.hall.Do(ctx, id, town.DeleteTown{By: callOf(ctx).who})
}

type setTownIn struct {
	TownPath
	Body api.SetSettings
}

func (s *Server) setTown(ctx context.Context, in *setTownIn) (*body[api.List[api.Setting]], error) {
	if err := s.checkSettings(town.LevelTown, in.Body.Set); err != nil {
		return nil, err
	}
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	set, err := s.fitSettings(ctx, id, "", in.Body.Set)
	if err != nil {
		return nil, err
	}
	if err := s.hall.Do(ctx, id, town.SetTown{By: callOf(ctx).who, Set: set, Unset: in.Body.Unset}); err != nil {
		return nil, err
	}
	return s.settings(ctx, id, "")
}

type showSettingsIn struct {
	TownPath
	Rig string `query:"rig" doc:"Show them as they hold for this rig."`
}

func (s *Server) showSettings(ctx context.Context, in *showSettingsIn) (*body[api.List[api.Setting]], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	return s.settings(ctx, id, in.Rig)
}

func (s *Server) settings(ctx context.Context, townID, rig string) (*body[api.List[api.Setting]], error) {
	help := map[string]string{}
	for _, row := range town.Table() {
		help[row.Key] = row.Help
	}
	out := &body[api.List[api.Setting]]{}
	return out, s.view(ctx, townID, func(t *town.Town) error {
		values, err := t.ShowSettings(rig)
		out.Body.Items = mapped(values, func(v town.Value) api.Setting {
			return api.Setting{Key: v.Key, Value: v.Value, From: string(v.From), Help: help[v.Key]}
		})
		return err
	})
}

type pauseIn struct {
	TownPath
	Body *api.Pause
}

func (s *Server) pauseTown(ctx context.Context, in *pauseIn) (*body[api.Town], error) {
	now := in.Body != nil && in.Body.Now
	return s.change(ctx, in.Town, town.Pause{By: callOf(ctx).who, Now: now})
}

type resumeIn struct {
	TownPath
	Body *api.Resume
}

func (s *Server) resumeTown(ctx context.Context, in *resumeIn) (*body[api.Town], error) {
	var long time.Duration
	if in.Body != nil {
		long = time.Duration(in.Body.ForMS) * time.Millisecond
	}
	return s.change(ctx, in.Town, town.Resume{By: callOf(ctx).who, For: long})
}

func (s *Server) refreshToken(ctx context.Context, in *TownPath) (*body[api.Town], error) {
	return s.change(ctx, in.Town, town.RefreshToken{By: callOf(ctx).who})
}

type retryIn struct {
	TownPath
	Body api.Retry
}

func (s *Server) retry(ctx context.Context, in *retryIn) (*body[api.Town], error) {
	return s.change(ctx, in.Town, town.Retry{By: callOf(ctx).who, ID: in.Body.ID})
}

func (s *Server) whyTown(ctx context.Context, in *TownPath) (*body[api.WhyTown], error) {
	head, err := s.townHead(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.WhyTown]{}
	err = s.hall.View(ctx, head.ID, func(t *town.Town, now time.Time) error {
		out.Body = whyTownView(t, now)
		return nil
	})
	if errs.Is(err, errs.Internal) && head.Failing != "" {
		out.Body, err = whyUnread(head), nil
	}
	out.Body.Failing = head.Failing
	return out, err
}

// whyUnread answers for a town whose state can't be read, from its columns.
func whyUnread(head store.Head) api.WhyTown {
	return api.WhyTown{Town: head.Name, Mode: head.Status, State: head.Sandbox, NextWake: at(head.DueAt),
		Text:    head.Sandbox + ", and nothing moves: its state can't be read; it is tried again by itself",
		Sandbox: api.Sandbox{State: head.Sandbox, Generation: head.Generation},
		Holds:   []api.Hold{}, Breakers: []api.Breaker{}, Claims: []api.Claim{}, Notices: []api.Notice{}, Escalations: []api.Escalation{}}
}

func whyTownView(t *town.Town, now time.Time) api.WhyTown {
	why, info := t.WhyTown(now), t.Info()
	out := api.WhyTown{Town: info.Name, Mode: string(info.Mode), State: string(why.State), Text: why.Text,
		Until: why.GraceEnd.Time(), NextWake: why.NextWake.Time(), Sandbox: sandboxView(info.Sandbox)}
	out.Holds = mapped(why.Holds, func(h town.Hold) api.Hold {
		return api.Hold{Reason: string(h.Reason), Subject: h.Subject, Bead: h.Bead, Since: h.Since.Time(), Until: h.Until.Time()}
	})
	out.Breakers = mapped(why.Breakers, func(b town.Breaker) api.Breaker {
		return api.Breaker{Subject: b.Subject, Fails: b.Fails, Until: b.Until.Time(), Last: b.Last, Since: b.Since.Time(), Limit: b.Limit}
	})
	out.Claims = mapped(t.Claims(), func(c town.Claim) api.Claim {
		return api.Claim{Key: c.Key, Attempt: c.Attempt, By: c.By, Until: c.Until.Time()}
	})
	out.Escalations = escalationViews(t, false)
	out.Notices = mapped(t.Notices(), func(n town.Notice) api.Notice {
		return api.Notice{ID: n.ID, Kind: n.Kind, Subject: n.Subject, Text: n.Text, At: n.At.Time(), Tries: n.Tries, Error: n.Error, Dead: n.Dead}
	})
	return out
}

type whyIn struct {
	TownPath
	ID string `path:"id" doc:"A bead's id."`
}

func (s *Server) why(ctx context.Context, in *whyIn) (*body[api.Reason], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	return s.whyID(ctx, id, in.ID)
}

func (s *Server) whyID(ctx context.Context, townID, id string) (*body[api.Reason], error) {
	out := &body[api.Reason]{}
	return out, s.hall.View(ctx, townID, func(t *town.Town, now time.Time) error {
		r, err := t.Why(now, id)
		out.Body = *reasonView(r)
		out.Body.Uses = usesView(t, id)
		return err
	})
}

func (s *Server) usage(ctx context.Context, in *TownPath) (*body[api.Usage], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.Usage]{}
	return out, s.hall.View(ctx, id, func(t *town.Town, now time.Time) error {
		out.Body = usageView(t, town.At(now))
		return nil
	})
}

func usageView(t *town.Town, now town.Time) api.Usage {
	box := t.Sandbox()
	out := api.Usage{Town: t.Info().Name, Starts: box.Starts, Renewals: box.Renewals, AwakeMS: box.AwakeMS, Generation: box.Generation}
	if m := t.Info().Meter; m.Phase != town.PhaseNone && m.Since > 0 {
		out.AwakeMS += max(int64(now-m.Since), 0) // not booked yet
	}
	out.Days = mapped(t.Usage(now.Time()), func(u town.Usage) api.UsageDay {
		return api.UsageDay{Day: u.Day, Unpriced: u.Unpriced, AwakeMS: u.Awake(), StartingMS: u.Starting, HeldMS: u.Held, GraceMS: u.Grace,
			DrainingMS: u.Draining, StoppingMS: u.Stopping, Holds: u.Holds,
			Runs: u.Runs, Tokens: u.Tokens, CostMicros: u.Cost}
	})
	out.Budgets, out.Beads = budgetViews(t.Budgets(now.Time())), beadSpends(t, now)
	for _, b := range t.Beads() {
		switch b.Status {
		case town.BeadClosed:
			out.Closed++
		case town.BeadFailed:
			out.Failed++
		case town.BeadCancelled:
			out.Cancelled++
		default:
			out.Open++
		}
		for _, r := range b.Runs {
			out.Runs++
			out.RunMS += int64(r.EndedAt - r.StartedAt)
		}
	}
	for _, r := range t.Runs() {
		out.Runs++
		out.RunMS += int64(now - r.CreatedAt)
	}
	return out
}
