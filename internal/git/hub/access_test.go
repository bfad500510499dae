package hub

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/crypto/ssh"

	"gastown/internal/errs"
	"gastown/internal/git/credential"
)

// backend is git's own server over HTTP.
func backend(t *testing.T, root string) http.Handler {
	t.Helper()
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	return &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
}

// pushing reports whether a request asks to write.
func pushing(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "git-receive-pack") || r.URL.Query().Get("service") == "git-receive-pack"
}

func (w *world) keep(t *testing.T, name string, c credential.Credential) {
	t.Helper()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.v.Put(name, b); err != nil {
		t.Fatal(err)
	}
}

// populated has a commit at upstream, which takes pushes over HTTP.
func populated(t *testing.T) (*world, string) {
	t.Helper()
	w := emptyWorld(t)
	tip := commit(t, w.clone, "a.txt", "1\n")
	sh(t, w.clone, "push", "-q", "origin", "main")
	sh(t, w.upstream, "config", "http.receivepack", "true")
	return w, tip
}

func TestAUserWhoMayOnlyReadIsFoundOutBeforeAnyWork(t *testing.T) {
	t.Parallel()
	w, tip := populated(t)
	real := backend(t, filepath.Dir(w.upstream))
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case user != "reader" && user != "writer" || password != "of "+user:
			rw.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
			rw.WriteHeader(http.StatusUnauthorized)
		case user == "reader" && pushing(r):
			rw.WriteHeader(http.StatusForbidden)
		default:
			real.ServeHTTP(rw, r)
		}
	}))
	defer s.Close()
	reader := credential.Credential{Kind: credential.Basic, Username: "reader", Secret: "of reader"}
	writer := credential.Credential{Kind: credential.Basic, Username: "writer", Secret: "of writer"}
	r := Remote{URL: s.URL + "/up.git", Target: "main", Secret: "git/springfield/app"}
	w.keep(t, r.Secret, reader)
	_, err := w.Add(t.Context(), rig, r, AddOptions{})
	wantKind(t, err, errs.Forbidden, "not push")
	w.nothingLeft(t)

	w.keep(t, r.Secret, writer)
	if got, err := w.Add(t.Context(), rig, r, AddOptions{}); err != nil || got != tip {
		t.Fatalf("Add: %s, %v", got, err)
	}
	if err := w.MayPush(t.Context(), rig, r); err != nil {
		t.Errorf("who may write is refused: %v", err)
	}
	try := r
	try.Try = &reader
	wantKind(t, w.MayPush(t.Context(), rig, try), errs.Forbidden, "not push")
	if got := sh(t, w.upstream, "for-each-ref", "--format=%(refname)"); got != "refs/heads/main" {
		t.Errorf("probing left %q upstream", got)
	}
	w.keep(t, r.Secret, reader)
	wantKind(t, w.MayPush(t.Context(), rig, r), errs.Forbidden, "not push")
	s.Close()
	wantKind(t, w.MayPush(t.Context(), rig, r), errs.Unavailable)
}

// TestARequestRedirectedInTheMiddleCarriesNoCredential has two real servers: the
// one answers the first request of fetch or push itself and redirects the second,
// which carries the objects, to the other.
func TestARequestRedirectedInTheMiddleCarriesNoCredential(t *testing.T) {
	t.Parallel()
	w, tip := newWorld(t)
	sh(t, w.upstream, "config", "http.receivepack", "true")
	real := backend(t, filepath.Dir(w.upstream))
	var mu sync.Mutex
	seen := ""
	asked := 0
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked++
		seen += r.Header.Get("Authorization")
		mu.Unlock()
		real.ServeHTTP(rw, r)
	}))
	defer other.Close()
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			rw.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodPost {
			http.Redirect(rw, r, other.URL+r.URL.RequestURI(), http.StatusTemporaryRedirect)
			return
		}
		real.ServeHTTP(rw, r)
	}))
	defer front.Close()
	r := Remote{URL: front.URL + "/up.git", Target: "main", Secret: "git/springfield/app"}
	w.keep(t, r.Secret, credential.Credential{Kind: credential.Token, Secret: "sesame-42"})
	if _, err := w.Fetch(t.Context(), rig, r); err == nil {
		t.Error("a fetch followed a redirect with a credential")
	}
	c := w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n")
	if err := w.PushBranch(t.Context(), rig, r, "gt/nux/b-1", c); err == nil {
		t.Error("a push followed a redirect with a credential")
	}
	mu.Lock()
	defer mu.Unlock()
	if asked != 0 || seen != "" {
		t.Errorf("the other host was asked %d times and got %q", asked, seen)
	}
}

// sshHost is an ssh server that runs git for those whose key it knows.
type sshHost struct {
	addr string
	mu   sync.Mutex
	may  map[string]string // "read" or "write" by public key
	seen []string          // fingerprints of keys that were offered
}

func signer(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, string(pem.EncodeToMemory(block))
}

