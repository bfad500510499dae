package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// pauses records what a client would have waited for.
type pauses struct{ all []time.Duration }

func (p *pauses) wait(ctx context.Context, d time.Duration) error {
	p.all = append(p.all, d)
	return ctx.Err()
}

func fixture(t *testing.T, h http.HandlerFunc) (*Client, *pauses) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	p := &pauses{}
	c, err := New(Options{URL: srv.URL, Token: "secret-token", User: "Ann\nB", Wait: p.wait})
	if err != nil {
		t.Fatal(err)
	}
	return c, p
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

func TestACreatingCallRepeatsItsKeyUntilTheServerTakesIt(t *testing.T) {
	t.Parallel()
	var keys []string
	c, p := fixture(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get(api.HeaderIdempotencyKey))
		switch len(keys) {
		case 1:
			w.Header().Set("Retry-After", "3")
			answer(w, 503, api.Problem{Kind: "unavailable", Detail: "not now"})
		case 2:
			answer(w, 429, api.Problem{Kind: "overloaded", Detail: "queue full", RetryAfterMS: 250})
		default:
			answer(w, 201, api.Bead{ID: "web-aaaaa"})
		}
	})
	b, err := c.CreateBead(t.Context(), "acme", api.CreateBead{Title: "x"})
	if err != nil || b.ID != "web-aaaaa" {
		t.Fatalf("got %v, %v", b.ID, err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] {
		t.Errorf("keys %q", keys)
	}
	if want := []time.Duration{3 * time.Second, 250 * time.Millisecond}; fmt.Sprint(p.all) != fmt.Sprint(want) {
		t.Errorf("waited %v, want %v", p.all, want)
	}
	if _, err := c.CreateBead(t.Context(), "acme", api.CreateBead{Title: "x"}); err != nil || keys[3] == keys[0] {
		t.Errorf("the next call used the key of the one before, or failed: %v", err)
	}
}

func TestRetriesAreBounded(t *testing.T) {
	t.Parallel()
	t.Run("in number", func(t *testing.T) {
		n := 0
		c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
			n++
			answer(w, 503, api.Problem{Kind: "unavailable", Detail: "not now"})
		})
		_, err := c.Server(t.Context())
		if !errs.Is(err, errs.Unavailable) || n != maxTries {
			t.Errorf("%d tries, %v", n, err)
		}
	})
	t.Run("in time", func(t *testing.T) {
		n := 0
		c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
			n++
			answer(w, 429, api.Problem{Kind: "overloaded", RetryAfterMS: 25_000})
		})
		if _, err := c.Server(t.Context()); !errs.Is(err, errs.Overloaded) || n != 2 {
			t.Errorf("%d tries, %v", n, err)
		}
	})
	t.Run("by the caller", func(t *testing.T) {
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
			n++
			cancel()
			answer(w, 503, api.Problem{Kind: "unavailable"})
		})
		if _, err := c.Server(ctx); err == nil || n != 1 {
			t.Errorf("%d tries, %v", n, err)
		}
	})
}

func TestARefusalIsNotRepeatedAndKeepsTheServersWords(t *testing.T) {
	t.Parallel()
	n := 0
	c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
		n++
		answer(w, 409, api.Problem{Title: "Conflict", Detail: "the name is taken", Kind: "conflict", Hint: "choose another"})
	})
	_, err := c.CreateTown(t.Context(), api.CreateTown{Name: "acme"})
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Conflict || e.Message != "the name is taken" || e.Hint != "choose another" || n != 1 {
		t.Errorf("%d tries, %#v", n, err)
	}
}

func TestAnAnswerWithoutAProblemDocumentHasTheKindOfItsStatus(t *testing.T) {
	t.Parallel()
	c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(404)
		io.WriteString(w, "<html>")
	})
	if _, err := c.Server(t.Context()); !errs.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestTheTokenStaysWithTheServerItIsFor(t *testing.T) {
	t.Parallel()
	var stolen string
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stolen = r.Header.Get("Authorization") }))
	t.Cleanup(thief.Close)
	c, _ := fixture(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
	})
	_, err := c.Server(t.Context())
	if err == nil || stolen != "" || strings.Contains(err.Error(), "secret-token") {
		t.Errorf("sent %q, %v", stolen, err)
	}
}

func TestBadURLsAreRefusedWithoutRepeatingThem(t *testing.T) {
	t.Parallel()
	for _, u := range []string{"", "127.0.0.1:7070", "ftp://x", "http://user:pa55word@x", "http://x/?token=pa55word", "http://\x00pa55word"} {
		_, err := New(Options{URL: u})
		if !errs.Is(err, errs.Invalid) || strings.Contains(err.Error(), "pa55word") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestNobodyListeningIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(nil)
	srv.Close()
	p := &pauses{}
	c, err := New(Options{URL: srv.URL, Wait: p.wait})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Server(t.Context()); !errs.Is(err, errs.Unavailable) || len(p.all) != 0 || !strings.Contains(err.Error(), "gastown serve") {
		t.Errorf("waited %v, %v", p.all, err)
	}
}

func TestABrokenAnswerIsAskedForAgain(t *testing.T) {
	t.Parallel()
	n := 0
	c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
		if n++; n == 1 {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"version":`)
			panic(http.ErrAbortHandler)
		}
		answer(w, 200, api.Server{Version: "v1"})
	})
	if s, err := c.Server(t.Context()); err != nil || s.Version != "v1" || n != 2 {
		t.Errorf("%d tries, %v", n, err)
	}
}

func TestNamesOfStrangersStayOneSegmentOfThePath(t *testing.T) {
	t.Parallel()
	var got []string
	c, _ := fixture(t, func(w http.ResponseWriter, r *http.Request) {
		got = append(got, r.Method+" "+r.URL.EscapedPath()+"?"+r.URL.RawQuery)
		answer(w, 200, api.Town{})
	})
	for _, name := range []string{"acme", "../rigs", "a/b", "..", "a?x=1", ""} {
		if _, err := c.Town(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"GET /api/v1/towns/acme?", "GET /api/v1/towns/..%2Frigs?", "GET /api/v1/towns/a%2Fb?", "GET /api/v1/towns/%2E%2E?",
		"GET /api/v1/towns/a%3Fx=1?", "GET /api/v1/towns/%20?"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestListsFollowTheirCursor(t *testing.T) {
	t.Parallel()
	var asked []string
	c, _ := fixture(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RawQuery)
		l := api.List[api.LedgerEntry]{Items: []api.LedgerEntry{{Seq: 9}, {Seq: 8}}, Next: "8"}
		if r.URL.Query().Get("before") != "" {
			l = api.List[api.LedgerEntry]{Items: []api.LedgerEntry{{Seq: 7}}}
		}
		answer(w, 200, l)
	})
	items, err := c.Ledger(t.Context(), "acme", LedgerQuery{Desc: true})
	if err != nil || len(items) != 3 || items[2].Seq != 7 || len(asked) != 2 {
		t.Errorf("%v, asked %q, %v", items, asked, err)
	}
	asked = nil
	items, err = c.Ledger(t.Context(), "acme", LedgerQuery{Desc: true, Limit: 2})
	if err != nil || len(items) != 2 || len(asked) != 1 || !strings.Contains(asked[0], "limit=2") {
		t.Errorf("%v, asked %q, %v", items, asked, err)
	}
}
