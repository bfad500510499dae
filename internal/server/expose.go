package server

import (
	"maps"
	"slices"
	"strings"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/town"
)

const maxExposed = 64 << 10 // bytes of one value

func exposeName(townID, rig, name string) string { return "expose/" + townID + "/" + rig + "/" + name }

// keepExposed puts values into the vault that agents are to see, and returns their
// names, sorted.
func (s *Server) keepExposed(townID, rig string, e api.EditRig) ([]string, error) {
	names := slices.Sorted(maps.Keys(e.Expose))
	for _, n := range names {
		if err := town.CheckExpose(n); err != nil {
			return nil, err
		}
		if v := e.Expose[n]; len(v) > maxExposed || strings.ContainsRune(v, 0) {
			return nil, errs.New(errs.Invalid, "the value of %s has a NUL, or more than %d bytes", n, maxExposed)
		}
		if slices.Contains(e.Hide, n) {
			return nil, errs.New(errs.Invalid, "%s can't be exposed and hidden at once", n)
		}
	}
	for _, n := range names {
		if err := s.cfg.Secrets.Put(exposeName(townID, rig, n), []byte(e.Expose[n])); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// dropExposed removes values that agents no longer see.
func (s *Server) dropExposed(townID, rig string, names []string) error {
	for _, n := range names {
		if err := s.cfg.Secrets.Delete(exposeName(townID, rig, n)); err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

// giveExposed completes the document of a sandbox by the values that its runs and
// gates may see. One that is gone from the vault (a backup without secrets was
// restored) is left out, and said.
func (s *Server) giveExposed(townID string, d *town.Desired) {
	env := func(rig string, names []string) []string {
		var out []string
		for _, n := range names {
			value, err := s.cfg.Secrets.Get(exposeName(townID, rig, n))
			if err != nil {
				s.log.Warn("a value that agents should see is missing: give it again with gastown rig set RIG --expose", "town", townID, "rig", rig, "name", n, "err", err)
				continue
			}
			out = append(out, n+"="+string(value))
		}
		return out
	}
	d.Runs, d.Gates = slices.Clone(d.Runs), slices.Clone(d.Gates)
	for i := range d.Runs {
		d.Runs[i].Env = env(d.Runs[i].Rig, d.Runs[i].Expose)
	}
	for i := range d.Gates {
		d.Gates[i].Env = env(d.Gates[i].Rig, d.Gates[i].Expose)
	}
}
