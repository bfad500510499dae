package town

import (
	"strconv"
	"time"

	"gastown/internal/errs"
)

// limitSubject is what a limit on the model of a run is about: its provider, or
// the agent itself where the server knows of no provider.
func limitSubject(r *Run) string {
	if r.Provider != "" {
		return "provider/" + r.Provider
	}
	return "agent/" + r.Preset
}

// limited takes the gateway's word that a provider refused a request of a run
// because of a rate limit or a quota.
func (t *Town) limited(now Time, in Limited) error {
	r := t.runs[in.Run]
	if r == nil || r.Epoch != in.Epoch {
		return errs.New(errs.Gone, "run %s, epoch %d, is not current", clip(in.Run, 60), in.Epoch)
	}
	if in.Provider != r.Provider {
		return errs.New(errs.Invalid, "the provider of run %s is another one", r.ID)
	}
	if in.Until < 0 {
		return errs.New(errs.Invalid, "a limit can't end before 1970")
	}
	t.limitHit(now, r, in.Until, in.Reason)
	return nil
}

// worksAgain takes the gateway's word that a provider answered a run.
func (t *Town) worksAgain(now Time, in ProviderWorks) error {
	r := t.runs[in.Run]
	if r == nil || r.Epoch != in.Epoch || in.Provider != r.Provider {
		return errs.New(errs.Gone, "run %s, epoch %d, is not current", clip(in.Run, 60), in.Epoch)
	}
	if r.WaitUntil != 0 {
		r.WaitUntil = 0
		t.mark(kindRun, r.ID)
	}
	t.providerWorks(now, limitSubject(r))
	return nil
}

// ProviderLimited reports whether the provider of a run was limited and has not
// answered since, as far as anyone knows.
func (t *Town) ProviderLimited(run string) bool {
	r := t.runs[run]
	if r == nil {
		return false
	}
	br := t.breakers[limitSubject(r)]
	return br != nil && br.Limit
}

// providerWorks forgets a limit that is over, now that something came through.
// While one holds, an answer to a request from before it proves nothing.
func (t *Town) providerWorks(now Time, subject string) {
	if br := t.breakers[subject]; br != nil && br.Limit && br.Until <= now {
		t.proved(now, subject)
	}
}

// limitHit opens the breaker of a provider until the time that it stated, 0 for
// none. Runs on it wait that long, or end when it is longer than the grace of
// the sandbox.
func (t *Town) limitHit(now Time, r *Run, stated Time, why string) {
	subject := limitSubject(r)
	br := t.breakers[subject]
	again := br != nil && br.Limit && br.Until > now // the same limit, met by another request
	n, until := 1, Time(0)
	if br != nil {
		n, until = br.Fails+1, br.Until
	}
	if again {
		n--
	}
	switch {
	case stated != 0:
		until = max(stated, now+1)
	case !again:
		until = now.Add(t.backoff(n, subject))
	}
	if again {
		until = max(until, br.Until)
	}
	until = min(until, now.Add(t.duration("limit.max_wait", nil, nil)))
	if !again || until >= br.Until+1000 { // parallel requests are told nearly the same time
		t.openLimit(now, subject, n, until, why)
		if n >= noticeFails && !again {
			t.escalate(now, CauseBreaker, subject, "limited "+strconv.Itoa(n)+" times in a row: "+clip(plain(why, 500), 500))
		}
	}
	until = t.breakers[subject].Until
	if until.Sub(now) > t.duration("sandbox.grace", nil, nil) {
		for _, o := range t.sortedRuns() {
			if limitSubject(o) == subject && o.State != RunDraining {
				t.stopLimited(o, now, t.breakerWait(subject, now).Text)
			}
		}
		return
	}
	if r.WaitUntil < until {
		r.WaitUntil, r.IdleMS = until, 0
		t.mark(kindRun, r.ID)
	}
}

func (t *Town) openLimit(now Time, subject string, n int, until Time, why string) {
	br := t.breakers[subject]
	if br == nil || !br.Limit {
		br = &Breaker{Subject: subject, Since: now, Limit: true}
		t.breakers[subject] = br
	}
	br.Fails, br.Until, br.Last = n, until, plain(why, 500)
	t.mark(kindBreaker, subject)
	t.log(now, "provider.limited", subject, "", br.Last, "times", strconv.Itoa(n), "until", until.String())
}

// stopLimited asks a run to end because something that it needs is limited. Its
// bead pays nothing.
func (t *Town) stopLimited(r *Run, now Time, why string) {
	r.StopClass = ClassLimit
	t.mark(kindRun, r.ID)
	t.stopRun(r, now, why)
}

// waitedFor takes the time for which a run was told to wait off its silence.
func (r *Run) waitedFor(now Time, idle int64) int64 {
	if r.WaitUntil == 0 {
		return idle
	}
	return min(idle, max(int64(now.Sub(r.WaitUntil)/time.Millisecond), 0))
}

// statedEnd is the end of a limit that a runner says lasts so long; its word is
// bounded by limit.max_wait.
func statedEnd(now Time, waitMS int64) Time {
	if waitMS <= 0 {
		return 0
	}
	return now.Add(time.Duration(min(waitMS, ms(7*day))) * time.Millisecond)
}
