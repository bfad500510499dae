package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

const (
	// liveLook is how often a live check looks how far its work is.
	liveLook = 250 * time.Millisecond
	// liveClean is how long it may take to remove what the check made.
	liveClean = 2 * time.Minute
	// transcriptFor is how long what an agent said may come after what it did.
	transcriptFor = 15 * time.Second
)

// liveFlags are the flags of a live check.
type liveFlags struct {
	live            bool
	provider, model string
	limit           time.Duration
}

// liveStep is one step of a live check that is over, as --json shows it.
type liveStep struct {
	Name string `json:"name"` // server, repository, town, rig, work, sandbox, agent, prompt, done, merge, cleanup
	OK   bool   `json:"ok"`
	MS   int64  `json:"ms"` // since the work was given to the town; of the steps before, since the check began
	Text string `json:"text,omitempty"`
}

// liveResult is the outcome of a live check.
type liveResult struct {
	Name     string     `json:"name"`
	OK       bool       `json:"ok"`
	Sandbox  string     `json:"sandbox,omitempty"` // the server's driver
	Uses     *api.Uses  `json:"uses,omitempty"`
	PromptMS int64      `json:"prompt_ms"` // from the work's creation to the agent's first answer
	DoneMS   int64      `json:"done_ms"`   // until the agent said that it is done
	MergedMS int64      `json:"merged_ms"`
	Tokens   int64      `json:"tokens,omitempty"`
	Steps    []liveStep `json:"steps"`
	Failed   string     `json:"failed,omitempty"` // the step that failed
	Error    string     `json:"error,omitempty"`
	Hint     string     `json:"hint,omitempty"`
}

// live is a check under way.
type live struct {
	a     *invocation
	f     liveFlags
	c     *client.Client
	begin time.Time
	out   liveResult

	dir  string // with the repository; "" before it is made
	town string // id; "" before it is made
	bead api.Bead

	epoch, after int64         // of the transcript that was read
	verdictAt    time.Duration // after the work was given; 0 before it was seen
	done         map[string]bool
}

// checkLive has an agent do a tiny task on the server, in a town and a
// repository that are removed afterwards, however it ends.
func (a *invocation) checkLive(ctx context.Context, preset string, f liveFlags) error {
	l := &live{a: a, f: f, begin: time.Now(), out: liveResult{Name: preset, Steps: []liveStep{}}, done: map[string]bool{}}
	limited, cancel := context.WithTimeout(ctx, f.limit)
	defer cancel()
	step, err := l.run(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = l.late(context.WithoutCancel(ctx), step)
	}
	cleanErr := l.clean(context.WithoutCancel(ctx))
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), cleanErr)
	}
	if err == nil && cleanErr != nil {
		step, err = "cleanup", cleanErr
	}
	l.out.OK = err == nil
	if err != nil {
		l.out.Failed, l.out.Hint = step, hintOf(err)
		l.out.Error = strings.TrimSpace(strings.Replace(err.Error(), " ("+l.out.Hint+")", "", 1))
	}
	if a.json {
		if printErr := a.printJSON(l.out); printErr != nil || err == nil {
			return printErr
		}
	}
	if err != nil {
		return errs.Wrap(errs.KindOf(err), err, "agent %s, step %s", preset, step)
	}
	return a.say("agent %s works: first answer after %s, done after %s, merged after %s", preset,
		seconds(l.out.PromptMS), seconds(l.out.DoneMS), seconds(l.out.MergedMS))
}

func seconds(ms int64) string { return fmt.Sprintf("%.1f s", float64(ms)/1000) }

// pass notes that a step is over.
func (l *live) pass(step string, took time.Duration, format string, args ...any) {
	if l.done[step] {
		return
	}
	l.done[step] = true
	s := liveStep{Name: step, OK: true, MS: max(took.Milliseconds(), 0), Text: fmt.Sprintf(format, args...)}
	l.out.Steps = append(l.out.Steps, s)
	if !l.a.json {
		// A story that can't be told changes nothing of what happens.
		_ = l.a.say("%-10s %8s  %s", s.Name, seconds(s.MS), s.Text)
	}
}

// run goes from step to step and names the one that failed.
func (l *live) run(ctx context.Context) (step string, err error) {
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{{"server", l.server}, {"repository", l.repository}, {"town", l.makeTown}, {"rig", l.makeRig}, {"work", l.sling}} {
		text, err := s.do(ctx)
		if err != nil {
			return s.name, err
		}
		l.pass(s.name, time.Since(l.begin), "%s", text)
	}
	tick := time.NewTicker(liveLook)
	defer tick.Stop()
	for {
		b, err := l.c.Bead(ctx, l.bead.ID)
		if err != nil {
			return l.next(), err
		}
		if err := l.look(ctx, b); err != nil {
			return l.next(), err
		}
		if l.done["merge"] {
			return "", nil
		}
		select {
		case <-ctx.Done():
			return l.next(), ctx.Err()
		case <-tick.C:
		}
	}
}

