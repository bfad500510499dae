package sandboxtest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
)

// Run checks a driver against the contract of package sandbox. setup makes an
// empty root and exchange directory for each test.
func Run(t *testing.T, setup func(t *testing.T) Setup) {
	tests := []struct {
		name string
		run  func(t *testing.T, s Setup, d sandbox.Driver)
	}{
		{"a generation that runs is started once however often it is asked for", startTwice},
		{"concurrent starts start once", startConcurrently},
		{"a newer generation is refused while an older one runs", newerRefused},
		{"an older generation is refused for ever", olderRefused},
		{"a generation that ended never starts again", endedStaysEnded},
		{"a bad spec is refused and leaves nothing", badSpec},
		{"a command that can't be run leaves nothing", badCommand},
		{"looking never starts anything", lookingStartsNothing},
		{"stop lets a well-behaved command end by itself", stopPolite},
		{"stop kills a stubborn command and what it left in other sessions", stopStubborn},
		{"stop of another generation touches nothing", stopOther},
		{"stop whose context ends is finished by the next one", stopCutOff},
		{"a death is told with its exit code", deathTold},
		{"what a dead command leaves running is killed", leftoversKilled},
		{"a new driver finds, watches and stops what an earlier one started", survivesDriver},
		{"an ended generation stays ended for a new driver", endedForNewDriver},
		{"the disk outlives a generation, and a fresh disk is empty", disks},
		{"remove ends what runs and deletes the disk", removes},
		{"remove of an older generation is refused", removeOlder},
		{"the token arrives on its descriptor and nowhere else", tokens},
		{"list shows every town in order", lists},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := setup(t)
			tt.run(t, s, s.Open(t))
		})
	}
}

func wantKind(t *testing.T, err error, kinds ...errs.Kind) {
	t.Helper()
	for _, k := range kinds {
		if err != nil && errs.Is(err, k) {
			return
		}
	}
	t.Fatalf("error %v is of kind %q, want %v", err, errs.KindOf(err), kinds)
}

func wantState(t *testing.T, d sandbox.Driver, ref sandbox.Ref, want sandbox.State) sandbox.Status {
	t.Helper()
	st, err := d.Inspect(context.Background(), ref)
	if err != nil || st.State != want {
		t.Fatalf("inspect %s/%d: state %q (%s), error %v; want %q", ref.Town, ref.Generation, st.State, st.Reason, err, want)
	}
	return st
}

func wantList(t *testing.T, d sandbox.Driver, want ...string) {
	t.Helper()
	all, err := d.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, st := range all {
		got = append(got, fmt.Sprintf("%s/%d %s", st.Ref.Town, st.Ref.Generation, st.State))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("list is %q, want %q", got, want)
	}
}

func stop(t *testing.T, d sandbox.Driver, ref sandbox.Ref, grace time.Duration) {
	t.Helper()
	if err := d.Stop(context.Background(), ref, grace); err != nil {
		t.Fatalf("stop: %v", err)
	}
}

func startTwice(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	first, _ := w.Start(d, w.Spec(3, modeWait))
	again, err := d.Start(context.Background(), w.Spec(3, modeWait))
	if err != nil || again != first {
		t.Fatalf("second start gives %+v, %v; want %+v", again, err, first)
	}
	st := wantState(t, d, first, sandbox.Running)
	if st.StartedAt.IsZero() || st.Ref != first {
		t.Fatalf("status %+v lacks its start or its ref %+v", st, first)
	}
	stop(t, d, first, patience)
	w.Next("term")
	w.AllDead()
	w.Quiet()
}

func startConcurrently(t *testing.T, s Setup, d sandbox.Driver) {
	other := s.Open(t)
	w := s.NewTown(t, "alpha")
	w.removeAfter(d)
	refs := make([]sandbox.Ref, 8)
	failed := make([]error, len(refs))
	var wg sync.WaitGroup
	for i := range refs {
		wg.Go(func() {
			by := d
			if i%2 == 1 {
				by = other
			}
			refs[i], failed[i] = by.Start(context.Background(), w.Spec(1, modeWait))
		})
	}
	wg.Wait()
	w.Ready(modeWait)
	for i := range refs {
		if failed[i] != nil || refs[i] != refs[0] {
			t.Errorf("start %d gives %+v, %v; the first gave %+v", i, refs[i], failed[i], refs[0])
		}
	}
	stop(t, d, refs[0], patience)
	w.Next("term")
	w.AllDead()
	w.Quiet()
}

func newerRefused(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	one, _ := w.Start(d, w.Spec(1, modeWait))
	_, err := d.Start(context.Background(), w.Spec(2, modeWait))
	wantKind(t, err, errs.Conflict)
	wantState(t, d, one, sandbox.Running)
	stop(t, d, one, patience)
	w.Next("term")
	w.Start(d, w.Spec(2, modeWait))
}

