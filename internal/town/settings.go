package town

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

// Settings are values by key, as a person wrote them. Every key is in the
// table below; unknown ones are refused.
type Settings map[string]string

// Level is where a setting may be given.
type Level string

// The levels, the most specific first.
const (
	LevelBead    Level = "bead"
	LevelRig     Level = "rig"
	LevelTown    Level = "town"
	LevelServer  Level = "server"
	LevelDefault Level = "default"
)

type settingKind int

const (
	kindString settingKind = iota
	kindDuration
	kindDurations // comma-separated
	kindInt
	kindBool
	kindMode
	kindIdentity
	kindURL // http or https, or empty
	kindMoney
	kindPeriod
	kindHosts // comma-separated
)

// Setting describes one key.
type Setting struct {
	Key     string  `json:"key"`
	Default string  `json:"default"`
	Levels  []Level `json:"levels"`
	Help    string  `json:"help"`
	kind    settingKind
	min     int64 // milliseconds or count
	max     int64
}

func ms(d time.Duration) int64 { return int64(d / time.Millisecond) }

var (
	everywhere = []Level{LevelBead, LevelRig, LevelTown, LevelServer}
	rigUp      = []Level{LevelRig, LevelTown, LevelServer}
	townUp     = []Level{LevelTown, LevelServer}
	serverOnly = []Level{LevelServer}
)

const day = 24 * time.Hour

