//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/vault"
)

// finds is shell that finds the runner, and a process of another run.
const finds = `
me=$(id -u); runner=; victim=
for p in /proc/[0-9]*; do
	u=$(awk '/^Uid:/ { print $2 }' $p/status 2>/dev/null) || continue
	case "$(tr '\0' ' ' <$p/cmdline 2>/dev/null)" in "/usr/local/bin/gastown runner "*) runner=${p#/proc/};; esac
	if [ "${u:-0}" -ge 10001 ] && [ "$u" != "$me" ]; then victim=${p#/proc/}; fi
done
opens() { (: <"$1") 2>/dev/null; }
lists() { ls "$1/" >/dev/null 2>&1; }
`

// attack is what an agent's shell tries. VICTIM is the bead of another run, which
// is at work. Each line of reach.txt says what came of one try.
const attack = finds + `
try() { what=$1; shift; if "$@" >/dev/null 2>&1; then echo "reached $what"; else echo "refused $what"; fi >>reach.txt; }
url=$(git config remote.origin.url); run=${url%/*}; run=${run##*/}
: >reach.txt
[ -n "$runner" ] && [ -n "$victim" ] && echo "found the others" >>reach.txt
try "control: own environment" opens /proc/$$/environ
try "control: own memory" opens /proc/$$/mem
try "control: own open files" lists /proc/$$/fd
try "control: own home" touch "$HOME/x" "$TMPDIR/x"
try "control: the rig's objects" lists /town/rigs/web.git/objects
try "control: own endpoint" git ls-remote "$url"
for who in runner victim; do
	pid=$runner; [ $who = runner ] || pid=$victim
	for f in environ mem maps auxv; do try "$who: $f" opens /proc/$pid/$f; done
	for d in fd cwd root map_files; do try "$who: $d" lists /proc/$pid/$d; done
	try "$who: a signal" kill -0 $pid
done
try "the first process: a signal" kill -0 1
try "the first process: environment" opens /proc/1/environ
for d in outbox unsent logs trash tmp home spare/web/git; do try "files: $d" lists /town/$d; done
for d in tree git home tmp; do try "files of the other run: $d" lists /town/work/web/VICTIM/$d; done
try "writing beside the runner's files" touch /town/x
try "writing into the rig's repository" touch /town/rigs/web.git/objects/x /town/rigs/web.git/x
try "configuring the rig's repository" git --git-dir=/town/rigs/web.git config a.b c
try "adding to its own room" touch ../x
try "moving its own worktree" mv ../tree ../x
try "the server's socket" test -S /run/gastown/server/runner.sock
try "the way to the server" lists /run/gastown
try "another run's endpoint" git ls-remote "$(echo "$url" | sed "s|$run|VICTIM.1|")"
try "the runner's endpoint" git ls-remote "$(echo "$url" | sed "s|$run|-|")"
# Only the runner's git looks at this file now, for a checkpoint.
git config filter.spy.clean 'id -u >>"$TMPDIR/ran"; cat'
echo "*.spy filter=spy" >.gitattributes
echo x >a.spy
until [ -s "$TMPDIR/ran" ]; do sleep 0.05; done
while read -r who; do [ "$who" = "$me" ] || echo "reached the user $who by the configuration of git" >>reach.txt; done <"$TMPDIR/ran"
try "killing the runner" kill -9 $runner
try "killing the other run" kill -9 $victim
`

// checks is a gate: it must not reach more than agents do.
const checks = finds + `
no() { if "$@"; then echo "reached: $*"; exit 1; fi; }
[ "$me" -ge 10001 ] && [ -n "$runner" ] && touch "$HOME/x" "$TMPDIR/x"
for f in environ mem; do no opens /proc/$runner/$f; [ -z "$victim" ] || no opens /proc/$victim/$f; done
for d in /town/outbox /town/work/web/*/tree /run/gastown /proc/$runner/fd; do no lists "$d"; done
`

