package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
)

// fakeHall is a hall of function fields.
type fakeHall struct {
	do      func(in town.Input) error
	resolve func(name string) (store.Head, error)
	watch   func() (<-chan struct{}, func())
}

func (h *fakeHall) CreateTown(context.Context, string, string, town.Settings, string, *hall.Idem) (string, error) {
	return "", errors.New("not in this test")
}

func (h *fakeHall) StartImport(context.Context, town.ImportedTown, string) (string, error) {
	return "", errors.New("not in this test")
}

func (h *fakeHall) Do(_ context.Context, _ string, in town.Input) error { return h.do(in) }

func (h *fakeHall) DoIdem(_ context.Context, _ string, in town.Input, _, _ string, _ func(*town.Town) (int, []byte)) (int, []byte, bool, error) {
	return 0, nil, false, h.do(in)
}

func (h *fakeHall) View(_ context.Context, id string, fn func(*town.Town, time.Time) error) error {
	return fn(town.New(id, "alpha", "", 1), time.Now())
}

func (h *fakeHall) Resolve(_ context.Context, name string) (store.Head, error) {
	return h.resolve(name)
}

func (h *fakeHall) Desired(context.Context, string, int64, int64) (town.Desired, bool, error) {
	return town.Desired{}, false, nil
}

func (h *fakeHall) Watch(string) (<-chan struct{}, func()) { return h.watch() }

func TestFailuresBelowKeepTheirKind(t *testing.T) {
	t.Parallel()
	var fail error
	l := newLab(t, func(c *Config) {
		c.Hall = &fakeHall{do: func(town.Input) error { return fail },
			resolve: func(string) (store.Head, error) { return store.Head{ID: "t1", Name: "alpha"}, nil }}
	})
	for _, c := range []struct {
		err    error
		status int
		kind   errs.Kind
		detail string
		retry  int64
	}{
		{store.ErrUnknown, 503, errs.Unavailable, "not known", 1000},
		{&errs.Error{Kind: errs.Overloaded, Message: "too much", RetryAfter: 2500 * time.Millisecond}, 429, errs.Overloaded, "too much", 2500},
		{errs.New(errs.Gone, "old"), 410, errs.Gone, "old", 0},
		{context.DeadlineExceeded, 503, errs.Unavailable, "", 1000},
		{errors.New("open /secret/path: sk-secret"), 500, errs.Internal, "its log says more", 0},
		{errs.Wrap(errs.Internal, errors.New("sk-secret"), "reading"), 500, errs.Internal, "its log says more", 0},
		{errs.New(errs.Conflict, "bead is %s", strings.Repeat("x\x00", 5000)).WithHint("do this"), 409, errs.Conflict, "bead is x x ", 0},
	} {
		fail = c.err
		r := l.call("POST", "/api/v1/towns/alpha/pause", nil)
		p := r.problem(c.status, c.kind)
		if !strings.Contains(p.Detail, c.detail) || p.RetryAfterMS != c.retry || strings.Contains(string(r.body), "secret") || len(p.Detail) > 4100 {
			t.Errorf("%v became %+v", c.err, p)
		}
		if (r.header.Get("Retry-After") != "") != (c.retry > 0) {
			t.Errorf("%v: Retry-After %q", c.err, r.header.Get("Retry-After"))
		}
		if strings.Contains(p.Detail, "(do this)") || strings.HasPrefix(c.detail, "bead") && p.Hint != "do this" {
			t.Errorf("%v: the hint is not apart: %+v", c.err, p)
		}
	}
}

// piped is a response that tells what was written.
type piped struct {
	*httptest.ResponseRecorder
	wrote chan string
}

func (p piped) Write(b []byte) (int, error) { p.wrote <- string(b); return len(b), nil }

func TestAQuietStreamHasAHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		changed := make(chan struct{}, 1)
		watches := 0
		s := &Server{stopping: make(chan struct{}), hall: &fakeHall{watch: func() (<-chan struct{}, func()) {
			watches++
			return changed, func() { watches-- }
		}}}
		w := piped{httptest.NewRecorder(), make(chan string, 100)}
		var looks atomic.Int64 // the race detector does not count time as an order
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.follow(t.Context(), "t1", &sse{w: w, rc: http.NewResponseController(w)}, func(context.Context) (bool, error) {
				looks.Add(1)
				return false, nil
			})
		}()
		synctest.Wait()
		if got := <-w.wrote; got != ": hello\n\n" || looks.Load() != 1 || watches != 1 {
			t.Errorf("%q, %d looks, %d watches", got, looks.Load(), watches)
		}
		changed <- struct{}{}
		synctest.Wait()
		if looks.Load() != 2 {
			t.Errorf("%d looks after a commit", looks.Load())
		}
		s.taps.tell("t1")
		synctest.Wait()
		if looks.Load() != 3 {
			t.Errorf("%d looks after a transcript", looks.Load())
		}
		begin := time.Now()
		if got := <-w.wrote; got != ": heartbeat\n\n" || time.Since(begin) != heartbeat {
			t.Errorf("%q after %s", got, time.Since(begin))
		}
		if want := 3 + int64(heartbeat/lookAgain); looks.Load() != want {
			t.Errorf("%d looks, want %d", looks.Load(), want)
		}
		s.Stop()
		<-done
		if watches != 0 || len(s.taps.m) != 0 {
			t.Errorf("%d watches and %d taps are left", watches, len(s.taps.m))
		}
	})
}

func TestWorkUnderOneKeyIsOneAfterAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var k keyed
		unlock, err := k.lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if other, err := k.lock(t.Context(), "b"); err != nil {
			t.Fatal(err)
		} else {
			other()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.lock(ctx, "a"); err == nil {
			t.Error("locked twice")
		}
		unlock()
		if unlock, err = k.lock(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		unlock()
		if len(k.m) != 0 {
			t.Errorf("%d locks are left", len(k.m))
		}
	})
}

func FuzzDecodeBead(f *testing.F) {
	for _, s := range []string{`{"title":"x"}`, `{"title":"x","priority":9e99}`, `{"title":"\ud800"}`, "{\"title\":\"\xff\"}", `{"labels":[null]}`, `[]`, `null`, `null }`, `{}{}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var b api.CreateBead
		err := decode(data, &b)
		if err == nil {
			if !json.Valid(data) {
				t.Errorf("%q is taken", data)
			}
			return
		}
		var p *problem
		if !errors.As(err, &p) || p.Status != 422 || len(encode(p.Problem)) > 8<<10 {
			t.Errorf("%q gets %v", data, err)
		}
	})
}

func FuzzCursors(f *testing.F) {
	f.Add("1.2.3")
	f.Add(writeCursor("0000000000000001.web-aaaaa"))
	f.Add("9999999999999999999.0.0")
	f.Add("-1.0.0")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parseLogPos(s); err == nil {
			if back, err := parseLogPos(p.String()); err != nil || back != p || p.ledger < 0 || p.epoch < 0 || p.seq < 0 {
				t.Errorf("%q: %v, %v", s, p, back)
			}
		}
		if c, err := readCursor(s); err == nil && c != "" {
			if back, err := readCursor(writeCursor(c)); err != nil || back != c {
				t.Errorf("%q: %q, %q", s, c, back)
			}
		}
	})
}