// table lists every setting. Intervals and limits are those of the design; the
// backoffs can be shortened for demos and tests.
var table = []Setting{
	{"agent", "opencode", everywhere, "preset of the agent that does the work", kindString, 0, 0},
	{"alarm.active_interval", "5s", townUp, "how often an awake town is looked at", kindDuration, 50, ms(time.Hour)},
	{"alarm.idle_interval", "5m", townUp, "how often an asleep town is looked at, read-only", kindDuration, 100, ms(day)},
	{"branch.poll_interval", "5m", rigUp, "mode branch: how often the target is checked for the work", kindDuration, 100, ms(day)},
	{"budget.bead.awake", "0", everywhere, "awake time that runs and gates of one bead may use; 0 is no limit", kindDuration, 0, ms(10 * 365 * day)},
	{"budget.bead.cost", "0", everywhere, "dollars that one bead may cost; 0 is no limit", kindMoney, 0, 0},
	{"budget.bead.runs", "0", everywhere, "runs that may be started for one bead; 0 is no limit", kindInt, 0, 1_000_000_000},
	{"budget.bead.tokens", "0", everywhere, "tokens that one bead may use; 0 is no limit", kindInt, 0, 1_000_000_000_000_000},
	{"budget.server.awake", "0", serverOnly, "awake time of all sandboxes together in a day; 0 is no limit", kindDuration, 0, ms(10 * 365 * day)},
	{"budget.server.cost", "0", serverOnly, "dollars that all towns together may cost in a day; 0 is no limit", kindMoney, 0, 0},
	{"budget.server.runs", "0", serverOnly, "runs that all towns together may start in a day; 0 is no limit", kindInt, 0, 1_000_000_000},
	{"budget.server.tokens", "0", serverOnly, "tokens that all towns together may use in a day; 0 is no limit", kindInt, 0, 1_000_000_000_000_000},
	{"budget.town.awake", "0", townUp, "awake time of the sandbox of a town in a period; 0 is no limit", kindDuration, 0, ms(10 * 365 * day)},
	{"budget.town.cost", "0", townUp, "dollars that a town may cost in a period; 0 is no limit", kindMoney, 0, 0},
	{"budget.town.period", "day", townUp, "what the budget of a town is for: day, month (both in UTC) or total", kindPeriod, 0, 0},
	{"budget.town.runs", "0", townUp, "runs that a town may start in a period; 0 is no limit", kindInt, 0, 1_000_000_000},
	{"budget.town.tokens", "0", townUp, "tokens that a town may use in a period; 0 is no limit", kindInt, 0, 1_000_000_000_000_000},
	{"checkpoint.interval", "45s", rigUp, "how often work in progress leaves the sandbox", kindDuration, 100, ms(time.Hour)},
	{"checkpoint.max_file_mb", "50", rigUp, "larger untracked files are left out of checkpoints", kindInt, 1, 4096},
	{"commit.author", "Gastown <gastown@localhost>", rigUp, "author of merge commits and of agents' commits", kindIdentity, 0, 0},
	{"commit.signoff", "false", rigUp, "add Signed-off-by to merge commits; agents are told to, too", kindBool, 0, 0},
	{"commit.trailers", "", rigUp, "more trailers for merge commits and agents' commits, as 'Key: value' separated by ';'", kindString, 0, 0},
	{"fetch.interval", "1m", rigUp, "how old the known tip of the target may be when work starts", kindDuration, 0, ms(day)},
	{"gate.timeout", "15m", rigUp, "time limit of a gate that has none of its own", kindDuration, 100, ms(day)},
	{"hub.max_mb", "20480", townUp, "how much the repositories of a town may take on the server before pushes are refused; 0 is no limit", kindInt, 0, 1_000_000_000},
	{"infra.backoff_max", "15m", townUp, "longest pause after failures of infrastructure", kindDuration, 10, ms(day)},
	{"infra.backoff_min", "30s", townUp, "first pause after a failure of infrastructure; doubles", kindDuration, 1, ms(day)},
	{"lease", "90s", townUp, "how long a run or a sandbox may be silent", kindDuration, 500, ms(time.Hour)},
	{"ledger.retention", "0", serverOnly, "how long the history of a town is kept; 0 is for ever", kindDuration, 0, ms(10 * 365 * day)},
	{"limit.max_wait", "24h", townUp, "longest pause for the rate limit or quota of a model provider, whatever it states", kindDuration, 1000, ms(7 * day)},
	{"max_awake", "20", serverOnly, "sandboxes that may be awake at once", kindInt, 1, 1_000_000},
	{"max_starting", "4", serverOnly, "sandboxes that may be starting at once", kindInt, 1, 1_000_000},
	{"merge.max_conflicts", "20", rigUp, "conflicts with newer commits after which a bead fails", kindInt, 1, 1000},
	{"merge.mode", "direct", rigUp, "direct: push to the target; branch: push the branch and wait", kindMode, 0, 0},
	{"model", "", everywhere, "model for agents that need one", kindString, 0, 0},
	{hostsKey, "", rigUp, "hosts that agents and gates may reach through the server: names, *.names, name:port, addresses; separated by commas", kindHosts, 0, 0},
	{"notify.command", "false", serverOnly, "the server runs a command for events that need a person", kindBool, 0, 0},
	{"notify.url", "", townUp, "webhook for events that need a person", kindURL, 0, 0},
	{"polecats.per_rig", "4", rigUp, "runs at once on one rig", kindInt, 0, 1000},
	{"polecats.per_town", "16", townUp, "runs at once in one town", kindInt, 0, 1000},
	{"process_per_run", "false", everywhere, "each run gets an agent process of its own, even of agents that can serve several runs with one", kindBool, 0, 0},
	{"provider", "", everywhere, "model provider for agents that need one", kindString, 0, 0},
	{"role.polecat.agent", "", rigUp, "preset of the agent for polecats, over agent", kindString, 0, 0},
	{"role.polecat.model", "", rigUp, "model for polecats, over model", kindString, 0, 0},
	{"role.polecat.provider", "", rigUp, "model provider for polecats, over provider", kindString, 0, 0},
	{"run.max_disk_mb", "-1", everywhere, "how much one run may add to its disk; -1 is three quarters of what is free when it begins, 0 is no limit", kindInt, -1, 1_000_000_000},
	{"run.max_memory_mb", "-1", everywhere, "memory of all processes of one run; -1 is three quarters of what the sandbox has, 0 is no limit", kindInt, -1, 1_000_000_000},
	{"run.max_processes", "-1", everywhere, "processes and threads of one run; -1 is half of what the sandbox may have, 0 is no limit", kindInt, -1, 1_000_000},
	{"run.time_limit", "2h", everywhere, "longest time of one run", kindDuration, 1000, ms(7 * day)},
	{"run.turn_nudges", "2", everywhere, "reminders to an agent that ends its turn without a verdict", kindInt, 0, 10},
	{"sandbox.drain_timeout", "30s", townUp, "how long a draining sandbox may take to checkpoint", kindDuration, 10, ms(time.Hour)},
	{"sandbox.grace", "2m", townUp, "how long a sandbox stays awake after its last hold", kindDuration, 0, ms(day)},
	{"sandbox.hello_timeout", "1m", townUp, "how long a started sandbox may take to say hello", kindDuration, 100, ms(time.Hour)},
	{"sandbox.stop_grace", "10s", townUp, "between SIGTERM and SIGKILL", kindDuration, 0, ms(time.Hour)},
	{"stuck.nudge_after", "15m", everywhere, "no sign of life for so long: nudge", kindDuration, 100, ms(7 * day)},
	{"stuck.restart_after", "45m", everywhere, "no sign of life for so long: restart from the checkpoint, once", kindDuration, 100, ms(7 * day)},
	{"token.refresh_interval", "1h", townUp, "least time between renewals of an awake sandbox's token", kindDuration, 100, ms(7 * time.Hour)},
	{"transcript.retention", "720h", serverOnly, "how long transcripts of runs are kept; 0 is for ever", kindDuration, 0, ms(10 * 365 * day)},
	{"work.backoff", "30s,1m,2m,5m,10m", rigUp, "pauses after charged failures of a bead", kindDurations, 0, ms(day)},
	{"work.max_attempts", "5", everywhere, "charged failures after which a bead fails", kindInt, 1, 100},
}

