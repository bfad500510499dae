package runner

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"gastown/internal/agent"
	"gastown/internal/town"
)

// reminder is what an agent reads that ended its turn without a verdict.
const reminder = "You ended your turn without calling done, no_change or escalate, so nothing is finished yet. " +
	"If your work is complete, commit it and call done. If nothing has to be changed, call no_change with the reason. " +
	"If a person has to decide something, call escalate. Otherwise go on working."

// awaitVerdict is how long a run with an accepted escalation waits for the
// document to say how it ends.
const awaitVerdict = 30 * time.Second

// turnEnd is the end of one turn.
type turnEnd struct {
	why agent.StopReason
	err error
}

// talk is the conversation with one agent: prompt, turn, nudge, until there is
// a reason to end. It runs on the goroutine of its run.
type talk struct {
	n         *run
	sess      agent.Session
	turn      chan turnEnd // nil between turns
	reminders int          // left
	turns     int
	// interrupted says that the turn in progress was cancelled for a message.
	interrupted bool
	grace       <-chan time.Time // the end of waiting after an accepted verdict
	verdict     *ending          // what ends the run when the turn or the grace does
}

func newTalk(n *run, s agent.Session) *talk {
	return &talk{n: n, sess: s, reminders: n.want.TurnNudges}
}

func (t *talk) run() ending {
	limit := time.Duration(t.n.want.TimeLimitMS) * time.Millisecond
	var limitC <-chan time.Time
	if limit > 0 {
		tm := time.NewTimer(limit)
		defer tm.Stop()
		limitC = tm.C
	}
	every := time.Duration(t.n.rig.CheckpointMS) * time.Millisecond
	if every <= 0 {
		every = 45 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()

	t.prompt(t.first())
	for {
		var end *ending
		select {
		case e := <-t.turn:
			end = t.turnEnded(e)
		case <-t.sess.Done():
			end = t.died()
		case <-t.n.wake:
			end = t.heed()
		case <-t.grace:
			end = t.verdict
		case <-limitC:
			end = &ending{how: endNow, outcome: town.OutcomeExited, class: town.ClassWork,
				reason: fmt.Sprintf("the run reached its time limit of %s", limit)}
		case <-tick.C:
			t.n.saveSoon()
		}
		if end != nil {
			t.quiet(*end)
			return *end
		}
	}
}

// prompt begins a turn.
func (t *talk) prompt(text string) {
	ch := make(chan turnEnd, 1)
	t.turn = ch
	t.turns++
	t.interrupted = false
	t.n.lastModel.Store(-1)
	t.n.limited.Store(nil)
	t.n.alive()
	go func() {
		why, err := t.sess.Prompt(t.n.r.base, text)
		ch <- turnEnd{why, err}
	}()
}

// first is the prompt of the first turn, with the messages that the run before
// did not read.
func (t *talk) first() string {
	text, last := t.nudges()
	if text == "" {
		return t.n.want.Prompt
	}
	t.delivered(text, last)
	return t.n.want.Prompt + "\n\n" + text
}

// delivered tells that messages are in the next prompt.
func (t *talk) delivered(text string, last int) {
	t.n.story("nudged", clip(text, 2000))
	t.n.r.outbox.add(town.Report{Kind: town.ReportNudged, Run: t.n.key.id, Epoch: t.n.key.epoch, Nudge: last})
}

// interrupt ends the turn in progress when a message wants it.
func (t *talk) interrupt() {
	t.n.mu.Lock()
	wanted := slices.ContainsFunc(t.n.nudges, func(m town.Nudge) bool { return m.Interrupt })
	t.n.mu.Unlock()
	if !wanted || t.turn == nil || t.interrupted {
		return
	}
	t.interrupted = true
	t.n.story("interrupted", "a message that does not wait for the end of the turn")
	if err := t.sess.Cancel(t.n.r.base); err != nil {
		t.n.log.Warn("the turn can't be interrupted; the message waits for its end", "err", err)
	}
}

// heed looks at what was asked of the run.
func (t *talk) heed() *ending {
	a := t.n.request()
	switch {
	case a == nil:
		t.interrupt()
		return nil
	case a.how != endTurn || t.turn == nil:
		return a
	case t.verdict == nil || t.grace == nil:
		t.verdict = a
		t.grace = time.After(t.n.r.cfg.Timing.VerdictGrace)
	}
	return nil
}

// accepted is the end by a verdict that the server took, nil when there is none.
func (t *talk) accepted() *ending {
	if t.verdict != nil {
		return t.verdict
	}
	t.n.mu.Lock()
	defer t.n.mu.Unlock()
	if t.n.asked != nil {
		return t.n.asked
	}
	switch t.n.accepted {
	case town.VerdictDone:
		return &ending{how: endTurn, outcome: town.OutcomeDone}
	case town.VerdictNoChange:
		return &ending{how: endTurn, outcome: town.OutcomeNoChange}
	}
	return nil
}

// died says what the end of the agent's process means.
func (t *talk) died() *ending {
	if a := t.accepted(); a != nil {
		return a
	}
	if l := t.n.limited.Load(); l != nil {
		return l.ending(t.n.want, time.Now())
	}
	reason := "the agent exited"
	if err := t.sess.Err(); err != nil {
		reason = err.Error()
	}
	var shared *agent.SharedError
	if errors.As(t.sess.Err(), &shared) {
		// Nobody knows which of its runs was too much for it. A bead to which this
		// happens again and again runs alone, and then it is charged.
		return &ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassInfra, subject: town.SubjectKilled,
			reason: clip(reason, town.MaxReason)}
	}
	if t.n.hurt.Load() != nil {
		return &ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassWork, reason: clip("agent exited: "+reason, town.MaxReason)}
	}
	if !t.n.output.Load() {
		e := t.n.agentFailed("before the model said anything: " + reason)
		return &e
	}
	end := &ending{how: endNow, outcome: town.OutcomeFailed, class: town.ClassWork,
		reason: clip("agent exited: "+reason, town.MaxReason)}
	if killed(t.sess.Err()) {
		end.class, end.subject = town.ClassInfra, town.SubjectKilled
	}
	return end
}

