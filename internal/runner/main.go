package runner

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/runner/apart"
	"gastown/internal/scrub"
	"gastown/internal/town"
)

// saveTime bounds one checkpoint with its push.
const saveTime = 60 * time.Second

// shutdownSave bounds a checkpoint while the runner ends.
const shutdownSave = 4 * time.Second

// defaultHeartbeat is used until the document names another.
const defaultHeartbeat = 30 * time.Second

// Runner is a running runner. Main makes the only one of a process.
type Runner struct {
	cfg         Config
	log         *slog.Logger
	api         *api
	cut         bool // there is no network but loopback
	rigs        *rigs
	apart       *apart.Keeper
	spares      *spares
	crews       crews
	guard       *guard
	outbox      *outbox
	transcripts *transcripts
	loopback    *loopback
	beats       chan time.Duration // the newest interval of heartbeats
	held        *os.File           // the disk's directory, locked; nil in tests that need no disk
	diskLost    chan struct{}      // holds a token when the disk was found to be gone

	base  context.Context // ends last: everything local is bounded by it
	stop  context.CancelFunc
	awake context.Context // ends when the runner begins to end: for what can wait for another boot
	doze  context.CancelFunc
	trash sync.Mutex     // held while the trash is emptied
	work  sync.WaitGroup // goroutines of runs, gates and checkpoints

	mu   sync.Mutex // guards the fields below
	runs map[runKey]*run
	// Rigs whose gates' home is in use.
	gateHomes map[string]bool
	gates     map[gateKey]*gateRun
	leaving   []*gateRun // told to stop, not yet over
	drain     bool
	drained   bool
	closing   bool
}

// why says why a runner ends.
type why int

const (
	whySignal why = iota // the context ended: SIGTERM
	whyGone              // the server has a newer generation
	whySilent            // no contact for too long
	whyDisk              // the disk was taken away
)

// Main runs until ctx ends (nil: an orderly end), the server says that this
// generation is gone (nil), or the server is silent for too long or the disk is
// gone (an error of kind Unavailable). It returns when no agent is left.
func Main(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	a, err := newAPI(cfg.Server, cfg.Token)
	if err != nil {
		return err
	}
	cfg.Log = slog.New(scrub.NewHandler(a.scrub, cfg.Log.Handler()))
	g, err := git.New()
	if err != nil {
		return err
	}
	lock, err := lockDisk(ctx, cfg.Disk, cfg.Timing.LockWait)
	if err != nil {
		return err
	}
	defer func() {
		// The lock goes with the descriptor, at the latest with the process.
		_ = lock.Close()
	}()
	stream := rand.Text()
	doc, err := greet(ctx, a, cfg, stream)
	switch {
	case errs.Is(err, errs.Gone):
		cfg.Log.Info("the server has a newer generation of this sandbox; leaving")
		return nil
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	r, err := newRunner(cfg, a, g, stream)
	if err != nil {
		return err
	}
	r.held = lock
	return r.run(ctx, doc)
}

// greet says hello until the server answers. Nothing is written before that.
func greet(ctx context.Context, a *api, cfg Config, stream string) (town.Desired, error) {
	for try := 0; ; try++ {
		doc, err := a.hello(ctx, stream, cfg.Version)
		if err == nil || errs.Is(err, errs.Gone) {
			return doc, err
		}
		if a.silence() > cfg.Timing.Contact {
			return doc, errs.Wrap(errs.Unavailable, err, "no hello for %s", cfg.Timing.Contact)
		}
		if try%10 == 0 {
			cfg.Log.Warn("the server did not answer the hello; trying again", "err", err)
		}
		if !cfg.Timing.backoff(ctx, try, err) {
			return doc, ctx.Err()
		}
	}
}

func newRunner(cfg Config, a *api, g *git.Git, stream string) (*Runner, error) {
	keeper, err := cfg.keeper()
	if err != nil {
		return nil, err
	}
	r := &Runner{apart: keeper, cfg: cfg, log: cfg.Log, api: a, cut: cutOff(), beats: make(chan time.Duration, 1), diskLost: make(chan struct{}, 1),
		runs: map[runKey]*run{}, gateHomes: map[string]bool{}, gates: map[gateKey]*gateRun{}}
	for _, d := range []string{"tmp", "outbox"} {
		// Leftovers of an older boot: its reports are of a generation that is over.
		if err := apart.Remove(r.dir(d)); err != nil {
			return nil, errs.Wrap(errs.Unavailable, err, "the sandbox's disk")
		}
	}
	if err := r.makeDirs(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "the sandbox's disk")
	}
	if r.outbox, err = newOutbox(filepath.Join(r.dir("outbox"), stream), stream, r.log); err != nil {
		return nil, err
	}
	if r.loopback, err = newLoopback(a, r.log); err != nil {
		return nil, errors.Join(err, r.outbox.close())
	}
	r.transcripts = newTranscripts(r.log, time.Now)
	r.transcripts.scrub = a.scrub
	a.scrub.Put("runner", r.loopback.secret)
	r.rigs = newRigs(r.dir("rigs"), g, hubAccess{base: r.loopback.base + "/git/" + ownEndpoint, secret: r.loopback.secret})
	r.spares = newSpares(r.dir("spare"))
	r.guard = newGuard()
	r.base, r.stop = context.WithCancel(context.Background())
	r.awake, r.doze = context.WithCancel(r.base)
	if err := r.clear(); err != nil {
		return nil, errors.Join(errs.Wrap(errs.Unavailable, err, "clearing the disk"), r.outbox.close(), r.loopback.close())
	}
	return r, nil
}