var byKey = func() map[string]int {
	m := make(map[string]int, len(table))
	for i, s := range table {
		m[s.Key] = i
	}
	return m
}()

// Table returns all settings, sorted by key.
func Table() []Setting { return slices.Clone(table) }

// Lookup returns the setting of a key, or an Invalid error that names the
// nearest key.
func Lookup(key string) (Setting, error) {
	if i, ok := byKey[key]; ok {
		return table[i], nil
	}
	best, bestDist := "", 1<<30
	for _, s := range table {
		if d := distance(key, s.Key); d < bestDist {
			best, bestDist = s.Key, d
		}
	}
	e := errs.New(errs.Invalid, "unknown setting %q", clip(key, 60))
	if bestDist > max(2, len(key)/3) {
		return Setting{}, e.WithHint("gastown town settings TOWN lists those that exist")
	}
	return Setting{}, e.WithHint("did you mean %s?", best)
}

// CheckSetting validates a value for a key at a level.
func CheckSetting(level Level, key, value string) error {
	s, err := Lookup(key)
	if err != nil {
		return err
	}
	if !slices.Contains(s.Levels, level) {
		return errs.New(errs.Invalid, "setting %s can't be given for a %s", key, level).WithHint("it may be given for: %v", s.Levels)
	}
	return s.check(value)
}

func (s Setting) check(value string) error {
	if err := cleanText("value of "+s.Key, value, 4096); err != nil {
		return err
	}
	bad := func(want string) error {
		return errs.New(errs.Invalid, "setting %s: %q is not %s", s.Key, clip(value, 60), want)
	}
	switch s.kind {
	case kindDuration:
		return s.checkDuration(value)
	case kindDurations:
		for part := range strings.SplitSeq(value, ",") {
			if err := s.checkDuration(strings.TrimSpace(part)); err != nil {
				return err
			}
		}
	case kindInt:
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < s.min || n > s.max {
			return bad(fmt.Sprintf("a number from %d to %d", s.min, s.max))
		}
	case kindBool:
		if value != "true" && value != "false" {
			return bad("true or false")
		}
	case kindMode:
		if m := MergeMode(value); m != ModeDirect && m != ModeBranch {
			return bad("direct or branch")
		}
	case kindMoney:
		if _, ok := ParseMoney(value); !ok {
			return bad("dollars, such as 12.50")
		}
	case kindPeriod:
		if value != "day" && value != "month" && value != "total" {
			return bad("day, month or total")
		}
	case kindIdentity:
		if _, _, ok := SplitIdentity(value); !ok {
			return bad("'Name <address>'")
		}
	case kindHosts:
		_, err := ParseHosts(value)
		return err
	case kindURL:
		// The value may hold a secret: it is not repeated.
		if u, err := url.Parse(value); value != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "") {
			return errs.New(errs.Invalid, "setting %s: the value is not an http or https URL", s.Key).WithHint("give it like https://hooks.example/gastown")
		}
	}
	return nil
}

