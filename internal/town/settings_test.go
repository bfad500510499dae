package town

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTheTableOfSettings(t *testing.T) {
	last := ""
	for _, s := range Table() {
		if s.Key <= last {
			t.Errorf("%s stands after %s", s.Key, last)
		}
		last = s.Key
		if s.kind != kindString && s.check(s.Default) != nil {
			t.Errorf("the default of %s is refused: %v", s.Key, s.check(s.Default))
		}
		if s.Help == "" || len(s.Levels) == 0 {
			t.Errorf("%s has no help or levels", s.Key)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, c := range []struct {
		level      Level
		key, value string
		ok         bool
	}{
		{LevelTown, "lease", "90s", true}, {LevelTown, "lease", "499ms", false}, {LevelTown, "lease", "2h", false},
		{LevelTown, "lease", "90", false}, {LevelTown, "lease", "-90s", false}, {LevelRig, "lease", "90s", false},
		{LevelBead, "work.max_attempts", "1", true}, {LevelBead, "work.max_attempts", "0", false}, {LevelBead, "work.max_attempts", "101", false},
		{LevelBead, "work.max_attempts", "1e1", false}, {LevelServer, "max_awake", "3", true}, {LevelTown, "max_awake", "3", false},
		{LevelRig, "merge.mode", "branch", true}, {LevelRig, "merge.mode", "Branch", false},
		{LevelRig, "commit.signoff", "true", true}, {LevelRig, "commit.signoff", "yes", false},
		{LevelRig, "work.backoff", "1s, 2s", true}, {LevelRig, "work.backoff", "1s,,2s", false}, {LevelRig, "work.backoff", "1s,25h", false},
		{LevelRig, "commit.author", "Ann <a@b>", true}, {LevelRig, "commit.author", "Ann", false}, {LevelRig, "commit.author", "Ann <a@b>\nX: y", false},
		{LevelTown, "provider", "x\x00", false}, {LevelTown, "provider", strings.Repeat("x", 4097), false}, {LevelTown, "no.such", "x", false},
		{LevelTown, "notify.url", "https://hooks.example/x?key=1", true}, {LevelTown, "notify.url", "", true}, {LevelTown, "notify.url", "hooks.example", false},
		{LevelTown, "notify.url", "file:///etc/passwd", false}, {LevelTown, "notify.url", "https://", false}, {LevelTown, "notify.url", "http://a b/", false},
	} {
		if err := CheckSetting(c.level, c.key, c.value); (err == nil) != c.ok {
			t.Errorf("%s %s=%q gave %v", c.level, c.key, c.value, err)
		}
	}
}

func TestTheMostSpecificValueHolds(t *testing.T) {
	d := newDriver(t)
	d.town.SetServer(Settings{"work.max_attempts": "2", "lease": "nonsense"})
	d.rig()
	d.bead("web-aaaaa", func(c *CreateBead) { c.Staged = true })
	want := func(n int, from Level) {
		t.Helper()
		v := d.town.resolve("work.max_attempts", d.town.beads["web-aaaaa"], d.town.rigs["web"])
		if d.town.number("work.max_attempts", d.town.beads["web-aaaaa"], d.town.rigs["web"]) != n || v.From != from {
			t.Fatalf("%+v, want %d of the %s", v, n, from)
		}
	}
	want(2, LevelServer)
	d.set(Settings{"work.max_attempts": "3"})
	want(3, LevelTown)
	d.do(SetRig{By: "ann", Rig: "web", Set: Settings{"work.max_attempts": "4"}})
	want(4, LevelRig)
	d.do(EditBead{By: "ann", Bead: "web-aaaaa", Set: Settings{"work.max_attempts": "6"}})
	want(6, LevelBead)
	d.town.beads["web-aaaaa"].Settings["work.max_attempts"] = "many" // a damaged row
	want(4, LevelRig)
	d.town.beads["web-aaaaa"].Settings["work.max_attempts"] = "6"
	d.do(EditBead{By: "ann", Bead: "web-aaaaa", Unset: []string{"work.max_attempts"}})
	d.do(SetRig{By: "ann", Rig: "web", Unset: []string{"work.max_attempts"}})
	d.do(SetTown{By: "ann", Unset: []string{"work.max_attempts"}})
	want(2, LevelServer)
	if d.town.duration("lease", nil, nil) != 90*time.Second {
		t.Error("a value that can't be read is not passed over")
	}
	values, err := d.town.ShowSettings("web")
	if err != nil || len(values) != len(Table()) || !slices.Contains(values, Value{"agent", "scripted", LevelRig}) {
		t.Fatalf("%v %v", values, err)
	}
	if _, err := d.town.ShowSettings("nope"); err == nil {
		t.Fatal("an unknown rig has settings")
	}
}

func TestTheNearestKeyIsNamed(t *testing.T) {
	for wrong, right := range map[string]string{"leese": "lease", "sandbox.grase": "sandbox.grace", "max-awake": "max_awake", "": "lists", "nonsense": "lists"} {
		if _, err := Lookup(wrong); err == nil || !strings.Contains(err.Error(), right) {
			t.Errorf("%q gave %v", wrong, err)
		}
	}
}

func TestThePausesOfABeadEndWithTheLast(t *testing.T) {
	town := New("tn1", "acme", "", At(epoch0))
	for n, want := range map[int]time.Duration{0: 30 * time.Second, 1: 30 * time.Second, 2: time.Minute, 5: 10 * time.Minute, 99: 10 * time.Minute} {
		if got := town.workBackoff(n, nil, nil); got != want {
			t.Errorf("pause %d is %s, want %s", n, got, want)
		}
	}
}

func TestGatesOfARigAreChecked(t *testing.T) {
	ok := Gate{Name: "test", Command: "true"}
	for name, gates := range map[string][]Gate{
		"a name like an option": {{Name: "-x", Command: "true"}}, "no command": {{Name: "x", Command: " "}}, "the same twice": {ok, ok},
		"a negative limit": {{Name: "x", Command: "y", Timeout: -1}}, "a limit of two days": {{Name: "x", Command: "y", Timeout: 48 * time.Hour}},
		"a NUL": {{Name: "x", Command: "y\x00"}}, "too many": slices.Repeat([]Gate{ok}, 33),
	} {
		if err := CheckGates(gates); !invalid(err) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	if err := CheckGates([]Gate{ok, {Name: "lint", Command: "a\nb", Timeout: day}}); err != nil {
		t.Error(err)
	}
}

func TestRigsAreCheckedBeforeTheyAreAdded(t *testing.T) {
	d := newDriver(t)
	d.rig()
	ok := Rig{Name: "api", Prefix: "api", URL: "/x", Target: "main", Tip: commitName(0)}
	for name, change := range map[string]func(*Rig){
		"a taken name": func(r *Rig) { r.Name = "web" }, "a taken prefix": func(r *Rig) { r.Prefix = "web" },
		"a name like a path": func(r *Rig) { r.Name = "../x" }, "a prefix like an option": func(r *Rig) { r.Prefix = "-x" },
		"no URL": func(r *Rig) { r.URL = "" }, "a URL of two lines": func(r *Rig) { r.URL = "a\nb" }, "no target": func(r *Rig) { r.Target = " " },
		"a setting of the server": func(r *Rig) { r.Settings = Settings{"max_awake": "1"} }, "a bad gate": func(r *Rig) { r.Gates = []Gate{{}} },
	} {
		r := ok
		change(&r)
		if err := d.try(AddRig{By: "ann", Rig: r}); !invalid(err) && !conflict(err) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	d.do(AddRig{By: "ann", Rig: ok})
	for _, in := range []Input{SetRig{By: "ann", Rig: "web", Set: Settings{"lease": "1m"}}, SetRig{By: "ann", Rig: "web", Unset: []string{"x"}},
		SetRig{By: "ann", Rig: "web", Gates: &[]Gate{{}}}, SetTown{By: "ann", Set: Settings{"max_awake": "1"}}} {
		d.refused(in, invalid)
	}
}

func FuzzCheckSetting(f *testing.F) {
	for _, s := range Table() {
		f.Add(s.Key, s.Default)
	}
	f.Add("lease", "9223372036854775807ns")
	f.Add("work.backoff", ",")
	f.Add("commit.author", "a <b>")
	f.Fuzz(func(t *testing.T, key, value string) {
		for _, l := range []Level{LevelBead, LevelRig, LevelTown, LevelServer} {
			if CheckSetting(l, key, value) != nil {
				continue
			}
			town := New("tn1", "acme", "", 1)
			town.SetServer(Settings{key: value})
			if v := town.resolve(key, nil, nil); v.Value != value || v.From != LevelServer {
				t.Fatalf("%s=%q was accepted and doesn't hold: %+v", key, value, v)
			}
			town.use(t, epoch0)
		}
	})
}

// use calls everything that reads settings: what was accepted must never panic.
func (t *Town) use(tb testing.TB, at time.Time) {
	tb.Helper()
	for _, s := range table {
		switch s.kind {
		case kindDuration:
			t.duration(s.Key, nil, nil)
		case kindInt:
			t.number(s.Key, nil, nil)
		case kindString, kindBool, kindMode, kindIdentity, kindURL, kindDurations:
			t.text(s.Key, nil, nil)
		}
	}
	for n := range 8 {
		t.workBackoff(n, nil, nil)
		t.backoff(n, "x")
	}
	if err := t.Handle(at, Tick{}); err != nil {
		tb.Fatal(err)
	}
}
