package gateway

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gastown/internal/vault"
)

// counted is what a meter counts.
type counted struct {
	model string
	used  Tokens
	cost  int64
}

type meterFunc func(h counted)

func (f meterFunc) ModelUsed(_ ModelGrant, _, model string, t Tokens, cost int64, _ bool) {
	f(counted{model, t, cost})
}

// newMeterLab serves a metered gateway in front of an upstream that calls answer.
func newMeterLab(t *testing.T, prices map[string]Price, answer http.HandlerFunc) (base string, told <-chan counted) {
	t.Helper()
	up := httptest.NewServer(answer)
	t.Cleanup(up.Close)
	v, err := vault.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := NewProviders(v)
	if err := p.Put(Provider{Kind: KindOpenAICompatible, Name: "house", BaseURL: up.URL, Prices: prices}); err != nil {
		t.Fatal(err)
	}
	ch := make(chan counted, 16)
	srv := httptest.NewServer(NewModel(p, policyFunc(anyone), ModelConfig{Prefix: modelPrefix, Meter: meterFunc(func(h counted) { ch <- h })}))
	t.Cleanup(srv.Close)
	return srv.URL + modelPrefix, ch
}

func TestOnlyWhatAnAgentNeedsIsForwarded(t *testing.T) {
	t.Parallel()
	for _, yes := range []string{"POST chat/completions", "POST v1/messages", "POST messages/count_tokens", "POST responses", "GET models", "GET v1/models/a", "POST embeddings",
		"POST v1beta/models/m-1:streamGenerateContent", "POST v1beta/models/m:generateContent", "POST v1beta/models/m:countTokens"} {
		method, path, _ := strings.Cut(yes, " ")
		if _, err := addressOf(method, path); err != nil {
			t.Errorf("%s: %v", yes, err)
		}
	}
	asked := make(chan string, 100)
	base, told := newMeterLab(t, nil, func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path })
	for _, no := range []string{"GET files", "POST files", "POST batches", "GET batches", "POST v1/messages/batches", "GET responses/resp_1", "POST responses/resp_1/cancel",
		"GET chat/completions", "POST images/generations", "POST fine_tuning/jobs", "GET organization/users", "POST v1/v1/messages", "GET models/", "POST ", "POST v1/",
		"POST v1beta/models/m:predict", "POST v1beta/models/m:batchGenerateContent", "POST v1beta/files", "POST v1beta/cachedContents", "POST v1beta/models/m"} {
		method, path, _ := strings.Cut(no, " ")
		req, err := http.NewRequestWithContext(t.Context(), method, base+"house/"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusUnprocessableEntity || len(asked) != 0 || len(told) != 0 {
			t.Errorf("%s: status %d, %d forwarded, %d counted", no, res.StatusCode, len(asked), len(told))
		}
	}
}

func TestWhatNobodyStaysToHearIsCounted(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	base, told := newMeterLab(t, nil, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(arrived)
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"house/chat/completions", strings.NewReader(strings.Repeat("x", 40_000)))
	if err != nil {
		t.Fatal(err)
	}
	if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
		res.Body.Close()
		t.Fatal("it was answered")
	}
	select {
	case got := <-told:
		if got.used != (Tokens{Input: 10_000}) {
			t.Errorf("counted %+v, want 10,000 tokens of input", got)
		}
	case <-time.After(2 * time.Minute):
		t.Error("nothing was counted")
	}
}

func TestACompressedAnswerIsEstimated(t *testing.T) {
	t.Parallel()
	base, told := newMeterLab(t, nil, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Content-Encoding", "br")
		_, _ = io.WriteString(w, strings.Repeat("\x8b", 4000))
	})
	res := post(t, base+"house/chat/completions", strings.NewReader(strings.Repeat("x", 400)), "Accept-Encoding", "br")
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got.used != (Tokens{Input: 100, Output: 1000}) {
		t.Errorf("counted %+v, want 100 and 1,000 tokens", got)
	}
}

func TestAModelWithoutAPriceIsNotCheaperThanOthers(t *testing.T) {
	t.Parallel()
	p := Provider{Prices: map[string]Price{"small": {Input: 1, Output: 2}, "small-1": {Input: 3, Output: 3}, "large": {Input: 10, Output: 1}}}
	for model, want := range map[string]Price{
		"small":          {Input: 1, Output: 2},
		"small-1-202611": {Input: 3, Output: 3},
		"small-2":        {Input: 1, Output: 2},
		"smaller":        {Input: 10, Output: 3},
		"":               {Input: 10, Output: 3},
	} {
		if got := p.priceOf(model); got != want {
			t.Errorf("%q costs %+v, want %+v", model, got, want)
		}
	}
	if got := (Provider{}).priceOf("any"); got != (Price{}) {
		t.Errorf("without any price: %+v", got)
	}
}
