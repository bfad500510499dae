package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/sandbox"
	"gastown/internal/sandbox/inside"
)

// boxUser runs the commands of boxes when the server is root, who owns too much of
// this machine. The number belongs to nobody by convention.
const boxUser = 65520

// startTime bounds a start until the command runs.
const startTime = time.Minute

// tmpSize bounds each of a box's temporary directories in memory, in bytes.
const tmpSize = "268435456"

// box is how sandboxes are closed in by bubblewrap.
type box struct {
	bwrap string
	init  []string // absolute program first
	uid   int      // of the command, inside and outside
	root  bool     // we are root, and the command is another user
	fixed []string // arguments that are the same for every town
	shown []string // what of this machine can be seen,
	hides []string // but for these
	inner bool     // boxes can be made in a box
}

// boxBirth is what the start of a box needs besides.
type boxBirth struct {
	status *os.File // the first process says on it whether the command runs
	info   *os.File // bubblewrap says on it which process waits for its user ids
	block  *os.File // and goes on when this one says so
	logged int64    // size of the log before
}

func (b *boxBirth) close() {
	for _, f := range []*os.File{b.status, b.info, b.block} {
		if f != nil {
			closeQuietly(f)
		}
	}
}

// room is where a box is made.
type room struct{ town, disk, etc string }

func (d *Driver) room(town string) room {
	return room{town: town, disk: d.disk(town), etc: filepath.Join(d.book.Dir(town), "etc")}
}

// enclose changes a start so that its command runs in a box.
func (d *Driver) enclose(b *birth, spec sandbox.Spec, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "sandbox: find the command for town %s", spec.Town)
	}
	return d.box.enclose(b, d.room(spec.Town), append([]string{path}, spec.Command[1:]...))
}

func (x *box) enclose(b *birth, r room, command []string) (err error) {
	if err := x.writeEtc(r); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: make the box of town %s", r.town)
	}
	b.box = new(boxBirth)
	if log, ok := b.cmd.Stderr.(*os.File); ok {
		if st, err := log.Stat(); err == nil {
			b.box.logged = st.Size()
		}
	}
	if b.box.status, err = b.pipe(false); err != nil { // becomes inside.StatusFD
		return err
	}
	if x.root {
		if b.box.info, err = b.pipe(false); err != nil { // becomes infoFD
			return err
		}
		if b.box.block, err = b.pipe(true); err != nil { // becomes blockFD
			return err
		}
	}
	b.cmd.Path, b.cmd.Args = x.bwrap, append([]string{"bwrap"}, x.args(r, command)...)
	b.cmd.Err = nil
	return nil
}

// The descriptors of bubblewrap that follow those of the first process.
const (
	infoFD  = inside.StatusFD + 1
	blockFD = inside.StatusFD + 2
)

// args are the arguments of bubblewrap. Everything that comes from elsewhere
// follows an option that takes it, and paths are absolute.
func (x *box) args(r room, command []string) []string {
	args := slices.Clone(x.fixed)
	if x.root {
		args = append(args, "--info-fd", strconv.Itoa(infoFD), "--userns-block-fd", strconv.Itoa(blockFD))
	}
	for _, name := range []string{"passwd", "group"} {
		if _, err := os.Stat("/etc/" + name); err == nil {
			args = append(args, "--ro-bind", filepath.Join(r.etc, name), "/etc/"+name)
		}
	}
	for _, program := range []string{x.init[0], command[0], x.bwrap} {
		if !x.sees(program) {
			args = append(args, mount("--ro-bind", program, program)...)
		}
	}
	args = append(args, mount("--bind", r.disk, r.disk)...)
	args = append(args, "--chdir", "/", "--hostname", r.town, "--remount-ro", "/", "--as-pid-1")
	args = append(args, x.init...)
	args = append(args, inside.BoxFlag)
	if x.root {
		args = append(args, "--uid="+strconv.Itoa(x.uid))
	}
	return append(append(args, "--"), command...)
}

// mount shows a path of this machine under another name. The directories above it
// are made first, because bubblewrap would make them its own user's alone.
func mount(how, outside, in string) []string {
	var args []string
	for i := range len(in) {
		if i > 0 && in[i] == '/' {
			args = append(args, "--dir", in[:i])
		}
	}
	return append(args, how, outside, in)
}

// sees reports whether a path of this machine can be seen in a box anyway.
func (x *box) sees(path string) bool {
	in := func(dir string) bool { return within(path, dir) }
	return slices.ContainsFunc(x.shown, in) && !slices.ContainsFunc(x.hides, in)
}