func olderRefused(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	two, _ := w.Start(d, w.Spec(2, modeWait))
	_, err := d.Start(context.Background(), w.Spec(1, modeWait))
	wantKind(t, err, errs.Conflict)
	stop(t, d, two, patience)
	_, err = d.Start(context.Background(), w.Spec(1, modeWait))
	wantKind(t, err, errs.Conflict)
	wantList(t, d, "alpha/2 gone")
}

func endedStaysEnded(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeWait))
	w.Exit(0)
	w.AllDead()
	AwaitExit(t, d, ref)
	_, err := d.Start(context.Background(), w.Spec(1, modeWait))
	wantKind(t, err, errs.Gone)
	wantState(t, d, ref, sandbox.Gone)
	w.Quiet()
}

func badSpec(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	for name, spoil := range map[string]func(*sandbox.Spec){
		"a path as a town":   func(s *sandbox.Spec) { s.Town = "../alpha" },
		"no town":            func(s *sandbox.Spec) { s.Town = "" },
		"a flag as a town":   func(s *sandbox.Spec) { s.Town = "-rf" },
		"generation 0":       func(s *sandbox.Spec) { s.Generation = 0 },
		"no command":         func(s *sandbox.Spec) { s.Command = nil },
		"a zero byte":        func(s *sandbox.Spec) { s.Command = append(s.Command, "a\x00b") },
		"a nameless setting": func(s *sandbox.Spec) { s.Env = append(s.Env, "=x") },
		"the token as env":   func(s *sandbox.Spec) { s.Env = append(s.Env, "GASTOWN_TOKEN=x") },
		"a forged marker":    func(s *sandbox.Spec) { s.Env = append(s.Env, sandbox.EnvSandbox+"=x") },
		"a huge token":       func(s *sandbox.Spec) { s.Token = make([]byte, sandbox.MaxToken+1) },
	} {
		spec := w.Spec(1, modeWait)
		spoil(&spec)
		if _, err := d.Start(context.Background(), spec); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: error %v, want kind invalid", name, err)
		}
	}
	wantList(t, d)
}

func badCommand(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	spec := w.Spec(1, modeWait)
	spec.Command[0] = "/nonexistent/runner"
	if _, err := d.Start(context.Background(), spec); err == nil {
		t.Fatal("a command that does not exist was started")
	}
	wantList(t, d)
	w.Start(d, w.Spec(1, modeWait)) // nothing ran, so the generation is not used up
}

func lookingStartsNothing(t *testing.T, s Setup, d sandbox.Driver) {
	ctx := context.Background()
	wantList(t, d)
	st := wantState(t, d, sandbox.Ref{Town: "alpha", Generation: 1}, sandbox.Gone)
	if !st.StartedAt.IsZero() {
		t.Errorf("a sandbox that never was has a start: %+v", st)
	}
	stop(t, d, sandbox.Ref{Town: "alpha", Generation: 1}, patience)
	if err := d.Remove(ctx, sandbox.Ref{Town: "alpha", Generation: 1}); err != nil {
		t.Errorf("remove of nothing: %v", err)
	}
	if _, err := d.Inspect(ctx, sandbox.Ref{Town: "../x", Generation: 1}); !errs.Is(err, errs.Invalid) {
		t.Errorf("inspect of a path: %v, want kind invalid", err)
	}
	wantList(t, d)

	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeWait))
	stop(t, d, ref, patience)
	w.Next("term")
	w.AllDead()
	wantState(t, d, ref, sandbox.Gone)
	wantState(t, d, sandbox.Ref{Town: "alpha", Generation: 2}, sandbox.Gone)
	wantList(t, d, "alpha/1 gone")
	w.Quiet()
}

func stopPolite(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeWait))
	stop(t, d, ref, patience)
	w.Next("term")
	w.AllDead()
	st := wantState(t, d, ref, sandbox.Gone)
	if st.ExitCode != 0 || st.ExitedAt.IsZero() {
		t.Errorf("status %+v, want exit code 0 and a time", st)
	}
	stop(t, d, ref, patience)
}

func stopStubborn(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeStubborn))
	stop(t, d, ref, time.Millisecond)
	w.AllDead()
	wantState(t, d, ref, sandbox.Gone)
}

func stopOther(t *testing.T, s Setup, d sandbox.Driver) {
	a, b := s.NewTown(t, "alpha"), s.NewTown(t, "beta")
	one, _ := a.Start(d, a.Spec(2, modeWait))
	two, _ := b.Start(d, b.Spec(2, modeWait))
	stop(t, d, sandbox.Ref{Town: "alpha", Generation: 1}, 0)
	stop(t, d, sandbox.Ref{Town: "alpha", Generation: 3}, 0)
	a.SomeAlive()
	wantState(t, d, one, sandbox.Running)
	stop(t, d, one, 0)
	a.AllDead()
	b.SomeAlive()
	wantState(t, d, two, sandbox.Running)
}

