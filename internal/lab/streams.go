package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gastown/internal/api"
	"gastown/internal/client"
	"gastown/internal/errs"
)

const (
	streamsPerTown = 50 // a server takes 64 requests of one sandbox at a time
	chunkEach      = 100 * time.Millisecond
	chunkText      = 200 // bytes of text in each piece
)

// StreamsOptions say how to measure the way of a model's answer.
type StreamsOptions struct {
	Place    *Place
	Self     string // a program that runs StreamClient as "stream-client"
	Streams  int
	For      time.Duration
	Requests int // one after another, for the delay of the first byte
	Note     func(format string, args ...any)
}

// Streams is what was measured on the way agent, runner, server, provider.
type Streams struct {
	Direct       Quantiles `json:"direct_first_byte_ms"` // asked without anything between
	Through      Quantiles `json:"through_first_byte_ms"`
	OverheadP50  float64   `json:"overhead_p50_ms"`
	Streams      int       `json:"streams"`
	Seconds      float64   `json:"seconds"`
	Bytes        int64     `json:"bytes"`
	Pieces       Quantiles `json:"piece_delay_ms"` // from the provider's write to the agent's read
	ServerRSSMB  []float64 `json:"server_rss_mb"`  // at the first quarter, in the middle, at the end; none where there is no /proc
	RunnersRSSMB []float64 `json:"runners_rss_mb"` // of all sandboxes together
	ServerCPU    float64   `json:"server_cpu_percent_of_one_core"`
	Errors       int64     `json:"errors"`
}

// streamResult is what a client inside a sandbox tells, through the model.
type streamResult struct {
	Direct, Through, Pieces []time.Duration
	Bytes, Errors           int64
}

// provider is a model API whose pieces carry the time of their writing.
type streamProvider struct {
	length time.Duration
	got    chan streamResult
	open   atomic.Int64
}

