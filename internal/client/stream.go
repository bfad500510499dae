package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"gastown/internal/errs"
)

// ErrStop, returned by the function given to a stream, ends it without an error.
var ErrStop = errors.New("stop")

const (
	// maxEvent bounds one event; a transcript chunk has at most 4 MiB.
	maxEvent = 8 << 20
	// silence is how long a stream may be mute: the server sends a comment every 15 s.
	silence = time.Minute
	// reconnectMax is the longest pause between attempts to reconnect.
	reconnectMax = 10 * time.Second
)

// Event is one server-sent event.
type Event struct {
	ID   string
	Name string // "message" when the server gave none
	Data []byte
}

// stream calls fn for each event until fn fails, ctx ends, or ended says that a
// stream which the server closed is complete. It reconnects with the id of the
// last event that fn took; last is where to begin ("" for the server's default).
// A nil ended means that the stream has no end.
func (c *Client) stream(ctx context.Context, path string, query url.Values, last string,
	fn func(Event) error, ended func(context.Context) (bool, error)) error {
	pause, begun := 200*time.Millisecond, false
	for {
		got := false
		retry, err := c.connect(ctx, path, query, last, begun, func(e Event) error {
			if err := fn(e); err != nil {
				return &taken{err}
			}
			got, begun = true, true
			if e.ID != "" {
				last = e.ID
			}
			return nil
		})
		var t *taken
		switch {
		case errors.As(err, &t) && errors.Is(t.err, ErrStop):
			return nil
		case errors.As(err, &t):
			return t.err
		case ctx.Err() != nil:
			return errs.Wrap(errs.Unavailable, ctx.Err(), "interrupted")
		case err != nil && !retry:
			return err
		case err == nil && ended != nil:
			if done, err := ended(ctx); done || err != nil {
				return err
			}
		}
		if got {
			pause = 200 * time.Millisecond
		}
		if c.wait(ctx, pause) != nil {
			return errs.Wrap(errs.Unavailable, ctx.Err(), "interrupted")
		}
		pause = min(2*pause, reconnectMax)
	}
}

// taken carries an error of the receiver through connect.
type taken struct{ err error }

func (t *taken) Error() string { return t.err.Error() }

// connect reads one connection to its end. A nil error means that the server
// ended the stream properly; retry says that a new connection makes sense; begun,
// that an earlier one delivered something.
func (c *Client) connect(ctx context.Context, path string, query url.Values, last string, begun bool,
	fn func(Event) error) (retry bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := c.build(ctx, request{method: http.MethodGet, path: path, query: query}, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	mute := time.AfterFunc(silence, func() { cancel(errors.New("the stream fell silent")) })
	defer mute.Stop()
	res, err := c.http.Do(req)
	if err != nil {
		// A server that is being restarted refuses connections for a moment: a
		// stream that had begun goes on trying, a first connection does not.
		err, again := c.unreachable(err)
		return again || begun, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if err != nil {
			err, _ := c.unreachable(err)
			return true, err
		}
		e := problem(res, body)
		return e.Kind == errs.Overloaded || e.Kind == errs.Unavailable, e
	}
	err = readEvents(res.Body, func() { mute.Reset(silence) }, fn)
	var t *taken
	if err != nil && !errors.As(err, &t) {
		err, _ := c.unreachable(err)
		return true, err
	}
	return true, err
}

// readEvents parses a stream of server-sent events. alive is called for each
// line. An event that the end of the stream cuts off is dropped, as the
// standard says.
func readEvents(r io.Reader, alive func(), fn func(Event) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	var e Event
	var data []byte
	has, size := false, 0
	for {
		line, err := readLine(br, maxEvent)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		alive()
		if len(line) == 0 {
			if has {
				if e.Name == "" {
					e.Name = "message"
				}
				e.Data = data
				if err := fn(e); err != nil {
					return err
				}
			}
			e, data, has, size = Event{}, nil, false, 0
			continue
		}
		if size += len(line); size > maxEvent {
			return errors.New("an event is too long")
		}
		field, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "data":
			if has {
				data = append(data, '\n')
			}
			data, has = append(data, value...), true
		case "event":
			e.Name = value
		case "id":
			if !strings.ContainsRune(value, 0) {
				e.ID = value
			}
		}
	}
}

// readLine reads a line that ends in \n or \r\n, without its end.
func readLine(br *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return nil, errors.New("a line of the event stream is too long")
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		line = line[:len(line)-1]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		return line, nil
	}
}
