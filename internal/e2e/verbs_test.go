//go:build e2e

package e2e

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"gastown/internal/app"
	"gastown/internal/hall"
)

// serveHook listens for webhooks, sets HOOK to its address, and writes what
// comes to a file, a line each, behind "signed" or "unsigned": hook FILE.
func serveHook(ts *testscript.TestScript, _ bool, args []string) {
	data, out := ts.MkAbs("data"), ts.MkAbs(args[0])
	ts.Check(os.WriteFile(out, nil, 0o600))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mark := "unsigned"
		if signedBy(data, body, r.Header.Get(hall.SignatureHeader)) {
			mark = "signed"
		}
		f, err := os.OpenFile(out, os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(f, "%s %s\n", mark, body)
			if closeErr := f.Close(); err == nil {
				err = closeErr
			}
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	ts.Defer(srv.Close)
	ts.Setenv("HOOK", srv.URL)
}

// signedBy checks a signature as docs/notify.md tells a receiver to.
func signedBy(data string, body []byte, signature string) bool {
	var m struct {
		TownID string `json:"town_id"`
	}
	if json.Unmarshal(body, &m) != nil {
		return false
	}
	key, err := app.NotifyKey(data, "", m.TownID)
	if err != nil {
		return false
	}
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body) // never fails
	return hmac.Equal([]byte(signature), []byte("sha256="+hex.EncodeToString(mac.Sum(nil))))
}

// wantRefused adds a rig and wants it refused with an exit code and a text that
// matches on stderr: refused CODE PATTERN ARGS....
func wantRefused(ts *testscript.TestScript, _ bool, args []string) {
	call := append([]string{"rig", "add", "web"}, args[2:]...)
	if !slices.Contains(call, "--agent") {
		call = slices.Insert(call, 3, "--agent", "scripted")
	}
	err := ts.Exec("gastown", call...)
	if err == nil || err.Error() != "exit status "+args[0] {
		ts.Fatalf("%q: %v, want exit status %s", call, err, args[0])
	}
	if said := ts.ReadFile("stderr"); !regexp.MustCompile(args[1]).MatchString(said) {
		ts.Fatalf("%q said\n%s\nwhich does not match %q", call, said, args[1])
	}
}

// badTitles gives work with titles that are refused by the command line and by
// the API: titles RIG.
func badTitles(ts *testscript.TestScript, _ bool, args []string) {
	loc, err := app.ReadLocation(ts.MkAbs("data"))
	ts.Check(err)
	token := strings.TrimSpace(ts.ReadFile("data/admin.token"))
	for name, c := range map[string]struct {
		title string // as JSON
		code  int
	}{
		"10 MB":           {`"` + strings.Repeat("x", 10<<20) + `"`, http.StatusRequestEntityTooLarge},
		"301 bytes":       {`"` + strings.Repeat("x", 301) + `"`, http.StatusUnprocessableEntity},
		"a NUL":           {`"xxxx\u0000"`, http.StatusUnprocessableEntity},
		"a line feed":     {`"xxxx\n"`, http.StatusUnprocessableEntity},
		"not UTF-8":       {"\"xxxx\xff\xfe\"", http.StatusUnprocessableEntity},
		"nothing at all":  {`""`, http.StatusUnprocessableEntity},
		"an unknown type": {`{"xxxx":1}`, http.StatusUnprocessableEntity},
	} {
		req, err := http.NewRequest(http.MethodPost, loc.URL+"/api/v1/towns/acme/beads", strings.NewReader(`{"rig":"`+args[0]+`","staged":true,"title":`+c.title+`}`))
		ts.Check(err)
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		ts.Check(err)
		body, err := io.ReadAll(resp.Body)
		ts.Check(err)
		ts.Check(resp.Body.Close())
		if resp.StatusCode != c.code || resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(body), `"kind":"invalid"`) {
			ts.Fatalf("a title of %s: %s %s\n%.500s", name, resp.Status, resp.Header.Get("Content-Type"), body)
		}
	}
	for _, title := range []string{strings.Repeat("x", 100_000), "xxxx\n", "xxxx\xff", ""} {
		if err := ts.Exec("gastown", "bead", "create", title, "--rig", args[0]); err == nil || err.Error() != "exit status 2" {
			ts.Fatalf("the title %.10q: %v", title, err)
		}
	}
}

// townFiles prints the files of towns in the data directory; with a town's name
// it wants them in each place where a town has some: files [TOWN].
func townFiles(ts *testscript.TestScript, _ bool, args []string) {
	data := ts.MkAbs("data")
	found := map[string]bool{}
	var list strings.Builder
	for _, dir := range []string{"sandboxes", "hub", "vault"} {
		ts.Check(filepath.WalkDir(filepath.Join(data, dir), func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && e.Name() != "signing-key" && e.Name() != ".check" {
				rel, relErr := filepath.Rel(data, p)
				ts.Check(relErr)
				found[dir] = true
				fmt.Fprintln(&list, rel)
			}
			return err
		}))
	}
	if len(args) > 0 && len(found) != 3 {
		ts.Fatalf("the town has files only in %v:\n%s", found, list.String())
	}
	if len(args) == 0 && list.Len() > 0 {
		ts.Fatalf("these files stay:\n%s", list.String())
	}
}
