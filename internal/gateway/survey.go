package gateway

import (
	"slices"
	"strings"
)

// Surveyed is a provider as it stands, without its key.
type Surveyed struct {
	Name     string
	Kind     string
	Wires    []string
	Unusable string // why it can't be used, with what mends it; "" if it can
}

// Survey returns all providers by name, those that can't be read or lack a key
// included.
func (p *Providers) Survey() ([]Surveyed, error) {
	names, err := p.secrets.List(providerDir + "/")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	out := []Surveyed{}
	for _, n := range names {
		s := Surveyed{Name: strings.TrimPrefix(n, providerDir+"/")}
		v, err := p.Get(s.Name)
		if err != nil {
			s.Unusable = err.Error()
			out = append(out, s)
			continue
		}
		s.Kind = v.Kind
		if k, ok := kindOf(v.Kind); ok {
			s.Wires = k.Wires
			// What stands at the kind's own address asks for a key; others may not.
			if v.Key == "" && k.BaseURL != "" && v.BaseURL == k.BaseURL {
				s.Unusable = "it has no key; gastown provider add " + v.Kind + " " + v.Name + " --key-file FILE gives it one"
			}
		} else {
			s.Unusable = "this server does not know its kind; " + AddHint
		}
		out = append(out, s)
	}
	return out, nil
}
