package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"gastown/internal/lab"
)

func loadStreams(f *loadFlags) func(context.Context, *lab.Place) (any, error) {
	streams := f.set.Int("streams", 100, "streams at once")
	length := f.set.Duration("for", 30*time.Second, "how long they last")
	requests := f.set.Int("requests", 500, "requests one after another, for the delay of the first byte")
	return func(ctx context.Context, p *lab.Place) (any, error) {
		if err := errors.Join(within("streams", *streams, 1, 1000), within("for", int(length.Seconds()), 1, 3600), within("requests", *requests, 1, 100_000)); err != nil {
			return nil, err
		}
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return lab.MeasureStreams(ctx, lab.StreamsOptions{Place: p, Self: self, Streams: *streams, For: *length, Requests: *requests, Note: f.note})
	}
}

// streamLines compares with the targets.
func streamLines(ctx context.Context, f *loadFlags, p *lab.Place, length time.Duration) (lab.Table, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, err := lab.MeasureStreams(ctx, lab.StreamsOptions{Place: p, Self: self, Streams: 100, For: length, Requests: 500, Note: f.note})
	t := lab.Table{
		under("model: overhead to the first byte, p50", "%.2f ms", r.OverheadP50, 2),
		{What: "model: 100 streams, delay of a piece, p50", Figure: fmt.Sprintf("%.2f ms", r.Pieces.P50)},
		none("model: errors", r.Errors),
	}
	if n := len(r.ServerRSSMB); n > 1 {
		t = append(t, under("model: 100 streams, growth of the server from first to last look", "%.1f MB", r.ServerRSSMB[n-1]-r.ServerRSSMB[0], 5),
			under("model: 100 streams, growth of the runners", "%.1f MB", r.RunnersRSSMB[n-1]-r.RunnersRSSMB[0], 5))
	}
	return t, err
}

// runStreamClient is an agent's work: its arguments are the provider's own address,
// how many streams to open, and how many requests to send one after another.
func runStreamClient(args []string, errOut io.Writer) int {
	if len(args) != 3 {
		fmt.Fprintln(errOut, "usage: gastown-lab stream-client URL STREAMS REQUESTS")
		return 2
	}
	streams, err := strconv.Atoi(args[1])
	requests, err2 := strconv.Atoi(args[2])
	if err = errors.Join(err, err2); err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = lab.StreamClient(ctx, args[0], streams, requests)
	}
	if err != nil {
		fmt.Fprintln(errOut, "gastown-lab:", err)
		return 1
	}
	return 0
}
