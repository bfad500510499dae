package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
)

// chaosParts is how many files a bead writes, one after another.
const chaosParts = 10

// chaosGate is red for a bead that left a bad file or lacks one of its own.
const chaosGate = `for d in beads/*/; do
	[ -d "$d" ] || continue
	[ -e "${d}marker" ] || { echo "$d has no marker"; exit 1; }
	[ "$(ls "$d" | wc -l)" = 11 ] || { echo "$d is not whole"; exit 1; }
done
sleep 0.3
! ls bad-* 2>/dev/null`

// order is a bead that somebody asked for.
type order struct {
	n       int
	id      string // as acknowledged
	blocker string // id, "" for none
}

// appends reports whether a bead adds a line to the file that many change.
func (o *order) appends() bool { return o.n%4 == 0 }

func (o *order) title() string { return fmt.Sprintf("bead %d", o.n) }

// chaosPart is the content of a part of a bead: long enough to be torn.
func chaosPart(n, part int) string {
	var b bytes.Buffer
	for line := 1; line <= 100; line++ {
		fmt.Fprintf(&b, "bead %d part %d line %d\n", n, part, line)
	}
	return b.String()
}

// body is a script that works for some time, in small steps that it does not do
// twice, commits halfway, and goes on from whatever it finds.
func (c *chaos) body(o *order, pause time.Duration) string {
	// The flood goes past the script's own output, which is limited, to the agent's stderr.
	const script = `n=%d; d=beads/$n; flood='%s'
flood() {
	if [ -e "$flood" ] && mkdir "$flood.$(cat "$flood")" 2>/dev/null; then
		head -c 10000000 /dev/zero | tr '\0' '#' | fold -w 30000 > /proc/$PPID/fd/2
	fi
}
mkdir -p $d; rm -f part.tmp
i=0
while [ $i -lt %d ]; do
	i=$((i+1)); flood
	if [ ! -e $d/$i ]; then
		k=0; while [ $k -lt 100 ]; do k=$((k+1)); echo "bead $n part $i line $k"; done > part.tmp
		mv part.tmp $d/$i; sleep %.2f
	fi
	if [ $i = 5 ]; then git add -A; git diff --cached --quiet || git commit -q -m "half of bead $n"; fi
done
`
	text := fmt.Sprintf(script, o.n, c.flood, chaosParts, pause.Seconds())
	if o.appends() {
		text += "grep -qx \"bead $n\" list.txt || echo \"bead $n\" >> list.txt\n"
	}
	// The marker is the commit that must be in the target once.
	finish := "rm -f bad-$n\necho $n > $d/marker; git add -A\n" +
		"git log --format=%s | grep -qx \"marker $n\" || git commit -q --allow-empty -m \"marker $n\"\n"
	first := ""
	if o.n%7 == 3 { // a red gate first
		first = "```sh attempt=1\n" + text + "echo bad > bad-$n\n" + "echo $n > $d/marker\n```\n"
	}
	return first + "```sh\n" + text + finish + "```\n"
}

// order asks for the beads, spread over the time of faults, each until it is
// acknowledged, whatever happens to the answers.
func (c *chaos) order(ctx context.Context) error {
	random := c.random(1)
	apart := c.o.For * 3 / 4 / time.Duration(c.o.Beads)
	// Some agent is at work nearly all the time.
	pause := min(max(c.o.For/time.Duration(c.o.Beads*chaosParts), 200*time.Millisecond), 1500*time.Millisecond)
	begin := time.Now()
	var all sync.WaitGroup
	failed := make(chan error, c.o.Beads)
	for n := 1; n <= c.o.Beads; n++ {
		if err := wait(ctx, time.Until(begin.Add(time.Duration(n-1)*apart))); err != nil {
			return err
		}
		o := &order{n: n}
		c.mu.Lock()
		for older := n - 1; n%5 == 0 && o.blocker == "" && older >= n-3; older-- {
			o.blocker = c.work[older].id // "" while that is not acknowledged
		}
		c.work[n] = o
		c.mu.Unlock()
		seed := random.Uint64()
		all.Go(func() { failed <- c.place(ctx, o, rand.New(rand.NewPCG(seed, 0)), pause) })
	}
	all.Wait()
	for range c.o.Beads {
		if err := <-failed; err != nil {
			return err
		}
	}
	return nil
}

