package sandboxtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"gastown/internal/sandbox"
)

// patience is how long a test waits for something that must happen.
const patience = 20 * time.Second

// Setup is one empty root with what is needed to drive it.
type Setup struct {
	// Open returns a driver on the root. Each call makes another one, as a control
	// plane that was restarted has.
	Open func(t *testing.T) sandbox.Driver
	// Drop forgets a driver without touching its sandboxes.
	Drop func(t *testing.T, d sandbox.Driver)
	// Helper is the program inside the sandbox whose main calls HelperMain.
	Helper string
	// Exchange is a directory that outside and inside share; ExchangeInside is its
	// name inside, Exchange if empty.
	Exchange, ExchangeInside string
}

// Town is a test's view of one town's helper.
type Town struct {
	t      *testing.T
	s      Setup
	name   string
	events chan Event
	alive  *os.File
}

// NewTown prepares the named pipes between a test and a town's helper.
func (s Setup) NewTown(t *testing.T, name string) *Town {
	t.Helper()
	for _, pipe := range []string{"alive-", "events-", "control-"} {
		path := filepath.Join(s.Exchange, pipe+name)
		// What runs inside may be another user.
		if err := errors.Join(syscall.Mkfifo(path, 0o600), os.Chmod(path, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	w := &Town{t: t, s: s, name: name, events: make(chan Event, 64)}
	// Opened for writing too, so that it has no end of file between two helpers.
	events := w.open("events-", os.O_RDWR)
	w.alive = w.open("alive-", os.O_RDONLY|syscall.O_NONBLOCK)
	go func() {
		for lines := bufio.NewScanner(events); lines.Scan(); {
			var e Event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				w.events <- e
			}
		}
	}()
	return w
}

func (w *Town) open(pipe string, flags int) *os.File {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.s.Exchange, pipe+w.name), flags|syscall.O_NONBLOCK, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := f.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return f
}

// Spec returns a Spec that runs the helper in a mode.
func (w *Town) Spec(generation int64, mode string) sandbox.Spec {
	inside := w.s.ExchangeInside
	if inside == "" {
		inside = w.s.Exchange
	}
	return sandbox.Spec{
		Town: w.name, Generation: generation,
		Command: []string{w.s.Helper, mode, w.name},
		Env:     []string{envExchange + "=" + inside},
		Token:   []byte("token-of-" + w.name + "-" + strconv.FormatInt(generation, 10)),
	}
}

// Start starts a generation and waits until its helper is ready, with its
// grandchild in the modes that have one.
func (w *Town) Start(d sandbox.Driver, spec sandbox.Spec) (sandbox.Ref, Event) {
	w.t.Helper()
	ref, err := d.Start(context.Background(), spec)
	if err != nil {
		w.t.Fatalf("start: %v", err)
	}
	w.removeAfter(d)
	return ref, w.Ready(spec.Command[1])
}

// removeAfter removes everything of the town when the test ends.
func (w *Town) removeAfter(d sandbox.Driver) {
	w.t.Cleanup(func() {
		if err := d.Remove(context.Background(), sandbox.Ref{Town: w.name}); err != nil {
			w.t.Errorf("remove after the test: %v", err)
		}
	})
}

// Ready waits for the helper of a mode.
func (w *Town) Ready(mode string) Event {
	w.t.Helper()
	need := 1
	if mode == modeStubborn || mode == modeParent {
		need = 2
	}
	var mine Event
	for range need {
		if e := w.Next("ready"); e.Mode == mode {
			mine = e
		}
	}
	return mine
}

// Next waits for the next event, which must be what.
func (w *Town) Next(what string) Event {
	w.t.Helper()
	select {
	case e := <-w.events:
		if e.What != what {
			w.t.Fatalf("the helper says %q, want %q", e.What, what)
		}
		return e
	case <-time.After(patience):
		w.t.Fatalf("the helper never said %q", what)
	}
	return Event{}
}

// Quiet fails the test if the helper said something more. Call it when all are dead.
func (w *Town) Quiet() {
	w.t.Helper()
	select {
	case e := <-w.events:
		w.t.Fatalf("unexpected: the helper in mode %s said %q", e.Mode, e.What)
	default:
	}
}

// Exit tells the helper to exit with a code.
func (w *Town) Exit(code int) {
	w.t.Helper()
	control := w.open("control-", os.O_RDWR)
	if _, err := control.WriteString(strconv.Itoa(code) + "\n"); err != nil {
		w.t.Fatal(err)
	}
}

// AllDead waits until no process of the town is left, grandchildren included. At
// least one must have been ready before.
func (w *Town) AllDead() {
	w.t.Helper()
	if err := w.alive.SetReadDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.alive.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		w.t.Fatalf("processes of town %s still live: %v", w.name, err)
	}
}

// SomeAlive fails the test if no process of the town is left.
func (w *Town) SomeAlive() {
	w.t.Helper()
	if err := w.alive.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.alive.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("no process of town %s lives: %v", w.name, err)
	}
}

// AwaitExit waits until the driver tells that ref ended.
func AwaitExit(t *testing.T, d sandbox.Driver, ref sandbox.Ref) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-d.Exits():
			if got.Town == ref.Town && got.Generation == ref.Generation {
				return
			}
		case <-deadline:
			t.Fatalf("the end of %s/%d was never told", ref.Town, ref.Generation)
		}
	}
}
