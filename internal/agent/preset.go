package agent

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"gastown/internal/api"
	"gastown/internal/errs"
)

//go:embed presets/*.toml
var builtin embed.FS

// SelfCommand as a preset's command means this program itself (Spec.SelfExe).
const SelfCommand = "{self}"

// maxPresetFile bounds a preset file, which a person writes by hand.
const maxPresetFile = 256 << 10

// Decision answers a permission request.
type Decision string

// The decisions.
const (
	Allow Decision = "allow"
	Deny  Decision = "deny"
)

// Preset is how to run one kind of agent.
type Preset struct {
	Name        string
	Summary     string
	InstallHint string // what to do when Command is missing
	Command     string // a name in PATH, an absolute path, or SelfCommand
	Args        []string
	Env         map[string]string
	Model       ModelConfig
	Permissions PermissionPolicy
	Traits
	Mode        string        // of the session, set after it is opened; "" leaves the agent's own
	InitTimeout time.Duration // for initialize; default 30 s
	// SessionTimeout is for session/new and session/load; default 60 s.
	SessionTimeout time.Duration
	// CancelTimeout is how long a cancelled turn may take to answer; default 10 s.
	CancelTimeout time.Duration
}

// Traits are what people, and the runner, must know of an agent.
type Traits struct {
	// VersionArgs make Command print its version and exit; none when it has no
	// such option.
	VersionArgs []string
	// SharedSessions says that one process of the agent may hold several sessions,
	// each with its own working directory, tools and place in its configuration.
	// What such sessions know of each other: see ShareNote.
	SharedSessions bool
	// ProcessPerRun gives each run a process of its own all the same. The setting
	// process_per_run does so for a town or a rig.
	ProcessPerRun bool
	// Resume is what a run goes on from after its agent died: ResumeSession or
	// ResumeCheckpoint.
	Resume string
	// Usage is what the agent itself tells of the tokens it used, one of UsageNone,
	// UsageLast and UsageExact. The server counts for itself what goes through it.
	Usage string
}

// The values of Traits.Resume.
const (
	ResumeSession    = "session"    // its own session is loaded, where it has one
	ResumeCheckpoint = "checkpoint" // a new session, on the work of the last checkpoint
)

// The values of Traits.Usage.
const (
	UsageNone  = "none"
	UsageLast  = "last"  // of its last call only
	UsageExact = "exact" // of all calls
)

// Shares reports whether runs may share a process of this agent.
func (t Traits) Shares() bool { return t.SharedSessions && !t.ProcessPerRun }

// ShareNote is what people must know of agents whose runs share a process.
const ShareNote = "Secrets of runs that share a process are readable by each other: they say who used what, they keep nothing apart. process_per_run = true separates them."

// ModelConfig is how an agent is told where its model is.
type ModelConfig struct {
	// Kind is "none" (the agent needs no model) or "env" (through environment variables).
	Kind string
	// NeedsProvider says that a Spec without a Model is an error.
	NeedsProvider bool
	// Wire is the wire format that the agent speaks with its model, one of
	// api.Wires; default "chat".
	Wire string
	// Env maps a variable to a text/template over Model, with the function
	// json, which quotes a string as JSON. Slots lists the models of all sessions
	// that the process is to hold, each with an ID; in a process of one run it is one.
	Env map[string]string
	// SessionModel is a text/template over a Slot: the model that a session of a
	// shared process chooses by session/set_model.
	SessionModel string
}

// PermissionPolicy answers permission requests during unattended work.
type PermissionPolicy struct {
	// Kinds maps an ACP tool kind (read, edit, delete, move, search, execute,
	// think, fetch, switch_mode, other) to a decision. What is not named is denied.
	Kinds map[string]Decision
}

// Decide returns the decision for a tool kind, and whether the policy names it.
// No kind at all counts as "other", as in the protocol.
func (p PermissionPolicy) Decide(kind string) (d Decision, known bool) {
	if kind == "" {
		kind = "other"
	}
	d, known = p.Kinds[kind]
	if !known {
		return Deny, false
	}
	return d, true
}

