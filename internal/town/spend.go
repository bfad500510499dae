package town

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
)

// Spend is what something cost so far, or may cost: runs that were started,
// time for which a sandbox was awake, and what model gateways measured. Sums
// stop at the largest number instead of turning over.
type Spend struct {
	Runs    int64 `json:"runs,omitempty"`
	AwakeMS int64 `json:"awake_ms,omitempty"`
	Tokens  int64 `json:"tokens,omitempty"`
	Cost    int64 `json:"cost_micros,omitempty"` // millionths of a dollar
}

func (s Spend) add(o Spend) Spend {
	return Spend{sum(s.Runs, o.Runs), sum(s.AwakeMS, o.AwakeMS), sum(s.Tokens, o.Tokens), sum(s.Cost, o.Cost)}
}

// sum adds two numbers that are not negative.
func sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// DaySpend is what was spent on one day in UTC.
type DaySpend struct {
	Day string // 2006-01-02
	Spend
	Granted Granted // to runs, and not settled; what TakeSpend returns is the change
}

// Mark says up to where the reports of one meter on a run were counted.
type Mark struct {
	Meter string `json:"meter"`
	Seq   int64  `json:"seq"`
}

const (
	maxMarks       = 8                 // meters per run that are remembered
	maxMeterTokens = 1_000_000_000_000 // in one report
	maxMeterCost   = 1_000_000_000_000 // a million dollars, in one report
)

// bookEach is how far apart bookings of a stay are at most while something
// happens to the town: others see by the server's day what it costs.
const bookEach = time.Minute

func dayOf(t Time) string { return t.Time().Format(time.DateOnly) }

// spend counts what the town spends now.
func (t *Town) spend(day string, s Spend) {
	u := t.usageOf(day)
	u.Runs, u.Tokens, u.Cost = sum(u.Runs, s.Runs), sum(u.Tokens, s.Tokens), sum(u.Cost, s.Cost)
	t.mark(kindUsage, day)
	t.delta[day] = t.delta[day].add(s)
}

func (t *Town) usageOf(day string) *Usage {
	u := t.usage[day]
	if u == nil {
		u = &Usage{Day: day}
		t.usage[day] = u
	}
	return u
}

// TakeSpend returns what was spent since the last call, by day. It belongs into
// the commit of the rows that Changes returns; the server's day then contains it.
func (t *Town) TakeSpend() []DaySpend {
	var out []DaySpend
	for day := range t.lent {
		t.delta[day] = t.delta[day].add(Spend{}) // so that each day is there once
	}
	for day, s := range t.delta {
		g := t.lent[day]
		out = append(out, DaySpend{day, s, g})
		if day == t.serverDay.Day {
			t.serverDay.Spend = t.serverDay.add(s)
			t.serverDay.Granted = t.serverDay.Granted.add(g)
		}
	}
	clear(t.delta)
	clear(t.lent)
	slices.SortFunc(out, func(a, b DaySpend) int { return cmp.Compare(a.Day, b.Day) })
	return out
}

// SetServerDay gives what all towns of the server together spent today, as far
// as it was committed. Like the server's settings it is not stored with the town.
func (t *Town) SetServerDay(d DaySpend) { t.serverDay = d }

// bookUntil books the stay under way up to a time: to its days, and to what it
// was held for. Beads that share a sandbox are each charged the whole time.
func (t *Town) bookUntil(at Time) {
	m := &t.info.Meter
	if m.Phase == PhaseNone {
		return
	}
	for _, u := range split(*m, at) {
		t.book(u)
	}
	if span := held(*m, at); span > 0 {
		for _, h := range m.Holds {
			t.bookHold(h, span)
		}
	}
	m.Since = at
	t.mark(kindTown, t.info.ID)
}

// held is how long a meter has counted for its holds.
func held(m Meter, until Time) int64 {
	if m.Phase != PhaseHeld {
		return 0
	}
	return max(int64(min(until.Sub(m.Since), maxStay)/time.Millisecond), 0)
}

func (t *Town) bookHold(hold string, span int64) {
	kind, id, _ := strings.Cut(hold, " ")
	s := Spend{AwakeMS: span}
	switch HoldReason(kind) {
	case HoldRun:
		if r := t.runs[id]; r != nil {
			r.Spent = r.Spent.add(s)
			t.mark(kindRun, id)
		}
	case HoldGates:
		// While its last run is still ending the time is charged to that.
		if b := t.beads[id]; b != nil && t.runs[b.currentRun()] == nil {
			b.Spent = b.Spent.add(s)
			t.mark(kindBead, id)
		}
	case HoldHuman:
	}
}

// beadSpent is what counts against the budget of a bead: all since it was made,
// or reopened by a person.
func (t *Town) beadSpent(b *Bead, now Time) Spend {
	s := b.Spent
	r := t.runs[b.currentRun()]
	if r != nil && r.CreatedAt >= b.FreshAt {
		s = s.add(r.Spent)
	}
	m := t.info.Meter
	if r != nil && slices.Contains(m.Holds, string(HoldRun)+" "+r.ID) || r == nil && slices.Contains(m.Holds, string(HoldGates)+" "+b.ID) {
		s.AwakeMS = sum(s.AwakeMS, held(m, now))
	}
	return s
}

// BeadSpend is what a bead cost: Fresh counts against its budget, Past is from
// before a person reopened it.
type BeadSpend struct{ Fresh, Past Spend }

// Total is the sum of both.
func (s BeadSpend) Total() Spend { return s.Fresh.add(s.Past) }