// Agents and gates in a container don't reach the runner, the server or other
// runs, and no secret of the server is anywhere in it. That the searches find what
// is there is shown by what may be there: the secret of a run, and a planted text.
func TestContainersHoldNoSecret(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: looking into the memory of a container's processes needs root")
	}
	w := newContainers(t, "checkpoint.interval=300ms")
	w.settlePrivately(api.Gate{Name: "apart", Command: checks})
	canary := "canary-" + rand.Text()
	secrets := w.secrets()

	victim := w.sling("A run at work", "export PLANTED="+canary+"\necho \"$PLANTED\"\nsh -c 'while [ ! -e \"$TMPDIR/release\" ]; do sleep 0.05; done'\necho done > victim.txt")
	w.spawned(victim, 0)
	w.said(victim, canary)
	attacker := w.sling("A hostile one", strings.ReplaceAll(attack, "VICTIM", victim))
	w.closed(attacker)
	w.reached(attacker, "found the others", 40)

	c := w.container()
	own := c.runSecret(victim)
	control := map[string]string{"the secret of a run": own, "a planted text": canary, "the address of the server": w.server.url}
	logins := w.private.logins.Load()
	c.holdsNone(secrets, control)
	w.write(filepath.Join(c.disk, "work", "web", victim, "tmp", "release"), "")
	w.closed(victim)
	if logins == 0 || w.private.logins.Load() <= logins {
		t.Errorf("the rig's credential was not in use: %d logins", logins)
	}
}

// newContainers is a world whose server runs sandboxes in containers.
func newContainers(t *testing.T, settings ...string) *world {
	t.Helper()
	if os.Getenv("GASTOWN_TEST_DOCKER") == "" {
		t.Skip("NOT TESTED: there is no container engine; make docker starts one")
	}
	w := newWorld(t, builtProgram(t), append(settings, "sandbox.grace=5m")...)
	w.args = append(w.args, "--sandbox", "docker")
	w.env = append(w.env, "DOCKER_HOST="+os.Getenv("DOCKER_HOST"))
	w.start()
	t.Cleanup(func() {
		if w.town != "" {
			w.removeContainers()
		}
	})
	return w
}

// The next run of a bead has another user, and goes on with the files, also those
// in directories that its agent closed, and the home of the one before.
func TestContainersThatAreKilledLoseNothingOfARun(t *testing.T) {
	w := newContainers(t, "checkpoint.interval=300ms")
	w.settle()
	id := w.sling("Half of it", `if [ -e "$HOME/mark" ]; then
	cp half.txt resumed.txt
else
	mkdir -m 700 closed
	echo deep >closed/deep.txt
	touch "$HOME/mark"
	echo half >half.txt
	while :; do sleep 0.05; done
fi`)
	hub := filepath.Join(w.data, "hub", w.town, "web.git")
	w.until("a checkpoint with all files", func(ctx context.Context) error {
		b, err := w.api.Bead(ctx, id)
		if err != nil || b.Checkpoint == "" {
			return errors.Join(err, errors.New("there is none"))
		}
		if names := w.git("--git-dir", hub, "ls-tree", "-r", "--name-only", b.Checkpoint); !strings.Contains(names, "closed/deep.txt") || !strings.Contains(names, "half.txt") {
			return fmt.Errorf("the checkpoint has %q", names)
		}
		return nil
	})
	w.docker("kill", w.docker("ps", "--format", "{{.Names}}", "--filter", "label=gastown.town="+w.town))
	b := w.closed(id)
	if b.Charged != 0 {
		t.Errorf("%d charged: %+v", b.Charged, b.Failures)
	}
	for file, want := range map[string]string{"resumed.txt": "half", "closed/deep.txt": "deep"} {
		if got := w.git("--git-dir="+w.upstream, "show", "main:"+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if s := w.sandbox(); s.Generation != 2 {
		t.Errorf("the sandbox is %+v", s)
	}
}

// secrets are all that the server must keep to itself. A provider's key is made
// for it; the credential is the one that the rig is reached with.
func (w *world) secrets() map[string]string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	key := "sk-" + rand.Text()
	if _, err := w.api.AddProvider(ctx, api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: "http://127.0.0.1:1/v1", Key: key}); err != nil {
		w.t.Fatal(err)
	}
	v, err := vault.Open(filepath.Join(w.data, "vault"))
	if err != nil {
		w.t.Fatal(err)
	}
	names, err := v.List("")
	if err != nil || len(names) < 3 {
		w.t.Fatalf("the vault has %v, %v", names, err)
	}
	// In the vault these two are part of a text that says more.
	out := map[string]string{"the admin token": w.token(), "the key of a provider": key, "the credential of the rig": w.private.token}
	for _, name := range names {
		value, err := v.Get(name)
		if err != nil {
			w.t.Fatal(err)
		}
		out[name+" of the vault"] = strings.TrimSpace(string(value))
	}
	keys, err := os.ReadFile(vault.DefaultKeyFile(filepath.Join(w.data, "vault")))
	if err = errors.Join(err, v.Close()); err != nil {
		w.t.Fatal(err)
	}
	for i, word := range strings.Fields(string(keys)) {
		if len(word) >= 16 {
			out[fmt.Sprintf("word %d of the vault's key file", i)] = word
		}
	}
	return out
}

