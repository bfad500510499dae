package credential

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gastown/internal/errs"
)

func sshKey(t *testing.T, passphrase string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

func TestACredentialThatCanNeverWorkIsRefused(t *testing.T) {
	t.Parallel()
	const web, shell = "https://h.example/x.git", "git@h.example:x.git"
	key := sshKey(t, "")
	for what, c := range map[string]struct {
		c      Credential
		remote string
		ok     bool
	}{
		"token":                   {Credential{Kind: Token, Secret: "t"}, web, true},
		"token over ssh":          {Credential{Kind: Token, Secret: "t"}, shell, false},
		"token of two lines":      {Credential{Kind: Token, Secret: "a\nb"}, web, false},
		"nothing":                 {Credential{Kind: Token}, web, false},
		"too long":                {Credential{Kind: Token, Secret: strings.Repeat("x", MaxSecret+1)}, web, false},
		"password":                {Credential{Kind: Basic, Username: "u", Secret: "p"}, web, true},
		"password without a user": {Credential{Kind: Basic, Secret: "p"}, web, false},
		"user with a line":        {Credential{Kind: Basic, Username: "u\nhost=x", Secret: "p"}, web, false},
		"ssh key":                 {Credential{Kind: SSHKey, Secret: key}, shell, true},
		"ssh key over https":      {Credential{Kind: SSHKey, Secret: key}, web, false},
		"ssh key of a path":       {Credential{Kind: SSHKey, Secret: key}, "/srv/x.git", false},
		"locked ssh key":          {Credential{Kind: SSHKey, Secret: sshKey(t, "x")}, shell, false},
		"no ssh key":              {Credential{Kind: SSHKey, Secret: "hello"}, shell, false},
		"app without a key":       {Credential{Kind: GitHubApp, AppID: "1", InstallationID: "2", Secret: key}, web, false},
		"unknown":                 {Credential{Kind: "magic", Secret: "x"}, web, false},
	} {
		err := c.c.Check(c.remote)
		if c.ok != (err == nil) || err != nil && !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
		if err != nil && len(c.c.Secret) > 3 && strings.Contains(err.Error(), c.c.Secret) {
			t.Errorf("%s: the error holds the secret", what)
		}
	}
}

func TestWhatTheVaultKeepsComesBackAndOldLinesAreRead(t *testing.T) {
	t.Parallel()
	want := Credential{Kind: GitHubApp, Secret: "k", AppID: "1", InstallationID: "2", API: "https://g.example/api/v3"}
	b, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(b); err != nil || got != want {
		t.Errorf("%#v, %v", got, err)
	}
	for line, want := range map[string]Credential{
		"ghp_x\n":        {Kind: Token, Secret: "ghp_x"},
		"bot:se:same\nx": {Kind: Basic, Username: "bot", Secret: "se:same"},
	} {
		if got, err := Decode([]byte(line)); err != nil || got != want {
			t.Errorf("%q: %q %q, %v", line, got.Username, got.Secret, err)
		}
	}
}

func TestAPrintedCredentialHoldsNoSecret(t *testing.T) {
	t.Parallel()
	c := Credential{Kind: Token, Secret: "sesame"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "credential", c)
	for _, s := range []string{fmt.Sprint(c), fmt.Sprintf("%v %+v %#v %s", c, c, c, c), fmt.Sprintf("%v", &c), log.String()} {
		if strings.Contains(s, "sesame") {
			t.Errorf("printed as %s", s)
		}
	}
}

func TestTheProofOfAnAppIsNotSentWhereARedirectLeads(t *testing.T) {
	t.Parallel()
	asked := 0
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer thief.Close()
	api := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	defer api.Close()
	l := NewLogins(time.Now)
	_, err := l.ask(t.Context(), Credential{Kind: GitHubApp, AppID: "1", InstallationID: "2", API: api.URL, Secret: rsaPEM(t)})
	if !errs.Is(err, errs.Forbidden) || asked != 0 {
		t.Errorf("%v; the other host was asked %d times", err, asked)
	}
}

func TestHostKeysAreShownByTheirFingerprints(t *testing.T) {
	t.Parallel()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	line := "h.example " + string(ssh.MarshalAuthorizedKey(key))
	got, err := HostKeys("# a comment\n" + line + "\n# the end\n")
	if err != nil || len(got) != 1 || got[0] != "h.example ssh-ed25519 "+ssh.FingerprintSHA256(key) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := HostKeys("what is this"); !errs.Is(err, errs.Invalid) {
		t.Errorf("nonsense: %v", err)
	}
}

func FuzzWhatTheVaultHoldsIsReadOrRefused(f *testing.F) {
	f.Add([]byte(`{"kind":"token","secret":"x"}`))
	f.Add([]byte("user:password\n"))
	f.Add([]byte(`{"kind":`))
	f.Fuzz(func(t *testing.T, value []byte) {
		c, err := Decode(value)
		if err != nil {
			return
		}
		if c.Check("https://h.example/x") == nil && strings.ContainsAny(c.Username+c.AppID, "\n\r\x00") {
			t.Errorf("a name with a line end passes: %q", c.Username)
		}
	})
}

func rsaPEM(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}