// presetFile is the form of a preset in TOML.
type presetFile struct {
	Name           string            `toml:"name"`
	Summary        string            `toml:"summary"`
	InstallHint    string            `toml:"install_hint"`
	Command        string            `toml:"command"`
	Args           []string          `toml:"args"`
	Env            map[string]string `toml:"env"`
	Mode           string            `toml:"mode"`
	InitTimeout    string            `toml:"init_timeout"`
	SessionTimeout string            `toml:"session_timeout"`
	CancelTimeout  string            `toml:"cancel_timeout"`
	VersionArgs    []string          `toml:"version_args"`
	SharedSessions bool              `toml:"shared_sessions"`
	ProcessPerRun  bool              `toml:"process_per_run"`
	Resume         string            `toml:"resume"`
	Usage          string            `toml:"usage"`
	Model          struct {
		Kind          string            `toml:"kind"`
		NeedsProvider bool              `toml:"needs_provider"`
		Wire          string            `toml:"wire"`
		SessionModel  string            `toml:"session_model"`
		Env           map[string]string `toml:"env"`
	} `toml:"model"`
	Permissions map[string]string `toml:"permissions"`
}

// Presets are presets by name.
type Presets map[string]Preset

// Get returns a preset, or errs.NotFound that names those that exist.
func (p Presets) Get(name string) (Preset, error) {
	if v, ok := p[name]; ok {
		return v, nil
	}
	return Preset{}, errs.New(errs.NotFound, "no agent preset %q", name).WithHint("there are: %s", strings.Join(p.Names(), ", "))
}

// Names returns the names in order.
func (p Presets) Names() []string { return slices.Sorted(maps.Keys(p)) }

// LoadPresets returns the built-in presets, and over them those of the *.toml
// files in extraDir ("" for none; a directory that does not exist is an
// error). A file whose name equals a built-in one replaces it whole. Any bad
// file is errs.Invalid, with the file and the key.
func LoadPresets(extraDir string) (Presets, error) {
	sub, err := fs.Sub(builtin, "presets")
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "built-in presets")
	}
	all := Presets{}
	if err := all.addDir(sub, "built-in"); err != nil {
		return nil, err
	}
	if extraDir == "" {
		return all, nil
	}
	if err := all.addDir(os.DirFS(extraDir), extraDir); err != nil {
		return nil, err
	}
	return all, nil
}

func (p Presets) addDir(dir fs.FS, label string) error {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "presets directory %s", label)
	}
	from := map[string]string{} // preset name to file, within this directory
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".toml") {
			continue
		}
		file := filepath.Join(label, e.Name())
		data, err := fs.ReadFile(dir, e.Name())
		if err != nil {
			return errs.Wrap(errs.Invalid, err, "preset file %s", file)
		}
		ps, err := ParsePreset(file, data)
		if err != nil {
			return err
		}
		if other, dup := from[ps.Name]; dup {
			return errs.New(errs.Invalid, "%s: name: %q is already the name of %s", file, ps.Name, other)
		}
		from[ps.Name] = file
		p[ps.Name] = ps
	}
	return nil
}

// ParsePreset reads one preset; file is only for messages. Unknown keys,
// values out of range and broken templates are errs.Invalid.
func ParsePreset(file string, data []byte) (Preset, error) {
	if len(data) > maxPresetFile {
		return Preset{}, errs.New(errs.Invalid, "%s: a preset has at most %d bytes", file, maxPresetFile)
	}
	var f presetFile
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return Preset{}, errs.New(errs.Invalid, "%s: %s", file, tomlProblem(err))
	}
	p, err := f.preset()
	if err != nil {
		key, _, _ := strings.Cut(err.Error(), ": ")
		if n := lineOf(data, key); n > 0 {
			return Preset{}, errs.Wrap(errs.Invalid, err, "%s: line %d", file, n)
		}
		return Preset{}, errs.Wrap(errs.Invalid, err, "%s", file)
	}
	return p, nil
}

// tomlProblem turns the library's errors into one line with the key.
func tomlProblem(err error) string {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var keys []string
		for _, e := range strict.Errors {
			row, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%s (line %d)", strings.Join(e.Key(), "."), row))
		}
		return "unknown key " + strings.Join(keys, ", ")
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, col := de.Position()
		at := fmt.Sprintf("line %d, column %d: ", row, col)
		if key := strings.Join(de.Key(), "."); key != "" {
			at += key + ": "
		}
		return at + strings.TrimPrefix(de.Error(), "toml: ")
	}
	return err.Error()
}

