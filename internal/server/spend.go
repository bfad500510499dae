package server

import (
	"cmp"
	"slices"

	"gastown/internal/api"
	"gastown/internal/town"
)

// maxBeadSpends is how many beads a look at a town's usage lists.
const maxBeadSpends = 100

func spendView(s town.Spend) api.Spend {
	return api.Spend{Runs: s.Runs, AwakeMS: s.AwakeMS, Tokens: s.Tokens, CostMicros: s.Cost}
}

func budgetViews(bs []town.Budget) []api.Budget {
	return mapped(bs, func(b town.Budget) api.Budget {
		return api.Budget{Scope: b.Scope, What: b.What, Setting: b.Setting(), Limit: b.Limit, Spent: b.Spent, Granted: b.Granted, Left: b.Left(),
			Since: b.Since.Time(), Until: b.Until.Time()}
	})
}

// beadSpends lists the beads that cost most: by money, then tokens, then time.
func beadSpends(t *town.Town, now town.Time) []api.BeadSpend {
	out := []api.BeadSpend{}
	for _, b := range t.Beads() {
		if s := t.BeadSpend(now.Time(), b.ID).Total(); s != (town.Spend{}) {
			out = append(out, api.BeadSpend{Bead: b.ID, Title: b.Title, Status: string(b.Status), Spent: spendView(s)})
		}
	}
	slices.SortFunc(out, func(a, b api.BeadSpend) int {
		return cmp.Or(cmp.Compare(b.Spent.CostMicros, a.Spent.CostMicros), cmp.Compare(b.Spent.Tokens, a.Spent.Tokens),
			cmp.Compare(b.Spent.AwakeMS, a.Spent.AwakeMS), cmp.Compare(a.Bead, b.Bead))
	})
	return out[:min(len(out), maxBeadSpends)]
}
