package sim

import (
	"context"
	"strconv"
	"time"

	"gastown/internal/store"
	"gastown/internal/town"
)

// spending is what a town committed of what it spent, and of what limits it.
type spending struct {
	usage       map[string]*town.Usage
	breakers    map[string]*town.Breaker
	escalations map[string]*town.Escalation
	resets      map[string]int // breakers that a person reset, by subject
	seen        time.Time      // when the breakers were last written or forgotten
	free        time.Time      // since when it waits for a budget although none is used up; zero: it does not
}

func newSpending() spending {
	return spending{usage: map[string]*town.Usage{}, breakers: map[string]*town.Breaker{}, escalations: map[string]*town.Escalation{}, resets: map[string]int{}}
}

// totals are what all towns spent together, from their commits.
type totals struct {
	days map[string]store.DaySpend
	past []total // the newest last
}

// total is what was spent on a day up to a time.
type total struct {
	at time.Time
	store.DaySpend
}

func newTotals() totals { return totals{days: map[string]store.DaySpend{}} }

// unknownFor is how long a server may not know what another spent: its commits may
// take this long after it read the day.
const unknownFor = 2 * time.Minute

// add notes what a commit spent.
func (s *totals) add(now time.Time, all []store.DaySpend) {
	for _, d := range all {
		sum := s.days[d.Day].Add(d)
		sum.Day = d.Day
		s.days[d.Day] = sum
		s.past = append(s.past, total{now, sum})
	}
	for len(s.past) > 1000 {
		s.past = s.past[500:]
	}
}

// known is what every server must know of a day.
func (s *totals) known(now time.Time, day string) (d store.DaySpend) {
	for i := len(s.past) - 1; i >= 0; i-- {
		if p := s.past[i]; p.Day == day && now.Sub(p.at) >= unknownFor {
			return p.DaySpend
		}
	}
	return d
}

// before is how a town stood before a commit.
type before struct {
	settings string
	usage    map[string]town.Usage
	spent    map[string]town.Spend // by bead, with its run
	beads    map[string]string     // their settings, and when they were reopened
	runs     map[string]bool
	limits   map[string]town.Breaker
	sum      town.Spend // of all beads and runs that the commit writes
	all      town.Spend // of all days that it writes
	dropped  bool
	blocks   []town.Block
}

func plus(a, b town.Spend) town.Spend {
	return town.Spend{Runs: a.Runs + b.Runs, AwakeMS: a.AwakeMS + b.AwakeMS, Tokens: a.Tokens + b.Tokens, Cost: a.Cost + b.Cost}
}

func minus(a, b town.Spend) town.Spend {
	return town.Spend{Runs: a.Runs - b.Runs, AwakeMS: a.AwakeMS - b.AwakeMS, Tokens: a.Tokens - b.Tokens, Cost: a.Cost - b.Cost}
}

func spendOf(u town.Usage) town.Spend {
	return town.Spend{Runs: u.Runs, AwakeMS: u.Awake(), Tokens: u.Tokens, Cost: u.Cost}
}

// written sums what the rows of a commit, as the shadow has them now, say was spent.
func (t *shadowTown) written(c store.Commit) (sum, all town.Spend) {
	for _, r := range c.Rows {
		switch r.Kind {
		case "bead":
			if b := t.beads[r.ID]; b != nil {
				sum = plus(sum, plus(b.Spent, b.Past))
			}
		case "run":
			if x := t.runs[r.ID]; x != nil {
				sum = plus(sum, x.Spent)
			}
		case "usage":
			if u := t.money.usage[r.ID]; u != nil {
				all = plus(all, spendOf(*u))
			}
		}
	}
	return sum, all
}

// spentOn is what a bead spent that counts, with the run at work.
func (t *shadowTown) spentOn(b *town.Bead) town.Spend {
	s := b.Spent
	if r := t.runs[b.ID+"."+strconv.FormatInt(b.Epoch, 10)]; r != nil && r.CreatedAt >= b.FreshAt {
		s = plus(s, r.Spent)
	}
	return s
}

