package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"unicode/utf8"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/town"
)

const (
	maxImportBeads = int64(16) << 20
	maxBeadLines   = 5000
)

type importBeadsIn struct {
	TownPath
	IdemKey
	Rig   string `query:"rig" doc:"Of the beads; may be left out when the town has one rig."`
	Sling bool   `query:"sling" doc:"Let work on them begin; default: they are staged."`
}

// importBeads creates the beads of a list, all in one commit.
func (s *Server) importBeads(ctx context.Context, in *importBeadsIn) (*raw, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	lines, err := readBeads(callOf(ctx).body)
	if err != nil {
		return nil, err
	}
	p, err := s.findPlace(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	rig, prefix, err := p.rig(in.Rig)
	if err != nil {
		return nil, err
	}
	cmd := town.CreateBeads{By: callOf(ctx).who}
	ids := map[string]string{} // local name to id
	out := api.List[api.ImportedBead]{Items: []api.ImportedBead{}}
	taken := map[string]bool{}
	for i, l := range lines {
		if err := s.checkSettings(town.LevelBead, l.Settings); err != nil {
			return nil, town.AtLine(i+1, err)
		}
		b := town.CreateBead{ID: newBeadID(prefix), Rig: rig, Title: l.Title, Body: l.Body, Priority: normalUrgency, Labels: l.Labels, Settings: l.Settings, Staged: !in.Sling}
		for taken[b.ID] {
			b.ID = newBeadID(prefix)
		}
		taken[b.ID] = true
		if l.Priority != nil {
			b.Priority = *l.Priority
		}
		if l.Name != "" {
			if ids[l.Name] != "" {
				return nil, town.AtLine(i+1, errs.New(errs.Invalid, "name: %q is on an earlier line already", printable(l.Name, 60)))
			}
			ids[l.Name] = b.ID
		}
		cmd.Beads = append(cmd.Beads, b)
		out.Items = append(out.Items, api.ImportedBead{Line: i + 1, Name: l.Name, ID: b.ID, Title: l.Title})
	}
	for i, l := range lines {
		for _, on := range l.BlockedBy {
			cmd.Beads[i].BlockedBy = append(cmd.Beads[i].BlockedBy, cmp.Or(ids[on], on))
		}
	}
	return s.commit(ctx, p.id, cmd, in.IdemKey, digest(ctx, "import-beads", p.id, rig, cmp.Or(map[bool]string{true: "sling"}[in.Sling], "staged")), http.StatusCreated,
		func(*town.Town) any { return out })
}

// rig finds a rig by name; "" is the only one.
func (p place) rig(name string) (rig, prefix string, err error) {
	if name == "" {
		if len(p.rigs) != 1 {
			return "", "", errs.New(errs.Invalid, "rig is missing, and the town has %d rigs", len(p.rigs)).WithHint("gastown rig list shows them; gastown rig add makes one")
		}
		for name = range p.rigs {
		}
	}
	prefix, ok := p.rigs[name]
	if !ok {
		return "", "", errs.New(errs.NotFound, "no rig %s in the town", printable(name, 60)).WithHint("gastown rig list shows those that exist")
	}
	return name, prefix, nil
}

// readBeads reads the lines of a list strictly.
func readBeads(data []byte) ([]api.ImportBead, error) {
	var out []api.ImportBead
	for line := range bytes.Lines(data) {
		var b api.ImportBead
		if err := decodeLine(line, &b); err != nil {
			return nil, town.AtLine(len(out)+1, err)
		}
		if out = append(out, b); len(out) > maxBeadLines {
			return nil, errs.New(errs.Invalid, "more than %d beads", maxBeadLines).WithHint("import them in several files")
		}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Invalid, "the file is empty").WithHint("each line is a JSON object such as {\"title\":\"...\"}")
	}
	return out, nil
}

func decodeLine(line []byte, v any) error {
	if !utf8.Valid(line) {
		return errs.New(errs.Invalid, "not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return errs.New(errs.Invalid, "%s", jsonProblem(err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "there is more after the JSON object")
	}
	return nil
}
