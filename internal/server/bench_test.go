package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gastown/internal/agent"
	"gastown/internal/api"
	"gastown/internal/hall"
	"gastown/internal/store"
	"gastown/internal/town"
	"gastown/internal/vault"
)

// BenchmarkCreateBead creates beads durably over HTTP, with 64 clients on the
// same machine and an idempotency key each, as the command line sends it.
func BenchmarkCreateBead(b *testing.B) {
	for _, towns := range []int{1, 64} {
		b.Run(fmt.Sprintf("towns=%d", towns), func(b *testing.B) { benchCreate(b, towns) })
	}
}

func benchCreate(b *testing.B, towns int) {
	ctx := b.Context()
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	v, err := vault.Open(b.TempDir())
	must(err)
	signer, err := LoadSigner(v)
	must(err)
	st, err := store.Open(ctx, b.TempDir(), store.Options{})
	must(err)
	presets, err := agent.LoadPresets("")
	must(err)
	h := hall.New(hall.Config{Store: st, Perform: &performer{make(chan town.StartSandbox, 1)}, Boot: "boot",
		Server: town.Settings{"agent": "scripted"}, Limits: store.Limits{MaxAwake: 5, MaxStarting: 5}, Log: slog.New(slog.DiscardHandler)})
	srv, err := New(Config{Hall: h, Store: st, Hub: &fakeHub{}, Secrets: v, Signer: signer, Presets: presets, AdminToken: testToken})
	must(err)
	ts := httptest.NewServer(srv.Handler())
	for i := range towns {
		id, err := h.CreateTown(ctx, fmt.Sprintf("t%d", i), "", nil, "bench", nil)
		must(err)
		must(h.Do(ctx, id, town.AddRig{By: "bench", Rig: town.Rig{Name: "web", Prefix: fmt.Sprintf("p%d", i), URL: "https://git.example/x.git", Target: "main", Tip: tip}}))
	}
	const clients = 64
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	var n atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	b.ResetTimer()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			var mine []time.Duration
			for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
				body := fmt.Appendf(nil, `{"title":"bead %d","body":"do it","staged":true}`, i)
				req, err := http.NewRequestWithContext(ctx, "POST", fmt.Sprintf("%s/api/v1/towns/t%d/beads", ts.URL, i%int64(towns)), bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+testToken)
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set(api.HeaderIdempotencyKey, fmt.Sprintf("key-%d", i))
				begin := time.Now()
				res, err := hc.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				text, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 201 {
					b.Errorf("%d %s %v", res.StatusCode, text, err)
					return
				}
				mine = append(mine, time.Since(begin))
			}
			mu.Lock()
			took = append(took, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	b.StopTimer()
	if len(took) > 0 {
		slices.Sort(took)
		b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "beads/s")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	}
	ts.Close()
	stop, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	h.Stop(stop)
	must(st.Close())
}
