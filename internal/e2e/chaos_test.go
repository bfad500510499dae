//go:build e2e && linux

package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// TestChaos is a minute of what gastown-lab chaos does. Not parallel: its clocks
// run twenty times as fast as usual. A failing seed is repeated with
// GASTOWN_E2E_SEED; gastown-lab chaos --keep leaves the logs.
func TestChaos(t *testing.T) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "gastown/cmd/gastown", "gastown/cmd/gastown-lab")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	cmd := exec.Command(filepath.Join(dir, "gastown-lab"), "chaos", "--beads", "8", "--minutes", "1", "--json",
		"--seed", strconv.FormatUint(seedOf(t), 10), "--gastown", filepath.Join(dir, "gastown"))
	var progress bytes.Buffer
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("chaos: %v\n%s", err, progress.String())
	}
	t.Logf("%s", out)
	var r struct {
		Beads, Merged      int
		MergedTwice        int `json:"merged_twice"`
		LostCommits        int `json:"lost_commits"`
		LostAcks           int `json:"lost_acks"`
		ServerKills        int `json:"server_kills"`
		RunnerKills        int `json:"runner_kills"`
		AgentKills         int `json:"agent_kills"`
		Stalls, Violations json.RawMessage
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if r.Beads != 8 || r.Merged != 8 || r.MergedTwice+r.LostCommits+r.LostAcks != 0 || string(r.Violations) != "[]" ||
		min(r.ServerKills, r.RunnerKills, r.AgentKills) < 3 || string(r.Stalls) == "0" {
		t.Errorf("the result is %+v", r)
	}
}
