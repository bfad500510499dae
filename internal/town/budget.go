package town

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a budget is for.
const (
	scopeBead   = "bead"
	scopeTown   = "town"
	scopeServer = "server"
)

// Budget is a limit on what a bead, the town or the server may spend, and how
// far it is used up. Numbers are runs, milliseconds, tokens or millionths of a
// dollar.
type Budget struct {
	Scope string `json:"scope"` // bead, town, server
	What  string `json:"what"`  // cost, tokens, awake, runs
	Limit int64  `json:"limit"`
	Spent int64  `json:"spent"`
	// Granted is what runs may spend of it that has not reported yet.
	Granted int64 `json:"granted,omitempty"`
	Since   Time  `json:"since,omitempty"` // begin of the present period; 0: all its life
	Until   Time  `json:"until,omitempty"` // when it counts anew by itself; 0: never
}

// Left is what may still be spent.
func (b Budget) Left() int64 { return max(b.Limit-b.Spent-b.Granted, 0) }

// Setting is the key of the setting that gives the limit.
func (b Budget) Setting() string { return "budget." + b.Scope + "." + b.What }

// period says from when to when a budget counts.
type period struct{ from, until Time }

func dayPeriod(now Time) period {
	from := now.Time().Truncate(day)
	return period{At(from), At(from.Add(day))}
}

func (t *Town) townPeriod(now Time) period {
	switch t.text("budget.town.period", nil, nil) {
	case "month":
		at := now.Time()
		from := time.Date(at.Year(), at.Month(), 1, 0, 0, 0, 0, time.UTC)
		return period{At(from), At(from.AddDate(0, 1, 0))}
	case "total":
		return period{}
	}
	return dayPeriod(now)
}

// budgets returns the limits that are set among those of a scope, as they stand
// with what was spent. Starting asks for those too that only forbid new runs.
func budgets(scope string, limit, spent Spend, g Granted, p period, starting bool) []Budget {
	var out []Budget
	add := func(what string, limit, spent, granted int64) {
		if limit > 0 {
			out = append(out, Budget{scope, what, limit, spent, granted, p.from, p.until})
		}
	}
	add("cost", limit.Cost, spent.Cost, g.Cost)
	add("tokens", limit.Tokens, spent.Tokens, g.Tokens)
	add("awake", limit.AwakeMS, spent.AwakeMS, 0)
	if starting {
		add("runs", limit.Runs, spent.Runs, 0)
	}
	return out
}

// usedUp is the first budget of which nothing is left.
func usedUp(bs []Budget) (Budget, bool) {
	for _, b := range bs {
		if b.Spent >= b.Limit {
			return b, true
		}
	}
	return Budget{}, false
}

// limitOf reads the limits of a scope. Those of towns and rigs are kept until a
// setting changes: dispatch asks for them bead by bead.
func (t *Town) limitOf(scope string, b *Bead, r *Rig) Spend {
	at := scope
	if r != nil {
		at += " " + r.Name
	}
	if b != nil && b.ownBudget() {
		return t.readLimit(scope, b, r)
	}
	l, ok := t.limits[at]
	if !ok {
		l = t.readLimit(scope, nil, r)
		t.limits[at] = l
	}
	return l
}

// ownBudget reports whether a bead has limits of its own.
func (b *Bead) ownBudget() bool {
	for k := range b.Settings {
		if strings.HasPrefix(k, "budget.") {
			return true
		}
	}
	return false
}

func (t *Town) readLimit(scope string, b *Bead, r *Rig) Spend {
	count := func(what string) int64 {
		n, err := strconv.ParseInt(t.text("budget."+scope+"."+what, b, r), 10, 64)
		if err != nil {
			panic(err) // checked in resolve
		}
		return n
	}
	cost, ok := ParseMoney(t.text("budget."+scope+".cost", b, r))
	if !ok {
		panic("town: a budget was not checked")
	}
	return Spend{Runs: count("runs"), AwakeMS: ms(t.duration("budget."+scope+".awake", b, r)), Tokens: count("tokens"), Cost: cost}
}

// beadBudgets are the budgets of one bead.
func (t *Town) beadBudgets(b *Bead, now Time, starting bool) []Budget {
	limit := t.limitOf(scopeBead, b, t.rigs[b.Rig])
	if limit == (Spend{}) {
		return nil
	}
	return budgets(scopeBead, limit, t.beadSpent(b, now), t.grantedTo(func(x Block) bool { return x.Bead == b.ID }), period{}, starting)
}

