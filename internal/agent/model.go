package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
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
	m := Model{Provider: "p", BaseURL: "http://127.0.0.1", Key: "k", Name: "m"}
	if _, err := c.render(Spec{Model: &m}); err != nil {
		return err
	}
	if c.SessionModel == "" {
		return nil
	}
	_, err := c.sessionModel(Slot{ID: "s", Model: m})
	return err
}

// Slot is a model under the name that the agent's configuration has for it.
type Slot struct {
	ID string // gastown, or gastown-1 and so on in a shared process
	Model
}

// modelView is what the templates of a preset see.
type modelView struct {
	Model
	Slots []Slot
}

// slot is the place i of the process.
func (s Spec) slot(i int) Slot {
	if len(s.slots) == 0 {
		return Slot{ID: "gastown", Model: *s.Model}
	}
	return Slot{ID: "gastown-" + strconv.Itoa(i+1), Model: s.slots[i]}
}

func (s Spec) view() modelView {
	v := modelView{Model: *s.Model}
	for i := range max(1, len(s.slots)) {
		v.Slots = append(v.Slots, s.slot(i))
	}
	return v
}

// sessionModel is the model that a session asks for to get a slot.
func (c ModelConfig) sessionModel(s Slot) (string, error) {
	return execute("model.session_model", c.SessionModel, s)
}

// render returns the variables that tell the agent about its models, in order.
func (c ModelConfig) render(s Spec) ([]string, error) {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c.Env)) {
		text, err := execute("model.env."+k, c.Env[k], s.view())
		if err != nil {
			return nil, err
		}
		out = append(out, k+"="+text)
	}
	return out, nil
}

// execute runs a template of a preset.
func execute(key, text string, data any) (string, error) {
	funcs := template.FuncMap{"json": func(s string) (string, error) {
		b, err := json.Marshal(s)
		return string(b), err
	}}
	t, err := template.New(key).Funcs(funcs).Option("missingkey=error").Parse(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	w := &boundedBuilder{max: maxPresetFile}
	if err := t.Execute(w, data); err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	return w.b.String(), nil
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
		add, err := s.Preset.Model.render(s)
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
