package storetest

import (
	"errors"
	"fmt"
	"sync"

	"gastown/internal/errs"
	"gastown/internal/store"
)

// spend commits what a town spent, with a limit for runs.
func (k *kit) spend(town string, maxRuns int64, s ...store.DaySpend) error {
	k.Helper()
	c := k.next(town)
	c.Spend, c.Limits.Runs = s, maxRuns
	_, err := k.Store.Commit(k.ctx, c)
	return err
}

func (k *kit) days(from string) []store.DaySpend {
	k.Helper()
	d, err := k.ServerDays(k.ctx, from, 0)
	k.ok(err)
	return d
}

func budgetTests() []conformanceTest {
	return []conformanceTest{
		{"what towns spend is added up by day", func(k *kit) {
			k.create("t1")
			k.create("t2")
			k.same("nothing", len(k.days("")), 0)
			k.ok(k.spend("t1", 0, store.DaySpend{Day: "2026-03-01", Runs: 1, AwakeMS: 20, Tokens: 300, Cost: 4000},
				store.DaySpend{Day: "2026-03-02", AwakeMS: 5}))
			k.ok(k.spend("t2", 0, store.DaySpend{Day: "2026-03-01", Runs: 2, AwakeMS: 1, Tokens: 1, Cost: 1}))
			k.ok(k.spend("t2", 0, store.DaySpend{Day: "2026-02-28", Tokens: 9}))
			first := store.DaySpend{Day: "2026-03-01", Runs: 3, AwakeMS: 21, Tokens: 301, Cost: 4001}
			k.same("from March", k.days("2026-03-01"), []store.DaySpend{first, {Day: "2026-03-02", AwakeMS: 5}})
			k.same("all", len(k.days("")), 3)
			k.ok(k.DeleteTown(k.ctx, "t2"))
			k.same("money of a deleted town", k.days("2026-03-01")[0], first)
			one, err := k.ServerDays(k.ctx, "2026-03-01", 1)
			k.ok(err)
			k.same("one day", one, []store.DaySpend{first})
		}},
		{"totals stop rising before they overflow", func(k *kit) {
			k.create("t1")
			for range 3 {
				k.ok(k.spend("t1", 0, store.DaySpend{Day: "2026-03-01", Runs: 1, Tokens: store.MaxSpend, Cost: store.MaxSpend - 1}))
			}
			k.same("totals", k.days(""), []store.DaySpend{{Day: "2026-03-01", Runs: 3, Tokens: store.MaxSpend, Cost: store.MaxSpend}})
		}},
		{"a refused commit spends nothing", func(k *kit) {
			k.create("t1")
			c := k.next("t1")
			c.Expect++
			c.Spend = []store.DaySpend{{Day: "2026-03-01", Runs: 1}}
			_, err := k.Store.Commit(k.ctx, c)
			k.same("refused", errors.Is(err, store.ErrVersion), true)
			for _, bad := range [][]store.DaySpend{{{Day: "soon"}}, {{Day: "2026-3-1"}}, {{Day: "2026-03-01", Runs: -1}},
				{{Day: "2026-03-01", Cost: store.MaxSpend + 1}}, {{Day: "2026-03-01"}, {Day: "2026-03-01"}}} {
				k.kind(k.spend("t1", 0, bad...), errs.Invalid)
			}
			k.same("nothing", len(k.days("")), 0)
		}},
		{"the last run of a day is given once", func(k *kit) {
			const towns, left = 16, 5
			for i := range towns {
				k.create(fmt.Sprint("t", i))
			}
			results := make([]error, towns)
			var all sync.WaitGroup
			for i := range towns {
				c := k.next(fmt.Sprint("t", i))
				c.Spend, c.Limits.Runs = []store.DaySpend{{Day: "2026-03-01", Runs: 1, AwakeMS: 7}}, left
				all.Go(func() { _, results[i] = k.Store.Commit(k.ctx, c) })
			}
			all.Wait()
			for i, err := range results {
				h, herr := k.Head(k.ctx, fmt.Sprint("t", i))
				k.ok(herr)
				if (err == nil) != (h.Version == 2) || err != nil && (!errors.Is(err, store.ErrBudget) || !errs.Is(err, errs.Conflict)) {
					k.Errorf("town %d at version %d: %v", i, h.Version, err)
				}
			}
			k.same("totals", k.days(""), []store.DaySpend{{Day: "2026-03-01", Runs: left, AwakeMS: left * 7}})
			k.same("another", errors.Is(k.spend("t0", left, store.DaySpend{Day: "2026-03-01", Runs: 1}), store.ErrBudget), true)
			k.ok(k.spend("t0", left, store.DaySpend{Day: "2026-03-01", AwakeMS: 1}))
			k.ok(k.spend("t0", left, store.DaySpend{Day: "2026-03-02", Runs: left}))
			k.ok(k.spend("t0", left+1, store.DaySpend{Day: "2026-03-01", Runs: 1}))
		}},
		{"no more is granted on a day than is left", grantedOnADay},
		{"towns in which work waits for a budget are found", func(k *kit) {
			for _, id := range []string{"b", "a", "c"} {
				k.create(id)
			}
			waits := healthy()
			waits.WaitsBudget = true
			k.createWith("d", waits)
			k.set("b", func(c *store.Columns) { c.WaitsBudget = true })
			k.set("a", func(c *store.Columns) { c.WaitsBudget = true })
			found, err := k.BudgetTowns(k.ctx)
			k.ok(err)
			k.same("found", ids(found), "a b d")
			k.set("a", func(c *store.Columns) { c.WaitsBudget = false })
			found, err = k.BudgetTowns(k.ctx)
			k.ok(err)
			k.same("found", ids(found), "b d")
		}},
	}
}

