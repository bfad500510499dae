//go:build e2e

package e2e

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gastown/internal/api"
)

// TestOpencode has a town's work done by the real opencode, against a model
// that follows a script. GASTOWN_TEST_OPENCODE names the program (make agents).
// The cases follow one another: each keeps two cores busy.
func TestOpencode(t *testing.T) {
	opencode := os.Getenv("GASTOWN_TEST_OPENCODE")
	if opencode == "" {
		t.Skip("GASTOWN_TEST_OPENCODE does not name the opencode program: run make e2e")
	}
	program, err := exec.LookPath("gastown") // this very program: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	// One that is installed on this machine is not the one to test.
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, "opencode")); err != nil {
			dirs = append(dirs, dir)
		}
	}
	without := strings.Join(dirs, string(os.PathListSeparator))
	with := filepath.Dir(opencode) + string(os.PathListSeparator) + without

	t.Run("its work lands on the target behind a green gate", func(t *testing.T) { testWorkLands(t, program, with) })
	t.Run("a turn that ends without done is answered with a reminder", func(t *testing.T) { testReminder(t, program, with) })
	t.Run("a push to the target is refused and the model reads why", func(t *testing.T) { testRefusedPush(t, program, with) })
	t.Run("the provider's key reaches only the provider, and nothing else is reached", func(t *testing.T) { testKey(t, program, with) })
	t.Run("a missing agent costs the bead no attempt, and is retried once it is there", func(t *testing.T) { testMissingAgent(t, program, without, opencode) })
	t.Run("a rig whose agent needs a model is refused without a provider", func(t *testing.T) { testNoProvider(t, program, with) })
}

const commit = "git add -A && git commit -q -m 'Greet Gastown'"

// edits are steps that do the task with the agent's own tools, without a commit.
func edits() []Step {
	return []Step{
		Call("prime"),
		Call("read", "filePath", "greeting.txt"),
		Call("edit", "filePath", "greeting.txt", "oldString", "hello", "newString", "hello, Gastown"),
		Call("write", "filePath", "NOTES.md", "content", "The greeting names Gastown.\n"),
	}
}

func done() Step { return Call("done", "summary", "the greeting names Gastown") }

// startWork starts a town with the model as provider, and gives it the task.
func startWork(t *testing.T, program, path string, steps []Step, serveArgs ...string) (*realTown, string) {
	t.Helper()
	h := startTown(t, program, path, newModel(t, steps...), serveArgs...)
	h.addProvider()
	h.addRig()
	return h, h.sling()
}

func newModel(t *testing.T, steps ...Step) *Model {
	m := NewModel(steps...)
	t.Cleanup(m.Close)
	return m
}

// landed waits until the work is merged and checks what is true of all such work.
func (h *realTown) landed(id string, steps int) api.Bead {
	h.t.Helper()
	b := h.closed(id)
	if b.Proof == nil || b.Proof.Kind != "merged" || b.Proof.Commit != h.tip() {
		h.t.Errorf("the proof is %+v, but the target is at %s", b.Proof, h.tip())
	}
	h.git("--git-dir", h.upstream, "merge-base", "--is-ancestor", b.Commit, "refs/heads/main")
	h.git("--git-dir", h.upstream, "merge-base", "--is-ancestor", h.base, b.Commit)
	if got := h.file("greeting.txt"); got != "hello, Gastown" {
		h.t.Errorf("the greeting on the target is %q", got)
	}
	if b.Attempts != 1 || b.Charged != 0 {
		h.t.Errorf("it took %d attempts, %d of them charged: %+v", b.Attempts, b.Charged, b.Failures)
	}
	h.asleep()
	h.counted(id, steps)
	h.transcriptsTaken()
	for _, f := range h.model.Faults() {
		h.t.Errorf("the model could not answer: %s", f)
	}
	// Asked twice, an answer was lost. The last may be left out: after an accepted
	// verdict the run has only a grace.
	if got := len(h.model.Steps()); got != steps && got != steps-1 {
		h.t.Fatalf("the model was asked %d times for %d steps", got, steps)
	}
	for _, q := range h.model.Requests() {
		if q.Authorization != h.modelKey || q.Model != "house/model-1" {
			h.t.Errorf("a request came with %q for the model %q", q.Authorization, q.Model)
		}
	}
	h.timings(b)
	return b
}

// counted checks that the server counted what the model says that it used. An
// answer that its agent gave up when its turn was over may be missing.
func (h *realTown) counted(id string, steps int) {
	h.t.Helper()
	var b api.Bead
	h.read(&b, "bead", "show", id)
	most, least := int64(1020*len(h.model.Requests())), int64(1020*(steps-1))
	if got := b.Spent.Tokens; got > most || got < least || got%1020 != 0 {
		h.t.Errorf("%d tokens were counted, and %d answers had 1020 each", got, len(h.model.Requests()))
	}
}