func (s *shadow) beforeMoney(t *shadowTown, c store.Commit) before {
	was := before{settings: settingsKey(t.info.Settings), usage: map[string]town.Usage{}, spent: map[string]town.Spend{}, beads: map[string]string{}, runs: map[string]bool{},
		limits: map[string]town.Breaker{}, blocks: t.info.Blocks}
	was.sum, was.all = t.written(c)
	for d, u := range t.money.usage {
		was.usage[d] = *u
	}
	for id := range t.runs {
		was.runs[id] = true
	}
	for k, b := range t.money.breakers {
		was.limits[k] = *b
	}
	for _, r := range c.Rows {
		if r.Kind == "bead" && t.beads[r.ID] != nil {
			b := t.beads[r.ID]
			was.spent[r.ID], was.beads[r.ID] = t.spentOn(b), beadKey(b)
			was.dropped = was.dropped || r.Body == nil
		}
	}
	return was
}

func settingsKey(s town.Settings) (out string) {
	for _, k := range sortedKeys(s) {
		out += k + "=" + s[k] + "\n"
	}
	return out
}

func beadKey(b *town.Bead) string { return settingsKey(b.Settings) + b.FreshAt.String() }

// limit is a budget as the settings have it, 0 for none.
func limit(scope string, levels ...town.Settings) (l town.Spend) {
	get := func(what string) string {
		for _, s := range levels {
			if v, ok := s["budget."+scope+"."+what]; ok {
				return v
			}
		}
		return "0"
	}
	count := func(what string) int64 {
		n, err := strconv.ParseInt(get(what), 10, 64)
		if err != nil {
			panic("sim: " + what + " is no number: " + get(what))
		}
		return n
	}
	l.Runs, l.Tokens = count("runs"), count("tokens")
	l.Cost, _ = town.ParseMoney(get("cost"))
	d, _ := time.ParseDuration(get("awake")) // "0" and what people set is always one
	l.AwakeMS = d.Milliseconds()
	return l
}

// over reports whether something that is measured is used up.
func over(s, limit town.Spend) bool {
	return limit.Tokens > 0 && s.Tokens >= limit.Tokens || limit.Cost > 0 && s.Cost >= limit.Cost || limit.AwakeMS > 0 && s.AwakeMS >= limit.AwakeMS
}

// usedIn is what a town used in the present period of its budget.
func (t *shadowTown) usedIn(days map[string]town.Usage, day string) (s town.Spend) {
	for d, u := range days {
		if d == day || t.info.Settings["budget.town.period"] == "total" {
			s = plus(s, spendOf(u))
		}
	}
	return s
}

func (t *shadowTown) usageNow() map[string]town.Usage {
	out := map[string]town.Usage{}
	for d, u := range t.money.usage {
		out[d] = *u
	}
	return out
}

func (t *shadowTown) beadLimit(b *town.Bead, p *process) town.Spend {
	return limit("bead", b.Settings, t.info.Settings, p.server)
}

func dayOf(at town.Time) string { return at.Time().UTC().Format(time.DateOnly) }

// checkMoney looks at what a commit spent, and on what budgets.
func (s *shadow) checkMoney(t *shadowTown, c store.Commit, p *process, was before) {
	w := s.w
	s.checkBooks(t, c, was)
	known := w.totals.known(w.now, dayOf(town.Time(c.At)))
	w.totals.add(w.now, c.Spend)
	day, set := dayOf(town.Time(c.At)), was.settings != settingsKey(t.info.Settings)
	townLimit, serverLimit := limit("town", t.info.Settings, p.server), limit("server", p.server)
	used := t.usedIn(t.usageNow(), day)
	for id, r := range t.runs {
		b := t.beads[r.Bead]
		if b == nil {
			continue
		}
		beadSet := set || was.beads[b.ID] != "" && was.beads[b.ID] != beadKey(b)
		if l := t.beadLimit(b, p); !beadSet {
			w.holds(invBudget, r.State == town.RunDraining || !over(t.spentOn(b), l), t, "run %s goes on, and its bead used %+v of %+v", id, t.spentOn(b), l)
			if !was.runs[id] {
				w.holds(invBudget, !over(was.spent[b.ID], l), t, "run %s began, and its bead had used %+v of %+v", id, was.spent[b.ID], l)
				w.holds(invBudget, l.Runs == 0 || t.spentOn(b).Runs <= l.Runs, t, "run %s is the %d. of its bead, of at most %d", id, t.spentOn(b).Runs, l.Runs)
			}
		}
		if !set {
			w.holds(invBudget, r.State == town.RunDraining || !over(used, townLimit), t, "run %s goes on, and %s used %+v of %+v", id, t.name, used, townLimit)
		}
		if !was.runs[id] {
			if !set {
				u := t.usedIn(was.usage, day)
				w.holds(invBudget, !over(u, townLimit), t, "run %s began, and %s had used %+v of %+v", id, t.name, u, townLimit)
				w.holds(invBudget, townLimit.Runs == 0 || used.Runs <= townLimit.Runs, t, "run %s is the %d. of %s, of at most %d", id, used.Runs, t.name, townLimit.Runs)
			}
			w.holds(invBudget, !over(town.Spend{AwakeMS: known.AwakeMS, Tokens: known.Tokens, Cost: known.Cost}, serverLimit), t, "run %s began, and the server had used %+v of %+v", id, known, serverLimit)
			n := w.totals.days[dayOf(r.CreatedAt)].Runs
			w.holds(invBudget, serverLimit.Runs == 0 || n <= serverLimit.Runs, t, "run %s is the %d. of the server's day, of at most %d", id, n, serverLimit.Runs)
			s.checkProvider(t, c, r, was)
		}
	}
}

