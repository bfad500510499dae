package town

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gastown/internal/errs"
)

// maxHosts bounds the entries of one list.
const maxHosts = 200

// privateMark ends an entry that may lead to the server's own network.
const privateMark = "+private"

// HostRule is one entry of an allow-list: a name, a name with "*." before it for
// all names below it, "*" for every name, or an IP address.
type HostRule struct {
	Name    string     // without "*."; "" for every name, or when IP is set
	Below   bool       // it stands for the names below Name
	IP      netip.Addr // unmapped; not valid for names
	Port    uint16     // 0: 443 and 80
	Private bool       // addresses of the server's own network are meant, too
}

// String returns the entry as it is written.
func (r HostRule) String() string {
	s := r.Name
	switch {
	case r.IP.IsValid() && r.IP.Is6():
		s = "[" + r.IP.String() + "]"
	case r.IP.IsValid():
		s = r.IP.String()
	case s == "":
		s = "*"
	case r.Below:
		s = "*." + s
	}
	if r.Port != 0 {
		s += ":" + strconv.Itoa(int(r.Port))
	}
	if r.Private && !r.IP.IsValid() {
		s += privateMark
	}
	return s
}

// Allows reports whether the entry opens a port of a host. A name never opens an
// address, nor the other way round.
func (r HostRule) Allows(h Host) bool {
	if r.Port != 0 && r.Port != h.Port || r.Port == 0 && h.Port != 443 && h.Port != 80 {
		return false
	}
	switch {
	case r.IP.IsValid() || h.IP.IsValid():
		return r.IP == h.IP
	case r.Name == "":
		return true
	case r.Below:
		return strings.HasSuffix(h.Name, "."+r.Name)
	}
	return r.Name == h.Name
}

// Host is a port of a host as a request names it: lower case, no trailing dot.
type Host struct {
	Name string     // "" when IP is set
	IP   netip.Addr // unmapped
	Port uint16
}

// String returns host:port.
func (h Host) String() string {
	if h.IP.IsValid() {
		return netip.AddrPortFrom(h.IP, h.Port).String()
	}
	return h.Name + ":" + strconv.Itoa(int(h.Port))
}

// Entry is the entry of an allow-list that opens the host.
func (h Host) Entry() string {
	return h.rule().String()
}

func (h Host) rule() HostRule {
	r := HostRule{Name: h.Name, IP: h.IP, Port: h.Port}
	if h.Port == 443 || h.Port == 80 {
		r.Port = 0
	}
	return r
}

// ParseHost reads host:port as a CONNECT request names it. What resolvers read
// in more than one way (127.1, 0x7f000001, zones, escapes) is no host.
func ParseHost(s string) (Host, error) {
	bad := errs.New(errs.Invalid, "%q is not host:port", clip(s, 80))
	name, port, ok := splitPort(s)
	if !ok || port == 0 {
		return Host{}, bad
	}
	if ip, ok := parseIP(name); ok {
		return Host{IP: ip, Port: port}, nil
	}
	if name, ok = hostName(name); !ok {
		return Host{}, bad
	}
	return Host{Name: name, Port: port}, nil
}

// splitPort cuts a port off, 0 for none; an address in IPv6 stands in brackets.
func splitPort(s string) (name string, port uint16, ok bool) {
	name = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && (s[0] != '[' || strings.HasSuffix(s[:i], "]")) {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil || n == 0 || s[i+1] < '1' || s[i+1] > '9' {
			return "", 0, false
		}
		name, port = s[:i], uint16(n)
	}
	if strings.Contains(name, ":") != strings.HasPrefix(name, "[") {
		return "", 0, false
	}
	return name, port, name != ""
}

func parseIP(s string) (netip.Addr, bool) {
	inner, six := strings.CutPrefix(s, "[")
	if six {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return netip.Addr{}, false
		}
	}
	ip, err := netip.ParseAddr(inner)
	if err != nil || ip.Zone() != "" || ip.Is6() != six {
		return netip.Addr{}, false
	}
	return ip.Unmap(), true
}

// hostName checks and normalizes a name of DNS. The last label must not look
// like a number: some resolvers would read an address out of it.
func hostName(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return "", false
		}
		for _, c := range []byte(l) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", false
			}
		}
	}
	last := labels[len(labels)-1]
	return s, last[0] < '0' || last[0] > '9'
}

