package server

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"gastown/internal/errs"
)

// How many requests of one sandbox a route of /runner takes at a time. A runner
// sends one of each of its own, and sometimes one more that it has given up
// before the server has; of what agents ask for there are as many as agents.
const (
	ofItsOwn  = 4
	ofItsRuns = 64
)

// crowd counts the requests in progress by sandbox and route, so that one
// sandbox can't take the memory and the goroutines of all. It is of this process
// alone, as they are.
type crowd struct {
	mu     sync.Mutex // guards inside
	inside map[spot]int
}

// spot is a route as one sandbox uses it.
type spot struct {
	town       string
	generation int64
	pattern    string
}

// enter counts a request and returns how to take it off, or refuses it. Nobody
// waits: a waiting request costs what one in progress does.
func (c *crowd) enter(p spot, most int) (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inside[p] >= most {
		e := errs.New(errs.Overloaded, "this sandbox has %d requests to this address in progress; it takes no more at a time", most).
			WithHint("try again in a second")
		e.RetryAfter = time.Second
		return nil, e
	}
	if c.inside == nil {
		c.inside = map[spot]int{}
	}
	c.inside[p]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.inside[p]--; c.inside[p] <= 0 {
			delete(c.inside, p)
		}
	}, nil
}

// admit checks the token before anything of a body is read, and that a sandbox
// has not too many requests in progress already. The caller must call leave.
func (s *Server) admit(r *http.Request, pattern string) (leave func(), err error) {
	leave = func() {}
	if !strings.HasPrefix(r.URL.Path, "/runner/") {
		if s.limits[pattern] >= 0 && !s.admin(r) {
			err = errNoToken()
		}
		return leave, err
	}
	c, err := s.sandbox(nil, r)
	switch most, counted := s.most[pattern]; {
	case err != nil && s.limits[pattern] < 0:
		return leave, nil // the handler refuses it, in its own form
	case err != nil:
		return leave, err
	case counted:
		return s.crowd.enter(spot{c.Town, c.Generation, pattern}, most)
	}
	return leave, nil
}