// checkProvider wants no run to begin while its provider is limited.
func (s *shadow) checkProvider(t *shadowTown, c store.Commit, r *town.Run, was before) {
	subject := "provider/" + r.Provider
	br, ok := was.limits[subject]
	if now := t.money.breakers[subject]; !ok || now == nil {
		if ok = now != nil; ok {
			br = *now
		}
	}
	begins := ok && br.Limit && int64(br.Until) > c.At+2000 && t.money.resets[subject] == 0 && !t.money.seen.IsZero()
	s.w.holds(invProvider, !begins, t, "run %s began, and %s is limited until %s", r.ID, r.Provider, br.Until)
}

// breaker notes the row of a breaker. A limit ends with its time, or when a
// person resets it.
func (s *shadow) breaker(t *shadowTown, c store.Commit, r store.Row) {
	old := t.money.breakers[r.ID]
	decode(t.money.breakers, r)
	br := t.money.breakers[r.ID]
	if old == nil || !old.Limit || int64(old.Until) <= c.At+2000 || t.money.resets[r.ID] > 0 || t.money.seen.IsZero() || t.columns.Status == store.Deleting {
		t.money.resets[r.ID], t.money.seen = 0, s.w.now
		return
	}
	s.w.holds(invProvider, br != nil && br.Limit && br.Until >= old.Until, t, "the limit of %s until %s was forgotten: %+v", r.ID, old.Until, br)
	t.money.seen = s.w.now
}

// forgetLimits is called when clocks change: times of before mean nothing.
func (s *shadow) forgetLimits() {
	for _, t := range s.towns {
		t.money.seen = time.Time{}
	}
}

func (w *world) clocksSet(since time.Time) bool { return w.setAt.After(since) }

// checkBooks wants the same sums for beads, town and server, but for what is not
// of a bead: only runs, tokens and cost always are.
func (s *shadow) checkBooks(t *shadowTown, c store.Commit, was before) {
	sum, all := t.written(c)
	sum, all = minus(sum, was.sum), minus(all, was.all)
	var told town.Spend
	for _, d := range c.Spend {
		told = plus(told, town.Spend{Runs: d.Runs, AwakeMS: d.AwakeMS, Tokens: d.Tokens, Cost: d.Cost})
	}
	s.w.holds(invUsage, told == all, t, "%s spent %+v in one commit, and told the server of %+v", t.name, all, told)
	sum = plus(sum, t.orphaned(was))
	sum.AwakeMS, all.AwakeMS = 0, 0
	s.w.holds(invUsage, was.dropped || sum == all, t, "the beads of %s spent %+v in one commit, and the town %+v", t.name, sum, all)
}

