//go:build e2e

package e2e

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gastown/internal/api"
	boxrecord "gastown/internal/sandbox/record"
)

// needsBoxes skips where bubblewrap can't make a box, and one in it.
func needsBoxes(t *testing.T) {
	t.Helper()
	box := []string{"bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"}
	cmd := exec.CommandContext(t.Context(), box[0], append(box[1:], "true")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: there can be no box of bubblewrap: %v %s", err, out)
	}
}

// boxAttack is what an agent's shell tries in a box. VICTIM is the bead of another
// run, which is at work; DATA, PORT and DISK are the server's.
const boxAttack = `
opens() { (: <"$1") 2>/dev/null; }
lists() { ls "$1/" >/dev/null 2>&1; }
foreign() { for p in /proc/[0-9]*; do n=$(readlink $p/ns/pid) || continue; [ "$n" = "$(readlink /proc/self/ns/pid)" ] || return 0; done; return 1; }
named() { for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline 2>/dev/null | grep -qx "$1" && return 0; done; return 1; }
marked() { for p in /proc/[0-9]*; do tr '\0' '\n' <$p/environ 2>/dev/null | grep -q "^$1=" && return 0; done; return 1; }
many() { [ "$(ls -d /proc/[0-9]* | wc -l)" -gt 12 ]; }
try() { what=$1; shift; if "$@" >/dev/null 2>&1; then echo "reached $what"; else echo "refused $what"; fi >>reach.txt; }
url=$(git config remote.origin.url); run=${url%/*}; run=${run##*/}
: >reach.txt
[ -n "$run" ] && echo "began" >>reach.txt
try "control: own environment" opens /proc/$$/environ
try "control: own memory" opens /proc/$$/mem
try "control: own home" touch "$HOME/x" "$TMPDIR/x" /tmp/x
try "control: a process of its own" named sandbox-init
try "control: the mark of its own run" marked GASTOWN_RUN
try "control: the rig's objects" lists DISK/rigs/web.git/objects
try "control: own endpoint" git ls-remote "$url"
try "processes: of others" foreign
try "processes: the runner" named runner
try "processes: of the other run" marked PLANTED
try "processes: the sandbox's" marked GASTOWN_SANDBOX
try "processes: too many" many
for d in outbox unsent logs trash tmp home spare gates; do try "files: $d" lists DISK/$d; done
for d in tree git home tmp; do try "files of the other run: $d" lists DISK/work/web/VICTIM/$d; done
try "writing into the rig's repository" touch DISK/rigs/web.git/objects/x
try "configuring the rig's repository" git --git-dir=DISK/rigs/web.git config a.b c
try "moving its own worktree" mv ../tree ../x
try "the server's keys" lists DATA/vault
try "the server's repositories" lists DATA/hub
try "the server's token" opens DATA/admin.token
try "the server's socket" lists /run/gastown
try "the server's port" bash -c 'exec 3<>/dev/tcp/127.0.0.1/PORT'
try "the user's home" opens USERHOME/key
try "another run's endpoint" git ls-remote "$(echo "$url" | sed "s|$run|VICTIM.1|")"
try "the runner's endpoint" git ls-remote "$(echo "$url" | sed "s|$run|-|")"
touch DISK/beside ../beside
`

// boxChecks is a gate: it must not reach more than agents do.
const boxChecks = `
no() { if "$@" >/dev/null 2>&1; then echo "reached: $*"; exit 1; fi; }
touch "$HOME/x" "$TMPDIR/x"
disk=${HOME%/gates/*}
for d in $disk/outbox $disk/work /run/gastown $disk/../..; do no ls "$d/outbox" "$d/web" "$d/gen.json" "$d/server"; no test -e "$d/hello"; done
named() { for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline 2>/dev/null | grep -qx "$1" && return 0; done; return 1; }
named sandbox-init
no named runner
`

// Agents and gates in a box of bubblewrap don't reach the runner, the server, this
// machine or other runs, and no secret of the server is anywhere in it.
func TestBoxesHoldNoSecret(t *testing.T) {
	needsBoxes(t)
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: looking into the memory of another user's processes needs root")
	}
	t.Parallel()
	w := newWorld(t, builtProgram(t), "sandbox.grace=5m")
	home := filepath.Join(w.root, "person")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	w.write(filepath.Join(home, "key"), "private")
	w.args, w.env = append(w.args, "--isolation", "bwrap"), append(w.env, "HOME="+home)
	w.start()
	w.settlePrivately(api.Gate{Name: "apart", Command: boxChecks})
	canary := "canary-" + rand.Text()
	secrets := w.secrets()

	victim := w.sling("A run at work", "export PLANTED="+canary+"\necho \"$PLANTED\"\nsh -c 'while [ ! -e \"$TMPDIR/release\" ]; do sleep 0.05; done'\necho done > victim.txt")
	w.spawned(victim, 0)
	w.said(victim, canary)
	c := w.boxed()
	_, port, _ := strings.Cut(strings.TrimPrefix(w.server.url, "http://"), ":")
	attacker := w.sling("A hostile one", strings.NewReplacer("VICTIM", victim, "DATA", w.data, "PORT", port, "DISK", c.disk, "USERHOME", home).Replace(boxAttack))
	w.closed(attacker)
	w.reached(attacker, "began", 30)
	for _, path := range []string{filepath.Join(c.disk, "beside"), filepath.Join(c.disk, "work", "web", attacker, "beside")} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("an agent wrote %s", path)
		}
	}

	c.holdsNone(secrets, map[string]string{"the secret of a run": c.runSecret(victim), "a planted text": canary, "the address of the server": w.server.url})
	w.write(filepath.Join(c.disk, "work", "web", victim, "tmp", "release"), "")
	w.closed(victim)
}

