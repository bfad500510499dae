package process

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/record"
	"gastown/internal/sandbox/sandboxtest"
)

// spawn runs a helper as a driver's start does, but without the driver.
func spawn(t *testing.T, spec sandbox.Spec, env ...string) *exec.Cmd {
	t.Helper()
	token, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(spec.Command[0], spec.Command[1:]...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(append(cmd.Env, spec.Env...), env...)
	cmd.Env = append(cmd.Env, sandbox.EnvDisk+"="+cmd.Dir)
	cmd.ExtraFiles = []*os.File{token}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	closeQuietly(token)
	closeQuietly(w)
	reaped := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is what each test looks at by itself
		close(reaped)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // dead already in most tests
		<-reaped
	})
	return cmd
}

func writeRecord(t *testing.T, d *Driver, r record.Record) {
	t.Helper()
	if err := os.MkdirAll(d.book.Dir(r.Town), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.book.Save(r); err != nil {
		t.Fatal(err)
	}
}

func newTown(t *testing.T) (sandboxtest.Setup, *Driver, *sandboxtest.Town) {
	t.Helper()
	t.Parallel()
	s := setup(t)
	d := s.Open(t).(*Driver)
	d.tasks.Wait() // its look for earlier sandboxes would settle what a test writes
	return s, d, s.NewTown(t, "alpha")
}

func inspect(t *testing.T, d *Driver, generation int64) sandbox.Status {
	t.Helper()
	st, err := d.Inspect(context.Background(), sandbox.Ref{Town: "alpha", Generation: generation})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestAReusedPidNeverKillsAStranger(t *testing.T) {
	s, d, w := newTown(t)
	stranger := spawn(t, w.Spec(1, "wait"))
	w.Ready("wait")
	p, found, err := lookup(stranger.Process.Pid)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	for name, r := range map[string]record.Record{
		"another start time": {Boot: d.boot, Start: p.start + "1"},
		"another boot":       {Boot: "earlier", Start: p.start},
	} {
		r.Town, r.Generation, r.Phase, r.PID = "alpha", 1, record.Running, p.pid
		writeRecord(t, d, r)
		if st := inspect(t, d, 1); st.State != sandbox.Gone {
			t.Errorf("%s: state %s, want gone", name, st.State)
		}
		if err := d.Stop(context.Background(), refOf(r), time.Second); err != nil {
			t.Errorf("%s: stop: %v", name, err)
		}
		shut(t, d)
		d = s.Open(t).(*Driver)
		if err := d.Remove(context.Background(), refOf(r)); err != nil {
			t.Errorf("%s: remove: %v", name, err)
		}
		w.SomeAlive()
	}
	w.Quiet()
}

func TestACrashBetweenForkAndRecordLeavesNothingUnknown(t *testing.T) {
	s, d, w := newTown(t)
	writeRecord(t, d, record.Record{Town: "alpha", Generation: 5, Phase: record.Starting, Boot: d.boot})
	spawn(t, w.Spec(5, "parent"), sandbox.EnvSandbox+"="+d.marker("alpha", 5))
	w.Ready("parent")
	shut(t, d)
	d = s.Open(t).(*Driver)
	ref, err := d.Start(context.Background(), w.Spec(5, "parent"))
	if err != nil {
		t.Fatalf("the start was not taken over: %v", err)
	}
	if st := inspect(t, d, 5); st.State != sandbox.Running || st.Ref != ref {
		t.Fatalf("status %+v, want running as %+v", st, ref)
	}
	if err := d.Stop(context.Background(), ref, time.Minute); err != nil {
		t.Fatal(err)
	}
	w.Next("term")
	w.AllDead()
}

func TestAnIntentWithoutAProcessUsesItsGenerationUp(t *testing.T) {
	_, d, w := newTown(t)
	writeRecord(t, d, record.Record{Town: "alpha", Generation: 5, Phase: record.Starting, Boot: d.boot})
	if st := inspect(t, d, 5); st.State != sandbox.Gone || st.ExitCode != -1 {
		t.Fatalf("status %+v, want gone", st)
	}
	if _, err := d.Start(context.Background(), w.Spec(5, "wait")); !errs.Is(err, errs.Gone) {
		t.Fatalf("start: %v, want kind gone", err)
	}
	w.Start(d, w.Spec(6, "wait"))
}

func TestAStartInProgressIsUnknown(t *testing.T) {
	_, d, _ := newTown(t)
	writeRecord(t, d, record.Record{Town: "alpha", Generation: 5, Phase: record.Starting, Boot: d.boot})
	unlock, err := d.book.Lock(context.Background(), "alpha")
	if err != nil {
		t.Fatal(err)
	}
	if st := inspect(t, d, 5); st.State != sandbox.Unknown {
		t.Errorf("status %+v, want unknown", st)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.book.Lock(ctx, "alpha"); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a second lock: %v, want kind unavailable", err)
	}
	unlock()
	if st := inspect(t, d, 5); st.State != sandbox.Gone {
		t.Errorf("status %+v, want gone", st)
	}
}

func TestLeftoversOfAnOlderGenerationDieBeforeTheNextStarts(t *testing.T) {
	s, d, w := newTown(t)
	old := s.NewTown(t, "old")
	spawn(t, old.Spec(1, "wait"), sandbox.EnvSandbox+"="+d.marker("alpha", 1))
	old.Ready("wait")
	w.Start(d, w.Spec(2, "wait"))
	old.AllDead()
	w.SomeAlive()
}

func TestAMarkedProcessWithoutARecordIsListedAndStopped(t *testing.T) {
	_, d, w := newTown(t)
	spawn(t, w.Spec(7, "wait"), sandbox.EnvSandbox+"="+d.marker("alpha", 7))
	w.Ready("wait")
	all, err := d.List(context.Background())
	if err != nil || len(all) != 1 || all[0].State != sandbox.Running || all[0].Ref.Generation != 7 {
		t.Fatalf("list %+v, %v; want alpha/7 running", all, err)
	}
	if _, err := d.Start(context.Background(), w.Spec(6, "wait")); !errs.Is(err, errs.Conflict) {
		t.Errorf("start of an older generation: %v, want kind conflict", err)
	}
	if err := d.Stop(context.Background(), all[0].Ref, 0); err != nil {
		t.Fatal(err)
	}
	w.AllDead()
}

func TestAnotherRootIsNotOurs(t *testing.T) {
	_, d, w := newTown(t)
	spawn(t, w.Spec(7, "wait"), sandbox.EnvSandbox+"=0123456789abcdef:alpha:7")
	w.Ready("wait")
	if err := d.Remove(context.Background(), sandbox.Ref{Town: "alpha"}); err != nil {
		t.Fatal(err)
	}
	if all, err := d.List(context.Background()); err != nil || len(all) != 0 {
		t.Fatalf("list %+v, %v; want nothing", all, err)
	}
	w.SomeAlive()
}

func TestASessionMemberWithoutMarkerOrParentIsFoundByItsDirectory(t *testing.T) {
	if cwdOf(os.Getpid()) == "" {
		t.Skip("this system does not show working directories")
	}
	_, d, _ := newTown(t)
	leader := 999_999_999 // no such process
	self, found, err := lookup(os.Getpid())
	if err != nil || !found {
		t.Fatal(err)
	}
	self.pid, self.sid = os.Getpid(), leader
	mine := map[int]bool{}
	d.addSession(mine, []proc{self}, &record.Record{Town: "alpha", PID: leader, Start: "1"})
	if len(mine) != 0 {
		t.Error("a process outside of the town's directory was claimed by its session number")
	}
	taken := proc{pid: leader, sid: leader, start: "2"}
	d.addSession(mine, []proc{self, taken}, &record.Record{Town: "alpha", PID: leader, Start: "1"})
	if len(mine) != 0 {
		t.Error("a stranger's session was claimed")
	}
	ours := proc{pid: leader, sid: leader, start: "1", zombie: true}
	d.addSession(mine, []proc{self, ours}, &record.Record{Town: "alpha", PID: leader, Start: "1"})
	if !mine[self.pid] {
		t.Error("a member of the session of a dead leader was not claimed")
	}
}

func TestASandboxLeadsASessionOfItsOwn(t *testing.T) {
	_, d, w := newTown(t)
	_, e := w.Start(d, w.Spec(1, "wait"))
	if p, found, err := lookup(e.PID); err != nil || !found || p.sid != e.PID {
		t.Errorf("process %+v, %v, %v; want a session leader", p, found, err)
	}
}

func TestADamagedRecordIsVisibleAndInNobodysWay(t *testing.T) {
	s, d, w := newTown(t)
	if err := os.MkdirAll(d.book.Dir("broken"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.book.Dir("broken"), record.File)
	if err := os.WriteFile(path, []byte(`{"town":"broken","generation":`), 0o600); err != nil {
		t.Fatal(err)
	}
	shut(t, d)
	d = s.Open(t).(*Driver)
	w.Start(d, w.Spec(1, "wait"))
	all, err := d.List(context.Background())
	if err != nil || len(all) != 2 || all[1].Ref.Town != "broken" || all[1].State != sandbox.Unknown {
		t.Fatalf("list %+v, %v; want the broken one as unknown", all, err)
	}
	if _, err := d.Start(context.Background(), s.NewTown(t, "broken").Spec(1, "wait")); err == nil {
		t.Error("a town with a damaged record was started")
	}
	if err := d.Remove(context.Background(), sandbox.Ref{Town: "broken"}); err != nil {
		t.Errorf("remove of a damaged record: %v", err)
	}
}

func TestTheTokenIsInNoFileAndNotInTheServersView(t *testing.T) {
	_, d, w := newTown(t)
	spec := w.Spec(1, "wait")
	_, e := w.Start(d, spec)
	if e.Token != string(spec.Token) {
		t.Fatalf("token %q did not arrive", e.Token)
	}
	err := filepath.WalkDir(d.root, func(path string, f fs.DirEntry, err error) error {
		if err != nil || !f.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, spec.Token) {
			t.Errorf("%s contains the token", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if environ := environOf(e.PID); len(environ) == 0 || bytes.Contains(environ, spec.Token) {
		t.Errorf("the environment of the sandbox (%d bytes) can't be read or contains the token", len(environ))
	}
}

func TestTheEnvironmentIsAnAllowList(t *testing.T) {
	for k, v := range map[string]string{
		"GASTOWN_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret", "OPENAI_API_KEY": "secret", "SSH_AUTH_SOCK": "/x",
		"GOPROXY": "https://me:secret@proxy.example,direct", "GOFLAGS": "-mod=mod", "GOCACHE": "/caches/go", "GOPATH": "/gopath:/second",
		"GOMODCACHE": "",
	} {
		t.Setenv(k, v)
	}
	d := open(t, t.TempDir())
	env := d.environ("alpha")
	if all := strings.Join(env, "\n"); strings.Contains(all, "secret") || strings.Contains(all, "SSH_AUTH_SOCK") {
		t.Errorf("a secret is passed on: %s", all)
	}
	for _, want := range []string{"GOFLAGS=-mod=mod", "GOCACHE=/caches/go", "GOMODCACHE=/gopath/pkg/mod",
		"HOME=" + d.disk("alpha") + "/home", "TMPDIR=" + d.disk("alpha") + "/tmp", "PATH=" + os.Getenv("PATH")} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %q", want, env)
		}
	}
}

func TestCachesComeFromTheUsersHomeWhenNothingIsSet(t *testing.T) {
	t.Parallel()
	got := caches(func(string) string { return "" },
		func() (string, error) { return "/home/u", nil }, func() (string, error) { return "/home/u/.cache", nil })
	want := []string{"GOCACHE=/home/u/.cache/go-build", "GOMODCACHE=/home/u/go/pkg/mod", "npm_config_cache=/home/u/.npm"}
	if !slices.Equal(got, want) {
		t.Errorf("caches are %q, want %q", got, want)
	}
	none := func() (string, error) { return "", os.ErrNotExist }
	if got := caches(func(string) string { return "" }, none, none); len(got) != 0 {
		t.Errorf("without a home the caches are %q", got)
	}
}

func TestALongLogIsSetAsideAtStart(t *testing.T) {
	_, d, w := newTown(t)
	if err := d.makeDisk("alpha", false); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.book.Dir("alpha"), "runner.log")
	if err := os.WriteFile(path, make([]byte, maxLog+1), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Start(d, w.Spec(1, "wait"))
	now, err1 := os.Stat(path)
	older, err2 := os.Stat(path + ".1")
	if err1 != nil || err2 != nil || now.Size() != 0 || older.Size() != maxLog+1 {
		t.Errorf("after the start the log is %v, %v, the older part %v, %v", now, err1, older, err2)
	}
}

// The command keeps its log short while it runs, so it must be able to read it.
func TestWhoWritesTheLogCanCutIt(t *testing.T) {
	_, d, _ := newTown(t)
	if err := d.makeDisk("alpha", false); err != nil {
		t.Fatal(err)
	}
	f, err := d.openLog("alpha")
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	buf := make([]byte, 3)
	_, err1 := f.WriteString("old")
	_, err2 := f.ReadAt(buf, 0)
	err3 := f.Truncate(0)
	_, err4 := f.WriteString("new")
	got, err5 := os.ReadFile(f.Name())
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil || string(buf) != "old" || string(got) != "new" {
		t.Errorf("read %q, then the file holds %q, %v", buf, got, err)
	}
}

func TestATreeWithoutWritePermissionIsDeletedAndLinksAreNotFollowed(t *testing.T) {
	t.Parallel()
	outside, tree := t.TempDir(), filepath.Join(t.TempDir(), "tree")
	kept := filepath.Join(outside, "kept")
	locked := filepath.Join(tree, "a", "b")
	for _, err := range []error{
		os.WriteFile(kept, nil, 0o600), os.Chmod(outside, 0o500),
		os.MkdirAll(locked, 0o700), os.WriteFile(filepath.Join(locked, "f"), nil, 0o400),
		os.Symlink(outside, filepath.Join(tree, "a", "link")),
		os.Chmod(locked, 0o500), os.Chmod(filepath.Join(tree, "a"), 0o500),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := deleteTree(tree); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(tree); !os.IsNotExist(err) {
		t.Errorf("the tree is still there: %v", err)
	}
	fi, err := os.Stat(outside)
	if err != nil || fi.Mode().Perm() != 0o500 {
		t.Errorf("the linked directory was changed: %v, %v", fi, err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a file behind a link was deleted: %v", err)
	}
}

func TestTheTrashOfAnEarlierDriverIsEmptied(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	d := open(t, root)
	shut(t, d)
	if err := d.makeDisk("alpha", false); err != nil {
		t.Fatal(err)
	}
	if err := d.discard(d.disk("alpha")); err != nil { // closed: only renamed
		t.Fatal(err)
	}
	next := open(t, root)
	next.tasks.Wait()
	left, err := os.ReadDir(filepath.Join(root, trashDir))
	if err != nil || len(left) != 0 {
		t.Errorf("the trash holds %v, %v", left, err)
	}
}