// ServeHTTP implements http.Handler. The body says what is wanted.
func (p *streamProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Result *streamResult `json:"result"`
		Stream bool          `json:"stream"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "not JSON", http.StatusBadRequest)
		return
	}
	if in.Result != nil {
		p.got <- *in.Result
	}
	w.Header().Set("Content-Type", "text/event-stream")
	piece := func() bool {
		_, err := fmt.Fprintf(w, "data: {\"t\":%d,\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"%s\"}}]}\n\n", time.Now().UnixNano(), strings.Repeat("x", chunkText))
		return errors.Join(err, http.NewResponseController(w).Flush()) == nil
	}
	end := time.Now().Add(p.length)
	p.open.Add(1)
	defer p.open.Add(-1)
	tick := time.NewTicker(chunkEach)
	defer tick.Stop()
	for piece() && in.Stream && time.Now().Before(end) {
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
	// The client counts what it got; who left needs no usage.
	_, _ = io.WriteString(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n")
}

// MeasureStreams has real sandboxes whose agents ask a model, one request after
// another, and then many at once.
func MeasureStreams(ctx context.Context, o StreamsOptions) (out Streams, err error) {
	p := &streamProvider{length: o.For, got: make(chan streamResult, 64)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return out, errs.Wrap(errs.Unavailable, err, "listening as a provider")
	}
	srv := &http.Server{Handler: p, ReadHeaderTimeout: callFor}
	go func() { _ = srv.Serve(ln) }() // it ends when it is closed
	defer func() { err = errors.Join(err, srv.Close()) }()
	repo := filepath.Join(o.Place.Dir, "streams.git")
	if err := writeRepository(ctx, repo, 1); err != nil {
		return out, err
	}
	towns := (o.Streams + streamsPerTown - 1) / streamsPerTown
	s, err := o.Place.Serve(ctx, filepath.Join(o.Place.Dir, "streams"), "--isolation", "none", "--max-awake", fmt.Sprint(towns+1), "--set", "agent=scripted")
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, s.Stop()) }()
	c, err := s.Client()
	if err != nil {
		return out, err
	}
	direct := "http://" + ln.Addr().String() + "/v1"
	if _, err := c.AddProvider(ctx, api.CreateProvider{Kind: "openai-compatible", Name: "lab", BaseURL: direct, Models: []string{"m"}}); err != nil {
		return out, err
	}
	ids := make([]string, towns)
	for i := range ids {
		if ids[i], err = streamTown(ctx, c, fmt.Sprintf("streams-%d", i), repo); err != nil {
			return out, err
		}
	}
	o.Note("%d requests, one after another", o.Requests)
	if err := streamBead(ctx, c, 0, fmt.Sprintf("'%s' stream-client '%s' 0 %d", o.Self, direct, o.Requests)); err != nil {
		return out, err
	}
	first, err := p.next(ctx)
	if err != nil {
		return out, err
	}
	out.Direct, out.Through = quantiles(first.Direct), quantiles(first.Through)
	out.OverheadP50 = out.Through.P50 - out.Direct.P50
	out.Streams, out.Seconds, out.Errors = o.Streams, o.For.Seconds(), first.Errors
	return out, o.many(ctx, p, s, c, ids, &out)
}

func (p *streamProvider) next(ctx context.Context) (streamResult, error) {
	select {
	case r := <-p.got:
		return r, nil
	case <-ctx.Done():
		return streamResult{}, errs.Wrap(errs.Unavailable, ctx.Err(), "waiting for an agent's figures")
	}
}

// many opens all streams, and looks at the processes while they run.
func (o StreamsOptions) many(ctx context.Context, p *streamProvider, s *Server, c *client.Client, ids []string, out *Streams) error {
	left := o.Streams
	for i := range ids {
		n := min(left, streamsPerTown)
		left -= n
		if err := streamBead(ctx, c, i, fmt.Sprintf("'%s' stream-client - %d 0", o.Self, n)); err != nil {
			return err
		}
	}
	if err := until(ctx, "all streams are open", func() (bool, error) { return p.open.Load() >= int64(o.Streams), nil }); err != nil {
		return err
	}
	o.Note("%d streams are open", o.Streams)
	begin, cpu := time.Now(), 0.0
	for i := range 3 {
		// The first look comes when buffers have grown.
		if err := wait(ctx, time.Until(begin.Add(time.Duration(i+1)*o.For/4))); err != nil {
			return err
		}
		u, ok, err := processUsage(s.PID())
		if err != nil || !ok {
			continue
		}
		out.ServerRSSMB = append(out.ServerRSSMB, float64(u.rss)/(1<<20))
		out.RunnersRSSMB = append(out.RunnersRSSMB, runnersRSS(s.Data, ids))
		if i == 0 {
			cpu = u.cpu
		} else if i == 2 {
			out.ServerCPU = 100 * (u.cpu - cpu) / (o.For / 2).Seconds()
		}
	}
	var pieces []time.Duration
	for range ids {
		r, err := p.next(ctx)
		if err != nil {
			return err
		}
		pieces = append(pieces, r.Pieces...)
		out.Bytes += r.Bytes
		out.Errors += r.Errors
	}
	out.Pieces = quantiles(pieces)
	return nil
}

// runnersRSS sums the memory of the runners, in MB.
func runnersRSS(data string, ids []string) (sum float64) {
	for _, id := range ids {
		var gen struct {
			PID int `json:"pid"`
		}
		b, err := os.ReadFile(filepath.Join(data, "sandboxes", id, "gen.json"))
		if err != nil || json.Unmarshal(b, &gen) != nil {
			continue
		}
		if u, ok, err := processUsage(gen.PID); ok && err == nil {
			sum += float64(u.rss) / (1 << 20)
		}
	}
	return sum
}

func streamTown(ctx context.Context, c *client.Client, name, repo string) (string, error) {
	t, err := c.CreateTown(ctx, api.CreateTown{Name: name, Settings: map[string]string{"sandbox.grace": "10m"}})
	if err != nil {
		return "", err
	}
	_, err = c.AddRig(ctx, name, api.AddRig{Name: "web", Prefix: strings.ReplaceAll(name, "-", ""), URL: repo, Target: "main",
		Settings: map[string]string{"provider": "lab", "model": "m"}})
	return t.ID, err
}

func streamBead(ctx context.Context, c *client.Client, town int, script string) error {
	_, err := c.CreateBead(ctx, fmt.Sprintf("streams-%d", town), api.CreateBead{Rig: "web", Title: "ask the model", Body: "```sh end=no_change\n" + script + "\n```\n"})
	return err
}

// StreamClient runs inside a sandbox: it asks the model one request after another,
// directly and through the gateway, or opens streams; its figures go to the model.
func StreamClient(ctx context.Context, direct string, streams, requests int) error {
	base, key := os.Getenv("GASTOWN_MODEL_URL"), os.Getenv("GASTOWN_MODEL_KEY")
	var out streamResult
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}
	for range requests {
		for to, into := range map[string]*[]time.Duration{direct: &out.Direct, base: &out.Through} {
			begin := time.Now()
			at, err := ask(ctx, hc, to, key, []byte("{}"), func(int, time.Duration) {})
			if err != nil {
				out.Errors++
				continue
			}
			*into = append(*into, at.Sub(begin))
		}
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			_, err := ask(ctx, hc, base, key, []byte(`{"stream":true}`), func(n int, late time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				out.Bytes += int64(n)
				if late > 0 {
					out.Pieces = append(out.Pieces, late)
				}
			})
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				out.Errors++
			}
		})
	}
	all.Wait()
	body, err := json.Marshal(map[string]any{"result": out})
	if err != nil {
		return err
	}
	_, err = ask(ctx, hc, base, key, body, func(int, time.Duration) {})
	return err
}

// ask sends one request and reads its answer, line by line. It returns when the
// first byte came.
func ask(ctx context.Context, hc *http.Client, base, key string, body []byte, each func(n int, late time.Duration)) (at time.Time, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/chat/completions", bytes.NewReader(body))
	if err != nil {
		return at, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	res, err := hc.Do(req)
	if err != nil {
		return at, err
	}
	defer func() {
		_ = res.Body.Close() // read to its end
	}()
	if res.StatusCode != http.StatusOK {
		return at, errs.New(errs.Unavailable, "status %d", res.StatusCode)
	}
	r := bufio.NewReader(res.Body)
	for {
		line, err := r.ReadBytes('\n')
		now := time.Now()
		if at.IsZero() {
			at = now
		}
		var piece struct {
			T int64 `json:"t"`
		}
		late := time.Duration(0)
		if text, ok := bytes.CutPrefix(line, []byte("data: {")); ok && json.Unmarshal(append([]byte("{"), text...), &piece) == nil && piece.T > 0 {
			late = now.Sub(time.Unix(0, piece.T))
		}
		each(len(line), late)
		if errors.Is(err, io.EOF) {
			return at, nil
		}
		if err != nil {
			return at, err
		}
	}
}
