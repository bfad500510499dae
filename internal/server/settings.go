package server

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/town"
)

// checkSettings checks what only the server knows besides the rules of the
// domain: which agents and which providers exist.
func (s *Server) checkSettings(level town.Level, set map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if err := town.CheckSetting(level, key, set[key]); err != nil {
			return err
		}
	}
	for _, key := range []string{"agent", "role.polecat.agent"} {
		if name, ok := set[key]; ok && (name != "" || key == "agent") { // "" of a role is what holds for all
			if _, err := s.preset(name); err != nil {
				return err
			}
		}
	}
	for _, key := range []string{"provider", "role.polecat.provider"} {
		if name := set[key]; name != "" {
			if _, err := s.provider(name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Server) preset(name string) (agent.Preset, error) {
	p, err := s.cfg.Presets.Get(name)
	if err != nil {
		return p, errs.New(errs.Invalid, "there is no agent preset %q", printable(name, 60)).
			WithHint("use one of: %s", strings.Join(s.cfg.Presets.Names(), ", "))
	}
	return p, nil
}

func (s *Server) provider(name string) (gateway.Provider, error) {
	p, err := s.providers.Get(name)
	if !errs.Is(err, errs.NotFound) {
		return p, err
	}
	all, err := s.providers.List()
	if err != nil {
		return p, err
	}
	names := mapped(all, func(p gateway.Provider) string { return p.Name })
	return p, errs.New(errs.Invalid, "there is no model provider %q", printable(name, 60)).
		WithHint("%s", cmp.Or(prefixed("use one of: ", strings.Join(names, ", ")), gateway.AddHint))
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// fitSettings completes a change of a town's or a rig's settings that names
// another agent.
func (s *Server) fitSettings(ctx context.Context, townID, rig string, set map[string]string) (map[string]string, error) {
	if set["agent"] == "" && set["role.polecat.agent"] == "" {
		return set, nil
	}
	held := map[string]string{}
	err := s.view(ctx, townID, func(t *town.Town) error {
		values, err := t.ShowSettings(rig)
		for _, v := range values {
			held[v.Key] = v.Value
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.chooseModel(set, held)
}

// chooseModel completes the settings of a new rig whose agent needs a model:
// the only provider there is, and its first model, are the defaults. inherited
// are the values that hold for the town.
func (s *Server) chooseModel(set, inherited map[string]string) (map[string]string, error) {
	// As the town chooses: what is said of the role goes first.
	holds := func(key string) string {
		role := "role.polecat." + key
		return cmp.Or(set[role], inherited[role], set[key], inherited[key])
	}
	p, err := s.preset(holds("agent"))
	if err != nil || !p.Model.NeedsProvider {
		return set, err
	}
	all, err := s.providers.List()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(v gateway.Provider) bool { return !v.Speaks(p.Model.Wire) })
	if len(all) == 0 {
		return nil, errs.New(errs.Conflict, "the agent %s needs a model, and no model provider is configured that speaks %s", p.Name, p.Model.Wire).
			WithHint("%s", gateway.AddHint)
	}
	set = maps.Clone(set)
	if set == nil {
		set = map[string]string{}
	}
	name := holds("provider")
	if name == "" {
		if len(all) > 1 {
			names := mapped(all, func(p gateway.Provider) string { return p.Name })
			return nil, errs.New(errs.Invalid, "the agent %s needs a model provider, and there are several", p.Name).
				WithHint("choose one by the setting provider: %s", strings.Join(names, ", "))
		}
		name = all[0].Name
		set["provider"] = name
	}
	provider, err := s.provider(name)
	if err != nil {
		return nil, err
	}
	if !provider.Speaks(p.Model.Wire) {
		return nil, errs.New(errs.Invalid, "the agent %s speaks %s with its model, which the provider %s (%s) does not", p.Name, p.Model.Wire, name, provider.Kind).
			WithHint("%s", cmp.Or(prefixed("use one of: ", strings.Join(mapped(all, func(p gateway.Provider) string { return p.Name }), ", ")), gateway.AddHint))
	}
	if holds("model") == "" {
		if len(provider.Models) == 0 {
			return nil, errs.New(errs.Invalid, "the agent %s needs a model, and the provider %s lists none", p.Name, name).
				WithHint("give the setting model")
		}
		set["model"] = provider.Models[0]
	}
	return set, nil
}
