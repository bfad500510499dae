package sim

import (
	"context"
	"fmt"
	"time"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// providerName is the provider of all agents.
const providerName = "acme"

// provider is the account of a town with its model provider.
type provider struct {
	until  time.Time // it refuses requests until then
	silent bool      // and does not say how long
	used   map[string]*used
}

// used is what one run really used.
type used struct {
	told, maybe int64            // tokens that a town took for certain, and that it may have taken
	seq         map[string]int64 // by meter
}

func (w *world) provider(id string) *provider {
	p := w.providers[id]
	if p == nil {
		p = &provider{used: map[string]*used{}}
		w.providers[id] = p
	}
	return p
}

func (p *provider) of(run string) *used {
	u := p.used[run]
	if u == nil {
		u = &used{seq: map[string]int64{}}
		p.used[run] = u
	}
	return u
}

// request is one request of an agent to its provider through the gateway of a
// server, and then the next.
func (r *runner) request(a *agent) {
	w, id := r.w, r.x.town
	if !r.alive(a) || a.stopped || !a.stuck.IsZero() {
		return
	}
	p, acc := w.reach(), w.provider(id)
	if p == nil { // the agent tries again
		r.later(5*time.Second, 30*time.Second, func() { r.request(a) })
		return
	}
	if w.fault("provider-limited", r.x.who) {
		d := w.extent(10*time.Second, 3*time.Minute)
		if w.extent(0, time.Second) > 600*time.Millisecond {
			d = w.extent(10*time.Minute, 8*time.Hour)
		}
		acc.until, acc.silent = w.now.Add(d), w.extent(0, time.Second) > 700*time.Millisecond
	}
	if acc.until.After(w.now) {
		r.refused(a, p, acc)
		return
	}
	a.waits = time.Time{}
	a.asked++
	r.later(time.Minute, 5*time.Minute, func() { r.request(a) })
	if r.needsBlock(a, p) {
		r.borrow(a, p)
	} else {
		r.meter(a, p, acc)
	}
	limited := false
	err := p.hall.View(context.Background(), id, func(t *town.Town, _ time.Time) error {
		limited = t.ProviderLimited(a.d.ID)
		return nil
	})
	if err == nil && limited {
		_ = p.hall.Do(context.Background(), id, town.ProviderWorks{Run: a.d.ID, Epoch: a.d.Epoch, Provider: providerName}) // the next answer says it again
	}
}

// refused is a request that the provider refuses: the gateway tells the town, and
// the agent waits or gives up.
func (r *runner) refused(a *agent, p *process, acc *provider) {
	w, id := r.w, r.x.town
	if a.waits.IsZero() {
		a.waits = w.now
	}
	left := acc.until.Sub(w.now)
	in := town.Limited{Run: a.d.ID, Epoch: a.d.Epoch, Provider: providerName, Reason: "429"}
	wait := time.Minute
	if !acc.silent {
		in.Until, wait = town.At(p.Now().Add(left)), left
	}
	if r.dice.chance(0.1) { // an agent that ends, and says why
		r.report(town.Report{Kind: town.ReportEnded, Run: a.d.ID, Epoch: a.d.Epoch, Outcome: town.OutcomeFailed, Class: town.ClassLimit,
			Reason: "rate limit", WaitMS: wait.Milliseconds()}, nil)
		delete(r.runs, a.d.ID)
		r.over[a.d.ID] = true
		r.sync()
		return
	}
	r.later(wait+time.Second, wait+time.Minute, func() { r.request(a) })
	subject := "provider/" + providerName
	st := w.shadow.towns[id]
	if st == nil {
		return
	}
	resets := st.money.resets[subject]
	w.shadow.input(id, in)
	err := p.hall.Do(context.Background(), id, in)
	if err != nil || p.dead || in.Until == 0 || st.money.resets[subject] != resets || w.shadow.towns[id] != st || w.clocksSet(w.now.Add(-time.Minute)) {
		return
	}
	br := st.money.breakers[subject]
	want := min(in.Until, town.At(p.Now().Add(24*time.Hour-time.Minute))) - 2000
	if in.Until > town.At(p.Now().Add(2*time.Second)) { // else it may be over, and an answer may have come through
		w.holds(invProvider, br != nil && br.Limit && br.Until >= want, st, "the limit of %s until %s was acknowledged, and %s does not wait for it", providerName, in.Until, st.name)
	}
}

// meter hands in what an answer used. Half of the gateways make each answer a
// meter of its own, as the server does; the others number theirs.
func (r *runner) meter(a *agent, p *process, acc *provider) {
	u := acc.of(a.d.ID)
	in := town.Metered{Run: a.d.ID, Epoch: a.d.Epoch, Tokens: 100 + int64(r.dice.IntN(20000))}
	in.Cost = 3 * in.Tokens
	one := r.x.gen%2 == 0
	if in.Meter = "gw-" + p.boot; one {
		in.Meter += fmt.Sprint("-", r.x.gen, "-", a.asked)
	}
	u.seq[in.Meter]++
	in.Seq = u.seq[in.Meter]
	u.maybe += in.Tokens
	r.count(in, p, u, one, 0)
}

// count tells the town of an answer, again until it is known whether it was taken.
func (r *runner) count(in town.Metered, p *process, u *used, one bool, try int) {
	w, id := r.w, r.x.town
	if p.dead || try > 30 {
		return // lost, or not: nobody knows
	}
	err := p.hall.Do(context.Background(), id, in)
	if p.dead {
		return
	}
	switch k := errs.KindOf(err); {
	case err == nil:
		u.told += in.Tokens
		u.maybe -= in.Tokens
		w.shadow.counted(id, in.Run, u)
	case k == errs.Unavailable, k == errs.Overloaded:
		w.at(time.Second, func() { r.count(in, p, u, one, try+1) })
		return
	default:
		u.maybe -= in.Tokens
	}
	if w.fault("usage-repeated", r.x.who) {
		late := w.extent(0, 3*time.Hour)
		if one { // its mark is forgotten when many others followed
			late = w.extent(0, time.Second)
		}
		w.at(late, func() {
			if q := w.reach(); q != nil {
				_ = q.hall.Do(context.Background(), id, in) // nobody waits for the answer
			}
		})
	}
}
