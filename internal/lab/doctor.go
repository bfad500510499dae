package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// DoctorOptions say how to measure an examination of sleeping towns.
type DoctorOptions struct {
	Place *Place
	Towns int
	Beads int // closed ones, per town
	Note  func(format string, args ...any)
}

// Examination is what an examination of a whole server takes.
type Examination struct {
	Towns    int     `json:"towns"`
	FirstMS  float64 `json:"first_ms"`
	AgainMS  float64 `json:"again_ms"`
	DeepMS   float64 `json:"deep_ms"` // every town loaded
	Problems int     `json:"problems"`
	Loaded   int     `json:"loaded"` // by the first
	RSSMB    float64 `json:"rss_mb"` // after the second
	StoreMB  float64 `json:"store_mb"`
}

// MeasureDoctor seeds a store with sleeping towns and has a real server examine
// itself.
func MeasureDoctor(ctx context.Context, o DoctorOptions) (out Examination, err error) {
	data := filepath.Join(o.Place.Dir, "doctor")
	out.Towns = o.Towns
	o.Note("seeding %d towns", o.Towns)
	if err := Seed(ctx, data, o.Towns, o.Beads); err != nil {
		return out, err
	}
	if err := seedHub(data, o.Towns); err != nil {
		return out, err
	}
	s, err := o.Place.Serve(ctx, data)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	if err := wait(ctx, settleFor); err != nil {
		return out, err
	}
	c, err := client.New(client.Options{URL: s.URL, Token: s.Token, Agent: "gastown-lab", User: "lab"})
	if err != nil {
		return out, err
	}
	var rep api.DoctorReport
	for _, to := range []*float64{&out.FirstMS, &out.AgainMS} {
		o.Note("examining")
		begin := time.Now()
		if rep, err = c.Doctor(ctx, "", false); err != nil {
			return out, err
		}
		*to = ms(time.Since(begin))
	}
	if rep.Towns != o.Towns {
		return out, errs.New(errs.Internal, "%d towns were looked at, not %d", rep.Towns, o.Towns)
	}
	out.Problems, out.Loaded = rep.Problems, rep.Loaded
	m, err := s.metrics(ctx)
	if err != nil {
		return out, err
	}
	used, err := s.usage(m)
	if err != nil {
		return out, err
	}
	out.RSSMB = float64(used.rss) / (1 << 20)
	size, err := storeSize(data)
	if err != nil {
		return out, err
	}
	out.StoreMB = float64(size) / (1 << 20)
	o.Note("examining every town whole")
	begin := time.Now()
	if _, err = c.Doctor(ctx, "", true); err != nil {
		return out, err
	}
	out.DeepMS = ms(time.Since(begin))
	return out, nil
}

// seedHub gives each seeded town the directory of an empty repository.
func seedHub(data string, towns int) error {
	for i := range towns {
		dir := filepath.Join(data, "hub", "t"+seedNumber(i), "web.git")
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "HEAD"), []byte("ref: refs/heads/main\n"), 0o600)
		}
		if err != nil {
			return errs.Wrap(errs.Unavailable, err, "making repositories")
		}
	}
	return nil
}