// ParseHosts reads an allow-list: entries separated by commas.
func ParseHosts(list string) ([]HostRule, error) {
	var out []HostRule
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		r, err := parseHostRule(part)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	if len(out) > maxHosts {
		return nil, errs.New(errs.Invalid, "the list has %d hosts, at most %d", len(out), maxHosts)
	}
	return out, nil
}

func parseHostRule(s string) (HostRule, error) {
	bad := errs.New(errs.Invalid, "%q is not a host", clip(s, 80)).
		WithHint("give a name like registry.npmjs.org, *.example.org, example.org:8443 or 192.0.2.7:80; names in other scripts as xn--…; no scheme, no path")
	name, private := strings.CutSuffix(s, privateMark)
	name, port, ok := splitPort(name)
	if !ok {
		return HostRule{}, bad
	}
	r := HostRule{Port: port, Private: private}
	if ip, ok := parseIP(name); ok {
		r.IP, r.Private = ip, true
		return r, nil
	}
	if name == "*" {
		if private {
			return HostRule{}, errs.New(errs.Invalid, "* can't be %s", privateMark).WithHint("name the hosts of your own network")
		}
		return r, nil
	}
	name, r.Below = strings.CutPrefix(name, "*.")
	if r.Name, ok = hostName(name); !ok {
		return HostRule{}, bad
	}
	return r, nil
}

// hostsText writes a list as it is stored.
func hostsText(rules []HostRule) string {
	parts := make([]string, len(rules))
	for i, r := range rules {
		parts[i] = r.String()
	}
	return strings.Join(parts, ",")
}

// changedHosts is a list with entries added and others taken away.
func changedHosts(list string, allow, deny []string) (string, error) {
	rules, err := ParseHosts(list + "," + strings.Join(allow, ","))
	if err != nil {
		return "", err
	}
	gone, err := ParseHosts(strings.Join(deny, ","))
	if err != nil {
		return "", err
	}
	for _, g := range gone {
		if !slices.Contains(rules, g) {
			return "", errs.New(errs.NotFound, "%s is not on the list of hosts", g).WithHint("the list is: %s", clip(hostsText(rules), 1000))
		}
		rules = slices.DeleteFunc(rules, func(r HostRule) bool { return r == g })
	}
	if _, err := ParseHosts(hostsText(rules)); err != nil {
		return "", err
	}
	return hostsText(rules), nil
}

// AllowedHosts returns the hosts that agents and gates of a rig may reach, as entries.
func (t *Town) AllowedHosts(rig string) []string {
	var out []string
	for _, r := range t.hostRules(t.rigs[rig]) {
		out = append(out, r.String())
	}
	return out
}

func (t *Town) hostRules(r *Rig) []HostRule {
	rules, err := ParseHosts(t.text(hostsKey, nil, r))
	if err != nil {
		panic(err) // checked in resolve
	}
	return rules
}

// hostsKey is the setting that holds the list.
const hostsKey = "network.allow"

// HostAccess finds what opens a host to a rig. A host that is not on its list is
// Forbidden, with the command that opens it.
func (t *Town) HostAccess(rig string, h Host) (HostRule, error) {
	var found HostRule
	ok := false
	for _, r := range t.hostRules(t.rigs[rig]) {
		if r.Allows(h) && (!ok || r.Private) {
			found, ok = r, true
		}
	}
	if !ok {
		return found, errs.New(errs.Forbidden, "%s is not open to rig %s", h, rig).WithHint("%s", t.opens(rig, h.Entry()))
	}
	return found, nil
}

func (t *Town) opens(rig, entry string) string {
	return "a person can open it: gastown rig set " + rig + " --town " + t.info.Name + " --allow-host '" + entry + "'"
}

// PrivateHost is the refusal of a name that leads to the server's own network
// without being marked so.
func (t *Town) PrivateHost(rig string, h Host) error {
	r := h.rule()
	r.Private = true
	return errs.New(errs.Forbidden, "%s leads to an address of the server's own network", h).WithHint("%s", t.opens(rig, r.String()))
}

// setHosts turns what is to be added to a rig's list, and taken off it, into a
// value of the setting.
func (t *Town) setHosts(r *Rig, in SetRig) (Settings, error) {
	if _, twice := in.Set[hostsKey]; twice || slices.Contains(in.Unset, hostsKey) {
		return nil, errs.New(errs.Invalid, "%s is changed in two ways at once", hostsKey)
	}
	list, err := changedHosts(t.text(hostsKey, nil, r), in.Allow, in.Deny)
	if err != nil {
		return nil, err
	}
	return in.Set.merged(Settings{hostsKey: list}, nil), nil
}
