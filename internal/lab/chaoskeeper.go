package lab

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"gastown/internal/client"
	"gastown/internal/errs"
)

// keeper keeps one server running on a data directory, as a service manager
// does: whenever it ends, the next begins at once.
type keeper struct {
	place *Place
	data  string
	args  []string
	bad   func(string) // hears of a server that ended by itself

	ctx    context.Context // ends when no further server may begin
	cancel context.CancelFunc
	done   chan struct{} // closed when the last server is over

	mu     sync.Mutex // guards the fields below
	newest *Server
	killed bool          // the newest server was
	up     *answering    // the newest server, nil until it is ready
	change chan struct{} // closed when up changes
}

// answering is a server that was ready.
type answering struct {
	server *Server
	client *client.Client
}

func keep(p *Place, data string, args []string, bad func(string)) *keeper {
	k := &keeper{place: p, data: data, args: args, bad: bad, done: make(chan struct{}), change: make(chan struct{})}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	go k.run()
	return k
}

func (k *keeper) run() {
	defer close(k.done)
	for k.ctx.Err() == nil {
		s, err := k.place.begin(k.data, k.args...)
		if err != nil {
			k.bad("a server could not be started: " + err.Error())
			if wait(k.ctx, time.Second) != nil {
				return
			}
			continue
		}
		k.set(s, nil)
		err = s.ready(k.ctx)
		if err == nil {
			var c *client.Client
			if c, err = s.Client(); err == nil {
				k.set(s, c)
			}
		}
		if err != nil && k.ctx.Err() == nil && !k.wasKilled() {
			k.bad("a server did not get ready: " + err.Error())
		}
		select {
		case <-s.ended:
			if !k.wasKilled() && k.ctx.Err() == nil {
				k.bad("a server ended by itself: " + s.tail())
			}
		case <-k.ctx.Done():
		}
		k.set(s, nil)
	}
}

func (k *keeper) set(s *Server, c *client.Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.newest != s {
		k.newest, k.killed = s, false
	}
	k.up = nil
	if c != nil {
		k.up = &answering{s, c}
	}
	close(k.change)
	k.change = make(chan struct{})
}

func (k *keeper) wasKilled() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.killed
}

// ready waits for a server that is.
func (k *keeper) ready(ctx context.Context) (*answering, error) {
	for {
		k.mu.Lock()
		up, change := k.up, k.change
		k.mu.Unlock()
		if up != nil {
			return up, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for a server")
		}
	}
}

// current returns the newest server, ready or not; nil before the first.
func (k *keeper) current() *Server {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.newest
}

// kill kills the newest server. It reports whether there was one to kill.
func (k *keeper) kill() bool {
	k.mu.Lock()
	s := k.newest
	if s == nil || k.killed {
		k.mu.Unlock()
		return false
	}
	k.killed, k.up = true, nil
	err := s.cmd.Process.Kill()
	k.mu.Unlock()
	if err != nil {
		return false // it had ended already, which run tells
	}
	<-s.ended
	return true
}

// signal sends a signal to the newest server.
func (k *keeper) signal(sig syscall.Signal) bool {
	s := k.current()
	return s != nil && s.cmd.Process.Signal(sig) == nil
}

// stop ends the server in order, and what is left of sandboxes.
func (k *keeper) stop() error {
	k.cancel()
	<-k.done
	s := k.current()
	if s == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errs.Wrap(errs.Internal, err, "continuing the server")
	}
	return s.Stop()
}
