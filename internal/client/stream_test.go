package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
)

func events(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/event-stream")
	io.WriteString(w, text)
	w.(http.Flusher).Flush()
}

func TestAStreamResumesAfterTheLastEventThatWasTaken(t *testing.T) {
	t.Parallel()
	var from []string
	c, _ := fixture(t, func(w http.ResponseWriter, r *http.Request) {
		from = append(from, r.Header.Get("Last-Event-ID"))
		switch len(from) {
		case 1:
			// The second event is cut off in the middle.
			events(w, ": hello\n\nevent: ledger\nid: 4\ndata: {\"seq\":4}\n\nevent: ledger\nid: 5\ndata: {\"seq\"")
			panic(http.ErrAbortHandler)
		case 2:
			answer(w, 503, api.Problem{Kind: "unavailable"})
		default:
			events(w, "event: ledger\r\nid: 5\r\ndata: {\"seq\":5}\r\n\r\n")
		}
	})
	var got []int64
	err := c.Events(t.Context(), "acme", 3, func(e api.LedgerEntry) error {
		got = append(got, e.Seq)
		if e.Seq == 5 {
			return ErrStop
		}
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[4 5]" || fmt.Sprint(from) != "[3 4 4]" {
		t.Errorf("got %v from %q, %v", got, from, err)
	}
}

func TestAStreamThatIsRefusedEndsWithTheRefusal(t *testing.T) {
	t.Parallel()
	n := 0
	c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
		n++
		answer(w, 404, api.Problem{Kind: "not_found", Detail: "no town acme"})
	})
	err := c.Events(t.Context(), "acme", 0, func(api.LedgerEntry) error { return nil })
	if !errs.Is(err, errs.NotFound) || n != 1 {
		t.Errorf("%d connections, %v", n, err)
	}
}

func TestAnErrorOfTheReceiverEndsTheStream(t *testing.T) {
	t.Parallel()
	c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) { events(w, "id: 1\ndata: {}\n\nid: 2\ndata: {}\n\n") })
	full := errors.New("the disk is full")
	n := 0
	err := c.Events(t.Context(), "acme", 0, func(api.LedgerEntry) error { n++; return full })
	if !errors.Is(err, full) || n != 1 {
		t.Errorf("%d events, %v", n, err)
	}
}

func TestAnEndedContextEndsTheStream(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	c, _ := fixture(t, func(w http.ResponseWriter, r *http.Request) {
		events(w, "id: 1\ndata: {}\n\n")
		<-r.Context().Done()
	})
	err := c.Events(ctx, "acme", 0, func(api.LedgerEntry) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestLogsEndWithTheBead(t *testing.T) {
	t.Parallel()
	t.Run("when the server says so", func(t *testing.T) {
		c, _ := fixture(t, func(w http.ResponseWriter, _ *http.Request) {
			events(w, "event: transcript\nid: 1.1.1\ndata: {\"seq\":1,\"body\":{}}\n\nevent: ledger\nid: 2.1.1\ndata: {\"seq\":2}\n\n"+
				"event: newer\ndata: what is this\n\nevent: end\nid: 2.1.1\ndata: {}\n\n")
		})
		var got []string
		err := c.Logs(t.Context(), "web-aaaaa", func(l LogLine) error {
			got = append(got, fmt.Sprint(l.Item != nil, l.Entry != nil))
			return nil
		})
		if err != nil || fmt.Sprint(got) != "[true false false true]" {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("but not with a server that stops", func(t *testing.T) {
		streams, looks := 0, 0
		c, _ := fixture(t, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/logs") {
				streams++
				events(w, ": hello\n\n")
				return
			}
			looks++
			answer(w, 200, api.Bead{Status: map[int]string{1: "in_progress", 2: "closed"}[looks]})
		})
		if err := c.Logs(t.Context(), "web-aaaaa", func(LogLine) error { return nil }); err != nil || streams != 2 {
			t.Errorf("%d streams, %v", streams, err)
		}
	})
}

func parse(text string) (out []string, err error) {
	err = readEvents(strings.NewReader(text), func() {}, func(e Event) error {
		out = append(out, e.ID+"|"+e.Name+"|"+string(e.Data))
		return nil
	})
	return out, err
}

func TestEventsAreReadAsTheStandardSays(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, want string }{
		{"one", "data: a\n\n", "[|message|a]"},
		{"several lines", "data: a\ndata:b\ndata\n\n", "[|message|a\nb\n]"},
		{"only one space is taken away", "data:  a\n\n", "[|message| a]"},
		{"comments and unknown fields", ": x\nretry: 5\nfoo: bar\ndata: a\n\n", "[|message|a]"},
		{"no data, no event", "event: x\nid: 1\n\n", "[]"},
		{"cut off", "data: a\n\ndata: b\n", "[|message|a]"},
		{"an id with a zero byte is ignored", "id: a\x00\ndata: x\n\n", "[|message|x]"},
	} {
		if got, err := parse(c.text); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func TestAnEndlessEventIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := parse(strings.Repeat("data: "+strings.Repeat("x", 1<<20)+"\n", 10)); err == nil {
		t.Error("ten megabytes were taken")
	}
	if _, err := parse(strings.Repeat("x", maxEvent+1<<20)); err == nil {
		t.Error("an endless line was taken")
	}
}

func FuzzEvents(f *testing.F) {
	f.Add("event: a\nid: 1\ndata: {}\n\n")
	f.Add("data\n\n\r\n\r\n:\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parse(text)
		if err != nil {
			return
		}
		// An event needs a data line and a blank line.
		if len(got) > strings.Count(text, "data") || len(got) > strings.Count(text, "\n") {
			t.Errorf("%d events out of %q", len(got), text)
		}
	})
}
