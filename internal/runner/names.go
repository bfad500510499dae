package runner

import (
	"regexp"
	"strings"
	"unicode"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/town"
)

// What may become part of a path, a ref or a URL: no separators, nothing that
// begins with '-' or '.', no "..".
var (
	beadRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	runRE  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}(\.[a-z0-9]{1,20})?$`)
	wordRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
)

func checkNames(rig, bead string) error {
	if err := town.ValidName("rig", rig); err != nil {
		return err
	}
	if !beadRE.MatchString(bead) {
		return errs.New(errs.Invalid, "%q is not usable as the id of a bead", clip(bead, 60))
	}
	return nil
}

// checkRun refuses a run with a name that could leave the disk or become a flag.
func checkRun(d town.DesiredRun) error {
	if err := checkNames(d.Rig, d.Bead); err != nil {
		return err
	}
	if !runRE.MatchString(d.ID) || d.Epoch < 1 {
		return errs.New(errs.Invalid, "%q is not usable as the id of a run", clip(d.ID, 60))
	}
	if d.Provider != "" && !wordRE.MatchString(d.Provider) {
		return errs.New(errs.Invalid, "%q is not usable as the name of a model provider", clip(d.Provider, 60))
	}
	if err := git.ValidBranch(d.Branch); err != nil {
		return err
	}
	for _, id := range []string{d.Start, d.Resume} {
		if id == "" && d.Start != "" {
			continue
		}
		if err := git.ValidOID(id); err != nil {
			return err
		}
	}
	if d.ResumeRef != "" {
		return git.ValidRef(d.ResumeRef)
	}
	return nil
}

func checkGates(j town.GateJob) error {
	if err := checkNames(j.Rig, j.Bead); err != nil {
		return err
	}
	if j.N < 1 {
		return errs.New(errs.Invalid, "candidate number %d", j.N)
	}
	if j.Ref != "" {
		if err := git.ValidRef(j.Ref); err != nil {
			return err
		}
	}
	return git.ValidOID(j.Candidate)
}

// fileName turns the name of a gate into a file name.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_') {
			return r
		}
		return '_'
	}, clip(s, 60))
	if s == "" {
		return "_"
	}
	return s
}

// clip shortens a text of strangers to n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
