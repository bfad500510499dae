//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gastown/internal/agent"
	"gastown/internal/api"
)

// limitLasts is how long the provider's limit lasts that a town sleeps through.
const limitLasts = 20 * time.Second

func troubles() []trouble {
	return []trouble{
		{name: "sleeps through a long limit", key: "sleeps", script: longLimit, check: checkLongLimit},
		{name: "goes on after its process was killed", key: "killed", script: stallOnce, meddle: killStalled, check: checkKilled},
		{name: "outlasts a model that is down", key: "down", script: downFor, check: checkDown},
		{name: "waits for a short limit", key: "waits", settings: []string{"sandbox.grace=10s"}, script: shortLimit, check: checkShortLimit},
		{name: "gets over a conversation that is too long", key: "toolong", script: overflowing, check: checkOverflow},
		{name: "asks for permissions", key: "asks", asks: true, script: asking, check: checkAsked},
	}
}

// free checks that a bead was charged for nothing.
func (o *ordeal) free(b api.Bead, runs int) {
	o.town.t.Helper()
	if len(b.Runs) != runs || b.Attempts != 1 || b.Charged != 0 || slices.ContainsFunc(b.Failures, func(f api.Failure) bool { return f.Charged }) {
		o.town.t.Fatalf("%d runs, want %d; %d attempts, failures %+v", len(b.Runs), runs, b.Attempts, b.Failures)
	}
}

// resumed checks that a run loaded the session of the one before, and that its
// model got to see what was said then.
func (o *ordeal) resumed(b api.Bead, n int) {
	o.town.t.Helper()
	if got := o.told(b, n, agent.KindLifecycle, "resumed"); len(got) != 1 || !strings.HasPrefix(got[0], "session ") {
		o.town.t.Errorf("run %d was resumed: %q", n+1, got)
	}
}

// limited is the error of a rate limit in the words of the API.
func (o *ordeal) limited(wait int) Answer {
	body := `{"error":{"message":"Rate limit reached for house/model-1 on requests per min (RPM): Limit 3, Used 3, Requested 1.","type":"requests","param":null,"code":"rate_limit_exceeded"}}`
	if o.agent.wire == api.WireMessages {
		body = `{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your account's rate limit. Please try again later."}}`
	}
	return Answer{Fault: &Fault{Status: http.StatusTooManyRequests, RetryAfter: strconv.Itoa(wait), Body: body}}
}

// longLimit refuses everything for longer than the town's grace.
func longLimit(o *ordeal) Step {
	var until time.Time
	begun, rest := false, inTurn(done(), Say("The work is done."))
	return func(q *Request) Answer {
		switch left := time.Until(until); {
		case !begun:
			begun = true
			return o.work()
		case until.IsZero():
			until = time.Now().Add(limitLasts)
			return o.limited(int(limitLasts / time.Second))
		case left > 0:
			return o.limited(int(left/time.Second) + 1)
		}
		return rest(q)
	}
}

func checkLongLimit(o *ordeal, b api.Bead) {
	t := o.town.t
	o.free(b, 2)
	if r := b.Runs[0]; r.Outcome != "stopped" || r.Class != "limit" {
		t.Errorf("the first run ended %s %s: %s", r.Outcome, r.Class, r.Reason)
	}
	o.resumed(b, 1)
	until := o.limitedUntil()
	if b.Runs[1].StartedAt.Before(until) {
		t.Errorf("the limit lasts until %s, the second run began at %s", until, b.Runs[1].StartedAt)
	}
	slept := slices.ContainsFunc(o.entries("sandbox.asleep"), func(e api.LedgerEntry) bool { return e.At.Before(b.Runs[1].StartedAt) })
	// A run that took so long to end that there was hardly any time left proves nothing.
	if ended := b.Runs[0].EndedAt; !slept && until.Sub(ended) > limitLasts/2 {
		t.Errorf("the limit lasts until %s, the run ended at %s, and the sandbox did not sleep", until, ended)
	}
}

