package agent

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gastown/internal/errs"
)

func TestBuiltInPresetsLoad(t *testing.T) {
	t.Parallel()
	ps, err := LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ps.Names(), " "); got != "claude codex gemini kilo opencode scripted" {
		t.Errorf("names: %s", got)
	}
	oc, err := ps.Get("opencode")
	if err != nil {
		t.Fatal(err)
	}
	if !oc.Model.NeedsProvider || oc.InitTimeout != time.Minute || oc.InstallHint == "" {
		t.Errorf("opencode: %+v", oc)
	}
	if !oc.Shares() || ps["claude"].Shares() || ps["codex"].Shares() {
		t.Error("opencode alone holds several sessions in one process")
	}
	oc.ProcessPerRun = true
	if oc.Shares() {
		t.Error("process_per_run does not separate")
	}
	if _, err := ps.Get("nobody"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "opencode, scripted") {
		t.Errorf("unknown preset: %v", err)
	}
}

// opencodeConfig is what a process of a spec reads.
type opencodeConfig struct {
	Model    string   `json:"model"`
	Small    string   `json:"small_model"`
	Share    string   `json:"share"`
	Enabled  []string `json:"enabled_providers"`
	Provider map[string]struct {
		NPM     string            `json:"npm"`
		Options map[string]string `json:"options"`
		Models  map[string]any    `json:"models"`
	} `json:"provider"`
}

func (c *opencodeConfig) read(t *testing.T, env []string) {
	t.Helper()
	for _, kv := range env {
		if s, ok := strings.CutPrefix(kv, "OPENCODE_CONFIG_CONTENT="); ok {
			if err := json.Unmarshal([]byte(s), c); err != nil {
				t.Fatalf("%v in %s", err, s)
			}
		}
	}
}

func TestASharedOpencodeHasAProviderPerSession(t *testing.T) {
	t.Parallel()
	ps, err := LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	var slots []Model
	for _, k := range []string{"one", "two", "three"} {
		slots = append(slots, Model{Provider: `a "house"`, BaseURL: "http://127.0.0.1/" + k, Key: "key-" + k, Name: "vendor/m"})
	}
	h, err := NewHost(Spec{Preset: ps["opencode"], Dir: t.TempDir()}, slots)
	if err != nil {
		t.Fatal(err)
	}
	env, err := h.base.environ()
	if err != nil {
		t.Fatal(err)
	}
	var cfg opencodeConfig
	cfg.read(t, env)
	if len(cfg.Provider) != 3 || len(cfg.Enabled) != 3 || cfg.Small != "" {
		t.Errorf("%+v", cfg)
	}
	for i, m := range slots {
		name, err := ps["opencode"].Model.sessionModel(h.base.slot(i))
		id, model, _ := strings.Cut(name, "/")
		p := cfg.Provider[id]
		if err != nil || model != m.Name || p.Options["apiKey"] != m.Key || p.Options["baseURL"] != m.BaseURL || !slices.Contains(cfg.Enabled, id) {
			t.Errorf("slot %d is %q, %v: %+v", i, name, err, p)
		}
	}
	if got := h.base.secrets(); len(got) < 3 {
		t.Errorf("of the keys only %d would be kept out of events", len(got))
	}
	own := ps["opencode"]
	own.ProcessPerRun = true
	if _, err := NewHost(Spec{Preset: own, Dir: t.TempDir()}, slots); !errs.Is(err, errs.Invalid) {
		t.Errorf("a host for agents of one process per run: %v", err)
	}
}

func TestOpencodeIsConfiguredByOneVariable(t *testing.T) {
	t.Parallel()
	ps, err := LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	m := Model{Provider: `open"router`, BaseURL: "http://127.0.0.1:1/model/r", Key: "key\n\"{{", Name: `m"odel/x`}
	env, err := Spec{Preset: ps["opencode"], Model: &m, Env: []string{"PATH=/bin", "HOME=/h", "HOME=/later"}}.environ()
	if err != nil {
		t.Fatal(err)
	}
	var cfg opencodeConfig
	cfg.read(t, env)
	p := cfg.Provider["gastown"]
	if cfg.Model != "gastown/"+m.Name || cfg.Small != "" || cfg.Share != "disabled" {
		t.Errorf("model %q, small %q, share %q", cfg.Model, cfg.Small, cfg.Share)
	}
	if p.Options["apiKey"] != m.Key || p.Options["baseURL"] != m.BaseURL || p.Models[m.Name] == nil {
		t.Errorf("provider: %+v", p)
	}
	for _, want := range []string{"OPENCODE_DISABLE_MODELS_FETCH=1", "PATH=/bin", "HOME=/later"} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in %q", want, env)
		}
	}
}

func TestAPersonsPresetsComeOverTheBuiltInOnes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "a.toml", "name = \"opencode\"\ncommand = \"/opt/oc\"\nargs = [\"acp\"]\n[model]\nkind = \"none\"\n")
	write(t, dir, "b.toml", "name = \"mine\"\ncommand = \"mine\"\ninit_timeout = \"5s\"\n[model]\nkind = \"none\"\n[permissions]\nread = \"allow\"\nedit = \"deny\"\n")
	write(t, dir, "notes.txt", "not a preset")
	ps, err := LoadPresets(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(ps.Names(), " "); got != "claude codex gemini kilo mine opencode scripted" {
		t.Errorf("names: %s", got)
	}
	if ps["opencode"].Command != "/opt/oc" || ps["opencode"].Model.NeedsProvider {
		t.Errorf("opencode was not replaced whole: %+v", ps["opencode"])
	}
	pol := ps["mine"].Permissions
	for kind, want := range map[string]struct {
		d     Decision
		known bool
	}{"read": {Allow, true}, "edit": {Deny, true}, "execute": {Deny, false}, "": {Deny, false}} {
		if d, known := pol.Decide(kind); d != want.d || known != want.known {
			t.Errorf("kind %q: %s, known %v", kind, d, known)
		}
	}
}