func grantedOnADay(k *kit) {
	const towns, day = 8, "2026-03-01"
	for i := range towns {
		k.create(fmt.Sprint("t", i))
	}
	results := make([]error, towns)
	var all sync.WaitGroup
	for i := range towns {
		c := k.next(fmt.Sprint("t", i))
		c.Spend, c.Limits = []store.DaySpend{{Day: day, GrantedTokens: 30, GrantedCost: 1}}, store.DayLimits{Tokens: 100, Cost: 1000}
		all.Go(func() { _, results[i] = k.Store.Commit(k.ctx, c) })
	}
	all.Wait()
	good := int64(0)
	for i, err := range results {
		if err == nil {
			good++
		} else if !errors.Is(err, store.ErrBudget) {
			k.Errorf("town %d: %v", i, err)
		}
	}
	k.same("blocks", good, int64(3))
	k.same("totals", k.days(""), []store.DaySpend{{Day: day, GrantedTokens: 90, GrantedCost: 3}})
	grant := func(limits store.DayLimits, d store.DaySpend) error {
		c := k.next("t0")
		c.Spend, c.Limits = []store.DaySpend{d}, limits
		_, err := k.Store.Commit(k.ctx, c)
		return err
	}
	full := store.DayLimits{Tokens: 100}
	k.same("too much", errors.Is(grant(full, store.DaySpend{Day: day, GrantedTokens: 11}), store.ErrBudget), true)
	k.same("too dear", errors.Is(grant(store.DayLimits{Cost: 3}, store.DaySpend{Day: day, GrantedCost: 1}), store.ErrBudget), true)
	k.ok(grant(full, store.DaySpend{Day: day, Tokens: 500, GrantedTokens: -30})) // what was spent can't be refused
	k.same("after it", errors.Is(grant(full, store.DaySpend{Day: day, GrantedTokens: 1}), store.ErrBudget), true)
	k.ok(grant(full, store.DaySpend{Day: day, GrantedTokens: -1000}))
	k.ok(grant(full, store.DaySpend{Day: "2026-03-02", GrantedTokens: -5, GrantedCost: 7}))
	k.same("not below nothing", k.days(""), []store.DaySpend{{Day: day, Tokens: 500, GrantedCost: 3}, {Day: "2026-03-02", GrantedCost: 7}})
}