// killed reports that an agent got SIGKILL from somebody else: the system for
// want of memory, or a person.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	st, ok := exit.Sys().(syscall.WaitStatus)
	return ok && st.Signaled() && st.Signal() == syscall.SIGKILL
}

// turnEnded decides what follows a turn: the end, a nudge, or a reminder.
func (t *talk) turnEnded(e turnEnd) *ending {
	t.turn = nil
	t.n.lookNow() // what it left may be why it got no further
	if a := t.accepted(); a != nil {
		return a
	}
	if e.err != nil && t.gone() {
		return t.died()
	}
	t.n.saveSoon()
	if t.escalated() {
		t.grace = time.After(awaitVerdict)
		t.verdict = &ending{how: endNow, outcome: town.OutcomeStopped, reason: "escalated"}
		return nil
	}
	if l := t.n.limited.Load(); l != nil {
		return l.ending(t.n.want, time.Now())
	}
	if end := t.modelDown(e); end != nil {
		return end
	}
	if t.n.overflow.endedTurn() {
		return overflowed()
	}
	how := "ended its turn (" + string(e.why) + ")"
	if e.err != nil {
		how = "failed its turn: " + e.err.Error()
	}
	t.n.story("turn_ended", clip("the agent "+how, 2000))
	if text, last := t.nudges(); text != "" {
		t.prompt(text)
		t.delivered(text, last)
		return nil
	}
	if t.reminders > 0 {
		t.reminders--
		t.n.story("reminded", "no verdict; the agent is reminded")
		t.prompt(reminder)
		return nil
	}
	end := &ending{how: endNow, outcome: town.OutcomeExited, class: town.ClassWork}
	if t.n.unanswered.Load() {
		// It could not have done better: the server did not answer its last call.
		how += " after the server had not answered it"
		end.class, end.subject = town.ClassInfra, "rig/"+t.n.want.Rig
	}
	end.reason = clip(fmt.Sprintf("the agent %s without done, no_change or escalate, after %d turns", how, t.turns), town.MaxReason)
	return end
}

// gone waits a moment for a process whose turn failed: it may be dying.
func (t *talk) gone() bool {
	tm := time.NewTimer(time.Second)
	defer tm.Stop()
	select {
	case <-t.sess.Done():
		return true
	case <-t.n.wake:
		t.n.signal() // somebody wants something: look at it in the loop
		return false
	case <-tm.C:
		return false
	}
}

func (t *talk) escalated() bool {
	t.n.mu.Lock()
	defer t.n.mu.Unlock()
	return t.n.accepted == town.VerdictEscalate
}

// modelDown tells turns that ended for want of the gateway from work that was
// not done: by what the gateway answered, never by the agent's stop reason.
func (t *talk) modelDown(e turnEnd) *ending {
	last := t.n.lastModel.Load()
	if last == 0 || last == 502 || last == 503 || last == 504 {
		end := t.n.agentFailed(fmt.Sprintf("the model could not be reached (last status %d)", last))
		return &end
	}
	if e.err != nil && !t.n.output.Load() {
		end := t.n.agentFailed("before the model said anything: " + e.err.Error())
		return &end
	}
	return nil
}

// nudges takes the waiting nudges as one prompt, with the number of the last.
func (t *talk) nudges() (text string, last int) {
	t.n.mu.Lock()
	defer t.n.mu.Unlock()
	var parts []string
	for _, m := range t.n.nudges {
		from := ""
		if m.From != "" {
			from = "Message from " + m.From + ": "
		}
		parts = append(parts, from+m.Text)
		last = m.N
	}
	t.n.nudges = nil
	return strings.Join(parts, "\n\n"), last
}

// quiet cancels the turn in progress, so that little changes under the last
// checkpoint; the agent has a second to obey.
func (t *talk) quiet(end ending) {
	if t.turn == nil || end.how == endKill {
		return
	}
	ctx, cancel := context.WithTimeout(t.n.r.base, time.Second)
	defer cancel()
	if err := t.sess.Cancel(ctx); err != nil {
		return // it is dying or not listening; Close follows
	}
	select {
	case <-t.turn:
	case <-t.sess.Done():
	case <-ctx.Done():
	}
}