// place asks for one bead. Some requests are given up before their answer can
// arrive, some are sent once more after it.
func (c *chaos) place(ctx context.Context, o *order, random *rand.Rand, pause time.Duration) error {
	b := api.CreateBead{Rig: chaosRig, Title: o.title(), Body: c.body(o, pause)}
	if o.blocker != "" {
		b.BlockedBy = []string{o.blocker}
	}
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	key := fmt.Sprintf("chaos-%d-%d", c.o.Seed, o.n)
	again := random.IntN(3) == 0
	for try := 0; ; try++ {
		limit := askFor
		if try == 0 && random.IntN(3) == 0 {
			limit = between(random, time.Millisecond, 20*time.Millisecond)
		}
		id, final, err := c.post(ctx, key, text, limit)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case final:
			c.violation("bead %d was refused: %v", o.n, err)
			return nil
		case err != nil:
			if err := wait(ctx, 100*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		if o.id != "" && o.id != id {
			c.count(func(r *Chaos) { r.LostAcks++ })
			c.violation("bead %d was acknowledged as %s and, with the same key, as %s", o.n, o.id, id)
		}
		if o.id == "" {
			c.mu.Lock()
			o.id = id
			c.out.Beads++
			if try > 0 {
				c.out.Repeats++
			}
			c.mu.Unlock()
		}
		if !again {
			return nil
		}
		again = false
		c.count(func(r *Chaos) { r.Repeats++ })
		if err := wait(ctx, between(random, 0, 2*time.Second)); err != nil {
			return err
		}
	}
}

// post sends one creation; final says that there is no use in another try.
func (c *chaos) post(ctx context.Context, key string, body []byte, limit time.Duration) (id string, final bool, err error) {
	up, err := c.keeper.ready(ctx)
	if err != nil {
		return "", false, err
	}
	s := up.server
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/api/v1/towns/"+chaosTown+"/beads", bytes.NewReader(body))
	if err != nil {
		return "", false, err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderIdempotencyKey, key)
	res, err := s.http.Do(req)
	if err != nil {
		return "", false, err
	}
	defer func() {
		_ = res.Body.Close() // read to its end
	}()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return "", false, err
	}
	if res.StatusCode/100 != 2 {
		final := res.StatusCode/100 == 4 && res.StatusCode != http.StatusTooManyRequests && res.StatusCode != http.StatusRequestTimeout
		return "", final, fmt.Errorf("status %d: %.300s", res.StatusCode, text)
	}
	var b api.Bead
	if err := json.Unmarshal(text, &b); err != nil {
		return "", true, err
	}
	return b.ID, false, nil
}

// watch notes what the server says while everything goes wrong: that is
// acknowledged, too.
func (c *chaos) watch(ctx context.Context) {
	for wait(ctx, 300*time.Millisecond) == nil {
		var beads []api.Bead
		err := c.ask(ctx, func(ctx context.Context, srv *client.Client) (err error) {
			beads, err = srv.Beads(ctx, chaosTown, client.BeadQuery{})
			return err
		})
		if err == nil {
			c.look(beads)
		}
	}
}

// look compares what the server says with what it said before.
func (c *chaos) look(beads []api.Bead) {
	for _, b := range beads {
		c.mu.Lock()
		was, closed := c.closed[b.ID]
		c.mu.Unlock()
		if closed && (b.Status != "closed" || b.Commit != was) {
			c.violation("%s was closed with %s and is %s with %s", b.ID, was, b.Status, b.Commit)
		}
		if b.Commit == "" || b.Status != "in_review" && b.Status != "closed" {
			continue
		}
		c.mu.Lock()
		if c.seen[b.ID] == nil {
			c.seen[b.ID] = map[int]string{}
		}
		before := c.seen[b.ID][b.Attempt]
		c.seen[b.ID][b.Attempt] = b.Commit
		if b.Status == "closed" {
			c.closed[b.ID] = b.Commit
		}
		c.mu.Unlock()
		if before != "" && before != b.Commit {
			c.violation("%s: the commit %s was accepted in attempt %d, and then %s", b.ID, before, b.Attempt, b.Commit)
		}
	}
}
