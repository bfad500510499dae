package cli

import (
	"context"
	"errors"
	"fmt"
	"go/format"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"gastown/internal/agent/scripted"
	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
	"gastown/internal/town"
)

func TestGatesAreReadFromFlags(t *testing.T) {
	t.Parallel()
	got, err := parseGates([]string{"test=go test ./...", " lint = a=b "}, time.Minute)
	want := []api.Gate{{Name: "test", Command: "go test ./...", TimeoutMS: 60000}, {Name: "lint", Command: "a=b", TimeoutMS: 60000}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range [][]string{{"test"}, {"=x"}, {"test="}, {"a b=c"}, {"a=1", "a=2"}} {
		if _, err := parseGates(bad, 0); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q was taken: %v", bad, err)
		}
	}
	for _, d := range []time.Duration{-1, time.Second} {
		if _, err := parseGates(nil, d); !errs.Is(err, errs.Invalid) {
			t.Errorf("--gate-timeout %s without a gate was taken", d)
		}
	}
}

func FuzzGates(f *testing.F) {
	f.Add("test=go test ./...")
	f.Add("=")
	f.Fuzz(func(t *testing.T, flag string) {
		got, err := parseGates([]string{flag}, 0)
		if err != nil {
			return
		}
		if len(got) != 1 || got[0].Name == "" || got[0].Command == "" || strings.ContainsAny(got[0].Name, "= \t") {
			t.Errorf("%q became %+v", flag, got)
		}
	})
}

func TestAssignmentsAreCheckedAgainstTheTable(t *testing.T) {
	t.Parallel()
	got, err := assignments("--set", []string{"commit.trailers=A: b=c", "model="})
	if err != nil || got["commit.trailers"] != "A: b=c" || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{{"model"}, {"=x"}, {"model=a", "model=b"}, {"modle=a"}} {
		if _, err := assignments("--set", bad); !errs.Is(err, errs.Invalid) {
			t.Errorf("%q was taken: %v", bad, err)
		}
	}
}

func TestTheConfigurationFileHoldsSettings(t *testing.T) {
	t.Parallel()
	got, err := parseConfig("c.toml", []byte("max_awake = 3\nagent = \"scripted\"\n\"lease\" = \"2m\"\nwork.backoff = [\"1s\", \"2s\"]\n[sandbox]\ngrace = \"5s\"\n[commit]\nsignoff = true\n"))
	want := town.Settings{"max_awake": "3", "agent": "scripted", "lease": "2m", "work.backoff": "1s,2s", "sandbox.grace": "5s", "commit.signoff": "true"}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v", got, err)
	}
	for text, word := range map[string]string{
		"max_awke = 3":             "did you mean max_awake?",
		"max_awake = \"many\"":     "max_awake",
		"max_awake = 1.5":          "max_awake",
		"max_awake = ":             "line 1",
		"[sandbox]\ngrace = \"x\"": "sandbox.grace",
		"[agent]\nx = 1":           "agent.x",
	} {
		if _, err := parseConfig("c.toml", []byte(text)); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "c.toml") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add("max_awake = 3\n[sandbox]\ngrace = \"5s\"")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseConfig("c.toml", []byte(text))
		if err != nil {
			return
		}
		for k, v := range got {
			if err := town.CheckSetting(town.LevelServer, k, v); err != nil {
				t.Errorf("%q was taken: %v", text, err)
			}
		}
	})
}

func TestTimesAreToldRelativeToNow(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a := &invocation{env: Env{Now: func() time.Time { return now }}}
	for d, want := range map[time.Duration]string{
		0: "now", 500 * time.Millisecond: "now", 1500 * time.Millisecond: "1.5s ago", 59 * time.Second: "59s ago", 3 * time.Minute: "3m ago",
		90 * time.Minute: "1h30m ago", 49 * time.Hour: "2d01h ago", -2 * time.Minute: "in 2m",
	} {
		if got := a.ago(now.Add(-d)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if got := a.ago(time.Time{}); got != "" {
		t.Errorf("no time is %q", got)
	}
}

func TestColourNeedsATerminalAndNobodyWhoDislikesIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		terminal bool
		noColor  string
		want     bool
	}{{true, "", true}, {false, "", false}, {true, "1", false}} {
		a := &invocation{env: Env{Terminal: c.terminal, Getenv: func(k string) string { return map[string]string{"NO_COLOR": c.noColor}[k] }}}
		if got := strings.Contains(a.paint(red, "x"), "\x1b"); got != c.want {
			t.Errorf("%+v: coloured is %v", c, got)
		}
	}
}

