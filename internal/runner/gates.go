package runner

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner/apart"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// maxGateLog bounds the full log of a gate on disk, in bytes.
const maxGateLog = 64 << 20

// gateKey names a job: the same candidate is checked once.
type gateKey struct {
	bead      string
	n         int
	candidate string
}

func keyOf(j town.GateJob) gateKey { return gateKey{j.Bead, j.N, j.Candidate} }

// gateRun is a job that was begun. done is closed when it is over; cancelled
// jobs are begun anew when they are still wanted.
type gateRun struct {
	bead   string
	cancel context.CancelFunc
	done   chan struct{}
}

// runGates performs a job and reports it until the server answered.
func (r *Runner) runGates(ctx context.Context, j town.GateJob) {
	log := r.log.With("bead", j.Bead, "candidate", j.N)
	req := wire.GatesRequest{Bead: j.Bead, N: j.N, Candidate: j.Candidate, Results: []town.GateRun{}}
	results, err := r.checkCandidate(ctx, j)
	if ctx.Err() != nil || r.lostDisk() {
		log.Info("gates were stopped")
		return
	}
	if err != nil {
		req.Infra = clip(err.Error(), town.MaxReason)
	} else {
		req.Results = results
	}
	for n := 0; ; n++ {
		err := r.api.call(ctx, http.MethodPost, wire.PathGates, nil, req, nil)
		switch {
		case err == nil:
			return
		case !again(err):
			log.Info("the server does not want the result of the gates", "err", err)
			return
		case !r.cfg.Timing.backoff(ctx, n, err):
			return
		}
	}
}

// checkCandidate checks a candidate out in a worktree of its own and runs the
// gates in order, up to the first failure. An error means that they could not be run.
func (r *Runner) checkCandidate(ctx context.Context, j town.GateJob) ([]town.GateRun, error) {
	if err := checkGates(j); err != nil {
		return nil, err
	}
	clone, err := r.rigs.get(j.Rig)
	if err != nil {
		return nil, err
	}
	id := j.Bead + "-" + strconv.Itoa(j.N)
	home, free := r.gateHome(j.Rig, id)
	defer free()
	cell, err := r.apart.Enter(filepath.Join(home, roomHome))
	if err != nil {
		return nil, err
	}
	var w *worktree
	defer func() {
		if err := cell.Leave(); err != nil {
			r.log.Error("what a gate started did not end", "bead", j.Bead, "err", err)
		}
		r.tidy(w)
	}()
	room := filepath.Join(r.dir("gates"), id)
	if w, err = clone.prepare(ctx, room, r.dir("trash"), treeSpec{bead: j.Bead, start: j.Candidate, cell: cell}); err != nil {
		return nil, err
	}
	env, err := r.privateEnv(cell, room, home)
	if err != nil {
		return nil, err
	}
	env = append(env, j.Env...)
	if r.needsProxy(j.AllowHosts) {
		user := r.loopback.proxy.admitGates(j, func(text string) { r.log.Warn("a gate was refused a host", "bead", j.Bead, "why", text) })
		defer r.loopback.proxy.expel(user)
		env = append(env, user.env(r.loopback.base)...)
	}
	results := []town.GateRun{}
	for _, g := range j.Gates {
		logPath := filepath.Join(r.dir("logs/gates"), id+"-"+fileName(g.Name)+".log")
		res, err := runGate(ctx, place{cell: cell, dir: w.dir, env: env}, g, logPath)
		if err != nil {
			return nil, err
		}
		results = append(results, res)
		if !res.Passed {
			break
		}
	}
	return results, nil
}

// gateHome is the room of the home of a rig's gates: their caches make them fast.
// A job that meets another in it has one for itself, which goes with its worktree.
func (r *Runner) gateHome(rig, id string) (room string, free func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gateHomes[rig] {
		room = filepath.Join(r.dir("gates"), id+".home")
		return room, func() {
			if err := discard(room, r.dir("trash")); err != nil {
				r.log.Warn("the home of a gate was not removed", "err", err)
			}
		}
	}
	r.gateHomes[rig] = true
	return filepath.Join(r.dir("gates"), "home."+rig), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.gateHomes, rig)
	}
}

// place is where a gate runs.
type place struct {
	cell apart.Cell
	dir  string
	env  []string // in place of the runner's own
}

// runGate runs one command and kills everything that it started, when
// it ends or at its limit. An error means that it could not be started.
func runGate(ctx context.Context, at place, g town.GateLimit, logPath string) (town.GateRun, error) {
	res := town.GateRun{Name: g.Name}
	out, err := newGateLog(logPath)
	if err != nil {
		return res, errs.Wrap(errs.Unavailable, err, "the log of gate %s", g.Name)
	}
	limit := time.Duration(g.TimeoutMS) * time.Millisecond
	if limit <= 0 {
		limit = 15 * time.Minute
	}
	marker := rand.Text()
	cmd := exec.Command("/bin/sh", "-c", g.Command)
	cmd.Dir = at.dir
	cmd.Env = append(toolEnv(at.env), gateMarker+"="+marker, "CI=true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = out, out
	// After the shell's end its output is waited for only so long: a child that
	// keeps the pipe open is killed below.
	cmd.WaitDelay = time.Second
	begin := time.Now()
	if err := at.cell.Start(cmd); err != nil {
		return res, errors.Join(errs.Wrap(errs.Unavailable, err, "starting gate %s", g.Name), out.close())
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	ended := make(chan struct{})
	go func() { err = cmd.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-timer.C:
		res.TimedOut = true
	case <-ctx.Done():
	}
	end := func() { killAll(cmd.Process.Pid, marker); at.cell.Sweep(2 * time.Second) }
	end()
	<-ended
	if res.TimedOut || ctx.Err() != nil {
		end() // what was born meanwhile
	}
	res.Millis = time.Since(begin).Milliseconds()
	res.ExitCode = cmd.ProcessState.ExitCode()
	res.Passed = !res.TimedOut && res.ExitCode == 0 && (err == nil || errors.Is(err, exec.ErrWaitDelay))
	res.Log = out.tail()
	return res, out.close()
}

// gateLog keeps the whole output on disk, up to a bound, and its end in memory.
type gateLog struct {
	mu   sync.Mutex // guards the fields below
	file *os.File
	size int64
	last []byte
	err  error
}

func newGateLog(path string) (*gateLog, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	return &gateLog{file: f}, err
}

// Write never fails: a full disk must not turn a gate red.
func (l *gateLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil && l.size < maxGateLog {
		_, l.err = l.file.Write(p)
		l.size += int64(len(p))
	}
	l.last = append(l.last, p...)
	if over := len(l.last) - 2*town.MaxLog; over > 0 {
		l.last = append([]byte(nil), l.last[len(l.last)-town.MaxLog:]...)
	}
	return len(p), nil
}

// tail is the end of the output, valid UTF-8 of at most town.MaxLog bytes.
func (l *gateLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.last[max(0, len(l.last)-town.MaxLog):]
	return strings.ToValidUTF8(string(b), "?")
}

func (l *gateLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.file.Close(); err != nil && l.err == nil {
		return err
	}
	return nil
}

var _ io.Writer = (*gateLog)(nil)
