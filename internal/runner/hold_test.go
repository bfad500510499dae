package runner

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/runner/wire"
	"gastown/internal/town"
)

// tripFunc is a transport.
type tripFunc func(r *http.Request) (*http.Response, error)

func (f tripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

var errRefused = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}

func answerOf(status int, header ...string) *http.Response {
	res := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("answer"))}
	for _, h := range header {
		res.Header.Set(h, "1")
	}
	return res
}

// holding returns a holder over a transport, and what it keeps.
func holding(cuts int, f tripFunc) (*holder, *atomic.Int64) {
	kept := &atomic.Int64{}
	return &holder{next: f, log: slog.New(slog.DiscardHandler), cuts: cuts, kept: kept}, kept
}

func question(ctx context.Context, t *testing.T, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://server/x", body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestARequestIsHeldUntilTheServerIsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin, tries := time.Now(), 0
		h, kept := holding(holdCuts, func(r *http.Request) (*http.Response, error) {
			tries++
			switch {
			case time.Since(begin) < 30*time.Second:
				return nil, errRefused
			case time.Since(begin) < 60*time.Second:
				// It reads half of what it then has no use for.
				if _, err := io.ReadFull(r.Body, make([]byte, 100)); err != nil {
					t.Error(err)
				}
				return answerOf(503, wire.HeaderAway), nil
			}
			got, err := io.ReadAll(r.Body)
			if err != nil || string(got) != strings.Repeat("question", 100) {
				t.Errorf("the body is %d bytes, %v", len(got), err)
			}
			return answerOf(200), nil
		})
		res, err := h.RoundTrip(question(t.Context(), t, io.NopCloser(strings.NewReader(strings.Repeat("question", 100)))))
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("%v, %v", res, err)
		}
		if took := time.Since(begin); took < time.Minute || took > time.Minute+2*holdMost || tries > 90 {
			t.Errorf("it took %s and %d tries", took, tries)
		}
		synctest.Wait()
		if kept.Load() != 0 {
			t.Errorf("%d bytes are kept when the answer has begun", kept.Load())
		}
	})
}

func TestARequestIsHeldForTwoMinutesAtMost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		h, kept := holding(holdCuts, func(*http.Request) (*http.Response, error) { return nil, errRefused })
		_, err := h.RoundTrip(question(t.Context(), t, strings.NewReader("question")))
		if took := time.Since(begin); !errors.Is(err, errRefused) || took > holdFor || took < holdFor-2*holdMost {
			t.Errorf("after %s: %v", took, err)
		}
		synctest.Wait()
		if kept.Load() != 0 {
			t.Errorf("%d bytes are kept", kept.Load())
		}
	})
}

func TestARequestIsHeldNoLongerThanItsSenderWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		h, _ := holding(holdCuts, func(*http.Request) (*http.Response, error) { return nil, errRefused })
		ctx, cancel := context.WithTimeout(t.Context(), 5500*time.Millisecond)
		defer cancel()
		_, err := h.RoundTrip(question(ctx, t, strings.NewReader("question")))
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took != 5500*time.Millisecond {
			t.Errorf("after %s: %v", took, err)
		}
	})
}

func TestNothingThatWasAnsweredIsTriedAgain(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 400, 401, 410, 429, 500, 502, 503, 529} {
		tries := 0
		h, _ := holding(holdCuts, func(*http.Request) (*http.Response, error) {
			tries++
			return answerOf(status), nil
		})
		if res, err := h.RoundTrip(question(t.Context(), t, strings.NewReader("question"))); err != nil || res.StatusCode != status || tries != 1 {
			t.Errorf("%d: %v, %v after %d tries", status, res, err, tries)
		}
	}
}

func TestABrokenConnectionIsFollowedByTwoTriesOfAModelAndNoneOfGit(t *testing.T) {
	t.Parallel()
	for cuts, want := range map[int]int{holdCuts: holdCuts + 1, 0: 1} {
		synctest.Test(t, func(t *testing.T) {
			tries := 0
			h, _ := holding(cuts, func(r *http.Request) (*http.Response, error) {
				tries++
				if got, err := io.ReadAll(r.Body); err != nil || string(got) != "question" {
					t.Errorf("try %d sends %q, %v", tries, got, err)
				}
				return nil, io.EOF
			})
			if _, err := h.RoundTrip(question(t.Context(), t, strings.NewReader("question"))); !errors.Is(err, io.EOF) || tries != want {
				t.Errorf("%d tries, %v", tries, err)
			}
		})
	}
}

// endless is a body that is larger than what is kept.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left)
	e.left -= n
	return n, nil
}

func TestALargeRequestIsHeldOnlyWhileNothingOfItIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		var most int64
		var kept *atomic.Int64
		h, kept := holding(holdCuts, func(r *http.Request) (*http.Response, error) {
			if tries++; tries <= 3 {
				return nil, errRefused
			}
			n, err := io.Copy(io.Discard, r.Body)
			if n != 3*keepBody || err != nil {
				t.Errorf("it reads %d bytes, %v", n, err)
			}
			return nil, io.EOF
		})
		_, err := h.RoundTrip(question(t.Context(), t, &endless{left: 3 * keepBody}))
		if most = max(most, kept.Load()); !errors.Is(err, io.EOF) || tries != 4 || most > keepBody {
			t.Errorf("%d tries, %v, %d bytes kept", tries, err, most)
		}
		synctest.Wait()
		if kept.Load() != 0 {
			t.Errorf("%d bytes are kept", kept.Load())
		}
	})
}

func TestARequestThatDidNotArriveWholeIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	tries := 0
	h, _ := holding(holdCuts, func(r *http.Request) (*http.Response, error) {
		tries++
		_, err := io.ReadAll(r.Body)
		return nil, err
	})
	body := io.MultiReader(strings.NewReader("question"), errReader{})
	if _, err := h.RoundTrip(question(t.Context(), t, body)); !errors.Is(err, errSpool) || tries != 1 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A real server goes away with half of a request read, and another one comes.
func TestTheLoopbackHoldsAModelRequestOverARestart(t *testing.T) {
	t.Parallel()
	f := newTown(t)
	first := true
	f.model = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != "question" {
			t.Errorf("%q, %v", got, err)
		}
		if first {
			first = false
			panic(http.ErrAbortHandler) // the connection breaks
		}
		_, _ = io.WriteString(w, "answer")
	})
	h := f.play(func(d *town.DesiredRun) { d.Provider = "acme" })
	if status, body := get(t, h.session.Spec.Model.BaseURL+"/x", "X-Api-Key", h.session.Spec.Model.Key); status != 200 || body != "answer" {
		t.Errorf("%d %s", status, body)
	}
	close(h.release)
}
