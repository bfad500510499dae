package runner

import (
	"slices"
	"strings"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// once fails unless exactly one report of each kind arrived.
func (f *fakeTown) once(kinds ...town.ReportKind) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, kind := range kinds {
		n := 0
		for _, r := range f.reports {
			if r.Kind == kind {
				n++
			}
		}
		if n != 1 {
			f.t.Errorf("%d reports of kind %s: %+v", n, kind, f.reports)
		}
	}
}

func TestAnswersThatAreLostAfterTheServerActedNeedNoGuess(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = script("echo hello > greeting.txt")
	for _, path := range []string{wire.PathHello, wire.PathDesired, wire.PathReports, wire.PathVerdict, wire.PathPrime} {
		f.cut[path] = 2
	}
	f.addRun(nil)
	f.begin(nil)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone || e.Epoch != 1 {
		t.Errorf("ended: %+v", e)
	}
	f.once(town.ReportStarted, town.ReportEnded)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.streams) != 3 || len(slices.Compact(slices.Clone(f.streams))) != 1 {
		t.Errorf("hellos of the streams %q: want three of one", f.streams)
	}
	if len(f.verdicts) != 3 || f.verdicts[0].CallID != f.verdicts[2].CallID {
		t.Errorf("verdicts: %+v", f.verdicts)
	}
}

func TestAServerThatCountsOtherwiseGetsEachReportOnce(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]int64{"it knows more": 40, "it knows less": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTown(t)
			f.body = "```sh end=hang\necho x > x; mv x half.txt\n```\n"
			f.doc.Rigs[0].CheckpointMS = 50
			f.addRun(nil)
			f.begin(nil)
			f.untilSaved()
			f.change(func() { f.next = next })
			f.publish(func(d *town.Desired) {
				d.Runs = slices.Clone(d.Runs)
				d.Runs[0].Stop = "a person wants it"
			})
			if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeStopped {
				t.Errorf("ended: %+v", e)
			}
			f.once(town.ReportStarted, town.ReportEnded)
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.next <= next {
				t.Errorf("the server still expects report %d", f.next)
			}
		})
	}
}

func TestADoneOfAnOldEpochStopsItsRunAndNoOther(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(nil)
	f.write(h.dir(), "b.txt", "work\n")
	f.must(h.dir(), "add", "-A")
	f.must(h.dir(), "commit", "-q", "-m", "work")
	f.change(func() {
		f.onVerdict = func(q wire.VerdictRequest) error {
			if q.Epoch == 1 {
				return errs.New(errs.Gone, "run %s, epoch 1, is not current: stop working on it", q.Run)
			}
			return nil
		}
	})
	text, failed := h.call("done", map[string]any{"summary": "finished"})
	if !failed || !strings.Contains(text, "is not current: stop working on it") {
		t.Errorf("the agent reads %q, %v", text, failed)
	}
	// The agent goes on; the runner ends it without a word of the document.
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeStopped || e.Epoch != 1 || h.session.Closed() == 0 {
		t.Errorf("ended: %+v, the agent was closed %d times", e, h.session.Closed())
	}
	// The runner itself lives: it takes the next epoch.
	f.publish(func(d *town.Desired) {
		n := d.Runs[0]
		n.ID, n.Epoch = "app-aaaaa.2", 2
		d.Runs = []town.DesiredRun{n}
	})
	if s := f.awaitReport(town.ReportStarted, 1); s.Epoch != 2 {
		t.Errorf("started: %+v", s)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.verdicts) != 1 {
		t.Errorf("verdicts: %+v", f.verdicts)
	}
}
