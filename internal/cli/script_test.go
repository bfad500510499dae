package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gastown": func() { os.Exit(Main(context.Background(), os.Args[1:], Process("v0.0.0-test"))) },
	})
}

// TestCommandLine runs the scripts in testdata/script against an API that
// answers from a file. See fakeAPI.
func TestCommandLine(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			api := &fakeAPI{dir: e.WorkDir}
			srv := httptest.NewServer(api)
			e.Defer(srv.Close)
			e.Values["api"] = api
			e.Setenv("GASTOWN_URL", srv.URL)
			e.Setenv("GASTOWN_TOKEN", "token-of-the-test")
			e.Setenv("GASTOWN_USER", "ann")
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// requests compares what was asked since the last time with a file.
			"requests": func(ts *testscript.TestScript, neg bool, args []string) {
				got, want := ts.Value("api").(*fakeAPI).take(), ts.ReadFile(args[0])
				if (got == want) == neg {
					ts.Fatalf("the requests were:\n%s\nwant:\n%s", got, want)
				}
			},
			// notutf8 writes a file, titled gives a title: neither is valid UTF-8.
			"notutf8": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("a\xff\xfeb"), 0o600))
			},
			"titled": func(ts *testscript.TestScript, _ bool, args []string) {
				if err := ts.Exec("gastown", "sling", "a\xff\xfeb", "--rig", "web"); err == nil || err.Error() != "exit status "+args[0] {
					ts.Fatalf("%v, want exit status %s", err, args[0])
				}
			},
			// code runs gastown and wants an exit code.
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec("gastown", args[1:]...)
				got := "0"
				if err != nil {
					got = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if got != args[0] {
					ts.Fatalf("exit code %s, want %s", got, args[0])
				}
			},
		},
	})
}

// fakeAPI answers "METHOD PATH" with the file api/METHOD/PATH below dir, each
// slash of the path written as a dot; one with the query in its name goes first.
// A member "status" of the file is the status of the answer. It records requests.
type fakeAPI struct {
	dir string
	mu  sync.Mutex // guards got
	got []string
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	line := r.Method + " " + path
	if r.URL.RawQuery != "" {
		line += "?" + r.URL.RawQuery
	}
	if len(body) > 0 {
		line += " " + string(body)
	}
	if r.Header.Get("Authorization") != "Bearer token-of-the-test" || r.Header.Get("Gastown-User") != "ann" {
		line += " WITHOUT CREDENTIALS"
	}
	if r.Method == http.MethodPost && r.Header.Get("Idempotency-Key") == "" {
		line += " WITHOUT KEY"
	}
	f.mu.Lock()
	f.got = append(f.got, line)
	f.mu.Unlock()
	f.answer(w, r.Method, path, r.URL.RawQuery)
}

func (f *fakeAPI) answer(w http.ResponseWriter, method, path, query string) {
	file := fmt.Sprintf("%s/api/%s/%s", f.dir, method, strings.ReplaceAll(path, "/", "."))
	text, err := os.ReadFile(file + "?" + query)
	if err != nil {
		text, err = os.ReadFile(file)
	}
	switch {
	case err != nil && method == http.MethodGet:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"kind":"not_found","detail":"no %s","hint":"look for it"}`, path)
	case err != nil:
		w.WriteHeader(http.StatusNoContent)
	case strings.HasPrefix(string(text), "event: "):
		w.Header().Set("Content-Type", "text/event-stream")
		w.Write(text)
	default:
		status := http.StatusOK
		var p struct{ Status int }
		if json.Unmarshal(text, &p) == nil && p.Status != 0 {
			status = p.Status
		}
		w.WriteHeader(status)
		w.Write(text)
	}
}

func (f *fakeAPI) take() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	got := strings.Join(f.got, "\n") + "\n"
	f.got = nil
	return got
}