// variants are the texts to look for: as they are and as they are written elsewhere.
func variants(all ...map[string]string) map[string][][]byte {
	out := map[string][][]byte{}
	for _, m := range all {
		for name, s := range m {
			b := []byte(s)
			out[name] = [][]byte{b, []byte(hex.EncodeToString(b)), []byte(base64.RawStdEncoding.EncodeToString(b)), []byte(base64.RawURLEncoding.EncodeToString(b))}
		}
	}
	return out
}

// said waits until a bead's agent has said something.
func (w *world) said(bead, text string) {
	w.t.Helper()
	w.until(bead+" to say what it was told", func(context.Context) error {
		if !bytes.Contains(w.transcript(bead), []byte(text)) {
			return errors.New("it has not")
		}
		return nil
	})
}

func (w *world) transcript(bead string) []byte {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	items, err := w.api.Transcript(ctx, bead, 0, 0)
	var b []byte
	if err == nil {
		b, err = json.Marshal(items)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// reached reads what came of an attack in what was merged: a line that must be
// there, and at least so many lines in all.
func (w *world) reached(bead, must string, least int) {
	w.t.Helper()
	text := w.git("--git-dir="+w.upstream, "show", "main:reach.txt")
	lines := strings.Split(text, "\n")
	if !slices.Contains(lines, must) || len(lines) < least {
		w.t.Fatalf("%s did not try all:\n%s", bead, text)
	}
	for _, line := range lines {
		verdict, what, _ := strings.Cut(line, " ")
		if mine := strings.HasPrefix(what, "control: "); verdict != "found" && (verdict == "reached") != mine {
			w.t.Errorf("%s", line)
		}
	}
}

// box is a town's container, or its box of bubblewrap, as root of this machine sees it.
type box struct {
	w      *world
	disk   string                   // the volume, or the directory
	told   func() map[string]string // what others know of it
	pids   map[int]string           // command lines, arguments parted by spaces
	runner int
}

func (w *world) docker(args ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = w.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (w *world) removeContainers() {
	if ids := strings.Fields(w.docker("ps", "-aq", "--filter", "label=gastown.town="+w.town)); len(ids) > 0 {
		w.docker(append([]string{"rm", "-f"}, ids...)...)
	}
	if disks := strings.Fields(w.docker("volume", "ls", "-q", "--filter", "label=gastown.town="+w.town)); len(disks) > 0 {
		w.docker(append([]string{"volume", "rm"}, disks...)...)
	}
}

func (w *world) container() *box {
	w.t.Helper()
	c := &box{w: w, pids: map[int]string{}}
	name := w.docker("ps", "--format", "{{.Names}}", "--filter", "label=gastown.town="+w.town)
	c.disk = w.docker("volume", "inspect", "--format", "{{.Mountpoint}}", w.docker("volume", "ls", "-q", "--filter", "label=gastown.town="+w.town))
	c.told = func() map[string]string {
		return map[string]string{"the log of the container": w.docker("logs", name), "what the engine knows of the container": w.docker("inspect", name)}
	}
	first := w.docker("inspect", "--format", "{{.State.Pid}}", name)
	space, err := os.Readlink("/proc/" + first + "/ns/pid")
	if err != nil {
		w.t.Fatal(err)
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, dir := range dirs {
		if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != space {
			continue // gone, or elsewhere
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		command, rerr := os.ReadFile(dir + "/cmdline")
		if err != nil || rerr != nil {
			continue
		}
		c.pids[pid] = strings.ReplaceAll(string(command), "\x00", " ")
		if strings.HasPrefix(c.pids[pid], "/usr/local/bin/gastown runner ") {
			c.runner = pid
		}
	}
	if c.runner == 0 || len(c.pids) < 4 {
		w.t.Fatalf("the processes of the container are %v", c.pids)
	}
	return c
}

// runSecret is what the git of a run shows to the runner.
func (c *box) runSecret(bead string) string {
	c.w.t.Helper()
	config, err := os.ReadFile(filepath.Join(c.disk, "work", "web", bead, "git", "config"))
	if err != nil {
		c.w.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(config), "Bearer ")
	secret, _, ok := strings.Cut(rest, `"`)
	if !ok || len(secret) < 20 {
		c.w.t.Fatalf("there is no secret in %s", config)
	}
	return secret
}

// holdsNone checks that no secret is found, and that the search finds the controls.
func (c *box) holdsNone(secrets, control map[string]string) {
	c.w.t.Helper()
	found := c.search(variants(secrets, control))
	for place, names := range found {
		for name := range names {
			if _, ok := control[name]; !ok {
				c.w.t.Errorf("%s is in %s", name, place)
			}
		}
	}
	for place, name := range map[string]string{"the disk": "the secret of a run", "the memory of the runner": "the secret of a run",
		"the environment of a process": "a planted text", "the transcripts": "a planted text", "the log of the server": "the address of the server"} {
		if !found[place][name] {
			c.w.t.Errorf("the search finds %s not in %s, where it is: it shows nothing", name, place)
		}
	}
}

// search returns which texts are where.
func (c *box) search(texts map[string][][]byte) map[string]map[string]bool {
	c.w.t.Helper()
	found := map[string]map[string]bool{}
	look := func(place string, r io.Reader) {
		names, err := contains(r, texts)
		if err != nil {
			c.w.t.Errorf("searching %s: %v", place, err)
		}
		if found[place] == nil {
			found[place] = map[string]bool{}
		}
		maps.Copy(found[place], names)
	}
	for pid, command := range c.pids {
		look("the arguments of a process", strings.NewReader(command))
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err == nil { // else it is gone
			look("the environment of a process", bytes.NewReader(env))
		}
		place := "the memory of a process"
		if pid == c.runner {
			place = "the memory of the runner"
		}
		if n := eachRegion(pid, func(r io.Reader) { look(place, r) }); pid == c.runner && n < 1<<20 {
			c.w.t.Errorf("only %d bytes of the runner's memory could be read", n)
		}
	}
	err := filepath.WalkDir(c.disk, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the runner removed it
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		look("the disk", io.MultiReader(strings.NewReader(path+"\n"), f))
		return f.Close()
	})
	if err != nil {
		c.w.t.Error(err)
	}
	for place, text := range c.told() {
		look(place, strings.NewReader(text))
	}
	log, err := os.ReadFile(filepath.Join(c.w.root, "server.log"))
	if err != nil {
		c.w.t.Error(err)
	}
	look("the log of the server", bytes.NewReader(log))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	beads, err := c.w.api.Beads(ctx, "acme", client.BeadQuery{})
	if err != nil {
		c.w.t.Error(err)
	}
	for _, b := range beads {
		look("the transcripts", bytes.NewReader(c.w.transcript(b.ID)))
	}
	return found
}

// eachRegion reads the memory of a process, as a core dump would have it, and
// returns how much that was.
func eachRegion(pid int, look func(io.Reader)) (total int64) {
	regions, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0 // gone
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0
	}
	defer mem.Close()
	for line := range strings.Lines(string(regions)) {
		f := strings.Fields(line)
		from, to, _ := strings.Cut(f[0], "-")
		begin, err1 := strconv.ParseInt(from, 16, 64)
		end, err2 := strconv.ParseInt(to, 16, 64)
		if err1 != nil || err2 != nil || f[1][0] != 'r' || strings.Contains(line, "[v") {
			continue // not to be read, or the kernel's
		}
		r := &counted{Reader: io.NewSectionReader(mem, begin, end-begin)}
		look(r)
		total += r.n
	}
	return total
}

// counted counts, and ends where a region can't be read further.
type counted struct {
	io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	if err != nil {
		err = io.EOF
	}
	return n, err
}

// contains returns the names of the texts that r contains.
func contains(r io.Reader, texts map[string][][]byte) (map[string]bool, error) {
	const chunk, overlap = 1 << 20, 16 << 10
	found := map[string]bool{}
	buf := make([]byte, 0, chunk+overlap)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for name, forms := range texts {
			for _, b := range forms {
				if !found[name] && bytes.Contains(buf, b) {
					found[name] = true
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		keep := copy(buf[:overlap], buf[len(buf)-overlap:])
		buf = buf[:keep]
	}
}