// makeDirs makes what is on the disk. What cells have no business in is closed to
// them, also on a disk that an older runner left.
func (r *Runner) makeDirs() error {
	for _, d := range []string{"rigs", "work", "crews", "spare", "gates"} {
		if err := os.MkdirAll(r.dir(d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"trash", "tmp", "outbox", "unsent", "logs", "logs/gates"} {
		if err := errors.Join(os.MkdirAll(r.dir(d), 0o700), os.Chmod(r.dir(d), 0o700)); err != nil {
			return err
		}
	}
	if !r.apart.Private() {
		return nil
	}
	// The runner's home, which the first process of the container made.
	if err := os.Chmod(r.dir("home"), 0o700); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// dir is a directory on the disk.
func (r *Runner) dir(name string) string { return filepath.Join(r.cfg.Disk, filepath.FromSlash(name)) }

// goes runs f on a goroutine that the end of the runner waits for.
func (r *Runner) goes(f func()) {
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		f()
	}()
}

func (r *Runner) saveLimit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return shutdownSave
	}
	return saveTime
}

// run serves until there is a reason to end, then ends.
func (r *Runner) run(ctx context.Context, doc town.Desired) error {
	loops, endLoops := context.WithCancel(r.base)
	ends := make(chan why, 4)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.loopback.serve(); err != nil {
			r.log.Error("the loopback server failed", "err", err)
			ends <- whySignal
		}
	})
	wg.Go(func() {
		if err := r.outbox.run(loops, r.api, r.cfg.Timing); err != nil {
			ends <- whyGone
		}
	})
	wg.Go(func() { r.transcripts.run(loops, r.api, r.cfg.Timing) })
	wg.Go(func() { r.heartbeats(loops) })
	wg.Go(r.emptyTrash)
	wg.Go(func() { r.guard.run(loops) })
	r.apply(doc)
	wg.Go(func() {
		if r.follow(ctx, doc.Rev) {
			ends <- whyGone
		}
	})
	wg.Go(func() {
		if r.watch(ctx) {
			ends <- whySilent
		}
	})
	wg.Go(func() {
		if r.watchDisk(ctx) {
			ends <- whyDisk
		}
	})

	reason := whySignal
	select {
	case <-ctx.Done():
	case reason = <-ends:
	}
	err := r.shutdown(reason)
	endLoops()
	r.stop()
	err = errors.Join(err, r.loopback.close())
	wg.Wait()
	return errors.Join(err, r.outbox.close())
}

