package server

import (
	"context"
	"strconv"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/store"
	"gastown/internal/town"
)

func (s *Server) registerHistory() {
	const tag = "history"
	add(s, op{method: "GET", path: "/beads/{bead}/runs", id: "bead-runs", tag: tag, summary: "List the runs of a bead, oldest first", errors: []int{404}}, s.beadRuns)
	add(s, op{method: "GET", path: "/beads/{bead}/transcript", id: "transcript", tag: tag, summary: "Read the transcript of a run", errors: []int{404}}, s.transcript)
	add(s, op{method: "GET", path: "/towns/{town}/runs", id: "list-runs", tag: tag, summary: "List the runs that go on", errors: []int{404}}, s.listRuns)
	add(s, op{method: "GET", path: "/towns/{town}/agents", id: "list-agents", tag: tag, summary: "List the agents of a town", errors: []int{404}}, s.listAgents)
	add(s, op{method: "GET", path: "/towns/{town}/ledger", id: "ledger", tag: tag, summary: "Read the ledger of a town", errors: []int{404}}, s.ledger)
}

func (s *Server) beadRuns(ctx context.Context, in *BeadPath) (*body[api.List[api.Run]], error) {
	out := &body[api.List[api.Run]]{}
	return out, s.viewBead(ctx, in.Bead, func(t *town.Town, now time.Time, b town.Bead) error {
		out.Body.Items = beadRuns(t, now, b)
		return nil
	})
}

type transcriptIn struct {
	BeadPath
	Epoch  int64 `query:"epoch" minimum:"0" doc:"Of the run; default the latest."`
	After  int64 `query:"after" minimum:"0" doc:"Begin after this seq."`
	Cursor int64 `query:"cursor" minimum:"0" doc:"next of the page before."`
	Limit  int   `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

func (s *Server) transcript(ctx context.Context, in *transcriptIn) (*body[api.List[api.TranscriptItem]], error) {
	var townID string
	err := s.viewBead(ctx, in.Bead, func(t *town.Town, _ time.Time, b town.Bead) error {
		townID = t.Info().ID
		if in.Epoch == 0 {
			in.Epoch = b.Epoch
		}
		if in.Epoch > b.Epoch {
			return errs.New(errs.NotFound, "bead %s had only %d runs", b.ID, b.Epoch)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	chunks, err := s.store.Transcript(ctx, townID, runID(in.Bead, in.Epoch), in.Epoch, max(in.After, in.Cursor), in.Limit)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.TranscriptItem]]{}
	out.Body.Items = mapped(chunks, chunkView)
	if len(chunks) == in.Limit {
		out.Body.Next = strconv.FormatInt(chunks[len(chunks)-1].Seq, 10)
	}
	return out, nil
}

func (s *Server) listRuns(ctx context.Context, in *TownPath) (*body[api.List[api.Run]], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.Run]]{}
	return out, s.view(ctx, id, func(t *town.Town) error {
		out.Body.Items = mapped(t.Runs(), runView)
		return nil
	})
}

func (s *Server) listAgents(ctx context.Context, in *TownPath) (*body[api.List[api.Agent]], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.Agent]]{}
	return out, s.view(ctx, id, func(t *town.Town) error {
		out.Body.Items = mapped(t.Agents(), agentView)
		return nil
	})
}

type ledgerIn struct {
	TownPath
	After   int64  `query:"after" minimum:"0" doc:"Only entries after this seq."`
	Before  int64  `query:"before" minimum:"0" doc:"Only entries before this seq."`
	Cursor  int64  `query:"cursor" minimum:"0" doc:"next of the page before."`
	Limit   int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
	Subject string `query:"subject" maxLength:"200"`
	Kind    string `query:"kind" maxLength:"100"`
	Desc    bool   `query:"desc" doc:"Newest first."`
}

func (s *Server) ledger(ctx context.Context, in *ledgerIn) (*body[api.List[api.LedgerEntry]], error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	switch {
	case in.Cursor > 0 && in.Desc:
		in.Before = in.Cursor
	case in.Cursor > 0:
		in.After = max(in.After, in.Cursor)
	}
	entries, err := s.store.Ledger(ctx, id, store.LedgerQuery{After: in.After, Before: in.Before, Limit: in.Limit,
		Subject: in.Subject, Kind: in.Kind, Desc: in.Desc})
	if err != nil {
		return nil, err
	}
	out := &body[api.List[api.LedgerEntry]]{}
	out.Body.Items = mapped(entries, entryView)
	if len(entries) == in.Limit {
		out.Body.Next = strconv.FormatInt(entries[len(entries)-1].Seq, 10)
	}
	return out, nil
}