// within reports whether path is dir or lies in it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// writeEtc writes what a box has for files of /etc: who it is, and nobody else.
func (x *box) writeEtc(r room) error {
	if err := os.MkdirAll(r.etc, 0o755); err != nil {
		return err
	}
	passwd := fmt.Sprintf("root:x:0:0:root:/:/bin/sh\nagent:x:%d:%d:agent:%s/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", x.uid, x.uid, r.disk)
	group := fmt.Sprintf("root:x:0:\nagent:x:%d:\nnogroup:x:65534:\n", x.uid)
	if x.uid == 0 {
		passwd, group = fmt.Sprintf("root:x:0:0:root:%s/home:/bin/sh\n", r.disk), "root:x:0:\n"
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		path := filepath.Join(r.etc, name)
		if old, err := os.ReadFile(path); err == nil && string(old) == text {
			continue
		}
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chmod(path, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// await gives a box its user ids and waits until its first process says that the
// command runs.
func (b *boxBirth) await(ctx context.Context, all *birth, town string, log *os.File) error {
	for _, f := range all.theirs {
		closeQuietly(f) // so that we read the end when the child is gone
	}
	all.theirs = nil
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		for _, f := range []*os.File{b.status, b.info} {
			if f != nil {
				// A pipe that takes no deadline is read to its end, which comes with the child's.
				_ = f.SetReadDeadline(time.Now())
			}
		}
	})
	defer stop()
	if b.info != nil {
		if err := b.mapUsers(); err != nil {
			return errs.Wrap(errs.Unavailable, errors.Join(err, ctx.Err()), "sandbox: bubblewrap did not begin a box for town %s: %s", town, b.said(log))
		}
	}
	raw, err := io.ReadAll(io.LimitReader(b.status, 4096))
	line, _, whole := strings.Cut(string(raw), "\n")
	if reason, failed := strings.CutPrefix(line, inside.Failed); failed {
		return errs.New(errs.Invalid, "sandbox: the command for town %s can't run: %s", town, reason)
	}
	if err != nil || !whole || line != inside.Started {
		return errs.Wrap(errs.Unavailable, errors.Join(err, ctx.Err(), errors.New("the first process said nothing")),
			"sandbox: bubblewrap made no box for town %s: %s", town, b.said(log))
	}
	return nil
}

// said is what bubblewrap wrote into the log, shortened.
func (b *boxBirth) said(log *os.File) string {
	st, err := log.Stat()
	if err != nil || st.Size() <= b.logged {
		return "it said nothing"
	}
	text := make([]byte, min(st.Size()-b.logged, 400))
	n, err := log.ReadAt(text, b.logged)
	if err != nil && !errors.Is(err, io.EOF) {
		return "what it said can't be read"
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(text[:n]), "?"))
}

// openBox finds out whether boxes can be made, as the configuration wants it.
func (d *Driver) openBox(ctx context.Context, cfg Config) error {
	if cfg.Isolation == None || cfg.Isolation == "" {
		return nil
	}
	x, err := newBox(cfg)
	if err == nil {
		err = d.probe(ctx, x)
	}
	switch {
	case err == nil:
		d.box = x
	case cfg.Isolation == Bwrap:
		return err
	default:
		d.noBox = err.Error()
	}
	return nil
}

// probe makes a box once, and one in it.
func (d *Driver) probe(ctx context.Context, x *box) (err error) {
	dir, err := os.MkdirTemp(filepath.Join(d.root, trashDir), "probe-")
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: try bubblewrap")
	}
	defer d.deleteLogged(dir)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: try bubblewrap")
	}
	defer closeQuietly(log)
	r := room{town: "probe", disk: filepath.Join(dir, "disk"), etc: filepath.Join(dir, "etc")}
	if err := errors.Join(os.Mkdir(r.disk, 0o700), os.Lchown(r.disk, x.uid, -1)); err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: try bubblewrap")
	}
	ends, err := exec.LookPath("true")
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "sandbox: try bubblewrap")
	}
	b := &birth{cmd: &exec.Cmd{Env: []string{sandbox.EnvDisk + "=" + r.disk, "PATH=" + os.Getenv("PATH")}, Stdout: log, Stderr: log}}
	defer b.close()
	if b.token, err = b.pipe(true); err != nil {
		return err
	}
	nested := []string{x.bwrap, "--unshare-user", "--unshare-pid", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", ends}
	if err := x.enclose(b, r, nested); err != nil {
		return err
	}
	b.cmd.Args = slices.Insert(b.cmd.Args, 1, "--die-with-parent")
	if err := b.cmd.Start(); err != nil {
		return startError("probe", err)
	}
	err = b.box.await(ctx, b, "probe", log)
	if err != nil {
		// Ended already is what we want.
		_ = b.cmd.Process.Kill()
	}
	x.inner = b.cmd.Wait() == nil && err == nil
	return err
}

// systemDirs are what of this machine every box sees, if it is there.
func systemDirs() []string {
	return []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store", "/gnu/store"}
}

