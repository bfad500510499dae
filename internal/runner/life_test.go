package runner

import (
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/town"
)

// silence is the silence after which a stuck agent would be nudged, in these tests.
const silence = 200 * time.Millisecond

// heard lists what heartbeats beyond the first skip say of the one run's silence.
// f.mu must be held.
func (f *fakeTown) heard(skip int) (idle []time.Duration) {
	for _, r := range f.reports {
		if r.Kind != town.ReportHeartbeat || len(r.Runs) != 1 {
			continue
		}
		if skip--; skip < 0 {
			idle = append(idle, time.Duration(r.Runs[0].IdleMS)*time.Millisecond)
		}
	}
	return idle
}

// awaitIdle waits for a heartbeat, later than all so far, by which the run would
// be nudged (quiet), or would not.
func (f *fakeTown) awaitIdle(quiet bool) {
	f.t.Helper()
	f.mu.Lock()
	from := len(f.heard(0))
	f.mu.Unlock()
	f.await(map[bool]string{true: "a silent run", false: "a run that lives"}[quiet], func() bool {
		for _, idle := range f.heard(from) {
			if idle >= silence == quiet {
				return true
			}
		}
		return false
	})
}

// A tool that prints nothing is silence, and would get its agent nudged. The same
// tool is alive for as long as it prints, also beyond that limit.
func TestAToolThatPrintsIsASignOfLife(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.doc.Heartbeat = 20
	dir := t.TempDir()
	f.body = "```sh\nuntil test -e " + dir + "/print; do sleep 0.02; done\n" +
		"until test -e " + dir + "/hush; do echo working; sleep 0.02; done\n" +
		"until test -e " + dir + "/end; do sleep 0.02; done\necho hello > greeting.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	f.awaitIdle(true)

	f.write(dir, "print", "")
	f.awaitIdle(false)
	f.mu.Lock()
	from := len(f.heard(0))
	f.mu.Unlock()
	const beats = 40 // several times the limit
	f.await("heartbeats of a run that prints", func() bool { return len(f.heard(from)) >= beats })
	f.mu.Lock()
	alive := 0
	for _, idle := range f.heard(from)[:beats] {
		if idle < silence {
			alive++
		}
	}
	f.mu.Unlock()
	if alive < beats/2 { // a busy machine may stand still for a while
		t.Errorf("only %d of %d heartbeats say that the run lives", alive, beats)
	}

	f.write(dir, "hush", "")
	f.awaitIdle(true)
	f.write(dir, "end", "")
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestWhateverAnAgentSaysIsASignOfLife(t *testing.T) {
	t.Parallel()
	for _, kind := range []agent.Kind{agent.KindMessage, agent.KindThought, agent.KindToolCall, agent.KindToolUpdate, agent.KindPlan,
		agent.KindPermission, agent.KindUsage, agent.KindOther, agent.KindStderr, agent.KindNoise} {
		n := &run{r: &Runner{transcripts: newTranscripts(testLog(t), time.Now)}}
		n.event(agent.Event{Kind: kind, Text: "working"})
		if n.idle(time.Now()) > time.Minute {
			t.Errorf("%s is no sign of life", kind)
		}
	}
	n := &run{r: &Runner{transcripts: newTranscripts(testLog(t), time.Now)}}
	n.event(agent.Event{Kind: agent.KindLifecycle, Text: "noted"})
	if n.idle(time.Now()) < time.Minute {
		t.Error("what the runner itself notes counts as a sign of life of the agent")
	}
}
