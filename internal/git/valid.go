package git

import (
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"gastown/internal/errs"
)

const (
	maxRefLen = 200
	maxURLLen = 2048
)

// ValidBranch checks the short name of a branch ("main", "gt/nux/b-12") by the
// rules of git check-ref-format --branch, and a few of ours: no "refs/" prefix,
// no name that reads as an object id, at most 200 bytes of UTF-8.
func ValidBranch(name string) error {
	why := refProblem(name)
	switch {
	case why != "":
	case strings.HasPrefix(name, "refs/"):
		why = "give the short name, without refs/heads/"
	case name == "HEAD":
		why = "HEAD is not a branch"
	case ValidOID(name) == nil:
		why = "it reads as a commit id"
	}
	if why != "" {
		return errs.New(errs.Invalid, "%s is not a valid branch name: %s", quote(name), why)
	}
	return nil
}

// ValidRef checks a full reference name, "refs/" and at least two components.
func ValidRef(ref string) error {
	why := refProblem(ref)
	switch {
	case why != "":
	case !strings.HasPrefix(ref, "refs/") || strings.Count(ref, "/") < 2:
		why = "it does not begin with refs/heads/ or the like"
	}
	if why != "" {
		return errs.New(errs.Invalid, "%s is not a valid reference name: %s", quote(ref), why)
	}
	return nil
}

// refProblem says what breaks git's rules for names of references, "" if nothing does.
func refProblem(name string) string {
	switch {
	case name == "":
		return "it is empty"
	case len(name) > maxRefLen:
		return "it is longer than 200 bytes"
	case !utf8.ValidString(name):
		return "it is not UTF-8"
	case name[0] == '-':
		return "it begins with '-'"
	case name == "@":
		return "'@' alone means HEAD"
	case strings.Contains(name, ".."):
		return "it contains '..'"
	case strings.Contains(name, "@{"):
		return "it contains '@{'"
	case strings.HasSuffix(name, "."):
		return "it ends with '.'"
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f || strings.IndexByte(`~^:?*[\`, c) >= 0 {
			return "it contains a space, a control character or one of ~ ^ : ? * [ \\"
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "":
			return "it has an empty part"
		case part[0] == '.':
			return "a part begins with '.'"
		case strings.HasSuffix(part, ".lock"):
			return "a part ends with '.lock'"
		}
	}
	return ""
}

// ValidOID checks a full SHA-1 object id in lower-case hex.
func ValidOID(id string) error {
	if len(id) == 40 && strings.Trim(id, "0123456789abcdef") == "" {
		return nil
	}
	return errs.New(errs.Invalid, "%s is not a full commit id", quote(id))
}

var (
	transportRE = regexp.MustCompile(`^[A-Za-z0-9+.-]*::`)
	hostRE      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	userRE      = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)
	scpRE       = regexp.MustCompile(`^([^/@:]+)@([^/@:]+):(.+)$`)
)

// ValidRemoteURL checks the address of an upstream repository: https, http to
// this machine only, ssh, user@host:path, file or an absolute path. An address
// with credentials in it is refused, and not repeated in the error.
func ValidRemoteURL(raw string) error {
	bad := func(why string) *errs.Error { return errs.New(errs.Invalid, "the git URL can't be used: %s", why) }
	switch {
	case raw == "":
		return bad("it is empty")
	case len(raw) > maxURLLen:
		return bad("it is longer than 2048 bytes")
	case !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("it contains control characters")
	case raw[0] == '-':
		return bad("it begins with '-'")
	case transportRE.MatchString(raw):
		return bad("remote helpers (name::address) are not allowed")
	case raw[0] == '/':
		return nil
	case strings.Contains(raw, "://"):
		return validURL(raw, bad)
	}
	m := scpRE.FindStringSubmatch(raw)
	if m == nil {
		return bad("it is neither a URL nor an absolute path").
			WithHint("use https://host/path, ssh://user@host/path, user@host:path or an absolute path")
	}
	if !userRE.MatchString(m[1]) || !hostRE.MatchString(m[2]) || m[3][0] == '-' || strings.Contains(m[3], " ") {
		return bad("user, host or path has characters that don't belong there")
	}
	return nil
}

func validURL(raw string, bad func(string) *errs.Error) error {
	u, err := url.Parse(raw)
	if err != nil {
		// Not err itself: it repeats the URL, which may hold a password.
		return bad("it does not parse")
	}
	if !strings.HasPrefix(raw, u.Scheme+"://") {
		return bad("write the scheme in lower case")
	}
	_, hasPassword := u.User.Password()
	switch u.Scheme {
	case "https", "http":
		if u.User != nil {
			return bad("it contains credentials").WithHint("leave them out and pass the token with --credential-file")
		}
	case "ssh":
		if hasPassword {
			return bad("it contains a password").WithHint("use an ssh key: --credential-file KEY")
		}
		if u.User != nil && !userRE.MatchString(u.User.Username()) {
			return bad("its user name has characters that don't belong there")
		}
	case "file":
		if u.Host != "" || u.User != nil || !strings.HasPrefix(u.Path, "/") {
			return bad("a file URL needs an absolute path and no host")
		}
	default:
		return bad("only https, http to this machine, ssh and file are allowed")
	}
	switch {
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(raw, "#"):
		return bad("it has a query or a fragment")
	case strings.ContainsFunc(u.Path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("its path contains control characters")
	case u.Scheme == "file":
		return nil
	case strings.Trim(u.Path, "/") == "" || strings.HasPrefix(u.Path, "/-"):
		return bad("it has no usable path")
	case !validHost(u):
		return bad("its host or port is not valid")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return bad("plain http is allowed to this machine only").WithHint("use https")
	}
	return nil
}

func validHost(u *url.URL) bool {
	if strings.HasSuffix(u.Host, ":") {
		return false
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		a, err := netip.ParseAddr(host)
		return err == nil && a.Zone() == ""
	}
	return hostRE.MatchString(host)
}

func loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// LocalPath returns the directory that a valid remote URL names on this
// machine, "" for one elsewhere.
func LocalPath(raw string) string {
	if strings.HasPrefix(raw, "/") {
		return raw
	}
	if u, err := url.Parse(raw); err == nil && u.Scheme == "file" {
		return u.Path
	}
	return ""
}
