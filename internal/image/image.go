// Package image builds the file system of a sandbox's container from what this
// machine has, without a registry and without a base image: the static gastown,
// git, a shell with the usual tools, and where wanted Node and coding agents.
//
// Programs come with the libraries that their headers name, found where the
// system's loader looks. Symbolic links are resolved, but for those that point
// to a program which is in the image anyway. Nothing else of the machine gets in:
// no configuration, no cache, no home directory.
//
// The order of files, their times and owners are fixed, so that the same machine
// builds the same image twice.
package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gastown/internal/errs"
	"gastown/internal/runner/apart"
)

// Places in the image.
const (
	Program  = "/usr/local/bin/gastown"
	agentDir = "/opt/agents"
)

// Users of the image.
const (
	RunnerUser = 1000 // the runner, which starts and ends agents
)

// Init is the first process of the image, see package inside.
func Init() []string {
	return []string{Program, "sandbox-init", fmt.Sprintf("--uid=%d", RunnerUser), "--apart"}
}

// Config says what to put in. Gastown is required.
type Config struct {
	Gastown string // path of a static gastown for Linux
	Agents  string // directory with node_modules of agents, "" for none; brings Node in
}

// Report says what was built.
type Report struct {
	Bytes    int64    `json:"bytes"` // of files, before compression
	Files    int      `json:"files"`
	Programs []string `json:"programs"`
	Missing  []string `json:"missing"` // optional programs that this machine does not have
}

// needed can't be missing; useful may.
func needed() []string { return []string{"git", "sh"} }

func useful() []string {
	return []string{"[", "awk", "base64", "basename", "bash", "bunzip2", "bzip2", "cat", "chmod", "cmp", "comm", "cp", "cut", "date", "dd",
		"df", "diff", "dirname", "du", "echo", "egrep", "env", "expand", "expr", "false", "fgrep", "file", "find", "fold", "grep", "gunzip",
		"gzip", "head", "hostname", "id", "install", "join", "jq", "kill", "less", "ln", "ls", "make", "mkdir", "mktemp", "mv", "nice", "nl",
		"nohup", "nproc", "od", "paste", "patch", "pgrep", "pkill", "printenv", "printf", "ps", "pwd", "readlink", "realpath", "rg", "rm",
		"rmdir", "sed", "seq", "sha256sum", "sleep", "sort", "split", "stat", "stdbuf", "sync", "tac", "tail", "tar", "tee", "test",
		"timeout", "touch", "tr", "true", "tty", "uname", "uniq", "unxz", "wc", "which", "whoami", "xargs", "xz", "yes"}
}

// entry is one thing in the image.
type entry struct {
	mode fs.FileMode
	link string // target of a symbolic link
	file string // where the content is on this machine
	text []byte // the content, when file is ""
}

type builder struct {
	entries map[string]entry // by absolute path in the image
	report  Report
}

// Build writes the image's file system as a tar, for `docker import`.
func Build(cfg Config, w io.Writer) (Report, error) {
	b := &builder{entries: map[string]entry{}}
	b.skeleton()
	if err := b.programs(); err != nil {
		return Report{}, err
	}
	if err := b.git(); err != nil {
		return Report{}, err
	}
	if err := b.file(Program, cfg.Gastown); err != nil {
		return Report{}, err
	}
	if cfg.Agents != "" {
		if err := b.agents(cfg.Agents); err != nil {
			return Report{}, err
		}
	}
	return b.report, b.write(w)
}

func (b *builder) skeleton() {
	for _, d := range []string{"/bin", "/dev", "/etc", "/lib", "/proc", "/run", "/sys", "/tmp", "/town", "/usr/bin", "/usr/local/bin", "/root"} {
		b.dir(d)
	}
	user := func(name string, id int) string {
		return fmt.Sprintf("%s:x:%d:%d:%s:/town/home:/bin/sh\n", name, id, id, name)
	}
	group := func(name string, id int) string { return fmt.Sprintf("%s:x:%d:\n", name, id) }
	// Some programs end when their user has no name.
	var users, groups strings.Builder
	for id := apart.FirstUser; id <= apart.LastUser; id++ {
		users.WriteString(user(fmt.Sprintf("agent%d", id), id))
		groups.WriteString(group(fmt.Sprintf("agent%d", id), id))
	}
	for name, text := range map[string]string{
		"/etc/passwd":        user("root", 0) + user("runner", RunnerUser) + user("nobody", 65534) + users.String(),
		"/etc/group":         group("root", 0) + group("runner", RunnerUser) + group("nogroup", 65534) + groups.String(),
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"/etc/hosts":         "127.0.0.1 localhost\n",
	} {
		b.entries[name] = entry{mode: 0o644, text: []byte(text)}
	}
}

// programs puts the tools in.
func (b *builder) programs() error {
	for _, name := range append(needed(), useful()...) {
		at, err := exec.LookPath(name)
		if err != nil {
			if slices.Contains(needed(), name) {
				return errs.New(errs.Invalid, "this machine has no %s", name).WithHint("install it, then build again")
			}
			b.report.Missing = append(b.report.Missing, name)
			continue
		}
		if err := b.file("/usr/bin/"+name, at); err != nil {
			return err
		}
		b.report.Programs = append(b.report.Programs, name)
	}
	for _, name := range []string{"sh", "bash"} {
		if _, ok := b.entries["/usr/bin/"+name]; ok {
			b.entries["/bin/"+name] = entry{mode: fs.ModeSymlink, link: "/usr/bin/" + name}
		}
	}
	b.entries["/usr/bin/gt"] = entry{mode: fs.ModeSymlink, link: Program}
	for _, name := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"} {
		if _, err := os.Stat(name); err == nil {
			return b.file("/etc/ssl/certs/ca-certificates.crt", name)
		}
	}
	return nil
}

