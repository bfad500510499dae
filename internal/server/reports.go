package server

import (
	"encoding/json"
	"fmt"

	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// readReports reads a batch. A report that can't be read on its own is replaced
// by one that says so: it costs only itself, and its number counts, so that the
// sender goes on with the next.
func readReports(data []byte) (wire.ReportsRequest, error) {
	var in struct {
		Stream string            `json:"stream"`
		From   int64             `json:"from"`
		Items  []json.RawMessage `json:"items"`
	}
	if err := decodeLoose(data, &in); err != nil {
		return wire.ReportsRequest{}, err
	}
	out := wire.ReportsRequest{Stream: in.Stream, From: in.From, Items: make([]town.Report, len(in.Items))}
	for i, raw := range in.Items {
		out.Items[i] = readReport(raw)
	}
	return out, nil
}

func readReport(raw []byte) town.Report {
	lost := func(format string, args ...any) town.Report {
		return town.Report{Kind: town.ReportLost, Reason: fmt.Sprintf(format, args...)}
	}
	if len(raw) > town.MaxReport {
		return lost("a report of %d bytes, more than %d", len(raw), town.MaxReport)
	}
	var r town.Report
	if err := json.Unmarshal(raw, &r); err != nil {
		return lost("a report that can't be read: %s", printable(jsonProblem(err), 200))
	}
	return r
}
