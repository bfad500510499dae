package town

import (
	"strings"
	"testing"
	"time"
)

func TestReportsAreTakenInTheirOrderOnce(t *testing.T) {
	d, r := atWork(t)
	d.later(10 * time.Second)
	beat := Report{Kind: ReportHeartbeat}
	send := func(from int64, stream string, items ...Report) error {
		return d.try(Reports{Generation: 1, Stream: stream, From: from, Items: items})
	}
	seen := d.town.info.Sandbox.LastSeen
	for name, err := range map[string]error{
		"one that was taken already": send(d.seq, d.stream, Report{Kind: ReportEnded, Run: r.ID, Epoch: 1, Outcome: OutcomeExited}),
		"the first again":            send(1, d.stream, beat),
		"one after a gap":            send(d.seq+2, d.stream, beat),
		"number zero":                send(0, d.stream, beat),
		"another stream":             send(d.seq+1, "other", beat),
	} {
		if !conflict(err) {
			t.Errorf("%s gave %v", name, err)
		}
	}
	if got := d.town.info.Sandbox; got.Seq != d.seq || got.LastSeen != seen {
		t.Fatalf("refused reports moved %d to %d", d.seq, got.Seq)
	}
	if err := send(d.seq+1, d.stream, beat, beat); err != nil {
		t.Fatal(err)
	}
	if got := d.town.info.Sandbox; got.Seq != d.seq+2 || got.LastSeen != At(d.now) {
		t.Fatalf("%+v", got)
	}
	d.do(Hello{Generation: 1, Stream: d.stream}) // the same runner again
	if got := d.town.info.Sandbox.Seq; got != d.seq+2 {
		t.Fatalf("a repeated hello moved the number to %d", got)
	}
	d.do(Hello{Generation: 1, Stream: "s2"}) // the next one on the same disk
	if err := send(1, "s2", beat); err != nil {
		t.Fatal(err)
	}
	for _, gen := range []int64{0, 2} {
		if err := d.try(Reports{Generation: gen, Stream: "s2", From: 2, Items: []Report{beat}}); !gone(err) {
			t.Errorf("generation %d gave %v", gen, err)
		}
	}
}

func TestHelloNeedsAStream(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	d.refused(Reports{Generation: 1, From: 1}, conflict)
	d.refused(Hello{Generation: 1}, invalid)
	d.refused(Hello{Generation: 1, Stream: strings.Repeat("x", 65)}, invalid)
	d.wantSandbox(SandboxStarting)
}

func TestATokenExchangedWithinItsIntervalIsTheSame(t *testing.T) {
	d, _ := atWork(t)
	at := d.town.info.Sandbox.TokenAt
	d.perform = false
	for range 3 {
		d.later(time.Minute)
		d.do(Exchange{Generation: 1})
	}
	if s := d.town.info.Sandbox; s.TokenAt != at || s.Renewals != 0 {
		t.Fatalf("%+v", s)
	}
	d.later(57 * time.Minute)
	d.do(Exchange{Generation: 1})
	d.do(Exchange{Generation: 1})
	if s := d.town.info.Sandbox; s.TokenAt != At(d.now) || s.Renewals != 1 {
		t.Fatalf("%+v", s)
	}
	d.refused(Exchange{Generation: 0}, gone)
}

func TestTheSilenceOfARunIsForgivenFiveTimesInARow(t *testing.T) {
	d, r := atWork(t)
	for i := 1; i <= 9; i++ {
		d.later(40 * time.Second)
		d.report(Report{Kind: ReportHeartbeat}) // the sandbox talks, not of this run
		d.do(Unheard{})
		if _, ok := d.town.Run(r.ID); ok != (i <= 7) {
			t.Fatalf("after %d times of silence: the run exists %v, %+v", i, ok, d.town.runs[r.ID])
		}
	}
}

func TestTheSilenceOfAStartIsForgivenFiveTimes(t *testing.T) {
	d := newDriver(t)
	d.rig()
	d.bead("web-aaaaa")
	for i := 1; i <= 7; i++ {
		d.later(44 * time.Second)
		d.do(Unheard{})
		if wedged := d.count("sandbox.wedged") > 0; wedged != (i > 6) {
			t.Fatalf("after %d: wedged %v, hello by %s", i, wedged, d.town.info.Sandbox.HelloBy)
		}
	}
}

func TestForgivenessNeverShortensALease(t *testing.T) {
	d, r := atWork(t)
	lease, seen := d.run("web-aaaaa").LeaseUntil, d.town.info.Sandbox.LastSeen
	d.do(Unheard{})
	if got := d.town.runs[r.ID]; got.LeaseUntil != lease || got.Extended != 0 || d.town.info.Sandbox.LastSeen != seen {
		t.Fatalf("%+v", got)
	}
}

func TestAnUnknownReportIsNotedAndIgnored(t *testing.T) {
	d, _ := atWork(t)
	d.report(Report{Kind: "tele\x00pathy"})
	for range 50 {
		d.report(Report{Kind: "telepathy"}, Report{Kind: "clairvoyance"})
	}
	if n := d.count("report.unknown"); n != 1 {
		t.Fatalf("noted %d times", n)
	}
	if last := d.ledger[len(d.ledger)-1]; strings.ContainsRune(last.Text, 0) {
		t.Fatalf("%q", last.Text)
	}
	d.wantBead("web-aaaaa", BeadInProgress)
}

func TestDrainedCountsOnlyWhileDraining(t *testing.T) {
	d, _ := atWork(t)
	d.report(Report{Kind: ReportDrained})
	if d.town.info.Sandbox.Drained {
		t.Fatal("it counts")
	}
	d.do(Pause{By: "ann", Now: true})
	d.wantSandbox(SandboxDraining)
}

func TestCheckpointsReportedWithoutEndDoNotFillTheLedger(t *testing.T) {
	d, r := atWork(t)
	saved := func(n int) Report {
		return Report{Kind: ReportCheckpoint, Run: r.ID, Epoch: r.Epoch, Ref: WipRef(r.Bead, r.Epoch), Commit: commitName(n)}
	}
	for n := range 50 {
		d.report(saved(n), saved(n))
	}
	if n := d.count("run.checkpoint"); n != 1 {
		t.Fatalf("%d entries at one moment", n)
	}
	if got := d.the("web-aaaaa").Checkpoint; got != commitName(49) {
		t.Fatalf("the latest checkpoint is %s", got)
	}
	d.later(checkpointNoted)
	d.report(saved(49)) // nothing new
	if n := d.count("run.checkpoint"); n != 1 {
		t.Fatalf("%d entries after a repeat", n)
	}
	d.report(saved(50))
	if n := d.count("run.checkpoint"); n != 2 {
		t.Fatalf("%d entries after a pause", n)
	}
}

func TestARepeatedHelloGivesGatesNoMoreTime(t *testing.T) {
	d := reviewed(t, nil, oneGate)
	d.answer("merge/web-aaaaa/1/candidate", Candidate{Commit: commitName(8)})
	until := d.wantMerge("web-aaaaa", MergeGating).Deadline
	d.later(time.Minute)
	d.do(Hello{Generation: d.gen(), Stream: "s2"})
	if got := d.wantMerge("web-aaaaa", MergeGating).Deadline; got != until {
		t.Fatalf("the gates got %s more", got.Sub(until))
	}
}
