package runner

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/apart"
	"gastown/internal/town"
)

// runKey names a run: an epoch is never run twice.
type runKey struct {
	id    string
	epoch int64
}

// endHow is how a run is to be brought to its end.
type endHow int

// The ways, from the gentlest: a later request may only be harsher.
const (
	endTurn  endHow = iota + 1 // let the turn end, within a grace
	endNow                     // checkpoint, cancel, close, report
	endLocal                   // the same without the server: the checkpoint stays on the disk
	endKill                    // nothing is saved or told: the generation is gone
)

// ending is the end of a run, as it is reported.
type ending struct {
	how     endHow
	outcome town.Outcome
	class   town.Class
	reason  string
	subject string
	waitMS  int64 // class limit: how long it lasts; 0: nobody knows
}

func stopped(reason string) ending {
	return ending{how: endNow, outcome: town.OutcomeStopped, reason: reason}
}

// saves says whether the work in progress is worth a last checkpoint.
func (e ending) saves() bool {
	return e.how != endKill && e.outcome != town.OutcomeDone && e.outcome != town.OutcomeNoChange
}

// run is one run on this runner. Its goroutine (main) owns the agent; others
// call only update, ask and the tools.
type run struct {
	r      *Runner
	want   town.DesiredRun
	rig    town.DesiredRig
	key    runKey
	lane   lane
	log    *slog.Logger
	tenant *tenant
	secret string
	guest  *proxyUser    // nil when its agent is told of no proxy
	prev   *run          // the run that holds the bead's worktree before this one, or nil
	done   chan struct{} // closed when the run is over and reported
	wake   chan struct{} // holds a token when asked or nudges changed

	prepared context.Context // ends when the run has to end before its agent runs
	abandon  context.CancelFunc

	saves   context.Context // ends when a checkpoint is of no more use
	noSaves context.CancelFunc

	life       atomic.Int64           // last sign of life, UTC milliseconds
	output     atomic.Bool            // the model (or an agent without one) ever said something
	unanswered atomic.Bool            // the agent's latest call of a tool got no answer from the server
	lastModel  atomic.Int32           // status of the model gateway's last answer in this turn; -1: none, 0: unreachable
	atRisk     atomic.Bool            // its last checkpoint failed, and that was told
	limited    atomic.Pointer[limit]  // what the provider's last answer says of a limit; nil: nothing
	saving     atomic.Bool            // a checkpoint of the ticker is on its way
	guarded    atomic.Pointer[ward]   // what its processes may use; nil: nobody looks
	hurt       atomic.Pointer[string] // why the last of its tools was ended; nil: none was
	overflow   overflow               // how often its conversation was too long

	verdictMu sync.Mutex // one verdict at a time; guards calls
	calls     int        // verdicts that the server refused

	mu       sync.Mutex // guards the fields below
	asked    *ending
	accepted town.VerdictKind // the verdict that the server took
	nudges   []town.Nudge     // not delivered
	nudged   int              // number of the last one taken over
	cell     apart.Cell       // where its processes live; nil until it is prepared
	env      []string         // what its processes have instead of the runner's own
	crew     *crew            // with whom it shares its agent's process; nil: with nobody
	place    int              // its slot there
	tree     *worktree
	saver    *checkpointer
	session  agent.Session
}

