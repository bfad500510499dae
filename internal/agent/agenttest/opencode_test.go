package agenttest_test

import (
	"os"
	"path/filepath"
	"testing"

	"gastown/internal/agent"
	"gastown/internal/agent/agenttest"
)

// TestOpencodeConforms runs where GASTOWN_TEST_OPENCODE names the program
// (npm install opencode-ai); it needs no network.
func TestOpencodeConforms(t *testing.T) {
	agenttest.Run(t, opencode(t))
}

// TestOpencodeSharesAProcess runs where TestOpencodeConforms does.
func TestOpencodeSharesAProcess(t *testing.T) {
	agenttest.RunShared(t, opencode(t))
}

func opencode(t *testing.T) agenttest.Factory {
	t.Helper()
	program := os.Getenv("GASTOWN_TEST_OPENCODE")
	if program == "" {
		t.Skip("GASTOWN_TEST_OPENCODE does not name the opencode program")
	}
	presets, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	preset := presets["opencode"]
	top := t
	homes := map[string]string{} // one per case: its sessions are kept there
	return func(t *testing.T, task agenttest.Task) agent.Spec {
		model := agenttest.NewModel(t, task)
		const key = "the-key-of-this-run"
		t.Cleanup(func() {
			for k, n := range model.Keys() {
				if k != key {
					t.Errorf("%d model requests with another key", n)
				}
			}
		})
		home := homes[t.Name()]
		if home == "" {
			home = top.TempDir()
			homes[t.Name()] = home
		}
		return agent.Spec{
			Preset: preset,
			Model:  &agent.Model{Provider: "scripted", BaseURL: model.URL(), Key: key, Name: "test/model-1"},
			Env: []string{
				"PATH=" + filepath.Dir(program) + string(os.PathListSeparator) + os.Getenv("PATH"),
				"HOME=" + home, "TMPDIR=" + home, "XDG_DATA_HOME=" + home + "/data", "XDG_CONFIG_HOME=" + home + "/config",
				"XDG_CACHE_HOME=" + home + "/cache", "XDG_STATE_HOME=" + home + "/state",
			},
		}
	}
}
