//go:build e2e

package e2e

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"gastown/internal/api"
)

// site is a host of this machine that no program reaches without a proxy by
// mistake: NO_PROXY names 127.0.0.1 only.
func site(t *testing.T, h http.Handler, secure bool) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	if err := srv.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	srv.Listener = ln
	if secure {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return ln.Addr().String()
}

// TestRigsOpenHosts has curl, git and npm of an agent, and curl of a gate, go where the rig
// allows it and where it does not.
func TestRigsOpenHosts(t *testing.T) {
	t.Parallel()
	program := builtProgram(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	w := newWorld(t, program)
	var mu sync.Mutex
	asked := map[string]bool{}
	h := http.NewServeMux()
	h.Handle("/repo.git/", http.StripPrefix("/repo.git/", http.FileServer(http.Dir(w.upstream))))
	h.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path] = true
		mu.Unlock()
		if r.Header.Get("Proxy-Authorization") != "" {
			http.Error(rw, "the credential of the proxy came here", http.StatusTeapot)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, "{}\n") // the client tells
	})
	plain, secure := site(t, h, false), site(t, h, true)
	w.git("-C", w.upstream, "update-server-info")
	w.start()
	w.settle(api.Gate{Name: "reach", Command: "curl -fsS http://" + plain + "/gate"})
	w.must("rig", "set", "web", "--allow-host", plain+","+secure)

	steps := []string{
		"curl -fsS http://" + plain + "/curl",
		"curl -fsSk https://" + secure + "/tunnel",
		"git -c http.sslVerify=false clone -q https://" + secure + "/repo.git ../clone-of-it && test -f ../clone-of-it/list.txt && rm -rf ../clone-of-it",
		"curl -sS http://127.0.0.3/refused > refused.txt",
		"curl -sSk https://127.0.0.3/refused 2>&1 | grep 403",
		"grep -q 'allow-host .127.0.0.3.' refused.txt",
	}
	want := []string{"/curl", "/tunnel", "/gate"}
	if _, err := exec.LookPath("npm"); err == nil {
		steps = append(steps, "npm ping --cache \"$PWD/../npm-cache\" --fetch-retries 0 --registry http://"+plain+"/npm/ && rm -rf ../npm-cache")
		want = append(want, "/npm/-/ping")
	}
	b := w.closed(w.sling("Reaches", strings.Join(steps, "\n")))
	if len(b.Runs) != 1 || b.Charged != 0 {
		t.Errorf("the bead took %+v", b.Runs)
	}
	mu.Lock()
	for _, path := range want {
		if !asked[path] {
			t.Errorf("%s was not asked for: %v", path, asked)
		}
	}
	mu.Unlock()
	logs := w.must("logs", b.ID)
	if !strings.Contains(logs, "gastown rig set web --town acme --allow-host '127.0.0.3'") {
		t.Errorf("the log does not say how to open the host:\n%s", logs)
	}
	if shown := w.must("rig", "show", "web"); !strings.Contains(shown, plain+" "+secure) {
		t.Errorf("rig show says\n%s", shown)
	}
	if left, _ := filepath.Glob(filepath.Join(w.data, "sandboxes", "*", "work", "*", "clone-of-it")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Agents without a network are told what opens a host, and reach it then.
func TestBoxesReachWhatTheirRigOpens(t *testing.T) {
	needsBoxes(t)
	t.Parallel()
	w := newWorld(t, builtProgram(t))
	w.args = append(w.args, "--isolation", "bwrap")
	w.start()
	reachOut(t, w)
}

func reachOut(t *testing.T, w *world) {
	files := http.StripPrefix("/repo.git", http.FileServer(http.Dir(w.upstream)))
	host := site(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the secret of a run went to a host that is not the runner")
		}
		files.ServeHTTP(rw, r)
	}), false)
	w.git("-C", w.upstream, "update-server-info")
	w.settle()
	ask := "git ls-remote http://" + host + "/repo.git"
	shut := w.sling("Shut", "if "+ask+"; then exit 1; fi\necho shut > shut.txt")
	w.closed(shut)
	if logs := w.must("logs", shut); !strings.Contains(logs, "gastown rig set web --town acme --allow-host '"+host+"'") {
		t.Errorf("the log does not say how to open the host:\n%s", logs)
	}
	w.must("rig", "set", "web", "--allow-host", host, "--gate", "reach="+ask)
	w.closed(w.sling("Open", ask+"\ngit clone -q http://"+host+"/repo.git \"$TMPDIR/c\"\ntest -f \"$TMPDIR/c/list.txt\"\necho open > open.txt"))
}

func TestContainersReachWhatTheirRigOpens(t *testing.T) { reachOut(t, newContainers(t)) }
