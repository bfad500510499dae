package runner

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/scrub"
	"gastown/internal/town"
)

// sharing is the scripted agent with a preset that lets its runs share a process.
func sharing(t *testing.T) func(*Config) {
	t.Helper()
	ps, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	p := ps["scripted"]
	p.SharedSessions = true
	return func(c *Config) { c.Presets = agent.Presets{"scripted": p} }
}

// addTwo adds a run for each of two beads.
func (f *fakeTown) addTwo(edit func(d *town.DesiredRun)) {
	f.t.Helper()
	for _, bead := range []string{theBead, "app-bbbbb"} {
		f.addRun(func(d *town.DesiredRun) {
			d.ID, d.Bead, d.Branch = bead+".1", bead, "gt/nux/"+bead
			if edit != nil {
				edit(d)
			}
		})
	}
}

func (f *fakeTown) file(bead, name string) string {
	return filepath.Join(f.disk, "work", "app", bead, roomTree, name)
}

// ends are the ends of two runs by their ids.
func (f *fakeTown) ends() map[string]town.Report {
	f.t.Helper()
	out := map[string]town.Report{}
	for i := range 2 {
		e := f.awaitReport(town.ReportEnded, i)
		out[e.Run] = e
	}
	return out
}

const untilGo = "```sh\necho in > x; mv x in.txt\nwhile [ ! -e go.txt ]; do sleep 0.02; done\nrm go.txt; echo mine > \"$GASTOWN_BEAD.txt\"\n```\n"

