package hub

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"gastown/internal/errs"
	"gastown/internal/git"
	"gastown/internal/git/credential"
)

// credentialHelper answers git's question for a credential from its environment.
// Only builtins of the shell touch the value, so it is in no argv.
const credentialHelper = `!f() { test "$1" = get || exit 0; ` +
	`printf 'username=%s\npassword=%s\n' "$GASTOWN_GIT_USERNAME" "$GASTOWN_GIT_PASSWORD"; }; f`

// access is what one call of git was lent.
type access struct {
	login   *credential.Credential
	session *credential.Session // of ssh
	hide    []string            // from what git says
}

// access gives c the protocol and the credential of r, and nothing else.
func (h *Hub) access(ctx context.Context, r Remote, c *git.Cmd) (access, error) {
	proto := "ssh"
	switch {
	case git.LocalPath(r.URL) != "":
		proto = "file"
	case strings.HasPrefix(r.URL, "https://"):
		proto = "https"
	case strings.HasPrefix(r.URL, "http://"):
		proto = "http:https"
	}
	c.Env = append(c.Env, "GIT_ALLOW_PROTOCOL="+proto)
	c.Config = append(c.Config,
		git.Setting{Key: "http.lowSpeedLimit", Value: "500"}, // bytes per second, for so many seconds:
		git.Setting{Key: "http.lowSpeedTime", Value: "60"},
		git.Setting{Key: "credential.helper", Value: ""},
	)
	login, err := h.credential(r)
	if err != nil || login == nil {
		return access{}, err
	}
	if login.Kind == credential.SSHKey {
		return h.accessSSH(r, login, c)
	}
	user, password, err := h.logins.Login(ctx, *login)
	if err != nil {
		return access{}, err
	}
	u, err := url.Parse(r.URL)
	if err != nil {
		return access{}, errs.New(errs.Invalid, "the git URL does not parse")
	}
	c.Env = append(c.Env, "GASTOWN_GIT_USERNAME="+user, "GASTOWN_GIT_PASSWORD="+password)
	c.Config = append(c.Config,
		// An older libcurl carries a credential along to another port of the host.
		git.Setting{Key: "http.followRedirects", Value: "false"},
		git.Setting{Key: "credential." + u.Scheme + "://" + u.Host + ".helper", Value: credentialHelper})
	return access{login: login, hide: []string{password, login.Secret}}, nil
}

func (h *Hub) accessSSH(r Remote, login *credential.Credential, c *git.Cmd) (access, error) {
	known, err := h.hosts(r)
	if err != nil {
		return access{}, err
	}
	s, err := login.NewSession(known)
	if err != nil {
		return access{}, err
	}
	c.Env = append(c.Env, s.Env()...)
	return access{login: login, session: s}, nil
}

// credential reads the one of a remote, nil for none.
func (h *Hub) credential(r Remote) (*credential.Credential, error) {
	if r.Try != nil {
		return r.Try, nil
	}
	if r.Secret == "" {
		return nil, nil
	}
	if h.vault == nil {
		return nil, errs.New(errs.Internal, "the hub has no vault to take the credential from")
	}
	value, err := h.vault.Get(r.Secret)
	if err != nil {
		return nil, errs.Wrap(errs.KindOf(err), err, "reading the rig's credential")
	}
	c, err := credential.Decode(value)
	if err != nil {
		return nil, err
	}
	return &c, c.Check(r.URL)
}

// HostsName is the vault entry with the ssh host keys of the remote whose
// credential is the entry secret.
func HostsName(secret string) string { return "hosts/" + strings.TrimPrefix(secret, "git/") }

// hosts returns the host keys that were recorded for a remote.
func (h *Hub) hosts(r Remote) (string, error) {
	if h.vault == nil || r.Secret == "" {
		return "", nil
	}
	known, err := h.vault.Get(HostsName(r.Secret))
	if errs.Is(err, errs.NotFound) {
		return "", nil
	}
	return string(known), err
}

// leave takes back what a call was lent. The key of a host that was met for the
// first time is recorded when the call went well; a token that was refused is not
// used again. It returns the call's error, or its own.
func (h *Hub) leave(r Remote, a access, err error) error {
	if err != nil && a.login != nil && errs.Is(classify(err), errs.Forbidden) {
		h.logins.Forget(*a.login)
	}
	if a.session == nil {
		return err
	}
	known, news, hostsErr := a.session.Hosts()
	if closeErr := a.session.Close(); closeErr != nil {
		h.log.Warn("leftover of an ssh session", "err", closeErr)
	}
	if err != nil || !news || h.vault == nil || r.Secret == "" {
		return err
	}
	if hostsErr == nil {
		hostsErr = h.vault.Put(HostsName(r.Secret), []byte(known))
	}
	lines, readErr := credential.HostKeys(known)
	if hostsErr = errors.Join(hostsErr, readErr); hostsErr != nil {
		return errs.Wrap(errs.Internal, hostsErr, "recording the key of the upstream's ssh host")
	}
	h.log.Info("the ssh host key of an upstream was recorded", "rig", strings.TrimPrefix(r.Secret, "git/"), "key", strings.Join(lines, "; "))
	return nil
}
