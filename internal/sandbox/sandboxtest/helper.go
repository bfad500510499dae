package sandboxtest

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"gastown/internal/sandbox"
)

// envExchange tells a process that it is a helper, and where the exchange
// directory is.
const envExchange = "GASTOWN_SANDBOXTEST"

// The helper's modes, its first argument.
const (
	modeWait       = "wait"     // exits on SIGTERM or when told to
	modeStubborn   = "stubborn" // ignores SIGTERM and has a grandchild in a session of its own
	modeParent     = "parent"   // like wait, with the grandchild
	modeGrandchild = "grandchild"
)

// Event is what a helper tells the test.
type Event struct {
	What  string   // "ready" or "term"
	Mode  string   // the helper's mode
	PID   int      // as the helper sees itself
	Token string   // what it read from the token's descriptor
	Leak  bool     // the token stands in its arguments or environment
	Files []string // what it found on its disk, but for home and tmp
	Disk  string   // the value of sandbox.EnvDisk
	Cwd   string   // its working directory
}

// HelperMain turns this process into a helper if it was started as one, and then
// does not return. Call it first thing in TestMain.
func HelperMain() {
	dir := os.Getenv(envExchange)
	if dir == "" {
		return
	}
	os.Exit(helper(dir, os.Args[1]))
}

func helper(dir, mode string) int {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM)
	signal.Ignore(syscall.SIGHUP)
	town := os.Args[2]
	// Open as long as this process or its children live: the test reads the end of
	// file when all are dead.
	alive, err := os.OpenFile(filepath.Join(dir, "alive-"+town), os.O_WRONLY, 0)
	if err != nil {
		return fail(err)
	}
	events, err := os.OpenFile(filepath.Join(dir, "events-"+town), os.O_WRONLY, 0)
	if err != nil {
		return fail(err)
	}
	if mode == modeGrandchild {
		tell(events, Event{What: "ready", Mode: mode, PID: os.Getpid()})
		select {} // signals are noted and never looked at
	}
	e, err := look(mode)
	if err != nil {
		return fail(err)
	}
	if mode == modeStubborn || mode == modeParent {
		if err := spawnGrandchild(town, alive, mode == modeStubborn); err != nil {
			return fail(err)
		}
	}
	control, err := os.OpenFile(filepath.Join(dir, "control-"+town), os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	orders := make(chan string)
	go func() {
		for lines := bufio.NewScanner(control); lines.Scan(); {
			orders <- lines.Text()
		}
	}()
	tell(events, e)
	for {
		select {
		case order := <-orders:
			code, err := strconv.Atoi(order)
			if err != nil {
				return fail(err)
			}
			return code
		case <-signals:
			tell(events, Event{What: "term", Mode: mode, PID: os.Getpid()})
			if mode != modeStubborn {
				return 0
			}
		}
	}
}

// look gathers what a helper sees around it, and leaves a file on the disk.
func look(mode string) (Event, error) {
	token, err := io.ReadAll(os.NewFile(sandbox.TokenFD, "token"))
	if err != nil {
		return Event{}, err
	}
	e := Event{What: "ready", Mode: mode, PID: os.Getpid(), Token: string(token), Disk: os.Getenv(sandbox.EnvDisk)}
	for _, s := range append(os.Environ(), os.Args...) {
		e.Leak = e.Leak || (e.Token != "" && strings.Contains(s, e.Token))
	}
	if e.Cwd, err = os.Getwd(); err != nil {
		return e, err
	}
	entries, err := os.ReadDir(e.Disk)
	if err != nil {
		return e, err
	}
	for _, f := range entries {
		if f.Name() != "home" && f.Name() != "tmp" {
			e.Files = append(e.Files, f.Name())
		}
	}
	return e, os.WriteFile(filepath.Join(e.Disk, "left-behind"), nil, 0o600)
}

// spawnGrandchild starts a process in another session, which holds alive open. A
// bare one lacks all of the environment that tells where it belongs.
func spawnGrandchild(town string, alive *os.File, bare bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, modeGrandchild, town)
	if bare {
		cmd.Env = []string{envExchange + "=" + os.Getenv(envExchange)}
	}
	cmd.ExtraFiles = []*os.File{alive}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

func tell(events *os.File, e Event) {
	line, err := json.Marshal(e)
	if err == nil {
		_, err = events.Write(append(line, '\n'))
	}
	if err != nil {
		os.Exit(fail(err))
	}
}

func fail(err error) int {
	// Standard error is the last resort; there is nowhere to report its failure.
	_, _ = os.Stderr.WriteString("helper: " + err.Error() + "\n")
	return 99
}
