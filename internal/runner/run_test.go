package runner

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

func script(body string) string { return "```sh\n" + body + "\n```\n" }

func TestARunFromTheDocumentToDone(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = script("echo hello > greeting.txt")
	f.addRun(nil)
	f.begin(nil)
	started := f.awaitReport(town.ReportStarted, 0)
	if started.Run != theRun || started.Epoch != 1 || started.PID <= 0 || started.Session == "" {
		t.Errorf("started: %+v", started)
	}
	ended := f.awaitReport(town.ReportEnded, 0)
	if ended.Outcome != town.OutcomeDone || ended.Run != theRun || ended.Class != "" {
		t.Errorf("ended: %+v", ended)
	}
	if got := f.must(f.dir, "show", "refs/heads/"+branch+":greeting.txt"); got != "hello" {
		t.Errorf("the hub holds %q", got)
	}
	if got := f.must(f.dir, "log", "-1", "--format=%an <%ae>", "refs/heads/"+branch); got != "Nux <nux@example.org>" {
		t.Errorf("the author is %q", got)
	}
	f.awaitStory("worktree_ready")
	f.awaitStory("done was accepted")
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.verdicts); n != 1 {
		t.Errorf("%d verdicts", n)
	}
	if strings.Contains(f.storyLocked(), "reminded") {
		t.Error("an agent with an accepted verdict was reminded")
	}
}

func TestANudgeAfterATurnWithoutVerdict(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=none\necho one > x.txt\n```\n```sh nudge=1\necho two > x.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
	f.awaitStory("reminded")
}

func TestAnAgentThatNeverGivesAVerdictIsRemindedThenEnds(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=none\necho work >> x.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeExited || e.Class != town.ClassWork || !strings.Contains(e.Reason, "after 3 turns") {
		t.Errorf("ended: %+v", e)
	}
	f.awaitStory("reminded")
}

func TestAMissingAgentIsSaidToBeMissing(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.addRun(func(d *town.DesiredRun) { d.Preset = "ghost" })
	ghost := commandPreset("ghost", "")
	ghost.Command, ghost.InstallHint = "no-such-program-anywhere", "install the ghost"
	f.begin(func(c *Config) { c.Presets = agent.Presets{"ghost": ghost} })
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeFailed || e.Class != town.ClassInfra || e.Subject != town.SubjectMissing || !strings.Contains(e.Reason, "install the ghost") {
		t.Errorf("ended: %+v", e)
	}
}

func TestAnAgentThatDiesAtOnceTellsItsStderr(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.addRun(func(d *town.DesiredRun) { d.Preset = "broken" })
	f.begin(func(c *Config) {
		c.Presets = agent.Presets{"broken": commandPreset("broken", "echo the licence expired >&2; exit 7")}
	})
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeFailed || e.Class != town.ClassInfra || e.Subject != "agent/broken" || !strings.Contains(e.Reason, "the licence expired") {
		t.Errorf("ended: %+v", e)
	}
}

func TestAnAgentThatCrashesInMidTurnIsChargedToTheWork(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=crash\necho half > half.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeFailed || e.Class != town.ClassWork || !strings.Contains(e.Reason, "agent exited") {
		t.Errorf("ended: %+v", e)
	}
	cp := f.awaitReport(town.ReportCheckpoint, 0)
	if got := f.must(f.dir, "show", cp.Commit+":half.txt"); got != "half" {
		t.Errorf("the checkpoint holds %q", got)
	}
}

