package town

import (
	"regexp"
	"slices"
	"strings"

	"gastown/internal/errs"
)

const maxExposed = 50

var exposeRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,99}$`)

// CheckExpose refuses names of environment variables that can't be given a value on
// purpose, because they steer the programs of the sandbox.
func CheckExpose(name string) error {
	bad := !exposeRE.MatchString(name) || slices.Contains([]string{"PATH", "HOME", "SHELL", "TMPDIR", "IFS", "ENV", "BASH_ENV", "CI"}, name)
	for _, prefix := range []string{"GASTOWN_", "GIT_", "LD_", "DYLD_", "XDG_"} {
		bad = bad || strings.HasPrefix(name, prefix)
	}
	if bad {
		return errs.New(errs.Invalid, "%.120q can't be the name of a value that agents see", name).
			WithHint("use letters, digits and '_', and no name that steers the sandbox's own programs, such as PATH or GIT_DIR")
	}
	return nil
}

// expose changes which values agents and gates of a rig see. Only names are known
// here, and in the ledger. It changes nothing when it fails.
func (t *Town) expose(r *Rig, now Time, by string, in SetRig) error {
	names := slices.Clone(r.Expose)
	for _, n := range in.Expose {
		if err := CheckExpose(n); err != nil {
			return err
		}
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	for _, n := range in.Hide {
		i := slices.Index(names, n)
		if i < 0 {
			return errs.New(errs.NotFound, "rig %s exposes nothing called %.120q", r.Name, n)
		}
		names = slices.Delete(names, i, i+1)
	}
	if len(names) > maxExposed {
		return errs.New(errs.Invalid, "a rig exposes at most %d values", maxExposed)
	}
	slices.Sort(names)
	r.Expose = names
	if len(in.Expose) > 0 {
		t.log(now, "rig.exposed", r.Name, by, "agents and gates see "+strings.Join(in.Expose, ", "))
	}
	if len(in.Hide) > 0 {
		t.log(now, "rig.hidden", r.Name, by, "agents and gates no longer see "+strings.Join(in.Hide, ", "))
	}
	return nil
}
