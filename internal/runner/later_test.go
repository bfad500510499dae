package runner

import (
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"gastown/internal/town"
)

func TestWorkThatWasPushedButNotReportedIsNotLost(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	gate := filepath.Join(t.TempDir(), "go")
	f.body = "```sh end=hang\ngit commit -q --allow-empty -m committed; echo half > x; mv x half.txt\n" +
		"while ! test -e " + gate + "; do sleep 0.02; done\necho late > y; mv y late.txt\n```\n"
	f.doc.Rigs[0].CheckpointMS = 50
	f.addRun(nil)
	kill := f.beginProcess()
	started, saved := f.untilSaved()
	f.write(filepath.Dir(gate), "go", "")
	f.await("a later checkpoint", func() bool {
		_, err := f.try(f.dir, "cat-file", "-e", "refs/gastown/wip/app-aaaaa/1:late.txt")
		return err == nil
	})
	kill()
	if err := syscall.Kill(-started.PID, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		t.Fatal(err)
	}
	// The town never heard of the later one: it names the one before.
	f.nextRun(started, saved, "1")
	f.mu.Lock()
	f.body = script("test \"$(cat late.txt)\" = late; test \"$(git log -1 --format=%s)\" = committed")
	f.mu.Unlock()
	f.begin(nil)
	f.wantDone(2)
}

func TestALaterCheckpointIsOneOfWorkThatWasCutOff(t *testing.T) {
	t.Parallel()
	b := newWorkbench(t)
	a, err := newAPI(b.srv.URL, "token-1")
	if err != nil {
		t.Fatal(err)
	}
	lb, err := newLoopback(a, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- lb.serve() }()
	t.Cleanup(func() {
		if err := lb.close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	b.clone.of.hub = hubAccess{base: lb.base + "/git/" + ownEndpoint, secret: lb.secret}
	r := &Runner{cfg: Config{Disk: b.disk}, log: testLog(t), rigs: b.clone.of}
	b.write(b.w.dir, "x", "x")
	old := b.save().Commit
	b.write(b.w.dir, "y", "y")
	later := b.save().Commit
	const wip = "refs/gastown/wip/app-aaaaa/"
	for name, c := range map[string]struct {
		hub   map[int]string // checkpoints by epoch
		known int            // epoch of the one that the town knows
		epoch int64
		edit  func(d *town.DesiredRun)
		want  string
	}{
		"nothing is newer":                    {hub: map[int]string{3: old}, known: 3, epoch: 4},
		"its report was lost":                 {hub: map[int]string{3: later}, known: 3, epoch: 4, want: later},
		"the run after it was cut off, too":   {hub: map[int]string{3: old, 4: later}, known: 3, epoch: 5, want: later},
		"epochs are numbers":                  {hub: map[int]string{9: old, 10: later}, known: 9, epoch: 11, want: later},
		"its own are not for it":              {hub: map[int]string{3: old, 4: later}, known: 3, epoch: 4},
		"older ones were settled":             {hub: map[int]string{2: later}, known: 3, epoch: 4},
		"after a verdict there is none":       {hub: map[int]string{3: later}, known: 3, epoch: 4, edit: func(d *town.DesiredRun) { d.Resume, d.ResumeRef = "", "" }},
		"it must stand on the base":           {hub: map[int]string{3: later}, known: 3, epoch: 4, edit: func(d *town.DesiredRun) { d.Base = later }},
		"another bead's reference is ignored": {hub: map[int]string{3: later}, known: 3, epoch: 4, edit: func(d *town.DesiredRun) { d.ResumeRef = "refs/gastown/wip/app-b/3" }},
	} {
		var refs []string
		for epoch, commit := range c.hub {
			ref := wip + strconv.Itoa(epoch)
			b.must(b.clone.dir, "push", "-q", b.dir, commit+":"+ref)
			refs = append(refs, ref)
		}
		d := town.DesiredRun{ID: theBead + "." + strconv.FormatInt(c.epoch, 10), Rig: "app", Bead: theBead, Epoch: c.epoch, Base: b.tip,
			Resume: old, ResumeRef: wip + strconv.Itoa(c.known)}
		if c.edit != nil {
			c.edit(&d)
		}
		if got := r.takeLater(t.Context(), d, b.clone); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
		for _, ref := range refs {
			b.must(b.dir, "update-ref", "-d", ref)
		}
	}
	b.change(func() { b.down = true })
	if got := r.takeLater(t.Context(), town.DesiredRun{ID: theBead + ".4", Rig: "app", Bead: theBead, Epoch: 4, Base: b.tip, Resume: old, ResumeRef: wip + "3"}, b.clone); got != "" {
		t.Errorf("without the hub: %q", got)
	}
}
