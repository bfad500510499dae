package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// leastSettle is longer than every pause of the settings and whatever else heals
// by itself: on a slow machine quiet takes long, and is quiet all the same.
const leastSettle = 5 * time.Minute

// settle waits until every bead is ended, the sandbox sleeps and the hub is
// tidy. It returns "" or what is not quiet.
func (c *chaos) settle(ctx context.Context) string {
	c.say("; the faults are over")
	ctx, cancel := context.WithTimeout(ctx, max(c.o.For, leastSettle))
	defer cancel()
	watching, done := context.WithCancel(ctx)
	defer done()
	go c.progress(watching)
	busy := "nobody looked"
	for {
		if now := c.busy(ctx); ctx.Err() == nil {
			busy = now
		}
		if busy == "" || wait(ctx, 300*time.Millisecond) != nil {
			return busy
		}
	}
}

// busy says what is not quiet yet, "" when all is.
func (c *chaos) busy(ctx context.Context) string {
	beads, err := c.beads(ctx)
	if err != nil {
		return err.Error()
	}
	c.look(beads)
	var open []string
	for _, b := range beads {
		switch b.Status {
		case "closed", "failed", "cancelled":
		default:
			why := ""
			if b.Why != nil {
				why = ": " + b.Why.Text
			}
			open = append(open, b.ID+" is "+b.Status+why)
		}
	}
	if len(open) > 0 {
		return strings.Join(open, "; ")
	}
	var t api.Town
	err = c.ask(ctx, func(ctx context.Context, srv *client.Client) (err error) {
		t, err = srv.Town(ctx, chaosTown)
		return err
	})
	if err != nil {
		return err.Error()
	}
	if t.Sandbox.State != "asleep" {
		return "the sandbox is " + t.Sandbox.State
	}
	return c.untidy(ctx)
}

// untidy says what is left in the hub and upstream besides the target.
func (c *chaos) untidy(ctx context.Context) string {
	hub := filepath.Join(c.data, "hub", c.town, chaosRig+".git")
	for _, dir := range []string{hub, c.remote.bare} {
		out, err := c.remote.git(ctx, "--git-dir="+dir, "for-each-ref", "--format=%(refname)")
		if err != nil {
			return err.Error()
		}
		for _, ref := range strings.Fields(out) {
			if strings.HasPrefix(ref, "refs/gastown/") || strings.HasPrefix(ref, "refs/heads/gt/") {
				return "the repository " + filepath.Base(filepath.Dir(dir)) + "/" + filepath.Base(dir) + " still has " + ref
			}
		}
	}
	return ""
}

func (c *chaos) beads(ctx context.Context) (out []api.Bead, err error) {
	err = c.ask(ctx, func(ctx context.Context, srv *client.Client) (err error) {
		out, err = srv.Beads(ctx, chaosTown, client.BeadQuery{})
		return err
	})
	return out, err
}

// check compares what was acknowledged with what is there.
func (c *chaos) check(ctx context.Context, quiet string) error {
	if quiet != "" {
		c.violation("not quiet %s after the faults: %s", max(c.o.For, leastSettle), quiet)
	}
	beads, err := c.beads(ctx)
	if err != nil {
		return err
	}
	c.checkAcks(beads)
	if err := c.checkMerges(ctx, beads); err != nil {
		return err
	}
	if err := c.checkFiles(ctx, beads); err != nil {
		return err
	}
	if err := c.checkTown(ctx, beads); err != nil {
		return err
	}
	r := c.result()
	for _, k := range []struct {
		what string
		n    int
	}{{"servers", r.ServerKills}, {"runners", r.RunnerKills}, {"agents", r.AgentKills}} {
		if k.n < minKills {
			c.violation("only %d %s were killed, this proves little", k.n, k.what)
		}
	}
	if r.Stalls == 0 {
		c.violation("nothing was stopped for longer than the lease, this proves little")
	}
	return nil
}

// checkAcks wants each acknowledged bead once, and waiting for what it was told to.
func (c *chaos) checkAcks(beads []api.Bead) {
	found := map[string][]api.Bead{}
	for _, b := range beads {
		found[b.Title] = append(found[b.Title], b)
	}
	lost := func(format string, args ...any) {
		c.violation(format, args...)
		c.count(func(r *Chaos) { r.LostAcks++ })
	}
	for _, o := range c.work {
		got := found[o.title()]
		switch {
		case o.id == "":
			c.violation("bead %d was never acknowledged", o.n)
		case len(got) == 0:
			lost("bead %d was acknowledged as %s and does not exist", o.n, o.id)
		case len(got) > 1:
			lost("bead %d was acknowledged as %s and exists %d times", o.n, o.id, len(got))
		case got[0].ID != o.id:
			lost("bead %d was acknowledged as %s and is %s", o.n, o.id, got[0].ID)
		case o.blocker != "" && (len(got[0].BlockedBy) != 1 || got[0].BlockedBy[0] != o.blocker):
			lost("%s should be blocked by %s and is by %v", o.id, o.blocker, got[0].BlockedBy)
		}
	}
}

