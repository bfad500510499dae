package app

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gastown/internal/backup"
	"gastown/internal/errs"
	"gastown/internal/store"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// files are the names and contents below a directory.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		name, relErr := filepath.Rel(dir, p)
		out[name] = string(b)
		return errors.Join(err, relErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func swapped(t *testing.T) (dir string, w swap) {
	t.Helper()
	dir = t.TempDir()
	put(t, filepath.Join(dir, "gastown.db"), "old")
	put(t, filepath.Join(dir, "gastown.db-wal"), "old log")
	put(t, filepath.Join(dir, "hub", "t", "r.git", "HEAD"), "old")
	put(t, filepath.Join(dir, "vault", "a"), "kept")
	put(t, filepath.Join(dir, ".restore-1", "gastown.db"), "new")
	put(t, filepath.Join(dir, ".restore-1", "gastown.clean"), "")
	put(t, filepath.Join(dir, ".restore-1", "hub", "t", "r.git", "HEAD"), "new")
	put(t, filepath.Join(dir, ".restore-1", "vault", "a"), "not wanted")
	return dir, swap{Staging: ".restore-1", Aside: "before", Away: append(store.Files(), hubDir), In: append(store.Files(), hubDir)}
}

func TestASwapThatWasCutOffAnywhereIsFinishedByTheNextStart(t *testing.T) {
	t.Parallel()
	want := map[string]string{"gastown.db": "new", "gastown.clean": "", "hub/t/r.git/HEAD": "new", "vault/a": "kept",
		"before/gastown.db": "old", "before/gastown.db-wal": "old log", "before/hub/t/r.git/HEAD": "old"}
	// Every moment is one where the first n renames were done.
	for n := range 8 {
		dir, w := swapped(t)
		if err := w.note(dir); err != nil {
			t.Fatal(err)
		}
		moves := 0
		step := func(from, to string, names []string) {
			for _, name := range names {
				if _, err := os.Lstat(filepath.Join(dir, from, name)); err != nil || moves >= n {
					continue
				}
				moves++
				if err := errors.Join(os.MkdirAll(filepath.Join(dir, to), 0o700), os.Rename(filepath.Join(dir, from, name), filepath.Join(dir, to, name))); err != nil {
					t.Fatal(err)
				}
			}
		}
		step(".", w.Aside, w.Away)
		if moves == 3 && n > 3 { // all old members are aside, which is noted before the new ones come
			w.Emptied = true
			if err := w.note(dir); err != nil {
				t.Fatal(err)
			}
			step(w.Staging, ".", w.In)
		}
		for range 2 { // the second one finds nothing to do
			if err := finishSwap(dir); err != nil {
				t.Fatal(err)
			}
		}
		if got := files(t, dir); !maps.Equal(got, want) {
			t.Errorf("after %d renames: %v", n, got)
		}
	}
}

func TestASwapThatFailsAfterTheFirstNewMembersKeepsTheOldOnesAside(t *testing.T) {
	t.Parallel()
	dir, w := swapped(t)
	put(t, filepath.Join(dir, ".restore-1", "last"), "new")
	put(t, filepath.Join(dir, "last", "in", "the", "way"), "")
	w.In = append(w.In, "last")
	if err := w.run(dir); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "last")); err != nil {
		t.Fatal(err)
	}
	if err := finishSwap(dir); err != nil {
		t.Fatal(err)
	}
	got := files(t, dir)
	if got["gastown.db"] != "new" || got["before/gastown.db"] != "old" || got["last"] != "new" || got["hub/t/r.git/HEAD"] != "new" {
		t.Errorf("%v", got)
	}
}

func TestASwapCanBeTakenBack(t *testing.T) {
	t.Parallel()
	dir, w := swapped(t)
	if err := w.run(dir); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "gastown.db-shm"), "of the new one")
	if err := w.back(dir); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"gastown.db": "old", "gastown.db-wal": "old log", "hub/t/r.git/HEAD": "old", "vault/a": "kept"}
	if got := files(t, dir); !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

