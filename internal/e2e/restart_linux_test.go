//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// terminal returns the two ends of a new terminal.
func terminal(t *testing.T) (master, inside *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIPPED: there are no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	const setLock, getPeer = 0x40045431, 0x5441 // TIOCSPTLCK, TIOCGPTPEER
	unlocked := int32(0)
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), setLock, uintptr(unsafe.Pointer(&unlocked))); e != 0 {
		t.Skipf("SKIPPED: a terminal can't be unlocked: %v", e)
	}
	fd, _, e := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), getPeer, syscall.O_RDWR|syscall.O_NOCTTY|syscall.O_CLOEXEC)
	if e != 0 {
		t.Skipf("SKIPPED: a terminal can't be opened: %v", e)
	}
	inside = os.NewFile(fd, "terminal")
	t.Cleanup(func() { inside.Close() })
	return master, inside
}

// attended starts a server with a terminal and a held bead at work.
func attended(t *testing.T, program string, settings ...string) (w *world, id string, run api.Run) {
	_, inside := terminal(t)
	w = newWorld(t, program, settings...)
	w.begin(inside)
	w.ready()
	w.settle()
	id = w.sling("Long work", w.held())
	return w, id, w.spawned(id, 0)
}

func testInterrupted(t *testing.T, program string) {
	w, id, run := attended(t, program)
	first := w.record()
	w.signal(syscall.SIGINT)
	w.over()
	if !w.server.cmd.ProcessState.Success() {
		t.Errorf("the server ended with %s", w.server.cmd.ProcessState)
	}
	if left := processesOf(w.root); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	w.start() // the town goes on by itself
	w.write(w.release, "")
	b := w.closed(id)
	if b.Charged != 0 || b.Attempt != 1 || len(b.Runs) != 2 || b.Runs[0].Epoch != run.Epoch {
		t.Errorf("attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	if now := w.record(); now.Generation != first.Generation+1 {
		t.Errorf("the sandbox was %+v and is %+v", first, now)
	}
	w.quiet()
}

func testInterruptedTwice(t *testing.T, program string) {
	w, id, _ := attended(t, program, "sandbox.drain_timeout=1h", "lease=10m")
	first := w.record()
	// A runner that does not answer makes the drain last.
	if err := syscall.Kill(first.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.signal(syscall.SIGINT)
	w.until("the drain", func(ctx context.Context) error {
		t, err := w.api.Town(ctx, "acme")
		if err == nil && t.Sandbox.State != "draining" {
			err = errors.New("the sandbox is " + t.Sandbox.State)
		}
		return err
	})
	select {
	case <-w.server.ended:
		t.Fatal("the server did not wait for its sandboxes")
	default:
	}
	w.signal(syscall.SIGINT)
	w.over()
	if !w.server.cmd.ProcessState.Success() {
		t.Errorf("the server ended with %s", w.server.cmd.ProcessState)
	}
	if now := w.record(); now != first || !w.alive(first.PID) {
		t.Errorf("the sandbox was %+v and is %+v, alive %v", first, now, w.alive(first.PID))
	}
	if err := syscall.Kill(first.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.write(w.release, "")
	if b := w.closed(id); b.Charged != 0 || b.Attempt != 1 {
		t.Errorf("attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	w.quiet()
}

// testFullDisk has the data directory on a disk of its own and fills it.
func testFullDisk(t *testing.T, program string) {
	w := newWorld(t, program)
	if err := os.Mkdir(w.data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", w.data, "tmpfs", 0, "size=24m,mode=700"); err != nil {
		t.Skipf("SKIPPED: a small disk can't be mounted (are you root?): %v", err)
	}
	t.Cleanup(func() {
		w.kill() // cleanups run backwards: this one before the world's
		if err := syscall.Unmount(w.data, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	w.start()
	w.settle()
	w.closed(w.sling("One file", "echo one > one.txt"))
	w.asleep()
	// An agent is at work all the time; its files are elsewhere.
	busy := w.sling("Held", w.held())
	w.spawned(busy, 0)
	for round := range 2 {
		acknowledged := w.fillUp(round)
		for _, id := range acknowledged {
			w.until("bead "+id, func(ctx context.Context) error {
				_, err := w.api.Bead(ctx, id)
				return err
			})
		}
		w.until("bead "+acknowledged[0]+" gone", func(ctx context.Context) error {
			return w.api.CancelBead(ctx, acknowledged[0], "enough")
		})
	}
	w.closed(w.sling("Another file", "echo two > two.txt"))
	w.write(w.release, "")
	b := w.closed(busy)
	if b.Charged != 0 || len(b.Runs) != 1 {
		t.Errorf("%d charged, runs %+v", b.Charged, b.Runs)
	}
	w.mergedOnce(b)
	w.kill()
	w.start()
	w.quiet()
}

// fillUp fills the disk, creates staged beads until one is refused, makes room
// again, and returns the beads that were acknowledged.
func (w *world) fillUp(round int) (ids []string) {
	w.t.Helper()
	filler := filepath.Join(w.data, "filler")
	f, err := os.Create(filler)
	if err != nil {
		w.t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		w.t.Fatalf("filling the disk: %v", err)
	}
	st, err := f.Stat() // some beads shall find room
	if err = errors.Join(err, f.Truncate(st.Size()-1<<20), f.Close()); err != nil {
		w.t.Fatal(err)
	}
	// Without retries: a refusal is what is looked for.
	impatient, err := client.New(client.Options{URL: w.server.url, Token: w.token(),
		Wait: func(context.Context, time.Duration) error { return errors.New("no") }})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	text := strings.Repeat("x", 64<<10)
	var refusal error
	for n := 0; refusal == nil && n < 2000; n++ {
		b, err := impatient.CreateBead(ctx, "acme", api.CreateBead{Rig: "web", Title: fmt.Sprintf("Bead %d of round %d", n, round), Body: text, Staged: true})
		if err != nil {
			refusal = err
			break
		}
		ids = append(ids, b.ID)
	}
	if len(ids) == 0 {
		w.t.Error("no bead found room, this proves little")
	}
	if !errs.Is(refusal, errs.Unavailable) || !strings.Contains(refusal.Error(), "the disk is full") {
		w.t.Errorf("a write to a full disk says: %v", refusal)
	}
	w.t.Logf("%d beads fitted, then: %v", len(ids), refusal)
	if s, err := w.api.Server(ctx); err != nil || s.Store.State != "full" || !strings.Contains(s.Store.Hint, w.data) {
		w.t.Errorf("the server says %+v, %v", s.Store, err)
	}
	if err := impatient.Ready(ctx); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "its disk is full") {
		w.t.Errorf("it says it is ready: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		w.t.Fatal(err)
	}
	b, err := w.api.CreateBead(ctx, "acme", api.CreateBead{Rig: "web", Title: "There is room again", Staged: true})
	if err != nil {
		w.t.Fatalf("there is room again, but: %v", err)
	}
	return append(ids, b.ID)
}
