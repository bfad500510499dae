//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// maxMissing is how many numbered files an interruption may cost at most: with
// checkpoints every 45 seconds and a file a second that is the interval and 15
// seconds for the checkpoint itself. Here everything happens five times as fast.
const (
	maxMissing     = 60
	numberEvery    = time.Second / 5
	numberInterval = 45 * time.Second / 5
	numberLines    = 40
)

// numbered is a bead that renames a numbered file into place again and again. At
// its begin it tells what it found, and which of it is not whole.
func (w *world) numbered() string {
	return `root='` + w.root + `'
run=$(($(ls "$root" | grep -c '^begun-' || true) + 1))
last=0
for f in num-*; do
	[ -e "$f" ] || continue
	n=${f#num-}
	state=whole
	[ "$(wc -l < "$f")" = ` + strconv.Itoa(numberLines) + ` ] && [ "$(tail -n 1 "$f")" = "line ` + strconv.Itoa(numberLines) + ` of $n" ] || state=torn
	echo "$n $state"
	[ "$n" -le "$last" ] || last=$n
done > "$root/found"
mv "$root/found" "$root/begun-$run"
while [ ! -e '` + w.release + `' ]; do
	last=$((last+1)); i=0
	while [ $i -lt ` + strconv.Itoa(numberLines) + ` ]; do i=$((i+1)); echo "line $i of $last"; done > unfinished
	mv unfinished num-$last
	echo $last >> "$root/written-$run"
	sleep ` + fmt.Sprintf("%.2f", numberEvery.Seconds()) + `
done
rm -f unfinished`
}

// written is the last number that a run renamed into place.
func (w *world) written(run int) (last int) {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.root, fmt.Sprintf("written-%d", run)))
	if err != nil {
		w.t.Fatal(err)
	}
	lines := strings.Fields(string(text))
	if last, err = strconv.Atoi(lines[len(lines)-1]); err != nil {
		w.t.Fatal(err)
	}
	return last
}

// begun waits for the begin of a run and returns which files it found: true for
// those that are whole.
func (w *world) begun(run int) map[int]bool {
	w.t.Helper()
	var text []byte
	w.until(fmt.Sprintf("run %d", run), func(context.Context) (err error) {
		text, err = os.ReadFile(filepath.Join(w.root, fmt.Sprintf("begun-%d", run)))
		return err
	})
	found := map[int]bool{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		number, state, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(number)
		if err != nil {
			w.t.Fatal(err)
		}
		found[n] = state == "whole"
	}
	return found
}

// testNumbers interrupts, at a random moment, a bead that writes a numbered file
// after another: the next run finds all but the newest, each of them whole.
func testNumbers(t *testing.T, program string) {
	seed := seedOf(t)
	for i, c := range []struct {
		name      string
		interrupt func(*world, int) error // agent's pid
	}{
		{"the agent is killed", func(_ *world, agent int) error { return syscall.Kill(agent, syscall.SIGKILL) }},
		{"the runner is killed", func(w *world, _ int) error { return syscall.Kill(w.record().PID, syscall.SIGKILL) }},
		{"the sandbox is lost with its disk", func(w *world, _ int) error {
			return errors.Join(syscall.Kill(w.record().PID, syscall.SIGKILL),
				os.Rename(filepath.Join(w.data, "sandboxes", w.town, "disk"), filepath.Join(w.root, "lost")))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			w := newWorld(t, program, "checkpoint.interval="+numberInterval.String())
			w.start()
			w.settle()
			id := w.sling("Numbers", w.numbered())
			w.begun(1)
			begun := time.Now()
			run := w.spawned(id, 0)
			// From the first checkpoint on there is something to lose.
			pass(numberInterval + time.Duration(random.Int64N(int64(3*numberInterval/2))))
			lasted := time.Since(begun)
			if err := c.interrupt(w, run.PID); err != nil {
				t.Fatal(err)
			}
			found, last := w.begun(2), w.written(1)
			missing := 0
			for n := 1; n <= last; n++ {
				if whole, ok := found[n]; !ok {
					missing++
				} else if !whole {
					t.Errorf("the file %d is torn", n)
				}
			}
			t.Logf("%d files were written, %d are missing", last, missing)
			// Where files are late, checkpoints may be, and how many are missing says nothing.
			inTime := last >= int(lasted/numberEvery)*2/3
			if inTime && missing > maxMissing || last < 1 {
				t.Errorf("of %d files %d are missing, at most %d may be", last, missing, maxMissing)
			}
			w.write(w.release, "")
			b := w.closed(id)
			if b.Charged != 0 || b.Attempt != 1 || len(b.Runs) != 2 {
				t.Errorf("attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
			}
			w.mergedOnce(b)
			w.quiet()
		})
	}
}
