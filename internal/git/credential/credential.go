// Package credential is what the server knows of a remote repository's logins: a
// token, a user and a password, an ssh key, or a GitHub App.
//
// A Credential is kept in the vault (Encode, Decode) and never shown again; Shown
// is what people may see of it. Login turns it into a user and password for https;
// ServeAgent lends an ssh key to one ssh without writing it anywhere. Neither the
// text of an error nor the printed form of a Credential holds a secret.
package credential

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"

	"golang.org/x/crypto/ssh"

	"gastown/internal/errs"
)

// Kind says how a credential is used.
type Kind string

// The kinds.
const (
	Token     Kind = "token"      // of a forge, for https
	Basic     Kind = "basic"      // user and password, for https
	SSHKey    Kind = "ssh-key"    // a private key, for ssh
	GitHubApp Kind = "github-app" // an installation of a GitHub App, for https
)

const (
	// MaxSecret bounds a token, password or key, in bytes.
	MaxSecret = 16 << 10
	// DefaultAPI is where GitHub itself makes tokens for Apps.
	DefaultAPI = "https://api.github.com"
	tokenUser  = "x-access-token" // what forges expect with a token
	maxName    = 200
)

// Credential is one of the kinds. The zero value is none.
type Credential struct {
	Kind           Kind   `json:"kind"`
	Username       string `json:"username,omitempty"` // basic; optional with token
	Secret         string `json:"secret"`             // token, password, or private key (PEM)
	AppID          string `json:"app_id,omitempty"`   // github-app: id or client id
	InstallationID string `json:"installation_id,omitempty"`
	API            string `json:"api,omitempty"` // github-app: base URL, "" for DefaultAPI
}

// Shown is what people may see of a credential.
type Shown struct {
	Kind           Kind
	Username       string
	Fingerprint    string // of an ssh key, as ssh-keygen prints it
	AppID          string
	InstallationID string
	API            string
}

// String keeps the secret out of whatever prints a credential.
func (c Credential) String() string { return "credential of kind " + string(c.Kind) }

// GoString does the same for %#v.
func (c Credential) GoString() string { return c.String() }

// LogValue does the same for logs.
func (c Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Encode is the form that the vault keeps.
func (c Credential) Encode() ([]byte, error) {
	b, err := json.Marshal(c)
	return b, errs.Wrap(errs.Internal, err, "encoding a credential")
}

// Decode reads what the vault keeps: what Encode wrote, or a line with a token or
// user:password of an earlier version.
func Decode(value []byte) (Credential, error) {
	if bytes.HasPrefix(value, []byte(`{"kind":`)) {
		var c Credential
		if err := json.Unmarshal(value, &c); err != nil {
			return Credential{}, errs.New(errs.Internal, "the rig's credential can't be read").WithHint("give it again: gastown rig set RIG --credential-file FILE")
		}
		return c, nil
	}
	line, _, _ := strings.Cut(string(value), "\n")
	return FromLine(strings.TrimSpace(line)), nil
}

// FromLine makes a credential of a line: a token, or user:password.
func FromLine(line string) Credential {
	if user, password, ok := strings.Cut(line, ":"); ok {
		return Credential{Kind: Basic, Username: user, Secret: password}
	}
	return Credential{Kind: Token, Secret: line}
}

// Check refuses what can never work, and what does not fit the remote's address.
func (c Credential) Check(remote string) error {
	if len(c.Secret) > MaxSecret || c.Secret == "" {
		return errs.New(errs.Invalid, "a credential has from 1 to %d bytes", MaxSecret)
	}
	for _, s := range []string{c.Username, c.AppID, c.InstallationID} {
		if len(s) > maxName || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return errs.New(errs.Invalid, "a user name or id of a credential has spaces or control characters, or is too long")
		}
	}
	web := strings.HasPrefix(remote, "https://") || strings.HasPrefix(remote, "http://")
	if c.Kind == SSHKey {
		if web || strings.HasPrefix(remote, "/") || strings.HasPrefix(remote, "file:") {
			return errs.New(errs.Invalid, "an ssh key works with an ssh address only").WithHint("use ssh://user@host/path or user@host:path, or give a token")
		}
		_, err := c.signer()
		return err
	}
	if !web {
		return errs.New(errs.Invalid, "a git token works with https only").WithHint("use an https URL, give an ssh key, or leave the credential out")
	}
	if c.Kind != GitHubApp && strings.ContainsFunc(c.Secret, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errs.New(errs.Invalid, "a token or password is a single line")
	}
	switch c.Kind {
	case Token:
		return nil
	case Basic:
		if c.Username == "" || strings.Contains(c.Username, ":") {
			return errs.New(errs.Invalid, "a password needs a user name, without a colon")
		}
		return nil
	case GitHubApp:
		return c.checkApp()
	case SSHKey:
	}
	return errs.New(errs.Invalid, "there is no credential of the kind %.40q", string(c.Kind)).WithHint("use token, basic, ssh-key or github-app")
}

func (c Credential) checkApp() error {
	if c.AppID == "" || c.InstallationID == "" || strings.Trim(c.InstallationID, "0123456789") != "" {
		return errs.New(errs.Invalid, "a GitHub App needs the app's id (or client id) and the number of its installation").
			WithHint("the number is the last part of the address of the installation's settings page")
	}
	if _, err := c.rsaKey(); err != nil {
		return err
	}
	u, err := url.Parse(c.api())
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Scheme != "https" && !(u.Scheme == "http" && loopback(u.Hostname())) {
		return errs.New(errs.Invalid, "the address of the GitHub API must be https, without a user or a query").
			WithHint("for GitHub Enterprise Server: https://HOST/api/v3")
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func (c Credential) api() string {
	if c.API == "" {
		return DefaultAPI
	}
	return strings.TrimRight(c.API, "/")
}

// Show returns what people may see.
func (c Credential) Show() Shown {
	s := Shown{Kind: c.Kind, Username: c.Username, AppID: c.AppID, InstallationID: c.InstallationID, API: c.API}
	if signer, err := c.signer(); c.Kind == SSHKey && err == nil {
		s.Fingerprint = ssh.FingerprintSHA256(signer.PublicKey())
	}
	return s
}

// signer reads the private key of ssh.
func (c Credential) signer() (ssh.Signer, error) {
	s, err := ssh.ParsePrivateKey([]byte(c.Secret + "\n"))
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, errs.New(errs.Invalid, "the ssh key is locked with a passphrase").
			WithHint("give a key without one, made for this purpose: ssh-keygen -t ed25519 -N '' -f gastown-key")
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "the ssh key can't be read").WithHint("give the private key in OpenSSH or PEM form")
	}
	return s, nil
}

// rsaKey reads the private key of a GitHub App.
func (c Credential) rsaKey() (*rsa.PrivateKey, error) {
	bad := errs.New(errs.Invalid, "the private key of the GitHub App can't be read").
		WithHint("give the .pem file that GitHub made (Settings, Developer settings, GitHub Apps, Private keys)")
	block, _ := pem.Decode([]byte(c.Secret + "\n"))
	if block == nil {
		return nil, bad
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if rsaKey, ok := k.(*rsa.PrivateKey); err == nil && ok {
		return rsaKey, nil
	}
	return nil, bad
}
