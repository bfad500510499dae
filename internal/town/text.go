package town

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"gastown/internal/errs"
)

// Limits on what people and agents may write.
const (
	MaxTitle  = 300       // bytes
	MaxBody   = 256 << 10 // bytes
	MaxReason = 8 << 10   // bytes; longer reasons are clipped
	MaxLabels = 32        // per bead
	MaxBlocks = 200       // blockers per bead
	MaxGates  = 32        // per rig
	MaxLog    = 64 << 10  // bytes kept of a gate's log
	MaxBeads  = 1_000_000 // per town
)

var (
	slugRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
	prefixRE = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)
	beadRE   = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}-[a-z0-9]{5}$`)
	commitRE = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)
	labelRE  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,62}$`)
)

// ValidName checks the name of a town or a rig: 1 to 40 of a-z, 0-9 and '-',
// beginning and ending with a letter or digit.
func ValidName(what, name string) error {
	if !slugRE.MatchString(name) {
		return errs.New(errs.Invalid, "%q is no name for a %s", clip(name, 60), what).
			WithHint("use 1 to 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit")
	}
	return nil
}

// ValidPrefix checks a rig's prefix: a letter, then up to 11 of a-z and 0-9.
func ValidPrefix(p string) error {
	if !prefixRE.MatchString(p) {
		return errs.New(errs.Invalid, "%q is no prefix", clip(p, 60)).WithHint("use a letter, then up to 11 of a-z and 0-9")
	}
	return nil
}

// ValidBeadID checks the form <prefix>-<5 of a-z0-9>.
func ValidBeadID(id string) error {
	if !beadRE.MatchString(id) {
		return errs.New(errs.Invalid, "%q is no bead id", clip(id, 60)).WithHint("ids look like web-k3x9a")
	}
	return nil
}

// cleanText refuses text that is too long, not UTF-8, or has control characters
// other than tab and line ends.
func cleanText(what, s string, limit int) error {
	if len(s) > limit {
		return errs.New(errs.Invalid, "%s is too long: %d bytes, at most %d", what, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return errs.New(errs.Invalid, "%s is not valid UTF-8", what)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r == 0 || (unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r') }); i >= 0 {
		return errs.New(errs.Invalid, "%s has a control character at byte %d", what, i)
	}
	return nil
}

// cleanLine is cleanText for text of one line that must not be blank.
func cleanLine(what, s string, limit int) error {
	if err := cleanText(what, s, limit); err != nil {
		return err
	}
	if strings.TrimSpace(s) == "" {
		return errs.New(errs.Invalid, "%s is empty", what)
	}
	if strings.ContainsAny(s, "\n\r") {
		return errs.New(errs.Invalid, "%s must be a single line", what)
	}
	return nil
}

// clip shortens s to n bytes at a character, marking the cut, and replaces what
// is not UTF-8: for text of strangers in messages and reasons.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// plain is clip with control characters (but line ends and tabs) replaced.
func plain(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return ' '
		}
		return r
	}, clip(s, n))
}