func TestTextOfStrangersCanNotCommandTheTerminal(t *testing.T) {
	t.Parallel()
	got := clean("a\x1b]0;x\x07\r\nb\tc\u202e\u009b\xff")
	if got != "a�]0;x�\nb\tc��"+"�" {
		t.Errorf("%q", got)
	}
	if got := cell("a\nb\tc  d"); got != "a b c d" {
		t.Errorf("%q", got)
	}
}

func TestAHintIsFoundWhereverItIs(t *testing.T) {
	t.Parallel()
	inner := errs.New(errs.Conflict, "in use").WithHint("stop it")
	for _, err := range []error{inner, errs.Wrap(errs.Internal, inner, "opening"), fmt.Errorf("x: %w", inner), errors.Join(errors.New("a"), inner)} {
		if got := hintOf(err); got != "stop it" {
			t.Errorf("%v: %q", err, got)
		}
	}
	if got := hintOf(errors.Join(errors.New("a"), context.Canceled)); got != "" {
		t.Errorf("%q", got)
	}
}

func TestShellWords(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"/tmp/a-b.git": "/tmp/a-b.git", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'"} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func TestEveryBeadOfTheDemoIsUnderstoodByTheScriptedAgent(t *testing.T) {
	t.Parallel()
	tasks := sampleTasks()
	if len(tasks) < 6 {
		t.Fatalf("there are %d", len(tasks))
	}
	known := map[string]bool{}
	for _, task := range append(tasks, guestTasks()...) {
		blocks, err := scripted.Blocks(task.body)
		if err != nil || task.title == "" || strings.Contains(task.title, "blocked-by") {
			t.Errorf("%s: %q, %v", task.name, task.title, err)
		}
		for attempt := 1; attempt <= 3; attempt++ {
			if _, ok := scripted.Choose(blocks, attempt, 0); !ok {
				t.Errorf("%s has no block for attempt %d", task.name, attempt)
			}
		}
		if task.after != "" && !known[task.after] {
			t.Errorf("%s waits for %s, which does not come before it", task.name, task.after)
		}
		known[task.name] = true
	}
}

func TestTheSampleRepositoryIsFormatted(t *testing.T) {
	t.Parallel()
	for _, f := range txtar.Parse(sampleRepository).Files {
		if filepath.Ext(f.Name) != ".go" {
			continue
		}
		if got, err := format.Source(f.Data); err != nil || string(got) != string(f.Data) {
			t.Errorf("%s: not as gofmt writes it (%v)", f.Name, err)
		}
	}
}

func TestTheStoryEndsWhenAllIsClosedAndTheSandboxSleeps(t *testing.T) {
	t.Parallel()
	a := &invocation{env: Env{Getenv: os.Getenv, Now: time.Now}}
	var out strings.Builder
	story := newStory(&demo{a: a, out: &out, beads: []api.Bead{{ID: "a"}, {ID: "b"}}, names: map[string]string{"a": "first"}})
	tell := func(kind, subject string) error {
		return story.event(api.LedgerEntry{Kind: kind, Subject: subject, At: time.Now()})
	}
	for _, e := range [][2]string{{"run.started", "a"}, {"sandbox.starting", "t"}, {"bead.closed", "a"}, {"sandbox.asleep", "t"}, {"sandbox.starting", "t"}, {"bead.closed", "b"}} {
		if err := tell(e[0], e[1]); err != nil {
			t.Fatalf("it ended at %v: %v", e, err)
		}
	}
	if err := tell("sandbox.asleep", "t"); !errors.Is(err, client.ErrStop) || story.failure() != nil {
		t.Errorf("%v, %v", err, story.failure())
	}
	if !strings.Contains(out.String(), "“first”") {
		t.Errorf("the story was %q", out.String())
	}
	story = newStory(&demo{a: a, out: &out, beads: []api.Bead{{ID: "a"}}})
	if err := tell("bead.failed", "a"); !errors.Is(err, client.ErrStop) || story.failure() == nil {
		t.Errorf("a failed bead: %v, %v", err, story.failure())
	}
}