func (f presetFile) preset() (Preset, error) {
	p := Preset{
		Name: f.Name, Summary: f.Summary, InstallHint: f.InstallHint,
		Command: f.Command, Args: f.Args, Env: f.Env, Mode: f.Mode,
		Model:       ModelConfig{Kind: f.Model.Kind, NeedsProvider: f.Model.NeedsProvider, Wire: cmp.Or(f.Model.Wire, api.WireChat), SessionModel: f.Model.SessionModel, Env: f.Model.Env},
		Permissions: PermissionPolicy{Kinds: map[string]Decision{}},
		Traits: Traits{VersionArgs: f.VersionArgs, SharedSessions: f.SharedSessions, ProcessPerRun: f.ProcessPerRun,
			Resume: cmp.Or(f.Resume, ResumeSession), Usage: cmp.Or(f.Usage, UsageNone)},
	}
	if !regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`).MatchString(p.Name) {
		return p, fmt.Errorf("name: %q is not a lower-case name of at most 32 letters, digits, - and _", clip(p.Name, 64))
	}
	if p.Command == "" {
		return p, errors.New("command: missing")
	}
	if strings.ContainsRune(p.Command, '/') && !filepath.IsAbs(p.Command) {
		return p, fmt.Errorf("command: %q must be a name in PATH or an absolute path", clip(p.Command, 128))
	}
	for _, s := range slices.Concat(p.Args, p.VersionArgs, []string{p.Command}) {
		if strings.ContainsRune(s, 0) {
			return p, errors.New("command or args: contains a NUL byte")
		}
	}
	if err := p.Traits.check(); err != nil {
		return p, err
	}
	if err := checkEnv("env", p.Env); err != nil {
		return p, err
	}
	if err := p.Model.check(); err != nil {
		return p, err
	}
	if p.SharedSessions && p.Model.NeedsProvider && p.Model.SessionModel == "" {
		return p, errors.New("shared_sessions: model.session_model must say how a session of a shared process names its own model")
	}
	for _, t := range []struct {
		key, text string
		def       time.Duration
		to        *time.Duration
	}{
		{"init_timeout", f.InitTimeout, 30 * time.Second, &p.InitTimeout},
		{"session_timeout", f.SessionTimeout, 60 * time.Second, &p.SessionTimeout},
		{"cancel_timeout", f.CancelTimeout, 10 * time.Second, &p.CancelTimeout},
	} {
		d, err := timeout(t.text, t.def)
		if err != nil {
			return p, fmt.Errorf("%s: %w", t.key, err)
		}
		*t.to = d
	}
	return p, p.Permissions.fill(f.Permissions)
}

func (t Traits) check() error {
	if t.Resume != ResumeSession && t.Resume != ResumeCheckpoint {
		return fmt.Errorf("resume: %q is neither %q nor %q", clip(t.Resume, 64), ResumeSession, ResumeCheckpoint)
	}
	if t.Usage != UsageNone && t.Usage != UsageLast && t.Usage != UsageExact {
		return fmt.Errorf("usage: %q is none of %q, %q, %q", clip(t.Usage, 64), UsageNone, UsageLast, UsageExact)
	}
	if t.ProcessPerRun && !t.SharedSessions {
		return errors.New("process_per_run: without shared_sessions each run has a process of its own anyway")
	}
	return nil
}

func timeout(s string, def time.Duration) (time.Duration, error) {
	if s == "" {
		return def, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 100*time.Millisecond || d > time.Hour {
		return 0, fmt.Errorf("%q is not a duration from 100ms to 1h, such as \"30s\"", clip(s, 64))
	}
	return d, nil
}

func (p PermissionPolicy) fill(from map[string]string) error {
	kinds := []string{"read", "edit", "delete", "move", "search", "execute", "think", "fetch", "switch_mode", "other"}
	for _, k := range slices.Sorted(maps.Keys(from)) {
		if !slices.Contains(kinds, k) {
			return fmt.Errorf("permissions.%s: not a kind of tool; there are: %s", clip(k, 64), strings.Join(kinds, ", "))
		}
		d := Decision(from[k])
		if d != Allow && d != Deny {
			return fmt.Errorf("permissions.%s: %q is neither \"allow\" nor \"deny\"", k, clip(from[k], 64))
		}
		p.Kinds[k] = d
	}
	return nil
}

func checkEnv(key string, env map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") {
			return fmt.Errorf("%s: %q is not the name of a variable", key, clip(k, 64))
		}
		if strings.ContainsRune(env[k], 0) {
			return fmt.Errorf("%s.%s: contains a NUL byte", key, clip(k, 64))
		}
	}
	return nil
}
