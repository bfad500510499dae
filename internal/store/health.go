package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
)

// State says whether a store takes writes.
type State string

// The states. Reads are answered in all of them as far as the disk allows.
const (
	Healthy  State = "ok"
	Full     State = "full"      // the disk is full; each write is tried, and refused while it is
	ReadOnly State = "read_only" // a write failed in the middle; refused until the files could be opened anew
	Damaged  State = "damaged"   // the file is not whole; only a restore helps
)

// CheckState says how far the check after an unclean end is.
type CheckState string

// The states of a check.
const (
	CheckNone    CheckState = ""        // the last end was clean
	CheckRunning CheckState = "running" // in the background; the store works meanwhile
	CheckOK      CheckState = "ok"
	CheckFailed  CheckState = "damaged"
	CheckStopped CheckState = "stopped" // it did not get to its end
)

// Health is what a store knows of its own state.
type Health struct {
	State State
	Since time.Time // when State began
	Cause string    // in words; "" when healthy
	Hint  string    // what to do; "" when healthy
	Check CheckState
}

// Writable reports whether writes may succeed.
func (h Health) Writable() bool { return h.State == Healthy }

// health is a Health that many read, and tells of its changes one after another.
type health struct {
	dir string
	now func() time.Time

	mu   sync.Mutex // guards all below
	h    Health
	news []Health
	more chan struct{} // capacity 1: news is not empty; closed by stop
	over bool
	done chan struct{} // closed when the teller has ended
}

func newHealth(dir string, o Options) *health {
	h := &health{dir: dir, now: o.Now, h: Health{State: Healthy, Since: o.Now()}, more: make(chan struct{}, 1), done: make(chan struct{})}
	go h.tell(o.Changed)
	return h
}

func (h *health) tell(changed func(Health)) {
	defer close(h.done)
	for open := true; open; {
		_, open = <-h.more
		h.mu.Lock()
		news := h.news
		h.news = nil
		h.mu.Unlock()
		for _, n := range news {
			if changed != nil {
				changed(n)
			}
		}
	}
}

// stop returns when everything was told. Later changes are told to nobody.
func (h *health) stop() {
	h.mu.Lock()
	if !h.over {
		h.over = true
		close(h.more)
	}
	h.mu.Unlock()
	<-h.done
}

func (h *health) snapshot() Health {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.h
}

func (h *health) edit(fn func(*Health)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.h
	fn(&h.h)
	if h.h.State != was.State {
		h.h.Since = h.now()
	}
	if h.h.State == was.State && h.h.Check == was.Check || h.over {
		return
	}
	h.news = append(h.news, h.h)
	select {
	case h.more <- struct{}{}:
	default:
	}
}

// turned notes a state and its cause. Damage stays.
func (h *health) turned(to State, cause error) {
	h.edit(func(v *Health) {
		if v.State == Damaged {
			return
		}
		v.State, v.Cause, v.Hint = to, "", ""
		if cause != nil {
			v.Cause = cause.Error()
		}
		switch to {
		case Full:
			v.Hint = "free space on the disk of " + h.dir + "; writes go on by themselves then"
		case ReadOnly:
			v.Hint = "check the disk and the permissions of " + h.dir + "; the server tries again by itself"
		case Damaged:
			v.Hint = restoreHint(h.dir)
		case Healthy:
		}
	})
}

func restoreHint(dir string) string {
	return "restore a backup: gastown restore FILE --force --data " + dir
}

// Health returns the state of the store.
func (s *SQLite) Health() Health { return s.health.snapshot() }

// recheck asks for a check beside everything else.
func (s *SQLite) recheck() {
	s.health.edit(func(h *Health) { h.Check = CheckRunning })
	select {
	case s.checks <- struct{}{}:
	default: // one is due already
	}
}

// checker reads the whole file when the store has reason to doubt it: after an
// unclean end, and after a failed write. Damage makes the store read-only.
func (s *SQLite) checker() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var stopping sync.WaitGroup
	defer stopping.Wait()
	stopping.Go(func() { <-s.closed; cancel() })
	for {
		select {
		case <-s.closed:
			return
		case <-s.checks:
		}
		err := s.check(ctx)
		switch {
		case err == nil:
			s.health.edit(func(h *Health) { h.Check = CheckOK })
		case damages(err):
			s.health.edit(func(h *Health) { h.Check = CheckFailed })
			s.w.damaged(err)
		default: // the store was closed, or the disk can't be read now
			s.health.edit(func(h *Health) { h.Check = CheckStopped })
		}
	}
}

// errDamaged marks errors that say that the file is not whole.
var errDamaged = errors.New("the file is not whole")

func damages(err error) bool {
	c := code(err)
	return c == codeCorrupt || c == codeNotADB || errors.Is(err, errDamaged)
}

// Check reads the whole file and reports damage (Internal); for doctor, and after
// an unclean end in the background. It takes about a second per gigabyte.
func (s *SQLite) Check(ctx context.Context) error {
	select {
	case <-s.closed:
		return ErrClosed()
	default:
	}
	if err := s.check(ctx); !damages(err) {
		return readFailure(ctx, err)
	} else {
		return errs.Wrap(errs.Internal, err, "checking the store")
	}
}

// check uses a connection of its own: it lasts, and readers are few.
func (s *SQLite) check(ctx context.Context) (err error) {
	l, err := dial(s.readDSN())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	return l.quickCheck(ctx, s.path)
}

func (l *link) quickCheck(ctx context.Context, path string) error {
	var found []string
	err := l.each(ctx, func(v []driver.Value) { found = append(found, asText(v[0])) }, `PRAGMA quick_check(10)`)
	if err != nil || (len(found) == 1 && found[0] == "ok") {
		return err
	}
	return (&errs.Error{Kind: errs.Internal, Message: path + " is damaged: " + strings.Join(found, "; "), Err: errDamaged}).
		WithHint("restore a backup")
}

// dropReaders closes the reading connections that nobody uses now, so that the
// next readers open the files anew.
func (s *SQLite) dropReaders() {
	for range s.opts.Readers {
		select {
		case l := <-s.readers:
			if l != nil {
				// It is replaced because the files may be broken: closing may fail too.
				_ = l.close()
			}
			s.readers <- nil
		default:
			return
		}
	}
}