// follow applies each newer document. It returns true when the generation is gone.
func (r *Runner) follow(ctx context.Context, rev int64) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(r.base, cancel)
	defer stop()
	for try := 0; ctx.Err() == nil; {
		doc, ok, err := r.api.desired(ctx, rev, r.cfg.Timing.Poll)
		switch {
		case errs.Is(err, errs.Gone):
			return true
		case err != nil && ctx.Err() == nil:
			if try%20 == 0 {
				r.log.Warn("the desired document can't be had; trying again", "err", err)
			}
			r.cfg.Timing.backoff(ctx, try, err)
			try++
			continue
		case ok && doc.Rev != rev:
			rev = doc.Rev
			r.apply(doc)
		case err == nil:
			// Nothing new: not all runners ask again in the same instant.
			r.cfg.Timing.backoff(ctx, 0, nil)
		}
		try = 0
	}
	return false
}

// watch returns true when the server was not heard for too long.
func (r *Runner) watch(ctx context.Context) bool {
	limit := r.cfg.Timing.Contact
	t := time.NewTicker(max(limit/20, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-r.base.Done():
			return false
		case <-t.C:
			if r.api.silence() > limit {
				return true
			}
		}
	}
}

// setHeartbeat hands a new interval to the loop; the newest counts.
func (r *Runner) setHeartbeat(d time.Duration) {
	select {
	case <-r.beats:
	default:
	}
	r.beats <- d // room was made; only apply sends, under the lock
}

func (r *Runner) heartbeats(ctx context.Context) {
	every := defaultHeartbeat
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-r.beats:
			if d != every {
				every = d
				t.Reset(d)
			}
		case now := <-t.C:
			r.beat(now)
		}
	}
}

// tidy removes a worktree (nil for none), in the background, unless the runner
// ends: then the next boot does.
func (r *Runner) tidy(w *worktree) {
	if w == nil || r.awake.Err() != nil {
		return
	}
	if err := w.remove(r.dir("trash")); err != nil {
		r.log.Warn("a worktree was not removed", "dir", w.dir, "err", err)
		return
	}
	r.goes(r.emptyTrash)
}

// emptyTrash removes what was moved away.
func (r *Runner) emptyTrash() {
	r.trash.Lock()
	defer r.trash.Unlock()
	entries, err := os.ReadDir(r.dir("trash"))
	for _, e := range entries {
		if r.awake.Err() != nil {
			return
		}
		err = errors.Join(err, apart.Remove(filepath.Join(r.dir("trash"), e.Name())))
	}
	if err != nil {
		r.log.Warn("old worktrees were not removed", "err", err)
	}
}

// shutdown ends every run and gate, then delivers what is left to say.
func (r *Runner) shutdown(reason why) error {
	end := stopped("the sandbox is being stopped")
	switch reason {
	case whyGone:
		end = ending{how: endKill, outcome: town.OutcomeLost, reason: "the generation is gone"}
	case whySilent:
		end = ending{how: endLocal, outcome: town.OutcomeLost, reason: "the server is silent"}
	case whyDisk:
		end = diskGone()
	}
	r.log.Info("the runner ends", "why", end.reason)
	r.doze()
	r.mu.Lock()
	r.closing = true
	for _, n := range r.runs {
		n.ask(end)
	}
	for _, g := range r.gates {
		g.cancel()
	}
	r.mu.Unlock()

	budget := time.NewTimer(r.cfg.Timing.Shutdown)
	defer budget.Stop()
	idle := make(chan struct{})
	go func() { r.work.Wait(); close(idle) }()
	select {
	case <-idle:
	case <-budget.C:
		r.stop() // cuts git calls off; agents are closed with what is left
		<-idle
		return errs.New(errs.Unavailable, "the runner did not end everything within %s", r.cfg.Timing.Shutdown)
	}
	if reason == whyDisk {
		return errs.New(errs.Unavailable, "the sandbox's disk %s was taken away", r.cfg.Disk)
	}
	if reason == whySilent {
		return errs.New(errs.Unavailable, "the server was silent for %s", r.cfg.Timing.Contact)
	}
	if reason == whySignal {
		last := time.NewTimer(time.Second)
		defer last.Stop()
		for _, ch := range []<-chan struct{}{r.outbox.flushed(), r.transcripts.flushed()} {
			select {
			case <-ch:
			case <-last.C:
				return nil
			}
		}
	}
	return nil
}