func (r *Runner) newRun(d town.DesiredRun, rig town.DesiredRig, prev *run) *run {
	n := &run{
		r: r, want: d, rig: rig, prev: prev, secret: newSecret(),
		key: runKey{d.ID, d.Epoch}, lane: lane{d.ID, d.Epoch},
		log:  r.log.With("run", d.ID, "rig", d.Rig, "bead", d.Bead),
		done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	n.prepared, n.abandon = context.WithCancel(r.base)
	n.saves, n.noSaves = context.WithCancel(r.base)
	n.alive()
	n.tenant = &tenant{id: d.ID, epoch: d.Epoch, provider: d.Provider, secret: hashSecret(n.secret),
		tools: newTools(n, r.cfg.Version), alive: n.modelAlive, answered: n.modelAnswered, tooLong: n.tooLong}
	return n
}

func (n *run) alive() { n.life.Store(time.Now().UnixMilli()) }

func (n *run) modelAlive() { n.alive() }

func (n *run) modelAnswered(status int, wait string) {
	n.lastModel.Store(int32(status))
	n.limited.Store(newLimit(wait, time.Now()))
	if status >= 200 && status < 300 {
		n.output.Store(true)
		n.overflow.good()
		n.alive()
	}
}

func (n *run) tooLong() {
	if n.overflow.hit() {
		n.ask(*overflowed())
	}
}

// idle is the time since the last sign of life.
func (n *run) idle(now time.Time) time.Duration {
	return max(0, time.Duration(now.UnixMilli()-n.life.Load())*time.Millisecond)
}

func (n *run) over() bool {
	select {
	case <-n.done:
		return true
	default:
		return false
	}
}

// update takes what a newer document says of the run.
func (n *run) update(d town.DesiredRun) {
	n.mu.Lock()
	for _, m := range d.Nudges {
		if m.N > n.nudged {
			n.nudged = m.N
			n.nudges = append(n.nudges, m)
		}
	}
	n.mu.Unlock()
	switch {
	case d.Stop != "":
		n.ask(stopped(d.Stop))
	case d.Verdict != "":
		n.ask(ending{how: endTurn, outcome: d.Verdict})
	default:
		n.signal()
	}
}

// ask wants the run to end. Of several requests the harshest, then the first, counts.
func (n *run) ask(e ending) {
	n.mu.Lock()
	if n.asked == nil || e.how > n.asked.how {
		if n.asked != nil && n.asked.how == endTurn && e.how == endNow {
			e.outcome, e.reason = n.asked.outcome, n.asked.reason // the verdict stands
		}
		n.asked = &e
	}
	n.mu.Unlock()
	n.abandon()
	n.signal()
}

func (n *run) signal() {
	select {
	case n.wake <- struct{}{}:
	default: // a token is there already
	}
}

func (n *run) request() *ending {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// story adds what the runner did to the run's transcript.
func (n *run) story(status, text string) {
	n.r.transcripts.add(n.lane, agent.Event{Kind: agent.KindLifecycle, Status: status, Text: text})
}

// main lives the run from its worktree to its report.
func (n *run) main() {
	defer close(n.done)
	defer n.abandon()
	n.r.api.scrub.Put(n.key.id, n.secret)
	defer n.r.api.scrub.Put(n.key.id)
	n.r.loopback.admit(n.tenant)
	if n.r.needsProxy(n.want.AllowHosts) {
		n.guest = n.r.loopback.proxy.admitRun(n.key.id, n.key.epoch, func(text string) {
			n.log.Warn("an agent was refused a host", "why", text)
			n.story("host_refused", text)
		})
	}
	end := n.live()
	n.finish(end)
}

func (n *run) live() ending {
	if n.prev != nil {
		select {
		case <-n.prev.done:
		case <-n.prepared.Done():
			return *n.requestOr(stopped("the runner ends"))
		}
		n.prev = nil
	}
	if err := n.prepare(); err != nil {
		return *n.requestOr(ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassInfra,
			reason: clip(err.Error(), town.MaxReason), subject: "rig/" + n.want.Rig})
	}
	sess, err := n.start()
	if errs.Is(err, errs.NotFound) {
		return *n.requestOr(ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassInfra,
			reason: clip(err.Error(), town.MaxReason), subject: town.SubjectMissing})
	}
	if err != nil {
		return *n.requestOr(n.agentFailed("the agent could not be started: " + err.Error()))
	}
	n.mu.Lock()
	n.session = sess
	n.mu.Unlock()
	n.r.outbox.add(town.Report{Kind: town.ReportStarted, Run: n.key.id, Epoch: n.key.epoch, PID: sess.PID(), Session: sess.SessionID()})
	n.r.goes(func() {
		if n.crew != nil && n.r.apart.Private() {
			return // it took no spare, and the next one won't
		}
		if err := n.r.spares.fill(n.r.awake, n.r.apart, n.tree.clone, n.r.dir("trash"), n.want.Start); err != nil && n.r.awake.Err() == nil {
			n.log.Warn("no spare worktree was made", "err", err)
		}
	})
	defer n.r.guard.watch(n, sess.PID())()
	return n.blamed(newTalk(n, sess).run())
}

// requestOr is what was asked, else e: an error after a request to end is its consequence.
func (n *run) requestOr(e ending) *ending {
	if a := n.request(); a != nil {
		return a
	}
	return &e
}

func (n *run) agentFailed(reason string) ending {
	return ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassInfra,
		reason: clip(reason, town.MaxReason), subject: "agent/" + n.want.Preset}
}