func TestRunsThatShareAProcessDoTheirOwnWork(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = untilGo
	f.addTwo(nil)
	f.begin(sharing(t))
	one, two := f.awaitReport(town.ReportStarted, 0), f.awaitReport(town.ReportStarted, 1)
	if one.PID != two.PID || one.Session == two.Session || one.Run == two.Run {
		t.Errorf("started: %+v and %+v", one, two)
	}
	for _, bead := range []string{theBead, "app-bbbbb"} {
		f.awaitPath(f.file(bead, "in.txt"))
		if err := os.WriteFile(f.file(bead, "go.txt"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for run, e := range f.ends() {
		if e.Outcome != town.OutcomeDone {
			t.Errorf("%s ended: %+v", run, e)
		}
		bead, _, _ := strings.Cut(run, ".")
		if got := f.must(f.dir, "show", "refs/heads/gt/nux/"+bead+":"+bead+".txt"); got != "mine" {
			t.Errorf("%s holds %q", bead, got)
		}
	}
	if err := syscall.Kill(one.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Error("the process outlived its last run")
	}
	f.awaitStory("which serves 2 runs")
}

func TestARunThatIsStoppedLeavesThoseThatShareItsProcessAlone(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.body = untilGo
	f.addTwo(nil)
	f.begin(sharing(t))
	for _, bead := range []string{theBead, "app-bbbbb"} {
		f.awaitPath(f.file(bead, "in.txt"))
	}
	f.publish(func(d *town.Desired) {
		d.Runs = slices.Clone(d.Runs)
		d.Runs[0].Stop = "a person cancelled it"
	})
	if e := f.awaitReport(town.ReportEnded, 0); e.Run != theRun || e.Outcome != town.OutcomeStopped {
		t.Fatalf("ended: %+v", e)
	}
	if err := os.WriteFile(f.file("app-bbbbb", "go.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if e := f.awaitReport(town.ReportEnded, 1); e.Outcome != town.OutcomeDone {
		t.Errorf("the other ended: %+v", e)
	}
}

func TestTheDeathOfASharedProcessIsChargedToNoneOfItsRuns(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	// Not by a signal from outside: the first run makes it crash.
	f.body = "```sh end=crash\necho in > x; mv x in.txt\n[ $GASTOWN_BEAD = " + theBead + " ] || sleep 600\nwhile [ ! -e go.txt ]; do sleep 0.02; done\n```\n"
	f.addTwo(nil)
	f.begin(sharing(t))
	for _, bead := range []string{theBead, "app-bbbbb"} {
		f.awaitPath(f.file(bead, "in.txt"))
	}
	if err := os.WriteFile(f.file(theBead, "go.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for run, e := range f.ends() {
		if e.Outcome != town.OutcomeFailed || e.Class != town.ClassInfra || e.Subject != town.SubjectKilled || !strings.Contains(e.Reason, "served 2 runs") {
			t.Errorf("%s ended: %+v", run, e)
		}
	}
	f.awaitReport(town.ReportCheckpoint, 1) // the work of both is saved
	session := f.awaitReport(town.ReportStarted, 0)
	f.change(func() { f.body = "```sh\necho again > again.txt\n```\n" })
	f.publish(func(d *town.Desired) {
		next := d.Runs[0]
		next.ID, next.Epoch, next.Session = next.Bead+".2", 2, session.Session
		if session.Run != theRun {
			next.Bead, next.Branch, next.ID = "app-bbbbb", "gt/nux/app-bbbbb", "app-bbbbb.2"
		}
		d.Runs = []town.DesiredRun{next}
	})
	if again := f.awaitReport(town.ReportStarted, 2); again.Session != session.Session || again.PID == session.PID {
		t.Errorf("started again: %+v, before: %+v", again, session)
	}
	if e := f.awaitReport(town.ReportEnded, 2); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestRunsHaveProcessesOfTheirOwnWhereASettingOrTheirModelsSaySo(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(d *town.DesiredRun){
		"the setting":        func(d *town.DesiredRun) { d.OwnProcess = true },
		"another model":      func(d *town.DesiredRun) { d.Model = "model-of-" + d.Bead },
		"another role":       func(d *town.DesiredRun) { d.Role = town.Role("of-" + d.Bead) },
		"the preset's words": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTown(t)
			f.body = untilGo
			f.addTwo(edit)
			f.begin(func(c *Config) {
				sharing(t)(c)
				if edit == nil {
					p := c.Presets["scripted"]
					p.ProcessPerRun = true
					c.Presets["scripted"] = p
				}
			})
			if one, two := f.awaitReport(town.ReportStarted, 0), f.awaitReport(town.ReportStarted, 1); one.PID == two.PID {
				t.Errorf("both run in process %d", one.PID)
			}
		})
	}
}

func TestASlotIsOneRunsAndOnlyWhileItLives(t *testing.T) {
	t.Parallel()
	var got http.Header
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	t.Cleanup(up.Close)
	a, err := newAPI(up.URL, "token-1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLoopback(a, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = l.serve() }() // ends with close
	t.Cleanup(func() { _ = l.close() })
	one := &tenant{id: "app-1.1", epoch: 1, provider: "house", secret: hashSecret("the-run-s-own-secret")}
	two := &tenant{id: "app-2.4", epoch: 4, provider: "house", secret: hashSecret("another-run-s-secret")}
	l.admit(one)
	l.admit(two)
	s1, k1 := l.newSlot()
	s2, k2 := l.newSlot()
	ask := func(s *slot, key string) (int, string) {
		return get(t, l.base+"/slot/"+url.PathEscape(s.id)+"/chat/completions", "Authorization", "Bearer "+key)
	}
	if code, _ := ask(s1, k1); code != http.StatusUnauthorized {
		t.Errorf("an empty slot: %d", code)
	}
	l.seat(s1, one)
	l.seat(s2, two)
	if code, path := ask(s2, k2); code != 200 || path != wire.PathModel+"house/chat/completions" || got.Get(wire.HeaderRun) != "app-2.4" || got.Get(wire.HeaderEpoch) != "4" {
		t.Errorf("slot 2: %d %s as %q", code, path, got)
	}
	for what, key := range map[string]string{"another slot's": k1, "the run's own": "another-run-s-secret", "no": ""} {
		if code, _ := ask(s2, key); code != http.StatusUnauthorized {
			t.Errorf("%s key opens slot 2: %d", what, code)
		}
	}
	l.expel(one)
	if code, _ := ask(s1, k1); code != http.StatusUnauthorized {
		t.Errorf("the slot of a run that is over: %d", code)
	}
	l.admit(&tenant{id: "app-1.1", epoch: 1, provider: "house", secret: hashSecret("a later run of that name")})
	if code, _ := ask(s1, k1); code != http.StatusUnauthorized {
		t.Errorf("the slot of a run that is over, after another took its name: %d", code)
	}
	l.drop([]*slot{s2})
	if code, _ := ask(s2, k2); code != http.StatusUnauthorized {
		t.Errorf("a slot that was dropped: %d", code)
	}
}

func TestACrewIsFullAfterItsRuns(t *testing.T) {
	t.Parallel()
	ps, err := agent.LoadPresets("")
	if err != nil {
		t.Fatal(err)
	}
	p := ps["scripted"]
	p.SharedSessions = true
	host, err := agent.NewHost(agent.Spec{Preset: p, Dir: t.TempDir()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	key := crewKey{preset: "scripted"}
	for name, c := range map[string]struct {
		crew crew
		want bool
	}{
		"has room":        {crew{key: key, host: host, runs: maxCrew - 1, served: maxSlots - 1}, true},
		"is full":         {crew{key: key, host: host, runs: maxCrew, served: 8}, false},
		"served its time": {crew{key: key, host: host, runs: 1, served: maxSlots}, false},
		"is ending":       {crew{key: key, host: host, runs: 0, served: 2}, false},
		"of another kind": {crew{key: crewKey{preset: "opencode"}, host: host, runs: 1, served: 1}, false},
	} {
		all := &crews{list: []*crew{&c.crew}}
		if got := all.findLocked(key) != nil; got != c.want {
			t.Errorf("a crew that %s is found: %v", name, got)
		}
	}
}

func TestWhatAProcessOfSeveralRunsPrintsIsNoSignOfLifeOfEach(t *testing.T) {
	t.Parallel()
	n := &run{r: &Runner{transcripts: newTranscripts(slog.New(slog.DiscardHandler), time.Now)}}
	n.event(agent.Event{Kind: agent.KindStderr, Text: "x", Shared: true})
	if n.life.Load() != 0 {
		t.Error("another run's noise counts")
	}
	n.event(agent.Event{Kind: agent.KindStderr, Text: "x"})
	if n.life.Load() == 0 {
		t.Error("its own does not")
	}
}

func TestWhoStandsForSeveralRunsGoesOutAsOneThatLives(t *testing.T) {
	t.Parallel()
	p := newProxy(&api{scrub: &scrub.Set{}}, slog.New(slog.DiscardHandler))
	var told []string
	one := p.admitRun("app-1.1", 1, func(string) { told = append(told, "one") })
	two := p.admitRun("app-2.1", 1, func(string) { told = append(told, "two") })
	crewed := p.admit("crew-1", one.header, one.tell)
	crewed.refused(town.Host{Name: "a.example", Port: 443}, errs.New(errs.Forbidden, "no"))
	crewed.pass(two)
	crewed.refused(town.Host{Name: "b.example", Port: 443}, errs.New(errs.Forbidden, "no"))
	if got := crewed.header.Get(wire.HeaderRun); got != "app-2.1" || !slices.Equal(told, []string{"one", "two"}) {
		t.Errorf("it goes out as %q, and refusals were told to %v", got, told)
	}
}
