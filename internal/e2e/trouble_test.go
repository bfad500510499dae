//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/api"
)

// TestAgentsInTrouble has the real agents meet what providers and machines do to
// them: a town for each agent and case, all of them on one server and begun at
// once. GASTOWN_E2E_CASE picks those whose name contains it.
func TestAgentsInTrouble(t *testing.T) {
	dir := os.Getenv("GASTOWN_TEST_AGENTS")
	if dir == "" {
		t.Skip("GASTOWN_TEST_AGENTS does not name the directory with the agents: run make e2e")
	}
	program, err := exec.LookPath("gastown") // this very program: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	presets := t.TempDir()
	writeAskingPresets(t, presets)
	// As many at once as two cores bear.
	c := startTown(t, program, dir+string(os.PathListSeparator)+os.Getenv("PATH"), nil, "--presets", presets, "--max-awake", "6",
		"--set", "infra.backoff_min=1s", "--set", "infra.backoff_max=2s", "--set", "work.backoff=1s")
	var all []*ordeal
	for _, tr := range troubles() {
		for _, a := range agentKinds() {
			if name := a.preset + " " + tr.name; strings.Contains(name, os.Getenv("GASTOWN_E2E_CASE")) {
				all = append(all, &ordeal{agent: a, trouble: tr, name: name, stalled: make(chan struct{})})
			}
		}
	}
	t.Cleanup(func() {
		for _, o := range all {
			if o.town != nil {
				o.town.t = t
				o.town.run("sleep", o.town.name)
				o.town.asleep()
			}
		}
	})
	for _, o := range all {
		o.begin(t, c)
	}
	for _, o := range all {
		t.Run(o.name, func(t *testing.T) {
			o.town.t = t
			t.Cleanup(func() {
				if t.Failed() {
					o.town.tell()
					t.Log(o.town.run("logs", o.bead))
				}
			})
			o.trouble.check(o, o.landed())
		})
	}
}

// agentKind is a real agent: how its model is reached, and its tool for commands.
type agentKind struct {
	preset, wire, kind string
	base               func(*Model) string
	bash               func(command string) Answer
}

func agentKinds() []agentKind {
	bash := func(tool, argument string, more ...any) func(string) Answer {
		return func(command string) Answer { return Call(tool, append([]any{argument, command}, more...)...)(nil) }
	}
	return []agentKind{
		{"opencode", api.WireChat, "openai-compatible", (*Model).URL, bash("bash", "command", "description", "works on the task")},
		{"claude", api.WireMessages, "anthropic", func(m *Model) string { return strings.TrimSuffix(m.URL(), "/v1") }, bash("Bash", "command")},
		{"codex", api.WireResponses, "openai", (*Model).URL, bash("exec_command", "cmd")},
	}
}

// ordeal is one agent in one case.
type ordeal struct {
	name    string
	agent   agentKind
	trouble trouble
	model   *Model
	town    *realTown
	bead    string
	stalled chan struct{} // closed when the model's answer does not go on
}

// trouble is a case: what the town is set to, what the model answers, what
// happens besides, and what is true of a bead whose work landed all the same.
type trouble struct {
	name     string
	key      string // for names of towns
	asks     bool   // the agent asks for permissions
	settings []string
	script   func(*ordeal) Step
	meddle   func(context.Context, *ordeal) error // nil: nothing happens
	check    func(*ordeal, api.Bead)
}

