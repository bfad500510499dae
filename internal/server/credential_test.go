package server

import (
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/git/credential"
	"gastown/internal/git/hub"
)

func TestACredentialIsTriedBeforeItReplacesTheOldOneAndIsNeverShown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	rigs, rig := "/api/v1/towns/alpha/rigs", "/api/v1/towns/alpha/rigs/web"
	l.call("POST", rigs, api.AddRig{Name: "web", URL: "https://git.example/web.git",
		Credential: &api.Credential{Kind: "basic", Username: "bot", Secret: "s3cr3t-one"}}).want(201, nil)
	kept := func() string {
		t.Helper()
		names, err := l.vault.List("git")
		if err != nil || len(names) != 1 {
			t.Fatalf("%v, %v", names, err)
		}
		value, err := l.vault.Get(names[0])
		if err != nil {
			t.Fatal(err)
		}
		c, err := credential.Decode(value)
		if err != nil {
			t.Fatal(err)
		}
		return c.Secret
	}
	l.hub.push = func(r hub.Remote) error {
		if r.Try == nil || r.Try.Secret != "s3cr3t-two" {
			t.Error("something else than the new credential was tried")
		}
		return errs.New(errs.Forbidden, "the server can read, but not push")
	}
	edit := api.EditRig{Credential: &api.Credential{Kind: "token", Secret: "s3cr3t-two"}}
	l.call("PATCH", rig, edit).problem(403, errs.Forbidden)
	if kept() != "s3cr3t-one" {
		t.Error("a credential that was refused replaced the old one")
	}
	l.hub.push = nil
	got := l.call("PATCH", rig, edit).want(200, nil)
	if kept() != "s3cr3t-two" || !strings.Contains(string(got.body), `"kind":"token"`) {
		t.Errorf("kept %q; the answer is %s", kept(), got.body)
	}
	for _, path := range []string{rig, rigs, "/api/v1/towns/alpha/ledger"} {
		if body := l.call("GET", path, nil).want(200, nil).body; strings.Contains(string(body), "s3cr3t") {
			t.Errorf("%s shows the credential", path)
		}
	}
	if strings.Contains(l.log.String(), "s3cr3t") {
		t.Error("the log shows the credential")
	}
	l.call("PATCH", rig, api.EditRig{NoCredential: true}).want(200, nil)
	if names, err := l.vault.List("git"); err != nil || len(names) != 0 {
		t.Errorf("left after it was taken away: %v, %v", names, err)
	}
	var shown api.Rig
	l.call("GET", rig, nil).want(200, &shown)
	if shown.HasCredential || shown.Credential != nil {
		t.Errorf("still shown: %+v", shown.Credential)
	}
}

func TestARequestWithACredentialThatCannotWorkIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.call("POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}).want(201, nil)
	for what, in := range map[string]api.AddRig{
		"two":              {URL: "https://git.example/w.git", GitToken: "a", Credential: &api.Credential{Kind: "token", Secret: "b"}},
		"two lines":        {URL: "https://git.example/w.git", GitToken: "a\nb"},
		"ssh key on https": {URL: "https://git.example/w.git", Credential: &api.Credential{Kind: "ssh-key", Secret: "b"}},
		"token on ssh":     {URL: "git@git.example:w.git", Credential: &api.Credential{Kind: "token", Secret: "b"}},
		"hosts of a token": {URL: "https://git.example/w.git", Credential: &api.Credential{Kind: "token", Secret: "b", KnownHosts: "x"}},
	} {
		in.Name = "web"
		if p := l.call("POST", "/api/v1/towns/alpha/rigs", in).problem(422, errs.Invalid); p.Detail == "" {
			t.Errorf("%s: no reason", what)
		}
	}
	if names, err := l.vault.List("git"); err != nil || len(names) != 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}