func TestAnAgentThatIsKilledInMidTurnIsNotChargedToTheWork(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\necho half > x; mv x half.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	started := f.awaitReport(town.ReportStarted, 0)
	f.awaitFile("half.txt")
	if err := syscall.Kill(started.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeFailed || e.Class != town.ClassInfra || e.Subject != town.SubjectKilled || !strings.Contains(e.Reason, "killed") {
		t.Errorf("ended: %+v", e)
	}
	if cp := f.awaitReport(town.ReportCheckpoint, 0); f.must(f.dir, "show", cp.Commit+":half.txt") != "half" {
		t.Error("the work of the dead agent was not saved")
	}
}

func TestAServerThatIsAwayWhenAnAgentIsDoneCostsNoTurn(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh\necho x > x; mv x half.txt\nwhile [ ! -e go.txt ]; do sleep 0.02; done\nrm go.txt\n```\n"
	f.addRun(func(d *town.DesiredRun) { d.TurnNudges = 0 })
	f.begin(nil)
	f.awaitFile("half.txt")
	f.change(func() { f.down, f.calls = true, nil })
	if err := os.WriteFile(filepath.Join(f.disk, "work", "app", theBead, "tree", "go.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f.await("pushes in vain", func() bool {
		n := 0
		for _, c := range f.calls {
			if strings.HasPrefix(c, "GET "+wire.PathGit) {
				n++
			}
		}
		return n >= 2
	})
	f.change(func() { f.down = false })
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestABranchThatIsLockedForAMomentCostsNoTurn(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh\necho x > done.txt\n```\n"
	f.addRun(func(d *town.DesiredRun) { d.TurnNudges = 0 })
	lock := filepath.Join(f.dir, "refs/heads", branch+".lock")
	if err := errors.Join(os.MkdirAll(filepath.Dir(lock), 0o755), os.WriteFile(lock, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	f.begin(nil)
	f.await("a second try", func() bool {
		n := 0
		for _, c := range f.calls {
			if strings.HasPrefix(c, "POST "+wire.PathGit) && strings.HasSuffix(c, "git-receive-pack") {
				n++
			}
		}
		return n >= 2
	})
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestAnAgentThatGetsNoAnswerIsNotChargedToTheWork(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=no_change\ntrue\n```\n"
	f.onVerdict = func(wire.VerdictRequest) error { return errs.New(errs.Unavailable, "the disk is full") }
	f.addRun(func(d *town.DesiredRun) { d.TurnNudges = 1 })
	f.begin(func(c *Config) { c.Timing.Answer = 20 * time.Millisecond })
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeExited || e.Class != town.ClassInfra || e.Subject != "rig/app" || !strings.Contains(e.Reason, "after 2 turns") {
		t.Errorf("ended: %+v", e)
	}
}

func TestHeartbeatsNameTheLivingRuns(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.doc.Heartbeat = 20
	h := f.play(nil)
	f.await("heartbeat of the run", func() bool {
		for _, r := range f.reports {
			if r.Kind == town.ReportHeartbeat && len(r.Runs) == 1 && r.Runs[0].Run == theRun && r.Runs[0].Epoch == 1 && r.Runs[0].IdleMS >= 20 {
				return true
			}
		}
		return false
	})
	close(h.release)
}

func TestAVerdictLetsTheTurnEndOnlySoLong(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	h := f.play(nil)
	f.publish(func(d *town.Desired) {
		d.Runs = append([]town.DesiredRun(nil), d.Runs...)
		d.Runs[0].Verdict = town.OutcomeNoChange
	})
	// The turn never ends by itself: the grace does.
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeNoChange || h.session.Closed() == 0 {
		t.Errorf("ended: %+v", e)
	}
}

func TestARunThatIsToldToStopSavesItsWorkFirst(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\necho unsaved > x; mv x unsaved.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	started := f.awaitReport(town.ReportStarted, 0)
	f.awaitFile("unsaved.txt")
	f.publish(func(d *town.Desired) {
		d.Runs = append([]town.DesiredRun(nil), d.Runs...)
		d.Runs[0].Stop = "cancelled by a person"
	})
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeStopped || e.Reason != "cancelled by a person" {
		t.Errorf("ended: %+v", e)
	}
	cp := f.awaitReport(town.ReportCheckpoint, 0)
	if got := f.must(f.dir, "show", cp.Commit+":unsaved.txt"); got != "unsaved" {
		t.Errorf("the checkpoint holds %q", got)
	}
	if cp.Ref != "refs/gastown/wip/app-aaaaa/1" {
		t.Errorf("the checkpoint is on %s", cp.Ref)
	}
	if f.order(town.ReportEnded) < f.order(town.ReportCheckpoint) {
		t.Error("the run's end was reported before its last checkpoint")
	}
	if alive(started.PID) {
		t.Error("the agent still runs")
	}
}

// order is the place of the last report of a kind.
func (f *fakeTown) order(kind town.ReportKind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := -1
	for i, r := range f.reports {
		if r.Kind == kind {
			at = i
		}
	}
	return at
}

func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	return err == nil && p.Signal(signal0()) == nil
}

// awaitFile waits for a file of the worktree. Nothing announces a file of an
// agent, so it is looked for again and again.
func (f *fakeTown) awaitFile(name string) {
	f.t.Helper()
	f.awaitPath(filepath.Join(f.disk, "work", "app", theBead, "tree", name))
}

func (f *fakeTown) awaitPath(path string) {
	f.t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-again.C:
		case <-end.C:
			f.t.Fatalf("nobody made %s", path)
		}
	}
}

func TestARunThatVanishesFromTheDocumentIsStopped(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\ntrue\n```\n"
	f.addRun(nil)
	f.begin(nil)
	f.awaitReport(town.ReportStarted, 0)
	f.publish(func(d *town.Desired) { d.Runs = nil })
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeStopped {
		t.Errorf("ended: %+v", e)
	}
}

func TestDrainStopsEverythingAndIsWithdrawn(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\necho x > x.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	f.awaitReport(town.ReportStarted, 0)
	f.publish(func(d *town.Desired) { d.Drain = true })
	f.awaitReport(town.ReportDrained, 0)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeStopped {
		t.Errorf("ended: %+v", e)
	}
	if f.order(town.ReportEnded) > f.order(town.ReportDrained) {
		t.Error("drained was reported before the run had ended")
	}
	f.mu.Lock()
	f.body = script("echo again > again.txt")
	f.mu.Unlock()
	f.publish(func(d *town.Desired) {
		d.Drain = false
		n := d.Runs[0]
		n.ID, n.Epoch = "app-aaaaa.2", 2
		d.Runs = []town.DesiredRun{n}
	})
	if e := f.awaitReport(town.ReportEnded, 1); e.Outcome != town.OutcomeDone || e.Epoch != 2 {
		t.Errorf("ended: %+v", e)
	}
	f.publish(func(d *town.Desired) { d.Drain, d.Runs = true, nil })
	f.awaitReport(town.ReportDrained, 1)
}

func TestAnEpochIsNeverRunTwice(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = script("echo once >> x.txt")
	f.addRun(nil)
	f.begin(nil)
	f.awaitReport(town.ReportEnded, 0)
	f.publish(func(d *town.Desired) { d.Heartbeat = 10 })
	f.awaitReport(town.ReportHeartbeat, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	starts := 0
	for _, r := range f.reports {
		if r.Kind == town.ReportStarted {
			starts++
		}
		if r.Kind == town.ReportHeartbeat && len(r.Runs) != 0 {
			t.Errorf("an ended run lives on in the heartbeat: %+v", r)
		}
	}
	if starts != 1 {
		t.Errorf("started %d times", starts)
	}
}

func TestResumeRestoresUntrackedFilesAndTheBranch(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\necho two > a.txt; git commit -qam committed; echo three > a.txt; mkdir new; echo fresh > new/file; echo no > ignored; touch ready\n```\n"
	f.addRun(nil)
	r := f.begin(nil)
	f.awaitFile("ready")
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	cp := f.awaitReport(town.ReportCheckpoint, 0)
	if err := os.RemoveAll(f.disk); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.body = "```sh end=none\ngit status --porcelain > ../status; git log -1 --format=%s > ../subject; cat a.txt new/file > ../content\n```\n"
	f.mu.Unlock()
	f.publish(func(d *town.Desired) {
		n := d.Runs[0]
		n.ID, n.Epoch, n.Resume, n.ResumeRef, n.TurnNudges = "app-aaaaa.2", 2, cp.Commit, cp.Ref, 0
		d.Runs = []town.DesiredRun{n}
	})
	f.begin(nil)
	f.awaitReport(town.ReportEnded, 1)
	for file, want := range map[string]string{
		"status": " M a.txt\n?? new/\n?? ready\n", "subject": "committed\n", "content": "three\nfresh\n",
	} {
		got, err := os.ReadFile(filepath.Join(f.disk, "work", "app", theBead, file))
		if err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", file, got, err, want)
		}
	}
}

func TestAnOldGenerationKillsItsAgentsAndLeaves(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\ntrue\n```\n"
	f.addRun(nil)
	r := f.begin(nil)
	started := f.awaitReport(town.ReportStarted, 0)
	f.change(func() { f.gone = true })
	if err := r.wait(); err != nil {
		t.Errorf("the runner ended with %v", err)
	}
	if alive(started.PID) {
		t.Error("the agent still runs")
	}
}

func TestAnOldGenerationAtHelloWritesNothing(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.change(func() { f.gone = true })
	if err := f.begin(nil).wait(); err != nil {
		t.Errorf("the runner ended with %v", err)
	}
	if entries, err := os.ReadDir(f.disk); err != nil || len(entries) != 0 {
		t.Errorf("the disk has %v (%v)", entries, err)
	}
}

func TestNudgesOfPeopleAreDeliveredAndAcknowledged(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=none\necho in > x; mv x in.txt\nwhile [ ! -e go.txt ]; do sleep 0.02; done\n```\n```sh nudge=1\necho ok > ok.txt\n```\n"
	f.addRun(func(d *town.DesiredRun) { d.TurnNudges = 0 })
	f.begin(nil)
	f.awaitFile("in.txt")
	f.sendNudges(town.Nudge{N: 1, Text: "look"}, town.Nudge{N: 2, Text: "look again", From: "ada"})
	if err := os.WriteFile(f.file(theBead, "go.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if n := f.awaitReport(town.ReportNudged, 0); n.Nudge != 2 {
		t.Errorf("nudged: %+v", n)
	}
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func (f *fakeTown) sendNudges(all ...town.Nudge) {
	f.publish(func(d *town.Desired) {
		d.Runs = slices.Clone(d.Runs)
		d.Runs[0].Nudges = all
	})
}

func TestWhatTheRunBeforeDidNotReadIsInTheFirstPrompt(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh nudge=0\necho ok > ok.txt\n```\n"
	f.addRun(func(d *town.DesiredRun) {
		d.TurnNudges, d.Nudges = 0, []town.Nudge{{N: 7, Text: "mind the gap", From: "ada"}}
	})
	f.begin(nil)
	if n := f.awaitReport(town.ReportNudged, 0); n.Nudge != 7 {
		t.Errorf("nudged: %+v", n)
	}
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
	f.awaitStory("Message from ada: mind the gap")
}

func TestAMessageThatInterruptsEndsTheTurnAndIsReadOnce(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang nudge=0\necho in > x; mv x in.txt\n```\n```sh nudge=1\necho in2 > x; mv x in2.txt; while [ ! -e go.txt ]; do sleep 0.02; done; rm go.txt\n```\n"
	f.addRun(func(d *town.DesiredRun) { d.TurnNudges = 0 })
	f.begin(nil)
	f.awaitFile("in.txt")
	urgent := town.Nudge{N: 1, Text: "stop, the other way", From: "ada", Interrupt: true}
	f.sendNudges(urgent)
	if n := f.awaitReport(town.ReportNudged, 0); n.Nudge != 1 {
		t.Errorf("nudged: %+v", n)
	}
	f.awaitFile("in2.txt")
	f.sendNudges(urgent) // the acknowledgement is not yet in the document: it is the same message
	if err := os.WriteFile(f.file(theBead, "go.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
	f.awaitStory(`"status":"ended"`)
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := strings.Count(f.storyLocked(), `"status":"interrupted"`); n != 1 {
		t.Errorf("the turn was interrupted %d times", n)
	}
	if n := strings.Count(f.storyLocked(), "Message from ada"); n != 1 {
		t.Errorf("the message was delivered %d times", n)
	}
}

func TestATimeLimitEndsARun(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\ntrue\n```\n"
	f.addRun(func(d *town.DesiredRun) { d.TimeLimitMS = 300 })
	f.begin(nil)
	e := f.awaitReport(town.ReportEnded, 0)
	if e.Outcome != town.OutcomeExited || e.Class != town.ClassWork || !strings.Contains(e.Reason, "time limit") {
		t.Errorf("ended: %+v", e)
	}
}

func TestAnExpiredTokenIsExchangedOnce(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = script("echo hello > greeting.txt")
	f.token = "token-2"
	f.addRun(nil)
	f.begin(nil)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.exchanged != 1 {
		t.Errorf("exchanged %d times", f.exchanged)
	}
}

func TestADoneRefusedByTheServerReachesTheAgent(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh\ntrue\n```\n```sh nudge=1\necho now > now.txt\n```\n"
	f.addRun(nil)
	f.begin(nil)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
	f.awaitStory("the commit changes nothing")
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.verdicts) != 2 || f.verdicts[0].CallID == f.verdicts[1].CallID {
		t.Errorf("verdicts: %+v", f.verdicts)
	}
}

func TestAVerdictWhoseAnswerWasLostIsRepeatedWithTheSameID(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = script("echo hello > greeting.txt")
	lost := false
	f.onVerdict = func(wire.VerdictRequest) error {
		if !lost {
			lost = true
			return errs.New(errs.Unavailable, "the commit's outcome is unknown")
		}
		return nil
	}
	f.addRun(nil)
	f.begin(nil)
	f.awaitReport(town.ReportEnded, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.verdicts) != 2 || f.verdicts[0].CallID != f.verdicts[1].CallID {
		t.Errorf("verdicts: %+v", f.verdicts)
	}
}

func TestNamesThatLeaveTheDiskAreRefused(t *testing.T) {
	t.Parallel()
	good := town.DesiredRun{ID: theRun, Bead: theBead, Epoch: 1, Rig: "app", Branch: branch, Start: strings.Repeat("a", 40)}
	if err := checkRun(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(d *town.DesiredRun){
		"bead above":      func(d *town.DesiredRun) { d.Bead = "../../etc" },
		"bead as flag":    func(d *town.DesiredRun) { d.Bead = "-rf" },
		"bead with slash": func(d *town.DesiredRun) { d.Bead = "a/b" },
		"empty bead":      func(d *town.DesiredRun) { d.Bead = "" },
		"rig above":       func(d *town.DesiredRun) { d.Rig = ".." },
		"rig as flag":     func(d *town.DesiredRun) { d.Rig = "--bare" },
		"run above":       func(d *town.DesiredRun) { d.ID = ".." },
		"run as own":      func(d *town.DesiredRun) { d.ID = ownEndpoint },
		"branch as flag":  func(d *town.DesiredRun) { d.Branch = "--force" },
		"branch above":    func(d *town.DesiredRun) { d.Branch = "a/../../config" },
		"start as flag":   func(d *town.DesiredRun) { d.Start = "--upload-pack=touch /tmp/x" },
		"no start":        func(d *town.DesiredRun) { d.Start = "" },
		"resume as ref":   func(d *town.DesiredRun) { d.Resume = "HEAD" },
		"provider above":  func(d *town.DesiredRun) { d.Provider = "../token" },
		"no epoch":        func(d *town.DesiredRun) { d.Epoch = 0 },
	} {
		d := good
		edit(&d)
		if err := checkRun(d); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := newTown(t)
	f.addRun(func(d *town.DesiredRun) { d.Bead = "../../../escaped" })
	f.begin(nil)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeFailed || e.Class != town.ClassInfra {
		t.Errorf("ended: %+v", e)
	}
}

func TestASecondRunnerOnTheDiskWaitsThenLeaves(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	first := f.begin(nil)
	f.await("hello", func() bool { return f.stream != "" })
	second := f.begin(func(c *Config) { c.Timing.LockWait = 100 * time.Millisecond })
	if err := second.wait(); !errs.Is(err, errs.Conflict) {
		t.Errorf("the second runner ended with %v", err)
	}
	third := f.begin(nil)
	first.stop()
	if err := first.wait(); err != nil {
		t.Error(err)
	}
	f.await("second hello", func() bool {
		n := 0
		for _, c := range f.calls {
			if c == "POST "+wire.PathHello {
				n++
			}
		}
		return n == 2
	})
	third.stop()
	if err := third.wait(); err != nil {
		t.Error(err)
	}
}

func TestWithoutContactTheWorkIsKeptOnDiskAndTheRunnerExits(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = "```sh end=hang\necho kept > x; mv x kept.txt\n```\n"
	f.addRun(nil)
	r := f.begin(func(c *Config) { c.Timing.Contact = 700 * time.Millisecond })
	f.awaitFile("kept.txt")
	f.change(func() { f.down = true })
	f.srv.CloseClientConnections()
	if err := r.wait(); !errs.Is(err, errs.Unavailable) {
		t.Errorf("the runner ended with %v", err)
	}
	got := f.must(filepath.Join(f.disk, "rigs", "app.git"), "show", "refs/gastown/wip/app-aaaaa/1:kept.txt")
	if got != "kept" {
		t.Errorf("the checkpoint on disk holds %q", got)
	}
	f.mu.Lock()
	f.down, f.body = false, script("test $(cat kept.txt) = kept")
	f.mu.Unlock()
	f.publish(func(d *town.Desired) {
		n := d.Runs[0]
		n.ID, n.Epoch = "app-aaaaa.2", 2
		d.Runs = []town.DesiredRun{n}
	})
	f.begin(nil)
	f.awaitStory("with the work of checkpoint")
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone || e.Epoch != 2 {
		t.Errorf("ended: %+v", e)
	}
}

func TestACheckpointOnDiskIsForTheNextEpochOnTheSameBaseOnly(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	r := &Runner{cfg: Config{Disk: b.disk}, log: testLog(t), rigs: b.clone.of}
	b.write(b.w.dir, "x", "x")
	commit := b.save().Commit
	d := town.DesiredRun{Rig: "app", Bead: theBead, Epoch: 3, Base: b.tip}
	for want, edit := range map[string]func(d *town.DesiredRun){
		commit: func(d *town.DesiredRun) { d.Epoch = 4 },
		"":     func(d *town.DesiredRun) { d.Epoch = 5 },
		" ":    func(d *town.DesiredRun) { d.Epoch, d.Base = 4, commit },
	} {
		if err := r.keepUnsent(d, commit); err != nil {
			t.Fatal(err)
		}
		next := d
		edit(&next)
		if got := r.takeUnsent(t.Context(), next, b.clone); got != strings.TrimSpace(want) {
			t.Errorf("epoch %d on %s: %q", next.Epoch, next.Base, got)
		}
		if got := r.takeUnsent(t.Context(), next, b.clone); got != "" {
			t.Errorf("it was given twice: %q", got)
		}
	}
}
