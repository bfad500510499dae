package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
)

func spec(generation int64) sandbox.Spec {
	return sandbox.Spec{Town: "alpha", Generation: generation, Command: []string{"runner"}}
}

func ref(generation int64) sandbox.Ref { return sandbox.Ref{Town: "alpha", Generation: generation} }

func mustStart(t *testing.T, f *Fake, generation int64) {
	t.Helper()
	if _, err := f.Start(context.Background(), spec(generation)); err != nil {
		t.Fatal(err)
	}
}

func TestAFakeKeepsTheRulesOfGenerations(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	f := NewFake()
	mustStart(t, f, 2)
	mustStart(t, f, 2)
	for generation, want := range map[int64]errs.Kind{1: errs.Conflict, 3: errs.Conflict} {
		_, err := f.Start(ctx, spec(generation))
		wantKind(t, err, want)
	}
	stop(t, f, ref(1), 0)
	wantState(t, f, ref(2), sandbox.Running)
	stop(t, f, ref(2), time.Second)
	wantState(t, f, ref(2), sandbox.Gone)
	_, err := f.Start(ctx, spec(2))
	wantKind(t, err, errs.Gone)
	mustStart(t, f, 3)
	wantKind(t, f.Remove(ctx, ref(2)), errs.Conflict)
	wantList(t, f, "alpha/3 running")
	if err := f.Remove(ctx, ref(3)); err != nil {
		t.Fatal(err)
	}
	wantList(t, f)
}

func TestAFakeDiesWhenToldToAndSaysSo(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := NewFake()
	f.Now = func() time.Time { return now }
	if f.Kill("alpha", 1) {
		t.Error("something was killed before anything ran")
	}
	mustStart(t, f, 1)
	if !f.Kill("alpha", 9) || f.Kill("alpha", 9) {
		t.Error("kill must hit once")
	}
	AwaitExit(t, f, ref(1))
	st := wantState(t, f, ref(1), sandbox.Gone)
	if st.ExitCode != 9 || !st.ExitedAt.Equal(now) || !st.StartedAt.Equal(now) {
		t.Errorf("status %+v", st)
	}
}

func TestAFakesFaultsStrikeWhereTheyWereSet(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	boom := errors.New("boom")
	f := NewFake()
	f.FailStarts(1, boom)
	f.Break("start", "", 0, Fail, boom)
	if _, err := f.Start(ctx, spec(1)); !errors.Is(err, boom) {
		t.Errorf("first start: %v, want boom", err)
	}
	f.Break("start", "alpha", 1, Lose, boom)
	if _, err := f.Start(ctx, spec(1)); !errors.Is(err, boom) || f.Running("alpha") != 1 {
		t.Errorf("lost start: %v, running %d; want boom and 1", err, f.Running("alpha"))
	}
	f.Break("", "", -1, Blind, nil)
	wantState(t, f, ref(1), sandbox.Unknown)
	wantList(t, f, "alpha/1 unknown")
	wantKind(t, f.Stop(ctx, ref(1), 0), errs.Unavailable)
	f.Heal()
	f.Break("stop", "", 1, Hang, nil)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	wantKind(t, f.Stop(ended, ref(1), 0), errs.Unavailable)
	stop(t, f, ref(1), 0)
	if got := fmt.Sprint(f.Count("start", ""), f.Count("stop", "alpha"), f.Count("stop", "beta"), f.Awake()); got != "2 3 0 []" {
		t.Errorf("counted %s", got)
	}
}
