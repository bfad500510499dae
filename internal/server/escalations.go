package server

import (
	"context"

	"gastown/internal/api"
	"gastown/internal/town"
)

func (s *Server) registerEscalations() {
	const tag = "escalations"
	add(s, op{method: "GET", path: "/towns/{town}/escalations", id: "list-escalations", tag: tag, summary: "List what needs a person, the newest first",
		errors: []int{404}}, s.listEscalations)
	add(s, op{method: "POST", path: "/towns/{town}/escalations/seen", id: "acknowledge-escalation", tag: tag,
		summary: "Acknowledge an escalation; it stays open until its subject is settled", status: 204, errors: []int{404, 409}}, s.seeEscalation)
}

type listEscalationsIn struct {
	TownPath
	All bool `query:"all" doc:"Also those that are closed."`
}

func (s *Server) listEscalations(ctx context.Context, in *listEscalationsIn) (*body[api.List[api.Escalation]], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.Escalation]]{}
	return out, s.view(ctx, id, func(t *town.Town) error {
		out.Body.Items = escalationViews(t, in.All)
		return nil
	})
}

func escalationViews(t *town.Town, all bool) []api.Escalation {
	return mapped(t.Escalations(all), func(e town.Escalation) api.Escalation {
		return api.Escalation{ID: e.ID, Town: t.Info().Name, Cause: string(e.Cause), Subject: e.Subject, Text: e.Text, Count: e.Count,
			First: e.First.Time(), Last: e.Last.Time(), Open: e.Open(), Closed: e.Closed.Time(), How: e.How, SeenBy: e.SeenBy, SeenAt: e.SeenAt.Time()}
	})
}

type seenIn struct {
	TownPath
	Body api.Seen
}

func (s *Server) seeEscalation(ctx context.Context, in *seenIn) (*none, error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	return nil, s.hall.Do(ctx, id, town.Acknowledge{By: callOf(ctx).who, ID: in.Body.ID})
}
