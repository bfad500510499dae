//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"gastown/internal/api"
)

// bad are runs that take what others need. Each ends only when it is stopped.
func bad() map[string]struct{ setting, script, says string } {
	const stay = "\nwhile :; do sleep 1; done"
	return map[string]struct{ setting, script, says string }{
		// The shell that begins others fails at the limit; what it began stays.
		"A bomb":   {"run.max_processes=200", "(while :; do sleep 10000 & done) ||\nwhile :; do :; done", "run.max_processes lets it have 200"},
		"A hog":    {"run.max_memory_mb=100", "x=$(head -c 200000000 /dev/zero | tr '\\0' x)" + stay, "run.max_memory_mb lets it use 100"},
		"A filler": {"run.max_disk_mb=50", "head -c 150000000 /dev/zero >fill" + stay, "run.max_disk_mb lets it: 50"},
	}
}

// overLimits slings the bad runs beside a good one, which is at work until they
// have ended, and checks how each ends.
func (w *world) overLimits(held string, release func(good string), names ...string) {
	w.t.Helper()
	w.settle()
	good := w.sling("A good one", held)
	w.spawned(good, 0)
	ids := map[string]string{}
	for _, name := range names {
		ids[name] = w.slingBad(name)
	}
	for _, name := range names {
		b := w.failed(ids[name])
		says := bad()[name].says
		if b.Charged != 1 || !strings.Contains(b.Reason, says) || len(b.Failures) != 1 || b.Failures[0].Class != "work" {
			w.t.Errorf("%s: %d charged, the reason is %q, not %q: %+v", name, b.Charged, b.Reason, says, b.Failures)
		}
		w.said(b.ID, says)
	}
	release(good)
	if b := w.closed(good); b.Charged != 0 {
		w.t.Errorf("the good one was charged: %+v", b.Failures)
	}
	if s := w.sandbox(); s.Generation != 1 {
		w.t.Errorf("the sandbox did not live through it: %+v", s)
	}
}

// slingBad gives the town one of the bad runs, which has one try.
func (w *world) slingBad(name string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	key, value, _ := strings.Cut(bad()[name].setting, "=")
	b, err := w.api.CreateBead(ctx, "acme", api.CreateBead{Rig: "web", Title: name, Body: body(bad()[name].script),
		Settings: map[string]string{key: value, "work.max_attempts": "1", "run.turn_nudges": "0"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return b.ID
}

// failed waits until a bead has failed.
func (w *world) failed(id string) (b api.Bead) {
	w.t.Helper()
	w.until(id+" to fail", func(ctx context.Context) (err error) {
		if b, err = w.api.Bead(ctx, id); err == nil && b.Status != "failed" {
			err = fmt.Errorf("it is %s: %+v", b.Status, b.Why)
		}
		return err
	})
	return b
}

// A fork bomb, a hog of memory and a filler of disks each fail by themselves; who
// works beside them in the container does not notice.
func TestContainersOutliveWhatTakesTooMuch(t *testing.T) {
	w := newContainers(t, "checkpoint.interval=300ms")
	hold := "until [ -e \"$TMPDIR/release\" ]; do sleep 0.05; done\necho done >good.txt"
	w.overLimits(hold, func(good string) {
		w.write(filepath.Join(w.container().disk, "work", "web", good, "tmp", "release"), "")
	}, "A bomb", "A hog", "A filler")
}

// The same without a container. What a plain process may begin is only counted,
// not bounded, so there is no bomb.
func TestProcessesOutliveWhatTakesTooMuch(t *testing.T) {
	w := newWorld(t, builtProgram(t), "sandbox.grace=5m")
	w.args = append(w.args, "--isolation", "none")
	w.start()
	w.overLimits(w.held(), func(string) { w.write(w.release, "") }, "A hog", "A filler")
}
