package town

import "strconv"

// restored makes a town that came out of a backup safe to go on with.
//
// What happened after the backup is undone here but not outside: sandboxes of
// later generations may run, disks hold later work, and epochs begin to repeat. So
// the generation goes beyond every one that ever was, no message of an older one
// counts any more (Floor), the next sandbox gets a fresh disk, and runs end as
// lost, charged to nobody; they go on from the checkpoints that the backup holds.
func (t *Town) restored(now Time, in Restored) {
	s := &t.info.Sandbox
	// Nobody knows for how long the sandbox was awake after the backup.
	for _, u := range split(t.info.Meter, min(now, in.At)) {
		t.book(u)
	}
	t.info.Meter = Meter{}
	for _, key := range []string{"sandbox/admit", "sandbox/start", "sandbox/stop", "sandbox/inspect"} {
		t.dropClaim(key) // of a sandbox that is no longer this town's
	}
	for _, r := range t.sortedRuns() {
		t.endRun(r, now, OutcomeLost, ClassInfra, "the server was restored from a backup")
	}
	s.Generation = max(s.Generation, in.Generation)
	s.Floor, s.FreshDisk = s.Generation, true
	s.Position, s.AdmitAt = 0, 0
	if s.State != SandboxAsleep {
		t.setSandbox(now, SandboxAsleep, "the server was restored from a backup")
	}
	if in.Running > 0 {
		s.Generation = max(s.Generation, in.Running)
		s.Floor, s.Leftover = s.Generation, in.Running
		t.setSandbox(now, SandboxStopping, "it belongs to what the restore undid")
	}
	t.mark(kindTown, t.info.ID)
	t.log(now, "town.restored", t.info.Name, "", "the server was restored from a backup of "+in.At.Time().UTC().Format("2006-01-02 15:04:05")+" UTC",
		"generation", strconv.FormatInt(s.Generation, 10))
}
