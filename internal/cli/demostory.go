package cli

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

// story follows the events of the town, tells them, and knows when all is done.
type story struct {
	d        *demo
	left     map[string]bool // beads that are not closed
	bad      []string        // those that failed or were cancelled
	awake    bool            // the sandbox was started and is not asleep again
	starting time.Time
}

func newStory(d *demo) *story {
	s := &story{d: d, left: map[string]bool{}}
	for _, b := range d.beads {
		s.left[b.ID] = true
	}
	return s
}

// event tells one ledger entry. client.ErrStop ends the stream: the work is
// done and the sandbox asleep, or something went wrong for good.
func (s *story) event(e api.LedgerEntry) error {
	if text := s.text(e); text != "" {
		s.d.line(e.At, "%s", text)
	}
	switch e.Kind {
	case "bead.closed":
		delete(s.left, e.Subject)
	case "bead.failed", "bead.cancelled":
		s.bad = append(s.bad, e.Subject)
		return client.ErrStop
	case "sandbox.starting":
		s.awake = true
	case "sandbox.asleep":
		s.awake = false
	}
	if len(s.left) == 0 && !s.awake {
		return client.ErrStop
	}
	return nil
}

func (s *story) failure() error {
	if len(s.bad) == 0 {
		return nil
	}
	return errs.New(errs.Internal, "bead %s did not reach its end", strings.Join(s.bad, ", "))
}

// text is what the story says of an entry; "" for what needs no telling.
func (s *story) text(e api.LedgerEntry) string {
	a := s.d.a
	bead := e.Subject
	if e.Data["bead"] != "" {
		bead = e.Data["bead"]
	}
	who := a.paint(bold, cell(bead))
	title := "“" + clip(s.d.names[bead], 50) + "”"
	switch e.Kind {
	case "bead.slung":
		return fmt.Sprintf("%s  new work: %s", who, title)
	case "run.started":
		try := ""
		if n := e.Data["attempt"]; n != "" && n != "1" {
			try = ", attempt " + cell(n)
		}
		return fmt.Sprintf("%s  %s takes %s%s", who, cell(e.Data["agent"]), title, try)
	case "bead.in_review":
		return fmt.Sprintf("%s  the work is done and waits to be merged", who)
	case "gate.passed":
		return fmt.Sprintf("%s  gate %s %s%s", who, cell(e.Text), a.paint(green, "passed"), took(e))
	case "gate.failed":
		return fmt.Sprintf("%s  gate %s %s%s: back to the agent, with the log", who, cell(e.Text), a.paint(red, "failed"), took(e))
	case "merge.conflict":
		return fmt.Sprintf("%s  %s with what was merged meanwhile: to be done again on top of it", who, a.paint(yellow, "conflicts"))
	case "merge.landed":
		return fmt.Sprintf("%s  %s as %s", who, a.paint(green, "merged"), commit(e.Data["commit"]))
	case "merge.lost_lease":
		return fmt.Sprintf("%s  somebody else pushed first: once more on the new tip", who)
	case "bead.failed", "bead.cancelled", "bead.escalated":
		return fmt.Sprintf("%s  %s: %s", who, a.paint(red, strings.TrimPrefix(e.Kind, "bead.")), clip(e.Text, 120))
	case "breaker.open":
		return fmt.Sprintf("%s  %s: %s", who, a.paint(yellow, "trouble, a pause"), clip(e.Text, 160))
	}
	return s.sandboxText(e)
}

func (s *story) sandboxText(e api.LedgerEntry) string {
	box := s.d.a.paint(cyan, "sandbox")
	switch e.Kind {
	case "sandbox.starting":
		s.starting = e.At
		return fmt.Sprintf("%s   starts, for %s", box, cell(e.Text))
	case "sandbox.awake":
		if s.starting.IsZero() {
			return box + "   is awake"
		}
		return fmt.Sprintf("%s   is awake after %s", box, span(e.At.Sub(s.starting)))
	case "sandbox.draining":
		return fmt.Sprintf("%s   has nothing left to do and saves what it has", box)
	case "sandbox.asleep":
		ms, err := strconv.ParseInt(e.Data["awake_ms"], 10, 64)
		if err != nil {
			return box + "   is asleep"
		}
		return fmt.Sprintf("%s   is asleep after %s awake", box, span(time.Duration(ms)*time.Millisecond))
	case "sandbox.lost", "sandbox.wedged":
		return fmt.Sprintf("%s   %s: %s", box, strings.TrimPrefix(e.Kind, "sandbox."), clip(e.Text, 120))
	case "town.finished":
		return "all beads are closed"
	}
	return ""
}

func took(e api.LedgerEntry) string {
	ms, err := strconv.ParseInt(e.Data["ms"], 10, 64)
	if err != nil {
		return ""
	}
	return " (" + span(time.Duration(ms)*time.Millisecond) + ")"
}

// demoReport is what demo --json prints.
type demoReport struct {
	Town    string      `json:"town"`
	Repo    string      `json:"repo"` // the bare repository, or the URL given
	Beads   []demoBead  `json:"beads"`
	Sandbox demoSandbox `json:"sandbox"`
	Renewed int64       `json:"tokens_renewed"`
	Elapsed int64       `json:"elapsed_ms"`
}

