package runner

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

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
		_, err := c.prepare(context.Background(), filepath.Join(f.disk, "work", bead), filepath.Join(f.disk, "trash"),
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
		if err := sp.fill(context.Background(), none(b), c, filepath.Join(f.disk, "trash"), commit); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		_, err := c.prepare(context.Background(), filepath.Join(f.disk, "work", bead), filepath.Join(f.disk, "trash"),
			treeSpec{bead: bead, branch: "gt/nux/" + bead, start: commit, spare: sp.take("app")})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// benchCheckpoint measures whole checkpoints with their push to a hub behind the
// runner's loopback, and reports the median.
func benchCheckpoint(b *testing.B, files, changed int) {
	f := newTown(b)
	for i := range files {
		f.write(f.work, fmt.Sprintf("d%d/e%d/f%d", i%50, i%1000/50, i), fmt.Sprintf("file %d\n%02000d\n", i, i))
	}
	f.must(f.work, "add", "-A")
	f.must(f.work, "commit", "-q", "-m", "many")
	f.must(f.work, "push", "-q", f.dir, "HEAD:refs/heads/main")
	tip := f.must(f.work, "rev-parse", "HEAD")
	h := f.play(func(d *town.DesiredRun) { d.Start, d.Base = tip, tip })
	defer close(h.release)
	for { // its files are written, too
		if _, err := os.Stat(filepath.Join(f.disk, "spare", "app")); err == nil {
			break
		}
		runtime.Gosched()
	}
	var took []time.Duration
	i := 0
	for b.Loop() {
		b.StopTimer()
		i++
		for k := range changed {
			f.write(h.dir(), fmt.Sprintf("d%d/e%d/f%d", k%50, k%1000/50, k), fmt.Sprintf("changed %d %d\n", i, k))
		}
		b.StartTimer()
		begin := time.Now()
		text, failed := h.call("checkpoint", nil)
		if failed || strings.HasPrefix(text, "Saved") != (changed > 0) {
			b.Fatal(text)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
}

func BenchmarkCheckpoint2000Files10Changed(b *testing.B) { benchCheckpoint(b, 2000, 10) }

func BenchmarkCheckpoint2000FilesUnchanged(b *testing.B) { benchCheckpoint(b, 2000, 0) }

func BenchmarkCheckpoint50000Files10Changed(b *testing.B) { benchCheckpoint(b, 50_000, 10) }

func BenchmarkCheckpoint50000FilesUnchanged(b *testing.B) { benchCheckpoint(b, 50_000, 0) }

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