// newBox says how boxes are made on this machine.
func newBox(cfg Config) (*box, error) {
	if len(cfg.Init) == 0 {
		return nil, errs.New(errs.Invalid, "sandbox: bubblewrap needs a first process for its boxes")
	}
	x := &box{init: slices.Clone(cfg.Init), uid: os.Getuid()}
	var err error
	if x.bwrap, err = findBwrap(); err != nil {
		return nil, err
	}
	if x.init[0], err = filepath.Abs(x.init[0]); err != nil {
		return nil, errs.Wrap(errs.Invalid, err, "sandbox: find the first process of boxes")
	}
	if os.Geteuid() == 0 {
		x.root, x.uid = true, boxUser
	}
	x.fixed = []string{"--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"}
	if !cfg.Network {
		x.fixed = append(x.fixed, "--unshare-net")
	}
	if x.root {
		x.fixed = append(x.fixed, "--cap-drop", "ALL")
		for _, c := range []string{"CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_FOWNER"} {
			x.fixed = append(x.fixed, "--cap-add", c)
		}
	}
	x.fixed = append(x.fixed, "--proc", "/proc", "--dev", "/dev")
	return x, x.mounts(cfg)
}

// mounts says what of this machine boxes see.
func (x *box) mounts(cfg Config) error {
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		if bwrapKnows(x.bwrap, "--size") {
			x.fixed = append(x.fixed, "--size", tmpSize)
		}
		x.fixed = append(x.fixed, "--tmpfs", dir)
	}
	for _, dir := range systemDirs() {
		st, err := os.Lstat(dir)
		if err != nil {
			continue
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			to, err := os.Readlink(dir)
			if err != nil {
				return errs.Wrap(errs.Unavailable, err, "sandbox: look at the system's directories")
			}
			x.fixed = append(x.fixed, "--symlink", to, dir)
			continue
		}
		x.show(dir, dir)
	}
	if resolv, err := filepath.EvalSymlinks("/etc/resolv.conf"); cfg.Network && err == nil && !x.sees(resolv) {
		x.show(resolv, resolv)
	}
	show := tools(os.Getenv("PATH"), cfg.Hide)
	for _, path := range cfg.Show {
		if !filepath.IsAbs(path) {
			return errs.New(errs.Invalid, "sandbox: %q, which sandboxes shall see, is not an absolute path", path)
		}
		if _, err := os.Stat(path); err != nil {
			return errs.Wrap(errs.Invalid, err, "sandbox: look at what sandboxes shall see")
		}
		show = append(show, filepath.Clean(path))
	}
	slices.Sort(show) // parents come first
	for _, path := range show {
		if !x.sees(path) {
			x.show(path, path)
		}
	}
	for _, path := range cfg.Hide {
		x.hide(path, cfg.Show)
		if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
			x.hide(real, cfg.Show) // one that is missing is seen by nobody
		}
	}
	for _, b := range cfg.Binds {
		x.fixed = append(x.fixed, mount("--ro-bind", b.Outside, b.Inside)...)
	}
	return nil
}

// hide covers a directory or file that could be seen, unless it is shown on purpose
// or holds what the system needs.
func (x *box) hide(path string, shown []string) {
	if path == "/" || !x.sees(path) || slices.Contains(shown, path) || slices.ContainsFunc(systemDirs(), func(s string) bool { return within(s, path) }) {
		return
	}
	st, err := os.Lstat(path)
	switch {
	case err != nil || st.Mode()&fs.ModeSymlink != 0:
		return // what it leads to is hidden
	case st.IsDir():
		x.fixed = append(x.fixed, "--tmpfs", path)
	default:
		x.fixed = append(x.fixed, "--ro-bind", os.DevNull, path)
	}
	x.hides = append(x.hides, path)
}

func (x *box) show(path, as string) {
	x.fixed = append(x.fixed, mount("--ro-bind", path, as)...)
	x.shown = append(x.shown, path)
}

// tools are the directories of programs that a PATH names outside of the system's
// own, with the libraries beside them. What is hidden, or holds something hidden,
// is none.
func tools(path string, hide []string) []string {
	var found []string
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		dir = filepath.Clean(dir)
		add := []string{dir}
		parent := filepath.Dir(dir)
		switch filepath.Base(dir) {
		case ".bin":
			if filepath.Base(parent) == "node_modules" {
				add = []string{parent} // its programs are links into it
			}
		case "bin":
			add = append(add, filepath.Join(parent, "lib"))
			if isDir(filepath.Join(parent, "pkg", "tool")) { // Go's own
				add = []string{parent}
			}
		}
		for _, a := range add {
			holds := slices.ContainsFunc(hide, func(h string) bool { return within(h, a) })
			if isDir(a) && !holds && !slices.Contains(found, a) {
				found = append(found, a)
			}
		}
	}
	return found
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// findBwrap finds bubblewrap.
func findBwrap() (string, error) {
	path, err := exec.LookPath("bwrap")
	if err != nil {
		return "", errs.New(errs.NotFound, "bubblewrap is not installed").
			WithHint("install it (apt install bubblewrap, dnf install bubblewrap, apk add bubblewrap), or run without it: --isolation none")
	}
	path, err = filepath.EvalSymlinks(path)
	return path, errs.Wrap(errs.NotFound, err, "find bubblewrap")
}

// bwrapKnows reports whether this bubblewrap has an option.
func bwrapKnows(bwrap, option string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, bwrap, "--help").CombinedOutput()
	return err == nil && strings.Contains(string(out), option+" ")
}
