package runner

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"gastown/internal/agent"
	"gastown/internal/agent/agenttest"
	"gastown/internal/git"
	"gastown/internal/town"
)

// filled is a clone that holds a commit with n files.
func filled(b *testing.B, f *fakeTown, n int) (*rigClone, string) {
	b.Helper()
	for i := range n {
		f.write(f.work, fmt.Sprintf("d%d/f%d", i%20, i), fmt.Sprintf("file %d\n%02000d\n", i, i))
	}
	f.must(f.work, "add", "-A")
	f.must(f.work, "commit", "-q", "-m", "many")
	commit := f.must(f.work, "rev-parse", "HEAD")
	g, err := git.New()
	if err != nil {
		b.Fatal(err)
	}
	rs := newRigs(filepath.Join(f.disk, "rigs"), g, hubAccess{base: "http://127.0.0.1:1/git/-", secret: "x"})
	c, err := rs.get("app")
	if err != nil {
		b.Fatal(err)
	}
	f.must(c.dir, "fetch", "-q", f.work, "+HEAD:refs/gastown/have/x")
	for _, d := range []string{"trash", "work"} {
		f.write(f.disk, d+"/.keep", "")
	}
	return c, commit
}

func BenchmarkPrepareWorktree100Files(b *testing.B) {
	f := newTown(b)
	c, commit := filled(b, f, 100)
	i := 0
	for b.Loop() {
		i++
		bead := fmt.Sprintf("app-%05d", i)
		_, err := c.prepare(context.Background(), filepath.Join(f.disk, "work", bead), bead, filepath.Join(f.disk, "trash"),
			treeSpec{bead: bead, branch: "gt/nux/" + bead, start: commit})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrepareFromASpare100Files(b *testing.B) {
	f := newTown(b)
	c, commit := filled(b, f, 100)
	sp := newSpares(filepath.Join(f.disk, "spare"))
	i := 0
	for b.Loop() {
		i++
		bead := fmt.Sprintf("app-%05d", i)
		b.StopTimer()
		if err := sp.fill(context.Background(), c, filepath.Join(f.disk, "trash"), commit); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		_, err := c.prepare(context.Background(), filepath.Join(f.disk, "work", bead), bead, filepath.Join(f.disk, "trash"),
			treeSpec{bead: bead, branch: "gt/nux/" + bead, start: commit, spares: sp})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func benchCheckpoint(b *testing.B, change bool) {
	f := newTown(b)
	c, commit := filled(b, f, 2000)
	dir := filepath.Join(f.disk, "work", theBead)
	w, err := c.prepare(context.Background(), dir, theBead, filepath.Join(f.disk, "trash"), treeSpec{bead: theBead, branch: branch, start: commit})
	if err != nil {
		b.Fatal(err)
	}
	s := &checkpointer{tree: w, run: theRun, epoch: 1, ref: "refs/gastown/wip/app-aaaaa/1", start: commit,
		scratch: filepath.Join(f.disk, "tmp"), author: "A <a@x>", maxFile: 1 << 20}
	i := 0
	for b.Loop() {
		if change {
			i++
			for k := range 10 {
				f.write(dir, fmt.Sprintf("d%d/f%d", k%20, k), fmt.Sprintf("changed %d %d\n", i, k))
			}
		}
		if _, err := s.save(context.Background(), true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckpoint2000Files10Changed(b *testing.B) { benchCheckpoint(b, true) }

func BenchmarkCheckpoint2000FilesUnchanged(b *testing.B) { benchCheckpoint(b, false) }

// From the document's arrival to the call that spawns the agent.
func BenchmarkDocumentToSpawn(b *testing.B) {
	f := newTown(b)
	for i := range 100 {
		f.write(f.work, fmt.Sprintf("d%d/f%d", i%20, i), fmt.Sprintf("file %d\n", i))
	}
	f.must(f.work, "add", "-A")
	f.must(f.work, "commit", "-q", "-m", "many")
	f.must(f.work, "push", "-q", f.dir, "HEAD:refs/heads/main")
	tip := f.must(f.work, "rev-parse", "HEAD")
	spawned := make(chan struct{}, 1)
	starter := &agenttest.Starter{OnStart: func(context.Context, *agenttest.Session) error { spawned <- struct{}{}; return nil }}
	f.begin(func(c *Config) {
		c.Start = starter.Start
		c.Presets = agent.Presets{"fake": commandPreset("fake", "")}
	})
	i := 0
	start := func() {
		i++
		f.publish(func(d *town.Desired) {
			bead := fmt.Sprintf("app-%05d", i)
			d.Runs = []town.DesiredRun{{ID: bead + ".1", Bead: bead, Epoch: 1, Rig: "app", Preset: "fake", Branch: "gt/nux/" + bead, Base: tip, Start: tip, Prompt: "x"}}
		})
		<-spawned
	}
	settle := func() { // the run before is over and a spare is ready
		f.publish(func(d *town.Desired) { d.Runs = nil })
		f.awaitReport(town.ReportEnded, i-1)
		for {
			if _, err := os.Stat(filepath.Join(f.disk, "spare", "app")); err == nil {
				return
			}
			runtime.Gosched()
		}
	}
	start() // fetches
	settle()
	for b.Loop() {
		start()
		b.StopTimer()
		settle()
		b.StartTimer()
	}
}