// watchTotals compares the server's days with all commits.
func (w *world) watchTotals() {
	for day, want := range w.totals.days {
		got, err := w.mem.ServerDays(context.Background(), day, 1)
		w.holds(invUsage, err == nil && len(got) == 1 && got[0] == want, nil, "the server's day is %+v, and its towns spent %+v", got, want)
		w.watchLent(want)
		if w.now.Sub(w.start) > 0 && day < w.now.Add(-72*time.Hour).Format(time.DateOnly) {
			delete(w.totals.days, day)
		}
	}
}

// counted compares what a run spent with what it really used.
func (s *shadow) counted(id, run string, u *used) {
	t := s.towns[id]
	if t == nil {
		return
	}
	got, ok := t.runSpent(run)
	s.w.holds(invUsage, !ok || got >= u.told && got <= u.told+u.maybe, t, "run %s used %d tokens, perhaps %d more, and %d are counted", run, u.told, u.maybe, got)
}

func (t *shadowTown) runSpent(run string) (int64, bool) {
	if r := t.runs[run]; r != nil {
		return r.Spent.Tokens, true
	}
	for _, b := range t.beads {
		for _, r := range b.Runs {
			if b.ID+"."+strconv.FormatInt(r.Epoch, 10) == run {
				return r.Spent.Tokens, true
			}
		}
	}
	return 0, false
}

// watchParked wants a town that waits for a budget to have one that is used up.
func (w *world) watchParked(st *shadowTown) {
	if !st.columns.WaitsBudget || len(w.procs) == 0 {
		st.money.free = time.Time{}
		return
	}
	if w.checked[invParked]++; w.usedUp(st) {
		st.money.free = time.Time{}
		return
	}
	if st.money.free.IsZero() || w.disturbed.After(st.money.free) {
		st.money.free = w.now
	}
	w.holds(invParked, w.now.Sub(st.money.free) <= w.overduly(), st, "%s waits for a budget, and none is used up since %s", st.name, st.money.free)
}

// usedUp reports whether any budget is that a town may wait for.
func (w *world) usedUp(st *shadowTown) bool {
	for _, p := range w.procs {
		now := town.At(p.Now())
		day := dayOf(now)
		used, l := st.usedIn(st.usageNow(), day), limit("town", st.info.Settings, p.server)
		if st.info.Meter.Phase != town.PhaseNone {
			used.AwakeMS += max(now.Sub(st.info.Meter.Since).Milliseconds(), 0)
		}
		sl, all := limit("server", p.server), w.totals.days[day]
		if over(used, l) || l.Runs > 0 && used.Runs >= l.Runs || over(town.Spend{AwakeMS: all.AwakeMS, Tokens: all.Tokens, Cost: all.Cost}, sl) || sl.Runs > 0 && all.Runs >= sl.Runs {
			return true
		}
		for _, b := range st.beads {
			if b.Status.Terminal() {
				continue
			}
			bl := st.beadLimit(b, p)
			if s := st.spentOn(b); over(s, bl) || bl.Runs > 0 && s.Runs >= bl.Runs {
				return true
			}
		}
	}
	return false
}

// checkEscalations looks at what needs a person.
func (s *shadow) checkEscalations(t *shadowTown) {
	open := map[string]bool{}
	for _, e := range t.money.escalations {
		if !e.Open() {
			continue
		}
		key := string(e.Cause) + " " + e.Subject
		s.w.holds(invEscalated, !open[key], t, "two escalations of %s are open", key)
		open[key] = true
		b, br := t.beads[e.Subject], t.money.breakers[e.Subject]
		ok := true
		switch e.Cause {
		case town.CauseFailed:
			ok = b != nil && b.Status == town.BeadFailed
		case town.CauseEscalated:
			ok = b != nil && b.Escalated && (!b.Status.Terminal() || b.Status == town.BeadFailed)
		case town.CauseStuck:
			ok = b != nil && (!b.Status.Terminal() || b.Status == town.BeadFailed) && b.Status != town.BeadInReview
		case town.CauseBreaker:
			ok = br != nil
		case town.CauseMany:
		}
		s.w.holds(invEscalated, ok, t, "%s is open, and nothing is to be done about it", key)
	}
	for id, b := range t.beads {
		s.w.holds(invEscalated, b.Status != town.BeadFailed || open[string(town.CauseFailed)+" "+id] || t.columns.Status == store.Deleting, t, "bead %s failed, and nobody is told", id)
	}
}
