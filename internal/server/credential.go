package server

import (
	"cmp"
	"context"
	"strings"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/credential"
	"gastown/internal/git/hub"
	"gastown/internal/town"
)

// maxKnownHosts bounds what a known_hosts file of one rig may have, in bytes.
const maxKnownHosts = 64 << 10

// login is a credential that somebody sent, nil for none, with the host keys that
// came with it.
type login struct {
	*credential.Credential
	knownHosts string
}

// newLogin checks what a request gives: a credential, or a token in short.
func newLogin(c *api.Credential, token, url string) (login, error) {
	if c != nil && token != "" {
		return login{}, errs.New(errs.Invalid, "git_token and credential contradict each other").WithHint("give one of them")
	}
	if token != "" {
		if len(token) > credential.MaxSecret || strings.ContainsAny(token, "\n\r\x00") {
			return login{}, errs.New(errs.Invalid, "git_token must be a single line of at most %d bytes", credential.MaxSecret)
		}
		made := credential.FromLine(token)
		return login{Credential: &made}, made.Check(url)
	}
	if c == nil {
		return login{}, nil
	}
	made := credential.Credential{Kind: credential.Kind(c.Kind), Secret: strings.TrimSpace(c.Secret), Username: c.Username, AppID: c.AppID,
		InstallationID: c.InstallationID, API: c.API}
	if err := made.Check(url); err != nil {
		return login{}, err
	}
	if c.KnownHosts != "" && made.Kind != credential.SSHKey || len(c.KnownHosts) > maxKnownHosts {
		return login{}, errs.New(errs.Invalid, "known_hosts is for an ssh key, and at most %d bytes", maxKnownHosts)
	}
	_, err := credential.HostKeys(c.KnownHosts)
	return login{&made, c.KnownHosts}, err
}

func secretName(townID, rig string) string { return "git/" + townID + "/" + rig }

// keep puts a login into the vault.
func (s *Server) keep(name string, l login) error {
	b, err := l.Encode()
	if err != nil {
		return err
	}
	if l.knownHosts != "" {
		if err := s.cfg.Secrets.Put(hub.HostsName(name), []byte(l.knownHosts)); err != nil {
			return err
		}
	}
	return s.cfg.Secrets.Put(name, b)
}

// forget removes a login from the vault. Nothing there is no error.
func (s *Server) forget(name string) error {
	for _, n := range []string{name, hub.HostsName(name)} {
		if err := s.cfg.Secrets.Delete(n); err != nil && !errs.Is(err, errs.NotFound) {
			return err
		}
	}
	return nil
}

// info is what is shown of a rig's credential, nil for none.
func (s *Server) info(secret string) (*api.CredentialInfo, error) {
	if secret == "" {
		return nil, nil
	}
	value, err := s.cfg.Secrets.Get(secret)
	if errs.Is(err, errs.NotFound) {
		return &api.CredentialInfo{Kind: "missing"}, nil // a backup without secrets was restored
	}
	if err != nil {
		return nil, err
	}
	c, err := credential.Decode(value)
	if err != nil {
		return nil, err
	}
	w := c.Show()
	out := &api.CredentialInfo{Kind: string(w.Kind), Username: w.Username, Fingerprint: w.Fingerprint, AppID: w.AppID,
		InstallationID: w.InstallationID, API: w.API}
	known, err := s.cfg.Secrets.Get(hub.HostsName(secret))
	if err == nil {
		out.HostKeys, err = credential.HostKeys(string(known))
	}
	if errs.Is(err, errs.NotFound) {
		err = nil
	}
	return out, err
}

// editAccess changes how a rig is reached. A new credential is tried first: one
// that upstream refuses changes nothing. It returns what the town is to be told.
func (s *Server) editAccess(ctx context.Context, townID string, in *editRigIn) (access string, secret *string, err error) {
	e := in.Body
	if e.Credential == nil && !e.NoCredential && !e.ForgetHostKeys {
		return "", nil, nil
	}
	if e.Credential != nil && e.NoCredential {
		return "", nil, errs.New(errs.Invalid, "a credential can't be given and taken away at once")
	}
	var rig town.Rig
	if err := s.view(ctx, townID, func(t *town.Town) (err error) { rig, err = getRig(t, in.Rig); return err }); err != nil {
		return "", nil, err
	}
	name := cmp.Or(rig.Secret, secretName(townID, rig.Name))
	if e.ForgetHostKeys {
		if err := s.cfg.Secrets.Delete(hub.HostsName(name)); err != nil && !errs.Is(err, errs.NotFound) {
			return "", nil, err
		}
		access = "host keys forgotten"
	}
	switch {
	case e.NoCredential:
		none := ""
		return "credential taken away", &none, nil
	case e.Credential == nil:
		return access, nil, nil
	}
	l, err := newLogin(e.Credential, "", rig.URL)
	if err != nil {
		return "", nil, err
	}
	if l.knownHosts != "" {
		if err := s.cfg.Secrets.Put(hub.HostsName(name), []byte(l.knownHosts)); err != nil {
			return "", nil, err
		}
	}
	if rig.State == town.RigActive {
		try := remote(rig)
		try.Secret, try.Try = name, l.Credential
		if err := s.cfg.Hub.MayPush(ctx, hub.ID{Town: townID, Rig: rig.Name}, try); err != nil {
			return "", nil, err
		}
	}
	return "credential replaced (" + string(l.Kind) + ")", &name, s.keep(name, l)
}
