package lab

import (
	"strings"
	"testing"
	"time"

	"gastown/internal/agent/scripted"
	"gastown/internal/api"
)

func newChaos() *chaos {
	return &chaos{o: ChaosOptions{Seed: 7, For: time.Minute}, flood: "/tmp/flood", work: map[int]*order{}, seen: map[string]map[int]string{},
		closed: map[string]string{}, bad: map[string]bool{}}
}

func TestTheScriptsOfChaosAreBlocksOfTheScriptedAgent(t *testing.T) {
	t.Parallel()
	c := newChaos()
	for n, attempts := range map[int]string{1: "done", 3: "bad-3", 4: "list.txt"} {
		blocks, err := scripted.Blocks(c.body(&order{n: n}, time.Second))
		if err != nil {
			t.Fatal(err)
		}
		first, ok := scripted.Choose(blocks, 1, 0)
		second, ok2 := scripted.Choose(blocks, 2, 0)
		if !ok || !ok2 || !strings.Contains(second.Script, "marker") {
			t.Fatalf("bead %d has no block for two attempts", n)
		}
		if n == 3 && (!strings.Contains(first.Script, "> bad-$n") || strings.Contains(second.Script, "> bad-$n")) {
			t.Errorf("bead 3 should be red first, then green")
		}
		if n == 4 && !strings.Contains(first.Script, attempts) {
			t.Errorf("bead 4 should change the common file")
		}
	}
}

func TestEveryRoundHasEachKill(t *testing.T) {
	t.Parallel()
	c := newChaos()
	slow := map[string]bool{}
	a, b := c.random(2), c.random(2)
	for n := range 5 {
		one, other := c.round(a, n), c.round(b, n)
		kills := 0
		for i, f := range one {
			if f.name != other[i].name {
				t.Errorf("the same seed chose %q and %q", f.name, other[i].name)
			}
			if strings.HasPrefix(f.name, "kill ") {
				kills++
			} else {
				slow[f.name] = true
			}
		}
		if kills != 3 || len(one) != 4 {
			t.Errorf("round %d has %d kills of %d faults", n, kills, len(one))
		}
	}
	if len(slow) != 5 {
		t.Errorf("five rounds have the slow faults %v", slow)
	}
}

func TestNoMoreThanThreeSandboxesInARowAreTakenAway(t *testing.T) {
	t.Parallel()
	c := newChaos()
	for i := range maxLosses {
		if !c.mayLose() {
			t.Fatalf("loss %d is refused", i+1)
		}
		c.lost()
	}
	if c.mayLose() {
		t.Error("a fourth is allowed though nobody finished anything")
	}
	c.look([]api.Bead{{ID: "web-aaaaa", Status: "in_review", Commit: "c", Attempt: 1}})
	if !c.mayLose() {
		t.Error("an accepted commit is no progress")
	}
}

func TestWhatTheServerTakesBackIsAViolation(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name          string
		before, after api.Bead
		want          string
	}{
		{"a closed bead opens again", api.Bead{Status: "closed", Commit: "c", Attempt: 1}, api.Bead{Status: "open", Attempt: 2}, "was closed"},
		{"an accepted commit is exchanged", api.Bead{Status: "in_review", Commit: "c", Attempt: 1}, api.Bead{Status: "in_review", Commit: "d", Attempt: 1}, "was accepted"},
		{"a bead is done again after a conflict", api.Bead{Status: "in_review", Commit: "c", Attempt: 1}, api.Bead{Status: "in_review", Commit: "d", Attempt: 2}, ""},
	} {
		c := newChaos()
		for _, b := range []api.Bead{k.before, k.after} {
			b.ID = "web-aaaaa"
			c.look([]api.Bead{b})
		}
		got := strings.Join(c.result().Violations, "\n")
		if (k.want == "") != (got == "") || !strings.Contains(got, k.want) {
			t.Errorf("%s: %q, want %q", k.name, got, k.want)
		}
	}
}

func TestAcknowledgedBeadsThatAreMissingOrDoubleAreLost(t *testing.T) {
	t.Parallel()
	c := newChaos()
	for n, id := range map[int]string{1: "web-aaaaa", 2: "web-bbbbb", 3: "web-ccccc", 4: "web-ddddd", 5: "web-eeeee"} {
		c.work[n] = &order{n: n, id: id}
	}
	c.work[5].blocker = "web-ddddd"
	c.checkAcks([]api.Bead{{ID: "web-aaaaa", Title: "bead 1"}, {ID: "web-bbbbb", Title: "bead 2"}, {ID: "web-bbbb2", Title: "bead 2"},
		{ID: "web-other", Title: "bead 3"}, {ID: "web-eeeee", Title: "bead 5"}})
	if r := c.result(); r.LostAcks != 4 || len(r.Violations) != 4 {
		t.Errorf("%d are lost: %q", r.LostAcks, r.Violations)
	}
}
