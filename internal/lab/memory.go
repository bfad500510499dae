package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/app"
	"gastown/internal/client"
	"gastown/internal/errs"
	"gastown/internal/town"
)

// forgetFor is longer than the hall keeps copies of towns that it does not need.
const forgetFor = 4 * time.Second

// MemoryOptions say how to measure what awake towns cost the server.
type MemoryOptions struct {
	Place *Place
	Towns int
	Runs  int // per town
	Note  func(format string, args ...any)
}

// Memory is what the server holds per awake town: heap after a collection, and
// stacks. The beads at work are in it, the store's page cache is not.
type Memory struct {
	Towns       int     `json:"towns"`
	RunsEach    int     `json:"runs_each"`
	HeapKBEach  float64 `json:"heap_kb_each"`
	StackKBEach float64 `json:"stack_kb_each"`
	BaseMB      float64 `json:"base_mb"` // heap and stacks with all towns asleep
	Goroutines  float64 `json:"goroutines_each"`
}

// memory is one reading.
type memory struct {
	heap, stack uint64
	goroutines  int
}

func readMemory() memory {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers of the first let go
	runtime.ReadMemStats(&m)
	return memory{m.HeapAlloc, m.StackInuse, runtime.NumGoroutine()}
}

// MeasureMemory runs the server in this process, so that its heap can be read
// after a collection, and fake runners in the sandboxes, which are this program
// again (see FakeRunner).
func MeasureMemory(ctx context.Context, o MemoryOptions) (out Memory, err error) {
	repo := filepath.Join(o.Place.Dir, "memory.git")
	if err := writeRepository(ctx, repo, 3); err != nil {
		return out, err
	}
	self, err := os.Executable()
	if err != nil {
		return out, errs.Wrap(errs.Internal, err, "finding this program")
	}
	data := filepath.Join(o.Place.Dir, "memory")
	many := strconv.Itoa(o.Towns)
	srv, err := app.Open(ctx, app.Config{Data: data, Listen: "127.0.0.1:0", Program: self, Version: "lab", Settings: town.Settings{
		"agent": "scripted", "max_awake": many, "max_starting": many, "polecats.per_rig": strconv.Itoa(o.Runs), "polecats.per_town": strconv.Itoa(o.Runs)}})
	if err != nil {
		return out, err
	}
	serving, end := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(serving) }()
	defer func() {
		end()
		over, cancel := context.WithTimeout(context.Background(), stopFor)
		defer cancel()
		err = errors.Join(err, <-served, srv.Close(), app.StopSandboxes(over, app.Config{Data: data}, time.Second, false))
	}()
	path, _ := srv.TokenPath()
	token, err := os.ReadFile(path)
	if err != nil {
		return out, errs.Wrap(errs.Unavailable, err, "reading the token")
	}
	c, err := client.New(client.Options{URL: srv.URL(), Token: strings.TrimSpace(string(token)), Agent: "gastown-lab", User: "lab"})
	if err != nil {
		return out, err
	}
	o.Note("making %d towns", o.Towns)
	if err := settleTowns(ctx, c, o.Towns, repo); err != nil {
		return out, err
	}
	before := readMemory()
	o.Note("waking them with %d runs each", o.Runs)
	if err := busyTowns(ctx, c, o); err != nil {
		return out, err
	}
	after := readMemory()
	each := func(a, b uint64) float64 { return (float64(a) - float64(b)) / 1024 / float64(o.Towns) }
	return Memory{Towns: o.Towns, RunsEach: o.Runs, HeapKBEach: each(after.heap, before.heap), StackKBEach: each(after.stack, before.stack),
		BaseMB: float64(before.heap+before.stack) / (1 << 20), Goroutines: float64(after.goroutines-before.goroutines) / float64(o.Towns)}, nil
}

func memoryTown(i int) string { return fmt.Sprintf("memory-%d", i) }

// settleTowns makes towns and lets the server forget them.
func settleTowns(ctx context.Context, c *client.Client, n int, repo string) error {
	for i := range n {
		if _, err := c.CreateTown(ctx, api.CreateTown{Name: memoryTown(i)}); err != nil {
			return err
		}
		if _, err := c.AddRig(ctx, memoryTown(i), api.AddRig{Name: "web", Prefix: fmt.Sprintf("m%d", i), URL: repo, Target: "main"}); err != nil {
			return err
		}
	}
	return wait(ctx, forgetFor)
}

// busyTowns gives every town its runs and returns when all of them are at work.
func busyTowns(ctx context.Context, c *client.Client, o MemoryOptions) error {
	for i := range o.Towns {
		for n := range o.Runs {
			if _, err := c.CreateBead(ctx, memoryTown(i), api.CreateBead{Rig: "web", Title: fmt.Sprintf("work %d", n), Body: "Work."}); err != nil {
				return err
			}
		}
	}
	for i := range o.Towns {
		err := until(ctx, memoryTown(i)+" is at work", func() (bool, error) {
			runs, err := c.Runs(ctx, memoryTown(i))
			n := 0
			for _, r := range runs {
				if r.State == "running" {
					n++
				}
			}
			return n == o.Runs, err
		})
		if err != nil {
			return err
		}
	}
	return wait(ctx, forgetFor)
}