// next is the first step of the work that is not over.
func (l *live) next() string {
	for _, s := range []string{"sandbox", "agent", "prompt", "done"} {
		if !l.done[s] {
			return s
		}
	}
	return "merge"
}

func (l *live) server(ctx context.Context) (string, error) {
	var err error
	if l.c, err = l.a.connect(); err != nil {
		return "", err
	}
	s, err := l.c.Server(ctx)
	if err != nil {
		return "", err
	}
	l.out.Sandbox = s.SandboxDriver
	return fmt.Sprintf("%s, sandboxes by %s", l.c.URL(), s.SandboxDriver), nil
}

// repository makes a bare repository with one commit.
func (l *live) repository(ctx context.Context) (string, error) {
	var err error
	if l.dir, err = os.MkdirTemp("", "gastown-live-"); err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "making a temporary directory")
	}
	work, bare := filepath.Join(l.dir, "work"), filepath.Join(l.dir, "check.git")
	for _, args := range [][]string{
		{"init", "-q", "--bare", bare},
		{"--git-dir=" + bare, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"init", "-q", work},
		{"-C", work, "symbolic-ref", "HEAD", "refs/heads/main"},
		{"-C", work, "commit", "-q", "--allow-empty", "-m", "check: a beginning"},
		{"-C", work, "push", "-q", bare, "main"},
	} {
		if err := git(ctx, args...); err != nil {
			return "", err
		}
	}
	return bare, nil
}

func (l *live) makeTown(ctx context.Context) (string, error) {
	name := "check-" + strings.ToLower(rand.Text()[:8])
	t, err := l.c.CreateTown(ctx, api.CreateTown{Name: name, Settings: map[string]string{"sandbox.grace": "1s", "work.max_attempts": "1"}})
	if err != nil {
		return "", err
	}
	l.town = t.ID
	return name, nil
}

func (l *live) makeRig(ctx context.Context) (string, error) {
	set := map[string]string{"agent": l.out.Name}
	if l.f.provider != "" {
		set["provider"] = l.f.provider
	}
	if l.f.model != "" {
		set["model"] = l.f.model
	}
	name := "check" + strings.ToLower(rand.Text()[:7])
	r, err := l.c.AddRig(ctx, l.town, api.AddRig{Name: name, Prefix: name, URL: filepath.Join(l.dir, "check.git"), Target: "main", Settings: set,
		Gates: []api.Gate{{Name: "checked", Command: "grep -q checked CHECK.txt"}}})
	if err != nil {
		return "", err
	}
	l.bead.Rig, l.bead.Settings = r.Name, r.Settings
	return name, nil
}

// liveTask is small, and says it to the scripted agent, too.
const liveTask = `Make a file CHECK.txt in this directory with the one word "checked" in it, and commit it. Change nothing else.

` + "```sh" + `
echo checked > CHECK.txt
` + "```" + `
`

// sling gives the town its work. What the rig was completed with is the bead's
// own, so that no setting of the server comes in between.
func (l *live) sling(ctx context.Context) (string, error) {
	set := map[string]string{}
	for _, k := range []string{"agent", "provider", "model"} {
		if v := l.bead.Settings[k]; v != "" {
			set[k] = v
		}
	}
	b, err := l.c.CreateBead(ctx, l.town, api.CreateBead{Rig: l.bead.Rig, Title: "Make CHECK.txt", Body: liveTask, Settings: set})
	if err != nil {
		return "", err
	}
	l.bead, l.out.Uses = b, b.Uses
	return b.ID + " with " + usesText(b.Uses), nil
}

// look notes how far the work is, and fails when it will not end well.
func (l *live) look(ctx context.Context, b api.Bead) error {
	since := func(t time.Time) time.Duration { return t.Sub(b.CreatedAt) }
	now := time.Since(l.begin) - time.Duration(l.slungMS())*time.Millisecond
	for _, r := range b.Runs {
		if r.Generation != 0 {
			awake := now
			if !r.SpawnedAt.IsZero() {
				awake = min(now, since(r.SpawnedAt))
			}
			l.pass("sandbox", awake, "awake, generation %d", r.Generation)
		}
		if !r.SpawnedAt.IsZero() {
			l.pass("agent", since(r.SpawnedAt), "started and opened a session")
		}
		if !l.done["prompt"] {
			if err := l.answered(ctx, b, r.Epoch); err != nil {
				return err
			}
		}
	}
	if b.Merge != nil || b.Status == "closed" && b.Proof != nil && b.Proof.Kind == "merged" {
		if l.verdictAt == 0 {
			l.verdictAt = max(now, 1)
			if !b.ClosedAt.IsZero() {
				l.verdictAt = min(l.verdictAt, since(b.ClosedAt))
			}
		}
		if !l.done["prompt"] && now < l.verdictAt+transcriptFor {
			return nil // what it said before is still on its way
		}
		if !l.done["prompt"] {
			l.out.PromptMS = l.verdictAt.Milliseconds()
		}
		l.pass("prompt", l.verdictAt, "the first prompt was accepted")
		l.pass("done", l.verdictAt, "it says that it is done, and the server has its commit")
		l.out.DoneMS = l.verdictAt.Milliseconds()
	}
	l.out.Tokens = b.Spent.Tokens
	return l.outcome(b, since)
}