// prepare makes the worktree.
func (n *run) prepare() error {
	begin := time.Now()
	clone, err := n.r.rigs.get(n.want.Rig)
	if err != nil {
		return err
	}
	d := n.want
	if kept := n.r.takeUnsent(n.prepared, d, clone); kept != "" {
		d.Resume = kept
	} else if later := n.r.takeLater(n.prepared, d, clone); later != "" {
		d.Resume = later
	}
	room := filepath.Join(n.r.dir("work"), d.Rig, d.Bead)
	spare, err := n.enter(room)
	if err != nil {
		return err
	}
	w, err := clone.prepare(n.prepared, room, n.r.dir("trash"), treeSpec{
		bead: d.Bead, branch: d.Branch, start: d.Start, resume: d.Resume, config: agentConfig(n.hub().url(d.Rig), n.secret, n.rig.Author),
		spare: spare, cell: n.cell,
	})
	if err != nil {
		return err
	}
	var env []string
	if n.crew == nil { // else its process has its environment
		if env, err = n.r.privateEnv(n.cell, room, room); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tree, n.env, w.env = w, slices.Concat(env, d.Env), env
	n.saver = &checkpointer{
		tree: w, hub: n.hub(), start: d.Start, author: n.rig.Author,
		ref:     "refs/gastown/wip/" + d.Bead + "/" + strconv.FormatInt(d.Epoch, 10),
		scratch: filepath.Join(room, roomIndex),
		maxFile: int64(n.rig.MaxFileMB) << 20,
	}
	text := fmt.Sprintf("worktree on %s at %.12s, ready after %d ms", d.Branch, d.Start, time.Since(begin).Milliseconds())
	if d.Resume != "" {
		text += fmt.Sprintf(", with the work of checkpoint %.12s", d.Resume)
	}
	n.cell.Limit(n.r.guard.processes(n.want.MaxProcesses))
	n.story("worktree_ready", text)
	return nil
}

// hub is how git reaches the hub as this run.
func (n *run) hub() hubAccess {
	return hubAccess{base: n.r.loopback.base + "/git/" + n.want.ID, secret: n.secret}
}

// enter gives the run a cell: that of its crew; that of the rig's spare worktree,
// which it takes; or one.
func (n *run) enter(room string) (*spare, error) {
	preset, shares := n.shares()
	var sp *spare
	if !shares || !n.r.apart.Private() { // a spare would have to be given to the crew's user
		sp = n.r.spares.take(n.want.Rig)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if shares {
		return sp, n.join(preset)
	}
	if sp != nil {
		n.cell = sp.cell
		return sp, nil
	}
	var err error
	n.cell, err = n.r.apart.Enter(filepath.Join(room, roomHome))
	return nil, err
}

// start launches the agent, or opens a session in the process of its crew.
func (n *run) start() (agent.Session, error) {
	d := n.want
	preset, err := n.r.cfg.Presets.Get(d.Preset)
	if err != nil {
		return nil, err
	}
	spec := agent.Spec{
		Preset: preset, Dir: n.tree.dir, SelfExe: n.r.cfg.SelfExe, LoadSession: d.Session,
		Env: append(toolEnv(n.env), "GASTOWN_RUN="+d.ID, "GASTOWN_BEAD="+d.Bead, "GASTOWN_RIG="+d.Rig),
		MCP: []agent.MCPServer{{Name: "gastown", URL: n.r.loopback.base + "/mcp/" + d.ID,
			Headers: map[string]string{"Authorization": "Bearer " + n.secret}}},
		OnEvent: n.event, Start: n.cell.Start, Sweep: n.cell.Sweep, Gone: n.lookNow,
	}
	if n.guest != nil {
		spec.Env = append(spec.Env, n.guest.env(n.r.loopback.base)...)
	}
	if d.Provider != "" {
		spec.Model = &agent.Model{Provider: d.Provider, BaseURL: n.r.loopback.base + "/model/" + d.ID, Key: n.secret, Name: d.Model}
	}
	begin := n.r.cfg.Start
	if n.crew != nil {
		begin = func(ctx context.Context, s agent.Spec) (agent.Session, error) {
			return n.crew.host.Open(ctx, s, n.place)
		}
	}
	sess, err := begin(n.prepared, spec)
	if err != nil && spec.LoadSession != "" && n.prepared.Err() == nil {
		// Its session may be what it can't start with: better an agent that was only
		// told what happened than none.
		n.story("not_resumed", clip("the agent can't be started with its session: "+err.Error()+"; a new one is opened", 2000))
		spec.LoadSession = ""
		sess, err = begin(n.prepared, spec)
	}
	return sess, err
}

// event takes one event of the agent.
func (n *run) event(e agent.Event) {
	switch e.Kind {
	case agent.KindMessage, agent.KindThought, agent.KindToolCall, agent.KindToolUpdate, agent.KindPlan:
		n.alive()
		if n.want.Provider == "" && !e.Replayed {
			n.output.Store(true)
		}
	case agent.KindPermission, agent.KindUsage, agent.KindOther, agent.KindStderr, agent.KindNoise:
		if !e.Shared { // else it may be another's
			n.alive()
		}
	}
	n.r.transcripts.add(n.lane, e)
}

// finish ends the agent, saves its work and reports.
func (n *run) finish(end ending) {
	if n.r.lostDisk() {
		end = diskGone() // whatever went wrong is nobody's fault
	}
	n.mu.Lock()
	sess, saver := n.session, n.saver
	n.mu.Unlock()
	grace := n.r.cfg.Timing.StopGrace
	if !end.saves() {
		n.noSaves() // one in progress would only hold the end up
	}
	save := sess != nil && saver != nil && end.saves()
	if save {
		n.save(end.how == endLocal) // insurance, before the agent is disturbed
	}
	if end.how == endKill {
		grace = 0
	}
	if sess != nil {
		if err := sess.Close(grace); err != nil {
			n.log.Warn("the agent did not end cleanly", "err", err)
		}
		if save {
			save = !n.save(end.how == endLocal)
		}
	}
	n.noSaves()
	if saver != nil {
		saver.close()
	}
	n.r.loopback.expel(n.tenant)
	if n.guest != nil {
		n.r.loopback.proxy.expel(n.guest)
	}
	n.leave()
	if !save {
		n.r.tidy(n.tree) // what is in it is elsewhere too
	}
	n.log.Info("run ended", "outcome", end.outcome, "class", end.class, "reason", clip(end.reason, 500))
	if end.how == endKill || end.how == endLocal {
		return
	}
	n.story("ended", strings.TrimSpace(string(end.outcome)+" "+end.reason))
	n.r.outbox.add(town.Report{Kind: town.ReportEnded, Run: n.key.id, Epoch: n.key.epoch,
		Outcome: end.outcome, Class: end.class, Reason: end.reason, Subject: end.subject, WaitMS: end.waitMS})
}

// leave ends what is left of the run's processes.
func (n *run) leave() {
	n.mu.Lock()
	cell := n.cell
	n.mu.Unlock()
	if cell == nil {
		return
	}
	if err := cell.Leave(); err != nil {
		n.log.Error("what a run started did not end", "err", err)
	}
}

// save makes a checkpoint and tells of it. A failure (false) is told, not
// fatal: the next one may succeed.
func (n *run) save(local bool) bool {
	ctx, cancel := context.WithTimeout(n.saves, n.r.saveLimit())
	defer cancel()
	if _, err := n.checkpoint(ctx, local); err != nil {
		if n.saves.Err() == nil {
			n.log.Warn("checkpoint failed", "err", err)
		}
		return false
	}
	return true
}

// slowCheckpoint is how long a checkpoint may take without a warning.
const slowCheckpoint = 10 * time.Second

// unsaved tells people, once until it changes, that work is not being saved; an
// empty reason says that it is again.
func (n *run) unsaved(reason string) {
	if n.atRisk.Swap(reason != "") == (reason != "") {
		return
	}
	if reason != "" {
		n.story("checkpoint_failed", reason)
	}
	n.r.outbox.add(town.Report{Kind: town.ReportUnsaved, Run: n.key.id, Epoch: n.key.epoch, Reason: clip(reason, 500)})
}

func (n *run) checkpoint(ctx context.Context, local bool) (saved, error) {
	n.mu.Lock()
	saver := n.saver
	n.mu.Unlock()
	if saver == nil {
		return saved{}, errs.New(errs.Unavailable, "the worktree is not ready yet")
	}
	s, err := saver.save(ctx, local)
	if err != nil {
		if n.saves.Err() == nil && !local {
			n.unsaved(clip(err.Error(), 500))
		}
		return s, err
	}
	if s.Took > slowCheckpoint {
		n.log.Warn("a checkpoint took long", "took", s.Took, "limit", slowCheckpoint)
	}
	if !local {
		n.unsaved("")
	}
	if s.Commit == "" {
		return s, nil
	}
	text := fmt.Sprintf("checkpoint %.12s", s.Commit)
	if len(s.Left) > 0 {
		n.log.Warn("files were left out of a checkpoint", "files", s.Left[:min(len(s.Left), 20)])
		text += "; not in it: " + strings.Join(s.Left[:min(len(s.Left), 20)], "; ")
	}
	n.story("checkpoint", text)
	if local {
		return s, n.r.keepUnsent(n.want, s.Commit)
	}
	n.r.outbox.add(town.Report{Kind: town.ReportCheckpoint, Run: n.key.id, Epoch: n.key.epoch, Commit: s.Commit, Ref: saver.ref,
		TookMS: s.Took.Milliseconds()})
	return s, nil
}

// saveSoon makes a checkpoint in the background, unless one is on its way.
func (n *run) saveSoon() {
	if !n.saving.CompareAndSwap(false, true) {
		return
	}
	n.r.goes(func() {
		defer n.saving.Store(false)
		n.save(false)
	})
}
