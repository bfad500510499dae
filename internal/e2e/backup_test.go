//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// TestBackups has backups taken while work goes on, and restored onto other
// machines and under running servers.
func TestBackups(t *testing.T) {
	program := builtProgram(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, string)
	}{
		{"work goes on from a backup on another machine", testRestoreElsewhere},
		{"a running server goes on with a restored state", testRestoreRunning},
		{"a backup that is not whole changes nothing", testBrokenBackup},
		{"work that was merged after the backup is not merged twice", testMergedAfterBackup},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, program)
		})
	}
}

func builtProgram(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "gastown")
	build := exec.Command("go", "build", "-o", program, "gastown/cmd/gastown")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building gastown: %v\n%s", err, out)
	}
	return program
}

// run calls the program on the world's data directory.
func (w *world) run(args ...string) (stdout string, err error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.program, append([]string{"--data", w.data}, args...)...)
	cmd.Env = w.env
	var text strings.Builder
	cmd.Stderr = &text
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("gastown %s: %w\n%s", strings.Join(args, " "), err, text.String())
	}
	return string(out), err
}

func (w *world) must(args ...string) string {
	w.t.Helper()
	out, err := w.run(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// atWork is a world in which an agent writes numbers, and how many are saved.
func atWork(t *testing.T, program string) (w *world, id string, saved int) {
	t.Helper()
	w = newWorld(t, program, "checkpoint.interval=300ms")
	w.start()
	w.settle()
	id = w.sling("Numbers", w.numbers())
	w.spawned(id, 0)
	checkpoint, _ := w.savedFiles(id, "")
	_, saved = w.savedFiles(id, checkpoint)
	return w, id, saved
}

func testRestoreElsewhere(t *testing.T, program string) {
	w, id, saved := atWork(t, program)
	file := filepath.Join(w.root, "backup.tar.gz")
	var made struct {
		File        string
		Bytes       int64
		Towns, Rigs int
		ElapsedMS   *int64 `json:"elapsed_ms"`
	}
	if err := json.Unmarshal([]byte(w.must("backup", file, "--with-secrets", "--json")), &made); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 || st.Size() != made.Bytes || made.File != file || made.Towns != 1 || made.Rigs != 1 || made.ElapsedMS == nil {
		t.Errorf("%+v, %+v, %v", made, st, err)
	}
	// The machine is lost, and all that is on it.
	r := w.record()
	w.kill()
	if err := syscall.Kill(r.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.until("the end of everything", func(context.Context) error {
		if left := processesOf(w.root); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	if err := os.RemoveAll(w.data); err != nil {
		t.Fatal(err)
	}
	w.must("restore", file)
	w.start()
	w.resumed(2, saved)
	w.write(w.release, "")
	b := w.closed(id)
	if b.Charged != 0 || b.Attempt != 1 || len(b.Runs) != 2 || b.Runs[0].Outcome != "lost" || b.Runs[0].Class != "infra" {
		t.Errorf("attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	w.mergedOnce(b)
	w.asleep()
	w.hubIsTidy()
	w.quiet()
}

func testRestoreRunning(t *testing.T, program string) {
	w, id, saved := atWork(t, program)
	file := filepath.Join(w.root, "backup.tar.gz")
	w.must("backup", file)
	// After the backup: a second generation, a second run, another bead.
	if err := syscall.Kill(w.record().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.resumed(2, saved)
	second := w.spawned(id, 1)
	other := w.sling("Made after the backup", "echo other > other.txt")
	before := w.record()
	if _, err := w.run("restore", file); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Fatalf("a restore under a running server without --force: %v", err)
	}
	stop := w.polls()
	var done api.Restored
	if err := json.Unmarshal([]byte(w.must("restore", file, "--force", "--json")), &done); err != nil {
		t.Fatal(err)
	}
	stop()
	if done.Towns != 1 || done.Rigs != 1 || done.Aside == "" || len(done.MissingSecrets) != 0 {
		t.Errorf("%+v", done)
	}
	if _, err := os.Stat(filepath.Join(done.Aside, "gastown.db")); err != nil {
		t.Errorf("what was there is gone: %v", err)
	}
	select {
	case <-w.server.ended:
		t.Fatal("the server ended")
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := w.api.Bead(ctx, other); !errs.Is(err, errs.NotFound) {
		t.Errorf("the bead that was made after the backup: %v", err)
	}
	w.until("the end of the run of the undone state", func(context.Context) error {
		if w.alive(second.PID) {
			return errors.New("it goes on")
		}
		return nil
	})
	w.resumed(3, saved)
	w.write(w.release, "")
	b := w.closed(id)
	if b.Charged != 0 || b.Attempt != 1 || len(b.Runs) != 2 || b.Runs[0].Outcome != "lost" {
		t.Errorf("attempt %d, %d charged, runs %+v", b.Attempt, b.Charged, b.Runs)
	}
	if now := w.record(); now.Generation <= before.Generation {
		t.Errorf("generation %d before the restore, %d after it", before.Generation, now.Generation)
	}
	w.mergedOnce(b)
	w.quiet()
}

// polls asks the server all the time; each answer must be there, or say when to
// come again.
func (w *world) polls() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	url, token := w.server.url+"/api/v1/towns", w.token()
	all.Go(func() {
		for ctx.Err() == nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				w.t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+token)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				if ctx.Err() == nil {
					w.t.Errorf("a request was cut off: %v", err)
				}
				return
			}
			if res.StatusCode != http.StatusOK && (res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "") {
				w.t.Errorf("a request got %s", res.Status)
			}
			if err := res.Body.Close(); err != nil {
				w.t.Error(err)
			}
		}
	})
	return func() { cancel(); all.Wait() }
}

func testBrokenBackup(t *testing.T, program string) {
	w := newWorld(t, program)
	w.start()
	w.settle()
	file := filepath.Join(w.root, "backup.tar.gz")
	w.must("backup", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	kept := w.sling("Made after the backup", "echo x > x.txt")
	for name, content := range map[string][]byte{"cut off": whole[:len(whole)*2/3], "no backup": []byte("hello\n"), "empty": nil,
		"changed": append(append(append([]byte{}, whole[:len(whole)/2]...), 0x55, 0xaa), whole[len(whole)/2+2:]...)} {
		w.write(file, string(content))
		if _, err := w.run("restore", file, "--force"); err == nil {
			t.Errorf("a backup that is %s was restored", name)
		}
	}
	w.closed(kept)
	left, err := filepath.Glob(filepath.Join(w.data, "*restore*"))
	if hidden, _ := filepath.Glob(filepath.Join(w.data, ".*")); err != nil || len(left)+len(hidden) > 0 { // the pattern is good
		t.Errorf("left over: %v %v %v", left, hidden, err)
	}
	w.quiet()
}

func testMergedAfterBackup(t *testing.T, program string) {
	w, id, _ := atWork(t, program)
	file := filepath.Join(w.root, "backup.tar.gz")
	w.must("backup", file)
	w.write(w.release, "")
	w.mergedOnce(w.closed(id))
	tip := w.git("--git-dir", w.upstream, "rev-parse", "main")
	w.asleep()
	w.must("restore", file, "--force")
	// The bead is open again. Its agent goes on from the checkpoint; what it ends
	// with lands on top of what is upstream, or is found to be there.
	w.until("the end of "+id, func(ctx context.Context) error {
		b, err := w.api.Bead(ctx, id)
		if err == nil && b.Status != "closed" && !(b.Why != nil && b.Why.State == "waiting") {
			err = fmt.Errorf("it is %s: %+v", b.Status, b.Why)
		}
		return err
	})
	w.git("--git-dir", w.upstream, "merge-base", "--is-ancestor", tip, "main")
	w.signal(syscall.SIGTERM)
	w.over()
}
