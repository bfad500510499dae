package gateway

import (
	"strings"
	"testing"
)

func TestAPushBeyondTheTownsLimitIsRefusedAndSaysWhy(t *testing.T) {
	t.Parallel()
	h := newHouse(t, GitLimits{}, nil)
	h.commit("a.txt", "more\n")
	limit := func(bytes int64) {
		h.policy.mu.Lock()
		defer h.policy.mu.Unlock()
		h.policy.grant.MaxBytes = bytes
	}
	limit(1)
	out, err := h.git(h.clone, "push", "origin", "HEAD:"+own)
	if err == nil || !strings.Contains(out, "hub.max_mb") || !strings.Contains(out, "remote rejected") {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := h.git(h.clone, "fetch", "origin"); err != nil {
		t.Errorf("a fetch is refused, too: %v: %s", err, out)
	}
	used, err := h.hub.Size(rig.Town)
	if err != nil || used < 100 {
		t.Fatalf("%d bytes, %v", used, err)
	}
	limit(used + 10) // no pack fits in
	if out, err := h.git(h.clone, "push", "origin", "HEAD:"+own); err == nil {
		t.Fatalf("a pack larger than the rest was taken: %s", out)
	}
	limit(used + 1<<20)
	if out, err := h.git(h.clone, "push", "origin", "HEAD:"+own); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
