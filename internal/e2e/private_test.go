//go:build e2e

package e2e

import (
	"crypto/rand"
	"crypto/subtle"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"gastown/internal/api"
)

// private is an upstream that asks for a login, as a forge does.
type private struct {
	url, token string
	logins     atomic.Int64 // requests that had the token
}

// servePrivately serves the bare repositories of a directory over HTTP to whoever has the token.
func servePrivately(t *testing.T, root, execPath string) *private {
	t.Helper()
	p := &private{token: "tok-" + rand.Text()}
	git := &cgi.Handler{
		Path: filepath.Join(execPath, "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(password), []byte(p.token)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		}
		p.logins.Add(1)
		git.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

// settlePrivately is settle with an upstream that opens only to a token, which the
// server is given for the rig.
func (w *world) settlePrivately(gates ...api.Gate) {
	w.t.Helper()
	w.private = servePrivately(w.t, filepath.Dir(w.upstream), strings.TrimSpace(w.git("--exec-path")))
	w.addRig(api.AddRig{URL: w.private.url + "/" + filepath.Base(w.upstream), Credential: &api.Credential{Kind: "token", Secret: w.private.token}, Gates: gates})
}