// entries returns the entries of a kind in the town's ledger.
func (o *ordeal) entries(kind string) []api.LedgerEntry {
	o.town.t.Helper()
	var all []api.LedgerEntry
	o.town.read(&all, "ledger", "--town", o.town.name)
	return slices.DeleteFunc(all, func(e api.LedgerEntry) bool { return e.Kind != kind })
}

// limitedUntil is the end of the limit that the ledger tells of.
func (o *ordeal) limitedUntil() time.Time {
	o.town.t.Helper()
	all := o.entries("provider.limited")
	if len(all) == 0 || all[0].Subject != "provider/"+o.town.name {
		o.town.t.Fatalf("the ledger tells of these limits: %+v", all)
	}
	until, err := time.Parse(time.RFC3339, all[0].Data["until"])
	if err != nil {
		o.town.t.Fatal(err)
	}
	return until
}

func shortLimit(o *ordeal) Step {
	return inTurn(o.worked(), func(*Request) Answer { return o.limited(1) }, done(), Say("The work is done."))
}

func checkShortLimit(o *ordeal, b api.Bead) {
	o.limitedUntil()
	o.free(b, 1)
}

// stallOnce begins an answer that does not go on.
func stallOnce(o *ordeal) Step {
	return inTurn(o.worked(), func(*Request) Answer {
		close(o.stalled)
		return Answer{Text: "The greeting names Gastown now, I will have another look, and", Stall: true}
	}, done(), Say("The work is done."))
}

