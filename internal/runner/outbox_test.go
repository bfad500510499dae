package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/agent"
	"gastown/internal/errs"
	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

var quick = Timing{BackoffMin: time.Millisecond, BackoffMax: time.Second, Flush: 100 * time.Millisecond}

// reportsFunc is a server of reports.
type reportsFunc func(wire.ReportsRequest) (wire.ReportsResponse, error)

func (f reportsFunc) reports(_ context.Context, q wire.ReportsRequest) (wire.ReportsResponse, error) {
	return f(q)
}

func testOutbox(t *testing.T) *outbox {
	t.Helper()
	o, err := newOutbox(filepath.Join(t.TempDir(), "outbox"), "s", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

func started(run string) town.Report {
	return town.Report{Kind: town.ReportStarted, Run: run, Epoch: 1}
}

func TestOutbox(t *testing.T) {
	// ledger is a server that takes only the next number.
	type ledger struct {
		next int64
		got  []string
	}
	take := func(l *ledger, q wire.ReportsRequest) wire.ReportsResponse {
		if q.From == l.next {
			for _, r := range q.Items {
				l.got = append(l.got, cmp.Or(r.Run, string(r.Kind)))
			}
			l.next += int64(len(q.Items))
		}
		return wire.ReportsResponse{Next: l.next}
	}
	// deliver adds reports and runs the sender in a bubble until all is quiet.
	deliver := func(t *testing.T, o *outbox, to reportsFunc, runs ...string) error {
		var err error
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			o.wake = make(chan struct{}, 1) // of this bubble
			for _, r := range runs {
				o.add(started(r))
			}
			done := make(chan struct{})
			go func() { defer close(done); err = o.run(ctx, to, quick) }()
			time.Sleep(time.Minute) // of virtual time
			synctest.Wait()
			cancel()
			<-done
		})
		return err
	}
	check := func(t *testing.T, l *ledger, want ...string) {
		t.Helper()
		if !slices.Equal(l.got, want) {
			t.Errorf("the server took %v, want %v", l.got, want)
		}
	}

	t.Run("a lost acknowledgement is repaired by the number", func(t *testing.T) {
		l, calls := &ledger{next: 1}, 0
		err := deliver(t, testOutbox(t), func(q wire.ReportsRequest) (wire.ReportsResponse, error) {
			res := take(l, q)
			if calls++; calls == 1 {
				return wire.ReportsResponse{}, errs.New(errs.Unavailable, "cut off")
			}
			return res, nil
		}, "a", "b", "c")
		if err != nil {
			t.Error(err)
		}
		check(t, l, "a", "b", "c")
	})
	t.Run("a server that knows fewer than was acknowledged gets the rest renumbered", func(t *testing.T) {
		o, l := testOutbox(t), &ledger{next: 1}
		if err := deliver(t, o, func(q wire.ReportsRequest) (wire.ReportsResponse, error) { return take(l, q), nil }, "a", "b"); err != nil {
			t.Error(err)
		}
		l = &ledger{next: 2}
		if err := deliver(t, o, func(q wire.ReportsRequest) (wire.ReportsResponse, error) { return take(l, q), nil }, "c"); err != nil {
			t.Error(err)
		}
		check(t, l, "c")
	})
	for _, kind := range []errs.Kind{errs.Invalid, errs.Internal} {
		t.Run("a report that the server answers with "+string(kind)+" is replaced by a note and stops no other", func(t *testing.T) {
			l, calls := &ledger{next: 1}, 0
			err := deliver(t, testOutbox(t), func(q wire.ReportsRequest) (wire.ReportsResponse, error) {
				calls++
				for _, r := range q.Items {
					if r.Run == "bad" {
						return wire.ReportsResponse{}, errs.New(kind, "no")
					}
				}
				return take(l, q), nil
			}, "a", "bad", "b")
			if err != nil || calls > 4*poisonTries {
				t.Error(err, calls)
			}
			check(t, l, "a", "lost", "b")
		})
	}
	t.Run("an old generation ends the sender", func(t *testing.T) {
		err := deliver(t, testOutbox(t), func(wire.ReportsRequest) (wire.ReportsResponse, error) {
			return wire.ReportsResponse{}, errs.New(errs.Gone, "old")
		}, "a")
		if !errs.Is(err, errs.Gone) {
			t.Errorf("err = %v", err)
		}
	})
}