// sharedBudgets are the budgets of the town and of the server.
func (t *Town) sharedBudgets(now Time, starting bool) []Budget {
	var out []Budget
	if limit := t.limitOf(scopeTown, nil, nil); limit != (Spend{}) {
		p := t.townPeriod(now)
		out = budgets(scopeTown, limit, t.spentIn(p, now), t.grantedIn(p), p, starting)
	}
	if limit := t.limitOf(scopeServer, nil, nil); limit != (Spend{}) {
		out = append(out, budgets(scopeServer, limit, t.serverSpent(now), t.serverGranted(now), dayPeriod(now), starting)...)
	}
	return out
}

// spentIn is what the town spent in a period up to now.
func (t *Town) spentIn(p period, now Time) (s Spend) {
	from, until := "", "~"
	if p.until != 0 {
		from, until = dayOf(p.from), dayOf(p.until)
	}
	add := func(u *Usage) {
		if u.Day >= from && u.Day < until {
			s = s.add(Spend{u.Runs, u.Awake(), u.Tokens, u.Cost})
		}
	}
	for _, u := range t.usage {
		add(u)
	}
	for _, u := range split(t.info.Meter, now) {
		add(&u)
	}
	return s
}

// serverSpent is what all towns spent today, as far as this one knows.
func (t *Town) serverSpent(now Time) Spend {
	today := dayOf(now)
	s := t.delta[today]
	if t.serverDay.Day == today {
		s = s.add(t.serverDay.Spend)
	}
	for _, u := range split(t.info.Meter, now) {
		if u.Day == today {
			s.AwakeMS = sum(s.AwakeMS, u.Awake())
		}
	}
	return s
}

// parked returns the budget of the town or the server that is used up, so that
// nothing may go on. One of runs only keeps new ones from starting.
func (t *Town) parked(now Time) (Budget, bool) { return usedUp(t.sharedBudgets(now, false)) }

// budgetText says of a budget that is used up what happened and what ends it.
func (t *Town) budgetText(b Budget, bead string) string {
	whose, command := "bead "+bead+" has used", "gastown bead edit "+bead+" --set "+b.Setting()+"="
	switch b.Scope {
	case scopeTown:
		whose, command = "town "+t.info.Name+" has used", "gastown town set "+t.info.Name+" "+b.Setting()+"="
	case scopeServer:
		whose, command = "all towns of the server have used", "restart the server with --set "+b.Setting()+"="
	}
	since, until := "", ""
	if b.Since != 0 {
		since = " since " + b.Since.String()
		until = "it goes on at " + b.Until.String() + "; "
	}
	return fmt.Sprintf("its budget is used up: %s %s of %s%s (%s); %sto go on now: %sN with a higher limit, 0 for none",
		whose, amount(b.What, b.Spent), amount(b.What, b.Limit), since, b.Setting(), until, command)
}

func amount(what string, n int64) string {
	switch what {
	case "cost":
		return Money(n)
	case "awake":
		return (time.Duration(n) * time.Millisecond).String() + " awake"
	}
	return strconv.FormatInt(n, 10) + " " + what
}

// budgetWait is what the budgets of town and server keep from starting.
func (t *Town) budgetWait(now Time) Reason {
	b, ok := usedUp(t.sharedBudgets(now, true))
	if !ok {
		return Reason{}
	}
	return Reason{State: Waiting, Kind: waitBudget, Subject: b.Scope, Until: b.Until, Text: t.budgetText(b, "")}
}

// beadBudgetWait is what a bead's own budget keeps from starting.
func (t *Town) beadBudgetWait(b *Bead, now Time) Reason {
	if b.Spent == (Spend{}) && t.runs[b.currentRun()] == nil {
		return Reason{}
	}
	bud, ok := usedUp(t.beadBudgets(b, now, true))
	if !ok {
		return Reason{}
	}
	return Reason{State: Waiting, Kind: waitBudget, Subject: b.ID, Text: t.budgetText(bud, b.ID)}
}

// gatesWait is what keeps a merge that needs gates from beginning: checking
// costs awake time. Gates under way finish.
func (t *Town) gatesWait(r *Rig, now Time) Reason {
	if len(r.Gates) == 0 {
		return Reason{}
	}
	b, ok := t.parked(now)
	if !ok {
		return Reason{}
	}
	return Reason{State: Waiting, Kind: waitBudget, Subject: b.Scope, Until: b.Until, Text: t.budgetText(b, "")}
}