func TestBadPresetsSayFileAndKey(t *testing.T) {
	t.Parallel()
	const ok = "name = \"x\"\ncommand = \"x\"\n"
	const none = "[model]\nkind = \"none\"\n"
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":           {ok + "colour = 1\n" + none, "unknown key colour (line 3)"},
		"unknown key in a part": {ok + none + "modle = 1\n", "unknown key model.modle"},
		"not TOML":              {"name = ", "line 1"},
		"a line":                {ok + none + "[permissions]\nread = \"allow\"\nedit = \"ask\"\n", "line 7: permissions.edit:"},
		"a line in a part":      {ok + "# why\n[model]\nkind = \"env\"\nwire = \"morse\"\n", "line 6: model.wire:"},
		"a line after text":     {ok + "summary = \"\"\"\nusage = 1\n\"\"\"\nusage = \"some\"\n" + none, "line 6: usage:"},
		"a line of a variable":  {ok + "[model]\nkind = \"env\"\n[model.env]\nB = \"\"\nA = \"{{\"\n", "line 7: model.env.A:"},
		"wrong type":            {"name = 7\n", "name"},
		"no name":               {"command = \"x\"\n" + none, "name:"},
		"name as a path":        {"name = \"../x\"\ncommand = \"x\"\n" + none, "name:"},
		"no command":            {"name = \"x\"\n" + none, "command: missing"},
		"relative command":      {"name = \"x\"\ncommand = \"./x\"\n" + none, "command:"},
		"no model kind":         {ok, "model.kind:"},
		"a need without a kind": {ok + "[model]\nkind = \"none\"\nneeds_provider = true\n", "model:"},
		"broken template":       {ok + "[model]\nkind = \"env\"\n[model.env]\nA = \"{{.Nope}}\"\n", "model.env.A:"},
		"unfinished template":   {ok + "[model]\nkind = \"env\"\n[model.env]\nA = \"{{\"\n", "model.env.A:"},
		"unknown tool kind":     {ok + none + "[permissions]\nsing = \"allow\"\n", "permissions.sing:"},
		"unknown decision":      {ok + none + "[permissions]\nread = \"ask\"\n", "permissions.read:"},
		"timeout":               {ok + "init_timeout = \"soon\"\n" + none, "init_timeout:"},
		"timeout too long":      {ok + "init_timeout = \"200h\"\n" + none, "init_timeout:"},
		"kind of resume":        {ok + "resume = \"prayer\"\n" + none, "resume:"},
		"kind of usage":         {ok + "usage = \"some\"\n" + none, "usage:"},
		"apart from nobody":     {ok + "process_per_run = true\n" + none, "process_per_run:"},
		"variable name":         {ok + none + "[env]\n\"A=B\" = \"x\"\n", "env:"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "bad.toml", c.text)
			_, err := LoadPresets(dir)
			if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "bad.toml") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	t.Run("two files of one name", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, "a.toml", ok+none)
		write(t, dir, "b.toml", ok+none)
		if _, err := LoadPresets(dir); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "a.toml") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := LoadPresets(filepath.Join(t.TempDir(), "none")); !errs.Is(err, errs.Invalid) {
			t.Errorf("got %v", err)
		}
	})
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzParsePreset(f *testing.F) {
	for _, name := range []string{"presets/scripted.toml", "presets/opencode.toml", "presets/kilo.toml", "presets/gemini.toml", "presets/codex.toml"} {
		b, err := builtin.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("name = \"x\"\ncommand = \"x\"\n[model]\nkind = \"env\"\n[model.env]\nA = \"{{range .Name}}\"\n"))
	f.Add([]byte("name = \"x\"\ncommand = \"x\"\nresume = \"checkpoint\"\nshared_sessions = true\nversion_args = [\"-v\"]\nsummary = \"\"\"\n[model]\n\"\"\"\n[model]\nkind = \"none\"\n[\"permissions\"]\nread = \"ask\"\n"))
	f.Add([]byte("[permissions]\n\"\" = \"\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePreset("f.toml", data)
		if err != nil {
			if !errs.Is(err, errs.Invalid) || !strings.HasPrefix(err.Error(), "f.toml: ") {
				t.Fatalf("error without kind or file: %v", err)
			}
			return
		}
		if p.Name == "" || p.Command == "" || p.InitTimeout <= 0 {
			t.Fatalf("accepted an incomplete preset: %+v", p)
		}
		for k := range maps.Keys(p.Permissions.Kinds) {
			if d, known := p.Permissions.Decide(k); !known || (d != Allow && d != Deny) {
				t.Fatalf("kind %q: %q", k, d)
			}
		}
		s := Spec{Preset: p, Model: &Model{Name: "m\"", Key: "k"}}
		if _, err := s.environ(); err != nil && !errs.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}

func TestThePresetInTheDocumentationIsOne(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/agents.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```toml\n")
	text, _, ok := strings.Cut(text, "```")
	p, err := ParsePreset("agents.md", []byte(text))
	if !ok || err != nil || p.Name != "myagent" || !p.Model.NeedsProvider {
		t.Errorf("%+v, %v", p, err)
	}
	ps, err := LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range ps {
		if !strings.Contains(string(page), "| `"+name+"` | ") {
			t.Errorf("docs/agents.md has no row for %s", name)
		}
		if p.InstallHint == "" || len(p.VersionArgs) == 0 {
			t.Errorf("%s does not say how to install it or its version", name)
		}
	}
}
