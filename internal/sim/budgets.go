package sim

import (
	"fmt"
	"time"

	"gastown/internal/town"
)

// amount is a number for a budget: mostly enough for some hours of work.
func (d dice) amount(what string) string {
	switch what {
	case "runs":
		return fmt.Sprint(2 + d.IntN([]int{8, 60}[d.IntN(2)]))
	case "tokens":
		return fmt.Sprint(20_000 + d.IntN(4_000_000))
	case "cost":
		return fmt.Sprintf("%d.%02d", d.IntN(12), 10+d.IntN(90))
	}
	return fmt.Sprintf("%dm", 10+d.IntN(600))
}

// small is a budget for one bead.
func (d dice) small(what string) string {
	switch what {
	case "runs":
		return fmt.Sprint(1 + d.IntN(5))
	case "tokens":
		return fmt.Sprint(10_000 + d.IntN(200_000))
	case "cost":
		return fmt.Sprintf("0.%02d", 5+d.IntN(60))
	}
	return fmt.Sprintf("%dm", 5+d.IntN(60))
}

var kindsOfBudget = [...]string{"runs", "tokens", "cost", "awake"}

// begin gives some towns budgets from the first day.
func (t *simTown) begin() {
	for _, what := range kindsOfBudget {
		if t.dice.chance(0.25) {
			t.ask(command{in: town.SetTown{Set: town.Settings{"budget.town." + what: t.dice.amount(what)}}, must: true})
		}
	}
	if t.dice.chance(0.3) {
		what := kindsOfBudget[t.dice.IntN(len(kindsOfBudget))]
		t.ask(command{in: town.SetTown{Set: town.Settings{"budget.bead." + what: t.dice.small(what)}}, must: true})
	}
}

// budget is what people do about budgets and what needs them.
func (t *simTown) budget(n int) {
	what := kindsOfBudget[t.dice.IntN(len(kindsOfBudget))]
	set := func(key, value string) {
		t.ask(command{in: town.SetTown{Set: town.Settings{key: value}}, must: true})
	}
	switch {
	case n < 22:
		set("budget.town."+what, t.dice.amount(what))
	case n < 42:
		for _, w := range kindsOfBudget {
			if t.dice.chance(0.7) {
				set("budget.town."+w, "0")
			}
		}
	case n < 45:
		set("budget.town.period", []string{"day", "total"}[t.dice.IntN(2)])
	case n < 50:
		set("budget.bead."+what, []string{"0", "0", t.dice.small(what)}[t.dice.IntN(2)])
	case n < 70:
		t.onSome(func(b string) town.Input {
			return town.EditBead{Bead: b, Set: town.Settings{"budget.bead." + what: t.dice.small(what)}}
		})
	case n < 78:
		t.onSome(func(b string) town.Input {
			return town.EditBead{Bead: b, Unset: []string{"budget.bead." + what}}
		})
	case n < 84:
		t.ask(command{in: town.Retry{ID: "provider/" + providerName}, quiet: true})
	default:
		st := t.w.shadow.towns[t.id]
		if st == nil {
			return
		}
		for _, id := range sortedKeys(st.money.escalations) {
			if e := st.money.escalations[id]; e.Open() {
				if n < 92 {
					t.ask(command{in: town.Acknowledge{ID: id}, quiet: true})
				} else {
					t.w.shadow.reopen(t.id, e.Subject)
					t.ask(command{in: town.Retry{ID: id}, quiet: true})
				}
				return
			}
		}
	}
}

// lift takes all budgets of a town away, after what people asked before was
// answered: a limit that is tried again until a server is back comes later than
// one that was asked after it.
func (t *simTown) lift() {
	if t.pending > 0 {
		t.w.at(10*time.Second, t.lift)
		return
	}
	none := town.Settings{}
	for _, what := range kindsOfBudget {
		none["budget.town."+what], none["budget.bead."+what] = "0", "0"
	}
	t.ask(command{in: town.SetTown{Set: none}, must: true})
	st := t.w.shadow.towns[t.id]
	if st == nil {
		return
	}
	for _, id := range sortedKeys(st.beads) {
		if b := st.beads[id]; len(b.Settings) > 0 && !b.Status.Terminal() {
			t.ask(command{in: town.EditBead{Bead: id, Unset: sortedKeys(b.Settings)}, quiet: true})
		}
	}
}

// operator is who restarts the servers with other budgets.
func (w *world) operator() {
	if !w.restless {
		return
	}
	w.at(w.order.between(6*time.Hour, 30*time.Hour), w.operator)
	what := kindsOfBudget[w.order.IntN(len(kindsOfBudget))]
	set := town.Settings{"budget.server.runs": "0", "budget.server.tokens": "0", "budget.server.cost": "0", "budget.server.awake": "0"}
	if w.order.chance(0.6) {
		set["budget.server."+what] = w.order.amount(what)
	}
	w.serve(set)
}

// liftServer restarts the servers without budgets.
func (w *world) liftServer() {
	none := town.Settings{}
	for _, what := range kindsOfBudget {
		none["budget.server."+what] = "0"
	}
	w.serve(none)
}

// serve restarts all servers with other settings.
func (w *world) serve(set town.Settings) {
	all := town.Settings{}
	for _, s := range []town.Settings{w.server, set} {
		for k, v := range s {
			all[k] = v
		}
	}
	w.server = all
	for _, p := range w.procs {
		p.dead = true // the next step ends it
	}
}