type demoBead struct {
	ID       string `json:"id"`
	Title    string `json:"title"`
	Status   string `json:"status"`
	Commit   string `json:"commit"` // on the target
	Attempts int    `json:"attempts"`
}

type demoSandbox struct {
	State   string `json:"state"`
	Starts  int64  `json:"starts"`
	AwakeMS int64  `json:"awake_ms"`
}

func (d *demo) collect(ctx context.Context) (demoReport, error) {
	r := demoReport{Town: demoTown, Repo: d.repo, Beads: []demoBead{}, Elapsed: d.a.env.Now().Sub(d.begin).Milliseconds()}
	for _, b := range d.beads {
		b, err := d.c.Bead(ctx, b.ID)
		if err != nil {
			return r, err
		}
		item := demoBead{ID: b.ID, Title: b.Title, Status: b.Status, Commit: b.Commit, Attempts: b.Attempts}
		if b.Proof != nil && b.Proof.Commit != "" {
			item.Commit = b.Proof.Commit
		}
		r.Beads = append(r.Beads, item)
	}
	t, err := d.c.Town(ctx, demoTown)
	if err != nil {
		return r, err
	}
	r.Sandbox = demoSandbox{State: t.Sandbox.State, Starts: t.Sandbox.Starts, AwakeMS: t.Sandbox.AwakeMS}
	r.Renewed = t.Sandbox.Renewals
	return r, nil
}

// report prints how it ended.
func (d *demo) report(ctx context.Context) error {
	r, err := d.collect(ctx)
	if err != nil {
		return err
	}
	a := d.a
	if a.json {
		return a.printJSON(r)
	}
	var rows [][]string
	for _, b := range r.Beads {
		rows = append(rows, []string{b.ID, b.Status, commit(b.Commit), strconv.Itoa(b.Attempts), b.Title})
	}
	if err := a.say(""); err != nil {
		return err
	}
	if err := a.table("", []string{"BEAD", "STATUS", "COMMIT", "ATTEMPTS", "TITLE"}, rows); err != nil {
		return err
	}
	if d.own {
		graph, err := exec.CommandContext(ctx, "git", "--git-dir="+d.repo, "log", "--oneline", "--graph", "main").Output()
		if err != nil {
			return errs.Wrap(errs.Internal, err, "reading the history of %s", d.repo)
		}
		if err := a.say("\n%s", strings.TrimRight(clean(string(graph)), "\n")); err != nil {
			return err
		}
	}
	if err := a.say("\n%d beads in %s; the sandbox was started %d time(s) and awake for %s; its token was renewed %d times.",
		len(r.Beads), span(time.Duration(r.Elapsed)*time.Millisecond), r.Sandbox.Starts,
		span(time.Duration(r.Sandbox.AwakeMS)*time.Millisecond), r.Renewed); err != nil {
		return err
	}
	return d.next()
}

// next says what to look at.
func (d *demo) next() error {
	a := d.a
	if d.own {
		if err := a.say("\nLook at the repository:   git --git-dir=%s log -p main", shellWord(d.repo)); err != nil {
			return err
		}
	}
	if d.f.dir != "" {
		id := d.beads[len(d.beads)-1].ID
		return a.say("Serve it again:           gastown serve --data %[1]s --listen 127.0.0.1:0\nthen, in another shell:   gastown --data %[1]s ledger\n                          gastown --data %[1]s bead show %[2]s", shellWord(d.data), id)
	}
	if d.own {
		return a.say("Remove it:                rm -rf %s\nKeep all next time:       gastown demo --dir DIR", shellWord(strings.TrimSuffix(d.repo, "/textkit.git")))
	}
	return nil
}

// shellWord quotes a path for a shell where it needs that.
func shellWord(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+=:@%,", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0 && s != "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// diagnose says on stderr why the demo is not done.
func (d *demo) diagnose(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	w := d.a.env.Err
	if d.c == nil {
		return
	}
	for _, b := range d.beads {
		now, err := d.c.Bead(ctx, b.ID)
		if err != nil {
			fmt.Fprintf(w, "%s: %s\n", b.ID, clean(err.Error()))
			continue
		}
		if now.Status == "closed" {
			continue
		}
		fmt.Fprintf(w, "%s %s (%s): %s\n", b.ID, cell(now.Title), status(now), cell(reasonText(now.Why, d.a)))
		for _, f := range now.Failures {
			fmt.Fprintf(w, "    %s: %s\n", f.Class, clip(f.Reason, 300))
		}
	}
	if why, err := d.c.WhyTown(ctx, demoTown); err == nil {
		fmt.Fprintf(w, "sandbox %s: %s\n", cell(why.Sandbox.State), cell(why.Text))
		for _, b := range why.Breakers {
			fmt.Fprintf(w, "    breaker %s: %s\n", cell(b.Subject), clip(b.Last, 300))
		}
	}
	if d.child != nil {
		if tail := d.child.tail(); tail != "" {
			fmt.Fprintf(w, "the end of the server's log:\n%s\n", indent(tail))
		}
	}
}
