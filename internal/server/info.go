package server

import (
	"cmp"
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"gastown/internal/api"
	"gastown/internal/errs"
	"gastown/internal/gateway"
	"gastown/internal/store"
	"gastown/internal/town"
)

const (
	countPage = 1000
	countKeep = 5 * time.Minute // longest that a count of towns is believed
	healthFor = 2 * time.Second
)

func (s *Server) registerServer() {
	add(s, op{method: "GET", path: "/server", id: "server", tag: "server", summary: "Describe the server"}, s.describeServer)
	add(s, op{method: "POST", path: "/providers", id: "add-provider", tag: "providers", summary: "Add or replace a model provider", status: 201,
		errors: []int{409}, result: api.Provider{}}, s.addProvider)
	add(s, op{method: "GET", path: "/providers", id: "list-providers", tag: "providers", summary: "List model providers, without their keys"}, s.listProviders)
	add(s, op{method: "DELETE", path: "/providers/{name}", id: "delete-provider", tag: "providers", summary: "Remove a model provider", status: 204,
		errors: []int{404}}, s.deleteProvider)
}

// towns counts towns. Counting reads them all, so a count is believed for a
// hundred times as long as it took.
type townCount struct {
	mu    sync.Mutex // guards all below, and is held while counting
	n     int
	fails int // towns whose loop fails
	until time.Time
}

func (s *Server) countTowns(ctx context.Context) (all, failing int, err error) {
	c := &s.metrics.towns
	c.mu.Lock()
	defer c.mu.Unlock()
	begin := time.Now()
	if begin.Before(c.until) {
		return c.n, c.fails, nil
	}
	n, fails, after := 0, 0, ""
	for {
		heads, err := s.store.Heads(ctx, after, countPage)
		if err != nil {
			return 0, 0, err
		}
		n += len(heads)
		for _, h := range heads {
			if h.Failing != "" {
				fails++
			}
		}
		if len(heads) < countPage {
			break
		}
		after = heads[len(heads)-1].Name
	}
	took := time.Since(begin)
	c.n, c.fails, c.until = n, fails, begin.Add(min(100*took, countKeep))
	return n, fails, nil
}

func (s *Server) describeServer(ctx context.Context, _ *struct{}) (*body[api.Server], error) {
	slots, err := s.store.SlotCounts(ctx)
	if err != nil {
		return nil, err
	}
	towns, _, err := s.countTowns(ctx)
	if err != nil {
		return nil, err
	}
	i := s.cfg.Info
	return &body[api.Server]{Body: api.Server{Version: i.Version, Boot: i.Boot, StartedAt: i.StartedAt.UTC().Truncate(time.Millisecond),
		Data: i.Data, SandboxDriver: i.Driver, Isolation: i.Isolation, Listen: i.Listen, MaxAwake: i.MaxAwake,
		Awake: slots.Awake, Starting: slots.Starting, Waiting: slots.Waiting, Towns: towns, Store: s.storeView()}}, nil
}

type addProviderIn struct {
	IdemKey
	Body api.CreateProvider
}

func providerView(p gateway.Provider) api.Provider {
	models := p.Models
	if models == nil {
		models = []string{}
	}
	prices := map[string]api.Price{}
	for m, v := range p.Prices {
		prices[m] = api.Price{Input: dollars(v.Input), Output: dollars(v.Output), CacheRead: dollars(v.CacheRead), CacheWrite: dollars(v.CacheWrite)}
	}
	return api.Provider{Kind: p.Kind, Name: p.Name, BaseURL: p.BaseURL, Models: models, Prices: prices}
}

func dollars(micros int64) string { return strings.TrimPrefix(town.Money(micros), "$") }

// pricesOf reads prices as people write them. What is not given of the cache
// costs as much as other input.
func pricesOf(from map[string]api.Price) (map[string]gateway.Price, error) {
	out := map[string]gateway.Price{}
	for m, p := range from {
		var v gateway.Price
		for _, f := range []struct {
			text string
			to   *int64
		}{{p.Input, &v.Input}, {p.Output, &v.Output}, {cmp.Or(p.CacheRead, p.Input), &v.CacheRead}, {cmp.Or(p.CacheWrite, p.Input), &v.CacheWrite}} {
			n, ok := town.ParseMoney(f.text)
			if !ok {
				return nil, errs.New(errs.Invalid, "the price %q of %s is not dollars for a million tokens", printable(f.text, 40), printable(m, 60)).
					WithHint("give it like 1.25")
			}
			*f.to = n
		}
		out[m] = v
	}
	return out, nil
}

func (s *Server) addProvider(ctx context.Context, in *addProviderIn) (*raw, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	hash := digest(ctx, "add-provider")
	if done, err := s.recorded(ctx, "", in.IdemKey, hash); done != nil || err != nil {
		return done, err
	}
	b := in.Body
	prices, err := pricesOf(b.Prices)
	if err != nil {
		return nil, err
	}
	err = s.providers.Put(gateway.Provider{Kind: b.Kind, Name: b.Name, BaseURL: b.BaseURL, Key: b.Key, Models: b.Models, AllowHTTP: b.AllowHTTP, Prices: prices})
	if err != nil {
		return nil, err
	}
	p, err := s.providers.Get(b.Name)
	if err != nil {
		return nil, err
	}
	s.offered(ctx)
	return s.record(ctx, in.IdemKey, hash, providerView(p))
}

func (s *Server) listProviders(context.Context, *struct{}) (*body[api.List[api.Provider]], error) {
	all, err := s.providers.List()
	out := &body[api.List[api.Provider]]{}
	out.Body.Items = mapped(all, providerView)
	return out, err
}

type providerPath struct {
	Name string `path:"name"`
}

func (s *Server) deleteProvider(ctx context.Context, in *providerPath) (*none, error) {
	err := s.providers.Delete(in.Name)
	s.offered(ctx)
	return nil, err
}

// offered tells that providers changed.
func (s *Server) offered(ctx context.Context) {
	if s.cfg.Offered != nil {
		s.cfg.Offered(ctx)
	}
}

// registerPublic registers what is not part of the API.
func (s *Server) registerPublic() {
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, "ok") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.Handle("GET /metrics", s.metrics.handler())
	s.registerDocs()
}

func plain(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	// The client may be gone; there is nobody else to tell.
	_, _ = w.Write([]byte(text + "\n"))
}

// readyz says whether this server should get requests: the store answers and
// the loop runs.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthFor)
	defer cancel()
	_, _, err := s.store.Meta(ctx, "ready")
	if err == nil && s.cfg.Ready != nil {
		err = s.cfg.Ready(ctx)
	}
	select {
	case <-s.stopping:
		err = context.Canceled
	default:
	}
	if err != nil {
		// Everybody may ask; the reason is for the log.
		s.log.Warn("not ready", "err", err)
		p := newProblem(http.StatusServiceUnavailable, "unavailable", "the server is not ready; its log says why")
		p.write(w)
		return
	}
	switch h := s.health(); {
	case !h.Writable():
		p := newProblem(http.StatusServiceUnavailable, errs.Unavailable, "the server only reads: "+stateText(h.State))
		p.Hint = "gastown doctor says more, as does GET /api/v1/server"
		p.write(w)
	case h.Check == store.CheckRunning:
		plain(w, "ready\nthe database is being checked")
	default:
		plain(w, "ready")
	}
}
