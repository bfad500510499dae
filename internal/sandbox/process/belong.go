package process

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
)

// killTime bounds how long killed processes may take to disappear.
const killTime = 5 * time.Second

// proc is one process as the system shows it.
type proc struct {
	pid, ppid, sid int
	start          string // start time in the system's own unit; with the pid and the boot it names a process
	zombie         bool   // dead, but not yet waited for
}

// markedProc is a process that carries a marker of this driver's root.
type markedProc struct {
	proc
	town       string
	generation int64
}

// claim says which processes belong: those marked with the town and a
// generation from..upTo (upTo 0 is without bound), and if rec is set those of
// its session.
type claim struct {
	town       string
	from, upTo int64
	rec        *record.Record
}

func (c claim) covers(p markedProc) bool {
	return p.town == c.town && p.generation >= c.from && (c.upTo == 0 || p.generation <= c.upTo)
}

// runs reports whether the recorded process lives.
func (d *Driver) runs(r *record.Record) (bool, error) {
	if r.Phase != record.Running || r.Boot != d.boot {
		return false, nil
	}
	p, found, err := lookup(r.PID)
	if err != nil {
		return false, errs.Wrap(errs.Unavailable, err, "sandbox: look at process %d of town %s", r.PID, r.Town)
	}
	return found && !p.zombie && p.start == r.Start, nil
}

// marked returns all living processes with a marker of this root.
func (d *Driver) marked() ([]markedProc, error) {
	procs, err := processes()
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: list processes")
	}
	return d.withMarker(procs), nil
}

func (d *Driver) withMarker(procs []proc) []markedProc {
	var found []markedProc
	for _, p := range procs {
		if p.zombie || p.pid <= 1 || p.pid == os.Getpid() {
			continue
		}
		if town, generation, ok := d.markerIn(environOf(p.pid)); ok {
			found = append(found, markedProc{p, town, generation})
		}
	}
	return found
}

// markerIn finds this root's marker among zero-terminated environment entries.
func (d *Driver) markerIn(environ []byte) (town string, generation int64, ok bool) {
	prefix := []byte(sandbox.EnvSandbox + "=" + d.hash + ":")
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		rest, found := bytes.CutPrefix(entry, prefix)
		if !found {
			continue
		}
		name, number, _ := strings.Cut(string(rest), ":")
		n, err := strconv.ParseInt(number, 10, 64)
		if err == nil && n > 0 && sandbox.ValidTown(name) {
			return name, n, true
		}
	}
	return "", 0, false
}

// belonging returns the living processes that a claim covers, with all their
// descendants.
func (d *Driver) belonging(c claim) ([]proc, error) {
	procs, err := processes()
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "sandbox: list processes")
	}
	mine := map[int]bool{}
	for _, p := range d.withMarker(procs) {
		if c.covers(p) {
			mine[p.pid] = true
		}
	}
	if c.rec != nil && c.rec.PID > 1 && c.rec.Boot == d.boot {
		d.addSession(mine, procs, c.rec)
	}
	for grown := true; grown; {
		grown = false
		for _, p := range procs {
			if !mine[p.pid] && mine[p.ppid] {
				mine[p.pid], grown = true, true
			}
		}
	}
	var found []proc
	for _, p := range procs {
		if mine[p.pid] && !p.zombie && p.pid > 1 && p.pid != os.Getpid() {
			found = append(found, p)
		}
	}
	return found, nil
}

// addSession adds the members of a record's session. While the leader, even as a
// zombie, holds its pid, the session's number can't mean another one. Without the
// leader only members that work inside the town's directory count, because the
// number may have gone to a stranger since.
func (d *Driver) addSession(mine map[int]bool, procs []proc, r *record.Record) {
	led, taken := false, false
	for _, p := range procs {
		if p.pid == r.PID {
			led = p.start == r.Start
			taken = !led
		}
	}
	if taken {
		return
	}
	inside := d.book.Dir(r.Town) + string(filepath.Separator)
	for _, p := range procs {
		if p.sid == r.PID && (led || strings.HasPrefix(cwdOf(p.pid), inside)) {
			mine[p.pid] = true
		}
	}
}

// kill ends all processes that a claim covers, and returns when none is left.
func (d *Driver) kill(ctx context.Context, c claim) error {
	ctx, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		// Again and again, because what is being killed may still be forking.
		procs, err := d.belonging(c)
		if err != nil || len(procs) == 0 {
			return err
		}
		for _, p := range procs {
			err = errors.Join(err, send(p, syscall.SIGKILL))
		}
		select {
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, errors.Join(ctx.Err(), err),
				"sandbox: %d processes of town %s are still dying", len(procs), c.town)
		case <-tick.C:
		}
	}
}

// send signals a process if it is still the one that was seen. Where the system
// has process handles the check and the signal are about the same process.
func send(p proc, sig syscall.Signal) error {
	h, err := os.FindProcess(p.pid)
	if err != nil {
		return err
	}
	defer func() {
		// Releasing a handle loses nothing.
		_ = h.Release()
	}()
	now, found, err := lookup(p.pid)
	if err != nil || !found || now.start != p.start {
		return err
	}
	err = h.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
