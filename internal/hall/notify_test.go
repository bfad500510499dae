package hall_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/town"
	"gastown/internal/vault"
)

var someone = hall.TownRef{ID: "t1", Name: "house", Owner: "t1"}

var notice = town.Notice{ID: 7, Kind: "bead.failed", Subject: "web-00001", Text: "it failed"}

func newVault(t *testing.T) *vault.Vault {
	t.Helper()
	v, err := vault.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func TestAWebhookIsSigned(t *testing.T) {
	t.Parallel()
	var body []byte
	var signature string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			t.Error(err)
		}
		signature = r.Header.Get(hall.SignatureHeader)
	}))
	defer srv.Close()
	v := newVault(t)
	m := &hall.Messenger{Vault: v, AllowPrivate: true}
	if err := m.Notify(t.Context(), someone, notice, srv.URL+"/hook"); err != nil {
		t.Fatal(err)
	}
	key, err := v.Get("notify/t1")
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(body)
	if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); signature != want {
		t.Fatalf("signature %q, not %q", signature, want)
	}
	var msg hall.Message
	if err := json.Unmarshal(body, &msg); err != nil || msg.ID != 7 || msg.Town != "house" || msg.Subject != "web-00001" {
		t.Fatalf("got %+v %v", msg, err)
	}
}

func TestAWebhookDoesNotLeadInwards(t *testing.T) {
	t.Parallel()
	hit := false
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit = true }))
	defer inner.Close()
	m := &hall.Messenger{Vault: newVault(t)}
	for _, url := range []string{
		inner.URL + "/x?secret=hunter2", "http://10.1.2.3/", "http://[::1]:80/", "http://169.254.169.254/", "http://[::ffff:127.0.0.1]/",
		"http://100.64.0.1/", "http://0.0.0.0/", "http://[64:ff9b::7f00:1]/", "http://[::7f00:1]/", "http://[fec0::1]/", "http://[2001::1]/", strings.Replace(inner.URL, "127.0.0.1", "localhost", 1),
	} {
		err := m.Notify(t.Context(), someone, notice, url)
		if err == nil || !strings.Contains(err.Error(), "may not go to") {
			t.Errorf("%s: %v", url, err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error tells the URL: %v", err)
		}
	}
	if hit {
		t.Fatal("the inner server was reached")
	}
	for _, url := range []string{"file:///etc/passwd", "gopher://x/", "http://", "::"} {
		if err := m.Notify(t.Context(), someone, notice, url); err == nil || !strings.Contains(err.Error(), "not an http") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestAWebhookFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	hit := false
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit = true }))
	defer inner.Close()
	outer := httptest.NewServer(http.RedirectHandler(inner.URL, http.StatusTemporaryRedirect))
	defer outer.Close()
	m := &hall.Messenger{Vault: newVault(t), AllowPrivate: true}
	if err := m.Notify(t.Context(), someone, notice, outer.URL); err == nil || hit {
		t.Fatalf("followed: %v, %v", hit, err)
	}
}

func TestANotifyCommandGetsTheMessageWithoutAShell(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script, out := filepath.Join(dir, "tell"), filepath.Join(dir, "out; touch x")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat >\"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := &hall.Messenger{Command: []string{script, out}}
	if err := m.Notify(t.Context(), someone, notice, ""); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil || !strings.Contains(string(got), `"kind":"bead.failed"`) {
		t.Fatalf("got %q %v", got, err)
	}
	m.Command = []string{"/bin/false"}
	if err := m.Notify(t.Context(), someone, notice, ""); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("a failing command: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Notify(ctx, someone, notice, ""); err == nil {
		t.Fatal("a call after its time succeeded")
	}
}

func TestEveryActionHasAPerformer(t *testing.T) {
	t.Parallel()
	f, d := boxes(t)
	o := &hall.Outside{Driver: d, Hub: &fakeHub{}, Tokens: tokens{}, Runner: func(hall.TownRef, int64) ([]string, []string) { return []string{"r"}, nil }}
	for _, a := range town.Actions() {
		name := town.ActionName(a)
		func() {
			defer func() {
				if recover() != nil {
					return // the fake hub lacks the method that was called: it was dispatched
				}
			}()
			_, err := o.Perform(f.t.Context(), someone, town.Effect{Action: a})
			unknown := err != nil && strings.Contains(err.Error(), "nobody knows")
			if unknown != (name == "sandbox.admit") { // the hall performs that itself
				t.Errorf("%s: %v", name, err)
			}
		}()
	}
}