// BeadSpend returns what a bead cost up to now.
func (t *Town) BeadSpend(at time.Time, id string) BeadSpend {
	b := t.beads[id]
	if b == nil {
		return BeadSpend{}
	}
	return BeadSpend{t.beadSpent(b, At(at)), b.Past}
}

// RunSpend returns what a run that has not ended cost up to now.
func (t *Town) RunSpend(at time.Time, id string) Spend {
	r := t.runs[id]
	if r == nil {
		return Spend{}
	}
	s := r.Spent
	if slices.Contains(t.info.Meter.Holds, string(HoldRun)+" "+id) {
		s.AwakeMS = sum(s.AwakeMS, held(t.info.Meter, At(at)))
	}
	return s
}

// freshen gives a bead that a person reopens new counters.
func (t *Town) freshen(b *Bead, now Time) {
	t.bookUntil(now)
	t.edit(b, now, func() {
		b.Past = b.Past.add(b.Spent)
		b.Spent, b.Told, b.FreshAt = Spend{}, "", now
	})
}

// settleRun moves what a run cost to its bead, when it ends.
func (t *Town) settleRun(r *Run, b *Bead) {
	if r.CreatedAt < b.FreshAt {
		b.Past = b.Past.add(r.Spent)
		return
	}
	b.Spent = b.Spent.add(r.Spent)
}

// metered takes what a meter measured of a run. What was counted already, by the
// number, is acknowledged and changes nothing. A run that ended has spent it too.
func (t *Town) metered(now Time, in Metered) error {
	if err := cleanLine("name of the meter", in.Meter, 64); err != nil {
		return err
	}
	if in.Meter == "" || in.Seq < 1 || in.Tokens < 0 || in.Tokens > maxMeterTokens || in.Cost < 0 || in.Cost > maxMeterCost || in.Unpriced < 0 || in.Unpriced > in.Tokens {
		return errs.New(errs.Invalid, "a report of usage needs a meter, a number from 1, and tokens and cost that can be")
	}
	bead, epoch, _ := strings.Cut(in.Run, ".")
	b := t.beads[bead]
	if b == nil || epoch != strconv.FormatInt(in.Epoch, 10) {
		return errs.New(errs.NotFound, "no run %s, epoch %d", clip(in.Run, 60), in.Epoch)
	}
	i := slices.IndexFunc(b.Runs, func(r RunRecord) bool { return r.Epoch == in.Epoch })
	if i < 0 && t.runs[in.Run] == nil {
		return errs.New(errs.NotFound, "run %s is not on record", clip(in.Run, 60))
	}
	s := Spend{Tokens: in.Tokens, Cost: in.Cost}
	day := dayOf(now)
	if block, ok := t.takeBack(in); ok {
		day = block.Day // where it was granted
	}
	if r := t.runs[in.Run]; r != nil {
		marks, fresh := counted(r.Marks, in)
		if !fresh {
			return nil
		}
		r.Marks, r.Spent = marks, r.Spent.add(s)
		t.mark(kindRun, r.ID)
		if in.Tokens > 0 {
			t.providerWorks(now, limitSubject(r))
		}
		t.spendMetered(day, s, in)
		return nil
	}
	if t.meteredLate(b, i, in, s) {
		t.spendMetered(day, s, in)
	}
	return nil
}

func (t *Town) spendMetered(day string, s Spend, in Metered) {
	t.spend(day, s)
	u := t.usageOf(day)
	u.Unpriced = sum(u.Unpriced, in.Unpriced)
}

// meteredLate counts what a run spent that has ended; false: it was counted before.
func (t *Town) meteredLate(b *Bead, i int, in Metered, s Spend) bool {
	rec := b.Runs[i]
	marks, fresh := counted(rec.Marks, in)
	if !fresh {
		return false
	}
	rec.Marks, rec.Spent = marks, rec.Spent.add(s)
	b.Runs = slices.Clone(b.Runs)
	b.Runs[i] = rec
	if rec.StartedAt < b.FreshAt {
		b.Past = b.Past.add(s)
	} else {
		b.Spent = b.Spent.add(s)
	}
	t.mark(kindBead, b.ID)
	return true
}

// counted returns the marks of a run with those of a report; false: it was
// counted before.
func counted(marks []Mark, in Metered) ([]Mark, bool) {
	marks = slices.Clone(marks)
	for i := range marks {
		if marks[i].Meter == in.Meter {
			fresh := in.Seq > marks[i].Seq
			marks[i].Seq = max(marks[i].Seq, in.Seq)
			return marks, fresh
		}
	}
	marks = append(marks, Mark{in.Meter, in.Seq})
	return marks[max(0, len(marks)-maxMarks):], true
}

// ParseMoney reads dollars, such as 1.50, with up to six places behind the point as millionths.
func ParseMoney(s string) (int64, bool) {
	whole, frac, point := strings.Cut(s, ".")
	if whole == "" || len(whole) > 9 || len(frac) > 6 || point && frac == "" || strings.ContainsFunc(whole+frac, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	n, err := strconv.ParseInt(whole+frac+"000000"[len(frac):], 10, 64)
	return n, err == nil
}

// Money writes millionths of a dollar as dollars, such as $1.50.
func Money(micros int64) string {
	s := strconv.FormatInt(micros/1_000_000, 10) + "." + strconv.FormatInt(1_000_000+micros%1_000_000, 10)[1:]
	cents := strings.IndexByte(s, '.') + 3
	return "$" + s[:cents] + strings.TrimRight(s[cents:], "0")
}
