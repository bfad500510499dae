//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/scrub"
)

// TestWhatAgentsSayHasNoSecrets has an agent print the secret of its run, and an
// agent and a gate the admin token, which plain processes can read.
func TestWhatAgentsSayHasNoSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, builtProgram(t), "work.max_attempts=1")
	w.start()
	admin := filepath.Join(w.data, "admin.token")
	w.settle(api.Gate{Name: "tells", Command: "cat '" + admin + "'; base64 -w0 '" + admin + "'; exit 1"})
	kept := filepath.Join(w.root, "kept")
	id := w.sling("Tells", strings.Join([]string{
		"git config --get-regexp extraheader > '" + kept + "'",
		"cat '" + kept + "' '" + admin + "'",
		"printf '{\"token\":\"%s\"}\\n' \"$(cat '" + admin + "')\" >&2",
		"base64 -w0 < '" + admin + "'; echo",
		"echo ghp_abcdefghijklmnopqrst0123456789ABCDEF",
		"echo done > told.txt",
	}, "\n"))
	w.until(id+" to fail", func(ctx context.Context) error {
		b, err := w.api.Bead(ctx, id)
		if err == nil && b.Status != "failed" {
			err = fmt.Errorf("it is %s", b.Status)
		}
		return err
	})
	raw, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	_, run, ok := strings.Cut(strings.TrimSpace(string(raw)), "Bearer ")
	if !ok || len(run) < 20 {
		t.Fatalf("the agent found %q", raw)
	}
	secrets := map[string]string{"the secret of its run": run, "the admin token": w.token(), "a token of GitHub": "ghp_abcdefghijklmnopqrst"}
	texts := map[string]string{"logs": w.must("logs", id), "logs --json": w.must("logs", id, "--json"), "bead show": w.must("bead", "show", id, "--json"),
		"the ledger": w.must("ledger", "--json"), "escalations": w.must("escalations", "--json"), "why": w.must("why", id)}
	files, err := filepath.Glob(filepath.Join(w.data, "sandboxes", "*", "runner.log"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no log of a runner: %v", err)
	}
	for _, f := range append(files, filepath.Join(w.root, "server.log")) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[filepath.Base(f)] = string(b)
	}
	for where, text := range texts {
		for what, secret := range secrets {
			if where != "bead show" && strings.Contains(text, secret) || where == "bead show" && strings.Contains(text, w.token()) {
				t.Errorf("%s has %s", where, what)
			}
		}
	}
	for _, where := range []string{"logs", "bead show"} {
		if !strings.Contains(texts[where], scrub.Mark) {
			t.Errorf("%s has no mark: was anything told?\n%s", where, texts[where])
		}
	}
}
