package credential

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"gastown/internal/errs"
)

// Session is one use of an ssh key: an agent of our own that holds nothing else,
// and a configuration that names nothing of the user's.
type Session struct {
	dir    string
	listen net.Listener
	hosts  string
	served sync.WaitGroup

	mu    sync.Mutex // guards conns and over
	conns []net.Conn
	over  bool
}

// NewSession lends the key to the ssh that Command runs, until Close. knownHosts
// are the host keys that were recorded, as in a known_hosts file; without any, the
// first host's is taken and can be asked for with Hosts.
func (c Credential) NewSession(knownHosts string) (_ *Session, err error) {
	key, err := ssh.ParseRawPrivateKey([]byte(c.Secret + "\n"))
	if err != nil {
		return nil, errs.New(errs.Invalid, "the ssh key can't be read")
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		return nil, errs.New(errs.Invalid, "the ssh key is of a kind that can't be used")
	}
	s := &Session{hosts: knownHosts}
	if s.dir, err = os.MkdirTemp("", "gastown-ssh-"); err != nil { // 0700
		return nil, errs.Wrap(errs.Internal, err, "making room for an ssh session")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
	}()
	check := "yes"
	if strings.TrimSpace(knownHosts) == "" {
		check = "accept-new"
	}
	for name, text := range map[string]string{"known_hosts": knownHosts, "config": s.config(check)} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			return nil, errs.Wrap(errs.Internal, err, "writing the configuration of ssh")
		}
	}
	if s.listen, err = net.Listen("unix", s.socket()); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "listening for ssh")
	}
	s.served.Go(func() { s.serve(ring) })
	return s, nil
}

func (s *Session) socket() string { return filepath.Join(s.dir, "agent") }

func (s *Session) serve(ring agent.Agent) {
	for {
		conn, err := s.listen.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		over := s.over
		s.mu.Unlock()
		if over {
			_ = conn.Close() // nobody listens any more
			continue
		}
		s.served.Go(func() {
			// It ends when ssh does; there is nobody to tell of what it says.
			_ = agent.ServeAgent(ring, conn)
			_ = conn.Close()
		})
	}
}

func (s *Session) config(check string) string {
	quoted := func(name string) string { return `"` + filepath.Join(s.dir, name) + `"` }
	return strings.Join([]string{
		"BatchMode yes", "ConnectTimeout 20", "ServerAliveInterval 20", "ServerAliveCountMax 3",
		"IdentityAgent " + quoted("agent"), "IdentityFile none", "IdentitiesOnly no", "PreferredAuthentications publickey",
		"UserKnownHostsFile " + quoted("known_hosts"), "GlobalKnownHostsFile /dev/null",
		"StrictHostKeyChecking " + check, "UpdateHostKeys no", "HashKnownHosts no", "CheckHostIP no",
		"ForwardAgent no", "ControlMaster no", "ControlPath none", "PermitLocalCommand no", "LogLevel ERROR", "",
	}, "\n")
}

// Env is what git needs to use the session. The user's own configuration and agent
// are out of reach.
func (s *Session) Env() []string {
	config := "'" + strings.ReplaceAll(filepath.Join(s.dir, "config"), "'", `'\''`) + "'"
	return []string{"GIT_SSH_COMMAND=ssh -F " + config, "GIT_SSH_VARIANT=ssh", "SSH_AUTH_SOCK=" + s.socket()}
}

// Hosts returns the host keys that are known now, and whether that is news.
func (s *Session) Hosts() (knownHosts string, news bool, err error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "known_hosts"))
	if err != nil {
		return "", false, errs.Wrap(errs.Internal, err, "reading the host keys")
	}
	return string(b), string(b) != s.hosts, nil
}

// Close takes the key back.
func (s *Session) Close() error {
	err := s.listen.Close()
	s.mu.Lock()
	s.over = true
	for _, c := range s.conns {
		_ = c.Close() // most are closed already
	}
	s.mu.Unlock()
	s.served.Wait()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// HostKeys reads known_hosts into lines for people: "host type SHA256:…". It
// refuses text that is not in that form.
func HostKeys(knownHosts string) ([]string, error) {
	var out []string
	rest := []byte(knownHosts)
	for len(bytes.TrimSpace(rest)) > 0 {
		_, hosts, key, _, next, err := ssh.ParseKnownHosts(rest)
		if errors.Is(err, io.EOF) {
			break // only comments are left
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "the known hosts can't be read").WithHint("give lines as ssh-keyscan prints them: host type key")
		}
		rest = next
		out = append(out, strings.Join(hosts, ",")+" "+key.Type()+" "+ssh.FingerprintSHA256(key))
	}
	return out, nil
}