func (s Setting) checkDuration(value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || ms(d) < s.min || ms(d) > s.max {
		return errs.New(errs.Invalid, "setting %s: %q is not a duration from %s to %s", s.Key, clip(value, 60),
			time.Duration(s.min)*time.Millisecond, time.Duration(s.max)*time.Millisecond)
	}
	return nil
}

// SplitIdentity splits "Name <address>".
func SplitIdentity(s string) (name, address string, ok bool) {
	name, rest, found := strings.Cut(s, " <")
	address, tail, closed := strings.Cut(rest, ">")
	ok = found && closed && tail == "" && name != "" && address != "" && !strings.ContainsAny(name+address, "<>\n\r\x00")
	return name, address, ok
}

// Value is a setting's value and where it came from.
type Value struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	From  Level  `json:"from"`
}

// resolve finds the most specific value of a key. A value that can't be parsed
// (from a hand-damaged row) is passed over.
func (t *Town) resolve(key string, b *Bead, r *Rig) Value {
	s, err := Lookup(key)
	if err != nil {
		panic(err) // a rule names a key that is not in the table
	}
	try := func(m Settings, l Level) (Value, bool) {
		v, ok := m[key]
		return Value{key, v, l}, ok && s.check(v) == nil
	}
	if b != nil {
		if v, ok := try(b.Settings, LevelBead); ok {
			return v
		}
	}
	if r != nil {
		if v, ok := try(r.Settings, LevelRig); ok {
			return v
		}
	}
	if v, ok := try(t.info.Settings, LevelTown); ok {
		return v
	}
	if v, ok := try(t.server, LevelServer); ok {
		return v
	}
	return Value{key, s.Default, LevelDefault}
}

// ShowSettings returns every setting as it holds for a rig ("" for the town
// itself), sorted by key.
func (t *Town) ShowSettings(rig string) ([]Value, error) {
	var r *Rig
	if rig != "" {
		if r = t.rigs[rig]; r == nil {
			return nil, noRig(rig)
		}
	}
	out := make([]Value, 0, len(table))
	for _, s := range table {
		out = append(out, t.resolve(s.Key, nil, r))
	}
	return out, nil
}

func (t *Town) duration(key string, b *Bead, r *Rig) time.Duration {
	d, err := time.ParseDuration(t.resolve(key, b, r).Value)
	if err != nil {
		panic(err) // checked in resolve
	}
	return d
}

func (t *Town) number(key string, b *Bead, r *Rig) int {
	n, err := strconv.Atoi(t.resolve(key, b, r).Value)
	if err != nil {
		panic(err) // checked in resolve
	}
	return n
}

func (t *Town) text(key string, b *Bead, r *Rig) string { return t.resolve(key, b, r).Value }

// workBackoff returns the pause after the n-th charged failure, n from 1.
func (t *Town) workBackoff(n int, b *Bead, r *Rig) time.Duration {
	parts := strings.Split(t.text("work.backoff", b, r), ",")
	d, err := time.ParseDuration(strings.TrimSpace(parts[min(max(n, 1), len(parts))-1]))
	if err != nil {
		panic(err) // checked in resolve
	}
	return d
}

// merged returns s changed by set and unset, or nil when nothing is left.
func (s Settings) merged(set Settings, unset []string) Settings {
	out := maps.Clone(s)
	if out == nil {
		out = Settings{}
	}
	maps.Copy(out, set)
	for _, k := range unset {
		delete(out, k)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// checkSettings validates a change of settings at a level.
func checkSettings(level Level, set Settings, unset []string) error {
	for _, k := range slices.Sorted(maps.Keys(set)) {
		if err := CheckSetting(level, k, set[k]); err != nil {
			return err
		}
	}
	for _, k := range unset {
		if _, err := Lookup(k); err != nil {
			return err
		}
	}
	return nil
}

// distance is the Levenshtein distance, for "did you mean".
func distance(a, b string) int {
	if len(a) > 64 {
		a = a[:64]
	}
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := prev[0]
		prev[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag = prev[j]
			prev[j] = min(cost, prev[j]+1, prev[j-1]+1)
		}
	}
	return prev[len(b)]
}