// listenSSH starts the host at addr with a new host key.
func listenSSH(t *testing.T, addr, root string, may map[string]string) *sshHost {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("SKIPPED: there is no ssh on this machine (Debian: openssh-client)")
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	h := &sshHost{addr: ln.Addr().String(), may: may}
	host, _ := signer(t)
	conf := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.seen = append(h.seen, ssh.FingerprintSHA256(key))
		if what, ok := h.may[string(key.Marshal())]; ok {
			return &ssh.Permissions{Extensions: map[string]string{"may": what}}, nil
		}
		return nil, fmt.Errorf("an unknown key")
	}}
	conf.AddHostKey(host)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(conn, conf, root) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return h
}

func (h *sshHost) serve(conn net.Conn, conf *ssh.ServerConfig, root string) {
	defer conn.Close()
	c, channels, requests, err := ssh.NewServerConn(conn, conf)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for ch := range channels {
		stream, reqs, err := ch.Accept()
		if err != nil {
			return
		}
		for r := range reqs {
			if r.Type != "exec" {
				r.Reply(r.Type == "env", nil)
				continue
			}
			r.Reply(true, nil)
			verb, path, _ := strings.Cut(string(r.Payload[4:]), " ")
			code := byte(0)
			if verb == "git-receive-pack" && c.Permissions.Extensions["may"] != "write" {
				fmt.Fprintln(stream.Stderr(), "ERROR: The key you are authenticating with has been marked as read only.")
				code = 1
			} else {
				cmd := exec.Command("git", strings.TrimPrefix(verb, "git-"), filepath.Join(root, strings.Trim(path, "'/")))
				cmd.Stdin, cmd.Stdout, cmd.Stderr = stream, stream, stream.Stderr()
				cmd.WaitDelay = time.Second // the stream ends with the connection
				if cmd.Run() != nil {
					code = 128
				}
			}
			stream.SendRequest("exit-status", false, []byte{0, 0, 0, code})
			stream.Close()
		}
	}
}

func TestAnSSHKeyOfTheRigReachesUpstreamAndNothingElseIsOffered(t *testing.T) {
	t.Parallel()
	w, tip := populated(t)
	pub, key := signer(t)
	readPub, readKey := signer(t)
	strangerPub, strangerKey := signer(t)
	h := listenSSH(t, "127.0.0.1:0", filepath.Dir(w.upstream), map[string]string{
		string(pub.PublicKey().Marshal()): "write", string(readPub.PublicKey().Marshal()): "read"})
	r := Remote{URL: "ssh://git@" + h.addr + "/up.git", Target: "main", Secret: "git/springfield/app"}

	w.keep(t, r.Secret, credential.Credential{Kind: credential.SSHKey, Secret: strangerKey})
	_, err := w.Add(t.Context(), rig, r, AddOptions{})
	wantKind(t, err, errs.Forbidden, "refused the credentials")
	w.keep(t, r.Secret, credential.Credential{Kind: credential.SSHKey, Secret: readKey})
	_, err = w.Add(t.Context(), rig, r, AddOptions{})
	wantKind(t, err, errs.Forbidden, "not push")
	w.nothingLeft(t)

	w.keep(t, r.Secret, credential.Credential{Kind: credential.SSHKey, Secret: strings.TrimSpace(key)})
	if got, err := w.Add(t.Context(), rig, r, AddOptions{}); err != nil || got != tip {
		t.Fatalf("Add: %s, %v", got, err)
	}
	m := w.candidate(t, tip, w.agent(t, tip, "gt/nux/b-1", "a.txt", "x\n"))
	if got, err := w.Land(t.Context(), rig, r, tip, m); err != nil || !got.Landed {
		t.Fatalf("Land: %+v, %v", got, err)
	}
	known, err := w.v.Get(HostsName(r.Secret))
	if err != nil {
		t.Fatal(err)
	}
	lines, err := credential.HostKeys(string(known))
	if err != nil || len(lines) != 1 || !strings.Contains(lines[0], "ssh-ed25519 SHA256:") {
		t.Errorf("recorded host keys: %q, %v", lines, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	ours := map[string]bool{ssh.FingerprintSHA256(pub.PublicKey()): true, ssh.FingerprintSHA256(readPub.PublicKey()): true,
		ssh.FingerprintSHA256(strangerPub.PublicKey()): true}
	for _, f := range h.seen {
		if !ours[f] {
			t.Errorf("a key that is not the rig's was offered: %s", f)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "gastown-ssh-*")); err == nil {
		for _, dir := range left {
			if b, err := os.ReadFile(filepath.Join(dir, "config")); err == nil && strings.Contains(string(b), "PRIVATE KEY") {
				t.Error("the key is on the disk")
			}
		}
	}
}

func TestAHostWhoseKeyChangedIsNotTalkedTo(t *testing.T) {
	t.Parallel()
	w, _ := populated(t)
	pub, key := signer(t)
	may := map[string]string{string(pub.PublicKey().Marshal()): "write"}
	h := listenSSH(t, "127.0.0.1:0", filepath.Dir(w.upstream), may)
	r := Remote{URL: "ssh://git@" + h.addr + "/up.git", Target: "main", Secret: "git/springfield/app"}
	w.keep(t, r.Secret, credential.Credential{Kind: credential.SSHKey, Secret: key})
	if _, err := w.Add(t.Context(), rig, r, AddOptions{}); err != nil {
		t.Fatal(err)
	}
	impostor := listenSSH(t, "127.0.0.1:0", filepath.Dir(w.upstream), may)
	known, err := w.v.Get(HostsName(r.Secret))
	if err != nil {
		t.Fatal(err)
	}
	_, oldPort, _ := net.SplitHostPort(h.addr)
	_, newPort, _ := net.SplitHostPort(impostor.addr)
	// The other host stands where the known one stood.
	if err := w.v.Put(HostsName(r.Secret), []byte(strings.ReplaceAll(string(known), oldPort, newPort))); err != nil {
		t.Fatal(err)
	}
	r.URL = "ssh://git@" + impostor.addr + "/up.git"
	_, err = w.Fetch(t.Context(), rig, r)
	wantKind(t, err, errs.Forbidden, "host key", "--forget-host-keys")
	if err := w.v.Delete(HostsName(r.Secret)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Fetch(t.Context(), rig, r); err != nil {
		t.Errorf("after its key was forgotten: %v", err)
	}
}

// github makes tokens for an App like GitHub does.
type github struct {
	mu    sync.Mutex
	key   *rsa.PublicKey
	made  int
	until time.Time
}

func (g *github) token() string { return fmt.Sprintf("ghs_token_%d", g.made) }

func (g *github) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var c jwt.RegisteredClaims
	_, err := jwt.ParseWithClaims(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), &c, func(*jwt.Token) (any, error) { return g.key, nil },
		jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer("4711"))
	switch {
	case err != nil || c.ExpiresAt.Sub(c.IssuedAt.Time) > 10*time.Minute:
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"message":"A JSON web token could not be decoded"}`)
	case r.Method != http.MethodPost || r.URL.Path != "/api/v3/app/installations/42/access_tokens":
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"message":"Not Found"}`)
	default:
		g.made++
		w.WriteHeader(http.StatusCreated)
		// Encoding strings can't fail; a client that is gone is not our matter.
		_ = json.NewEncoder(w).Encode(map[string]any{"token": g.token(), "expires_at": g.until})
	}
}