func TestOnlyTheNewestUnsentHeartbeatIsKept(t *testing.T) {
	t.Parallel()
	o := testOutbox(t)
	beat := func(idle int64) town.Report {
		return town.Report{Kind: town.ReportHeartbeat, Runs: []town.RunLife{{IdleMS: idle}}}
	}
	o.add(beat(1))
	o.add(started("a"))
	o.add(beat(2))
	q := o.batch(10)
	if len(q.Items) != 2 || q.Items[1].Runs[0].IdleMS != 2 {
		t.Fatalf("%+v", q.Items)
	}
	o.add(beat(3)) // the one before may be with the server already
	if q = o.batch(10); len(q.Items) != 3 || q.From != 1 {
		t.Errorf("%+v", q)
	}
}

func TestTheOutboxIsBoundedAndKeepsWhatMatters(t *testing.T) {
	t.Parallel()
	o := testOutbox(t)
	good := o.file
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // no fsync for thousands of reports
	if err != nil {
		t.Fatal(err)
	}
	o.file = null
	t.Cleanup(func() { o.file = good; _ = null.Close() })
	o.add(town.Report{Kind: town.ReportHeartbeat})
	for i := range maxOutbox + 10 {
		o.add(started(strconv.Itoa(i)))
	}
	if q := o.batch(2 * maxOutbox); len(q.Items) != maxOutbox || q.Items[0].Kind != town.ReportStarted {
		t.Errorf("%d items, first %+v", len(q.Items), q.Items[0])
	}
	// Even when nothing can make room the end of a run is kept.
	o.add(town.Report{Kind: town.ReportEnded, Run: "x", Epoch: 1})
	if q := o.batch(2 * maxOutbox); len(q.Items) != maxOutbox+1 || q.Items[maxOutbox].Kind != town.ReportEnded {
		t.Errorf("%d items, last %+v", len(q.Items), q.Items[len(q.Items)-1])
	}
	if o.unwanted != 10 {
		t.Errorf("%d are counted as lost", o.unwanted)
	}
}

func TestADiskThatIsFullCostsNoReportAndIsUsedAgain(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("this system has no /dev/full")
	}
	defer func() { _ = full.Close() }()
	o := testOutbox(t)
	good := o.file
	o.file = full
	o.add(started("a"))
	o.add(started("b"))
	if q := o.batch(10); len(q.Items) != 2 || !o.broken {
		t.Fatalf("%d items, broken %v", len(q.Items), o.broken)
	}
	o.file = good
	o.add(started("c"))
	data, err := os.ReadFile(good.Name())
	if err != nil || !strings.Contains(string(data), `"c"`) || o.broken {
		t.Errorf("%q, broken %v, %v", data, o.broken, err)
	}
	o.acknowledge(4)
	if st, err := good.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("the file was not emptied: %v", err)
	}
}

func TestHalfAReportOfADeadBootStopsNobody(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	f.write(f.disk, "outbox/OLDSTREAM", `{"kind":"run_ended","run":"app-aaa`)
	f.write(f.disk, "unsent/app."+theBead, `{"epoch":0,"com`)
	f.body = script("echo hello > greeting.txt")
	f.addRun(nil)
	f.begin(nil)
	if e := f.awaitReport(town.ReportEnded, 0); e.Outcome != town.OutcomeDone {
		t.Errorf("ended: %+v", e)
	}
}

func TestTheOutboxFileHoldsWhatIsNotAcknowledged(t *testing.T) {
	t.Parallel()
	o := testOutbox(t)
	o.add(started("a"))
	if data, err := os.ReadFile(o.file.Name()); err != nil || len(data) == 0 {
		t.Errorf("%q, %v", data, err)
	}
	o.batch(1)
	o.acknowledge(2)
	if data, err := os.ReadFile(o.file.Name()); err != nil || len(data) != 0 {
		t.Errorf("%q, %v", data, err)
	}
}

