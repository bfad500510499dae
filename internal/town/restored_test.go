package town

import (
	"testing"
	"time"
)

// atBackup is a town as a backup holds it: a run at work with a checkpoint.
func atBackup(t *testing.T) (*driver, Run) {
	t.Helper()
	d, r := atWork(t)
	d.report(Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: r.Epoch, Commit: commitName(7), Ref: WipRef(r.Bead, r.Epoch)})
	return d, d.run("web-aaaaa")
}

func TestARestoredTownGoesOnFromTheCheckpointAndIsChargedNothing(t *testing.T) {
	d, r := atBackup(t)
	d.perform = false
	backup := At(d.now)
	awake := d.town.AwakeMS(d.now)
	d.later(48 * time.Hour)
	d.do(Restored{Generation: 9, At: backup})
	b := d.the("web-aaaaa")
	if len(b.Runs) != 1 || b.Runs[0].Outcome != OutcomeLost || b.Runs[0].Class != ClassInfra {
		t.Fatalf("the run of the backup ended as %+v", b.Runs)
	}
	if b.Charged != 0 || b.Losses != 0 || b.Checkpoint != commitName(7) {
		t.Errorf("charged %d, lost %d times, checkpoint %s", b.Charged, b.Losses, b.Checkpoint)
	}
	if got := d.town.AwakeMS(d.now); got != awake {
		t.Errorf("the time after the backup counts as awake: %d ms, then %d", awake, got)
	}
	d.perform = true
	d.do(Tick{})
	again := d.run("web-aaaaa")
	if again.Epoch <= r.Epoch || d.the("web-aaaaa").Checkpoint != commitName(7) {
		t.Errorf("the next run is %+v", again)
	}
	if d.count("town.restored") != 1 {
		t.Error("the ledger does not say so")
	}
}

func TestNoGenerationOfWhatARestoreUndidIsHeard(t *testing.T) {
	d, r := atBackup(t)
	d.perform = false
	d.do(Restored{Generation: 9, At: At(d.now)})
	for _, gen := range []int64{1, 8, 9} {
		d.refused(Hello{Generation: gen, Stream: "s1"}, gone)
		d.refused(Reports{Generation: gen, Stream: "s1", From: 1, Items: []Report{{Kind: ReportHeartbeat}}}, gone)
		d.refused(Verdict{Generation: gen, Run: r.ID, Epoch: r.Epoch, CallID: "x", Kind: VerdictNoChange, Text: "x"}, gone)
		d.refused(Exchange{Generation: gen}, gone)
	}
	d.perform = true
	d.do(Tick{})
	s := d.town.info.Sandbox
	if s.Generation != 10 || s.Floor != 9 {
		t.Fatalf("generation %d, floor %d", s.Generation, s.Floor)
	}
}

func TestARestoredTownBeginsOnAFreshDiskOnce(t *testing.T) {
	d, _ := atBackup(t)
	d.perform = false
	d.do(Restored{Generation: 9, At: At(d.now)})
	d.do(EffectDone{Key: "sandbox/admit", ID: d.claim("sandbox/admit").ID, Result: Admitted{Granted: true}})
	for _, e := range d.town.Effects(d.now) {
		if a, ok := e.Action.(StartSandbox); ok && !a.FreshDisk {
			t.Error("the next run may meet worktrees of the same name from what is undone")
		}
	}
	d.perform = true
	d.pass(time.Second)
	d.hello()
	if d.town.info.Sandbox.FreshDisk {
		t.Error("every later start gets a fresh disk, too")
	}
}

func TestASandboxThatRunsIsStoppedBeforeTheNextBegins(t *testing.T) {
	for _, running := range []int64{2, 9} {
		d, _ := atBackup(t)
		d.perform = false
		d.do(Restored{Generation: 9, Running: running, At: At(d.now)})
		d.wantSandbox(SandboxStopping)
		d.refused(Hello{Generation: 9, Stream: "s1"}, gone)
		d.refused(Reports{Generation: 9, Stream: "s1", From: 1, Items: []Report{{Kind: ReportHeartbeat}}}, gone)
		e := d.claim("sandbox/stop")
		if got := e.Action.(StopSandbox).Generation; got != running {
			t.Errorf("generation %d is stopped, %d runs", got, running)
		}
		d.perform = true
		d.do(EffectDone{Key: e.Key, ID: e.ID})
		d.do(Tick{})
		if s := d.town.info.Sandbox; s.Generation != 10 || s.Leftover != 0 || s.State != SandboxStarting {
			t.Errorf("%+v", s)
		}
	}
}

func TestARestoreNeverLowersAGeneration(t *testing.T) {
	d, _ := atBackup(t)
	d.perform = false
	d.do(Restored{Generation: 0, At: At(d.now)})
	if s := d.town.info.Sandbox; s.Generation != 1 || s.Floor != 1 {
		t.Errorf("%+v", s)
	}
}

func TestASleepingTownThatIsRestoredStaysAsleep(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.do(Restored{Generation: 4, At: At(d.now)})
	d.wantSandbox(SandboxAsleep)
	d.do(Restored{Generation: 4, At: At(d.now)})
	if s := d.town.info.Sandbox; s.Generation != 4 {
		t.Errorf("%+v", s)
	}
}
