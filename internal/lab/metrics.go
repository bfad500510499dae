package lab

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gastown/internal/errs"
)

// scrape is the server's /metrics: sample names with labels, and their values.
type scrape map[string]float64

// Metrics reads the server's counters.
func (s *Server) metrics(ctx context.Context) (scrape, error) {
	text, err := s.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parseMetrics(string(text)), nil
}

// parseMetrics reads the text format; lines that are no samples are skipped.
func parseMetrics(text string) scrape {
	out := scrape{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			out[line[:i]] = v
		}
	}
	return out
}

// sum adds up the samples of a name whose labels contain a text.
func (m scrape) sum(name, label string) float64 {
	var n float64
	for k, v := range m {
		if base, labels, _ := strings.Cut(k, "{"); base == name && strings.Contains(labels, label) {
			n += v
		}
	}
	return n
}

// usage is what a process has used since its start.
type usage struct {
	rss   int64 // bytes, now
	cpu   float64
	wrote int64 // bytes handed to the disk
}

// usage asks the system where that is possible, else the server's own metrics.
func (s *Server) usage(m scrape) (usage, error) {
	u, ok, err := processUsage(s.PID())
	if err != nil {
		return u, errs.Wrap(errs.Unavailable, err, "reading what the server uses")
	}
	if !ok {
		u = usage{rss: int64(m.sum("process_resident_memory_bytes", "")), cpu: m.sum("process_cpu_seconds_total", ""),
			wrote: int64(m.sum("gastown_store_bytes_written_total", ""))}
	}
	return u, nil
}

// storeSize is the size of the store's files.
func storeSize(data string) (int64, error) {
	var n int64
	files, err := filepath.Glob(filepath.Join(data, "gastown.db*"))
	for _, f := range files {
		st, statErr := os.Stat(f)
		if statErr == nil {
			n += st.Size()
		} else if !os.IsNotExist(statErr) {
			err = statErr
		}
	}
	return n, errs.Wrap(errs.Unavailable, err, "the size of the store")
}