func TestALostAnswerToReportsIsRepeatedOverTheWire(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	n := 0
	f.onReports = func(wire.ReportsRequest) bool { n++; return n%2 == 1 }
	f.body = script("echo hello > greeting.txt")
	f.addRun(nil)
	f.begin(nil)
	f.awaitReport(town.ReportEnded, 0)
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[town.ReportKind]int{}
	for _, r := range f.reports {
		seen[r.Kind]++
	}
	if seen[town.ReportStarted] != 1 || seen[town.ReportEnded] != 1 {
		t.Errorf("reports: %+v", f.reports)
	}
}

type transcriptsFunc func([]wire.TranscriptItem) error

func (f transcriptsFunc) transcripts(_ context.Context, items []wire.TranscriptItem) error {
	return f(items)
}

func TestTranscripts(t *testing.T) {
	say := func(text string) agent.Event { return agent.Event{Kind: agent.KindMessage, Text: text} }
	play := func(t *testing.T, add func(*transcripts), to transcriptsFunc) {
		synctest.Test(t, func(t *testing.T) {
			tr := newTranscripts(slog.New(slog.DiscardHandler), time.Now)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); tr.run(ctx, to, quick) }()
			add(tr)
			time.Sleep(time.Minute) // of virtual time
			cancel()
			<-done
		})
	}
	t.Run("pieces of a text are joined and numbers rise per run", func(t *testing.T) {
		var got []wire.TranscriptItem
		play(t, func(tr *transcripts) {
			tr.add(lane{"a", 1}, say("he"))
			tr.add(lane{"a", 1}, say("llo "))
			tr.add(lane{"b", 1}, say("x "))
			tr.add(lane{"a", 1}, say("! "))
		}, func(items []wire.TranscriptItem) error { got = append(got, items...); return nil })
		if len(got) != 3 || got[0].Seq != 1 || got[1].Seq != 1 || got[2].Seq != 2 || string(got[0].Body) != `{"kind":"message","text":"hello "}` {
			t.Errorf("%+v %s", got, got[0].Body)
		}
	})
	t.Run("an unavailable server gets the same numbers again", func(t *testing.T) {
		var seqs []int64
		play(t, func(tr *transcripts) { tr.add(lane{"a", 1}, say("x")) }, func(items []wire.TranscriptItem) error {
			seqs = append(seqs, items[0].Seq)
			if len(seqs) < 3 {
				return errs.New(errs.Unavailable, "down")
			}
			return nil
		})
		if !slices.Equal(seqs, []int64{1, 1, 1}) {
			t.Errorf("%v", seqs)
		}
	})
	t.Run("a secret that pieces share is found, and the last word comes soon", func(t *testing.T) {
		var got []wire.TranscriptItem
		play(t, func(tr *transcripts) {
			tr.scrub.Put("x", "sesame-open-the-door")
			for _, s := range []string{"it is sesa", "me-open-", "the-door", " now"} {
				tr.add(lane{"a", 1}, say(s))
				time.Sleep(time.Second) // of virtual time: each piece is sent by itself
			}
			tr.add(lane{"b", 1}, say("end"))
			tr.add(lane{"b", 1}, agent.Event{Kind: agent.KindLifecycle, Status: "turn_ended"})
		}, func(items []wire.TranscriptItem) error { got = append(got, items...); return nil })
		var text strings.Builder
		for _, i := range got {
			var e agent.Event
			if err := json.Unmarshal(i.Body, &e); err != nil {
				t.Fatal(err)
			}
			text.WriteString(i.Run + ":" + e.Text + e.Status + "|")
		}
		if want := "a:it is |a:******** |b:end|b:turn_ended|a:now|"; text.String() != want {
			t.Errorf("%s, want %s", text.String(), want)
		}
	})
	t.Run("past the cap the loss itself is an event", func(t *testing.T) {
		tr := newTranscripts(slog.New(slog.DiscardHandler), time.Now)
		big := agent.Event{Kind: agent.KindToolUpdate, Text: string(make([]byte, 60<<10))}
		for range 200 {
			tr.add(lane{"a", 1}, big)
		}
		if tr.bytes > maxTranscript {
			t.Errorf("%d bytes are held", tr.bytes)
		}
		for len(tr.batch()) > 0 {
			tr.settle(false)
		}
		tr.add(lane{"a", 1}, say("after "))
		items := tr.batch()
		if len(items) != 2 || items[0].Kind != string(agent.KindLifecycle) {
			t.Errorf("%+v", items)
		}
	})
}
