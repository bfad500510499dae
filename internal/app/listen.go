package app

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/town"
)

// insideDir holds the socket for sandboxes.
const insideDir = "inside"

// maxSocket is a length of a socket's path that every system takes.
const maxSocket = 100

// listeners opens the port and the socket. The data directory is ours by now.
func (a *App) listeners() error {
	var err error
	if a.listen, err = net.Listen("tcp", a.cfg.Listen); err != nil {
		return errs.New(errs.Conflict, "can't listen on %s: %v", a.cfg.Listen, err).
			WithHint("choose another port with --listen, or port 0 for a free one")
	}
	scheme := "http"
	if a.cfg.TLSCert != "" {
		scheme = "https"
	}
	a.url = scheme + "://" + reachable(a.listen.Addr())
	path, err := socketPath(a.dir)
	if err != nil {
		return err
	}
	// A socket that is left of a server that died; the store's lock says that none lives.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return errs.Wrap(errs.Unavailable, err, "removing the old socket for sandboxes")
	}
	if a.inside, err = net.Listen("unix", path); err != nil {
		return errs.Wrap(errs.Unavailable, err, "opening the socket for sandboxes")
	}
	return errs.Wrap(errs.Unavailable, os.Chmod(path, 0o600), "closing the socket for sandboxes to others")
}

// reachable is an address to dial for one that is listened on.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// socketPath is DIR/inside/runner.sock, or, where that is too long for a socket, a
// path in the system's temporary directory that is made of DIR and the user. Boxes
// and containers see the whole directory of the socket, so nothing else is in it;
// the directory above belongs to the user alone.
func socketPath(dir string) (string, error) {
	parent := dir
	if len(filepath.Join(dir, insideDir, "runner.sock")) > maxSocket {
		var err error
		if parent, err = shortDir(dir); err != nil {
			return "", err
		}
	}
	inside := filepath.Join(parent, insideDir)
	err := errors.Join(os.MkdirAll(inside, 0o711), os.Chmod(inside, 0o711))
	return filepath.Join(inside, "runner.sock"), errs.Wrap(errs.Unavailable, err, "making a directory for the socket for sandboxes")
}

// shortDir is a directory of the user's own with a short path.
func shortDir(dir string) (string, error) {
	sum := sha256.Sum256([]byte(dir))
	parent := filepath.Join("/tmp", fmt.Sprintf("gastown-%d-%s", os.Getuid(), hex.EncodeToString(sum[:6])))
	if err := os.Mkdir(parent, 0o700); err != nil && !os.IsExist(err) {
		return "", errs.Wrap(errs.Unavailable, err, "making a directory for the socket for sandboxes")
	}
	st, err := os.Lstat(parent)
	if err != nil {
		return "", errs.Wrap(errs.Unavailable, err, "the directory of the socket for sandboxes")
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(owner.Uid) != os.Getuid() || st.Mode().Perm() != 0o700 {
		return "", errs.New(errs.Forbidden, "%s is not a directory of yours alone", parent).WithHint("remove it, or use a data directory with a shorter path")
	}
	return parent, nil
}

// gitHandler serves the repositories to sandboxes.
func (p *parts) gitHandler(g gateway.GitPolicy) http.Handler {
	return gateway.NewGit(p.hub, g, nil, gateway.GitLimits{}, p.app.log)
}

// number resolves a server-wide setting.
func (a *App) number(key string) int {
	n, err := strconv.Atoi(a.setting(key))
	if err != nil {
		panic(err) // checked by Config.check, or a default
	}
	return n
}

func (a *App) duration(key string) time.Duration {
	d, err := time.ParseDuration(a.setting(key))
	if err != nil {
		panic(err) // checked by Config.check, or a default
	}
	return d
}

func (a *App) setting(key string) string {
	s, err := town.Lookup(key)
	if err != nil {
		panic(err) // the key stands in this package
	}
	if v, ok := a.cfg.Settings[key]; ok {
		return v
	}
	return s.Default
}