// boxed is the town's box: what descends from the process that the driver knows.
func (w *world) boxed() *box {
	w.t.Helper()
	path := w.records()[0]
	dir := filepath.Dir(path)
	raw, err := os.ReadFile(path)
	var rec boxrecord.Record
	if err == nil {
		err = json.Unmarshal(raw, &rec)
	}
	if err != nil || !rec.Box {
		w.t.Fatalf("the sandbox is no box: %+v, %v", rec, err)
	}
	c := &box{w: w, disk: filepath.Join(dir, "disk"), pids: map[int]string{}}
	c.told = func() map[string]string {
		log, err := os.ReadFile(filepath.Join(dir, "runner.log"))
		if err != nil {
			w.t.Error(err)
		}
		return map[string]string{"the log of the sandbox": string(log)}
	}
	for wave := []int{rec.PID}; len(wave) > 0; {
		var next []int
		for _, pid := range wave {
			command, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if err != nil {
				continue // gone
			}
			c.pids[pid] = strings.ReplaceAll(string(command), "\x00", " ")
			if strings.HasPrefix(c.pids[pid], w.program+" runner ") {
				c.runner = pid
			}
			next = append(next, children(pid)...)
		}
		wave = next
	}
	if c.runner == 0 || len(c.pids) < 5 {
		w.t.Fatalf("the processes of the box are %v", c.pids)
	}
	return c
}

// children are the processes that a process has started.
func children(pid int) (found []int) {
	tasks, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children") // the pattern is good
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		if err != nil {
			continue // gone
		}
		for _, f := range strings.Fields(string(raw)) {
			if child, err := strconv.Atoi(f); err == nil {
				found = append(found, child)
			}
		}
	}
	return found
}

// The demo runs in a box without a network, from sling to merge to sleep.
func TestBoxesRunTheDemo(t *testing.T) {
	needsBoxes(t)
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	cmd := exec.CommandContext(t.Context(), builtProgram(t), "demo", "--isolation", "bwrap", "--dir", dir, "--limit", "5m")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "is asleep after") {
		t.Fatalf("the demo: %v\n%s", err, out)
	}
}

// A box with all that runs in it outlives killed servers; the last one asks its
// runner to end.
func TestBoxesOutliveTheServer(t *testing.T) {
	needsBoxes(t)
	t.Parallel()
	w := newWorld(t, builtProgram(t), "sandbox.grace=1s", "lease=9s")
	w.args = append(w.args, "--isolation", "bwrap")
	w.start()
	w.settle()
	id := w.sling("Long work", "while [ ! -e \"$TMPDIR/release\" ]; do sleep 0.05; done\necho done > work.txt")
	w.spawned(id, 0)
	first := w.record()
	for range 2 {
		w.kill()
		began := time.Now()
		w.start()
		w.heard(began)
		if now := w.record(); now != first || !w.alive(first.PID) {
			t.Fatalf("the sandbox was %+v and is %+v, alive %v", first, now, w.alive(first.PID))
		}
	}
	dir := filepath.Dir(w.records()[0])
	w.write(filepath.Join(dir, "disk", "work", "web", id, "tmp", "release"), "")
	if b := w.closed(id); len(b.Runs) != 1 || len(b.Failures) != 0 {
		t.Errorf("the bead had runs %+v and failures %+v", b.Runs, b.Failures)
	}
	w.asleep()
	if w.alive(first.PID) {
		t.Error("the box of a sleeping town lives")
	}
	log, err := os.ReadFile(filepath.Join(dir, "runner.log"))
	if err != nil || !strings.Contains(string(log), "the runner ends") {
		t.Errorf("the runner was not asked to end: %v\n%s", err, log)
	}
}

// records are the files that say which sandboxes there are.
func (w *world) records() []string {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.data, "sandboxes", "*", boxrecord.File))
	if err != nil || len(found) != 1 {
		w.t.Fatalf("the records of sandboxes are %v, %v", found, err)
	}
	return found
}