// slungMS is when the work was given to the town, since the check began.
func (l *live) slungMS() int64 {
	for _, s := range l.out.Steps {
		if s.Name == "work" {
			return s.MS
		}
	}
	return 0
}

// answered looks whether the agent said or did something.
func (l *live) answered(ctx context.Context, b api.Bead, epoch int64) error {
	if epoch != l.epoch {
		l.epoch, l.after = epoch, 0
	}
	items, err := l.c.Transcript(ctx, b.ID, epoch, l.after)
	if err != nil {
		return err
	}
	for _, i := range items {
		l.after = i.Seq
		switch i.Kind {
		case "message", "thought", "tool_call", "plan":
			took := i.At.Sub(b.CreatedAt)
			l.pass("prompt", took, "the first prompt was accepted and answered")
			l.out.PromptMS = took.Milliseconds()
			return nil
		}
	}
	return nil
}

// outcome ends the check where the work has ended, or waits for what nobody
// will bring.
func (l *live) outcome(b api.Bead, since func(time.Time) time.Duration) error {
	why := ""
	if b.Why != nil {
		why = b.Why.Text
	}
	logs := func(e *errs.Error) error {
		if l.next() == "prompt" && l.out.Uses != nil && l.out.Uses.Provider.Value != "" {
			return e.WithHint("are the key and the model's name right? gastown provider list shows %s; gastown provider add replaces it, with its key", l.out.Uses.Provider.Value)
		}
		return e.WithHint("gastown agents check %s starts it here; the server's log and sandboxes/*/runner.log in its data directory say more", l.out.Name)
	}
	switch {
	case b.Status == "closed" && b.Proof != nil && b.Proof.Kind == "merged":
		l.pass("merge", since(b.ClosedAt), "the gate passed and %s is on the target", commit(b.Commit))
		l.out.MergedMS = since(b.ClosedAt).Milliseconds()
		return nil
	case b.Status == "closed":
		return errs.New(errs.Conflict, "it ended without a change: %s", clip(why, 500)).WithHint("another model may follow the task: --model NAME")
	case b.Status == "failed" || b.Status == "cancelled":
		return logs(errs.New(errs.Unavailable, "%s", clip(why, 1000)))
	case b.Escalated:
		return errs.New(errs.Conflict, "it asks a person: %s", clip(b.Reason, 500)).WithHint("another model may follow the task: --model NAME")
	case len(b.Failures) > 0 && (b.Why == nil || b.Why.Kind != "agent"):
		f := b.Failures[len(b.Failures)-1]
		return logs(errs.New(errs.Unavailable, "%s", clip(f.Reason, 1000)))
	}
	if b.Why != nil {
		switch b.Why.Kind {
		case "agent", "breaker", "limit", "budget":
			return errs.New(errs.Unavailable, "%s", clip(why, 1000)).WithHint("do what it says, then check again")
		}
	}
	return nil
}

// late says what it was waiting for when the time was over.
func (l *live) late(ctx context.Context, step string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text := ""
	if l.bead.ID != "" {
		if r, err := l.c.WhyBead(ctx, l.bead.ID); err == nil {
			text = ": " + clip(r.Text, 500)
		}
	}
	return errs.New(errs.Unavailable, "step %s was not over after %s%s", step, l.f.limit, text).WithHint("give it more time: --limit %s", 2*l.f.limit)
}

// clean removes the town and the repository.
func (l *live) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, liveClean)
	defer cancel()
	var all []error
	if l.town != "" {
		err := l.c.DeleteTown(ctx, l.town)
		if err == nil {
			err = l.c.WaitTownGone(ctx, l.town)
		}
		if err != nil {
			all = append(all, errs.New(errs.Unavailable, "removing the town of the check: %v", err).
				WithHint("gastown town delete %s --yes removes it", l.town))
		}
	}
	if l.dir != "" {
		all = append(all, os.RemoveAll(l.dir))
	}
	return errors.Join(all...)
}