// git puts git's own programs in. Most are one program under many names.
func (b *builder) git() error {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return errs.Wrap(errs.Internal, err, "asking git for its programs")
	}
	dir := strings.TrimSpace(string(out))
	names, err := os.ReadDir(dir)
	if err != nil {
		return errs.Wrap(errs.Internal, err, "listing git's programs")
	}
	main, err := os.Stat(filepath.Join(dir, "git"))
	if err != nil {
		return errs.Wrap(errs.Internal, err, "git's main program")
	}
	for _, n := range names {
		from, to := filepath.Join(dir, n.Name()), path.Join(dir, n.Name())
		info, err := os.Stat(from)
		if err != nil || info.IsDir() {
			continue // a link to nowhere, or the directory of examples
		}
		if os.SameFile(info, main) {
			b.entries[to] = entry{mode: fs.ModeSymlink, link: "/usr/bin/git"}
			continue
		}
		if skipGit(n.Name()) {
			continue
		}
		if err := b.file(to, from); err != nil {
			return err
		}
	}
	b.dir("/usr/share/git-core/templates")
	return nil
}

// skipGit names programs of git that nothing in a sandbox calls.
func skipGit(name string) bool {
	for _, part := range []string{"imap-send", "http-push", "shell", "daemon", "instaweb", "p4", "svn", "cvs", "gui", "citool", "send-email", "archimport"} {
		if strings.HasSuffix(name, part) {
			return true
		}
	}
	return false
}

// agents puts a directory of node_modules in, and Node.
func (b *builder) agents(dir string) error {
	node, err := exec.LookPath("node")
	if err != nil {
		return errs.New(errs.Invalid, "agents need Node, and this machine has none").WithHint("install node, then build again")
	}
	if err := b.file("/usr/bin/node", node); err != nil {
		return err
	}
	b.report.Programs = append(b.report.Programs, "node")
	root, err := filepath.Abs(dir)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "the directory of agents")
	}
	err = filepath.WalkDir(filepath.Join(root, "node_modules"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		to := path.Join(agentDir, filepath.ToSlash(rel))
		switch {
		case d.IsDir():
			b.dir(to)
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			b.entries[to] = entry{mode: fs.ModeSymlink, link: link}
			return err
		}
		return b.file(to, p)
	})
	if err != nil {
		return errs.New(errs.Invalid, "reading the agents: %v", err).WithHint("install them with 'make agents'")
	}
	bins, err := os.ReadDir(filepath.Join(root, "node_modules", ".bin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.Wrap(errs.Invalid, err, "reading the agents' programs")
	}
	for _, n := range bins {
		b.entries["/usr/local/bin/"+n.Name()] = entry{mode: fs.ModeSymlink, link: agentDir + "/node_modules/.bin/" + n.Name()}
		b.report.Programs = append(b.report.Programs, n.Name())
	}
	return nil
}

func (b *builder) dir(name string) {
	for ; name != "/" && name != "."; name = path.Dir(name) {
		if _, ok := b.entries[name]; !ok {
			b.entries[name] = entry{mode: fs.ModeDir | 0o755}
		}
	}
}

// file puts a file in, with the libraries that it needs when it is a program.
func (b *builder) file(to, from string) error {
	if e, ok := b.entries[to]; ok && e.file == from {
		return nil
	}
	info, err := os.Stat(from)
	if err != nil {
		return errs.Wrap(errs.Invalid, err, "reading %s", from)
	}
	b.entries[to] = entry{mode: info.Mode().Perm(), file: from}
	libraries, err := needs(from)
	if err != nil {
		return err
	}
	for _, l := range libraries {
		if err := b.file(l, l); err != nil {
			return err
		}
	}
	return nil
}

// epoch is the time of all files: the oldest that zip and tar can write.
func epoch() time.Time { return time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC) }

func (b *builder) write(w io.Writer) error {
	for name := range maps.Clone(b.entries) {
		b.dir(path.Dir(name))
	}
	t := tar.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(b.entries)) {
		if err := b.writeOne(t, name, b.entries[name]); err != nil {
			return errs.Wrap(errs.Unavailable, err, "writing %s into the image", name)
		}
	}
	return errs.Wrap(errs.Unavailable, t.Close(), "writing the image")
}

func (b *builder) writeOne(t *tar.Writer, name string, e entry) (err error) {
	h := &tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: int64(e.mode.Perm()), ModTime: epoch(), Format: tar.FormatPAX}
	var content io.Reader
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if name == "/tmp" {
			h.Mode = 0o1777
		}
	case e.mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	case e.file == "":
		h.Typeflag, h.Size = tar.TypeReg, int64(len(e.text))
		content = bytes.NewReader(e.text)
	default:
		f, err := os.Open(e.file)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
		content = f
	}
	if err := t.WriteHeader(h); err != nil || content == nil {
		return err
	}
	n, err := io.Copy(t, content)
	b.report.Bytes += n
	b.report.Files++
	return err
}