func TestANoteThatNamesOtherDirectoriesIsRefused(t *testing.T) {
	t.Parallel()
	dir, w := swapped(t)
	w.Aside = "../elsewhere"
	if err := w.note(dir); err != nil {
		t.Fatal(err)
	}
	if err := finishSwap(dir); !errs.Is(err, errs.Internal) {
		t.Errorf("got %v", err)
	}
}

// opened is a server that serves until the test ends.
func opened(t *testing.T, fails bool) (a *App, call func(method, path string, body io.Reader) *http.Response) {
	t.Helper()
	a, err := Open(t.Context(), Config{Data: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- a.Serve(ctx) }()
	t.Cleanup(func() {
		if !fails {
			stop()
		}
		err := <-over // a server without parts ends by itself
		stop()
		if (err != nil) != fails {
			t.Errorf("serving ended with %v", err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	token, err := os.ReadFile(filepath.Join(a.dir, TokenFile))
	if err != nil {
		t.Fatal(err)
	}
	call = func(method, path string, body io.Reader) *http.Response {
		t.Helper()
		for {
			req, err := http.NewRequestWithContext(t.Context(), method, a.URL()+path, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode == http.StatusServiceUnavailable && body == nil {
				res.Body.Close() // not yet, or not any more
				continue
			}
			t.Cleanup(func() { res.Body.Close() })
			return res
		}
	}
	call("GET", "/readyz", nil)
	return a, call
}

func text(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSecretsAreInABackupOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	a, call := opened(t, false)
	if err := a.current.Load().vault.Put("git/t/r", []byte("hush")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"/api/v1/backup": false, "/api/v1/backup?secrets=true": true} {
		var names []string
		all := ""
		m, err := backup.Read(call("GET", path, nil).Body, func(_ backup.Manifest, name string, _ int64, r io.Reader) error {
			names = append(names, name)
			b, err := io.ReadAll(r)
			all += string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		has := slices.Contains(names, "vault/git/t/r") && slices.Contains(names, "admin.token")
		if has != want || strings.Contains(all, "hush") != want || m.Secrets != want || !slices.Contains(m.Names, "git/t/r") {
			t.Errorf("%s: %v, %+v", path, names, m)
		}
	}
}

func TestARestoreThatCanNotBeOpenedPutsTheOldStateBack(t *testing.T) {
	t.Parallel()
	a, call := opened(t, true)
	if got := call("POST", "/api/v1/towns", strings.NewReader(`{"name":"acme"}`)); got.StatusCode != http.StatusCreated {
		t.Fatal(got.Status)
	}
	whole := text(t, call("GET", "/api/v1/backup", nil))
	if got := call("POST", "/api/v1/towns", strings.NewReader(`{"name":"later"}`)); got.StatusCode != http.StatusCreated {
		t.Fatal(got.Status)
	}
	// The presets can't be read any more: no server can be made.
	a.cfg.PresetDir = filepath.Join(a.dir, "no-such-directory")
	res := call("POST", "/api/v1/restore", strings.NewReader(whole))
	if res.StatusCode == http.StatusOK {
		t.Fatal("it was restored")
	}
	s, err := store.Open(t.Context(), a.dir, store.Options{Lock: a.lock})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find(t.Context(), "later"); err != nil {
		t.Errorf("the old state is not back: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestAClosedGateSaysWhenToComeAgainAndEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	var g gate
	begun, ended := make(chan struct{}), make(chan struct{})
	g.open(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(ended)
	}), func() {})
	go g.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	<-begun
	g.cancel() // as it is done after a while
	if err := g.close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	<-ended
	w := httptest.NewRecorder()
	g.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !bytes.Contains(w.Body.Bytes(), []byte(`"unavailable"`)) {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}

func TestAClosedGateDoesNotWaitForABodyThatIsNotSent(t *testing.T) {
	t.Parallel()
	var g gate
	begun := make(chan struct{})
	g.open(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			t.Error("the body had an end")
		}
	}), func() {})
	srv := httptest.NewServer(&g)
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow"); err != nil {
		t.Fatal(err)
	}
	<-begun
	g.cancel() // as it is done after a while
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := g.close(ctx, 0); err != nil {
		t.Fatal(err)
	}
}
