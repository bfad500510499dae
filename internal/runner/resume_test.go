package runner

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/town"
)

// untilSaved lets a run work until its work was checkpointed, and returns what
// was reported of it.
func (f *fakeTown) untilSaved() (started, saved town.Report) {
	f.t.Helper()
	started = f.awaitReport(town.ReportStarted, 0)
	f.awaitFile("half.txt")
	f.await("a checkpoint with the file", func() bool {
		for _, r := range f.reports {
			if r.Kind == town.ReportCheckpoint {
				if _, err := f.try(f.dir, "cat-file", "-e", r.Commit+":half.txt"); err == nil {
					saved = r
				}
			}
		}
		return saved.Commit != ""
	})
	return started, saved
}

// nextRun wants the run after one that was cut off. Its script fails unless the
// work is there and the session had so many turns.
func (f *fakeTown) nextRun(started, saved town.Report, turns string) {
	f.t.Helper()
	f.mu.Lock()
	f.body = script("test \"$(cat half.txt)\" = half; test \"$(git log -1 --format=%s)\" = committed; echo resumed $GASTOWN_RESUMED; test $GASTOWN_RESUMED = " + turns)
	f.mu.Unlock()
	f.publish(func(d *town.Desired) {
		n := d.Runs[0]
		n.ID, n.Epoch, n.Resume, n.ResumeRef, n.Session, n.TurnNudges = "app-aaaaa.2", 2, saved.Commit, saved.Ref, started.Session, 0
		d.Runs = []town.DesiredRun{n}
	})
}

func (f *fakeTown) wantDone(epoch int64) {
	f.t.Helper()
	f.await("the end of the second run", func() bool {
		for _, r := range f.reports {
			if r.Kind == town.ReportEnded && r.Epoch == epoch {
				if r.Outcome != town.OutcomeDone {
					f.t.Errorf("ended: %+v\n%s", r, f.storyLocked())
				}
				return true
			}
		}
		return false
	})
}

// interrupted is a town with a run whose agent works for ever; its work is
// saved all the time.
func interrupted(t *testing.T) *fakeTown {
	f := newTown(t)
	f.body = "```sh end=hang\ngit commit -q --allow-empty -m committed; echo half > x; mv x half.txt\n```\n"
	f.doc.Rigs[0].CheckpointMS = 50
	f.addRun(nil)
	return f
}

func TestAfterTheAgentWasKilledTheNextRunHasItsWorkAndItsSession(t *testing.T) {
	t.Parallel()
	f := interrupted(t)
	f.begin(nil)
	started, _ := f.untilSaved()
	if err := syscall.Kill(started.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.awaitReport(town.ReportEnded, 0)
	f.nextRun(started, f.lastCheckpoint(), "1")
	f.wantDone(2)
	f.awaitStory(`"status":"resumed"`)
}

func TestAfterTheRunnerWasKilledTheNextRunHasItsWorkAndItsSession(t *testing.T) {
	t.Parallel()
	f := interrupted(t)
	kill := f.beginProcess()
	started, _ := f.untilSaved()
	kill()
	// Agents have process groups of their own; a driver ends them with the sandbox.
	if err := syscall.Kill(-started.PID, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		t.Fatal(err)
	}
	f.nextRun(started, f.lastCheckpoint(), "1")
	f.begin(nil)
	f.wantDone(2)
	f.awaitStory(`"status":"resumed"`)
}

func TestAfterTheDiskWasLostTheNextRunHasItsWorkInANewSession(t *testing.T) {
	t.Parallel()
	f := interrupted(t)
	kill := f.beginProcess()
	started, _ := f.untilSaved()
	kill()
	if err := syscall.Kill(-started.PID, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		t.Fatal(err)
	}
	session := filepath.Join(os.Getenv("XDG_DATA_HOME"), "gastown-scripted", started.Session+".json")
	for _, p := range []string{f.disk, session} {
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
	}
	f.nextRun(started, f.lastCheckpoint(), "0")
	f.begin(nil)
	f.wantDone(2)
	f.awaitStory(`"status":"not_resumed"`)
}

// lastCheckpoint is the newest checkpoint that the server heard of and holds.
func (f *fakeTown) lastCheckpoint() town.Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	var last town.Report
	for _, r := range f.reports {
		if r.Kind == town.ReportCheckpoint && r.Epoch == 1 {
			last = r
		}
	}
	return last
}

func TestASessionThatKillsItsAgentCostsOnlyTheSession(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = script("test $GASTOWN_RESUMED = 0; echo x > x.txt")
	f.addRun(func(d *town.DesiredRun) { d.Session = "scripted-POISON" })
	f.begin(func(c *Config) {
		c.Start = func(ctx context.Context, s agent.Spec) (agent.Session, error) {
			if s.LoadSession != "" {
				return nil, errs.New(errs.Unavailable, "agent scripted: session/load failed: it died")
			}
			return agent.Launch(ctx, s)
		}
	})
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.Contains(f.storyLocked(), "not_resumed") {
		t.Error("nobody is told that the session is lost")
	}
}