// writeAskingPresets writes presets of agents that ask whether they may. The
// policy allows commands and denies edits.
func writeAskingPresets(t *testing.T, dir string) {
	t.Helper()
	for name, ask := range map[string][2]string{
		"opencode": {`{"edit": "allow", "bash": "allow"`, `{"edit": "ask", "bash": "ask"`},
		"claude":   {`mode = "bypassPermissions"`, `mode = "default"`},
		"codex":    {`INITIAL_AGENT_MODE = "agent-full-access"`, `INITIAL_AGENT_MODE = "read-only"`},
	} {
		b, err := os.ReadFile("../agent/presets/" + name + ".toml")
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for _, r := range [][2]string{ask, {`edit = "allow"`, `edit = "deny"`}, {`name = "` + name + `"`, `name = "asking-` + name + `"`}} {
			if !strings.Contains(text, r[0]) {
				t.Fatalf("the preset %s has no %s", name, r[0])
			}
			text = strings.Replace(text, r[0], r[1], 1)
		}
		if err := os.WriteFile(filepath.Join(dir, "asking-"+name+".toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// begin gives an agent its model, its town and its work.
func (o *ordeal) begin(t *testing.T, c *realTown) {
	t.Helper()
	o.model = NewScripted(o.trouble.script(o))
	t.Cleanup(o.model.Close)
	name, preset := o.agent.preset+"-"+o.trouble.key, o.agent.preset
	if o.trouble.asks {
		preset = "asking-" + preset
	}
	town := *c
	o.town = &town
	town.name, town.model, town.upstream = name, o.model, filepath.Join(c.root, name+".git")
	c.git("clone", "-q", "--bare", c.upstream, town.upstream)
	key := filepath.Join(c.root, name+".key")
	if err := os.WriteFile(key, []byte(realKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	create := []string{"town", "create", name}
	for _, s := range o.trouble.settings {
		create = append(create, "--set", s)
	}
	var made api.Town
	c.read(&made, create...)
	town.id = made.ID
	// Each kind of token has a price of its own.
	c.run("provider", "add", o.agent.kind, name, "--base-url", o.agent.base(o.model), "--key-file", key, "--model", "house/model-1", "--price", "house/model-1=10,50,1,12.5")
	c.run("rig", "add", "greeter", town.upstream, "--town", name, "--agent", preset, "--provider", name, "--prefix", o.agent.preset[:2]+o.trouble.key[:2], "--gate", "greets=grep -q Gastown greeting.txt")
	var b api.Bead
	c.read(&b, "sling", "Greet Gastown", "--rig", "greeter", "--town", name, "--body", "The greeting in greeting.txt shall name Gastown.")
	o.bead = b.ID
	if o.trouble.meddle == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	var meddler sync.WaitGroup
	meddler.Go(func() {
		if err := o.trouble.meddle(ctx, o); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
	})
	t.Cleanup(func() { cancel(); meddler.Wait() })
}

// work is a call that does the task.
func (o *ordeal) work() Answer {
	return o.agent.bash("sed -i 's/hello/hello, Gastown/' greeting.txt && " + commit)
}

// worked is a step that does the task.
func (o *ordeal) worked() Step { return func(*Request) Answer { return o.work() } }

// inTurn answers with one step after another, whatever is asked.
func inTurn(steps ...Step) Step {
	n := -1
	return func(q *Request) Answer {
		if n++; n < len(steps) {
			return steps[n](q)
		}
		return Answer{Text: "finished"}
	}
}

// landed waits until the work is merged and the town asleep, and checks what is
// true however much trouble there was.
func (o *ordeal) landed() api.Bead {
	t := o.town.t
	t.Helper()
	b := o.town.closed(o.bead)
	if b.Proof == nil || b.Proof.Kind != "merged" || b.Proof.Commit != o.town.tip() {
		t.Errorf("the proof is %+v, but the target is at %s", b.Proof, o.town.tip())
	}
	if got := o.town.file("greeting.txt"); got != "hello, Gastown" {
		t.Errorf("the greeting on the target is %q", got)
	}
	o.town.asleep()
	o.town.read(&b, "bead", "show", o.bead)
	for _, f := range o.model.Faults() {
		t.Errorf("the model could not answer: %s", f)
	}
	o.counted(b)
	for _, r := range b.Runs {
		t.Logf("run %d ended %s %s: %s", r.Epoch, r.Outcome, r.Class, r.Reason)
	}
	return b
}

// counted checks that the server counted what the model said that it used, and
// what that costs. Of an answer that its agent may have given up it may count more.
func (o *ordeal) counted(b api.Bead) {
	o.town.t.Helper()
	all := o.model.Requests()
	var sure, unsure int64
	for _, q := range all {
		switch {
		case q.Refused:
		case q.Whole && heard(q, all, b.Runs):
			sure++
		default:
			unsure++
		}
	}
	u := answerUses(o.agent.wire)
	tokens, cost := sure*usedTokens, sure*(u.Input*10+u.Output*50+u.CacheRead+u.CacheWrite*25/2)
	if unsure == 0 && (b.Spent.Tokens != tokens || b.Spent.CostMicros != cost) || b.Spent.Tokens < tokens || b.Spent.CostMicros < cost {
		o.town.t.Errorf("%d tokens for %d were counted, the model sent %d for %d in %d answers, besides %d that were perhaps not heard to their end",
			b.Spent.Tokens, b.Spent.CostMicros, tokens, cost, sure, unsure)
	}
	o.town.t.Logf("%d answers were counted, and %d perhaps in part", sure, unsure)
}

// nearGrace is a little less than what a turn has after an accepted verdict.
const nearGrace = 9 * time.Second

// heard reports whether an agent certainly heard an answer to its end: it asked
// for more in the same run, or its turn ended with it, before anybody ended that.
func heard(q *Request, all []*Request, runs []api.Run) bool {
	for _, next := range all {
		between := func(r api.Run) bool { return r.EndedAt.After(q.Ended) && r.EndedAt.Before(next.At) }
		if len(next.Tools) > 0 && next.At.After(q.Ended) && !slices.ContainsFunc(runs, between) {
			return true
		}
	}
	last := runs[len(runs)-1]
	return len(q.Tools) > 0 && last.Outcome == "done" && last.EndedAt.Sub(q.At) < nearGrace
}

// transcript returns what the n-th run said, from 0.
func (o *ordeal) transcript(b api.Bead, n int) (out []agent.Event) {
	o.town.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	items, err := o.town.client.Transcript(ctx, b.ID, b.Runs[n].Epoch, 0)
	if err != nil {
		o.town.t.Fatal(err)
	}
	for _, i := range items {
		var e agent.Event
		if err := json.Unmarshal(i.Body, &e); err != nil {
			o.town.t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// told returns the texts of one kind of event, with one status, in a run.
func (o *ordeal) told(b api.Bead, n int, kind agent.Kind, status string) (texts []string) {
	o.town.t.Helper()
	for _, e := range o.transcript(b, n) {
		if e.Kind == kind && e.Status == status {
			texts = append(texts, e.Text)
		}
	}
	return texts
}
