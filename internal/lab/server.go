package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gastown/internal/app"
	"gastown/internal/client"
	"gastown/internal/errs"
)

const (
	readyFor = 2 * time.Minute  // a server that is not ready by then is given up
	stopFor  = 20 * time.Second // everything that ends a server
	callFor  = 30 * time.Second // one request of ours
)

// Place is a temporary directory with the program under measurement.
type Place struct {
	Dir     string
	Gastown string // path of the program
}

// NewPlace makes a directory. gastown is the program to measure; "" builds
// cmd/gastown, for which the working directory must be in this module.
func NewPlace(ctx context.Context, gastown string) (*Place, error) {
	dir, err := os.MkdirTemp("", "gastown-lab-")
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "making a temporary directory")
	}
	p := &Place{Dir: dir, Gastown: gastown}
	if gastown == "" {
		p.Gastown = filepath.Join(dir, "gastown")
		cmd := exec.CommandContext(ctx, "go", "build", "-o", p.Gastown, "gastown/cmd/gastown")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, errors.Join(errs.New(errs.Unavailable, "building gastown: %v: %s", err, strings.TrimSpace(string(out))).
				WithHint("run it in the source tree, or name a program with --gastown PATH"), p.Remove())
		}
	} else if p.Gastown, err = filepath.Abs(gastown); err != nil {
		return nil, errors.Join(errs.Wrap(errs.Invalid, err, "--gastown"), p.Remove())
	}
	return p, nil
}

// Remove removes everything.
func (p *Place) Remove() error { return os.RemoveAll(p.Dir) }

// Server is a `gastown serve` in a process of its own.
type Server struct {
	Data    string
	URL     string
	Token   string
	ReadyMS float64 // from the start of the process until it answered that it is ready

	cmd   *exec.Cmd
	begun time.Time
	ended chan struct{} // closed when the process is gone
	http  *http.Client
}

// Serve starts a server on the data directory and waits until it is ready. Its
// log goes to DATA/server.log.
func (p *Place) Serve(ctx context.Context, data string, args ...string) (*Server, error) {
	s, err := p.begin(data, args...)
	if err != nil {
		return nil, err
	}
	if err := s.ready(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// begin starts a server and does not wait for it.
func (p *Place) begin(data string, args ...string) (*Server, error) {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "making the data directory")
	}
	log, err := os.OpenFile(filepath.Join(data, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "opening the server's log")
	}
	defer log.Close()
	s := &Server{Data: data, begun: time.Now(), ended: make(chan struct{}), http: &http.Client{Timeout: callFor}}
	// Not CommandContext: the server is ended in order, also when ctx has ended.
	s.cmd = exec.Command(p.Gastown, append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us
	if err := s.cmd.Start(); err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "starting the server")
	}
	go func() {
		// How it ended stands in its log; who waits for it asks only whether.
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	return s, nil
}

// ready waits for the server's address, then for its word.
func (s *Server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyFor)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.URL == "" {
			s.locate()
		}
		if s.URL != "" {
			if _, err := s.get(ctx, "/readyz"); err == nil {
				s.ReadyMS = ms(time.Since(s.begun))
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return errs.New(errs.Unavailable, "the server ended before it was ready\n%s", s.tail())
		case <-ctx.Done():
			return errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for the server")
		}
	}
}

// locate reads where this server is; what an earlier one left does not count.
func (s *Server) locate() {
	l, err := app.ReadLocation(s.Data)
	if err != nil || l.PID != s.cmd.Process.Pid {
		return
	}
	token, err := os.ReadFile(filepath.Join(s.Data, app.TokenFile))
	if err != nil {
		return
	}
	s.URL, s.Token = l.URL, strings.TrimSpace(string(token))
}

func (s *Server) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	res, err := s.http.Do(req)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, err, "asking the server")
	}
	defer func() {
		_ = res.Body.Close() // read to its end
	}()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", res.StatusCode, text)
	}
	return text, errs.Wrap(errs.Unavailable, err, "asking the server for %s", path)
}

// Client returns a client with connections of its own.
func (s *Server) Client() (*client.Client, error) {
	return client.New(client.Options{URL: s.URL, Token: s.Token, Agent: "gastown-lab", User: "lab",
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, IdleConnTimeout: time.Minute}})
}

// PID is the server's process.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Kill ends the server as a crash would, and waits.
func (s *Server) Kill() error {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errs.Wrap(errs.Internal, err, "killing the server")
	}
	<-s.ended
	return nil
}

// Stop ends the server in order, or kills it after a while, then ends what is
// left of its sandboxes. Stopping twice is harmless.
func (s *Server) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopFor)
	defer cancel()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errs.Wrap(errs.Internal, err, "ending the server")
	}
	var all []error
	select {
	case <-s.ended:
	case <-ctx.Done():
		all = append(all, errs.New(errs.Internal, "the server did not end in time"), s.Kill())
	}
	over, cancelOver := context.WithTimeout(context.Background(), stopFor)
	defer cancelOver()
	return errors.Join(append(all, app.StopSandboxes(over, app.Config{Data: s.Data}, time.Second, false))...)
}

// tail is the end of the server's log.
func (s *Server) tail() string {
	text, err := os.ReadFile(filepath.Join(s.Data, "server.log"))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
