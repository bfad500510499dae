//go:build e2e

package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// liveReport is what agents check --live --json prints, as far as it matters here.
type liveReport struct {
	OK       bool
	PromptMS int64 `json:"prompt_ms"`
	DoneMS   int64 `json:"done_ms"`
	MergedMS int64 `json:"merged_ms"`
	Tokens   int64
	Failed   string
	Error    string
	Hint     string
	Steps    []struct {
		Name string
		OK   bool
		Text string
	}
}

// TestLiveCheck has `gastown agents check opencode --live` do its tiny task with
// the real program, and fail where the model refuses the key.
func TestLiveCheck(t *testing.T) {
	opencode := os.Getenv("GASTOWN_TEST_OPENCODE")
	if opencode == "" {
		t.Skip("GASTOWN_TEST_OPENCODE does not name the opencode program: run make e2e")
	}
	steps := []Step{Call("prime"), Bash("echo checked > CHECK.txt && git add CHECK.txt && git commit -q -m check"), done(), Say("It is there.")}
	program, err := exec.LookPath("gastown") // this very program: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	h := startTown(t, program, filepath.Dir(opencode)+string(os.PathListSeparator)+os.Getenv("PATH"), newModel(t, steps...))
	h.addProvider()

	var r liveReport
	h.read(&r, "agents", "check", "opencode", "--live", "--provider", "house", "--limit", "20m")
	var names []string
	for _, s := range r.Steps {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); !r.OK || got != "server repository town rig work sandbox agent prompt done merge" {
		t.Errorf("it went through %s: %+v", got, r)
	}
	if r.PromptMS < 0 || r.DoneMS < r.PromptMS || r.MergedMS < r.DoneMS || r.Tokens == 0 {
		t.Errorf("its times and tokens: %+v", r)
	}
	t.Logf("first answer after %d ms, done after %d ms, merged after %d ms, %d tokens", r.PromptMS, r.DoneMS, r.MergedMS, r.Tokens)
	h.nothingLeft(r)

	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":{"message":"this key is not known","type":"invalid_request_error"}}`)) // the agent may be gone
	}))
	t.Cleanup(refusing.Close)
	h.run("provider", "add", "openai-compatible", "refusing", "--base-url", refusing.URL+"/v1", "--model", "m")
	out, stderr, err := h.try("agents", "check", "opencode", "--live", "--provider", "refusing", "--limit", "20m", "--json")
	r = liveReport{}
	if jsonErr := json.Unmarshal([]byte(out), &r); err == nil || jsonErr != nil {
		t.Fatalf("a refused key: %v, %v\n%s%s", err, jsonErr, out, stderr)
	}
	if r.OK || r.Failed != "prompt" || !strings.Contains(r.Error, "this key is not known") || !strings.Contains(r.Hint, "are the key and the model's name right?") {
		t.Errorf("a refused key: %+v", r)
	}
	h.nothingLeft(r)
}

// nothingLeft sees that a check removed what it made.
func (h *realTown) nothingLeft(r liveReport) {
	h.t.Helper()
	if got := h.run("town", "list"); strings.Contains(got, "check-") {
		h.t.Errorf("a town is left:\n%s", got)
	}
	if len(r.Steps) < 2 || r.Steps[1].Name != "repository" {
		h.t.Fatalf("no repository was made: %+v", r)
	}
	if _, err := os.Stat(r.Steps[1].Text); !os.IsNotExist(err) {
		h.t.Errorf("%s is left (%v)", r.Steps[1].Text, err)
	}
}