// checkMerges wants each bead merged once, with the commit that was accepted.
func (c *chaos) checkMerges(ctx context.Context, beads []api.Bead) error {
	git := func(args ...string) (string, error) {
		return c.remote.git(ctx, append([]string{"--git-dir=" + c.remote.bare}, args...)...)
	}
	first, err := git("log", "--first-parent", "--format=%(trailers:key=Bead,valueonly,separator=%x20)", "main")
	if err != nil {
		return err
	}
	merges := map[string]int{}
	for _, id := range strings.Fields(first) {
		merges[id]++
	}
	history, err := git("log", "--format=%H%n%s", "main")
	if err != nil {
		return err
	}
	lines := map[string]int{} // commits and subjects
	for line := range strings.Lines(history) {
		lines[strings.TrimSpace(line)]++
	}
	lost := func(format string, args ...any) {
		c.violation(format, args...)
		c.count(func(r *Chaos) { r.LostCommits++ })
	}
	for _, commit := range c.others {
		if lines[commit] == 0 {
			lost("the commit %s of somebody else is not in the target any more", commit)
		}
	}
	for _, b := range beads {
		n := merges[b.ID]
		switch {
		case b.Status != "closed" || b.Proof == nil || b.Proof.Kind != "merged":
			full, err := c.bead(ctx, b.ID)
			if err != nil {
				return err
			}
			c.violation("%s is %s, with %d merges and failures %+v", b.ID, b.Status, n, full.Failures)
		case n == 0:
			c.violation("%s is closed and was not merged", b.ID)
		}
		if n > 1 || lines["marker "+strings.TrimPrefix(b.Title, "bead ")] > 1 {
			c.count(func(r *Chaos) { r.MergedTwice++ })
			c.violation("%s was merged %d times, its marker %d times", b.ID, n, lines["marker "+strings.TrimPrefix(b.Title, "bead ")])
		}
		if n == 1 && b.Status == "closed" {
			c.count(func(r *Chaos) { r.Merged++ })
		}
		if b.Status == "closed" && b.Proof != nil && (lines[b.Commit] == 0 || lines[b.Proof.Commit] == 0) {
			lost("%s is closed with %s, merged as %s, which are not both in the target", b.ID, b.Commit, b.Proof.Commit)
		}
		if commit := c.seen[b.ID][b.Attempt]; commit != "" && lines[commit] == 0 && (b.Status == "closed" || !c.held(ctx, commit)) {
			lost("%s: the commit %s was accepted and is not in the target", b.ID, commit)
		}
	}
	return nil
}

// held reports whether the hub has a commit that is not merged yet.
func (c *chaos) held(ctx context.Context, commit string) bool {
	hub := filepath.Join(c.data, "hub", c.town, chaosRig+".git")
	_, err := c.remote.git(ctx, "--git-dir="+hub, "cat-file", "-e", commit+"^{commit}")
	return err == nil
}

func (c *chaos) bead(ctx context.Context, id string) (b api.Bead, err error) {
	err = c.ask(ctx, func(ctx context.Context, srv *client.Client) (err error) {
		b, err = srv.Bead(ctx, id)
		return err
	})
	return b, err
}

// checkFiles wants every file of every merged bead in the target, whole.
func (c *chaos) checkFiles(ctx context.Context, beads []api.Bead) error {
	dir := filepath.Join(c.o.Place.Dir, "result")
	if _, err := c.remote.git(ctx, "clone", "-q", c.remote.bare, dir); err != nil {
		return err
	}
	list, err := os.ReadFile(filepath.Join(dir, "list.txt"))
	if err != nil {
		return errs.Wrap(errs.Internal, err, "reading the result")
	}
	for _, b := range beads {
		var o *order
		for _, w := range c.work {
			if w.id == b.ID {
				o = w
			}
		}
		if o == nil || b.Status != "closed" {
			continue
		}
		for part := 1; part <= chaosParts; part++ {
			name := fmt.Sprintf("beads/%d/%d", o.n, part)
			got, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || string(got) != chaosPart(o.n, part) {
				c.violation("%s: the file %s has %d bytes in the target, not what was written (%v)", b.ID, name, len(got), err)
			}
		}
		if n := strings.Count("\n"+string(list), "\n"+o.title()+"\n"); o.appends() && n != 1 {
			c.violation("%s: its line is in the common file %d times", b.ID, n)
		}
	}
	return nil
}

// checkTown takes the last figures, and looks for processes that nobody wants.
func (c *chaos) checkTown(ctx context.Context, beads []api.Bead) error {
	var t api.Town
	err := c.ask(ctx, func(ctx context.Context, srv *client.Client) (err error) {
		t, err = srv.Town(ctx, chaosTown)
		return err
	})
	if err != nil {
		return err
	}
	fills := 0
	for _, b := range beads {
		full, err := c.bead(ctx, b.ID)
		if err != nil {
			return err
		}
		for _, run := range full.Runs {
			n, err := c.lostOutput(ctx, b.ID, run.Epoch)
			if err != nil {
				return err
			}
			fills += n
		}
	}
	c.count(func(r *Chaos) { r.SandboxStarts, r.OutboxFills = t.Sandbox.Starts, fills })
	if t.Sandbox.State == "asleep" {
		if pid := c.runner(); pid != 0 {
			c.violation("the sandbox sleeps and its process %d runs", pid)
		}
	}
	return nil
}

// lostOutput is 1 when a run's transcript says that some of it was lost.
func (c *chaos) lostOutput(ctx context.Context, bead string, epoch int64) (int, error) {
	var items []api.TranscriptItem
	err := c.ask(ctx, func(ctx context.Context, srv *client.Client) (err error) {
		items, err = srv.Transcript(ctx, bead, epoch, 0)
		return err
	})
	for _, i := range items {
		if i.Kind == "lifecycle" && strings.Contains(string(i.Body), `"status":"lost"`) {
			return 1, err
		}
	}
	return 0, err
}
