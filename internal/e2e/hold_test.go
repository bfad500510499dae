//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"gastown/internal/api"
)

// askModel is a client of the model for scripts of beads: it asks once, as an
// agent without patience would, and prints the answer.
func askModel() int {
	req, err := http.NewRequest(http.MethodPost, os.Getenv("GASTOWN_MODEL_URL")+"/chat/completions", strings.NewReader(strings.Join(os.Args[1:], " ")))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("GASTOWN_MODEL_KEY"))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		fmt.Fprintln(os.Stderr, res.Status, string(answer), err)
		return 1
	}
	fmt.Println(string(answer))
	return 0
}

// testHeldRequests kills the server before a model request, and in the middle of
// one: the agent sees an answer, a little late, and nothing else.
func testHeldRequests(t *testing.T, program string) {
	var asked atomic.Int32
	arrived, usage := make(chan struct{}), `{"model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5}}`
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		question, err := io.ReadAll(r.Body)
		if err != nil {
			return // its server was killed
		}
		if asked.Add(1) == 2 {
			close(arrived)
			<-r.Context().Done() // until its server is dead
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Question", string(question))
		fmt.Fprint(w, usage)
	}))
	defer model.Close()

	w := newWorld(t, program, "lease=30s")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ask := filepath.Join(w.root, "ask-model") // TestMain knows the name
	if err := os.Symlink(self, ask); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.settle()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = w.api.AddProvider(ctx, api.CreateProvider{Kind: "openai-compatible", Name: "house", BaseURL: model.URL, Models: []string{"m"}})
	if err == nil {
		_, err = w.api.EditRig(ctx, "acme", "web", api.EditRig{Set: map[string]string{"provider": "house", "model": "m"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	begun, away := filepath.Join(w.root, "begun"), filepath.Join(w.root, "away")
	id := w.sling("Ask", "touch '"+begun+"'\nwhile [ ! -e '"+away+"' ]; do sleep 0.05; done\n'"+ask+"' one > one.txt\n'"+ask+"' two > two.txt")
	w.until("the script", func(context.Context) error {
		_, err := os.Stat(begun)
		return err
	})
	w.kill()
	w.write(away, "")
	w.until("a held request", func(context.Context) error {
		b, err := os.ReadFile(filepath.Join(w.data, "sandboxes", w.town, "runner.log"))
		if err == nil && !strings.Contains(string(b), "held until the server is back") {
			err = errors.New("nothing is held yet")
		}
		return err
	})
	w.start()
	w.until("the second request", func(context.Context) error {
		select {
		case <-arrived:
			return nil
		default:
			return fmt.Errorf("%d requests arrived", asked.Load())
		}
	})
	w.kill()
	w.start()
	b := w.closed(id)
	if len(b.Runs) != 1 || len(b.Failures) != 0 || b.Spent.Tokens != 30 || asked.Load() != 3 {
		t.Errorf("runs %+v, failures %+v, spent %+v, %d requests", b.Runs, b.Failures, b.Spent, asked.Load())
	}
	for _, name := range []string{"one.txt", "two.txt"} {
		if got := w.git("-C", w.upstream, "show", "main:"+name); got != usage {
			t.Errorf("%s is %q", name, got)
		}
	}
	w.quiet()
}