// ruleBudget stops what runs on a budget that is used up, and tells people once.
func (t *Town) ruleBudget(now Time) bool {
	moved, stopped := false, false
	all, over := t.parked(now)
	for _, r := range t.sortedRuns() {
		b := t.beads[r.Bead]
		if r.State == RunDraining || b == nil {
			continue
		}
		bud, ok := all, over
		if !ok {
			if bud, ok = usedUp(t.beadBudgets(b, now, false)); !ok {
				continue
			}
			t.tellBead(b, bud, now)
		}
		t.stopLimited(r, now, t.budgetText(bud, b.ID))
		moved, stopped = true, stopped || over
	}
	if b, ok := usedUp(t.sharedBudgets(now, true)); ok && (stopped || t.waitsBudget(now)) {
		t.tell(b, now)
	}
	return moved
}

// anyReady reports whether a bead could start but for capacity and budgets.
func (t *Town) anyReady() bool {
	for _, q := range t.ix.ready {
		if len(*q) > 0 {
			return true
		}
	}
	return false
}

// tell notes in the ledger that a budget is used up and tells people, once for
// each period and limit.
func (t *Town) tell(b Budget, now Time) {
	mark := b.What + "=" + strconv.FormatInt(b.Limit, 10) + " since " + b.Since.String()
	if t.info.Told[b.Scope] == mark {
		return
	}
	told := map[string]string{b.Scope: mark}
	for k, v := range t.info.Told {
		if k != b.Scope {
			told[k] = v
		}
	}
	t.info.Told = told
	t.log(now, "budget.reached", t.info.Name, "", t.budgetText(b, ""), "scope", b.Scope, "budget", b.Setting())
	t.notify(now, "budget.reached", t.info.Name, t.budgetText(b, ""))
}

func (t *Town) tellBead(b *Bead, bud Budget, now Time) {
	mark := bud.What + "=" + strconv.FormatInt(bud.Limit, 10)
	if b.Told == mark {
		return
	}
	t.edit(b, now, func() { b.Told = mark })
	t.log(now, "budget.reached", b.ID, "", t.budgetText(bud, b.ID), "scope", bud.Scope, "budget", bud.Setting())
	t.notify(now, "budget.reached", b.ID, b.Title+": "+t.budgetText(bud, b.ID))
}

// ServerBudget returns the limits of a day for the whole server; 0 is none.
func ServerBudget(server Settings) Spend {
	t := empty()
	t.server = server
	return t.limitOf(scopeServer, nil, nil)
}

// Budgets returns the limits of the town and the server that are set, and how
// they stand.
func (t *Town) Budgets(at time.Time) []Budget { return t.sharedBudgets(At(at), true) }

// BeadBudgets returns the limits of a bead that are set, and how they stand.
func (t *Town) BeadBudgets(at time.Time, id string) []Budget {
	if b := t.beads[id]; b != nil {
		return t.beadBudgets(b, At(at), true)
	}
	return nil
}

// waitsBudget reports whether work waits for a budget: a server that starts with
// other limits looks at such towns.
func (t *Town) waitsBudget(now Time) bool {
	if t.info.Mode != ModeActive {
		return false
	}
	if _, ok := usedUp(t.sharedBudgets(now, true)); ok {
		_, hard := t.parked(now)
		return t.anyReady() || hard && (t.anyGates() || t.info.AwakeFor > now)
	}
	for name, q := range t.ix.ready {
		if t.ix.ownBudget == 0 && t.limitOf(scopeBead, nil, t.rigs[name]) == (Spend{}) {
			continue
		}
		for _, k := range *q {
			if t.beadBudgetWait(t.beads[k.id], now).Kind != "" {
				return true
			}
		}
	}
	return false
}

// anyGates reports whether a merge waits for gates.
func (t *Town) anyGates() bool {
	for name, q := range t.ix.review {
		if len(*q) > 0 && len(t.rigs[name].Gates) > 0 {
			return true
		}
	}
	return len(t.gating()) > 0
}

// budgetWake sees the moments at which a budget of awake time will be used up,
// and at which one that something waits for counts anew.
func (t *Town) budgetWake(now Time, see func(Time)) {
	shared := t.sharedBudgets(now, true)
	if b, ok := usedUp(shared); ok && t.waitsBudget(now) {
		see(b.Until)
	}
	if t.info.Meter.Phase == PhaseNone {
		return
	}
	at := func(b Budget) {
		if b.What != "awake" || b.Spent >= b.Limit {
			return
		}
		end := now.Add(time.Duration(b.Left()) * time.Millisecond)
		if b.Until != 0 && end > b.Until {
			end = b.Until.Add(time.Duration(b.Limit) * time.Millisecond)
		}
		see(end)
	}
	for _, b := range shared {
		at(b)
	}
	for _, r := range t.runs {
		if b := t.beads[r.Bead]; b != nil && r.State != RunDraining && t.info.Meter.Phase == PhaseHeld {
			for _, bud := range t.beadBudgets(b, now, false) {
				at(bud)
			}
		}
	}
}