func TestAGitHubAppGetsTokensAndKeepsThemUntilShortlyBeforeTheirEnd(t *testing.T) {
	t.Parallel()
	w, tip := populated(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	g := &github{key: &key.PublicKey, until: time.Now().Add(time.Hour)}
	api := httptest.NewServer(g)
	defer api.Close()
	real := backend(t, filepath.Dir(w.upstream))
	revoked := ""
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		g.mu.Lock()
		ok := user == "x-access-token" && password == g.token() && password != revoked
		g.mu.Unlock()
		if !ok {
			rw.Header().Set("WWW-Authenticate", `Basic realm="forge"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		real.ServeHTTP(rw, r)
	}))
	defer s.Close()
	now := time.Now()
	w.logins = credential.NewLogins(func() time.Time { return now })
	app := credential.Credential{Kind: credential.GitHubApp, AppID: "4711", InstallationID: "43", API: api.URL + "/api/v3",
		Secret: string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))}
	r := Remote{URL: s.URL + "/up.git", Target: "main", Secret: "git/springfield/app"}
	w.keep(t, r.Secret, app)
	_, err = w.Add(t.Context(), rig, r, AddOptions{})
	wantKind(t, err, errs.Forbidden, "installation id")
	app.InstallationID, app.AppID = "42", "4712"
	w.keep(t, r.Secret, app)
	_, err = w.Add(t.Context(), rig, r, AddOptions{})
	wantKind(t, err, errs.Forbidden, "private key")
	app.AppID = "4711"
	w.keep(t, r.Secret, app)
	if got, err := w.Add(t.Context(), rig, r, AddOptions{}); err != nil || got != tip {
		t.Fatalf("Add: %s, %v", got, err)
	}
	fetch := func(when string, made int) {
		t.Helper()
		if _, err := w.Fetch(t.Context(), rig, r); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if g.made != made {
			t.Errorf("%s: %d tokens were made, want %d", when, g.made, made)
		}
	}
	fetch("while it holds", 1)
	now = now.Add(51 * time.Minute)
	g.until = now.Add(time.Hour)
	fetch("shortly before its end", 2)
	g.mu.Lock()
	revoked = g.token()
	g.mu.Unlock()
	_, err = w.Fetch(t.Context(), rig, r)
	wantKind(t, err, errs.Forbidden)
	fetch("after it was refused", 3)
}