// killStalled kills the agent in the middle of the answer.
func killStalled(ctx context.Context, o *ordeal) error {
	select {
	case <-o.stalled:
	case <-ctx.Done():
		return fmt.Errorf("the model was never asked: %w", ctx.Err())
	}
	pid := 0
	err := o.town.happens(ctx, func(ctx context.Context) (bool, error) {
		b, err := o.town.client.Bead(ctx, o.bead)
		if err == nil && len(b.Runs) > 0 {
			pid = b.Runs[0].PID
		}
		return pid > 0, err
	})
	if err != nil {
		return err
	}
	if _, ours := processesOf(o.town.root)[pid]; !ours && processesAreVisible() {
		return fmt.Errorf("the agent is said to be process %d, which is somebody else's", pid)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func checkKilled(o *ordeal, b api.Bead) {
	o.free(b, 2)
	if r := b.Runs[0]; r.Outcome != "lost" || r.Class != "infra" {
		o.town.t.Errorf("the first run ended %s %s: %s", r.Outcome, r.Class, r.Reason)
	}
	o.resumed(b, 1)
	// The third step of the script is the first that the second run asked for.
	if q := o.model.Steps()[2]; !slices.ContainsFunc(q.Messages, func(m Message) bool { return len(m.Calls) > 0 }) {
		o.town.t.Errorf("after the kill the model was shown nothing of what it did before: %+v", q.Messages)
	}
}

// givesUp is the agent that does not ask for long a model that does not answer.
const givesUp = "codex"

// downFor cuts connections until an agent has tried a few times; one that gives
// up soon, until its next run.
func downFor(o *ordeal) Step {
	begun, up, refused, prompts := false, false, 0, 0
	rest := inTurn(done(), Say("The work is done."))
	return func(q *Request) Answer {
		if !begun {
			begun = true
			return o.work()
		}
		n := 0
		for _, m := range q.Messages {
			if m.Role == "user" {
				n++
			}
		}
		if refused == 0 {
			prompts = n
		}
		up = up || n > prompts || refused == 3 && o.agent.preset != givesUp
		if up {
			return rest(q)
		}
		refused++
		return Answer{Fault: &Fault{}}
	}
}

func checkDown(o *ordeal, b api.Bead) {
	if o.agent.preset != givesUp {
		o.free(b, 1)
		return
	}
	o.free(b, 2)
	if r := b.Runs[0]; r.Class != "infra" || !strings.Contains(r.Reason, "the model could not be reached") {
		o.town.t.Errorf("the first run ended %s %s: %s", r.Outcome, r.Class, r.Reason)
	}
}

// bulky is in the conversation as long as it is too long.
const bulky = "the-last-of-very-many-lines"

// tooLong is the error of a conversation that is too long in the words of the API.
func (o *ordeal) tooLong() Answer {
	switch o.agent.wire {
	case api.WireMessages:
		return Answer{Fault: &Fault{Status: http.StatusBadRequest,
			Body: `{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 212345 tokens > 200000 maximum"}}`}}
	case api.WireResponses:
		return Answer{Fault: &Fault{Status: http.StatusOK, Body: "event: response.failed\n" +
			`data: {"type":"response.failed","sequence_number":1,"response":{"id":"resp_1","object":"response","status":"failed","output":[],"usage":null,` +
			`"error":{"code":"context_length_exceeded","message":"Your input exceeds the context window of this model. Please adjust your input and try again."}}}` + "\n\n"}}
	}
	return Answer{Fault: &Fault{Status: http.StatusBadRequest,
		Body: `{"error":{"message":"This model's maximum context length is 128000 tokens. However, your messages resulted in 131072 tokens. Please reduce the length of the messages.",` +
			`"type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`}}
}

// overflowing finds the conversation too long while the output of the work is in it.
func overflowing(o *ordeal) Step {
	begun, rest := false, inTurn(done(), Say("The work is done."))
	return func(q *Request) Answer {
		has := func(text string) bool {
			return slices.ContainsFunc(q.Messages, func(m Message) bool { return strings.Contains(m.Text, text) })
		}
		switch {
		case !begun:
			begun = true
			return o.agent.bash("sed -i 's/hello/hello, Gastown/' greeting.txt && " + commit + " && echo " + bulky)
		case has("Respond with TEXT ONLY"): // claude wants a summary
			return Answer{Text: "<summary>The greeting names Gastown and is committed; done has to be called.</summary>"}
		case has(bulky):
			return o.tooLong()
		}
		return rest(q)
	}
}

// keepsAll is the agent that does not make a conversation shorter.
const keepsAll = "codex"

func checkOverflow(o *ordeal, b api.Bead) {
	if o.agent.preset != keepsAll {
		o.free(b, 1)
		return
	}
	r := b.Runs[0]
	if len(b.Runs) != 2 || r.Outcome != "exited" || r.Class != "work" || !strings.Contains(r.Reason, "longer than the model's context") {
		o.town.t.Fatalf("the runs are %+v", b.Runs)
	}
	if len(b.Failures) != 1 || !b.Failures[0].Charged {
		o.town.t.Errorf("the failures are %+v", b.Failures)
	}
	if got := o.told(b, 1, agent.KindLifecycle, "resumed"); len(got) > 0 {
		o.town.t.Errorf("the conversation that is too long was loaded again: %q", got)
	}
}

// asking has the model want a file written, which the policy denies, and the work
// done by commands, which it allows.
func asking(o *ordeal) Step {
	work := o.worked()
	var write Step
	switch o.agent.preset {
	case "opencode":
		write = Call("write", "filePath", "NOTES.md", "content", "Notes.\n")
	case "claude":
		write = func(*Request) Answer {
			return Call("Write", "file_path", o.town.root+"/NOTES.md", "content", "Notes.\n")(nil)
		}
	default: // codex asks only for what its sandbox would not let through
		work = func(*Request) Answer {
			a := o.work()
			a.Args["sandbox_permissions"], a.Args["justification"] = "require_escalated", "to commit the work"
			return a
		}
		return inTurn(work, done(), Say("The work is done."))
	}
	return inTurn(write, work, done(), Say("The work is done."))
}

func checkAsked(o *ordeal, b api.Bead) {
	o.free(b, 1)
	denied := 1
	if o.agent.preset == "codex" {
		denied = 0
	}
	if yes, no := o.told(b, 0, agent.KindPermission, "allow"), o.told(b, 0, agent.KindPermission, "deny"); len(yes) == 0 || len(no) != denied {
		o.town.t.Errorf("allowed was %q, denied %q", yes, no)
	}
	if files := o.town.git("--git-dir", o.town.upstream, "ls-tree", "--name-only", "refs/heads/main"); strings.Contains(files, "NOTES") {
		o.town.t.Errorf("the target has %s", files)
	}
}
