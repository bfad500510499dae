//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestClaude, TestCodex, TestKilo and TestGemini have a town's work done by the real programs behind
// their adapters, against models that follow a script in their wire formats.
// GASTOWN_TEST_AGENTS names the directory with the programs (make agents).
func TestClaude(t *testing.T) {
	h, steps := startAgent(t, agentCase{preset: "claude", program: "claude-agent-acp", kind: "anthropic",
		base: func(m *Model) string { return strings.TrimSuffix(m.URL(), "/v1") }, key: realKey, shell: "Bash"})
	h.landed(h.sling(), steps)
}

func TestCodex(t *testing.T) {
	h, steps := startAgent(t, agentCase{preset: "codex", program: "codex-acp", kind: "openai",
		base: (*Model).URL, key: "Bearer " + realKey, shell: "exec_command"})
	h.landed(h.sling(), steps)
}

func TestKilo(t *testing.T) {
	h, steps := startAgent(t, agentCase{preset: "kilo", program: "kilo", kind: "openai-compatible",
		base: (*Model).URL, key: "Bearer " + realKey, shell: "bash"})
	h.landed(h.sling(), steps)
}

func TestGemini(t *testing.T) {
	h, steps := startAgent(t, agentCase{preset: "gemini", program: "gemini", kind: "gemini",
		base: func(m *Model) string { return strings.TrimSuffix(m.URL(), "/v1") }, key: realKey, shell: "run_shell_command"})
	h.landed(h.sling(), steps)
}

// agentCase is a kind of agent and how its model is reached.
type agentCase struct {
	preset, program, kind string
	base                  func(*Model) string
	key                   string // as the model's server gets it
	shell                 string // the agent's tool for commands
}

func startAgent(t *testing.T, c agentCase) (h *realTown, steps int) {
	t.Helper()
	dir := os.Getenv("GASTOWN_TEST_AGENTS")
	if _, err := os.Stat(filepath.Join(dir, c.program)); dir == "" || err != nil {
		t.Skipf("GASTOWN_TEST_AGENTS does not name a directory with %s: run make e2e", c.program)
	}
	program, err := exec.LookPath("gastown") // this very program: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	work := "sed -i 's/hello/hello, Gastown/' greeting.txt && " + commit
	argument := "command"
	if c.shell == "exec_command" {
		argument = "cmd"
	}
	script := []Step{Call("prime"), Call(c.shell, argument, work), done(), Say("The work is done.")}
	h = startTown(t, program, dir+string(os.PathListSeparator)+os.Getenv("PATH"), newModel(t, script...))
	h.modelKey = c.key
	key := filepath.Join(h.root, "house.key")
	if err := os.WriteFile(key, []byte(realKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.run("provider", "add", c.kind, "house", "--base-url", c.base(h.model), "--key-file", key, "--model", "house/model-1")
	h.run("rig", "add", "greeter", h.upstream, "--agent", c.preset, "--prefix", "gr", "--gate", "greets=grep -q Gastown greeting.txt")
	return h, len(script)
}