func stopCutOff(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeStubborn))
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error)
	go func() { result <- d.Stop(ctx, ref, time.Hour) }()
	w.Next("term")
	cancel()
	wantKind(t, <-result, errs.Unavailable)
	w.SomeAlive()
	s.Drop(t, d)
	stop(t, s.Open(t), ref, time.Millisecond)
	w.AllDead()
}

func deathTold(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeWait))
	w.Exit(7)
	AwaitExit(t, d, ref)
	if st := wantState(t, d, ref, sandbox.Gone); st.ExitCode != 7 {
		t.Errorf("status %+v, want exit code 7", st)
	}
}

func leftoversKilled(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeParent))
	w.Exit(1)
	AwaitExit(t, d, ref)
	w.AllDead()
	w.Start(d, w.Spec(2, modeWait))
}

func survivesDriver(t *testing.T, s Setup, d sandbox.Driver) {
	a, b := s.NewTown(t, "alpha"), s.NewTown(t, "beta")
	one, _ := a.Start(d, a.Spec(4, modeParent))
	two, _ := b.Start(d, b.Spec(5, modeWait))
	s.Drop(t, d)
	next := s.Open(t)
	wantList(t, next, "alpha/4 running", "beta/5 running")
	again, err := next.Start(context.Background(), a.Spec(4, modeParent))
	if err != nil || again != one {
		t.Fatalf("start by a new driver gives %+v, %v; want %+v", again, err, one)
	}
	_, err = next.Start(context.Background(), a.Spec(5, modeWait))
	wantKind(t, err, errs.Conflict)
	b.Exit(3)
	AwaitExit(t, next, two)
	wantState(t, next, two, sandbox.Gone)
	stop(t, next, one, patience)
	a.Next("term")
	a.AllDead()
	wantList(t, next, "alpha/4 gone", "beta/5 gone")
}

func endedForNewDriver(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeParent))
	s.Drop(t, d)
	w.Exit(0) // nobody watches
	next := s.Open(t)
	AwaitExit(t, next, ref)
	w.AllDead()
	_, err := next.Start(context.Background(), w.Spec(1, modeWait))
	wantKind(t, err, errs.Gone)
}

func disks(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	one, e := w.Start(d, w.Spec(1, modeWait))
	if len(e.Files) != 0 || e.Disk != e.Cwd || e.Disk == "" {
		t.Fatalf("first start sees %q at %q in %q, want an empty disk as the working directory", e.Files, e.Disk, e.Cwd)
	}
	stop(t, d, one, 0)
	two, e := w.Start(d, w.Spec(2, modeWait))
	if len(e.Files) != 1 {
		t.Fatalf("second start sees %q, want what the first left", e.Files)
	}
	stop(t, d, two, 0)
	spec := w.Spec(3, modeWait)
	spec.FreshDisk = true
	_, e = w.Start(d, spec)
	if len(e.Files) != 0 {
		t.Fatalf("a fresh disk has %q", e.Files)
	}
}

func removes(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(1, modeStubborn))
	for range 2 {
		if err := d.Remove(context.Background(), ref); err != nil {
			t.Fatalf("remove: %v", err)
		}
	}
	w.AllDead()
	wantList(t, d)
	wantState(t, d, ref, sandbox.Gone)
	_, e := w.Start(d, w.Spec(2, modeWait))
	if len(e.Files) != 0 {
		t.Fatalf("after remove the disk has %q", e.Files)
	}
}

func removeOlder(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	ref, _ := w.Start(d, w.Spec(2, modeWait))
	wantKind(t, d.Remove(context.Background(), sandbox.Ref{Town: "alpha", Generation: 1}), errs.Conflict)
	wantState(t, d, ref, sandbox.Running)
	if err := d.Remove(context.Background(), sandbox.Ref{Town: "alpha"}); err != nil {
		t.Fatal(err)
	}
	w.AllDead()
	wantList(t, d)
}

func tokens(t *testing.T, s Setup, d sandbox.Driver) {
	w := s.NewTown(t, "alpha")
	spec := w.Spec(1, modeWait)
	ref, e := w.Start(d, spec)
	if e.Token != string(spec.Token) || e.Leak {
		t.Fatalf("the helper got %q, leaked %v; want %q, not leaked", e.Token, e.Leak, spec.Token)
	}
	stop(t, d, ref, 0)
	spec = w.Spec(2, modeWait)
	spec.Token = nil
	if _, e = w.Start(d, spec); e.Token != "" {
		t.Fatalf("the helper got %q, want no token", e.Token)
	}
}

func lists(t *testing.T, s Setup, d sandbox.Driver) {
	for i, name := range []string{"beta", "alpha", "gamma"} {
		w := s.NewTown(t, name)
		ref, _ := w.Start(d, w.Spec(int64(i+1), modeWait))
		if name == "beta" {
			stop(t, d, ref, 0)
		}
	}
	wantList(t, d, "alpha/2 running", "beta/1 gone", "gamma/3 running")
}