// transcriptsTaken checks that the server took all that the runner told of its runs.
func (h *realTown) transcriptsTaken() {
	h.t.Helper()
	logs, err := filepath.Glob(filepath.Join(h.data, "sandboxes", "*", "runner.log"))
	if err != nil || len(logs) != 1 {
		h.t.Fatalf("the log of the runner: %v, %v", logs, err)
	}
	text, err := os.ReadFile(logs[0])
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "transcript") {
			h.t.Errorf("the runner says: %s", line)
		}
	}
}

// timings writes down how long each part took.
func (h *realTown) timings(b api.Bead) {
	ready := b.Runs[len(b.Runs)-1].SpawnedAt // reported when the session is open
	first, step := h.model.Requests()[0].At, h.model.Steps()[0].At
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
	h.t.Logf("agent ready after %s, first request to the model %s later, first step of the script at %s, closed after %s", round(ready.Sub(b.CreatedAt)),
		round(first.Sub(ready)), round(step.Sub(b.CreatedAt)), round(b.ClosedAt.Sub(b.CreatedAt)))
}

// ledger returns the kinds of the entries that the town's ledger has on a subject.
func (h *realTown) ledger(subject string) []string {
	h.t.Helper()
	var entries []api.LedgerEntry
	h.read(&entries, "ledger", "--town", h.name)
	var kinds []string
	for _, e := range entries {
		if e.Subject == subject {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

func testWorkLands(t *testing.T, program, path string) {
	steps := append(edits(), Bash(commit), done(), Say("The work is done."))
	h, id := startWork(t, program, path, steps)
	b := h.landed(id, len(steps))
	if got := h.file("NOTES.md"); got != "The greeting names Gastown." {
		t.Errorf("the note on the target is %q", got)
	}
	if got := h.git("--git-dir", h.upstream, "log", "-1", "--format=%s", b.Commit); got != "Greet Gastown" {
		t.Errorf("the agent's commit is %q", got)
	}
	kinds := h.ledger(id)
	gate, landed := slices.Index(kinds, "gate.passed"), slices.Index(kinds, "merge.landed")
	if gate < 0 || landed < gate {
		t.Errorf("the gate did not pass before the merge: %v", kinds)
	}
	if b.Summary != "the greeting names Gastown" {
		t.Errorf("the summary is %q", b.Summary)
	}
}

func testReminder(t *testing.T, program, path string) {
	steps := append(edits(), Bash(commit), Say("I think that this is all."), done(), Say("Now it is done."))
	h, id := startWork(t, program, path, steps)
	h.landed(id, len(steps))
	asked := h.model.Steps()
	prompt, reminded := asked[5].Last("user"), asked[6].Last("user")
	if strings.Contains(prompt, "without calling done") || !strings.Contains(prompt, id) {
		t.Errorf("the prompt is %q", prompt)
	}
	if !strings.Contains(reminded, "You ended your turn without calling done") {
		t.Errorf("after the turn the model read %q", reminded)
	}
	if runs := h.model.Steps()[6].step(); runs != 6 {
		t.Errorf("the reminder came into a history of %d answers", runs)
	}
}

func testRefusedPush(t *testing.T, program, path string) {
	steps := append(edits(), Bash(commit), Bash("git push origin HEAD:refs/heads/main"))
	afterPush := len(steps)
	var h *realTown
	var upstream, hub string
	steps = append(steps, func(*Request) Answer {
		upstream, _, _ = h.exec("git", "--git-dir", h.upstream, "rev-parse", "refs/heads/main") // looked at below
		dirs, _ := filepath.Glob(filepath.Join(h.data, "hub", "*", "greeter.git"))
		if len(dirs) == 1 {
			hub, _, _ = h.exec("git", "--git-dir", dirs[0], "for-each-ref", "--format=%(objectname)")
		}
		return done()(nil)
	}, Say("The work is done."))
	h = startTown(t, program, path, newModel(t, steps...))
	h.addProvider()
	h.addRig()
	b := h.landed(h.sling(), len(steps))

	read := h.model.Steps()[afterPush].Last("tool")
	for _, want := range []string{"gastown refused this push; nothing was changed", "refs/heads/main: ", "You may push: " + b.Branch, "rejected"} {
		if !strings.Contains(read, want) {
			t.Errorf("the model did not read %q but %q", want, read)
		}
	}
	if got := strings.TrimSpace(upstream); got != h.base {
		t.Errorf("after the push the target was at %q, before at %s", got, h.base)
	}
	if !strings.Contains(hub, h.base) || strings.Contains(hub, b.Commit) {
		t.Errorf("after the push the hub's references were at %q, and the refused commit is %s", hub, b.Commit)
	}
	if out := h.run("logs", b.ID); !strings.Contains(out, "gastown refused this push") {
		t.Errorf("the log does not show the refusal:\n%s", out)
	}
}

func testKey(t *testing.T, program, path string) {
	trap := newTrap(t)
	var h *realTown
	var own, key map[int]string
	steps := append(edits(), func(*Request) Answer {
		own, key = processesOf(h.root), processesOf(realKey)
		return Bash("env")(nil)
	})
	afterEnv := len(steps)
	steps = append(steps, Bash(commit), done(), Say("The work is done."))
	h = startTown(t, program, path, newModel(t, steps...), "--presets", trap.presets(t))
	h.addProvider()
	h.addRig()
	b := h.landed(h.sling(), len(steps))

	env := h.model.Steps()[afterEnv].Last("tool")
	if !strings.Contains(env, "GASTOWN_AGENT_COOKIE=") || !strings.Contains(env, "HTTPS_PROXY="+trap.url) {
		t.Fatalf("the environment of a tool is %q", env)
	}
	if strings.Contains(env, realKey) {
		t.Error("a tool's environment holds the provider's key")
	}
	if len(own) < 3 && processesAreVisible() {
		t.Errorf("of the server, the runner and the agent only these were seen: %v", own)
	}
	for pid, command := range key {
		t.Errorf("process %d knows the provider's key: %s", pid, command)
	}
	want := []string{"house.key"} // the vault is encrypted
	if got := filesWith(t, h.root, realKey); !slices.Equal(got, want) {
		t.Errorf("the provider's key is in %v, and should be in %v", got, want)
	}
	for _, args := range [][]string{{"logs", b.ID, "--json"}, {"ledger", "--town", "works", "--json"}, {"provider", "list", "--json"}, {"bead", "show", b.ID, "--json"}} {
		if strings.Contains(h.run(args...), realKey) {
			t.Errorf("gastown %s shows the provider's key", strings.Join(args, " "))
		}
	}
	// In the background, and in vain, opencode asks the package registry for what
	// plugins would need; there is no switch for that.
	ofRegistry := func(s string) bool { return strings.HasPrefix(s, "CONNECT registry.") && strings.HasSuffix(s, ":443") }
	if got := slices.DeleteFunc(trap.caught(), ofRegistry); len(got) > 0 {
		t.Errorf("something outside was asked for: %v", got)
	}
}

// filesWith returns the files below root that contain text, relative and in order.
func filesWith(t *testing.T, root, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(text)) {
			rel, _ := filepath.Rel(root, path) // path is below root
			found = append(found, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// trap is a proxy that lets nothing through and notes what was asked of it.
type trap struct {
	url string

	mu    sync.Mutex // guards asked
	asked []string
}

func newTrap(t *testing.T) *trap {
	p := &trap{}
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.Host)
		p.mu.Unlock()
		http.Error(w, "there is no way out", http.StatusBadGateway)
	}))
	t.Cleanup(ts.Close)
	p.url = ts.URL
	return p
}

func (p *trap) caught() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// presets is a directory with the built-in preset, sent through the proxy.
func (p *trap) presets(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../agent/presets/opencode.toml")
	if err != nil {
		t.Fatal(err)
	}
	var env strings.Builder
	env.WriteString("[env]\n")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		env.WriteString(name + " = \"" + p.url + "\"\n")
	}
	dir := t.TempDir()
	text := strings.Replace(string(b), "[env]\n", env.String(), 1)
	if err := os.WriteFile(filepath.Join(dir, "opencode.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func testMissingAgent(t *testing.T, program, path, opencode string) {
	bin := t.TempDir()
	steps := append(edits(), Bash(commit), done(), Say("The work is done."))
	h, id := startWork(t, program, bin+string(os.PathListSeparator)+path, steps)
	b := h.awaitBead(id, "waits for its agent", func(b api.Bead) bool { return b.Why != nil && b.Why.Kind == "agent" })
	if b.Status != "open" || b.Attempt != 1 || b.Charged != 0 || len(b.Failures) != 0 {
		t.Errorf("the bead is %s in attempt %d with %d charged failures: %+v", b.Status, b.Attempt, b.Charged, b.Failures)
	}
	h.asleep()
	var why api.Reason
	if h.read(&why, "why", id); why.State != "waiting" || why.Subject != "agent/opencode" || why.Uses == nil || why.Uses.Agent.Value != "opencode" {
		t.Errorf("the bead waits for %+v", why)
	}
	text := h.run("why", id)
	for _, want := range []string{"the program opencode is not in PATH", "npm install -g opencode-ai", "gastown retry agent/opencode --town works", "agent opencode ("} {
		if !strings.Contains(text, want) {
			t.Errorf("gastown why does not say %q but %q", want, text)
		}
	}
	if n := len(h.model.Requests()); n > 0 {
		t.Errorf("the model got %d requests", n)
	}

	if err := os.Symlink(opencode, filepath.Join(bin, "opencode")); err != nil {
		t.Fatal(err)
	}
	h.landed(id, len(steps)) // nobody has to say that it is there now
}

func testNoProvider(t *testing.T, program, path string) {
	h := startTown(t, program, path, nil)
	_, stderr, err := h.try("rig", "add", "greeter", h.upstream, "--agent", "opencode")
	if err == nil || !strings.Contains(stderr, "gastown provider add ") {
		t.Fatalf("without a provider: %v, %q", err, stderr)
	}
	var rigs []api.Rig
	if h.read(&rigs, "rig", "list"); len(rigs) > 0 {
		t.Errorf("the refused rig is there: %+v", rigs)
	}
}
