package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// ModelNone and ModelEnv are the values of ModelConfig.Kind.
const (
	ModelNone = "none"
	ModelEnv  = "env"
)

func (c ModelConfig) check() error {
	if !slices.Contains(api.Wires(), c.Wire) {
		return fmt.Errorf("model.wire: %q is none of %s", clip(c.Wire, 64), strings.Join(api.Wires(), ", "))
	}
	switch c.Kind {
	case ModelNone:
		if c.NeedsProvider || len(c.Env) > 0 {
			return errors.New("model: kind \"none\" has neither needs_provider nor env")
		}
		return nil
	case ModelEnv:
	default:
		return fmt.Errorf("model.kind: %q is neither \"none\" nor \"env\"", clip(c.Kind, 64))
	}
	if err := checkEnv("model.env", c.Env); err != nil {
		return err
	}
	_, err := c.render(Model{Provider: "p", BaseURL: "http://127.0.0.1", Key: "k", Name: "m"})
	return err
}

// render returns the variables that tell the agent about m, in order.
func (c ModelConfig) render(m Model) ([]string, error) {
	funcs := template.FuncMap{"json": func(s string) (string, error) {
		b, err := json.Marshal(s)
		return string(b), err
	}}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c.Env)) {
		t, err := template.New(k).Funcs(funcs).Option("missingkey=error").Parse(c.Env[k])
		if err != nil {
			return nil, fmt.Errorf("model.env.%s: %w", k, err)
		}
		w := &boundedBuilder{max: maxPresetFile}
		if err := t.Execute(w, m); err != nil {
			return nil, fmt.Errorf("model.env.%s: %w", k, err)
		}
		out = append(out, k+"="+w.b.String())
	}
	return out, nil
}

// boundedBuilder keeps a template from producing text without end.
type boundedBuilder struct {
	b   strings.Builder
	max int
}

func (w *boundedBuilder) Write(p []byte) (int, error) {
	if w.b.Len()+len(p) > w.max {
		return 0, fmt.Errorf("the result has more than %d bytes", w.max)
	}
	return w.b.Write(p)
}

// environ is the environment of the agent: the base, then the preset's
// variables, then the model's. Later ones win; empty base values stay.
func (s Spec) environ() ([]string, error) {
	vars := map[string]string{}
	put := func(kv string) {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			vars[k] = v
		}
	}
	for _, kv := range s.Env {
		put(kv)
	}
	maps.Copy(vars, s.Preset.Env)
	if s.Model != nil && s.Preset.Model.Kind == ModelEnv {
		add, err := s.Preset.Model.render(*s.Model)
		if err != nil {
			return nil, errs.Wrap(errs.Invalid, err, "preset %s", s.Preset.Name)
		}
		for _, kv := range add {
			put(kv)
		}
	}
	out := make([]string, 0, len(vars))
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		if strings.ContainsRune(vars[k], 0) {
			return nil, errs.New(errs.Invalid, "variable %s contains a NUL byte", k)
		}
		out = append(out, k+"="+vars[k])
	}
	return out, nil
}
