package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gastown/internal/api"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	exportPage    = 500
	exportTimeout = time.Minute // of writing one piece, and of reading one page
)

func (s *Server) registerExport() {
	add(s, op{method: "GET", path: "/towns/{town}/export", id: "export-town", tag: "towns", summary: "Export a town as JSON lines",
		errors: []int{404}, linesOut: true, detail: "Beads and ledger are those of one version of the town. " +
			"The last line has the number of lines and their hash: without it the export was cut off."}, s.exportTown)
	add(s, op{method: "POST", path: "/towns/import", id: "import-town", tag: "towns", summary: "Make a town of an export", status: 201,
		errors: []int{409, 413}, linesIn: true, result: api.Imported{},
		detail: "The whole file is checked before anything is changed. The town is paused unless start is given, and its rigs wait until they are cloned. A dry run answers 200."}, s.importTown)
	add(s, op{method: "POST", path: "/towns/{town}/beads/import", id: "import-beads", tag: "beads", summary: "Create many beads at once", status: 201,
		errors: []int{404, 409, 413}, linesIn: true, linesLimit: maxImportBeads, result: api.List[api.ImportedBead]{},
		detail: "The body is JSON lines, each an ImportBead. All are created, or none: an error names the line."}, s.importBeads)
	add(s, op{method: "POST", path: "/towns/{town}/rigs/{rig}/clone", id: "clone-rig", tag: "rigs", summary: "Clone the repository of an imported rig",
		long: true, errors: []int{404, 409}, result: api.Rig{}}, s.cloneRig)
}

func (s *Server) exportTown(ctx context.Context, in *TownPath) (*huma.StreamResponse, error) {
	id, err := s.townID(ctx, in.Town)
	if err != nil {
		return nil, err
	}
	var e *town.Export
	err = s.hall.View(ctx, id, func(t *town.Town, now time.Time) error {
		e = t.Export(now)
		return nil
	})
	if err != nil {
		return nil, err
	}
	e.Header.Gastown = s.cfg.Info.Version
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		_, w := humago.Unwrap(hc)
		w.Header().Set("Content-Type", api.LinesType)
		w.Header().Set("Content-Disposition", `attachment; filename="`+e.Town.Name+`.jsonl"`)
		if err := s.writeExport(hc.Context(), newLines(w), id, e); err != nil {
			// The answer has begun: that its last line is missing tells the client.
			s.log.Warn("an export was cut off", "town", id, "err", err)
		}
	}}, nil
}

// lines writes JSON lines and hashes them.
type lines struct {
	w   *bufio.Writer
	sum hash.Hash
}

// timedWriter gives each piece that is written its own deadline.
type timedWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (t timedWriter) Write(b []byte) (int, error) {
	// Recorders in tests know no deadlines.
	_ = t.rc.SetWriteDeadline(time.Now().Add(exportTimeout))
	return t.w.Write(b)
}

func newLines(w http.ResponseWriter) *lines {
	return &lines{w: bufio.NewWriterSize(timedWriter{w, http.NewResponseController(w)}, 64<<10), sum: sha256.New()}
}

func (l *lines) write(v any) error {
	b := encode(v) // ends with a line end
	l.sum.Write(b) // never fails
	_, err := l.w.Write(b)
	return err
}

// writeExport writes everything in order. Beads come from the copy, which is of
// one version; the ledger page by page, up to the entry that was the last at
// that version: entries never change, so both belong together.
func (s *Server) writeExport(ctx context.Context, out *lines, id string, e *town.Export) error {
	if err := out.write(e.Header); err != nil {
		return err
	}
	if err := out.write(e.Town); err != nil {
		return err
	}
	for _, r := range e.Rigs {
		if err := out.write(r); err != nil {
			return err
		}
	}
	for i := range e.Beads() {
		if err := out.write(e.Bead(i)); err != nil {
			return err
		}
	}
	end := town.ExportEnd{Type: town.LineEnd, Counts: e.Header.Counts}
	for after := int64(0); after < e.Header.LedgerTo; {
		entries, err := s.ledgerPage(ctx, id, after, e.Header.LedgerTo)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			break // all up to there are too old to be kept
		}
		for _, entry := range entries {
			if err := out.write(exportEntry(entry)); err != nil {
				return err
			}
			end.Counts.Ledger++
			after = entry.Seq
		}
	}
	end.SHA256 = hex.EncodeToString(out.sum.Sum(nil))
	if err := out.write(end); err != nil {
		return err
	}
	return out.w.Flush()
}

func (s *Server) ledgerPage(ctx context.Context, id string, after, last int64) ([]store.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	return s.store.Ledger(ctx, id, store.LedgerQuery{After: after, Before: last + 1, Limit: exportPage})
}

// exportEntry reads a stored entry; what can't be read of it is left out.
func exportEntry(e store.Entry) town.ExportEntry {
	v := entryView(e)
	return town.Entry{Seq: e.Seq, At: town.Time(e.At), Kind: e.Kind, Subject: e.Subject, Actor: e.Actor, Text: v.Text, Data: v.Data}.ExportLine()
}

// jsonAnswer writes an answer of a handler that speaks to the connection itself.
func (s *Server) jsonAnswer(w http.ResponseWriter, out *raw) {
	w.Header().Set("Content-Type", out.ContentType)
	if out.Replayed != "" {
		w.Header().Set(api.HeaderReplayed, out.Replayed)
	}
	w.WriteHeader(out.Status)
	// A client that is gone can be told nothing.
	_, _ = w.Write(out.Body)
}
