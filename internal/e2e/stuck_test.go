//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
)

// testStuck has an agent whose tool prints for longer than a stuck one may be
// silent, beside one whose tool says nothing.
func testStuck(t *testing.T, program string) {
	w := newWorld(t, program, "lease=6s", "stuck.nudge_after=5s", "stuck.restart_after=10s")
	w.start()
	w.settle()
	prints := w.sling("Prints", "i=0; while [ $i -lt 75 ]; do i=$((i+1)); echo \"test $i passed\"; sleep 0.2; done\necho ok > prints.txt")
	again := w.root + "/again"
	silent := w.sling("Silent", "if [ ! -e '"+again+"' ]; then touch '"+again+"'; sleep 100; fi\necho ok > silent.txt")

	b := w.closed(prints)
	if len(b.Runs) != 1 || b.Attempt != 1 || b.Charged != 0 {
		t.Errorf("the bead whose tool prints: attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	w.mergedOnce(b)
	b = w.closed(silent)
	if len(b.Runs) != 2 || b.Attempt != 1 || b.Charged != 0 || !strings.Contains(b.Runs[0].Reason, "no sign of life") {
		t.Errorf("the bead whose tool is silent: attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	w.mergedOnce(b)
	var nudged []string
	for _, e := range w.ledger("run.nudged", "run.stopping") {
		nudged = append(nudged, e.Kind+" "+e.Subject)
	}
	if want := []string{"run.nudged " + silent + ".1", "run.stopping " + silent + ".1"}; !slices.Equal(nudged, want) {
		t.Errorf("the ladder was used for %q, want %q", nudged, want)
	}
	w.quiet()
}
